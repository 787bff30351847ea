"""The next tokens of rows, each drawn with its own random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.sampling import draw, noise, require_tokens
from rlhf_cli.rollout.schedule import Row


class Draws:
    """Chooses next tokens as `decode` asks for them.

    Args:
        sampling: how tokens are drawn.
        ends: tokens that end a response, for `min_new_tokens`.
        seeds: of each row, by its number.
        keep: write the log-prob of each token into its row, under the whole distribution at the
            temperature, which must be > 0.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        ends: Sequence[int],
        seeds: Sequence[tuple[int, int, int]],
        *,
        keep: bool,
    ) -> None:
        self._sampling, self._ends, self._keep = sampling, list(ends), keep
        self._noises = [noise(*seed) for seed in seeds]

    def __call__(self, logits: Tensor, live: Sequence[Row]) -> list[int]:
        """A token of each live row, from logits [R, V] in fp32, which are used up."""
        whole = (logits / self._sampling.temperature).log_softmax(-1) if self._keep else None
        self._forbid_early_ends(logits, live)
        numbers = [self._noises[row.number].random() for row in live]
        uniform = torch.tensor(numbers, dtype=torch.float64)
        drawn = draw(logits, uniform.to(logits.device, non_blocking=True), self._sampling)
        if whole is None:
            tokens: list[int] = drawn.tolist()
        else:
            own = whole.gather(1, drawn.clamp(min=0)[:, None]).squeeze(1)
            # one transfer for both: fp64 holds every id and every fp32 number exactly
            ids, logprobs = torch.stack([drawn.double(), own.double()]).tolist()
            tokens = [int(token) for token in ids]
            for row, logprob in zip(live, logprobs, strict=True):
                row.logprobs.append(logprob)
        require_tokens(tokens)
        return tokens

    def _forbid_early_ends(self, logits: Tensor, live: Sequence[Row]) -> None:
        least = self._sampling.min_new_tokens
        young = [slot for slot, row in enumerate(live) if len(row.written) < least]
        if young:
            ends = [token for token in self._ends if token < logits.shape[1]]
            pairs = [(slot, end) for slot in young for end in ends]
            index = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
            rows, columns = index.to(logits.device, non_blocking=True).unbind(1)
            logits[rows, columns] = -torch.inf
