"""`rlhf report`: write the report of a run, or of several runs beside each other."""

from __future__ import annotations

import sys
from pathlib import Path

from rlhf_cli.errors import ConfigError
from rlhf_cli.report.write import write_report
from rlhf_cli.runs.run_files import REPORT

OPEN, OUTPUT = "--open", "output="

SUFFIXES = (".html", ".htm")


def run(args: list[str]) -> None:
    """Run `rlhf report WORDS`.

    Raises:
        ConfigError: the arguments are invalid.
        DataError: a folder holds no run.
        CheckpointError: the file cannot be written.
    """
    folders, target, shown = _parse(args)
    write_report(folders, target)
    print(target, flush=True)
    if shown:
        _open(target)


def _parse(args: list[str]) -> tuple[list[Path], Path, bool]:
    """The folders, the file to write, and whether to show it."""
    targets = [arg.removeprefix(OUTPUT) for arg in args if arg.startswith(OUTPUT)]
    names = [arg for arg in args if not arg.startswith((OUTPUT, "-"))]
    unknown = [arg for arg in args if arg.startswith("-") and arg != OPEN]
    if unknown:
        raise ConfigError(f"report: got {unknown[0]}; the only switch is {OPEN}")
    if not names or len(targets) > 1:
        got = " ".join(args) or "nothing"
        raise ConfigError(
            f"report: got {got}; need folders of runs and at most one output=FILE.html. "
            "Try rlhf report runs/sft"
        )
    folders = [Path(name).expanduser() for name in names]
    target = _target(targets[0]) if targets else _usual_target(folders)
    return folders, target, OPEN in args


def _target(name: str) -> Path:
    target = Path(name).expanduser()
    if name and target.is_dir():
        raise ConfigError(f"output: got {name}, a folder. Try output={target / REPORT}")
    if target.suffix.lower() not in SUFFIXES:
        stem = Path(name).stem or "report"
        raise ConfigError(
            f"output: got {name or 'nothing'}; need an .html file. Try output={stem}.html"
        )
    if not target.parent.is_dir():
        raise ConfigError(f"output: {target.parent} is no folder. Try output={target.name}")
    return target


def _usual_target(folders: list[Path]) -> Path:
    """In the folder of the only run or sweep, else in the working folder."""
    return folders[0] / REPORT if len(folders) == 1 and folders[0].is_dir() else Path(REPORT)


def _open(target: Path) -> None:
    import webbrowser

    if not webbrowser.open(target.resolve().as_uri()):
        print(f"{OPEN}: no browser was found here; open {target} in one", file=sys.stderr)
