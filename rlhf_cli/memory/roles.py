"""The models that a training stage holds: policy, reference, value and reward models."""

from typing import Any

from rlhf_cli.memory.model_files import read_shape
from rlhf_cli.memory.weights import HeldModel, frozen_model, same_base, trained_model
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.stages.distill.config import ADAPTER_OFF


def held_models(cfg: Any, itemsize: int, new_tokens: int = 0) -> list[HeldModel]:
    """Describe every model that a training stage holds, the policy first.

    Args:
        cfg: checked config of the stage.
        itemsize: bytes of the compute type.
        new_tokens: tokens whose rows of the embeddings are trained beside an adapter.

    Raises:
        ConfigError: a model is not here.
    """
    policy = trained_model(cfg, "policy", itemsize, new_tokens)
    found = [policy]
    if hasattr(cfg.model, "reference"):
        found += _reference(cfg, policy, itemsize)
    if getattr(cfg, "teacher", ""):
        found += _teacher(cfg, itemsize)
    if getattr(cfg, "has_value_model", False):
        found += _value_model(cfg, policy, itemsize)
    if cfg.generates and hasattr(cfg, "reward"):
        found += _reward_models(cfg, policy, itemsize)
    return found


def reference_kind(cfg: Any) -> str:
    """Return how the reference is kept: `adapter_off`, `copy`, `stored`, `none` or `path`."""
    if not getattr(cfg, "needs_reference", True):
        return "none"
    named = str(cfg.model.reference)
    if named == "auto":
        if cfg.adapter.kind != "none":
            return "adapter_off"
        can_store = "stored" in cfg.model.reference_choices and not getattr(cfg, "generates", False)
        return "stored" if can_store else "copy"
    return named if named in cfg.model.reference_choices else "path"


def _reference(cfg: Any, policy: HeldModel, itemsize: int) -> list[HeldModel]:
    kind = reference_kind(cfg)
    if kind == "path":
        other = ModelConfig(path=cfg.model.reference, revision=cfg.model.reference_revision)
        return [frozen_model(other, "reference", itemsize, "model.reference")]
    if kind != "copy":
        return []
    count = policy.adapter or sum(tensor.count for tensor in policy.shape.tensors)
    size = count * itemsize
    return [HeldModel("reference", policy.shape, frozen_bytes=size, own_base=not policy.adapter)]


def _teacher(cfg: Any, itemsize: int) -> list[HeldModel]:
    """The teacher of distill, where it has weights of its own in this process."""
    if cfg.teacher_is_server or cfg.teacher == ADAPTER_OFF:
        return []
    other = ModelConfig(path=cfg.teacher, revision=cfg.teacher_revision)
    return [frozen_model(other, "teacher", itemsize, "teacher", cfg.teacher_load)]


def _value_model(cfg: Any, policy: HeldModel, itemsize: int) -> list[HeldModel]:
    head = policy.shape.width + 1
    if cfg.value == "shared":
        return [HeldModel("value", policy.shape, trained=head, own_base=False)]
    if cfg.value == "adapter":
        count = policy.adapter + head
        return [
            HeldModel(
                "value",
                policy.shape,
                trained=count,
                adapter=count,
                targets=policy.targets,
                rank=policy.rank,
                dora=policy.dora,
                quantized=policy.quantized,
                own_base=False,
            )
        ]
    named = ModelConfig(path=cfg.value_start, revision=cfg.value_start_revision)
    shape = read_shape(named, "value_model").as_reward_model()
    if not shape.adapters:
        return [HeldModel("value", shape, trained=sum(t.count for t in shape.tensors))]
    count = sum(tensor.count for tensor in shape.adapters)
    frozen = frozen_model(named, "value", itemsize, "value_model").frozen_bytes - count * itemsize
    return [HeldModel("value", shape, count, frozen, adapter=count)]


def _reward_models(cfg: Any, policy: HeldModel, itemsize: int) -> list[HeldModel]:
    found = []
    for key, term in zip(cfg.reward.keys, cfg.reward.all_terms, strict=True):
        path = term.model or term.classifier
        if not path:
            continue
        name = f"{key}.model" if term.model else f"{key}.classifier"
        other = ModelConfig(path=path, revision=term.revision, base=term.base, init="pretrained")
        model = frozen_model(other, "reward", itemsize, name)
        if policy.adapter and term.model and same_base(policy.shape, model.shape):
            size = sum(tensor.count for tensor in model.shape.adapters) * itemsize
            model = HeldModel("reward", model.shape, frozen_bytes=size, own_base=False)
        found.append(model)
    return found
