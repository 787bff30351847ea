from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rlhf_cli.config.schema import DataPath, OutputPath, Seed
from rlhf_cli.data.config import Columns, Format


@dataclass(kw_only=True)
class LabelConfig:
    """Rate the answers of a file in the terminal, one row after the other.

    Pairs are shown in random order without their labels; rankings are built from the best answer
    on; single answers are good or bad. Decisions are appended as rows that bco, dpo and reward
    read, and the same command continues where you stopped.
    """

    file: Annotated[str, DataPath()] = ""
    """Pairs (chosen, rejected), several `responses` to a prompt, single answers (completion) or
    chats, in any layout and format that training reads."""

    format: Format = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Column name -> name in the file, or a text with names in braces."""

    output: Annotated[str, OutputPath()] = ""
    """File (`.jsonl`) to which the rows are appended; empty is `FILE.labelled.jsonl` beside the
    input. Ties, which no method learns from, are appended to `OUTPUT.ties.jsonl`."""

    rater: str = ""
    """Your name in the rows; empty takes the user name. Rows that another rater decided are shown
    again."""

    seed: Seed = 0
    """Seed of the order in which the answers of a row are shown."""

    @property
    def target(self) -> Path:
        """File of the decisions."""
        if self.output:
            return Path(self.output).expanduser()
        source = Path(self.file).expanduser()
        name = source.name.removesuffix(".gz")
        return source.with_name(f"{Path(name).stem}.labelled.jsonl")

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = []
        if not self.file:
            found.append("file: none given; need a file of answers. Try rlhf label pairs.jsonl")
        if self.output and not self.output.endswith(".jsonl"):
            found.append(
                f"output: got {self.output}; need a name that ends in .jsonl. "
                f"Try output={Path(self.output).stem or 'labelled'}.jsonl"
            )
        return found


def ties_file(target: Path) -> Path:
    """File of the rows that were decided as ties."""
    return target.with_name(f"{target.name.removesuffix('.jsonl')}.ties.jsonl")
