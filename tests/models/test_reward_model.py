import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
)

from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.base_model import is_causal
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.load import disable_dropout
from rlhf_cli.models.probes import plain_outputs, probe
from rlhf_cli.models.reward_model import RewardModel
from tests.helpers import random_rows, rows_of

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "num_labels": 1,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
DECODERS = {
    "llama": LlamaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, num_labels=1),
    "bloom, padded": BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, num_labels=1),
}
ENCODERS = {
    "bert": BertConfig(**SHAPE),
    "roberta": RobertaConfig(**SHAPE),
    "modernbert": ModernBertConfig(**SHAPE, **ENDS),
}
CPU = torch.device("cpu")


def make(config):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    disable_dropout(model)
    return RewardModel(model, choose("auto", CPU)[0], flat=is_causal(model))


@pytest.mark.parametrize("config", {**DECODERS, **ENCODERS}.values(), ids={**DECODERS, **ENCODERS})
def test_scores_are_those_of_each_row_alone(config):
    model = make(config)
    probe(model, may_fall_back=True)
    rows = random_rows([7, 3, 20, 1])
    assert_close(model(rows), plain_outputs(model, rows)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_padding_side_and_pad_token_do_not_matter(name):
    model = make({**DECODERS, **ENCODERS}[name])
    rows = random_rows([7, 3, 20])
    expected = model(rows)
    model.flat = False
    model.model.set_attn_implementation("eager")
    assert_close(model(rows), expected, atol=1e-5, rtol=1e-4)
    model.pad_token = 5
    assert_close(model(rows), expected, atol=1e-5, rtol=1e-4)
    if name == "llama":  # an encoder counts its positions from the first column
        model.padding_side = "left"
        assert_close(model(rows), expected, atol=1e-5, rtol=1e-4)


def test_the_score_is_read_at_the_last_token_even_where_it_is_the_pad_token():
    model = make(DECODERS["llama"])
    with_end, without = rows_of([5, 6, 7, 0]), rows_of([5, 6, 7])
    assert model(with_end) != model(without)
    expected = model(without)
    model.model.set_attn_implementation("sdpa")
    plain = model.model(input_ids=with_end.tokens[None]).logits
    assert_close(plain.squeeze(1), expected)  # what transformers would read


def test_roberta_has_fewer_positions_than_its_config_says():
    model = make(ENCODERS["roberta"])
    longest = context_length(model.model)
    assert longest == SHAPE["max_position_embeddings"] - 1  # counted from behind the pad token, 0
    assert len(model(rows_of([5] * longest))) == 1
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(rows_of([5] * (longest + 1)))
