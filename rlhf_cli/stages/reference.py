"""The reference of a run, as its configuration says: where it comes from and how it is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf_cli.context import say, silence
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.models.base_model import describe_weights
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, LoadConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.parameters import cast_params, frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import config_for_other_model
from rlhf_cli.models.tokenizer import load_tokenizer, require_tokenizer
from rlhf_cli.models.vocabulary import require_policy_vocabulary
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.stages.session import Session
from rlhf_cli.stages.training import Training
from rlhf_cli.train.reference import COLUMN, with_reference
from rlhf_cli.train.sequence import row_logprobs


@dataclass(frozen=True)
class Held:
    """A frozen model in memory that a policy is compared with.

    Attributes:
        policy: gives the log-probs.
        role: of its adapters; others than the policy's own where both stand on one base.
    """

    policy: Policy
    role: str = "policy"

    def logprobs(self, rows: TokenBatch, temperature: float) -> Tensor:
        """[S], nats, without gradient: of each scored token of a response, at a temperature."""
        with torch.no_grad(), without_dropout(self.policy):
            out = self.policy(rows, role=self.role, temperature=temperature, sampled=True)
        found: Tensor = out.logp
        return found

    def params_of(self, policy: Policy) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Name of each parameter that a policy trains -> what is held in its place, and itself."""
        if self.policy is policy and policy.adapters is not None:
            return policy.adapters.cloned_params(self.role)
        own = dict(self.policy.named_parameters())
        return {n: (own[n], p) for n, p in policy.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class Reference:
    """What the policy is compared with.

    Attributes:
        logprobs: [R], nats, without gradient, of rows: log p of each row's response.
        copy: the frozen copy that gives them, where there is one.
    """

    logprobs: Callable[[TokenBatch], Tensor]
    copy: Held | None = None

    def __call__(self, rows: TokenBatch) -> Tensor:
        """The log-probs of rows."""
        return self.logprobs(rows)


class Compared(Protocol):
    """A configuration of a stage that compares its policy with a reference."""

    @property
    def model(self) -> ComparedModelConfig:
        """`reference` is the key."""

    @property
    def needs_reference(self) -> bool:
        """Whether anything is compared."""


def open_reference(cfg: Compared, policy: Policy, run: Session, ld_alpha: float = 1.0) -> Reference:
    """What the policy is compared with; called before the policy changes.

    Args:
        cfg: `model.reference` says which weights, and how they are held.
        policy: as it starts.
        run: its rows get a column with the reference's numbers where those are stored.
        ld_alpha: as in `row_logprobs`.

    Raises:
        ModelError: there is no such model, or it has another vocabulary.
    """
    model = cfg.model
    if not cfg.needs_reference:
        return Reference(_zeros)

    def of(held: Policy, rows: TokenBatch, role: str = "policy") -> Tensor:
        return row_logprobs(held(rows, role=role), rows, ld_alpha)

    kind = _kind(model, policy)
    if kind == "adapter_off":
        say(f"reference: {_start(model, policy)} (the policy without its new adapter)")
        return Reference(lambda rows: _frozen(of, policy, rows, "reference"))
    if kind == "copy":
        copied = _copy(model, policy, run)
        return Reference(lambda rows: _frozen(of, copied.policy, rows, copied.role), copied)
    other = None if kind == "stored" else _load(model, policy, run)
    say(f"reference: {_start(model, policy) if other is None else model.reference}")
    run.add_columns(
        lambda examples: with_reference(
            examples, other or policy, of, f"ld_alpha={ld_alpha}", run.max_tokens, run.ctx
        )
    )
    return Reference(lambda rows: rows.columns[COLUMN])


def hold_reference(model: ComparedModelConfig, policy: Policy, run: Training) -> Held:
    """A reference for rows that are not known yet; called before the policy changes.

    With adapters it costs an adapter at most: they share the base.

    Args:
        model: `reference` says which weights.
        policy: as it starts.
        run: says how models are loaded.

    Raises:
        ModelError: there is no such model, or it has another vocabulary.
    """
    kind = _kind(model, policy)
    if kind == "path":
        other = _load(model, policy, run)
        say(f"reference: {model.reference}")
        return Held(other)
    if kind == "adapter_off":
        say(f"reference: {_start(model, policy)} (the policy without its new adapter)")
        return Held(policy, "reference")
    return _copy(model, policy, run)


def _copy(model: ComparedModelConfig, policy: Policy, run: Training) -> Held:
    """The policy as it is now, for good; with adapters, frozen ones on the same base."""
    if policy.adapters is None:
        say(f"reference: a frozen copy of {_start(model, policy)}")
        return Held(frozen_copy(policy, run.ctx.compute))
    say(f"reference: {_start(model, policy)}, a frozen copy of the adapter on the same base")
    policy.adapters.clone_adapter("start", trained=False)
    cast_params(policy.adapters.adapter_params("start"), run.ctx.compute)
    return Held(policy, "start")


def _zeros(rows: TokenBatch) -> Tensor:
    """[R], for losses that compare with nothing."""
    return torch.zeros(len(rows.lengths), device=rows.tokens.device)


def _kind(model: ComparedModelConfig, policy: Policy) -> str:
    """`adapter_off`, `copy`, `stored` or `path`."""
    adapters = policy.adapters
    bare = adapters is not None and "reference" in adapters.roles
    if model.reference == "auto":
        return "adapter_off" if bare else "stored"
    if model.reference == "adapter_off" and not bare:
        raise ModelError(
            "model.reference: got adapter_off, but the adapter at model.path is trained on, so "
            "what is below it is not what training starts from. Try model.reference=auto"
        )
    return model.reference if model.reference in model.reference_choices else "path"


def _start(model: ComparedModelConfig, policy: Policy) -> str:
    """What training starts from, in words; of an adapter run, its base and that adapter."""
    return policy.adapters.source.describe() if policy.adapters else describe_weights(model)


def _frozen(of: Any, held: Policy, rows: TokenBatch, role: str) -> Tensor:
    with torch.no_grad(), without_dropout(held):
        found: Tensor = of(held, rows, role)
        return found


def _load(model: ComparedModelConfig, policy: Policy, run: Training) -> Policy:
    """Another model, frozen.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer gives other ids.
        ConfigError: rows are longer than its positions.
    """
    path = model.reference
    plain = config_for_other_model(model, path, model.reference_revision)
    cfg = LoadConfig(
        model=plain, adapter=AdapterConfig(), quant=QuantConfig(), kernels=run.cfg.kernels
    )
    advice = "Put the policy's beside it if it is the same"
    require_tokenizer("model.reference", path, plain.revision, advice)
    with _named_as_typed(), silence():
        theirs = load_tokenizer(plain)
        if theirs.get_vocab() != run.tokenizer.get_vocab():
            raise ModelError(
                f"model.reference: {path} has another vocabulary ({len(theirs)} tokens, "
                f"the policy {len(run.tokenizer)}); need a model with the policy's tokenizer"
            )
        reference = load_frozen(Policy, cfg, LoadInputs(run.tokenizer, run.ctx))
    require_policy_vocabulary(reference.model, policy.model, run.tokenizer, "model.reference", path)
    run.require_positions(reference, "reference")
    return reference


@contextmanager
def _named_as_typed() -> Iterator[None]:
    """Tell what is wrong with a reference under its own key, not under that of the policy."""
    try:
        yield
    except ModelError as error:
        key, _, reason = str(error).partition(": ")
        told = f"model.reference: {reason}" if key == "model.path" else str(error)
        raise ModelError(told) from error
