from dataclasses import dataclass, field
from typing import ClassVar

from rlhf_cli.data.config import DataConfig
from rlhf_cli.stages.config import StageConfig


@dataclass(kw_only=True)
class PretrainConfig(StageConfig):
    """Domain pretraining: train on every token of raw text, from a checkpoint or scratch."""

    balances_experts: ClassVar[bool] = True

    data: DataConfig = field(default_factory=lambda: DataConfig(packing=True, train_on="all"))

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems()
        if self.data.train_on != "all":
            found.append(
                f"data.train_on: got {self.data.train_on}; pretrain learns every token. "
                "Try data.train_on=all, or rlhf sft"
            )
        if self.data.format not in ("auto", "text"):
            found.append(
                f"data.format: got {self.data.format}; pretrain needs auto or text. "
                "Try data.format=auto, or rlhf sft"
            )
        return found
