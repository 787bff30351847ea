"""Recipes and command lines that were written for an older version."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.config.check import check_override
from rlhf_cli.config.deprecations import RENAMED_KEYS, RENAMED_VALUES, current_name
from rlhf_cli.config.schema import groups, options
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve
from rlhf_cli.runs import lock
from rlhf_cli.runs.folder import claim
from rlhf_cli.stages.ppo.config import PPOConfig

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def _old_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "train.steps": ("train.max_steps", "0.3"),
        "lora": ("adapter", "0.4"),
        "data.fields": ("data.columns", "0.5"),
    }
    for old, new in names.items():
        monkeypatch.setitem(RENAMED_KEYS, old, new)


REAL = dict(RENAMED_KEYS)


def test_new_names_are_keys_and_old_names_are_not():
    known = {key for c in COMMANDS.values() for key in (*options(c.config), *groups(c.config))}
    assert {new for new, _ in REAL.values()} <= known
    assert not REAL.keys() & known


@pytest.mark.parametrize(
    ("command", "words", "key", "value"),
    [
        ("dpo", ["model.reference=copy", "sync_steps=2", "sync_share=0.5"], "sync_alpha", 0.5),
        ("sft", ["train.eval_steps=5", "train.early_stop=2"], "early_stop_patience", 2),
    ],
)
def test_shipped_old_names_still_work(command, words, key, value, capsys):
    config = resolve(COMMANDS[command], parse(COMMANDS[command], [*TINY, *words])).config
    assert getattr(config if command == "dpo" else config.train, key) == value
    [line] = notes(capsys)
    assert key in line


def notes(capsys) -> list[str]:
    return [line.removeprefix("note: ") for line in capsys.readouterr().err.splitlines()]


def composed(*words: str) -> Any:
    return resolve(COMMANDS["sft"], parse(COMMANDS["sft"], list(words))).config


def test_an_old_key_of_a_recipe_still_works_and_is_noted_with_its_line(capsys):
    Path("sft.yaml").write_text("stage: sft\nmodel: tiny\ntrain:\n  steps: 5\nlora: dora\n")
    config = composed("config=sft.yaml", "data=tiny")
    assert (config.train.max_steps, config.adapter.kind) == (5, "dora")
    assert notes(capsys) == [
        "train.steps is called train.max_steps since 0.3  (sft.yaml:4)",
        "lora is called adapter since 0.4  (sft.yaml:5)",
    ]


def test_keys_below_an_old_key_keep_their_values_and_lines(capsys):
    Path("sft.yaml").write_text("lora: {kind: lora, rank: 0}\ntrain.steps: -1\n")
    with pytest.raises(ConfigError) as refused:
        composed("config=sft.yaml", *TINY)
    assert [
        line.partition(":")[0] + line[line.rindex("  (") :]
        for line in str(refused.value).split("\n")
    ] == [
        "adapter.rank  (sft.yaml:1)",
        "train.max_steps  (sft.yaml:2)",
    ]


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("train.steps=5", "train.max_steps", 5),
        ("lora=dora", "adapter.kind", "dora"),
        ("data.fields.prompt=q", "data.columns", {"prompt": "q"}),
    ],
)
def test_an_old_key_of_the_command_line_still_works_and_is_noted(word, key, value, capsys):
    config = composed(*TINY, word)
    group, _, name = key.partition(".")
    assert getattr(getattr(config, group), name) == value
    [line] = notes(capsys)
    assert word.partition("=")[0] in line
    assert key.removesuffix(".kind") in line
    assert line.endswith("(command line)")


def test_an_old_key_beside_its_new_name_is_refused():
    Path("sft.yaml").write_text("train: {steps: 5, max_steps: 6}\n")
    with pytest.raises(ConfigError, match=r"^train.steps: given beside train.max_steps.*yaml:1"):
        composed("config=sft.yaml", *TINY)
    with pytest.raises(ConfigError, match=r"train.max_steps is set already by train.steps=5"):
        composed(*TINY, "train.steps=5", "train.max_steps=6")


def test_an_old_key_of_another_command_is_refused_by_its_name_of_today(capsys):
    assert cli.main(["generate", "tiny", "prompt=x", "train.steps=5", "--cfg"]) == 2
    assert "error: train.max_steps: a key of pretrain, sft," in capsys.readouterr().err


# Values


PPO = ("ppo", "model=tiny", "data=tiny", "reward.length_penalty=1")


def test_new_values_are_accepted_and_old_values_are_not():
    for (key, old), (new, _) in RENAMED_VALUES.items():
        having = [c for c in COMMANDS.values() if key in options(c.config)]
        assert having
        for command in having:
            assert check_override(command, f"{key}={new}") is None
            assert check_override(command, f"{key}={old}") is not None


@pytest.mark.parametrize("source", ["command line", "recipe", "run"])
def test_an_old_value_still_works_and_is_noted(source, capsys):
    words, where = ["value=trunk"], "(command line)"
    if source != "command line":
        name = "ppo.yaml" if source == "recipe" else "run/config.yaml"
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("stage: ppo\nvalue: trunk\n")
        words, where = [f"config={name}"], f"({name}:2)"
    assert cli.main([*PPO, *words, "--cfg"]) == 0
    found = capsys.readouterr()
    assert "\nvalue: shared\n" in found.out
    assert found.err == f"note: value=trunk is called value=shared since 0.2  {where}\n"


def test_a_run_of_an_older_version_is_continued():
    tree = asdict(PPOConfig())
    claim(Path("run"), tree, "ppo", "auto")
    lock.release(Path("run"))
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("value: shared", "value: trunk"))
    Path("run/checkpoints/step-000001").mkdir(parents=True)
    assert claim(Path("run"), tree, "ppo", "auto") == "continue"
    lock.release(Path("run"))


def test_a_sweep_notes_an_old_name_once(capsys):
    Path("ppo.yaml").write_text("value: trunk\nsweep: {seed: [0, 1, 2]}\n")
    assert cli.main([*PPO, "config=ppo.yaml", "-m", "--cfg"]) == 0
    found = capsys.readouterr()
    assert found.out.count("value: shared") == 3
    assert found.err == "note: value=trunk is called value=shared since 0.2  (ppo.yaml:1)\n"


def test_an_old_value_among_those_of_a_sweep_is_read_as_the_new_one():
    line = parse(COMMANDS["ppo"], ["-m", "value=trunk,adapter"])
    assert [override.text for override in line.overrides] == ["shared,adapter"]


def test_a_key_that_only_begins_alike_is_not_an_old_one():
    assert current_name("train.steps") == ("train.max_steps", "0.3")
    assert current_name("train.stepsize") is None
    assert current_name("loras.rank") is None
    assert current_name("") is None
