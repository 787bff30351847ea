"""The names that `from rlhf_cli import NAME` gives, their signatures, and the page about them."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import rlhf_cli
from rlhf_cli.kernels.lm_head import TokenLogprobs
from rlhf_cli.models.policy import Policy
from tests.pages import DOCS, fenced_blocks

PAGE = DOCS / "python_api.md"

SIGNATURES = {
    "PPOTrainer": "(cfg: PPOConfig, out: str | Path) -> None",
    "PPOTrainer.generate": "(self, prompts: Sequence[Prompt]) -> list[Response]",
    "PPOTrainer.step": (
        "(self, prompts: Sequence[Prompt], responses: Sequence[Response | str], "
        "scores: Sequence[float]) -> dict[str, float]"
    ),
    "PPOTrainer.save": "(self) -> Path",
    "create_context": (
        "(precision: str, seed: int, out: Path, launch: LaunchConfig | None = None) -> RunContext"
    ),
    "generate": (
        "(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, "
        "*, samples: int = 1, batch_size: int = 64, prompt_numbers: Sequence[int] | None = None, "
        "streamer: Any | None = None, logprobs: bool = False) -> list[Response]"
    ),
    "load_policy": "(cfg: LoadConfig, inputs: LoadInputs) -> Policy",
    "load_tokenizer": (
        "(cfg: ModelConfig, corpus: Callable[[], Iterable[str]] | None = None) -> Any"
    ),
    "read_head": "(model: Any) -> LMHead",
    "token_logprobs": (
        "(hidden: Tensor, head: LMHead, targets: Tensor, *, temperature: float = 1.0, "
        "want: Iterable[str] = ('logp',), implementation: LinearLogprobs = linear_logprobs) "
        "-> TokenLogprobs"
    ),
}
POLICY_SIGNATURES = {
    "forward": (
        "(self, rows: TokenBatch, *, role: str = 'policy', want: Iterable[str] = ('logp',), "
        "temperature: float = 1.0, sampled: bool = False) -> TokenLogprobs"
    ),
    "hidden_states": "(self, rows: TokenBatch, positions: Tensor) -> Tensor",
}
FIELDS = {
    "LoadInputs": "tokenizer ctx new_tokens",
    "Response": (
        "index prompt_index prompt_ids token_ids finished logprobs weights_version text "
        "trailing_pad"
    ),
    "TokenBatch": (
        "tokens lengths scored example_of_row columns token_columns needs_backward is_filler"
    ),
}
CONFIGS = {
    "LoadConfig",
    "ModelConfig",
    "PPOConfig",
    "PPOModelConfig",
    "SamplingConfig",
    "TrainConfig",
}
"""Classes whose fields are keys of recipes, which the tests of the recipes pin."""


def signature(function) -> str:
    """Signature as text: annotations without quotes, functions by their names."""
    text = re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(inspect.signature(function)))
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def fields(cls) -> str:
    return " ".join(field.name for field in dataclasses.fields(cls))


@pytest.mark.parametrize("name", rlhf_cli.__all__)
def test_each_name_can_be_imported(name):
    names: dict = {}
    exec(f"from rlhf_cli import {name}", names)
    assert names[name].__name__ == name


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "transformers", "hydra", "omegaconf", "numpy", "datasets", "accelerate"]
    program = (
        "import sys, rlhf_cli; dir(rlhf_cli), rlhf_cli.__version__, rlhf_cli.__all__; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="PPOTrainr"):
        _ = rlhf_cli.PPOTrainr
    with pytest.raises(ImportError, match="PPOTrainr"):
        exec("from rlhf_cli import PPOTrainr")


def test_dir_lists_the_public_names():
    assert {*rlhf_cli.__all__, "__version__"} <= {*dir(rlhf_cli)}


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(rlhf_cli.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == rlhf_cli._MODULE_OF
    assert sorted(seen) == rlhf_cli.__all__
    assert (Path(rlhf_cli.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    owner, _, method = name.partition(".")
    found = getattr(rlhf_cli, owner)
    assert signature(getattr(found, method) if method else found) == SIGNATURES[name]


@pytest.mark.parametrize("name", POLICY_SIGNATURES)
def test_signatures_of_the_policy_that_is_loaded(name):
    assert signature(getattr(Policy, name)) == POLICY_SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_dataclasses(name):
    assert fields(getattr(rlhf_cli, name)) == FIELDS[name]


def test_fields_of_log_probs():
    assert fields(TokenLogprobs) == "logp entropy lse sum_sq top1 value router"


def test_each_public_name_is_pinned():
    assert {name for name in SIGNATURES if "." not in name} | {*FIELDS} | CONFIGS == {
        *rlhf_cli.__all__
    }


def test_the_page_lists_each_name():
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == rlhf_cli.__all__


def test_the_examples_of_the_page_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for program in fenced_blocks(PAGE, "python"):
        exec(compile(program, PAGE.name, "exec"), names)
    prompt, response, logprobs = names["prompt"], names["response"], names["logprobs"]
    assert len(logprobs) == len(response.token_ids)
    logprobs.sum().backward()
    assert all(p.grad is not None for p in names["policy"].parameters())
    model = names["policy"].model
    model.set_attn_implementation("eager")
    logits = model(torch.tensor([[*prompt, *response.token_ids]])).logits[0]
    expected = (logits / 0.7).log_softmax(-1)[len(prompt) - 1 : -1]
    assert_close(logprobs, expected.gather(1, torch.tensor(response.token_ids)[:, None])[:, 0])
    assert names["tokenizer"].decode(response.token_ids) in capsys.readouterr().out
