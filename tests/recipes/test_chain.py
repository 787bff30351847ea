"""The whole tiny chain, as `make demo` runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli.resources import shipped_folder


@pytest.mark.slow
def test_the_chain_reaches_half_of_the_judges_points_and_prints_its_table(tmp_path):
    scripts = Path(sys.executable).parent
    run = subprocess.run(
        ["bash", str(shipped_folder("recipes") / "tiny" / "run.sh"), str(tmp_path / "runs")],
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    table = {line.split()[0]: line for line in run.stdout.splitlines() if line.strip()}
    points = float(table["sft"].split(" of ")[0].split()[-1])
    assert points >= 3.0
    for stage in ("dpo", "bco", "ppo"):
        wins = int(table[stage].partition("%")[0].split()[-1])
        assert wins >= 80, table[stage]
    reward = json.loads((tmp_path / "runs" / "reward" / "manifest.json").read_text())
    assert reward["after"]["accuracy"] >= 0.85
    ppo = json.loads((tmp_path / "runs" / "ppo" / "manifest.json").read_text())
    assert ppo["after"]["score"] > ppo["before"]["score"] + 1
    assert ppo["after"]["kl"] < 15
    command = [sys.executable, "-m", "rlhf_cli", "dpo", "config=tiny/online_dpo"]
    command += [f"model={tmp_path}/runs/sft", f"output_dir={tmp_path}/runs/online_dpo"]
    subprocess.run(command, capture_output=True, check=True)
    online = json.loads((tmp_path / "runs" / "online_dpo" / "manifest.json").read_text())
    assert online["after"]["score"] > online["before"]["score"] + 0.8
    assert online["after"]["kl"] < 15
    manifest = json.loads((tmp_path / "runs" / "sft" / "manifest.json").read_text())
    assert manifest["after"]["loss"] < 0.6 * manifest["before"]["loss"]
