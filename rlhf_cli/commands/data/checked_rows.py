"""Rows of a stage with what the checks of a data file need to know about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from json import JSONDecodeError, loads
from random import Random
from typing import Any, TypeVar, cast

from rlhf_cli.data.checks.content import CheckedData, Cut
from rlhf_cli.data.examples import flatten
from rlhf_cli.data.prompts import prompt_of
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import PromptRecord, TextRecord, response_scores
from rlhf_cli.data.tokens.packing import ExampleRow
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import CHATML
from rlhf_cli.preflight.models import positions
from rlhf_cli.progress import ProgressCount
from rlhf_cli.runs.artifact import find_model_folder
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.inspection import InspectedRow, StageRows
from rlhf_cli.stages.rollouts.config import RolloutSettings

MAX_ROWS = 100_000
"""Rows that are examined; of more a random sample."""

_WEIGHTS = ("desirable_weight", "undesirable_weight")

Item = TypeVar("Item")


def read_checked_data(stage: StageRows, max_rows: int = MAX_ROWS) -> CheckedData:
    """Read the rows of a stage, and its held-out rows.

    Args:
        stage: the stage's rows.
        max_rows: rows to examine at most, of each.

    Raises:
        DataError: the rows cannot be read, or the stage does not take them.
    """
    sampled, total = sample(stage.read(), max_rows)
    rows = list(_tokenize(stage, sampled))
    kept = [row for row in rows if row.tokenized and not row.problem]
    cfg = stage.config
    known: dict[str, Any] = {
        "stage": stage.stage,
        "cfg": stage.data,
        "tokenizer": stage.tokenizer,
        "report": stage.report,
        "rows": [row.raw for row in rows],
        "rows_total": total,
        "records": [_record_of(row) for row in kept],
        "refused": _refused_places(rows),
        "held_out": _read_held_out(stage, max_rows),
        "held_out_of_rows": isinstance(stage.data.eval, int | float),
        "end_tokens": end_tokens(cfg.model, stage.tokenizer),
        "own_template": stage.tokenizer.chat_template != CHATML,
        "template": getattr(cfg, "template", ""),
        "options": _options(cfg),
        "positions": positions(cfg.model),
    }
    if cfg.generates:
        lengths = [len(one.whole.tokens) for row in kept for one in row.rows]
        return CheckedData(**known, prompt_lengths=lengths)
    examples = flatten(map(_whole_example, kept), stage.mixture.files)
    return CheckedData(**known, examples=examples, cuts=list(_cuts(kept, stage.data.max_length)))


def sample(items: Iterable[Item], limit: int) -> tuple[list[Item], int]:
    """Return at most `limit` items, each with the same probability, and the number of all.

    Reservoir sampling (Vitter 1985, algorithm R) with a fixed seed.
    """
    random, total = Random(0), 0
    kept: list[tuple[int, Item]] = []
    for item in items:
        total += 1
        if len(kept) < limit:
            kept.append((total, item))
        elif (at := random.randrange(total)) < limit:
            kept[at] = (total, item)
    return [item for _, item in sorted(kept, key=lambda numbered: numbered[0])], total


def _tokenize(stage: StageRows, rows: Sequence[Any]) -> Iterator[InspectedRow]:
    with ProgressCount("rows tokenized", len(rows)) as progress:
        for row in stage.tokenize(rows):
            yield row
            progress.add(1)


def _record_of(row: InspectedRow) -> RecordWithSource:
    """Return the record of a row; of a row that is read for its prompt, the prompt alone."""
    assert row.tokenized is not None
    source = row.tokenized.source
    if row.rows and not any(one.whole.loss_mask.any() for one in row.rows):
        return RecordWithSource(PromptRecord(prompt_of(source.record)), source.file, source.line)
    return source


def _refused_places(rows: Iterable[InspectedRow]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.problem and not row.malformed:
            found[row.problem].append(row.raw.location)
    return dict(found)


def _read_held_out(stage: StageRows, max_rows: int) -> list[RecordWithSource]:
    held_out = stage.held_out()
    if held_out is None:
        return []
    rows, _ = sample(held_out.read(), max_rows)
    return [found for _, found in rows if isinstance(found, RecordWithSource)]


def _whole_example(row: InspectedRow) -> list[ExampleRow]:
    """Return the token rows of a record before truncation."""
    assert row.tokenized is not None
    source = row.tokenized.source
    scores = response_scores(source.record) or [None] * len(row.rows)
    return [
        ExampleRow(one.whole, source.file, source.line, score)
        for one, score in zip(row.rows, scores, strict=True)
    ]


def _cuts(rows: Iterable[InspectedRow], max_length: int) -> Iterator[Cut]:
    for row in rows:
        longest = max(len(one.whole.tokens) for one in row.rows)
        if longest <= max_length or isinstance(row.record, TextRecord):
            continue
        yield Cut(
            location=row.raw.location,
            longest=longest,
            prompt_start=max(one.prompt_start for one in row.rows),
            response_end=max(one.response_end for one in row.rows),
            loses_end=any(
                one.whole.loss_mask[len(one.whole.tokens) - one.response_end :].any()
                for one in row.rows
            ),
        )


def end_tokens(model: ModelConfig, tokenizer: Any) -> frozenset[int]:
    """Return the ids at which the model as it is stops to generate, without loading it.

    They are the tokenizer's end token and those of `generation_config.json`, or else of
    `config.json`.
    """
    found = {int(tokenizer.eos_token_id)}
    folder = find_model_folder(model.path, model.revision)
    for name in ("generation_config.json", "config.json"):
        if folder is None or not (folder / name).is_file():
            continue
        try:
            listed = loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, UnicodeDecodeError, JSONDecodeError, AttributeError):
            continue  # the run reports a file that cannot be read
        if listed is not None:
            listed = listed if isinstance(listed, list) else [listed]
            return frozenset({*found, *(one for one in listed if isinstance(one, int))})
    return frozenset(found)


def _options(cfg: StageConfig) -> dict[str, Any]:
    """Return the keys of a stage that checks read."""
    if cfg.generates:
        return {"max_new_tokens": cast(RolloutSettings, cfg).sampling.max_new_tokens}
    reads_labels = getattr(cfg, "unpaired", True)  # dpo reads weights with loss_type=kto only
    return {name: getattr(cfg, name) for name in _WEIGHTS if hasattr(cfg, name) and reads_labels}
