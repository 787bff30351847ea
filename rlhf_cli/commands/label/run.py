"""`rlhf label`: rate the answers of a file, and append the decisions as rows for training."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rlhf_cli.commands.label.config import LabelConfig
from rlhf_cli.commands.label.decisions import DecisionFile
from rlhf_cli.commands.label.items import Item, read_items
from rlhf_cli.commands.label.keys import choose_reader
from rlhf_cli.commands.label.session import NUMBERS, Session
from rlhf_cli.config.paths import as_typed
from rlhf_cli.console import logger
from rlhf_cli.data.report import DataReport, pluralize
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.runs.appended_rows import rater_name

READERS = {"pair": "rlhf dpo or rlhf reward", "ranking": "rlhf reward", "answer": "rlhf bco"}
"""Kind of item -> commands that read its rows."""


def run(cfg: LabelConfig) -> None:
    """Ask about every item that the rater has not decided yet.

    Raises:
        ConfigError: the output is the input.
        DataError: a file cannot be read or written.
    """
    _require_other_file(cfg)
    report = DataReport()
    items = read_items(cfg, report)
    for line in report.left_out_lines():
        logger.info(line)
    _require_keys(items)
    rater = rater_name(cfg.rater)
    decisions = DecisionFile(cfg.target, rater, items)
    logger.info(
        f"{pluralize(len(items), 'item')} to rate, {len(decisions.done)} done by {rater}; "
        f"rows are appended to {as_typed(str(cfg.target))}"
    )
    session = Session(items, decisions, cfg.seed, Console(highlight=False), choose_reader())
    try:
        session.run()
    finally:
        _report(decisions, items)


def _require_other_file(cfg: LabelConfig) -> None:
    source, target = Path(cfg.file).expanduser(), cfg.target
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"output: {target} is the file that is read; need another name")


def _require_keys(items: list[Item]) -> None:
    for item in items:
        if len(item.answers) > len(NUMBERS):
            raise DataError(
                f"{item.location}: has {len(item.answers)} answers; there are keys for "
                f"{len(NUMBERS)} at most"
            )


def _report(decisions: DecisionFile, items: list[Item]) -> None:
    left = len(items) - len(decisions.done)
    ties = sum(one.path == decisions.ties for one in decisions.written)
    rows = len(decisions.written) - ties
    added = f"{pluralize(rows, 'row')} added to {as_typed(str(decisions.target))}"
    tied = f"{pluralize(ties, 'tie')} in {as_typed(str(decisions.ties))}; " if ties else ""
    after = f"{pluralize(left, 'item')} left, the same command continues" if left else "all done"
    logger.info(f"{added}, for {READERS[items[0].kind]}; {tied}{after}")
