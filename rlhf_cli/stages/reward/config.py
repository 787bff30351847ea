from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge
from rlhf_cli.stages.config import ResponseRowsConfig, response_rows_problems

FORMATS = (
    "preference",
    "ranked",
    "scored",
    "scored_text",
    "labelled",
    "labelled_text",
)


@dataclass(kw_only=True)
class RewardConfig(ResponseRowsConfig):
    """Reward model: train on pairs, rankings, scores or labels to score responses."""

    scores: ClassVar[bool] = True
    default_lr: ClassVar[tuple[float, float]] = (1e-5, 1e-4)

    loss_type: Literal["auto", "comparison", "regression", "binary"] = "auto"
    """`comparison` is the Bradley-Terry loss of pairs or rankings (arXiv:2203.02155), `regression`
    the squared error of scores, `binary` the cross-entropy of labels. `auto` chooses by the rows:
    comparison for pairs and rankings, regression for scores, binary for labels."""

    center_coefficient: Annotated[float, Ge(0)] = 0.0
    """Weight of the squared sum of two compared scores, which centers scores around 0
    (arXiv:2312.09244); 0.01 is usual, 0 turns it off."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems() + response_rows_problems("reward", self.data, FORMATS)
        if self.center_coefficient and self.loss_type in ("regression", "binary"):
            found.append(
                f"center_coefficient: got {self.center_coefficient} with loss_type="
                f"{self.loss_type}, which fixes where 0 is. Try center_coefficient=0"
            )
        return found
