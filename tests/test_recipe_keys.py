"""Keys that only recipes have: `base`, `vars`, `sweep`; and presets of the user's own."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.config.help import page
from rlhf_cli.config.provenance import trace
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import Resolved, resolve
from rlhf_cli.sweep.run import plan_sweep

TINY = ("model=tiny", "data=tiny")
SFT = COMMANDS["sft"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_CONFIGS", raising=False)


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def compose(*words: str) -> Resolved:
    return resolve(SFT, parse(SFT, list(words)))


def config(*words: str) -> Any:
    return compose(*words).config


def origins(*words: str) -> dict[str, str]:
    found = compose(*words)
    return trace(found.public_tree, found.layers, found.overrides)


def refused(*words: str) -> list[str]:
    """The lines of an error, which has exit code 2 and no traceback."""
    with pytest.raises(ConfigError) as error:
        compose(*words)
    assert error.value.exit_code == 2
    return str(error.value).split("\n")


# Short names


def test_a_short_name_in_a_recipe_is_the_key():
    write("r.yaml", "lr: 3e-5\nepochs: 2\nmax_length: 64\n")
    found = config("config=r.yaml", *TINY)
    assert (found.train.lr, found.train.epochs, found.data.max_length) == (3e-5, 2, 64)
    assert origins("config=r.yaml", *TINY)["train.epochs"] == "r.yaml:2"
    assert config("config=r.yaml", "epochs=3", *TINY).train.epochs == 3


def test_a_short_name_is_checked_with_its_line():
    write("r.yaml", "lr: -1\nepochs: 2\ntrain: {epochs: 3}\n")
    given_twice, out_of_range = refused("config=r.yaml", *TINY)
    assert given_twice.startswith("epochs: given beside train.epochs")
    assert given_twice.endswith("(r.yaml:2)")
    assert out_of_range.startswith("train.lr: got -1; need a number > 0")
    assert out_of_range.endswith("(r.yaml:1)")


def test_a_key_of_a_commands_own_is_no_short_name():
    """`batch_size` is an option of `rlhf generate` itself."""
    generate = COMMANDS["generate"]
    write("r.yaml", "batch_size: 3\nmax_new_tokens: 5\n")
    line = parse(generate, ["tiny", "prompt=x", "config=r.yaml"])
    found = resolve(generate, line).config
    assert (found.batch_size, found.sampling.max_new_tokens) == (3, 5)


# base


def test_a_recipe_starts_from_a_shipped_one():
    write("r.yaml", "base: tiny/sft\ntrain: {epochs: 7}\n")
    base, found = config("config=tiny/sft"), config("config=r.yaml")
    assert (base.train.epochs, found.train.epochs) == (base.train.epochs, 7)
    assert (found.model.path, found.train.batch_size) == (base.model.path, base.train.batch_size)


def test_base_then_recipe_then_command_line():
    write("exp/a.yaml", "base: ../b.yaml\nepochs: 2\n")
    write("b.yaml", "base: exp/c.yaml\nepochs: 3\nmax_steps: 4\n")
    write("exp/c.yaml", "epochs: 5\nmax_steps: 6\nbatch_size: 7\nseed: 8\n")
    found = config("config=exp/a.yaml", "seed=9", *TINY)
    assert (found.train.epochs, found.train.max_steps, found.train.batch_size) == (2, 4, 7)
    assert found.seed == 9
    where = origins("config=exp/a.yaml", "seed=9", *TINY)
    assert [where[f"train.{key}"] for key in ("epochs", "max_steps", "batch_size")] == [
        "exp/a.yaml:2",
        "b.yaml:3",
        "exp/c.yaml:3",
    ]


def test_a_path_in_a_base_is_relative_to_that_file():
    write("exp/a.yaml", "base: ../b.yaml\n")
    write("b.yaml", "data: {path: ./rows.jsonl}\n")
    write("rows.jsonl", "")
    assert config("config=exp/a.yaml", "model=tiny").data.path == str(Path("rows.jsonl").resolve())


def test_a_preset_of_the_recipe_takes_the_place_of_that_of_its_base():
    write("b.yaml", "adapter: lora\n")
    write("a.yaml", "base: b.yaml\nadapter: dora\n")
    assert config("config=a.yaml", *TINY).adapter.kind == "dora"


def test_recipes_that_start_from_each_other_are_refused():
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "\nbase: ./c.yaml\n")
    write("c.yaml", "base: a.yaml\n")
    [line] = refused("config=a.yaml", *TINY)
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in line
    assert line.endswith("(c.yaml:1)")


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("tiny/stf", "Try base: tiny/sft"),
        ("othr.yaml", "Try base: other.yaml"),
        ("zzz", "Try base"),
    ],
)
def test_a_base_that_is_not_there_is_refused(value, advice):
    write("exp/other.yaml", "seed: 1\n")
    write("exp/a.yaml", f"seed: 1\nbase: {value}\n")
    [line] = refused("config=exp/a.yaml", *TINY)
    assert line.startswith(f"base: got {value}; ")
    assert advice in line
    assert line.endswith("(exp/a.yaml:2)")


@pytest.mark.parametrize("value", ["[a, b]", "{a: b}", "null"])
def test_a_base_is_one_name(value):
    write("a.yaml", f"base: {value}\n")
    [line] = refused("config=a.yaml", *TINY)
    assert line.startswith("base: got ")
    assert line.endswith("(a.yaml:1)")


def test_a_base_for_another_stage_is_refused():
    write("a.yaml", "base: tiny/dpo\n")
    assert refused("config=a.yaml", *TINY)[0].startswith("stage: tiny/dpo.yaml is for dpo")


# vars

VARS = "vars: {size: 64, name: x}\nmax_length: ${vars.size}\noutput_dir: runs/${vars.name}\n"


def test_variables_stand_for_their_values():
    write("r.yaml", VARS)
    found = compose("config=r.yaml", *TINY)
    assert (found.config.data.max_length, found.config.output_dir) == (64, "runs/x")
    assert "vars" not in found.tree


def test_the_command_line_sets_a_variable():
    write("r.yaml", VARS)
    found = config("config=r.yaml", "vars.size=32", "vars.name=y/z", *TINY)
    assert (found.data.max_length, found.output_dir) == (32, "runs/y/z")


def test_a_later_recipe_sets_a_variable_of_its_base():
    write("b.yaml", VARS)
    write("a.yaml", "base: b.yaml\nvars.size: 16\n")
    assert config("config=a.yaml", *TINY).data.max_length == 16


def test_variables_of_variables_and_those_that_the_command_line_uses():
    write("r.yaml", "vars: {root: a, out: '${vars.root}/b', unused: c}\noutput_dir: ${vars.out}\n")
    found = config("config=r.yaml", "push=${vars.unused}".replace("push", "data.name"), *TINY)
    assert (found.output_dir, found.data.name) == ("a/b", "c")


def test_a_value_of_a_variable_is_checked_where_it_is_used():
    write("r.yaml", "vars: {size: x}\nmax_length: ${vars.size}\n")
    [line] = refused("config=r.yaml", *TINY)
    assert line.startswith("data.max_length: got x; need a whole number")
    assert line.endswith("(r.yaml:2)")


@pytest.mark.parametrize(
    ("text", "words", "start", "end"),
    [
        ("vars: {size: 1}\nseed: 2", [], "vars.size: not used", "(r.yaml:1)"),
        ("seed: ${vars.sed}", [], "seed: got ${vars.sed}; no recipe has variables", "(r.yaml:1)"),
        ("vars: {seed: 1}\n\nseed: ${vars.sed}\nlog.preview: ${vars.seed}", [],
         "seed: got ${vars.sed}; no such variable", "did you mean seed?  (r.yaml:3)"),
        ("vars: {seed: 1}\nseed: ${vars.seed}", ["vars.sed=2"],
         "vars.sed: no such variable", "did you mean seed?  (command line)"),
        ("vars: {seed: 1}\nseed: ${vars.seed}", ["vars=2"], "vars: no such variable",
         "(command line)"),
        ("vars: {seed: 1}\nseed: ${vars.seed}", ["vars.seed=2,3"], "vars.seed: got 2,3; need one",
         "(command line)"),
        ("vars: 3\nseed: 1", [], "vars: got no names", "(r.yaml:1)"),
        ("vars: {a-b: 3}\nseed: 1", [], "vars.a-b: need a name", "(r.yaml:1)"),
    ],
)  # fmt: skip
def test_a_variable_that_is_undefined_or_unused_is_refused(text, words, start, end):
    write("r.yaml", text)
    lines = refused("config=r.yaml", *words, *TINY)
    assert lines[0].startswith(start)
    assert lines[0].endswith(end)


def test_a_literal_reference_is_no_variable():
    write("r.yaml", "data: {name: '\\${vars.x}'}\n")
    assert config("config=r.yaml", *TINY).data.name == "${vars.x}"


def test_a_secret_in_a_variable_is_kept_out_of_what_is_written(monkeypatch):
    monkeypatch.setenv("TOKEN", "hunter2hunter2")
    write("r.yaml", "vars: {token: '${oc.env:TOKEN}'}\nreward: {url: 'http://localhost/s',\n"
          "  headers: {Authorization: 'Bearer ${vars.token}'}}\n")  # fmt: skip
    ppo = COMMANDS["ppo"]
    found = resolve(ppo, parse(ppo, ["config=r.yaml", *TINY]))
    assert found.config.reward.headers == {"Authorization": "Bearer hunter2hunter2"}
    written = found.public_tree["reward"]["headers"]["Authorization"]
    assert written == "Bearer ${oc.env:TOKEN}"


@pytest.mark.parametrize(
    "text",
    [
        "vars: {u: 'http://localhost/s?api_key=abc'}\nreward: {url: '${vars.u}'}",
        "vars: {t: abc}\nreward: {url: 'http://localhost', headers: {X-Token: '${vars.t}'}}",
    ],
)
def test_a_secret_as_plain_text_in_a_variable_is_refused(text):
    write("r.yaml", text)
    ppo = COMMANDS["ppo"]
    with pytest.raises(ConfigError, match="holds a secret as plain text") as error:
        resolve(ppo, parse(ppo, ["config=r.yaml", *TINY]))
    assert "abc" not in str(error.value)


# sweep


def jobs(*words: str) -> list[str]:
    planned = plan_sweep(SFT, parse(SFT, [*words, "-m"]))
    return [" ".join(f"{s.key}={s.text}" for s in job.settings) for job in planned.jobs]


def test_a_recipe_carries_its_sweep():
    write("r.yaml", "sweep: {lr: [1e-4, 3e-4], metric: eval/loss, mode: min, seed: [0, 1]}\n")
    assert jobs("config=r.yaml", *TINY) == [
        "train.lr=0.0001 seed=0",
        "train.lr=0.0001 seed=1",
        "train.lr=0.0003 seed=0",
        "train.lr=0.0003 seed=1",
    ]
    assert (
        plan_sweep(SFT, parse(SFT, ["-m", "config=r.yaml", *TINY])).objective.metric == "eval/loss"
    )


def test_values_of_the_command_line_take_the_place_of_those_of_the_sweep():
    write("r.yaml", "sweep: {lr: [1e-4, 3e-4], seed: [0, 1]}\n")
    assert jobs("config=r.yaml", "lr=1e-5", *TINY) == ["seed=0", "seed=1"]
    assert jobs("config=r.yaml", "lr=1e-5,2e-5", "seed=3", *TINY) == [
        "train.lr=1e-5",
        "train.lr=2e-5",
    ]


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("seed: 'range(1,3)'", ["seed=1", "seed=2"]),
        ("train: {schedule: [linear, wsd]}", ["train.schedule=linear", "train.schedule=wsd"]),
        ("adapter: [none, lora]", ["adapter=none", "adapter=lora"]),
        ("adapter.targets: [[q_proj], all-linear]",
         ["adapter.targets=[q_proj]", "adapter.targets=all-linear"]),
        ("data.name: ['a, b', c]", ["data.name=a, b", "data.name=c"]),
    ],
)  # fmt: skip
def test_what_can_be_swept(sweep, expected):
    write("r.yaml", f"sweep: {{{sweep}}}\n" + "adapter.kind: lora\n" * ("targets" in sweep))
    assert jobs("config=r.yaml", *TINY) == expected


def test_a_path_in_a_sweep_is_relative_to_the_recipe():
    write("exp/r.yaml", "sweep: {data: [./a.jsonl, b.jsonl]}\n")
    write("exp/a.jsonl", "")
    write("exp/b.jsonl", "")
    here = Path("exp").resolve()
    assert jobs("config=exp/r.yaml", "model=tiny") == [
        f"data={here}/a.jsonl",
        f"data={here}/b.jsonl",
    ]


def test_a_command_that_does_not_train_has_no_sweep():
    write("r.yaml", "sweep: {max_new_tokens: [1, 2]}\n")
    generate = COMMANDS["generate"]
    with pytest.raises(ConfigError, match=r"^sweep.sampling.max_new_tokens: sweeps are for"):
        resolve(generate, parse(generate, ["tiny", "prompt=x", "config=r.yaml"]))


def test_without_m_a_sweep_is_ignored_in_one_line(capsys):
    write("r.yaml", "seed: 5\nsweep: {lr: [1e-4, 3e-4]}\n")
    assert config("config=r.yaml", *TINY).seed == 5
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ")
    assert "train.lr" in line
    assert "-m" in line
    assert line.endswith("(r.yaml:2)")
    config("config=r.yaml", "lr=1e-4", *TINY)  # as a job of the sweep has it
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("sweep", "start"),
    [
        ("lrr: [1, 2]", "lrr: no such key in sft; did you mean train.lr?"),
        ("seed: 3", "sweep.seed: got 3; need a list of values"),
        ("seed: []", "sweep.seed: got []; need a list of values"),
        ("lr: [1e-4, -1]", "sweep.train.lr: got -1; need a number > 0"),
        ("train.schedule: [linear, cos]", "sweep.train.schedule: got cos; need one of cosine"),
    ],
)
@pytest.mark.parametrize("switch", [[], ["-m"]])
def test_a_sweep_that_cannot_run_is_refused(sweep, start, switch, capsys):
    write("r.yaml", f"seed: 5\nsweep: {{{sweep}}}\n")
    assert cli.main(["sft", "config=r.yaml", *TINY, "--cfg", *switch]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {start}")
    assert errors[0].endswith("(r.yaml:2)")


# Presets of the user's own

MINE = "# My adapter.\nkind: lora\nrank: 4\n"


@pytest.fixture(params=["beside the recipe", "RLHF_CONFIGS"])
def folder(request, tmp_path, monkeypatch):
    """A folder of presets, and the words with which it is found."""
    write("exp/r.yaml", "seed: 1\n")
    if request.param == "beside the recipe":
        return "exp/configs"
    monkeypatch.setenv("RLHF_CONFIGS", f"{tmp_path}/nowhere:{tmp_path}/own")
    return "own"


def test_a_preset_of_the_users_own(folder):
    write(f"{folder}/adapter/mine.yaml", MINE)
    found = compose("config=exp/r.yaml", "adapter=mine", "adapter.alpha=8", *TINY)
    assert (found.config.adapter.kind, found.config.adapter.rank) == ("lora", 4)
    assert found.config.adapter.alpha == 8
    where = trace(found.public_tree, found.layers, found.overrides)["adapter.rank"]
    assert where == f"adapter=mine, command line  ({folder}/adapter/mine.yaml:3)"


def test_a_recipe_chooses_a_preset_of_the_users_own(folder):
    write("exp/r.yaml", "adapter: mine\nadapter.alpha: 8\n")
    write(f"{folder}/adapter/mine.yaml", MINE)
    found = config("config=exp/r.yaml", *TINY)
    assert (found.adapter.rank, found.adapter.alpha) == (4, 8)
    assert config("config=exp/r.yaml", "adapter=dora", *TINY).adapter.rank == 16


def test_a_path_in_a_preset_is_relative_to_the_preset(folder):
    write(f"{folder}/data/mine.yaml", "path: ./rows.jsonl\n")
    write(f"{folder}/data/rows.jsonl", "")
    found = config("config=exp/r.yaml", "model=tiny", "data=mine")
    assert found.data.path == str(Path(f"{folder}/data/rows.jsonl").resolve())


def test_a_mistake_in_a_preset_has_its_line(folder):
    write(f"{folder}/adapter/mine.yaml", "kind: lora\nrnk: 4\nalpha: -1\n")
    lines = refused("config=exp/r.yaml", "adapter=mine", *TINY)
    assert [line.partition(":")[0] for line in lines] == ["adapter.rnk", "adapter.alpha"]
    assert [line.rpartition("(")[2] for line in lines] == [
        f"{folder}/adapter/mine.yaml:2)",
        f"{folder}/adapter/mine.yaml:3)",
    ]


@pytest.mark.parametrize("line", ["stage: sft", "base: tiny/sft", "vars: {x: 1}"])
def test_a_key_that_only_recipes_have_is_refused_in_a_preset(folder, line):
    write(f"{folder}/adapter/mine.yaml", f"{MINE}{line}\n")
    [refusal] = refused("config=exp/r.yaml", "adapter=mine", *TINY)
    assert line.partition(":")[0] in refusal
    assert f"{folder}/adapter/mine.yaml" in refusal


def test_a_preset_with_a_shipped_name_is_refused(folder):
    write(f"{folder}/adapter/lora.yaml", MINE)
    [line] = refused("config=exp/r.yaml", "adapter=lora", *TINY)
    assert line.startswith("adapter: got lora, which is a shipped preset")
    assert f"{folder}/adapter/lora.yaml" in line
    assert config("config=exp/r.yaml", "adapter=dora", *TINY).adapter.kind == "dora"


def test_a_preset_of_the_users_own_is_suggested(folder):
    write(f"{folder}/adapter/narrow.yaml", MINE)
    [line] = refused("config=exp/r.yaml", "adapter=narow", *TINY)
    assert "Try adapter=narrow" in line


def test_a_broken_preset_is_one_line(folder):
    write(f"{folder}/adapter/mine.yaml", "kind: [\n")
    [line] = refused("config=exp/r.yaml", "adapter=mine", *TINY)
    assert line.startswith(f"{folder}/adapter/mine.yaml:2: not valid YAML")


def test_the_help_shows_presets_of_the_users_own(monkeypatch):
    write("own/adapter/mine.yaml", MINE)
    monkeypatch.setenv("RLHF_CONFIGS", "own")
    assert "adapter=mine" in page(SFT)
    assert "My adapter." in page(SFT)
