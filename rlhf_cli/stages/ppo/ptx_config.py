from dataclasses import dataclass
from typing import Annotated

from rlhf_cli.config.schema import DataPath, Ge, Unit, no_rows


@dataclass(kw_only=True)
class PtxConfig:
    """The PPO-ptx loss on text beside the rollouts."""

    ptx_coef: Annotated[float, Ge(0)] = 0.0
    """PPO-ptx coefficient γ (arXiv:2203.02155): weight of the language-model loss on `ptx_data`."""

    ptx_data: Annotated[str, DataPath("ptx_revision")] = ""
    """Data of the PPO-ptx loss: text, chats or pairs of prompt and completion."""

    ptx_revision: str = ""
    """Branch, tag or commit of a hub id in `ptx_data`."""

    ptx_batch_size: Annotated[int, Ge(1), Unit("examples")] = 8
    """Examples of `ptx_data` per optimizer step."""

    def ptx_problems(self) -> list[str]:
        """Contradictions among these keys, one line each."""
        if bool(self.ptx_coef) != no_rows(self.ptx_data):
            return []
        given, other = ("ptx_coef", "ptx_data") if self.ptx_coef else ("ptx_data", "ptx_coef")
        return [
            f"{given}: given without {other}; need both. "
            f"Try {'ptx_data=text.jsonl' if self.ptx_coef else 'ptx_coef=1'}"
        ]
