from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import DataPath, Escapes, Ge, Gt, Unit
from rlhf_cli.resources import SHIPPED

Columns = dict[str, Annotated[str, Escapes()]]

Format = Literal[
    "auto",
    "text",
    "prompt_completion",
    "chat",
    "preference",
    "ranked",
    "labelled",
    "labelled_text",
    "scored",
    "scored_text",
    "prompt",
]


@dataclass(kw_only=True)
class Source:
    """One of several sources of rows; a key left out has the value of `data.KEY`."""

    path: Annotated[str, DataPath("revision")] = ""
    """A file, a folder, a hub id or `tiny`."""

    weight: Annotated[float, Gt(0)] = 1.0
    """How many times a row is drawn an epoch: 1 is every row once, 0.5 a seeded half of them, 2
    every row twice."""

    name: str = ""
    revision: str = ""
    split: str = ""
    data_dir: str = ""
    format: Format = "auto"
    columns: Columns = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        missing = "data.path: a source without path; need one, as in [{path: a.jsonl, weight: 2}]"
        return [] if self.path else [missing]


Sources = list[Annotated[str | Source, DataPath()]]


@dataclass(kw_only=True)
class DataConfig:
    """Which rows, and how they become tokens and masks."""

    path: Annotated[str | Sources, DataPath("revision")] = ""
    """A file (`.jsonl .json .csv .tsv .parquet .txt`, also `.gz`), a folder of them, a hub id
    `org/name`, or `tiny` (the shipped rows of the stage); or a list of these, or of
    `{path: FILE, weight: 2}`."""

    revision: str = ""
    """Branch, tag or commit of the hub ids in `data.path` and `data.eval`; empty takes their
    default branches. A source in a list can have its own."""

    eval: Annotated[str | int | float | Sources, DataPath("revision")] = "auto"
    """Held-out rows, named as in `data.path`; or how many of the training rows to hold out, as a
    share (`0.05`) or a number (`200`); `none` for no evaluation. `auto` is the shipped test rows
    with `data.path=tiny` and `none` with anything else."""

    name: str = ""
    """Configuration of a hub data set."""

    split: str = ""
    """Split, or slice of rows, of `data.path`: `train` (default), `train[:1%]`, `[100:200]`."""

    data_dir: str = ""
    """Folder inside the data set, or inside a local folder."""

    format: Format = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Our column name -> the name in the file, or a text with names in braces, as in
    `data.columns={prompt: question}` and `data.columns.prompt="Question: {question}"`."""

    max_length: Annotated[int, Ge(2), Unit("tokens")] = 1024
    """Longest row; longer ones are treated by `data.truncation`, counted and shown. The default is
    lowered to the positions of a model that has fewer."""

    truncation: Literal["prompt_start", "response_end", "refuse"] = "prompt_start"
    """`prompt_start` drops the oldest prompt tokens and then the response's end, `response_end`
    only the end, `refuse` leaves the row out. The responses of a pair or ranking keep one prompt.
    Text is cut into several rows instead."""

    packing: bool = False
    """Fill each example up to `data.max_length` with several rows, kept apart by positions and
    attention; `train.batch_size` then counts filled examples."""

    train_on: Literal["response", "all", "last_turn"] = "response"
    """Which tokens are trained: every response, all tokens, or the last response of a chat."""

    shuffle: bool = True
    """Draw a new seeded order each epoch; false keeps the file's order."""

    max_bad_rows: Annotated[int, Ge(0), Unit("rows")] = 0
    """Malformed rows (broken JSON, missing columns, wrong types) tolerated before the run stops."""

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval not in ("", "none") and (self.eval != "auto" or self.path == SHIPPED)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = []
        for key, value in (("data.path", self.path), ("data.eval", self.eval)):
            if value == []:
                found.append(f"{key}: got an empty list; need at least one source")
        held = self.eval
        if isinstance(held, float) and not 0 < held < 1:
            found.append(
                f"data.eval: got {held}; need a share between 0 and 1, or a whole number of rows. "
                "Try data.eval=0.05"
            )
        if isinstance(held, int) and held < 1:
            found.append(
                f"data.eval: got {held}; need at least 1 row. Try data.eval=100, or data.eval=none"
            )
        return found


def listed(value: str | float | Sources) -> list[str]:
    """The paths in `data.path` or `data.eval`; none where that is a number of rows."""
    if isinstance(value, str):
        return [value]
    sources = value if isinstance(value, list) else []
    return [item if isinstance(item, str) else item.path for item in sources]
