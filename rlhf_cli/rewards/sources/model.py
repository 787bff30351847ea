"""Scores of a reward model."""

from __future__ import annotations

import re
from typing import Any

import torch

from rlhf_cli.context import RunContext, say, silence
from rlhf_cli.data.tokens.specials import find_specials
from rlhf_cli.data.tokens.tokenize import TokenRow
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import resolve_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.shared_reward_model import SharedRewardModel, can_share_base
from rlhf_cli.models.tokenizer import load_tokenizer, tokenizer_hash
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.sources.config import RewardSource
from rlhf_cli.rewards.sources.loading import (
    dtype_name,
    longest_text,
    nbytes,
    require_scores,
    told_as,
)
from rlhf_cli.rewards.sources.rows import RowWriter, batched, fit_rows, response_row
from rlhf_cli.runs import artifact


class ModelScorer:
    """Scores rows of prompt and response with a reward model.

    With the policy's tokenizer, the policy's tokens are scored as they are. With another one, the
    texts are written anew in its own tokens and template.

    Args:
        source: `model`, `base`, their revisions and `output`.
        key: that these stand below, for messages.
        policy_tokenizer: of the tokens in the samples.
        ctx: device and compute type.
        max_tokens: of a forward pass.
        policy: whose base it shares where it is an adapter on that, or none.

    Raises:
        ModelError: it cannot be loaded, or gives no scores.
    """

    def __init__(
        self,
        source: RewardSource,
        key: str,
        policy_tokenizer: Any,
        ctx: RunContext,
        max_tokens: int,
        policy: Policy | None = None,
    ) -> None:
        cfg = ModelConfig(
            path=source.model,
            revision=source.revision,
            base=source.base,
            base_revision=source.base_revision,
            init="pretrained",
        )
        self.who = f"{key}.model: {source.model}"
        self.output, self.max_tokens, self.device = source.output, max_tokens, ctx.device
        with told_as(f"{key}.model", f"{key}.base"):
            require_scores(cfg)
            self.tokenizer = load_tokenizer(cfg)
            self.specials = find_specials(self.tokenizer)
            self.model = self._open(cfg, key, ctx, policy)
            same = tokenizer_hash(self.tokenizer) == tokenizer_hash(policy_tokenizer)
            self.write = None if same else self._writer(source)
        self.limit = longest_text(self.model.model, self.tokenizer)
        self.nbytes = nbytes(self.model)
        layout = "flat rows" if self.model.flat else "padded rows"
        if isinstance(self.model, SharedRewardModel):
            layout = f"an adapter on the policy's base, {layout}"
        tokens = "the policy's tokens" if same else "its own tokenizer"
        self.described = f"{source.model} ({dtype_name(self.model)}, {layout}, {tokens})"
        self._told_of_cuts = False

    def _open(
        self, cfg: ModelConfig, key: str, ctx: RunContext, policy: Policy | None
    ) -> RewardModel | SharedRewardModel:
        found = resolve_model(cfg)
        if policy is not None and can_share_base(policy, found):
            role = re.sub(r"\W+", "_", key)
            return SharedRewardModel(policy, role, found.adapters[0], ctx.compute)
        with silence():  # `described` tells of it
            return load_frozen(RewardModel, LoadConfig(model=cfg), LoadInputs(self.tokenizer, ctx))

    def _writer(self, source: RewardSource) -> RowWriter:
        folder = artifact.local_folder(source.model, source.revision)
        facts = artifact.read(folder) if folder else {}
        chats = bool(self.tokenizer.chat_template) and facts.get("trained_on") != "text"
        return RowWriter(self.tokenizer, as_message=chats, who=self.who)

    def __call__(self, samples: Samples) -> list[float]:
        """[n], no unit: raw scores, or probabilities.

        Raises:
            DataError: a row holds an id that the model does not embed.
        """
        rows = self._fit(self._rows(samples))
        require_embedded_ids(rows, self.model.model, samples.describe, self.who, "responses")
        scores = torch.zeros(len(rows))
        with torch.no_grad():
            for chosen, part in batched(rows, self.max_tokens):
                found = self.model(part.to(self.device)).double()
                found = found.sigmoid() if self.output == "probability" else found
                scores[chosen] = found.float().cpu()
        return scores.tolist()

    def _rows(self, samples: Samples) -> list[TokenRow]:
        if self.write is not None:
            return self.write(samples)
        pairs = zip(samples.prompt_tokens, samples.response_tokens, strict=True)
        return [response_row(prompt, response) for prompt, response in pairs]

    def _fit(self, rows: list[TokenRow]) -> list[list[int]]:
        """No longer than the model's positions; said when it first happens."""
        long = sum(len(row.tokens) > self.limit for row in rows)
        if long and not self._told_of_cuts:
            self._told_of_cuts = True
            say(
                f"{self.who}: {long} of {len(rows)} rows are longer than its {self.limit} "
                "positions; they lose the start of the prompt, and so will later ones"
            )
        return fit_rows(rows, self.limit, self.specials.bos)
