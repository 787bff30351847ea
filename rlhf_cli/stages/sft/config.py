from dataclasses import dataclass
from typing import ClassVar

from rlhf_cli.stages.config import ResponseRowsConfig


@dataclass(kw_only=True)
class SFTConfig(ResponseRowsConfig):
    """Supervised fine-tuning: train on the responses of prompt/completion rows or chats."""

    balances_experts: ClassVar[bool] = True

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems()
        if self.data.format not in ("auto", "prompt_completion", "chat"):
            advice = " Raw text is for rlhf pretrain" if self.data.format == "text" else ""
            found.append(
                f"data.format: got {self.data.format}; sft needs one of auto, prompt_completion, "
                f"chat.{advice or ' Try data.format=auto'}"
            )
        return found
