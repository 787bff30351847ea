import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rlhf_cli.resources import shipped_model
from tests.models.architectures import ARCHITECTURES, SIZES


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(shipped_model())


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """Folders of models with random weights, by architecture, in files of 40 kB."""
    folders = {}

    def find(name):
        if name not in folders:
            torch.manual_seed(1)
            kind = name.split("-")[0]
            config = AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES[name]})
            config.vocab_size = len(tokenizer)
            folders[name] = tmp_path_factory.mktemp("models") / name
            model = AutoModelForCausalLM.from_config(config)
            model.save_pretrained(folders[name], max_shard_size="40kB")
            tokenizer.save_pretrained(folders[name])
        return folders[name]

    return find
