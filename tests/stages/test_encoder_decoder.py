"""An encoder-decoder is refused wherever one stack is needed, by its config alone."""

import json

import pytest
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.resources import shipped_model
from rlhf_cli.rewards.reward_model import require_reward_model


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bart"
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    tokenizer.save_pretrained(folder)
    shape = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with forked_rng():
        config = BartConfig(vocab_size=len(tokenizer), **shape, **layers, **heads)
        BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.path", ["sft", "model={}", "data=tiny"]),
        ("model.path", ["pretrain", "model={}", "data=tiny", "model.init=scratch"]),
        ("model.path", ["reward", "model={}", "data=tiny"]),
        ("model.path", ["dpo", "model={}", "data=tiny"]),
        ("model.path", ["bco", "model={}", "data=tiny"]),
        ("model.path", ["ppo", "model={}", "data=tiny", "reward.length_penalty=1"]),
        ("model.path", ["generate", "model={}", "prompt=a"]),
        ("model.path", ["merge", "model={}", "output_dir=merged"]),
        ("model.path", ["evaluate", "{}", "data=tiny"]),
        ("beside", ["evaluate", "tiny", "{}", "data=tiny"]),
        ("model.reference", ["dpo", "model=tiny", "data=tiny", "model.reference={}"]),
        ("reward.model", ["ppo", "model=tiny", "data=tiny", "reward.model={}"]),
        ("value_model", ["ppo", "model=tiny", "data=tiny", "value=model", "value_model={}",
                         "reward.length_penalty=1"]),
    ],
)  # fmt: skip
def test_it_is_refused_before_anything_is_loaded(told, bart, key, words):
    code, line = told(*(word.format(bart) for word in words))
    assert code == 2, line
    assert f"{key}: got {bart}, an encoder-decoder (bart), which is not supported" in line


def test_an_adapter_of_one_is_refused_too(told, bart, tmp_path):
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(bart), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    code, line = told("generate", "model=adapter", "prompt=a")
    assert (code, "an encoder-decoder (bart)" in line) == (2, True), line


def test_one_whose_config_does_not_say_so_is_refused_when_it_is_loaded(told, bart):
    words = ["model.init=scratch", "model.tokenizer=tiny", "data=tiny", "data.format=text"]
    shape = "model.architecture={model_type: t5, d_model: 16, num_layers: 1, num_heads: 2}"
    code, line = told("pretrain", *words, shape)
    assert (code, "an encoder-decoder (t5), which is not supported" in line) == (1, True), line
    with pytest.raises(ModelError, match="an encoder-decoder"):
        require_reward_model(ModelConfig(path=str(bart)))
