"""Config errors of commands that take responses from servers and train nothing."""

from collections.abc import Sequence
from typing import Literal, Protocol

from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import ServerConfig, sampling_problems


class ServedConfig(Protocol):
    """Configuration of a command that generates responses with weights as they are."""

    model: ModelConfig
    quant: QuantConfig
    sampling: SamplingConfig
    rollout: ServerConfig
    template: Literal["auto", "always", "never"]
    batch_size: int
    precision: Literal["auto", "bf16", "fp32"]
    device_memory: str
    device_flops: float

    @property
    def computes(self) -> bool:
        """Whether a model beside the one that generates is loaded in this process."""


def served_problems(cfg: ServedConfig) -> list[str]:
    """Keys that do not go with a server, one line each; none without a server."""
    if not cfg.rollout.is_used:
        return []
    found = sampling_problems(cfg.sampling)
    if cfg.model.from_scratch:
        found.append(
            f"model.path: got {cfg.model.path or 'none'}, whose weights are random, with a server; "
            "need weights that it can load. Try model=runs/sft"
        )
    return found + _unread_problems(cfg)


def _unread_problems(cfg: ServedConfig) -> list[str]:
    """Keys of a model in this process, where the weights are in a server."""
    found = [
        f"quant.{name}: got {getattr(cfg.quant, name)} with a server, which loads the weights "
        "itself. Leave it out, and give the server an option of its own"
        for name in _changed(cfg.quant, QuantConfig(), ("kind", "double", "output_layer"))
    ]
    found += [
        f"model.{name}: got {getattr(cfg.model, name)} with a server, which computes itself. "
        "Leave it out"
        for name in _changed(cfg.model, ModelConfig(), ("dtype", "attention", "tokenizer"))
    ]
    if cfg.batch_size != type(cfg).batch_size:
        found.append(
            f"batch_size: got {cfg.batch_size} with a server, which decides itself how many "
            f"responses it decodes at once. Try rollout.concurrency={cfg.batch_size}"
        )
    if cfg.precision != "auto" and not (cfg.rollout.start or cfg.computes):
        found.append(
            f"precision: got {cfg.precision} with rollout.server, which has a type of its own. "
            "Leave it out, and start the server with --dtype"
        )
    return found + [
        f"{name}: got {getattr(cfg, name)} with a server, whose device is not planned for. "
        "Leave it out"
        for name in ("device_memory", "device_flops")
        if getattr(cfg, name)
    ]


def _changed(given: object, default: object, names: Sequence[str]) -> list[str]:
    """Names of the fields that are not at their default."""
    return [name for name in names if getattr(given, name) != getattr(default, name)]
