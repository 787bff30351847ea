from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge, Gt, Lt, ModelPath, Unit
from rlhf_cli.models.config import ComparedModelConfig
from rlhf_cli.stages.config import ResponseRowsConfig, response_rows_problems


@dataclass(kw_only=True)
class UDMConfig:
    """Weights for undesirable rows by how likely their prompts are among desirable ones.

    Underlying distribution matching (arXiv:2404.04656, section 4.2), for classes whose prompts
    differ.
    """

    embedding_model: Annotated[
        str, ModelPath("embedding_model_revision", words=("none", "reference"))
    ] = "none"
    """What embeds the prompts, by the mean of its last hidden states: `none` is off, `reference`
    takes the policy as it starts; or a model folder or hub id, with its own tokenizer."""

    embedding_model_revision: str = ""
    """Branch, tag or commit of the hub id in `embedding_model`; empty takes its default branch."""

    sample_size: Annotated[int, Ge(1), Unit("prompts")] = 1024
    """Prompts of each class, at most, that the classifier is fitted on."""


@dataclass(kw_only=True)
class BCOConfig(ResponseRowsConfig):
    """Binary classifier optimization: learn from responses with a label, good or bad."""

    default_lr: ClassVar[tuple[float, float]] = (5e-7, 5e-6)
    needs_reference: ClassVar[bool] = True

    model: ComparedModelConfig = field(default_factory=ComparedModelConfig)

    udm: UDMConfig = field(default_factory=UDMConfig)

    beta: Annotated[float, Gt(0)] = 0.1
    """Pull towards the reference, 1/nats."""

    delta: Literal["running", "ema", "balanced"] = "running"
    """Reward shift between the classes: `running` is the mean of all rewards so far, `ema` forgets
    old ones, `balanced` is the middle of the two classes' means, whatever their numbers."""

    delta_decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Share of the shift before that each step keeps, with `delta=ema`."""

    desirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of desirable rows."""

    undesirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of undesirable rows."""

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
