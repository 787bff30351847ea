from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge, Gt, Lt, ModelPath, Unit
from rlhf_cli.models.config import ComparedModelConfig
from rlhf_cli.stages.config import ResponseRowsConfig, response_rows_problems


@dataclass(kw_only=True)
class UDMConfig:
    """Underlying distribution matching (UDM): weights of undesirable rows by their prompts.

    For classes with different prompts (arXiv:2404.04656, section 4.2): the weight is the density
    ratio of the prompt among desirable and undesirable rows.
    """

    embedding_model: Annotated[
        str, ModelPath("embedding_model_revision", words=("none", "reference"))
    ] = "none"
    """Model that embeds prompts, by the mean of its last hidden states: `none` turns UDM off,
    `reference` uses the initial policy; or a model folder or hub id, with its own tokenizer."""

    embedding_model_revision: str = ""
    """Branch, tag or commit of the hub id in `embedding_model`; empty uses its default branch."""

    sample_size: Annotated[int, Ge(1), Unit("prompts")] = 1024
    """Maximum number of prompts of each class that the classifier is fitted on."""


@dataclass(kw_only=True)
class BCOConfig(ResponseRowsConfig):
    """Binary classifier optimization: train on responses labelled desirable or undesirable."""

    default_lr: ClassVar[tuple[float, float]] = (5e-7, 5e-6)
    needs_reference: ClassVar[bool] = True

    model: ComparedModelConfig = field(default_factory=ComparedModelConfig)

    udm: UDMConfig = field(default_factory=UDMConfig)

    beta: Annotated[float, Gt(0)] = 0.1
    """BCO β, 1/nats: larger keeps the policy closer to the reference."""

    delta: Literal["running", "ema", "balanced"] = "running"
    """Reward shift δ: `running` is the mean of all rewards so far, `ema` an exponential moving
    average, `balanced` the midpoint of the two classes' means, independent of their sizes."""

    delta_decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Decay of the moving average of δ with `delta=ema`."""

    desirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of desirable rows in the loss."""

    undesirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of undesirable rows in the loss."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        formats = ("labelled", "preference")
        found = super().problems() + response_rows_problems("bco", self.data, formats)
        found += self.model.reference_problems(self.adapter.kind)
        if self.model.reference == "none":
            found.append(
                "model.reference: got none; bco compares with a reference. Try model.reference=auto"
            )
        if self.delta != "ema" and self.delta_decay != BCOConfig.delta_decay:
            found.append(
                f"delta_decay: got {self.delta_decay} with delta={self.delta}, which forgets "
                "nothing. Try delta=ema"
            )
        if not self.desirable_weight and not self.undesirable_weight:
            found.append(
                "desirable_weight: got 0.0, and undesirable_weight too, so no row counts. "
                "Try desirable_weight=1"
            )
        return found
