import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlhf_cli.errors import ModelError
from rlhf_cli.models.base_model import BaseOptions, load_base_model, load_checkpoint
from rlhf_cli.models.checks import ENCODER, NEW_REWARD_HEAD
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.stored_tensor import read_parameters
from tests.helpers import tiny_llama, tokenizer_of

TOKENIZER = tokenizer_of(range(97))
REWARD = "reward_model"
Q = "model.layers.0.self_attn.q_proj"
MOE = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
BERT = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def saved(folder, model, rewrite=lambda weights: weights, **config):
    """A checkpoint of a model with some of its names and of its config changed."""
    model.save_pretrained(folder)
    file, settings = folder / "model.safetensors", folder / "config.json"
    weights = rewrite(dict(load_file(file)))
    save_file(weights, file, metadata={"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    return str(folder)


@pytest.fixture(params=[False, True], ids=["read", "deferred"], autouse=True)
def is_deferred(request, monkeypatch):
    """Every check holds too where the weights stay in their files; they are read after it."""
    monkeypatch.setitem(DEFERRED, "is_deferred", request.param)


DEFERRED = {}


def load(folder, kind="causal_lm", **options):
    options = BaseOptions(kind=kind, deferred=DEFERRED["is_deferred"], **options)
    model = load_base_model(ModelConfig(path=folder), folder, TOKENIZER, options)
    read_parameters(model)
    return model


def renamed(*rules):
    def rewrite(weights):
        for pattern, to in rules:
            weights = {re.sub(pattern, to, name): value for name, value in weights.items()}
        return weights

    return rewrite


WRAPPED = {
    "compiled": renamed(("^", "_orig_mod.")),
    "DDP": renamed(("^", "module.")),
    "compiled layers in a compiled model in DDP": renamed(
        (r"layers\.(\d)\.", r"layers.\1._orig_mod."), ("^", "module._orig_mod.")
    ),
    "FSDP with checkpointed layers": renamed(
        (r"layers\.(\d)\.", r"layers.\1._fsdp_wrapped_module._checkpoint_wrapped_module."),
        ("^", "_fsdp_wrapped_module."),
    ),
    "PEFT": renamed((r"([qv]_proj)\.", r"\1.base_layer."), ("^", "base_model.model.")),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_prefixes_of_wrappers_are_removed(name, tmp_path, capsys):
    model = tiny_llama(tie_word_embeddings=False)
    found = load(saved(tmp_path / "in", model, WRAPPED[name]))
    found.save_pretrained(tmp_path / "out")
    expected, got = model.state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)
    assert "carry the prefixes of a wrapper; they were removed" in capsys.readouterr().err


def test_wrapped_experts_are_merged_and_saved_one_by_one(tmp_path):
    """The class's own conversion of names works beside that of wrappers."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**MOE))
    folder = saved(tmp_path / "in", model, renamed(("^", "_orig_mod.")))
    assert "_orig_mod.model.layers.1.mlp.experts.3.up_proj.weight" in load_file(
        tmp_path / "in" / "model.safetensors"
    )
    found = load(folder)
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in model.state_dict().items())
    found.save_pretrained(tmp_path / "out")
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in names


def lora(weights):
    return WRAPPED["PEFT"](weights) | {
        f"base_model.model.{Q}.lora_A.default.weight": torch.zeros(2, 32)
    }


REFUSED = {
    "layers that are missing": (
        lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k},
        {},
        "has no weights for model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj"
        ".weight, model.layers.1.mlp.up_proj.weight of LlamaForCausalLM; they would be random",
    ),
    "layers that the config does not count": (
        lambda w: w,
        {"num_hidden_layers": 1},
        "does not use: model.layers.1.input_layernorm.weight, "
        "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight and 6 more; need",
    ),
    "other names": (
        renamed(("^model.layers", "decoder.blocks")),
        {},
        "does not use: decoder.blocks.0.input_layernorm.weight",
    ),
    "another shape": (
        lambda w: w,
        {"intermediate_size": 48},
        "has model.layers.0.mlp.down_proj.weight of shape [32, 64], and LlamaForCausalLM needs "
        "[32, 48] by its config.json",
    ),
    "an adapter within the model": (
        lora,
        {},
        f"does not use: {Q}.lora_A.default.weight; an adapter was saved within the whole",
    ),
    "a value head": (
        lambda w: w | {"v_head.summary.weight": torch.zeros(1, 32)},
        {},
        "does not use: v_head.summary.weight; a value head is no part of this model",
    ),
    "no embeddings": (
        lambda w: {k: v for k, v in w.items() if "embed" not in k and "head" not in k},
        {},
        "has no weights for",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(name, tmp_path):
    rewrite, config, said = REFUSED[name]
    folder = saved(tmp_path, tiny_llama(tie_word_embeddings=False), rewrite, **config)
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        load(folder)
    assert str(caught.value).startswith(f"model.path: {folder} has ")
    assert "\n" not in str(caught.value)


def test_a_shard_without_its_weights_is_refused(tmp_path):
    """The index names them, and the file is there."""
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    kept = dict(list(load_file(first).items())[1:])
    save_file(kept, first, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"has no weights for lm_head\.weight, model\.embed_tokens"
    ):
        load(str(tmp_path))


def test_buffers_of_older_transformers_are_ignored(tmp_path, capsys):
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    load(saved(tmp_path, tiny_llama(), lambda weights: weights | old))
    assert "inv_freq" not in capsys.readouterr().err


def test_an_output_layer_that_is_not_in_the_file_is_tied(tmp_path, capsys):
    model = tiny_llama(tie_word_embeddings=True)
    found = load(saved(tmp_path / "in", model, tie_word_embeddings=False), dtype=torch.bfloat16)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(found.lm_head.weight, model.lm_head.weight.bfloat16())
    assert "it is tied to the input embeddings" in capsys.readouterr().err
    found.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_an_output_layer_of_its_own_is_not_tied_by_the_config(tmp_path, capsys):
    model = tiny_llama(tie_word_embeddings=False)
    found = load(saved(tmp_path, model, tie_word_embeddings=True))
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)
    assert not found.config.tie_word_embeddings
    assert "the file holds other values for it" in capsys.readouterr().err


def reward_model():
    torch.manual_seed(0)
    config = tiny_llama().config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def test_a_reward_model_without_its_head_is_refused_save_where_it_may_be_new(tmp_path, capsys):
    folder = saved(
        tmp_path, reward_model(), lambda w: {k: v for k, v in w.items() if "score" not in k}
    )
    with pytest.raises(ModelError, match=r"no weights for score\.weight .* need a model with a"):
        load(folder, REWARD)
    load(folder, REWARD, allowed=NEW_REWARD_HEAD)
    said = capsys.readouterr().err
    assert "weights: the checkpoint has no score.weight; this head is new and random" in said


def test_a_reward_model_is_not_taken_for_a_language_model_with_tied_weights(tmp_path):
    folder = saved(tmp_path, reward_model(), tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"score\.weight and none for lm_head\.weight"):
        load(folder)


def test_a_new_head_does_not_excuse_missing_layers(tmp_path):
    folder = saved(
        tmp_path, tiny_llama(), lambda w: {k: v for k, v in w.items() if "layers.1.mlp" not in k}
    )
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp"):
        load(folder, REWARD, allowed=NEW_REWARD_HEAD)


def test_the_output_layer_of_a_language_model_is_named_as_unused(tmp_path, capsys):
    load(saved(tmp_path, tiny_llama(tie_word_embeddings=False)), REWARD, allowed=NEW_REWARD_HEAD)
    said = capsys.readouterr().err
    assert "LlamaForSequenceClassification does not use lm_head.weight of the checkpoint" in said


def test_an_embedding_model_needs_its_layers_and_no_pooler(tmp_path, capsys):
    torch.manual_seed(0)
    masked = BertForMaskedLM(BertConfig(**BERT))  # has no pooler, and a head of its own
    folder = saved(tmp_path / "whole", masked)
    found = load_checkpoint(AutoModel, folder, ENCODER, key="udm.embedding_model")
    weight = masked.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(found.encoder.layer[0].output.dense.weight, weight)
    assert "BertModel does not use cls.predictions.bias" in capsys.readouterr().err
    folder = saved(
        tmp_path / "part",
        BertModel(BertConfig(**BERT)),
        lambda w: {k: v for k, v in w.items() if "output.dense" not in k},
    )
    said = r"udm\.embedding_model: \S+ has no weights for encoder\.layer\.0"
    with pytest.raises(ModelError, match=said):
        load_checkpoint(AutoModel, folder, ENCODER, key="udm.embedding_model")
