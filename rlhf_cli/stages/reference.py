"""The frozen reference model of a run, and its log-probs of the run's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.models.base_model import describe_weights
from rlhf_cli.models.config import (
    AdapterConfig,
    ComparedModelConfig,
    LoadConfig,
    ModelConfig,
    QuantConfig,
)
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.parameters import cast_params, frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import config_for_other_model
from rlhf_cli.models.sharding import copy_shards, is_sharded, shards_of
from rlhf_cli.models.tokenizer import load_tokenizer, require_tokenizer
from rlhf_cli.models.vocabulary import require_policy_vocabulary
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.resources import SHIPPED
from rlhf_cli.stages.prepare_data import RunData, StageData
from rlhf_cli.stages.training import TrainingPlan
from rlhf_cli.train.reference_logprobs import REFERENCE_COLUMN, add_reference_column
from rlhf_cli.train.row_loss import row_logprobs


@dataclass(frozen=True)
class ReferenceModel:
    """A frozen model in memory that a policy is compared with.

    Attributes:
        policy: computes the log-probs.
        role: adapters that are on meanwhile; other than the policy's own where both use one base.
        is_copy: it was copied from the policy, and is of this run alone.
    """

    policy: Policy
    role: str = "policy"
    is_copy: bool = False

    def logprobs(self, rows: TokenBatch, temperature: float) -> Tensor:
        """[S], nats, without gradient: log-prob of each scored token at a temperature."""
        with torch.no_grad(), without_dropout(self.policy):
            out = self.policy(rows, role=self.role, temperature=temperature, sampled=True)
        found: Tensor = out.logp
        return found

    def params_of(self, policy: Policy) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Name of each trained parameter of a policy -> the reference's tensor and its own."""
        if self.policy is policy and policy.adapters is not None:
            return policy.adapters.cloned_params(self.role)
        own = shards_of(self.policy)
        return {n: (own[n], p) for n, p in shards_of(policy).items() if p.requires_grad}


@dataclass(frozen=True)
class RowReference:
    """Reference log-probs of rows.

    Attributes:
        logprobs: rows -> [R], nats, without gradient: log p of each row's response.
        copy: the frozen copy of the policy that computes them, where there is one.
    """

    logprobs: Callable[[TokenBatch], Tensor]
    copy: ReferenceModel | None = None

    def __call__(self, rows: TokenBatch) -> Tensor:
        """[R], nats: log p of each row's response."""
        return self.logprobs(rows)


class HasReference(Protocol):
    """Configuration of a stage that compares its policy with a reference."""

    @property
    def model(self) -> ComparedModelConfig:
        """The model; `reference` is the key."""

    @property
    def kernels(self) -> Any:
        """Kernels that models are loaded with."""


class MayCompare(HasReference, Protocol):
    """Configuration of a stage in which only some losses need the reference."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""


def load_row_reference(
    cfg: MayCompare, plan: TrainingPlan, policy: Policy, data: StageData, ld_alpha: float = 1.0
) -> tuple[RowReference, StageData]:
    """Prepare reference log-probs of a stage's rows, before the policy changes.

    Args:
        cfg: `model.reference` names the weights and how they are kept.
        plan: micro-batches, device and ranks.
        policy: as it starts.
        data: examples that the reference scores.
        ld_alpha: as in `row_logprobs`.

    Returns:
        The reference, and the data: with a column of log-probs where they are computed ahead.

    Raises:
        ModelError: there is no such model, or it has another vocabulary.
    """
    if not cfg.needs_reference:
        return RowReference(_zeros), data

    def logprobs(model: Policy, rows: TokenBatch, role: str) -> Tensor:
        return row_logprobs(model(rows, role=role), rows, ld_alpha)

    kind = _kind(cfg.model, policy)
    if kind in ("adapter_off", "copy"):
        return held_reference(load_reference(cfg, policy, data, plan.ctx), ld_alpha), data
    if kind == "stored":
        other = policy
        logger.info(f"reference: {_start(cfg.model, policy)}")
    else:
        other = load_reference(cfg, policy, data, plan.ctx).policy
    settings, tokens = f"ld_alpha={ld_alpha}", plan.micro_batch_tokens
    data = data.map_examples(
        lambda examples: add_reference_column(examples, other, logprobs, settings, tokens, plan.ctx)
    )
    return RowReference(lambda rows: rows.columns[REFERENCE_COLUMN]), data


def held_reference(reference: ReferenceModel, ld_alpha: float = 1.0) -> RowReference:
    """Reference log-probs of rows by a model in memory, computed with the loss.

    Args:
        reference: the model.
        ld_alpha: as in `row_logprobs`.
    """

    def logprobs(rows: TokenBatch) -> Tensor:
        with torch.no_grad(), without_dropout(reference.policy):
            return row_logprobs(reference.policy(rows, role=reference.role), rows, ld_alpha)

    return RowReference(logprobs, reference if reference.is_copy else None)


def load_reference(
    cfg: HasReference, policy: Policy, data: RunData, ctx: RunContext
) -> ReferenceModel:
    """Load the reference model, before the policy changes.

    With adapters it costs one more adapter at most: both use the same base.

    Args:
        cfg: `model.reference` names the weights.
        policy: as it starts.
        data: the policy's tokenizer, and rows that have to fit the reference.
        ctx: device and compute type.

    Raises:
        ModelError: there is no such model, or it has another vocabulary.
        ConfigError: rows are longer than its positions.
    """
    kind = _kind(cfg.model, policy)
    if kind == "path":
        other = _load_other(cfg, policy, data, ctx)
        logger.info(f"reference: {cfg.model.reference}")
        return ReferenceModel(other)
    if kind == "adapter_off":
        logger.info(f"reference: {_start(cfg.model, policy)} (the policy without its new adapter)")
        return ReferenceModel(policy, "reference")
    return _copy(cfg, policy, data, ctx)


def _copy(cfg: HasReference, policy: Policy, data: RunData, ctx: RunContext) -> ReferenceModel:
    """Copy the policy as it is now; with adapters, only a frozen adapter on the same base."""
    if policy.adapters is None:
        logger.info(f"reference: a frozen copy of {_start(cfg.model, policy)}")
        if is_sharded(policy):
            return ReferenceModel(_sharded_copy(cfg, policy, data, ctx), is_copy=True)
        return ReferenceModel(frozen_copy(policy, ctx.compute), is_copy=True)
    logger.info(
        f"reference: {_start(cfg.model, policy)}, a frozen copy of the adapter on the same base"
    )
    policy.adapters.clone_adapter("start", trained=False)
    cast_params(policy.adapters.adapter_params("start"), ctx.compute)
    return ReferenceModel(policy, "start", is_copy=True)


def _sharded_copy(cfg: HasReference, policy: Policy, data: RunData, ctx: RunContext) -> Policy:
    """Load the policy's model again, frozen, and give it the policy's weights.

    FSDP2's modules cannot be copied. Embeddings of new tokens are random, so weights are copied
    although both come from the same files.
    """
    load = LoadConfig(
        model=cfg.model, adapter=AdapterConfig(), quant=QuantConfig(), kernels=cfg.kernels
    )
    new_tokens = data.new_tokens if isinstance(data, StageData) else ()
    with muted():
        inputs = LoadInputs(data.tokenizer, ctx, new_tokens)
        found = load_frozen(Policy, load, inputs, keeps_new_tokens=True)
    copy_shards(found, policy)
    return found


def _zeros(rows: TokenBatch) -> Tensor:
    """[R], for losses without a reference."""
    return torch.zeros(len(rows.lengths), device=rows.tokens.device)


def _kind(model: ComparedModelConfig, policy: Policy) -> str:
    """How the reference is kept: `adapter_off`, `copy`, `stored` or `path`."""
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
    """Name of the weights that training starts from; of an adapter run, base and adapter."""
    return policy.adapters.source.describe() if policy.adapters else describe_weights(model)


def _load_other(cfg: HasReference, policy: Policy, data: RunData, ctx: RunContext) -> Policy:
    """Load the model at `model.reference`, frozen; see `load_other_policy`."""
    model = cfg.model
    source = OtherModel("model.reference", "reference", model.reference, model.reference_revision)
    return load_other_policy(source, model, cfg.kernels, policy, data, ctx)


@dataclass(frozen=True)
class OtherModel:
    """A second language model of a run.

    Attributes:
        key: config key of its path, for messages.
        name: of its role, for messages.
        path: folder, finished run or hub id.
        revision: of a hub id.
        quant: quantization of its base.
        seed: of the random weights of a shipped shape.
    """

    key: str
    name: str
    path: str
    revision: str = ""
    quant: QuantConfig = field(default_factory=QuantConfig)
    seed: int = 0


def load_other_policy(
    other: OtherModel,
    own: ModelConfig,
    kernels: Any,
    policy: Policy,
    data: RunData,
    ctx: RunContext,
) -> Policy:
    """Load a second model of the policy's vocabulary, frozen.

    Args:
        other: names the weights.
        own: config of the run's own model.
        kernels: that models are loaded with.
        policy: as it starts.
        data: the policy's tokenizer, and rows that have to fit the model.
        ctx: device and compute type.

    Raises:
        ModelError: it cannot be loaded, or its tokenizer gives other ids.
        ConfigError: rows are longer than its positions.
    """
    key, path, tokenizer = other.key, other.path, data.tokenizer
    plain = config_for_other_model(own, path, other.revision)
    if path == SHIPPED:
        plain, ctx = replace(plain, init="scratch"), replace(ctx, seed=other.seed)
    load = LoadConfig(model=plain, adapter=AdapterConfig(), quant=other.quant, kernels=kernels)
    advice = "Put the policy's beside it if it is the same"
    require_tokenizer(key, path, plain.revision, advice)
    with _under_key(key), muted():
        theirs = load_tokenizer(plain)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"{key}: {path} has another vocabulary ({len(theirs)} tokens, "
                f"the policy {len(tokenizer)}); need a model with the policy's tokenizer"
            )
        found = load_frozen(Policy, load, LoadInputs(tokenizer, ctx))
    require_policy_vocabulary(found.model, policy.model, tokenizer, key, path)
    data.require_fits(found, other.name)
    return found


@contextmanager
def _under_key(key: str) -> Iterator[None]:
    """Report an error of another model under its key instead of `model.path`."""
    try:
        yield
    except ModelError as error:
        named, _, reason = str(error).partition(": ")
        text = f"{key}: {reason}" if named == "model.path" else str(error)
        raise ModelError(text) from error
