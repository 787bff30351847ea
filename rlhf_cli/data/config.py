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
class SourceConfig:
    """One of several data sources; a key that is left out has the value of `data.KEY`."""

    path: Annotated[str, DataPath("revision")] = ""
    """File, folder, hub id or `tiny`."""

    weight: Annotated[float, Gt(0)] = 1.0
    """How often each row is sampled per epoch: 1 is once, 2 is twice, 0.5 a random half of the
    rows."""

    name: str = ""
    revision: str = ""
    split: str = ""
    data_dir: str = ""
    format: Format = "auto"
    columns: Columns = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return contradictions between keys, one line each."""
        missing = "data.path: a source without path; need one, as in [{path: a.jsonl, weight: 2}]"
        return [] if self.path else [missing]


SourceList = list[Annotated[str | SourceConfig, DataPath()]]


@dataclass(kw_only=True)
class DataConfig:
    """Data sources, and how their rows become tokens and loss masks."""

    path: Annotated[str | SourceList, DataPath("revision")] = ""
    """Training data: a file (`.jsonl .json .csv .tsv .parquet .txt`, also `.gz`), a folder of them,
    a hub id `org/name`, or `tiny` (the shipped rows of the stage); or a list of these, or of
    `{path: FILE, weight: 2}`."""

    revision: str = ""
    """Branch, tag or commit of the hub ids in `data.path` and `data.eval`; empty is the default
    branch. A source in a list can have its own revision."""

    eval: Annotated[str | int | float | SourceList, DataPath("revision")] = "auto"
    """Evaluation data, given as in `data.path`; or the training rows to hold out, as a share
    (`0.05`) or a number (`200`); `none` for no evaluation. `auto` is the shipped test rows with
    `data.path=tiny`, else `none`."""

    name: str = ""
    """Configuration name of a hub data set."""

    split: str = ""
    """Split or slice of `data.path`: `train` (default), `train[:1%]`, `[100:200]`."""

    data_dir: str = ""
    """Subfolder of the data set or local folder."""

    format: Format = "auto"
    """Record kind; `auto` finds it from the columns."""

    columns: Columns = field(default_factory=dict)
    """Column mapping: our name -> the name in the file, or a text with names in braces, as in
    `data.columns={prompt: question}` and `data.columns.prompt="Question: {question}"`."""

    max_length: Annotated[int, Ge(2), Unit("tokens")] = 1024
    """Maximum length of a row; `data.truncation` applies to longer ones, which are counted. The
    default is lowered to the context length of a model that has a shorter one."""

    truncation: Literal["prompt_start", "response_end", "refuse"] = "prompt_start"
    """What happens to rows that are too long. `prompt_start` drops the oldest prompt tokens, then
    the end of the response; `response_end` drops only the end of the response; `refuse` leaves the
    row out. The responses of a pair or ranking keep the same prompt. Documents are split
    instead."""

    packing: bool = False
    """Pack several rows into each example, up to `data.max_length`; positions and attention keep
    them apart. `train.batch_size` then counts packed examples."""

    train_on: Literal["response", "all", "last_turn"] = "response"
    """Tokens in the loss: every response, all tokens, or the last response of a chat."""

    shuffle: bool = True
    """Shuffle the examples in each epoch; false keeps the order of the file."""

    max_bad_rows: Annotated[int, Ge(0), Unit("rows")] = 0
    """Malformed rows (broken JSON, missing columns, wrong types) to tolerate."""

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows."""
        return self.eval not in ("", "none") and (self.eval != "auto" or self.path == SHIPPED)

    def problems(self) -> list[str]:
        """Return contradictions between keys, one line each."""
        found = []
        for key, value in (("data.path", self.path), ("data.eval", self.eval)):
            if value == []:
                found.append(f"{key}: got an empty list; need at least one source")
        held_out = self.eval
        if isinstance(held_out, float) and not 0 < held_out < 1:
            found.append(
                f"data.eval: got {held_out}; need a share between 0 and 1, or a whole number of "
                "rows. Try data.eval=0.05"
            )
        if isinstance(held_out, int) and held_out < 1:
            found.append(
                f"data.eval: got {held_out}; need at least 1 row. "
                "Try data.eval=100, or data.eval=none"
            )
        return found


def list_paths(value: str | float | SourceList) -> list[str]:
    """List the paths in `data.path` or `data.eval`; empty if that is a number of rows."""
    if isinstance(value, str):
        return [value]
    sources = value if isinstance(value, list) else []
    return [item if isinstance(item, str) else item.path for item in sources]
