"""Proximal policy optimization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_cli.context import say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.prompts import (
    PromptSet,
    encode_prompts,
    load_held_out_prompts,
    load_training_prompts,
)
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.load import context_length
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.rewards.rewards import Rewards, open_rewards
from rlhf_cli.stages.opening import say_max_length
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.held_out import evaluate
from rlhf_cli.stages.ppo.loss import TEXT
from rlhf_cli.stages.ppo.memory import table
from rlhf_cli.stages.ppo.rollout import Author
from rlhf_cli.stages.ppo.source import RolloutSource
from rlhf_cli.stages.ppo.training import PPOTraining, load_text

Asked = tuple[PromptSet, list[list[int]]]
"""Prompts and the tokens of each."""


def prepare(cfg: PPOConfig, out: Path) -> None:
    """Tokenize the text of `ptx_data` before several processes start."""
    if cfg.ptx_coef:
        load_text(cfg, load_tokenizer(cfg.model), cached_only=False)


def run(cfg: PPOConfig, out: Path) -> dict[str, Any]:
    """Write responses, score them, and learn what scores higher."""
    return Rollouts(cfg, out).train()


class Rollouts(PPOTraining):
    """One run of PPO on the prompts of a file."""

    def __init__(self, cfg: PPOConfig, out: Path) -> None:
        super().__init__(cfg, out)
        say_max_length(cfg)
        self.asked = self._encode(load_training_prompts(cfg.data, "ppo", cfg.seed))
        held_out = load_held_out_prompts(cfg.data, "ppo")
        self.held_out = self._encode(held_out) if held_out else None
        self.report = self.asked[0].report
        self.held_out_report = held_out.report if held_out else None
        self.report.templated = self.encoder.used_template

    def _encode(self, found: PromptSet) -> Asked:
        data = self.cfg.data
        most = data.max_length - self.cfg.sampling.max_new_tokens
        return encode_prompts(found, self.encoder, most, data.truncation)

    def train(self) -> dict[str, Any]:
        """Load the models, train, save the result, and sum up."""
        cfg, ctx = self.cfg, self.ctx
        self.open_models()
        rewards = open_rewards(cfg.reward, self.tokenizer, ctx, self.max_tokens, self.policy)
        self._tell_memory(rewards)
        author = Author(cfg, *self.asked, self.policy, rewards, self.tokenizer, ctx.ranks)
        source = RolloutSource(cfg, author, self.updates, ctx)
        say(
            f"steps: {pluralize(source.total_steps, 'rollout')} of "
            f"{pluralize(cfg.train.batch_size, 'prompt')}, "
            f"{pluralize(cfg.samples_per_prompt, 'response')} each; "
            f"{pluralize(cfg.updates, 'update')} a step"
        )
        held_out = None
        if self.held_out:
            one = replace(cfg, samples_per_prompt=1, rollout_logprobs="recompute")
            held_out = Author(one, *self.held_out, self.policy, rewards, self.tokenizer, ctx.ranks)
        return self.fit_and_save(
            self.policy,
            self.loss,
            source,
            (lambda: evaluate(held_out, self.teacher, ctx.ranks)) if held_out else None,
            where=self._where,
            ends=self.ends,
            trained_on="chat" if self.report.templated else "text",
        )

    def _where(self, rows: TokenBatch) -> str:
        """The file and line of the prompt of some rows, or of a row of `ptx_data`."""
        number = rows.example_ids[0]
        if TEXT in rows.token_columns:
            return f"ptx_data {self.text.location(number)}"
        return self.asked[0].locations[number]

    def _tell_memory(self, rewards: Rewards) -> None:
        models: dict[str, nn.Module] = {"policy": self.policy.model}
        models["reference"] = self.reference.policy.model
        if self.policy.value_model is not None:
            models["value model"] = self.policy.value_model
        for term in rewards.terms:
            model = getattr(term.scorer, "model", None)
            if isinstance(model, nn.Module):
                models[f"reward {term.name}"] = model
        for line in table(models):
            say(line)

    def require_positions(self, model: ModelWrapper, name: str = "model") -> None:
        """Refuse prompts that leave no room for a response in a model's positions.

        Raises:
            ConfigError: says how many tokens there are and what to set.
            DataError: a prompt holds an id that the model does not embed.
        """
        room, new = context_length(model.model), self.cfg.sampling.max_new_tokens
        sets = [self.asked, *([self.held_out] if self.held_out else [])]
        for found, tokens in sets:
            require_embedded_ids(tokens, model.model, found.locations.__getitem__, name)
        longest = max(len(ids) for _, tokens in sets for ids in tokens)
        if room and longest + new > room:
            raise ConfigError(
                f"data.max_length: the longest prompt has {longest} tokens and a response up to "
                f"{new}, more than the {name}'s {room} positions. Try data.max_length={room}"
            )
