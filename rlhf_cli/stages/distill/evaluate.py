"""Divergence of a student from its teacher on held-out rows.

On rows with completions it is measured at their tokens. On prompts alone, and where the teacher is
a server, it is measured at the tokens of the student's own responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.evaluation.intervals import (
    Measurement,
    pooled_proportion,
    proportion,
    ratio_of_sums,
)
from rlhf_cli.losses.distillation import Divergence, sampled_reverse_kl_loss
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.distill.loss import TEACHER_LOGPROBS
from rlhf_cli.stages.distill.source import TeacherServer, sampled_rows
from rlhf_cli.stages.distill.teacher import TeacherModel
from rlhf_cli.stages.rollouts.worker import RolloutWorker
from rlhf_cli.train.evaluation import compute_row_values
from rlhf_cli.train.row_loss import RowValues, row_sums, row_tokens

Measure = Callable[[TokenBatch], RowValues]
"""Rows -> sums over the tokens of each row, [R] each."""

KLS = ("reverse_kl", "forward_kl")


def whole_divergence(student: Policy, teacher: TeacherModel, divergence: Divergence) -> Measure:
    """Sums of the divergence, of both KLs and of equal most likely tokens."""

    def values(rows: TokenBatch) -> RowValues:
        found = teacher.compare(student, rows, divergence, (*KLS, "agreement"))
        columns = {"divergence": found.tokens, **found.extra}
        sums = {name: row_sums(of.double(), rows) for name, of in columns.items()}
        return {**sums, "tokens": row_tokens(rows)}

    return values


def sampled_divergence(student: Policy) -> Measure:
    """Sums of the log-ratio to a server's log-probs, an estimate of the reverse KL."""

    def values(rows: TokenBatch) -> RowValues:
        logp = student(rows, sampled=True).logp
        ratio = sampled_reverse_kl_loss(logp, rows.token_columns[TEACHER_LOGPROBS])
        return {"divergence": row_sums(ratio.double(), rows), "tokens": row_tokens(rows)}

    return values


def measure_completions(
    values: Measure, examples: Examples, max_tokens: int, device: torch.device, ranks: Ranks
) -> list[Measurement]:
    """Measure the completions of held-out examples; call it without gradients."""
    found, _ = compute_row_values(values, examples, max_tokens, device, ranks)
    return measurements(found)


@dataclass(frozen=True)
class HeldOutResponses:
    """Held-out prompts, and what measures the responses to them.

    Attributes:
        worker: generates one response to each.
        values: measures rows.
        max_tokens: tokens of a pass.
        device: of the rows.
        ranks: share the prompts.
        server: scores the responses, where the teacher is a server.
    """

    worker: RolloutWorker
    values: Measure
    max_tokens: int
    device: torch.device
    ranks: Ranks
    server: TeacherServer | None = None

    def measure(self) -> list[Measurement]:
        """Generate and measure the responses, with the same random numbers each time."""
        own = range(self.ranks.rank, len(self.worker.prompts), self.ranks.world_size)
        responses = self.ranks.call_together(lambda: self.worker.generate(own, own, step=0))
        server, scored = self.server, None
        if server is not None:
            scored = self.ranks.call_together(lambda: server.logprobs(responses))
        rows = sampled_rows(responses, self.max_tokens, self.device, scored)
        parts = self._measured([replace(one, needs_backward=False) for one in rows])
        ends = torch.tensor([float(one.finished) for one in responses])
        whole = self.ranks.all_gather_tensors({**_joined(parts), "ends": ends})
        found = _joined([part for part in whole if len(part["ends"])])
        finished = found.pop("ends")
        lengths = found["tokens"].double().numpy()
        return [
            *measurements(found),
            Measurement("response_length", (lengths,)),
            proportion("eos_fraction", finished.double().numpy()),
        ]

    def _measured(self, rows: Sequence[TokenBatch]) -> list[RowValues]:
        found: list[RowValues] = []
        for batch in equal_passes(rows, self.ranks, self.device):
            values = self.values(batch)
            if not batch.is_filler:
                found.append({name: value.cpu() for name, value in values.items()})
        return found


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    names = parts[0].keys() if parts else ()
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def measurements(found: RowValues) -> list[Measurement]:
    """Means over all tokens, with rows as the units of their intervals.

    Args:
        found: sums over the tokens of each row, and `tokens`.
    """
    columns: dict[str, Any] = {n: np.asarray(v.double().numpy()) for n, v in found.items()}
    tokens = columns["tokens"]
    named = [("loss", "divergence"), *((name, name) for name in KLS if name in columns)]
    measured = [Measurement(as_, (columns[of], tokens), ratio_of_sums) for as_, of in named]
    if "agreement" in columns:
        measured.append(pooled_proportion("agreement", columns["agreement"], tokens))
    return measured
