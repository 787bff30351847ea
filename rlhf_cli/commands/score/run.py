"""`rlhf score`: score the responses of rows by a reward model, or by any reward of `reward.*`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rlhf_cli.commands.score.config import ScoreConfig
from rlhf_cli.commands.score.rows import Row, read_rows, scored_columns
from rlhf_cli.commands.score.summary import summary_lines
from rlhf_cli.console import logger
from rlhf_cli.context import create_context
from rlhf_cli.data.report import DataReport, pluralize
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.rewards import CombinedReward, load_combined_reward
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import to_json_line

CHUNK_ROWS = 256
"""Rows scored in one call, and then written."""

RowScores = Mapping[str, list[float]]
"""Term, or empty for the combined score -> the scores of a row's responses."""


def run(cfg: ScoreConfig) -> None:
    """Read all rows, score their responses, and write the rows with their scores."""
    rows, report = read_rows(cfg)
    for line in _read_lines(report):
        logger.info(line)
    ctx = create_context(cfg.precision, 0, Path())
    tokenizer = None
    if cfg.tokenizer_model:
        tokenizer = load_tokenizer(ModelConfig(path=cfg.tokenizer_model, init="pretrained"))
    # without a tokenizer of a policy, a reward model formats and tokenizes the texts itself
    reward = load_combined_reward(cfg.reward, None, ctx, cfg.micro_batch_tokens)
    kinds = [row.kind for row in rows if row.kind]
    scored: list[tuple[Row, list[float]]] = []
    progress = ProgressCount("responses", sum(len(row.pairs) for row in rows))
    target = open_output(Path(cfg.output)) if cfg.output else nullcontext(print_text)
    with target as write, progress:
        for row, scores in score_rows(cfg, reward, rows, tokenizer, progress):
            progress.end_line()
            write(to_json_line(scored_columns(row, cfg, kinds, scores)))
            if row.pairs:
                scored.append((row, scores[""]))
    for line in summary_lines(scored, cfg.column):
        logger.info(line)
    if cfg.output:
        logger.info(f"{pluralize(len(rows), 'row')} -> {cfg.output}")


def _read_lines(report: DataReport) -> list[str]:
    head = f"{', '.join(report.files)}: {report.kept} of {pluralize(report.rows, 'row')}"
    return [f"{head} ({report.kind}) to score", *report.left_out_lines()]


def print_text(text: str) -> None:
    """Write to stdout at once, as a reader of a pipe expects."""
    print(text, end="", flush=True)


def score_rows(
    cfg: ScoreConfig,
    reward: CombinedReward,
    rows: Sequence[Row],
    tokenizer: Any,
    progress: ProgressCount,
) -> Iterator[tuple[Row, RowScores]]:
    """Score the responses of all rows, in order; a refused row has no scores.

    Args:
        cfg: `reward.combine=llama2` whitens over all rows, which are then scored in one call.
        reward: scores the responses.
        rows: all rows.
        tokenizer: counts the tokens of responses; None if none are counted.
        progress: counts the responses.

    Raises:
        DataError: a reward source does not give every response a finite number; names the row.
    """
    size = len(rows) if cfg.reward.combine == "llama2" else CHUNK_ROWS
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        samples = samples_of(chunk, tokenizer)
        found = reward.score(samples, observe=False)
        columns = {"": found.total.tolist()}
        columns |= {name: scores.tolist() for name, scores in found.by_term.items()}
        progress.add(len(samples))
        start = 0
        for row in chunk:
            span = slice(start, start + len(row.pairs))
            yield row, {name: values[span] for name, values in columns.items()}
            start = span.stop


def samples_of(rows: Sequence[Row], tokenizer: Any) -> Samples:
    """All responses of some rows, with their prompts, locations and other columns."""
    each = [(row, prompt, text) for row in rows for prompt, text in row.pairs]
    names = list(dict.fromkeys(name for row, _, _ in each for name in row.extra_columns))
    return Samples(
        [prompt for _, prompt, _ in each],
        [text for _, _, text in each],
        [[] for _ in each],
        [_response_tokens(text, tokenizer) for _, _, text in each],
        {name: [row.extra_columns.get(name) for row, _, _ in each] for name in names},
        [row.location for row, _, _ in each],
    )


def _response_tokens(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a response with its end token; empty if tokens are not counted."""
    if tokenizer is None:
        return []
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
