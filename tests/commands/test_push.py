"""`rlhf push`: a result with its model card, uploaded to a server on this machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rlhf_cli import cli
from rlhf_cli.commands.push.facts import cached_license, without_local_paths
from rlhf_cli.commands.push.upload import hub_files
from tests.hub import FIRST, Hub, HubServer

# huggingface_hub sends a large file by a keyword that httpx advises against
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server = HubServer(monkeypatch)
    yield server
    server.close()


def push(*words: str) -> None:
    assert cli.main(["push", *words]) == 0


def card_of(hub: HubServer, hub_id: str = "me/model") -> ModelCard:
    return ModelCard(hub.files[hub_id]["README.md"].decode(), ignore_metadata_errors=False)


def test_the_model_folder_is_uploaded_with_a_card(hub, run_of, capsys):
    run = run_of("sft")
    push(str(run), "to=me/model", "license=mit")
    names = {file.name for file in (run / "model").iterdir()}
    assert {*hub.files["me/model"]} == {*names, "README.md", "artifact.json"}
    for name in names:
        assert hub.files["me/model"][name] == (run / "model" / name).read_bytes()
    assert hub.private == {"me/model": True}
    assert hub.tokens == {"Bearer hf_secret"}
    assert f"uploaded: {hub.address}/me/model" in capsys.readouterr().err
    data = card_of(hub).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "mit",
        "transformers",
        "text-generation",
    )
    assert data.tags == ["rlhf", "sft"]


def test_the_card_tells_of_data_metrics_recipe_and_versions(hub, run_of):
    push(str(run_of("sft")), "to=me/model")
    text = card_of(hub).content
    manifest = json.loads((run_of("sft") / "manifest.json").read_text())
    assert "| training | sft_train.jsonl | chat | 1,000 | 1,000 | none |" in text
    low, high = manifest["intervals"]["after"]["loss"]
    assert f" | {manifest['after']['loss']:.4g} [{low:.4g}, {high:.4g}] |" in text
    assert "rlhf sft model=tiny" in text
    assert f"transformers {manifest['versions']['transformers']}" in text
    assert "\nstage: sft\n" in text
    assert 'pipeline("text-generation", model="me/model")' in text


def test_neither_local_paths_nor_tokens_leave_the_machine(hub, run_of):
    run = run_of("sft")
    push(str(run), "to=me/model")
    for name, content in hub.files["me/model"].items():
        if name.endswith((".json", ".md", ".jinja")):
            assert str(run.parent).encode() not in content
            assert b"hf_secret" not in content


def test_code_of_the_card_runs_with_the_uploaded_files(hub, run_of, tmp_path, capsys):
    """The hub id in the snippet is replaced by a folder with what was uploaded."""
    for stage, said in (("sft", ""), ("reward", "")):
        push(str(run_of(stage)), f"to=me/{stage}")
        folder = tmp_path / stage
        folder.mkdir()
        for name, content in hub.files[f"me/{stage}"].items():
            (folder / name).write_bytes(content)
        code = re.search(r"```python\n(.*?)```", card_of(hub, f"me/{stage}").content, re.DOTALL)
        capsys.readouterr()
        exec(code[1].replace(f"me/{stage}", str(folder)), {})
        said = capsys.readouterr().out.strip()
        assert said or stage == "sft"
        if stage == "reward":
            assert isinstance(float(said), float)
            chat = [{"role": "user", "content": "Hello"}]
            Path("rows.jsonl").write_text(json.dumps({"prompt": chat, "completion": "Hi!"}))
            words = ["data=rows.jsonl", "precision=fp32"]
            assert cli.main(["score", str(folder), *words]) == 0
            score = json.loads(capsys.readouterr().out)["score"]
            assert float(said) == pytest.approx(score, abs=1e-2)  # in the saved dtype


def test_a_reward_model_has_intervals_and_another_task(hub, run_of):
    run = run_of("reward")
    push(str(run), "to=me/model", "private=false")
    assert hub.private == {"me/model": False}
    card = card_of(hub)
    assert card.data.pipeline_tag == "text-classification"
    assert re.search(r"\| accuracy \| 0\.\d+ \[0\.\d+, 0\.\d+\] \|", card.content)


def test_results_of_evaluate_stand_in_the_card(hub, run_of):
    run = str(run_of("reward"))
    assert cli.main(["evaluate", run, "output=results.json", "precision=fp32"]) == 0
    push(run, "to=me/model", "results=results.json")
    results = json.loads(Path("results.json").read_text())["results"]
    [margin] = [one for one in results if one["metric"] == "margin"]
    shown = f"{margin['value']:.4g} [{margin['low']:.4g}, {margin['high']:.4g}]"
    assert f"| reward | margin | {shown} | 100 |" in card_of(hub).content


def test_an_adapter_names_its_base_or_is_refused(hub, run_of, tmp_path, capsys):
    run = run_of("sft", "adapter=lora")
    assert cli.main(["push", str(run), "to=me/model"]) == 2
    told = capsys.readouterr().err
    assert "an adapter on a base in a local folder" in told
    assert f"Try rlhf merge {run} output_dir={run}-merged" in told
    assert hub.files == {}
    copy = tmp_path / "lora"
    shutil.copytree(run, copy)
    file = copy / "model" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    push(str(copy), "to=me/model")
    data = card_of(hub).data
    assert (data.base_model, data.library_name) == ("org/base", "peft")


def test_a_card_on_the_hub_is_kept_unless_it_is_to_be_replaced(hub, run_of, capsys):
    hub.files["me/model"] = {"README.md": b"mine"}
    push(str(run_of("sft")), "to=me/model")
    assert hub.files["me/model"]["README.md"] == b"mine"
    assert "config.json" in hub.files["me/model"]
    assert "card=replace" in capsys.readouterr().err
    push(str(run_of("sft")), "to=me/model", "card=replace")
    assert hub.files["me/model"]["README.md"] != b"mine"


def test_a_card_in_the_folder_is_uploaded_as_it_is(hub, run_of, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run_of("sft"), copy)
    (copy / "model" / "README.md").write_text("my own words")
    push(str(copy), "to=me/model")
    assert hub.files["me/model"]["README.md"] == b"my own words"


def test_a_dry_run_shows_files_and_card_and_sends_nothing(hub, run_of, capsys):
    push(str(run_of("sft")), "to=me/model", "--dry-run")
    out = capsys.readouterr().out
    assert out.startswith("to me/model (private if it is new): ")
    assert re.search(r"^model\.safetensors +[\d,]+ bytes$", out, re.MULTILINE)
    assert "library_name: transformers" in out
    push(str(run_of("sft")), "output=card.md")
    assert Path("card.md").read_text().startswith("---\nlibrary_name: transformers\n")
    assert hub.files == {}


def test_the_licence_is_that_of_the_bases_card(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\n# Base\n")
    Hub(tmp_path / "cache", monkeypatch).publish("org/base", folder, FIRST)
    assert cached_license("org/base") == "apache-2.0"
    assert cached_license("org/other") == ""


def test_paths_are_cut_and_addresses_are_not():
    text = "path: /home/ann/runs/sft and ~/x/y.jsonl, see https://a.org/b/c or org/name, 3/4"
    cut = "path: sft and y.jsonl, see https://a.org/b/c or org/name, 3/4"
    assert without_local_paths(text) == cut


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "to: none given"),
        (["to=model"], 2, "to: got model; need a hub id"),
        (["to=me/model", "private=yes"], 2, "private: got yes; need one of true, false"),
        (["to=me/model", "lisense=mit"], 2, "lisense: unknown argument of push"),
        (["to=me/model", "results=none.json"], 3, "results: none.json holds no results"),
    ],
)
def test_wrong_arguments_are_one_line(words, code, told, hub, run_of, capsys):
    assert cli.main(["push", str(run_of("sft")), *words]) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {told}")
    assert hub.files == {}


def test_no_token_no_connection_no_right_are_one_line(hub, run_of, monkeypatch, capsys):
    words = ["push", str(run_of("sft")), "to=me/model", "license=mit"]
    hub.refuses = True
    assert cli.main(words) == 1
    assert "to: me/model could not be uploaded (" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(words) == 1
    assert "offline mode is enabled" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert cli.main(words) == 1
    assert "to: no token for the hub is here" in capsys.readouterr().err


def test_an_unfinished_run_is_refused(hub, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"status": "running"}')
    assert cli.main(["push", str(run), "to=me/model"]) == 2
    assert "not finished (status: running)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("{path:/home/ann/a.jsonl,weight:2}", "{path:a.jsonl,weight:2}"),
        ("file:///home/ann/x.jsonl", "file://x.jsonl"),
        ("../../clients/acme/x.jsonl", "x.jsonl"),
        ("~ann/rows.jsonl", "rows.jsonl"),
        ("runs/sft", "runs/sft"),
        ("https://huggingface.co/me/model", "https://huggingface.co/me/model"),
    ],
)
def test_paths_of_this_machine_are_cut(text, published):
    assert without_local_paths(text) == published


def test_tokens_in_a_command_are_masked():
    token = "hf_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z"
    assert token not in without_local_paths(f"rlhf sft token={token}")


def test_files_of_hidden_folders_stay_here(tmp_path):
    (tmp_path / ".git" / "logs").mkdir(parents=True)
    (tmp_path / ".git" / "logs" / "HEAD").touch()
    (tmp_path / "config.json").touch()
    assert [*hub_files(tmp_path)] == ["config.json"]
