"""What is in a checkpoint is what runs: names of wrappers, missing, extra and reshaped weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
)

from rlhf_cli.errors import ModelError
from rlhf_cli.models.checkpoint_keys import ENCODER, LANGUAGE_MODEL, NEW_SCORER, SCORER
from rlhf_cli.models.weights import load_weights
from tests.helpers import tiny_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Llama whose output layer is its own."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_llama(tie_word_embeddings=False).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(whole, tmp_path):
    """Makes a copy of the model with other names, tensors or settings."""

    def make(rename=lambda name: name, more=(), **settings):
        folder = tmp_path / "changed"
        shutil.copytree(whole, folder)
        file = folder / "model.safetensors"
        found = {rename(name): value.clone() for name, value in load_file(file).items()}
        found.pop(None, None)
        save_file(found | dict(more), file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def load(folder, fit=LANGUAGE_MODEL, auto=AutoModelForCausalLM, **options):
    return load_weights(auto, str(folder), fit, key="model.path", **options)


def same(model, folder):
    stored = load_file(folder / "model.safetensors")
    return all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())


PREFIXES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "ddp": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "compiled layers": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "fsdp": lambda name: f"_fsdp_wrapped_module.{name}",
    "peft": lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer."),
}


@pytest.mark.parametrize("wrapper", PREFIXES)
def test_what_wrappers_add_to_names_is_taken_off(whole, changed, tmp_path, capsys, wrapper):
    model = load(changed(PREFIXES[wrapper]))
    assert same(model, whole)
    assert "carry the prefixes of a wrapper" in capsys.readouterr().err
    model.save_pretrained(tmp_path / "again")
    assert same(load(tmp_path / "again"), whole)
    assert capsys.readouterr().err == ""


def test_missing_weights_are_refused_by_name(changed):
    folder = changed(lambda name: None if "layers.1.mlp.up_proj" in name else name)
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.up_proj"):
        load(folder)


def test_renamed_weights_are_refused_with_both_names(changed):
    folder = changed(lambda name: name.replace("model.layers.", "transformer.h."))
    with pytest.raises(ModelError) as error:
        load(folder)
    assert "transformer.h.0." in str(error.value)
    assert "none for model.layers.0." in str(error.value)


@pytest.mark.parametrize(
    ("extra", "advice"),
    [
        ("v_head.summary.weight", "a value head is no part of this model"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "an adapter was saved within"),
        ("model.layers.2.input_layernorm.weight", "need names as transformers saves them"),
    ],
)
def test_extra_weights_are_refused_by_name(changed, extra, advice):
    folder = changed(more={extra: torch.zeros(2, 2)}.items())
    with pytest.raises(ModelError) as error:
        load(folder)
    assert extra in str(error.value)
    assert advice in str(error.value)


def test_weights_of_another_shape_are_refused_with_both(changed):
    with pytest.raises(ModelError, match=r"of shape \[97, 32\], and Llama.* needs \[98, 32"):
        load(changed(vocab_size=98))


def test_a_tied_output_layer_that_is_not_in_the_file_is_tied(changed, capsys):
    drop = lambda name: None if name == "lm_head.weight" else name  # noqa: E731
    folder = changed(drop)
    model = load(folder)  # its config says that it is not tied
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    assert "it is tied to the input embeddings" in capsys.readouterr().err


def test_an_own_output_layer_is_used_whatever_the_config_says(whole, changed, capsys):
    model = load(changed(tie_word_embeddings=True))
    assert same(model, whole)
    assert not model.config.tie_word_embeddings
    assert "they are used, and the result is not tied" in capsys.readouterr().err


SCORES = {"auto": AutoModelForSequenceClassification, "num_labels": 1}


def test_a_head_that_is_not_in_the_file_is_new_for_training_alone(whole, capsys):
    with pytest.raises(ModelError, match=r"no weights for score\.weight .* with a trained head"):
        load(whole, SCORER, **SCORES)
    capsys.readouterr()
    load(whole, NEW_SCORER, **SCORES)
    told = capsys.readouterr().err
    assert "has no score.weight; this head is new and random" in told
    assert "does not use lm_head.weight" in told


def test_a_reward_model_keeps_its_head(whole, tmp_path):
    first = load(whole, NEW_SCORER, **SCORES)
    assert isinstance(first, LlamaForSequenceClassification)
    first.save_pretrained(tmp_path / "rm")
    assert torch.equal(load(tmp_path / "rm", SCORER, **SCORES).score.weight, first.score.weight)


def test_a_base_model_without_its_head_serves_as_an_encoder(whole, changed):
    assert load(whole, ENCODER, auto=AutoModel) is not None
    folder = changed(lambda name: None if "layers.1." in name else name)
    with pytest.raises(ModelError, match="has no weights for"):
        load(folder, ENCODER, auto=AutoModel)


def test_weights_are_read_in_the_type_that_is_asked_for(whole):
    model = load(whole, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
