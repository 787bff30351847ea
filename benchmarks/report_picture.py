"""The picture of a report that the README shows: the tiny chain's PPO, drawn by Chromium.

    python -m benchmarks.report_picture [RUN] [--output docs/report.png] [--height 1340]

Without RUN, the tiny chain is trained up to PPO first: about four minutes on two cores. The picture
is the top of the report on a light page, 1200 pixels wide.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rlhf_cli.report.write import write_report

WIDTH = 1200

LARGEST = 200_000
"""Bytes: the picture is part of the repository."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

CHAIN = (
    ("pretrain", "config=tiny/pretrain", "output_dir={out}/pretrain"),
    ("sft", "config=tiny/sft", "model={out}/pretrain", "output_dir={out}/sft"),
    (
        "ppo", "config=tiny/ppo", "model={out}/sft", "output_dir={out}/ppo", "lr=3e-5",
        "train.max_steps=40", "train.eval_steps=5", "sample_steps=5",
    ),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=lambda name: Path(name).resolve())
    parser.add_argument("--output", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--height", type=int, default=1340)
    given = parser.parse_args()
    output = given.output.resolve()
    with TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        if given.run:
            shutil.copytree(given.run, "runs/ppo")
        else:
            train(Path("runs"))
        page = Path("report.html")
        write_report([Path("runs/ppo")], page)
        draw(page.resolve(), output, given.height)
    size = output.stat().st_size
    print(f"{given.output}: {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"need at most {LARGEST:,}; try a smaller --height")


def train(out: Path) -> None:
    """Train the tiny chain up to PPO."""
    for words in CHAIN:
        command = [sys.executable, "-m", "rlhf_cli", *(word.format(out=out) for word in words)]
        subprocess.run(command, check=True)


def draw(page: Path, output: Path, height: int) -> None:
    """Save the top of a page as a PNG."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"need one of {', '.join(BROWSERS)}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    flags += ["--blink-settings=preferredColorScheme=1", f"--window-size={WIDTH},{height}"]
    flags += [f"--screenshot={output}", page.as_uri()]
    subprocess.run([browser, *flags], check=True, capture_output=True)


if __name__ == "__main__":
    main()
