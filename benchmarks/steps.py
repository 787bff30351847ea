"""One optimizer step on real rows, as the stages take it, with any of its levers off."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks import judged, sft
from benchmarks.common import now
from rlhf_cli.context import RunContext, choose_compute
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import micro_batches
from rlhf_cli.data.records.types import PreferenceRecord, PromptCompletionRecord
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models import attention
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import preference_loss
from rlhf_cli.stages.reference import RowReference
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.reference_logprobs import REFERENCE_COLUMN
from rlhf_cli.train.row_loss import row_logprobs
from rlhf_cli.train.update import Loss, accumulate, clip_and_step

LR = 1e-4
STEPS = 13
"""Whose rows are in the file; one of them is taken."""

TOKENS = 4096
"""Of a micro-batch; what a CPU is given."""

PROMPT, RESPONSE = 256, 64
"""Tokens of the rows of several samples to a prompt."""


@dataclass(frozen=True)
class Settings:
    """Which step, and which levers it has; the defaults are those of the package.

    Attributes:
        stage: `sft`, `dpo`, or `samples`: responses to shared prompts, as in GRPO's updates.
        examples: of a step.
        samples: of `samples`, to each prompt.
        prompt: of `samples`, tokens of each prompt.
        response: of `samples`, tokens of each response.
        precision: as `train.precision`.
        attention: as `model.attention`; `sdpa` pads.
        kernels: as the key.
        products: short bf16 rows take plain products in attention.
        everywhere: the output layer is given all positions, not the trained ones alone.
        by_length: rows of like length stand together.
        fused: AdamW in one kernel.
        shares: what rows of an example begin with alike is computed once.
        stored: the reference's numbers were computed before; else a copy gives them in each step.
        keep_freed: of the process: freed memory is kept.
        kernel_cache: of the process: compiled kernels that oneDNN keeps.
    """

    stage: str
    examples: int
    samples: int = 1
    prompt: int = PROMPT
    response: int = RESPONSE
    precision: str = "auto"
    attention: str = "auto"
    kernels: str = "auto"
    products: bool = True
    everywhere: bool = False
    by_length: bool = True
    fused: bool = True
    shares: bool = True
    stored: bool = True
    keep_freed: bool = True
    kernel_cache: int = 128


class Step:
    """A policy, its optimizer, its loss, and the micro-batches of one step.

    Args:
        policy: in fp32, as it is loaded.
        rows: of the step.
        loss: of a micro-batch.
        compute: type of the passes.
        products: as in `Settings`.
    """

    def __init__(
        self,
        policy: Policy,
        rows: list[TokenBatch],
        loss: Loss,
        compute: torch.dtype,
        products: bool = True,
    ) -> None:
        self.policy, self.rows, self.loss = policy, rows, loss
        self.optimizer = MasterAdamW(policy, TrainConfig(), compute)
        self.length = attention.PRODUCT_LENGTH if products else 0

    def run(self) -> float:
        """Seconds of the step."""
        began = now(self.policy.device)
        with patch.object(attention, "PRODUCT_LENGTH", self.length):
            gradients = accumulate(self.rows, self.loss, self.optimizer)
            clip_and_step(gradients, self.optimizer, LR, 1.0)
        return now(self.policy.device) - began


def open_step(settings: Settings) -> Step:
    """The step of some settings, ready to be run many times."""
    kind = "dpo" if settings.stage == "dpo" else "sft"
    model, file = _prepared(kind)
    load = LoadConfig(
        model=ModelConfig(path=model, attention=settings.attention), kernels=settings.kernels
    )
    device = torch.device("cpu")
    compute, _ = choose_compute(settings.precision, device)
    with contextlib.redirect_stderr(io.StringIO()), _levers(settings):
        tokenizer = load_tokenizer(load.model)
        records = (PreferenceRecord if kind == "dpo" else PromptCompletionRecord,)
        examples, _ = load_examples(DataConfig(path=file), kind, tokenizer, records)
        policy = load_policy(
            load, LoadInputs(tokenizer, RunContext(device, compute, 0, Path()))
        ).train()
        policy.shares_prefixes = settings.shares
        if settings.stage == "samples":
            rows = samples(examples, settings)
        else:
            rows = micro_batches(examples, range(settings.examples), TOKENS)
        loss = likelihood(policy, settings.everywhere)
        if kind == "dpo":
            loss, rows = preference(policy, rows, settings, compute)
        return Step(policy, rows, loss, compute, settings.products)


@cache
def _prepared(kind: str) -> tuple[str, str]:
    """The model folder and the rows' file."""
    model, file, _ = judged.prepare("dpo", STEPS) if kind == "dpo" else sft.prepare(STEPS)
    return model, file


@contextlib.contextmanager
def _levers(settings: Settings) -> Iterator[None]:
    """Patches of what no key of a recipe switches."""
    with contextlib.ExitStack() as stack:
        if not settings.by_length:
            stack.enter_context(
                patch(
                    "rlhf_cli.data.loader._sort_by_length", lambda _, indices: np.asarray(indices)
                )
            )
        if not settings.fused:
            plain = torch.optim.AdamW
            stack.enter_context(
                patch("torch.optim.AdamW", lambda *args, fused, **rest: plain(*args, **rest))
            )
        yield


def likelihood(policy: Policy, everywhere: bool = False) -> Callable[[TokenBatch], LossOutput]:
    """SFT's loss."""

    def loss(rows: TokenBatch) -> LossOutput:
        given = at_all_positions(rows) if everywhere else rows
        nll = nll_loss(policy(given).logp)
        kept = nll[torch.isin(given.scored, rows.scored)] if everywhere else nll
        return LossOutput({"nll": LossTerm(kept.sum(), "tokens")})

    return loss


def at_all_positions(rows: TokenBatch) -> TokenBatch:
    """Every token but the first of each row is scored."""
    follows = torch.ones(len(rows.tokens), dtype=torch.bool)
    follows[rows.row_starts + rows.lengths - 1] = False
    return replace(rows, scored=follows.nonzero().squeeze(1))


def preference(
    policy: Policy, rows: list[TokenBatch], settings: Settings, compute: torch.dtype
) -> tuple[Loss, list[TokenBatch]]:
    """DPO's loss, and the rows with what it reads."""
    copied = frozen_copy(policy, compute)

    @torch.no_grad()
    def of(given: TokenBatch) -> torch.Tensor:
        return row_logprobs(copied(given), given)

    if not settings.stored:
        return preference_loss(DPOConfig(), policy, RowReference(of)), rows
    stored = [replace(part, columns={**part.columns, REFERENCE_COLUMN: of(part)}) for part in rows]
    read = RowReference(lambda given: given.columns[REFERENCE_COLUMN])
    return preference_loss(DPOConfig(), policy, read), stored


def samples(examples: Examples, settings: Settings) -> list[TokenBatch]:
    """Micro-batches of prompts with several responses each, of the rows' own tokens."""
    prompt, response, count = settings.prompt, settings.response, settings.samples
    group = prompt + count * response
    tokens = torch.from_numpy(np.array(examples.tokens, np.int64))
    taken = tokens[: settings.examples * group].split(group)
    a_pass = max(1, TOKENS // (count * (prompt + response)))
    starts = range(0, settings.examples, a_pass)
    return [_of_prompts(taken[at : at + a_pass], at, prompt, response) for at in starts]


def _of_prompts(
    parts: tuple[torch.Tensor, ...], first: int, prompt: int, response: int
) -> TokenBatch:
    rows = [
        torch.cat([part[:prompt], tail]) for part in parts for tail in part[prompt:].split(response)
    ]
    length = prompt + response
    starts = torch.arange(len(rows)) * length
    scored = (starts[:, None] + torch.arange(prompt - 1, length - 1)).flatten()
    example = first + torch.arange(len(parts)).repeat_interleave(len(rows) // len(parts))
    return TokenBatch(torch.cat(rows), torch.full((len(rows),), length), scored, example)
