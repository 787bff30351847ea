"""The models of PPO, and how their updates are made: what every way into it needs."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_cli.context import silence
from rlhf_cli.data.examples import Examples, load_examples
from rlhf_cli.data.loader import ExampleSource
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.rollout.ends import add_end_token, end_tokens
from rlhf_cli.rollout.graphs import capture, require_cuda
from rlhf_cli.rollout.probe import require_graphs, require_slots
from rlhf_cli.stages.likelihood import RECORDS as TEXTS
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.ppo.updates import Updates
from rlhf_cli.stages.ppo.value_model import attach_value_model
from rlhf_cli.stages.reference import hold_reference
from rlhf_cli.stages.training import Training

ENDLESS = 2**62
"""Steps of `ptx_data`, which goes on for as long as there are updates."""


class PPOTraining(Training):
    """The tokenizer of a run of PPO, then its models.

    Attributes:
        encoder: writes a prompt as tokens.
        policy: with its value model; set by `open_models`.
        reference: what the policy is held to.
        loss: of the updates.
        updates: made of scored responses.
        text: the rows of `ptx_data`; set by `open_models` where there are any.
    """

    cfg: PPOConfig
    text: Examples

    def __init__(self, cfg: PPOConfig, out: Path) -> None:
        super().__init__(cfg, out)
        require_cuda(cfg.sampling, self.ctx.device)
        self.tokenizer = load_tokenizer(cfg.model)
        as_message = becomes_message(
            cfg.template, cfg.model.path, cfg.model.revision, self.tokenizer
        )
        self.encoder = PromptEncoder(self.tokenizer, as_message=as_message)

    def open_models(self) -> None:
        """Load policy, reference and value model.

        Raises:
            ModelError: one cannot be loaded, or does not fit the others.
        """
        cfg, ctx = self.cfg, self.ctx
        self.policy = load_policy(cfg, LoadInputs(self.tokenizer, ctx))
        add_end_token(self.policy.model, self.tokenizer, self.encoder.turn_end)
        self.require_positions(self.policy)
        if cfg.reuses_logprobs:
            require_slots(self.policy.model, "rollout_logprobs", "reuse", "recompute")
        if cfg.sampling.cuda_graphs:
            require_graphs(self.policy.model, capture)
        self.reference = hold_reference(cfg.model, self.policy, self)
        attach_value_model(cfg, self.policy, self)
        self.settle(self.policy)
        self.loss = PPOLoss(cfg, self.policy)
        self.teacher = Teacher(cfg, self.policy, self.reference, ctx.ranks, self.max_tokens)
        self.updates = Updates(cfg, self.teacher, self.loss, self._text(), ctx.ranks)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a response."""
        return end_tokens(self.policy.model, self.tokenizer)

    def _text(self) -> ExampleSource | None:
        """Steps of `ptx_data`: one for each update."""
        cfg = self.cfg
        if not cfg.ptx_coef:
            return None
        self.text = load_text(cfg, self.tokenizer, cached_only=self.ctx.ranks.size > 1)
        require_embedded(self.text, self.policy.model)
        train = replace(cfg.train, batch_size=cfg.ptx_batch_size, max_steps=ENDLESS)
        return ExampleSource(self.text, cfg.data, train, cfg.seed, self.max_tokens, self.ctx.ranks)


def load_text(cfg: PPOConfig, tokenizer: Any, *, cached_only: bool) -> Examples:
    """The rows of `ptx_data`.

    Raises:
        DataError: they cannot be read, or are neither text nor chats nor pairs with a completion.
    """
    data = replace(
        cfg.data,
        path=cfg.ptx_data,
        revision=cfg.ptx_revision,
        eval="none",
        format="auto",
        columns={},
    )
    # what there is to say about prepared rows was said when they were
    with silence() if cached_only else contextlib.nullcontext():
        found, _ = load_examples(data, "sft", tokenizer, TEXTS, cfg.seed, cached_only=cached_only)
    return found
