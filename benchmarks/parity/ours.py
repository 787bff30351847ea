"""Our side of a comparison: one stage on given rows, in fp32 and in their order."""

from pathlib import Path

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

Series = dict[str, list[float]]


def run(
    stage: str,
    out: Path,
    model: Path,
    rows: Path,
    settings: list[str],
    names: tuple[str, ...] = ("loss", "grad_norm"),
) -> Series:
    """What `rlhf STAGE` logs at each step.

    Args:
        stage: to run.
        out: its new folder.
        model: folder that it starts from.
        rows: file.
        settings: of the command line, beside those that both sides always have.
        names: of the metrics.

    Raises:
        SystemExit: the run failed.
    """
    argv = [
        stage,
        f"model={model}",
        f"data={rows}",
        f"output_dir={out}",
        "data.shuffle=false",
        "train.schedule=constant",
        "train.weight_decay=0.01",
        "train.precision=fp32",
        *settings,
    ]
    if cli.main(argv):
        raise SystemExit(1)
    lines = [line for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    return {name: [line[name] for line in lines] for name in names}
