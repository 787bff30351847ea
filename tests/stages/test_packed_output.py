"""`quant.output_layer`: from the command line, and what cannot be quantized."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.context import RunContext
from rlhf_cli.errors import ModelError
from rlhf_cli.models.base_model import BaseOptions, load_base_model
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_frozen, load_generator, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import plain_outputs
from rlhf_cli.models.quantize import (
    quantization_config,
    quantized_weight,
    require_quantized_output,
    set_eval_mode,
)
from rlhf_cli.models.wrapper import read_head
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, random_rows, tiny_llama
from tests.kernels.quantized_layers import dequantized
from tests.stages.conftest import FAST

CPU = torch.device("cpu")
PACKED = ("adapter=lora", "quant.output_layer=true")


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    """A model whose output layer has weights of its own, and the shipped tokenizer."""
    return made(tmp_path_factory.mktemp("untied"), hidden_size=64)


def made(folder, **shape):
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    shape = {"tie_word_embeddings": False, **shape}
    tiny_llama(vocab_size=len(tokenizer), **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def context(folder):
    return RunContext(CPU, torch.float32, 0, Path(folder))


def tokenizer_of(folder):
    return AutoTokenizer.from_pretrained(folder)


def config(folder, quant="nf4", **adapter):
    return LoadConfig(
        model=ModelConfig(path=str(folder)),
        adapter=AdapterConfig(kind="lora", rank=4, **adapter),
        quant=QuantConfig(kind=quant, output_layer=True),
    )


def train(command, out, *argv):
    words = (command, "data=tiny", f"output_dir={out}", *FAST, "data.eval=none", *argv)
    return cli.main(last_of_each(*words))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_chain_on_a_packed_output_layer(untied, tmp_path, capsys, kind):
    """sft, then dpo on it, which needs no note of what is quantized; answers and a merge."""
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    words = (f"model={untied}", *PACKED, f"quant={kind}", "max_steps=3")
    assert train("sft", sft, *words) == 0
    losses = [line["loss"] for line in read_metrics(sft / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    assert train("dpo", dpo, f"model={sft}", "max_steps=1") == 0
    for run in (sft, dpo):
        assert json.loads((run / "artifact.json").read_text())["quant_output_layer"] is True
    assert cli.main(["generate", str(dpo), "prompt=Hi", "max_new_tokens=3"]) == 0
    assert cli.main(["merge", str(sft), f"output_dir={tmp_path / 'merged'}"]) == 0
    assert f"unquantized base against the {kind} base" in capsys.readouterr().err


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_log_probs_are_those_of_the_packed_model_itself(untied, tmp_path, quant):
    policy = load_policy(config(untied, quant), LoadInputs(tokenizer_of(untied), context(tmp_path)))
    layer = policy.output_layer
    assert quantized_weight(layer) is not None
    rows = random_rows([9])
    hidden = policy.hidden_states(rows, rows.scored)
    logits = torch.nn.functional.linear(hidden, dequantized(layer))
    expected = logits.log_softmax(-1).gather(1, rows.targets[:, None]).squeeze(1)
    assert_close(policy(rows).logp, expected, rtol=1e-5, atol=1e-5)
    if quant == "nf4":  # in 8 bits a model's own pass packs hidden states too
        assert_close(plain_outputs(policy, rows)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_only_writes_reads_its_rows_as_they_were_packed(untied, tmp_path):
    """In eval mode bitsandbytes packs weights anew where a CPU has AVX512-bf16."""
    loaded = tokenizer_of(untied), context(tmp_path)
    policy = load_policy(config(untied), LoadInputs(*loaded))
    expected = dequantized(policy.output_layer)
    frozen = load_frozen(Policy, config(untied), LoadInputs(*loaded))
    writer = load_generator(config(untied).model, config(untied).quant, LoadInputs(*loaded))
    with torch.no_grad():
        frozen(random_rows([9]))
        writer(input_ids=torch.arange(3, 20)[None])
    for model in (frozen.model, writer):
        rows = read_head(model).weight.dequantize(0, len(expected), torch.float32)
        assert torch.equal(rows, expected)


def test_rows_that_were_packed_anew_are_not_read(untied):
    quantization = quantization_config("nf4", True, torch.float32, output_layer=True)
    options = BaseOptions(quantization=quantization)
    model = load_base_model(ModelConfig(), str(untied), tokenizer_of(untied), options)
    set_eval_mode(model)
    model.lm_head.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RuntimeError, match="repacked"):
        read_head(model)


def test_what_cannot_be_packed_is_refused(untied, tmp_path):
    tied = made(tmp_path / "tied", tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"output layer of .*tied shares its weights"):
        load_policy(config(tied), LoadInputs(tokenizer_of(tied), context(tmp_path)))
    narrow = made(tmp_path / "narrow", hidden_size=32)
    with pytest.raises(ModelError, match=r"narrow is 32 wide; 4 bits need a multiple of 64"):
        load_policy(config(narrow), LoadInputs(tokenizer_of(narrow), context(tmp_path)))
    load_policy(config(narrow, "int8"), LoadInputs(tokenizer_of(narrow), context(tmp_path)))
    with pytest.raises(ModelError, match=r"has 2 new tokens to learn"):
        load_policy(config(untied), LoadInputs(tokenizer_of(untied), context(tmp_path), (7, 8)))
    with pytest.raises(ModelError, match=r"is none that bitsandbytes quantizes \(Linear\)"):
        require_quantized_output("model", tiny_llama())  # as if bitsandbytes had left it whole


def test_no_adapter_stands_on_a_packed_output_layer(untied, tmp_path):
    with pytest.raises(ModelError, match=r"adapter.targets: got lm_head, .* it takes no adapter"):
        load_policy(
            config(untied, targets=["lm_head"]), LoadInputs(tokenizer_of(untied), context(tmp_path))
        )
    whole = ("adapter=lora", "adapter.targets=[lm_head]", "max_steps=1")
    assert train("sft", tmp_path / "run", f"model={untied}", *whole) == 0
    with pytest.raises(ModelError, match=r"quant.output_layer: .* has a part on the output layer"):
        load_policy(config(tmp_path / "run"), LoadInputs(tokenizer_of(untied), context(tmp_path)))


@pytest.mark.parametrize("command", ["reward", "evaluate"])
def test_a_reward_model_has_no_such_layer(untied, tmp_path, capsys, command):
    words = ["data=tiny", "quant=nf4", "quant.output_layer=true"]
    reward = tmp_path / "reward"
    if command == "evaluate":
        assert train("reward", reward, f"model={untied}", "adapter=lora", "max_steps=1") == 0
        words += [f"model={reward}"]
    else:
        words += [f"model={untied}", "adapter=lora"]
    assert cli.main([command, *words]) == 2
    assert "error: quant.output_layer: got true for a reward model" in capsys.readouterr().err
