"""Tokens without an embedding, and rows without a token."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from rlhf_cli.data.examples import flatten
from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import ExampleRow
from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.kernels.lm_head import Support
from rlhf_cli.models.base_model import BaseOptions, build_random_model, load_base_model
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.reward_model import name_pad_token
from rlhf_cli.models.stored_file import FileTensor
from rlhf_cli.models.stored_origin import WithMeanRows
from rlhf_cli.models.vocabulary import (
    find_support,
    fit_vocabulary,
    num_embeddings,
    require_embedded,
    require_policy_vocabulary,
)
from tests.data.toy import toy_tokenizer
from tests.helpers import tiny_llama, tokenizer_of


@pytest.mark.parametrize(
    ("ids", "support"),
    [
        (range(9), None),
        (range(12), None),  # more tokens than rows
        (range(6), Support(9, 6)),
        ([0, 1, 5, 8], Support(9, 9, (2, 3, 4, 6, 7))),
        ([0, 2, 11], Support(9, 3, (1,))),
    ],
)
def test_the_ids_that_can_be_drawn(ids, support):
    assert find_support(tokenizer_of(ids), 9) == support


def test_tokens_without_an_embedding_are_said_and_change_nothing(capsys):
    model = tiny_llama()
    before = model.get_input_embeddings().weight.detach().clone()
    fit_vocabulary(model, tokenizer_of(range(99)))
    assert torch.equal(model.get_input_embeddings().weight, before)
    line = "tokenizer: 2 of 99 tokens (<97>, <98>) have no embedding in the model, which has 97"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_added_for_new_tokens_each_the_mean_of_the_others(tied):
    """Id 97 is in the tokenizer without being new: there is room for it now, of no use."""
    model = tiny_llama(tie_word_embeddings=tied)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    means = [layer.weight.detach().mean(0) for layer in layers]
    state = torch.get_rng_state()
    fit_vocabulary(model, tokenizer_of(range(100)), (98, 99))
    assert torch.equal(torch.get_rng_state(), state)
    for layer, mean in zip(
        [model.get_input_embeddings(), model.get_output_embeddings()], means, strict=True
    ):
        assert len(layer.weight) == 100
        assert_close(layer.weight[97:], mean.expand(3, -1))


def test_rows_of_data_without_an_embedding_are_named_by_file_and_line():
    def example(line, *rows):
        made = [TokenRow(np.array(row, np.int32), np.arange(len(row)) > 0) for row in rows]
        return [ExampleRow(row, "pairs.jsonl", line) for row in made]

    examples = flatten(
        [example(1, [3, 4], [3, 5]), example(7, [3, 4], [3, 98, 97]), example(9, [97, 1])],
        ("pairs.jsonl",),
    )
    require_embedded(examples, tiny_llama(vocab_size=99))
    with pytest.raises(DataError, match=r"^pairs.jsonl:7: token id 98 .* has 97; 2 rows hold"):
        require_embedded(examples, tiny_llama())


def test_a_model_that_reads_what_the_policy_writes_embeds_as_much():
    policy, tokenizer = tiny_llama(), tokenizer_of(range(97))
    require_policy_vocabulary(tiny_llama(vocab_size=120), policy, tokenizer, "value_model", "x")
    padded = tiny_llama(vocab_size=120)  # rows without a token are never drawn
    require_policy_vocabulary(policy, padded, tokenizer, "value_model", "x")
    with pytest.raises(ModelError, match=r"^value_model: x does not fit .* 7 of 97 tokens \(<90>,"):
        require_policy_vocabulary(tiny_llama(vocab_size=90), policy, tokenizer, "value_model", "x")


def test_random_weights_have_a_row_for_each_id_where_ids_are_left_out():
    tokenizer = toy_tokenizer()
    tokenizer.get_vocab = lambda: {"a": 0, "b": 50}
    shape = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 1, "intermediate_size": 8}  # fmt: skip
    assert num_embeddings(build_random_model(ModelConfig(architecture=shape), tokenizer, 0)) == 51


def test_a_config_whose_padding_has_no_embedding_is_loaded(tmp_path):
    """What `model.config.pad_token_id = tokenizer.pad_token_id` leaves; torch refuses the id."""
    model = tiny_llama()
    model.config.pad_token_id = 97
    model.save_pretrained(tmp_path)
    with pytest.raises(AssertionError):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = load_base_model(
        ModelConfig(path=str(tmp_path)), str(tmp_path), tokenizer_of(range(98)), BaseOptions()
    )
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(("padding", "named"), [(5, 5), (97, None), (2, None), (None, None)])
def test_a_saved_reward_model_names_a_padding_that_it_embeds(padding, named):
    model = tiny_llama()
    name_pad_token(model, SimpleNamespace(pad_token_id=padding, eos_token_id=2))
    assert model.config.pad_token_id == named


@pytest.mark.parametrize("start", [0, 8, 9, 10])
def test_rows_beyond_the_file_of_an_embedding_need_no_read(tmp_path, start):
    weight = torch.arange(36.0).view(9, 4)
    save_file({"embedding": weight}, tmp_path / "w.safetensors")
    changed = (tmp_path / "w.safetensors").stat().st_mtime_ns
    stored = FileTensor((9, 4), torch.float32, tmp_path / "w.safetensors", "embedding", changed)
    origin = WithMeanRows((11, 4), torch.float32, stored, frozenset({9, 10}))
    expected = torch.cat([weight, weight.mean(0).expand(2, 4)])
    assert_close(origin.rows(start, 11), expected[start:])
