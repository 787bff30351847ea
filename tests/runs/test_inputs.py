"""A finished or unfinished run is this run only where the files that it read are the same."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from rlhf_cli import cli
from rlhf_cli.runs import inputs
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.sft.config import SFTConfig
from tests.stages.conftest import FAST
from tests.stages.test_stages import stop_after


def rows(path, *prompts):
    lines = [json.dumps({"prompt": prompt, "completion": "Yes."}) + "\n" for prompt in prompts]
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture
def words(tmp_path, small_model):
    """A run of one step on files that a test may change."""
    model = shutil.copytree(small_model, tmp_path / "small")
    data, held_out = tmp_path / "rows.jsonl", tmp_path / "held_out.jsonl"
    rows(data, "Tea?", "Salt?")
    rows(held_out, "Rain?")
    words = [f"model={model}", f"data={data}", f"data.eval={held_out}", "max_steps=2"]
    return ["sft", *words, f"output_dir={tmp_path / 'run'}", "train.save_steps=1", *FAST]


def change(file):
    """Other bytes of the same number."""
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


CHANGES = {
    "data.path": "rows.jsonl",
    "data.eval": "held_out.jsonl",
    "model.path": "small/model.safetensors",
}


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_changed_input_is_named(words, tmp_path, capsys, monkeypatch, interrupted):
    with monkeypatch.context() as patch:
        if interrupted:
            stop_after(patch, 1)
        assert cli.main(words) == (130 if interrupted else 0)
    for key, name in CHANGES.items():
        before = (tmp_path / name).read_bytes()
        change(tmp_path / name)
        capsys.readouterr()
        assert cli.main(words) == 2
        shown = capsys.readouterr().err
        assert f"error:   {key}: {tmp_path / name} has other content" in shown
        assert "try another output_dir" in shown
        assert shown.count("has other content") == 1
        (tmp_path / name).write_bytes(before)
    assert cli.main(words) == 0  # other times, the same content
    out = capsys.readouterr()
    assert ("continuing from" in out.err) if interrupted else ("already complete" in out.out)


def test_a_run_is_complete_before_torch_is_imported(words, tmp_path):
    assert cli.main(words) == 0
    os.utime(tmp_path / "rows.jsonl")
    program = (
        f"import sys; from rlhf_cli.cli import main; main({words}); print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.splitlines() == [f"already complete: {tmp_path / 'run'}", "False"]


def test_held_out_rows_are_compared_where_a_run_goes_on_elsewhere(
    words, tmp_path, monkeypatch, capsys
):
    """As on another machine, or of a data set on the hub: no local file was recorded."""
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert cli.main(words) == 130
    file = tmp_path / "run" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "inputs": {}}))
    rows(tmp_path / "held_out.jsonl", "Hail?")
    assert cli.main(words) == 1
    assert "cannot be continued here, because held_out_data: " in capsys.readouterr().err


def test_every_kind_of_input_is_recorded(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    rows(folder / "a.jsonl", "Tea?")
    (folder / "README.md").touch()
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompts, responses): ...\n")
    values = {
        "data": {"path": [str(folder), {"path": "org/name"}], "eval": "auto"},
        "model": {"path": "tiny"},
        "reward": {"terms": [{"function": f"{judge}:score"}]},
    }
    found = inputs.record_inputs(values, PPOConfig)
    assert {key: list(files) for key, files in found.items()} == {
        "data.path[0]": [str(folder / "a.jsonl")],
        "reward.terms[0].function": [str(judge)],
    }
    rows(folder / "b.jsonl", "Salt?")
    judge.write_text("def score(prompts, responses): 1\n")
    assert inputs.find_changes(found, values, PPOConfig) == [
        f"  data.path[0]: {folder / 'b.jsonl'} is new",
        f"  reward.terms[0].function: {judge} has other content",
    ]


def test_an_adapter_is_recorded_with_its_base(tmp_path, small_model):
    base = shutil.copytree(small_model, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    values = {"model": {"path": str(adapter)}}
    found = inputs.record_inputs(values, SFTConfig)
    change(base / "model.safetensors")
    assert inputs.find_changes(found, values, SFTConfig) == [
        f"  model.path: {base / 'model.safetensors'} has other content"
    ]


def test_a_run_inside_its_data_folder_is_found_complete(words, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    rows(folder / "a.jsonl", "Tea?", "Salt?")
    given = [word for word in words if not word.startswith(("data=", "output_dir="))]
    given += [f"data={folder}", f"output_dir={folder / 'run'}"]
    assert cli.main(given) == 0
    assert cli.main(given) == 0
    assert "already complete" in capsys.readouterr().out
    recorded = json.loads((folder / "run" / "manifest.json").read_text())["inputs"]["data.path"]
    assert list(recorded) == [str(folder / "a.jsonl")]


def recorded(**data):
    return list(inputs.record_inputs({"data": data}, SFTConfig).get("data.path", {}))


def test_only_the_files_that_are_read_from_a_folder_are_recorded(tmp_path):
    for name in ("a.jsonl", "below/b.jsonl", "below/more/c.jsonl", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        rows(tmp_path / name, "Tea?")
    assert recorded(path=str(tmp_path)) == [str(tmp_path / "a.jsonl")]
    below = [str(tmp_path / "below" / "b.jsonl")]
    assert recorded(path=str(tmp_path), data_dir="below") == below
    sources = [{"path": str(tmp_path), "data_dir": "below"}]
    assert (
        list(inputs.record_inputs({"data": {"path": sources}}, SFTConfig)["data.path[0].path"])
        == below
    )


@pytest.mark.parametrize(
    "files",
    [
        ("data/train.parquet",),
        ("dataset_dict.json", "train/data-0.arrow", "train/state.json"),
        ("state.json", "dataset_info.json", "data-0.arrow"),
    ],
)
def test_a_folder_that_is_read_as_a_whole_is_recorded_without_the_runs_in_it(tmp_path, files):
    run = ("run/config.yaml", "run/manifest.json", "run/log.txt", "run/model/tokenizer.json")
    begun = ("begun/config.yaml", "begun/.lock", "begun/log.txt")
    for name in (*files, *run, *begun, ".cache/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    read = {str(tmp_path / name) for name in files if "dataset_" not in name}
    assert set(recorded(path=str(tmp_path))) == read


def test_notes_beside_a_model_are_no_input(tmp_path):
    for name in ("config.json", "model.safetensors", "merges.txt", "vocab.txt", "notes.txt"):
        (tmp_path / name).write_text("{}")
    found = inputs.record_inputs({"model": {"path": str(tmp_path)}}, SFTConfig)["model.path"]
    assert {os.path.basename(path) for path in found} == {
        "config.json",
        "model.safetensors",
        "merges.txt",
        "vocab.txt",
    }


def test_a_file_that_an_older_version_recorded_without_reading_it_is_not_gone(tmp_path):
    for name in ("a.jsonl", "other/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows(tmp_path / name, "Tea?")
    values = {"data": {"path": str(tmp_path)}}
    found = inputs.record_inputs(values, SFTConfig)
    found["data.path"][str(tmp_path / "other" / "b.jsonl")] = {}
    assert inputs.find_changes(found, values, SFTConfig) == []
    (tmp_path / "other" / "b.jsonl").unlink()
    gone = f"  data.path: {tmp_path / 'other' / 'b.jsonl'} is gone"
    assert inputs.find_changes(found, values, SFTConfig) == [gone]
