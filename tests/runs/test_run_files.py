"""What a fresh start finds in a folder where an earlier run left neither checkpoint nor result."""

from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.errors import ConfigError
from rlhf_cli.runs import manifest, run_files
from rlhf_cli.runs.folder import claim
from rlhf_cli.stages.sft.config import SFTConfig
from tests.stages.test_stages import sft, stop_after

LEFT = (
    "artifact.json",
    "metrics.jsonl",
    "samples.jsonl",
    "model.tmp/config.json",
    "base/model.safetensors",
    "base.tmp/model.safetensors",
    "tokenizer/tokenizer.json",
    "ranks/rank-1.log",
    "trackers/tensorboard/events",
    "checkpoints/step-000002.tmp/state.json",
    "checkpoints/step-000001.old/state.json",
    ".manifest.json.x8f_2",
)


def tree(**changes):
    return {**asdict(SFTConfig()), **changes}


def failed_run(out: Path, *left: str) -> None:
    claim(out, tree(), "sft", "auto")
    manifest.write_start(out, "sft", ["sft"], tree())
    manifest.fail(out, ValueError("x"))
    for name in left:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("of the earlier run")


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_a_fresh_start_finds_nothing_of_the_earlier_run(tmp_path):
    failed_run(tmp_path / "run", *LEFT)
    assert claim(tmp_path / "run", tree(seed=1), "pretrain", "auto") == "fresh"
    assert files(tmp_path / "run") == {"config.yaml", ".lock"}
    assert not (tmp_path / "run" / "checkpoints").exists()
    manifest.write_start(tmp_path / "run", "pretrain", [], tree(seed=1))
    assert len(manifest.read(tmp_path / "run")["starts"]) == 1


def test_files_of_the_user_stay_and_are_named(tmp_path, capsys):
    own = {"notes.txt", "plots/loss.png", "checkpoints/keep.txt"}
    failed_run(tmp_path / "run", *LEFT, *own)
    assert claim(tmp_path / "run", tree(seed=1), "sft", "auto") == "fresh"
    assert files(tmp_path / "run") == {"config.yaml", ".lock", *own}
    assert "also holds checkpoints, notes.txt, plots, which stay" in capsys.readouterr().err


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path):
    target = tmp_path / "weights"
    target.mkdir()
    (target / "model.safetensors").touch()
    failed_run(tmp_path / "run")
    (tmp_path / "run" / "base").symlink_to(target)
    claim(tmp_path / "run", tree(seed=1), "sft", "auto")
    assert not (tmp_path / "run" / "base").is_symlink()
    assert files(target) == {"model.safetensors"}


def test_an_input_of_the_new_run_is_not_removed(tmp_path):
    failed_run(tmp_path / "run", *LEFT)
    config = tree(model={"path": str(tmp_path / "run" / "base")})
    with pytest.raises(ConfigError, match=r"model\.path: got .*, which an earlier run left"):
        claim(tmp_path / "run", config, "sft", "auto")
    assert files(tmp_path / "run") > {*LEFT}


@pytest.mark.parametrize("name", ["base/model.safetensors", "metrics.jsonl"])
def test_without_a_manifest_such_files_may_be_the_users(tmp_path, name):
    claim(tmp_path / "run", tree(), "sft", "auto")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).touch()
    with pytest.raises(ConfigError, match=f"holds {name.partition('/')[0]} but no run"):
        claim(tmp_path / "run", tree(), "sft", "auto")
    assert (tmp_path / "run" / name).exists()


def test_a_run_writes_under_these_names_only(sft_run):
    known = {*run_files.FILES, *run_files.FOLDERS, run_files.MANIFEST, run_files.CHECKPOINTS}
    assert {path.name for path in sft_run.iterdir()} <= known


def test_a_retry_does_not_train_on_the_base_of_another_seed(tmp_path, monkeypatch):
    """The base of an adapter on random weights is written before the first step."""
    out, words = tmp_path / "run", ("adapter=lora", "max_steps=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert sft(out, *words, "seed=1") == 130
    first = load_file(out / "base" / "model.safetensors")
    assert sft(out, *words, "seed=2") == 0
    second = load_file(out / "base" / "model.safetensors")
    assert any(not value.equal(second[name]) for name, value in first.items())
    assert cli.main(["sft", "model=tiny", "data=tiny", f"output_dir={out}", "seed=3"]) == 2
