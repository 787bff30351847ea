from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import AtLeast, DataPath, Unit


@dataclass(kw_only=True)
class DataConfig:
    """Which rows, and how they become tokens and masks."""

    path: Annotated[str, DataPath()] = ""
    """A `.jsonl` or `.txt` file, a folder of them, or `tiny` (the shipped rows of the stage)."""

    eval: Annotated[str, DataPath()] = "auto"
    """Held-out rows; `none` for no evaluation. `auto` is the shipped test rows with
    `data.path=tiny` and `none` with anything else."""

    format: Literal[
        "auto",
        "text",
        "prompt_completion",
        "chat",
        "preference",
        "ranked",
        "labelled",
        "prompt",
    ] = "auto"
    """Kind of record; `auto` finds it from the columns."""

    columns: dict[str, str] = field(default_factory=dict)
    """Our column name -> the name in the file, as in `data.columns={prompt: question}`."""

    max_length: Annotated[int, AtLeast(2), Unit("tokens")] = 1024
    """Longest row; longer ones are treated by `data.truncation`, counted and shown."""

    truncation: Literal["prompt_start", "response_end", "refuse"] = "prompt_start"
    """`prompt_start` drops the oldest prompt tokens and then the response's end, `response_end`
    only the end, `refuse` leaves the row out. Text is cut into several rows instead."""

    packing: bool = False
    """Fill each example up to `data.max_length` with several rows, kept apart by positions and
    attention; `train.batch_size` then counts filled examples."""

    train_on: Literal["response", "all", "last_turn"] = "response"
    """Which tokens are trained: every response, all tokens, or the last response of a chat."""

    shuffle: bool = True
    """Draw a new seeded order each epoch; false keeps the file's order."""

    max_bad_rows: Annotated[int, AtLeast(0), Unit("rows")] = 0
    """Malformed rows (broken JSON, missing columns, wrong types) tolerated before the run stops."""
