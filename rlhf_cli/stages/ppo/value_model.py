"""Value model of a PPO run, and the memory of the run's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import AdapterConfig, LoadConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, enable_activation_checkpointing, load_reward_model
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import config_for_other_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.sharding import local_tensor, shards_of
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.value_model import (
    VALUE_ADAPTER,
    AdapterValueModel,
    SeparateValueModel,
    SharedValueModel,
    ValueModel,
)
from rlhf_cli.models.vocabulary import require_policy_vocabulary
from rlhf_cli.rewards.reward_model import require_reward_model, with_config_key
from rlhf_cli.stages.ppo.config import PPOConfig


def attach_value_model(cfg: PPOConfig, policy: Policy, tokenizer: Any, ctx: RunContext) -> None:
    """Give a policy the value model of the configuration, where it has one.

    Raises:
        ModelError: the model to start from cannot be loaded, or has another vocabulary.
    """
    if not cfg.has_value_model:
        logger.info(f"value model: none (advantage={cfg.advantage})")
        return
    value_model = _build(cfg, policy, tokenizer, ctx)
    policy.value_model = value_model.to(policy.device)
    own = [*value_model.parameters()]
    if cfg.value == "adapter" and policy.adapters is not None:
        own += policy.adapters.adapter_params(VALUE_ADAPTER)
    count = sum(param.numel() for param in own)
    kind = {
        "shared": "a head on the policy's hidden states",
        "adapter": "an adapter and a head on the policy's base",
        "model": f"a separate model, from {cfg.value_start}",
    }[cfg.value]
    logger.info(f"value model: {kind}, {count:,} parameters of its own")


def value_lr_factors(cfg: PPOConfig, policy: Policy, lr: float) -> dict[str, float]:
    """Name of each parameter that only the value model has -> `value_lr` divided by `lr`.

    Args:
        cfg: `value_lr`; where it is 0, no parameter has a factor.
        policy: with its value model.
        lr: peak learning rate of the run.
    """
    if not cfg.value_lr or policy.value_model is None:
        return {}
    named = shards_of(policy)
    own = {id(param) for param in policy.value_model.parameters()}
    if cfg.value == "adapter" and policy.adapters is not None:
        own |= {id(param) for param in policy.adapters.adapter_params(VALUE_ADAPTER)}
    factor = cfg.value_lr / lr
    return {name: factor for name, param in named.items() if id(param) in own}


def _build(cfg: PPOConfig, policy: Policy, tokenizer: Any, ctx: RunContext) -> ValueModel:
    width = policy.model.config.get_text_config().hidden_size
    if cfg.value == "shared":
        return SharedValueModel(width)
    if cfg.value == "adapter":
        assert policy.adapters is not None  # the configuration was checked
        policy.adapters.clone_adapter(VALUE_ADAPTER, trained=True)
        return AdapterValueModel(width)
    own = _load(cfg, tokenizer, ctx)
    path = cfg.value_start
    require_policy_vocabulary(own.model, policy.model, tokenizer, "value_model", path)
    return SeparateValueModel(own)


def _load(cfg: PPOConfig, tokenizer: Any, ctx: RunContext) -> RewardModel:
    load = LoadConfig(
        model=config_for_other_model(cfg.model, cfg.value_start, cfg.value_start_revision),
        adapter=AdapterConfig(),
        quant=QuantConfig(),
        kernels=cfg.kernels,
    )
    with muted(), with_config_key("value_model"):
        require_reward_model(load.model)
        theirs = load_tokenizer(load.model)
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"value_model: {cfg.value_start} has another vocabulary ({len(theirs)} tokens, the "
                f"policy {len(tokenizer)}); need a reward model with the policy's tokenizer. "
                "Try value=shared"
            )
        found = load_reward_model(load, LoadInputs(tokenizer, ctx), new_head=False)
    if found.hook is None:
        raise ModelError(
            f"value_model: {cfg.value_start} is an encoder, which cannot score each position; need "
            "a decoder. Try value=shared"
        )
    if cfg.train.gradient_checkpointing:
        enable_activation_checkpointing(found)
    return found


def parameter_bytes(models: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Bytes of each model's parameters in this process: its own, and those of a model before it.

    Of sharded parameters these are the bytes of this process's part.

    Args:
        models: by role, in the order in which they are counted.
    """
    seen: set[int] = set()
    found = {}
    for role, model in models.items():
        own = shared = 0
        for param in model.parameters():
            part = local_tensor(param)
            if part.data_ptr() in seen:
                shared += part.nbytes
            else:
                own += part.nbytes
                seen.add(part.data_ptr())
        found[role] = (own, shared)
    return found


def memory_table(models: Mapping[str, nn.Module]) -> list[str]:
    """Lines that show `parameter_bytes`, and their sum."""
    found = parameter_bytes(models)
    lines = [
        f"  {role:16}{own / 1e6:10,.1f} MB" + (f", {shared / 1e6:,.1f} MB shared" if shared else "")
        for role, (own, shared) in found.items()
    ]
    whole = sum(own for own, _ in found.values())
    return ["models in memory:", *lines, f"  {'all':16}{whole / 1e6:10,.1f} MB"]
