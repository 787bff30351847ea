"""Proximal policy optimization."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_cli.context import say, silence
from rlhf_cli.data.examples import Examples, load_examples
from rlhf_cli.data.loader import ExampleSource
from rlhf_cli.data.prompts import (
    PromptSet,
    encode_prompts,
    load_held_out_prompts,
    load_training_prompts,
)
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.load import context_length, load_policy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.trunk import Trunk
from rlhf_cli.rewards.rewards import Rewards, open_rewards
from rlhf_cli.rollout.ends import Ends
from rlhf_cli.stages.likelihood import RECORDS as TEXTS
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.critic import give_critic
from rlhf_cli.stages.ppo.held_out import evaluate
from rlhf_cli.stages.ppo.learning import Teacher
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.ppo.memory import table
from rlhf_cli.stages.ppo.rollout import Author
from rlhf_cli.stages.ppo.source import RolloutSource
from rlhf_cli.stages.reference import Held, hold_reference
from rlhf_cli.stages.training import Training

Asked = tuple[PromptSet, list[list[int]]]
"""Prompts and the tokens of each."""


def prepare(cfg: PPOConfig, out: Path) -> None:
    """Tokenize the text of `ptx_data` before several processes start."""
    if cfg.ptx_coef:
        _load_text(cfg, load_tokenizer(cfg.model), cached_only=False)


def run(cfg: PPOConfig, out: Path) -> dict[str, Any]:
    """Write responses, score them, and learn what scores higher."""
    return Rollouts(cfg, out).train()


class Rollouts(Training):
    """One run of PPO: its prompts, its models, its training."""

    cfg: PPOConfig

    def __init__(self, cfg: PPOConfig, out: Path) -> None:
        super().__init__(cfg, out)
        self.tokenizer = load_tokenizer(cfg.model)
        as_message = becomes_message(cfg.template, cfg.model.path, self.tokenizer)
        self.encoder = PromptEncoder(self.tokenizer, as_message=as_message)
        self.asked = self._encode(load_training_prompts(cfg.data, "ppo", cfg.seed))
        held_out = load_held_out_prompts(cfg.data, "ppo")
        self.held_out = self._encode(held_out) if held_out else None
        self.report = self.asked[0].report
        self.held_out_report = held_out.report if held_out else None
        chats = not all(isinstance(prompt, str) for prompt in self.asked[0].prompts)
        self.report.templated = as_message or chats

    def _encode(self, found: PromptSet) -> Asked:
        data = self.cfg.data
        most = data.max_length - self.cfg.sampling.max_new_tokens
        return encode_prompts(found, self.encoder, most, data.truncation)

    def train(self) -> dict[str, Any]:
        """Load the models, train, save the result, and sum up."""
        cfg, ctx = self.cfg, self.ctx
        policy = load_policy(cfg, self.tokenizer, ctx)
        self.require_positions(policy)
        reference = hold_reference(cfg.model, policy, self)
        give_critic(cfg, policy, self)
        self.settle(policy)
        rewards = open_rewards(cfg.reward, self.tokenizer, ctx, self.max_tokens, policy)
        self._tell_memory(policy, reference, rewards)
        loss = PPOLoss(cfg, policy)
        teacher = Teacher(cfg, policy, reference, ctx.ranks, self.max_tokens)
        author = self._author(cfg, self.asked, policy, rewards)
        source = RolloutSource(cfg, author, teacher, loss, self._text(), ctx)
        say(
            f"steps: {source.total_steps} rollouts of {cfg.train.batch_size} prompts, "
            f"{cfg.samples_per_prompt} responses each; {cfg.updates} updates a step"
        )
        held_out = None
        if self.held_out:
            one = replace(cfg, samples_per_prompt=1)
            held_out = self._author(one, self.held_out, policy, rewards)
        return self.fit_and_save(
            policy,
            loss,
            source,
            (lambda: evaluate(held_out, teacher, ctx.ranks)) if held_out else None,
            where=lambda prompt: self.asked[0].places[prompt],
            ends=Ends(policy.model, self.tokenizer, cfg.sampling).tokens,
            trained_on="chat" if self.report.templated else "text",
        )

    def _tell_memory(self, policy: Policy, reference: Held, rewards: Rewards) -> None:
        models: dict[str, nn.Module] = {"policy": policy.model}
        models["reference"] = reference.policy.model
        if policy.critic is not None:
            models["value model"] = policy.critic
        for term in rewards.terms:
            model = getattr(term.scorer, "model", None)
            if isinstance(model, nn.Module):
                models[term.name] = model
        for line in table(models):
            say(line)

    def _author(self, cfg: PPOConfig, asked: Asked, policy: Policy, rewards: Rewards) -> Author:
        return Author(cfg, *asked, policy, rewards, self.tokenizer)

    def _text(self) -> ExampleSource | None:
        """Steps of `ptx_data`: one for each update of the run."""
        cfg = self.cfg
        if not cfg.ptx_coef:
            return None
        examples = _load_text(cfg, self.tokenizer, cached_only=self.ctx.ranks.size > 1)
        train = replace(cfg.train, batch_size=cfg.ptx_batch_size, max_steps=2**62)
        return ExampleSource(examples, cfg.data, train, cfg.seed, self.max_tokens, self.ctx.ranks)

    def require_positions(self, model: Trunk, name: str = "model") -> None:
        """Refuse prompts that leave no room for a response in a model's positions.

        Raises:
            ConfigError: says how many tokens there are and what to set.
        """
        room, new = context_length(model.model), self.cfg.sampling.max_new_tokens
        sets = [self.asked, *([self.held_out] if self.held_out else [])]
        longest = max(len(ids) for _, tokens in sets for ids in tokens)
        if room and longest + new > room:
            raise ConfigError(
                f"data.max_length: the longest prompt has {longest} tokens and a response up to "
                f"{new}, more than the {name}'s {room} positions. Try data.max_length={room}"
            )


def _load_text(cfg: PPOConfig, tokenizer: Any, *, cached_only: bool) -> Examples:
    data = replace(cfg.data, path=cfg.ptx_data, eval="none", format="auto", columns={})
    # what there is to say about prepared rows was said when they were
    with silence() if cached_only else contextlib.nullcontext():
        found, _ = load_examples(data, "sft", tokenizer, TEXTS, cfg.seed, cached_only=cached_only)
    return found
