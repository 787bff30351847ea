"""Models of the hub: one commit for a run and all that follows it, adapters as in a folder."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.resolve import resolve_model
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.resources import shipped_model
from rlhf_cli.runs import hub as commits
from rlhf_cli.runs.hub import cached_snapshot
from tests.helpers import tiny_llama
from tests.hub import FIRST, SECOND, Hub

FAST = ["max_steps=2", "batch_size=2", "train.precision=fp32", "data=tiny", "max_length=64"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commits.set_commits({})
    yield Hub(tmp_path / "cache", monkeypatch)
    commits.set_commits({})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of other weights and one tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    folders = [tmp_path_factory.mktemp("models") / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        tiny_llama(seed, vocab_size=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def adapter(models, tmp_path_factory):
    """The result of a LoRA run on a base in a folder."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    assert cli.main(["sft", f"model={models[0]}", "adapter=lora", f"output_dir={out}", *FAST]) == 0
    return out / "model"


def run(*argv):
    assert cli.main(list(argv)) == 0


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def told(capsys, *argv):
    code = cli.main(list(argv))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return code, "\n".join(lines)


def test_a_run_records_the_commit_of_each_id(hub, models, tmp_path):
    hub.publish("org/model", models[0], FIRST, "v1")
    hub.publish("org/model", models[1], SECOND)
    run("dpo", "model=org/model", "model.revision=v1", "model.reference=org/model",
        "output_dir=dpo", *FAST)  # fmt: skip
    assert read(tmp_path / "dpo/manifest.json")["hub"] == {
        "org/model@v1": FIRST,
        "org/model@main": SECOND,
    }
    assert read(tmp_path / "dpo/artifact.json")["commits"] == {
        "model.path": f"org/model@{FIRST}",
        "model.reference": f"org/model@{SECOND}",
    }


def test_later_stages_load_the_base_that_the_adapter_was_trained_on(hub, models, tmp_path):
    first = hub.publish("org/model", models[0], FIRST)
    run("sft", "model=org/model", "adapter=lora", "lr=1e-2", "output_dir=sft", *FAST)
    hub.publish("org/model", models[1], SECOND)
    facts = read(tmp_path / "sft/artifact.json")
    assert (facts["base"], facts["base_commit"]) == ("org/model", FIRST)
    saved = read(tmp_path / "sft/model/adapter_config.json")
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("org/model", FIRST)

    run("merge", "sft", "output_dir=merged", "dtype=fp32")
    merged = load_file(tmp_path / "merged/model.safetensors")["model.norm.weight"]
    assert torch.equal(merged, load_file(first / "model.safetensors")["model.norm.weight"])
    same = load_file(tmp_path / "merged/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(same, load_file(first / "model.safetensors")["model.embed_tokens.weight"])

    run("dpo", "model=sft", "output_dir=dpo", *FAST)
    assert read(tmp_path / "dpo/artifact.json")["base_commit"] == FIRST
    assert read(tmp_path / "dpo/manifest.json")["hub"] == {f"org/model@{FIRST}": FIRST}
    commits.set_commits({})
    assert resolve_model(ModelConfig(path="sft")).commit == FIRST


def test_a_run_that_goes_on_keeps_the_commit_it_began_with(hub, models, tmp_path):
    hub.publish("org/model", models[0], FIRST)
    words = ["sft", "model=org/model", "output_dir=sft", "train.save_steps=1", *FAST]
    run(*words)
    hub.publish("org/model", models[1], SECOND)
    manifest = read(tmp_path / "sft/manifest.json")
    (tmp_path / "sft/manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    shutil.rmtree(tmp_path / "sft/checkpoints/step-000002")
    run(*words)
    assert read(tmp_path / "sft/manifest.json")["hub"] == {"org/model@main": FIRST}
    shutil.rmtree(tmp_path / "sft")
    run(*words)
    assert read(tmp_path / "sft/manifest.json")["hub"] == {"org/model@main": SECOND}


def test_the_revision_is_that_of_the_model_alone(hub, models, adapter, tmp_path):
    base = hub.publish("org/base", models[0], FIRST)
    hub.publish("org/base", models[1], SECOND, "better")
    (hub.cache / "models--org--base/refs/main").write_text(FIRST)
    shutil.copytree(adapter, tmp_path / "adapter")
    config = read(adapter / "adapter_config.json") | {"base_model_name_or_path": "org/base"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    hub.publish("org/adapter", tmp_path / "adapter", SECOND, "v2")
    source = resolve_model(ModelConfig(path="org/adapter", revision="v2"))
    assert (source.folder, source.commit) == (str(base), FIRST)
    source = resolve_model(ModelConfig(path="org/adapter", revision="v2", base_revision="better"))
    assert source.commit == SECOND
    (tmp_path / "adapter/adapter_config.json").write_text(
        json.dumps({**config, "revision": "better"})
    )
    hub.publish("org/other", tmp_path / "adapter", SECOND)
    assert resolve_model(ModelConfig(path="org/other")).commit == SECOND


def test_the_tokenizer_has_a_revision_of_its_own(hub, models, tmp_path):
    hub.publish("org/tokenizer", models[0], FIRST, "v1")
    changed = AutoTokenizer.from_pretrained(models[0])
    changed.add_tokens(["one more"])
    changed.save_pretrained(tmp_path / "changed")
    hub.publish("org/tokenizer", tmp_path / "changed", SECOND)
    sizes = [
        len(load_tokenizer(ModelConfig(path="x", revision="y", tokenizer="org/tokenizer", **own)))
        for own in ({}, {"tokenizer_revision": "v1"})
    ]
    assert sizes == [len(changed), len(changed) - 1]


def test_a_revision_that_is_not_there_is_one_line(hub, models, capsys):
    hub.publish("org/model", models[0], FIRST)
    code, line = told(capsys, "generate", "org/model", "model.revision=v9", "prompt=a")
    assert code == 1
    assert line.startswith("error: model.path: cannot load org/model at revision v9 (")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["model=here", "model.revision=v1"], "model.revision: got v1 with model.path="),
        (["model=org/m", "model.tokenizer_revision=v1"],
         "model.tokenizer_revision: got v1 without model.tokenizer; need the hub id"),
        (["model=here", "model.base_revision=v1"], "model.base_revision: got v1, but "),
        (["model=org/m", "model.reference_revision=v1"],
         "model.reference_revision: got v1 without model.reference"),
        (["model=org/m", "data.revision=v1"], "data.revision: got v1, but neither data.path"),
    ],
)  # fmt: skip
def test_a_revision_of_what_has_none_is_refused(hub, models, tmp_path, capsys, words, line):
    (tmp_path / "here").symlink_to(models[0])
    code, shown = told(capsys, "dpo", *words, *FAST)
    assert (code, shown.count("error: ")) == (2, 1), shown
    assert shown.startswith(f"error: {line}")


@pytest.fixture
def on_hub(hub, adapter):
    """The adapter on the hub; its base is a folder."""
    hub.publish("org/adapter", adapter, FIRST)
    return "org/adapter"


def test_an_adapter_of_the_hub_is_one_everywhere(on_hub, models, tmp_path, capsys):
    run("sft", f"model={on_hub}", "output_dir=sft", *FAST)  # train.lr=auto
    lines = [json.loads(line) for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    assert max(line.get("lr", 0) for line in lines) == pytest.approx(2e-4, rel=0.5)
    run("sft", f"model={on_hub}", "adapter.start=stack", "adapter=lora", "output_dir=two", *FAST)
    assert read(tmp_path / "two/artifact.json")["adapters"] == ["model/stacked_0", "model"]
    code, line = told(capsys, "sft", f"model={on_hub}", "model.freeze=[norm]", *FAST)
    assert (code, "model.freeze: got norm beside an adapter" in line) == (2, True), line


def fetched_late(monkeypatch, hub, hub_id, folder):
    """Let the hub hold a model of which nothing is in the cache before it is fetched."""

    def download(asked, **options):
        assert asked == hub_id
        there = hub.cache / f"models--{hub_id.replace('/', '--')}/snapshots/{FIRST}"
        return str(there if there.is_dir() else hub.publish(hub_id, folder, FIRST))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_what_the_check_could_not_know_is_refused_once_it_is_fetched(
    hub, models, adapter, monkeypatch, capsys
):
    fetched_late(monkeypatch, hub, "org/whole", models[0])
    code, line = told(capsys, "sft", "model=org/whole", "adapter.start=merge", *FAST)
    text = "adapter.start: got merge, but model.path=org/whole has no adapter"
    assert (code, text in line) == (2, True), line
    assert cached_snapshot("org/whole") is not None  # found out by fetching it
    fetched_late(monkeypatch, hub, "org/adapter", adapter)
    code, line = told(capsys, "sft", "model=org/adapter", "model.freeze=[norm]", *FAST)
    assert (code, "model.freeze: got norm beside an adapter" in line) == (2, True), line


def test_weights_that_are_no_safetensors_are_one_line(hub, models, tmp_path, capsys):
    shutil.copytree(models[0], tmp_path / "pickle")
    (tmp_path / "pickle/model.safetensors").rename(tmp_path / "pickle/pytorch_model.bin")
    hub.publish("org/pickle", tmp_path / "pickle", FIRST)
    code, line = told(capsys, "generate", "org/pickle", "prompt=a")
    assert (code, f"no model.safetensors at commit {FIRST}" in line) == (1, True), line


def test_evaluate_compares_with_the_commit_that_a_run_started_from(hub, models, tmp_path):
    hub.publish("org/model", models[0], FIRST)
    run("dpo", "model=org/model", "lr=1e-2", "output_dir=dpo", *FAST)
    words = ["evaluate", "dpo", "precision=fp32", "output=out.json"]
    found = []
    for commit in (None, SECOND):
        if commit:
            hub.publish("org/model", models[1], commit)
        run(*words)
        found.append(read(tmp_path / "out.json")["results"])
        (tmp_path / "out.json").unlink()
    assert found[0] == found[1]
    assert cached_snapshot("org/model").name == FIRST  # until the next command
    commits.set_commits({})
    assert cached_snapshot("org/model").name == SECOND
