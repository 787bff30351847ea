"""The diagnosis at the end of a training log."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.diagnosis.diagnose import diagnose
from rlhf_cli.diagnosis.findings import short_lines
from rlhf_cli.errors import first_line
from rlhf_cli.runs.record import read_record


def log_diagnosis(folder: Path, summary: Mapping[str, Any]) -> None:
    """Log what `rlhf doctor` says about a run that has just ended; never fails.

    Args:
        folder: of the run.
        summary: what its manifest is about to get.
    """
    try:
        record = read_record(folder)
        manifest = {**record.manifest, **summary}
        lines = short_lines(diagnose(replace(record, status="complete", manifest=manifest)))
    except Exception as error:  # the result is saved: what is said about it must not lose it
        lines = [f"diagnosis: could not be made ({first_line(error)})"]
    for line in lines:
        logger.info(line)
