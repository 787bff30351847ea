"""`--dry-run`: what it says is what a run does, and it writes nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.dry_run import run as dry_run
from rlhf_cli.commands.dry_run import sample
from rlhf_cli.commands.dry_run.section import format_count, format_seconds
from rlhf_cli.memory.device import Device
from rlhf_cli.resources import shipped_model
from tests.commands.conftest import FAST

TORCH_FREE = """
import sys
from rlhf_cli import cli
code = cli.main(sys.argv[1:])
assert not [name for name in sys.modules if name.startswith("torch.")], "torch was imported"
sys.exit(code)
"""


LARGE = [
    "sft",
    "model.init=scratch",
    "model.architecture={model_type: llama, hidden_size: 2048, num_hidden_layers: 24, "
    "num_attention_heads: 16, intermediate_size: 5632, max_position_embeddings: 2048}",
    "model.tokenizer=tiny",
    "data=tiny",
    "device_memory=20GB",
]
"""A Llama of 1.2 billion parameters, of which only the shape is needed."""


@pytest.fixture
def dry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    """Runs a command with `--dry-run --json` in an empty folder, which stays empty."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[int, Any]:
        before = sorted(tmp_path.rglob("*"))
        code = cli.main([*argv, "--dry-run", "--json"])
        shown = capsys.readouterr()
        assert sorted(tmp_path.rglob("*")) == before
        return code, json.loads(shown.out) if shown.out else shown.err

    return run


def _manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_it_says_what_the_run_does(stage, run_of, dry):
    settings = [word for word in FAST if not word.startswith("lr=")]
    done = _manifest(run_of(stage))
    code, found = dry(stage, *settings, "data=tiny")
    assert code == 0
    report, held_out = done["data"], done["held_out_data"]
    data = found["data"]
    for mine, theirs in ((data["training"], report), (data["held_out"], held_out)):
        assert mine["rows"] == theirs["rows"]
        assert mine["tokens"] == theirs["tokens"]
        assert mine["trained_tokens"] == theirs["trained_tokens"]
        assert mine["longest_tokens"] == theirs["lengths"]["100"]
        assert mine["estimated_from_rows"] == 0
    assert found["steps"]["total"] == done["steps"]
    chosen = found["chosen"]
    assert chosen["train.micro_batch_tokens"]["value"] == done["machinery"]["micro_batch_tokens"]
    assert chosen["kernels"]["value"] == done["machinery"]["logprobs"]


def test_the_default_learning_rate_is_that_of_the_run(tmp_path, dry):
    words = ["sft", *[word for word in FAST if not word.startswith("lr=")], "data=tiny"]
    words = [*words, "train.schedule=constant", "data.eval=none"]
    assert cli.main([*words, f"output_dir={tmp_path / 'run'}", "log.preview=false"]) == 0
    _, found = dry(*words)
    lines = [line for line in _lines(tmp_path / "run") if "lr" in line]
    assert found["chosen"]["train.lr"]["value"] == lines[-1]["lr"]


def test_steps_epochs_and_checkpoints_are_counted(dry):
    """1,000 examples: 63 steps of 16 an epoch; every 50 of 126 steps and the last are saved."""
    _, found = dry(
        "sft", "model=tiny", "data=tiny", "batch_size=16", "epochs=2", "train.save_steps=50"
    )
    steps = found["steps"]
    assert (steps["per_epoch"], steps["total"], steps["checkpoints"]) == (63, 126, 3)
    trained = found["run"]["trained_parameters"]
    assert steps["disk"]["checkpoint"] == trained * (4 + 8)
    assert steps["evaluations"] == 2


def test_an_adapter_trains_and_saves_little(dry):
    _, whole = dry("sft", "model=tiny", "data=tiny")
    _, found = dry("sft", "model=tiny", "data=tiny", "adapter=lora")
    assert found["run"]["trained_parameters"] < whole["run"]["trained_parameters"] / 2
    assert found["chosen"]["train.lr"]["value"] == 10 * whole["chosen"]["train.lr"]["value"]


def test_ppo_counts_rollouts_and_names_its_phases(dry):
    words = ["ppo", "model=tiny", "data=tiny", "reward.function=tiny/judge.py:score"]
    code, found = dry(*words, "batch_size=20", "epochs=1", "sampling.max_new_tokens=8")
    assert code == 0
    assert found["data"]["training"]["examples"] == 400
    assert found["steps"]["total"] == 20
    assert {"sampling", "log-probs", "training"} <= found["time"]["phases"].keys()
    assert "rollout" in found["memory"]["phases"]


def test_online_dpo_counts_its_pairs(dry):
    """Of four responses to a prompt two are trained on, as of two."""
    words = ["dpo", "online=true", "model=tiny", "data=tiny", "max_new_tokens=8", "batch_size=20"]
    words += ["reward.function=tiny/judge.py:score", "max_steps=10"]
    code, two = dry(*words)
    _, four = dry(*words, "samples_per_prompt=4")
    assert code == 0
    assert two["steps"]["total"] == four["steps"]["total"] == 10
    assert two["chosen"]["model.reference"]["value"] == "copy"
    for name, factor in (("sampling", 2), ("log-probs", 1), ("training", 1)):
        flops = [found["time"]["phases"][name]["flops"] for found in (two, four)]
        assert flops[1] == pytest.approx(factor * flops[0])
    assert "rollout" in two["memory"]["phases"]


def test_generate_and_evaluate(run_of, dry):
    path = str(run_of("sft"))
    code, found = dry(
        "generate", path, "prompt=[Hello,Hi]", "samples_per_prompt=3", "max_new_tokens=5"
    )
    assert (code, found["data"]["responses"]) == (0, 6)
    code, found = dry("evaluate", path)
    assert code == 0
    [rows] = found["data"].values()
    assert rows["tokens"] == _manifest(Path(path))["held_out_data"]["tokens"]


def test_of_large_files_the_first_rows_are_read(tmp_path, monkeypatch, dry):
    line = json.dumps({"prompt": "Say it.", "completion": "It is said, and said again."}) + "\n"
    file = tmp_path / "many.jsonl"
    file.write_text(line * 3000)
    _, exact = dry("sft", "model=tiny", f"data={file}", "data.eval=0.1")
    monkeypatch.setattr(sample, "SAMPLE_CHARACTERS", 4000)
    code, found = dry("sft", "model=tiny", f"data={file}", "data.eval=0.1")
    rows, whole = found["data"]["training"], exact["data"]["training"]
    assert code == 0
    assert 0 < rows["estimated_from_rows"] < 300
    assert whole["estimated_from_rows"] == 0
    for name in ("examples", "tokens", "trained_tokens"):
        assert rows[name] == pytest.approx(whole[name], rel=0.02)
    held_out = found["data"]["held_out"]["examples"]
    assert held_out == pytest.approx(exact["data"]["held_out"]["examples"], rel=0.02)
    assert found["steps"]["total"] == pytest.approx(exact["steps"]["total"], rel=0.02)


def test_what_does_not_fit_ends_with_4_and_says_what_to_change(monkeypatch, dry, capsys):
    monkeypatch.setattr(dry_run, "find_device", lambda: Device("CPU", "cpu", 16 * 10**9))
    code, found = dry(*LARGE)
    assert found["run"]["device_bytes"] == 20 * 10**9
    assert code == 4
    assert not found["memory"]["fits"]
    assert found["memory"]["peak_bytes"] > found["memory"]["usable_bytes"]
    assert 1 <= len(found["memory"]["overrides"]) <= 3
    assert cli.main([*LARGE, "--dry-run"]) == 4
    shown = capsys.readouterr().out
    assert all(one["override"] in shown for one in found["memory"]["overrides"])


def test_a_sweep_has_one_dry_run_for_each_job(dry):
    code, found = dry("sft", "-m", "model=tiny", "data=tiny", "batch_size=8,16")
    assert code == 0
    assert [one["job"] for one in found] == ["train.batch_size=8", "train.batch_size=16"]
    assert [one["steps"]["total"] for one in found] == [125, 63]


def test_a_finished_run_is_complete(run_of, dry, capsys):
    out = run_of("sft")
    words = ["sft", *FAST, "data=tiny", f"output_dir={out}"]
    assert dry(*words) == (0, {"command": "sft", "complete": True})
    assert cli.main([*words, "--dry-run"]) == 0
    assert "already complete" in capsys.readouterr().out


def test_an_unfinished_run_has_fewer_steps_left(run_of, tmp_path, capsys):
    done = run_of("sft")
    out = tmp_path / "run"
    shutil.copytree(done, out)
    manifest = _manifest(out)
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    config = (out / "config.yaml").read_text().replace(str(done), str(out))
    (out / "config.yaml").write_text(config.replace("max_steps: 2", "max_steps: 8"))
    words = ["sft", *FAST, "data=tiny", "max_steps=8", f"output_dir={out}"]
    words.remove("max_steps=2")
    assert cli.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "continues from step-000002" in shown
    assert "6 steps" in shown


def test_a_model_without_weights_is_enough(tmp_path, dry):
    folder = tmp_path / "shape"
    folder.mkdir()
    for file in shipped_model().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    code, found = dry("sft", f"model={folder}", "data=tiny", "model.init=pretrained")
    assert code == 0
    assert found["run"]["parameters"] == 984_192


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["sft", "model=no-org/no-model", "data=tiny"], 1, "no-org/no-model"),
        (["sft", "--cfg"], 2, "--cfg"),
        (["sft", "model=tiny", "data=missing.jsonl"], 3, "missing.jsonl"),
        (["merge", "model=tiny", "output_dir=merged"], 2, "merge"),
        (["generate", "-m", "model=tiny", "prompt=a,b"], 2, "-m"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, code, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--dry-run"]) == code
    [line] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert part in line


def test_a_dry_run_imports_no_torch_and_leaves_no_folder(tmp_path):
    words = ["dpo", "model=tiny", "data=tiny", "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-c", TORCH_FREE, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nothing is loaded" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_short():
    assert format_count(123_456, exact=False) == "about 123,000"
    assert format_count(123_456) == "123,456"
    assert [format_seconds(s) for s in (0.01, 42, 600, 9000, 200_000)] == [
        "0.1 s",
        "42 s",
        "10 min",
        "2 h 30 min",
        "2 d 7 h",
    ]
