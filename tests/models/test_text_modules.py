"""Models that read images too: their language model is trained, the rest stays as it is."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from rlhf_cli import cli
from rlhf_cli.context import forked_rng
from rlhf_cli.models.parameters import non_text_modules, text_modules
from rlhf_cli.resources import shipped_model
from tests.helpers import tiny_llama

FAST = ["max_steps=2", "batch_size=2", "train.precision=fp32", "data=tiny", "max_length=64"]
FAST += ["lr=1e-2"]
OTHERS = ("model.vision_tower", "model.multi_modal_projector")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "gemma"
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    text = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "query_pre_attn_scalar": 16, "max_position_embeddings": 256, "sliding_window": 16,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    images = {
        f"{name}_token_index": len(tokenizer) + i for i, name in enumerate(("boi", "eoi", "image"))
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **images)
    with forked_rng():
        torch.manual_seed(0)
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_which_parts_read_text(gemma):
    model = AutoModelForCausalLM.from_pretrained(gemma)
    assert tuple(non_text_modules(model)) == OTHERS
    assert text_modules(model) == [model.model.language_model, model.lm_head]
    assert non_text_modules(tiny_llama()) == []


def test_full_training_changes_the_language_model_alone(gemma, tmp_path, capsys):
    out = tmp_path / "sft"
    assert cli.main(["sft", f"model={gemma}", f"output_dir={out}", *FAST]) == 0
    assert f"text alone is read: {', '.join(OTHERS)} are not trained" in capsys.readouterr().err
    before, after = weights(gemma), weights(out / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("vision" in name or "projector" in name for name in changed)
    _, report = AutoModelForCausalLM.from_pretrained(out / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj]"])
def test_adapters_stand_on_the_language_model_alone(gemma, tmp_path, targets):
    out = tmp_path / "sft"
    words = ["adapter=lora", f"adapter.targets={targets}"]
    assert cli.main(["sft", f"model={gemma}", f"output_dir={out}", *words, *FAST]) == 0
    names = load_file(out / "model" / "adapter_model.safetensors")
    assert all(".language_model." in name for name in names)
    merged = tmp_path / "merged"
    assert cli.main(["merge", str(out), f"output_dir={merged}", "dtype=fp32"]) == 0
    assert weights(merged).keys() == weights(gemma).keys()


def test_layers_that_read_images_are_no_targets(gemma, tmp_path, capsys):
    words = ["adapter=lora", "adapter.targets=[fc1]", f"output_dir={tmp_path / 'sft'}"]
    assert cli.main(["sft", f"model={gemma}", *words, *FAST]) == 1
    assert "adapter.targets: got fc1; no linear layer has that name" in capsys.readouterr().err
