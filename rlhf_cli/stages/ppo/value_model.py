"""The value model of a run, as its configuration says."""

from __future__ import annotations

from rlhf_cli.context import say, silence
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import AdapterConfig, LoadConfig, QuantConfig
from rlhf_cli.models.load import load_reward_model, recompute_activations
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.source import other_model
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.value_model import (
    VALUE_ADAPTER,
    AdapterValueModel,
    SeparateValueModel,
    SharedValueModel,
    ValueModel,
)
from rlhf_cli.models.vocabulary import require_shared_rows
from rlhf_cli.rewards.sources.loading import require_scores, told_as
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.training import Training


def attach_value_model(cfg: PPOConfig, policy: Policy, run: Training) -> None:
    """Put the value model of the configuration beside a policy, where it needs one.

    Raises:
        ModelError: the model to start from cannot be loaded, or has another vocabulary.
    """
    if not cfg.has_value_model:
        say(f"value model: none (advantage={cfg.advantage})")
        return
    value_model = _make(cfg, policy, run)
    policy.value_model = value_model.to(policy.device)
    own = [*value_model.parameters()]
    if cfg.value == "adapter" and policy.adapters is not None:
        own += policy.adapters.params_of(VALUE_ADAPTER)
    count = sum(param.numel() for param in own)
    kind = {
        "shared": "a head on the policy's hidden states",
        "adapter": "an adapter and a head on the policy's base",
        "model": f"a model of its own, from {cfg.value_start}",
    }[cfg.value]
    say(f"value model: {kind}, {count:,} parameters of its own")


def _make(cfg: PPOConfig, policy: Policy, run: Training) -> ValueModel:
    width = policy.model.config.get_text_config().hidden_size
    if cfg.value == "shared":
        return SharedValueModel(width)
    if cfg.value == "adapter":
        assert policy.adapters is not None  # the configuration was checked
        policy.adapters.twin(VALUE_ADAPTER, trained=True)
        return AdapterValueModel(width)
    own = _load(cfg, run)
    path = cfg.value_start
    require_shared_rows(own.model, policy.model, run.tokenizer, "value_model", path)
    return SeparateValueModel(own)


def _load(cfg: PPOConfig, run: Training) -> RewardModel:
    load = LoadConfig(
        model=other_model(cfg.model, cfg.value_start, cfg.value_start_revision),
        adapter=AdapterConfig(),
        quant=QuantConfig(),
        kernels=cfg.kernels,
    )
    with silence(), told_as("value_model"):
        require_scores(load.model)
        theirs = load_tokenizer(load.model)
        if theirs.get_vocab() != run.tokenizer.get_vocab():
            raise ModelError(
                f"value_model: {cfg.value_start} has another vocabulary ({len(theirs)} tokens, the "
                f"policy {len(run.tokenizer)}); need a reward model with the policy's tokenizer. "
                "Try value=shared"
            )
        found = load_reward_model(load, run.tokenizer, run.ctx, new_head=False)
    if found.tap is None:
        raise ModelError(
            f"value_model: {cfg.value_start} is an encoder, which has no score of a part of a row; "
            "need a decoder. Try value=shared"
        )
    if cfg.train.gradient_checkpointing:
        recompute_activations(found)
    return found
