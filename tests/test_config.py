"""Composition and check: what a user can type, and what the answer is."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf_cli import resources
from rlhf_cli.config import recipe
from rlhf_cli.config.args import parse
from rlhf_cli.config.check import check_override
from rlhf_cli.config.schema import ALIASES, field_types, groups, options
from rlhf_cli.config.values import format_value
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.errors import ConfigError, DataError, RlhfError
from rlhf_cli.models.config import MIN_VOCAB_SIZE
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import Resolved, resolve
from tests.helpers import recipe_words

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compose(command: str, *words: str) -> Resolved:
    return resolve(COMMANDS[command], parse(COMMANDS[command], list(words)))


def sft(*words: str) -> Resolved:
    return compose("sft", *TINY, *words)


def refused(command: str, *words: str) -> list[str]:
    with pytest.raises(RlhfError) as caught:
        compose(command, *words)
    lines = str(caught.value).splitlines()
    assert [line for line in lines if not_taken(command, line)] == []
    return lines


EXAMPLES = ("VALUE", "FILE", "runs/sft", "rows.jsonl", '"Hello,', "{name:")
"""What a suggestion has in the place of something of the user's."""


def not_taken(command: str, line: str) -> list[str]:
    """The settings that a line suggests for its command and that the check refuses."""
    found = re.findall(r"(?:Try |, or |=\S+ )([\w.]+)=([^\s]+?)(?=[,.]?(?:\s|$))", line)
    mine = [(ALIASES.get(key, key), text) for key, text in found if not text.endswith(EXAMPLES)]
    return [
        key
        for key, text in mine
        if key != "config" and check_override(COMMANDS[command], f"{key}={text}")
    ]


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


# Layers


def test_command_line_wins_over_recipes_later_recipes_over_earlier_groups_over_defaults():
    write("a.yaml", "train: {lr: 1e-3, epochs: 2, batch_size: 8}")
    write("b.yaml", "train: {lr: 1e-4, epochs: 3}")
    plain = sft().config.train
    assert (plain.lr, plain.epochs, plain.batch_size, plain.max_steps) == ("auto", 1, 32, 0)
    preset = sft("train=smoke").config.train
    assert (preset.batch_size, preset.max_steps) == (8, 5)
    every = sft("config=a.yaml", "lr=1e-5", "config=b.yaml").config.train
    assert (every.lr, every.epochs, every.batch_size) == (1e-5, 3, 8)


def test_a_recipe_may_choose_a_preset_and_change_it():
    write("a.yaml", "train: smoke\ntrain.max_steps: 7")
    train = sft("config=a.yaml").config.train
    assert (train.batch_size, train.max_steps) == (8, 7)


def test_the_last_choice_of_a_group_is_the_only_one():
    write("a.yaml", "model: llama_8m")
    model = compose("sft", "config=a.yaml", *TINY).config.model
    assert (model.path, model.architecture, model.init) == ("tiny", {}, "auto")


def test_a_preset_on_the_command_line_wins_over_values_of_a_recipe():
    write("a.yaml", "model: {path: org/name, dtype: bf16}")
    model = compose("sft", "config=a.yaml", "data=tiny", "model=tiny").config.model
    assert (model.path, model.dtype) == ("tiny", "bf16")


def test_a_preset_of_a_later_recipe_wins_over_values_of_an_earlier_one():
    write("a.yaml", "train: {max_steps: 99, epochs: 3}")
    write("b.yaml", "train: smoke")
    train = sft("config=a.yaml", "config=b.yaml").config.train
    assert (train.max_steps, train.epochs) == (5, 3)


def test_lists_replace_and_mappings_merge():
    write("a.yaml", "prompt: [a, b]\nsampling: {stop: [x, y]}")
    write("b.yaml", "prompt: c\nsampling: {stop: [z]}")
    config = compose("generate", "model=tiny", "config=a.yaml", "config=b.yaml").config
    assert (config.prompt, config.sampling.stop) == ("c", ["z"])
    words = ("model=llama_8m", "model.architecture.hidden_size=64")
    architecture = compose("sft", "data=tiny", *words).config.model.architecture
    assert architecture["hidden_size"] == 64
    assert architecture["model_type"] == "llama"


def test_a_reference_to_another_key_is_resolved():
    write("a.yaml", "seed: 7\noutput_dir: runs/seed-${seed}")
    assert sft("config=a.yaml").config.output_dir == "runs/seed-7"


def words_for(name: str) -> tuple[str, ...]:
    """What each command asks for: a stage a model and data, generate a prompt, merge a folder."""
    own = {
        "ppo": (*TINY, "reward.length_penalty=0.1"),
        "grpo": (*TINY, "reward.length_penalty=0.1"),
        "distill": (*TINY, "teacher=tiny"),
        "generate": ("model=tiny", "prompt=x"),
        "merge": ("model=tiny", "output_dir=new"),
        "chat": ("model=tiny",),
        "label": ("file=tiny",),
        "score": ("reward.model=reward", "data=tiny"),
        "doctor": ("run=run",),
    }
    return own.get(name, TINY)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_schema_composes_to_its_own_defaults(name):
    default = asdict(COMMANDS[name].config())
    tree = compose(name, *words_for(name)).tree
    assert tree.keys() == default.keys()
    if "model" in default:
        assert {**tree["model"], "path": ""} == default["model"]


def preset_files() -> list[tuple[str, str]]:
    root = resources.shipped_folder("configs")
    return [(file.parent.name, file.stem) for file in sorted(root.glob("*/*.yaml"))]


def choices() -> list[tuple[str, str, str]]:
    """Every option of every group with every command that has the group."""
    return [
        (name, group, option)
        for group, option in preset_files()
        for name, command in COMMANDS.items()
        if group in groups(command.config)
    ]


@pytest.mark.parametrize(("name", "group", "option"), choices())
def test_every_preset_composes_with_every_command_that_has_its_group(name, group, option):
    others = [word for word in words_for(name) if not word.startswith(f"{group}=")]
    needed = ["adapter=lora"] if group == "quant" and COMMANDS[name].trains else []
    tree = compose(name, *others, *needed, f"{group}={option}").tree
    file = resources.shipped_folder("configs") / group / f"{option}.yaml"
    chosen = recipe.read(file, option).values
    assert {key: tree[group][key] for key in chosen} == chosen


@pytest.mark.parametrize(
    ("name", "group", "option"), [choice for choice in choices() if COMMANDS[choice[0]].trains]
)
def test_every_preset_goes_with_the_recipe_that_a_stage_runs_by_itself(name, group, option):
    needed = ["adapter=lora"] if group == "quant" else []
    compose(name, f"config=tiny/{name}", *needed, f"{group}={option}")


@pytest.mark.parametrize("name", resources.recipe_names())
def test_every_shipped_recipe_has_a_smoke_run(name):
    stage, words = recipe_words(name)
    assert compose(stage, *words, "train=smoke").config.train.max_steps == 5


def test_a_model_from_nothing_takes_the_place_of_a_recipe_s_model():
    model = compose("sft", "config=zephyr/sft", "model=llama_8m").config.model
    assert (model.path, model.from_scratch) == ("", True)


@pytest.mark.parametrize(("group", "option"), preset_files())
def test_a_preset_holds_only_keys_of_its_group(group, option):
    file = resources.shipped_folder("configs") / group / f"{option}.yaml"
    classes = {groups(command.config).get(group) for command in COMMANDS.values()} - {None}
    assert classes, f"no command has a group {group}"
    for config in classes:
        assert recipe.read(file, option).values.keys() <= field_types(config).keys()


@pytest.mark.parametrize("name", resources.recipe_names())
def test_every_shipped_recipe_composes(name):
    stage, words = recipe_words(name)
    compose(stage, *words)


def test_the_preset_of_8_m_parameters_is_what_scratch_builds_by_itself():
    from rlhf_cli.models.config import DEFAULT_ARCHITECTURE, DEFAULT_VOCAB_SIZE

    model = compose("pretrain", "model=llama_8m", "data=tiny").config.model
    assert model.architecture == DEFAULT_ARCHITECTURE
    assert (model.init, model.tokenizer_vocab_size) == ("scratch", DEFAULT_VOCAB_SIZE)


def test_the_smallest_tokenizer_has_every_byte_and_the_special_tokens():
    from rlhf_cli.models.tokenizer import END, PAD, ROLES

    assert len({PAD, END, *ROLES}) + 256 == MIN_VOCAB_SIZE


def test_the_shipped_files_are_there():
    assert (resources.shipped_model() / "config.json").is_file()
    for split in ("train", "test"):
        assert resources.shipped_rows("sft", split).is_file()


# What may be typed


@pytest.mark.parametrize("word", ["train.lr=0.1", "lr=0.1", "+lr=0.1", "++train.lr=0.1", "lr=1e-1"])
def test_ways_to_set_a_number(word):
    assert sft(word).config.train.lr == 0.1


@pytest.mark.parametrize(
    "words",
    [
        ("--lr", "0.1"),
        ("--lr=0.1",),
        ("--train.lr=0.1",),
        ("--lr", "1e-1", "--batch-size", "3"),
        ("--batch-size=3", "lr=0.1"),
    ],
)
def test_dash_forms(words):
    assert sft(*words).config.train.lr == 0.1


@pytest.mark.parametrize(("short", "full"), ALIASES.items())
def test_short_names(short, full):
    for command in COMMANDS.values():
        line = parse(command, [f"{short}=3"])
        known = options(command.config)
        expected = full if full in known and short not in known else short
        assert [override.key for override in line.overrides] == [expected]


def test_generate_has_a_batch_size_of_its_own():
    config = compose("generate", "model=tiny", "prompt=x", "batch_size=3", "temperature=0").config
    assert (config.batch_size, config.sampling.temperature) == (3, 0.0)


@pytest.mark.parametrize(
    "text",
    ["Hello, you", "a=b", "run#1", "[INST] hi [/INST]", "it's", '"', "{x", "null", "12", "", " x ",
     "back\\slash\\", "two\nlines", "π ☃", "choice(1,2)", "\\${x}", "???"],
)  # fmt: skip
def test_text_arrives_as_it_was_typed(text):
    config = compose("generate", "model=org/name", "prompts=tiny", f"model.revision={text}").config
    assert config.model.revision == text.replace("\\$", "$")


def test_text_or_list():
    def prompt(text: str) -> object:
        return compose("generate", "model=tiny", f"prompt={text}").config.prompt

    assert prompt("Hello, you") == "Hello, you"
    assert prompt("[INST] hi [/INST]") == "[INST] hi [/INST]"
    assert prompt("'Hello, you'") == "Hello, you"  # Hydra's quotes
    assert prompt("[a, 'b, c']") == ["a", "b, c"]


def test_mappings():
    columns = {"prompt": "question", "completion": "answer"}
    assert sft("data.columns={prompt: question, completion: answer}").config.data.columns == columns
    assert sft("data.columns.prompt=question").config.data.columns == {"prompt": "question"}
    assert sft("train={epochs: 2}").config.train.epochs == 2


def test_a_key_may_be_given_twice_with_one_value():
    assert sft("lr=0.1", "--train.lr", "0.1", "lr=1e-1").config.train.lr == 0.1


def test_numbers_may_have_underscores():
    assert sft("max_steps=1_000").config.train.max_steps == 1000


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("TRUE", True)])
def test_switches(text, value):
    assert sft(f"data.packing={text}").config.data.packing is value


# Refusals, line by line


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("lr=-1", "train.lr: got -1; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=nan", "train.lr: got nan; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=inf", "train.lr: got inf; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=", "train.lr: got ''; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=fast", "train.lr: got fast; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=0..1", "train.lr: got '0..1'; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=true", "train.lr: got true; need a number > 0 or auto. Try train.lr=auto"),
        ("lr=[1]", "train.lr: got [1]; need a number > 0 or auto. Try train.lr=auto"),
        (
            "lr=0,0001",
            "train.lr: got 0,0001; need a number with a decimal point. Try train.lr=0.0001",
        ),
        (
            "lr=1e-4,1e-5",
            "train.lr: got 1e-4,1e-5; need one value. For a run of each value add -m",
        ),
        ("epochs=2.0", "train.epochs: got 2.0; need a whole number >= 1. Try train.epochs=2"),
        ("epochs=1.5", "train.epochs: got 1.5; need a whole number >= 1. Try train.epochs=1"),
        ("epochs=true", "train.epochs: got true; need a whole number >= 1. Try train.epochs=1"),
        (
            "train.min_lr_ratio=2",
            "train.min_lr_ratio: got 2; need a number >= 0 and <= 1. Try train.min_lr_ratio=0.0",
        ),
        (
            "train.adam_beta1=1.0",
            "train.adam_beta1: got 1.0; need a number >= 0 and < 1. Try train.adam_beta1=0.9",
        ),
        (
            "train.adam_beta2=1",
            "train.adam_beta2: got 1; need a number >= 0 and < 1. Try train.adam_beta2=0.999",
        ),
        (
            "seed=4294967296",
            "seed: got 4294967296; need a whole number >= 0 and <= 4294967295. Try seed=0",
        ),
        ("seed=-1", "seed: got -1; need a whole number >= 0 and <= 4294967295. Try seed=0"),
        (
            "train.schedule=cosin",
            "train.schedule: got cosin; need one of cosine, linear, constant, wsd. "
            "Try train.schedule=cosine",
        ),
        (
            "data.packing=yes",
            "data.packing: got yes; need true or false. Try data.packing=true",
        ),
        ("data.packing=1", "data.packing: got 1; need true or false. Try data.packing=true"),
        ("data.packing=Off", "data.packing: got Off; need true or false. Try data.packing=false"),
        (
            "data.columns=prompt",
            "data.columns: got prompt; need keys, each with text. Try data.columns={name: value}",
        ),
        (
            "data.columns={prompt: 3}",
            "data.columns.prompt: got 3; need text. Try data.columns.prompt='3'",
        ),
        ("train.lrr=1", "train.lrr: no such key in sft; did you mean train.lr? Try train.lr=1"),
        ("shedule=linear", "shedule: no such key in sft; did you mean train.schedule? "
         "Try train.schedule=linear"),
        ("learning_rate=1", "learning_rate: no such key in sft; did you mean train.lr? "
         "Try train.lr=1"),
        ("dtype=bf16", "dtype: a key of merge, not of sft. Try model.dtype=bf16"),
        ("+epoch=2", "epoch: no such key in sft; did you mean train.epochs? Try train.epochs=2"),
        ("++zzz.y=2", "zzz.y: no such key in sft. See rlhf sft --help"),
        ("train.lr.x=1", "train.lr.x: no such key in sft; did you mean train.lr? Try train.lr=1"),
        (
            "sampling.top_k=3",
            "sampling.top_k: a key of dpo, ppo, grpo, distill, generate, chat, evaluate, doctor, "
            "not of sft. See rlhf sft --help",
        ),
        ("train=smok", "train: got smok; need one of smoke, or keys below it. Try train=smoke"),
        (
            "kernels=none,auto",
            "kernels: got none,auto; need one value. For a run of each value add -m",
        ),
    ],
)  # fmt: skip
def test_a_bad_setting_is_one_line(word, line):
    assert refused("sft", *TINY, word) == [f"{line}  (command line)"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("~lr",), "~lr: a key cannot be taken away; set it. Try lr=VALUE"),
        (("~train.lr=1",), "~train.lr=1: a key cannot be taken away; set it. Try train.lr=VALUE"),
        (("foo",), "foo: need key=value. Try config=foo if it is a recipe"),
        (("=3",), "=3: got no key before `=`; need key=value, without spaces, as in seed=1"),
        (("--lr",), "--lr: got no value. Try lr=VALUE"),
        (("-lr",), "-lr: need key=value, without spaces. Try lr=VALUE"),
        (("-lr=3",), "-lr=3: need key=value, without spaces. Try lr=3"),
        (("lr:3",), "lr:3: need key=value, without spaces. Try lr=3"),
        (("--data.packing", "seed=1"), "--data.packing: got no value. Try data.packing=VALUE"),
        (("--lr", "--cfg"), "--lr: got no value. Try lr=VALUE"),
        (
            ("--dry",),
            "--dry: no such switch; need key=value, or one of -m, --cfg, --provenance, --dry-run, "
            "--quiet, --json, --help",
        ),
        (
            ("-v",),
            "-v: no such switch; need key=value, or one of -m, --cfg, --provenance, --dry-run, "
            "--quiet, --json, --help",
        ),
        (("lr=1", "train.lr=2"), "train.lr=2: train.lr is set already by lr=1; need it once"),
        (("hydra.run.dir=x",), "hydra.run.dir=x: Hydra's own settings are for sweeps; add -m"),
        (("hydra/launcher=x",), "hydra/launcher=x: Hydra's own settings are for sweeps; add -m"),
        (("x\udcff=1",), "'x\\udcff=1': not UTF-8; set the terminal's encoding to UTF-8"),
    ],
)
def test_a_bad_word_is_one_line(words, line):
    assert refused("sft", *TINY, *words) == [line]


@pytest.mark.parametrize("depth", [33, 100, 2000])
def test_a_recipe_nested_too_deep_is_one_line(depth):
    write("r.yaml", "train: " + "{a: " * depth + "1" + "}" * depth)
    [line] = refused("sft", *TINY, "config=r.yaml")
    assert line.startswith("r.yaml")
    assert "nested more than 32 deep" in line
    [line] = refused("sft", *TINY, "lr=" + "[" * depth + "]" * depth)
    assert "need a number > 0" in line


def test_a_broken_reference_in_a_list_is_one_line():
    write("r.yaml", "log.trackers: ['${']")
    [line] = refused("sft", *TINY, "config=r.yaml")
    assert line.endswith("A literal `${` is written `\\${`")


def test_a_key_given_twice_by_two_names_is_refused():
    assert refused("sft", "data=tiny", "model=org/x", "model.path=org/y") == [
        "model.path: given twice, as org/x and as org/y; need it once  (command line)"
    ]


def test_spaces_around_the_sign_are_told():
    first, *_ = refused("sft", *TINY, "lr", "=", "3")
    assert first == "lr: need key=value, without spaces. Try lr=VALUE"


def test_all_problems_at_once_with_their_places():
    write("r.yaml", "model: tiny\ntrain:\n  lrr: 1\n  batch_size: 0\nlora: {rank: 4}\nlr: 3\n")
    assert refused("sft", "config=r.yaml", "data=nowhere.jsonl", "seed=x", "bta=1", "foo") == [
        "foo: need key=value. Try config=foo if it is a recipe",
        "bta: no such key in sft. See rlhf sft --help  (command line)",
        "lora.rank: no such key in sft; did you mean adapter.rank? Try adapter.rank=4  (r.yaml:5)",
        "data.path: got nowhere.jsonl; need a file or folder that exists. Try data.path=tiny  "
        "(command line)",
        "train.lrr: no such key in sft; did you mean train.lr? Try train.lr=1  (r.yaml:3)",
        "train.batch_size: got 0; need a whole number >= 1. Try train.batch_size=32  (r.yaml:4)",
        "seed: got x; need a whole number >= 0 and <= 4294967295. Try seed=0  (command line)",
    ]


def test_the_place_is_that_of_the_value_that_counts():
    write("a.yaml", "train:\n  lr: -1\n  epochs: 0\n")
    write("b.yaml", "\ntrain: {lr: -2}\n")
    lines = refused("sft", *TINY, "config=a.yaml", "config=b.yaml", "epochs=-1")
    assert [line.rpartition("  ")[2] for line in lines] == ["(b.yaml:2)", "(command line)"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('train: {lr: "1e-4"}', "train.lr: got '1e-4'; need a number > 0 or auto. "
         "Try train.lr=0.0001"),
        ("model.revision: 7", "model.revision: got 7; need text. Try model.revision='7'"),
        ("data: {packing: yes}", "data.packing: got yes; need true or false. "
         "Try data.packing=true"),
        ("seed: null", "seed: got null; need a whole number >= 0 and <= 4294967295. "
         "Try seed=0"),
        ("seed: ???", "seed: got ???; need a value, or leave the key out"),
        ("train: 5", "train: got 5; need keys below it, as in train.KEY=..."),
        ("train: smok", "train: got smok; need one of smoke, or keys below it. Try train=smoke"),
        ("defaults: [x]", "defaults: not for recipes; choose groups as in `model: tiny`"),
        ("hydra: {x: 1}", "hydra: not for recipes; leave it out"),
        ("train: {_target_: os.system}", "train._target_: not for recipes; they name no code"),
        ("seed: 1\nseed: 2", "seed: given twice, first in line 1; need it once"),
        ("train: {lr: 1}\ntrain.lr: 1", "train.lr: given twice, first in line 1; need it once"),
        ("hydra.run.dir: x", "hydra.run.dir: not for recipes; leave it out"),
        ("model.path: y\nmodel: org/x", "model.path: given beside model: org/x; "
         "need one of the two"),
        ("stage: sftt", f"stage: got sftt; need one of {', '.join(COMMANDS)}, or leave it out"),
        ("3: x", "key: got 3 as a key; need text"),
        ("stage: pretrain", "stage: r.yaml is for pretrain, not for sft. "
         "Try rlhf pretrain config=r.yaml"),
    ],
)  # fmt: skip
def test_a_bad_recipe_line_is_one_line(text, line):
    write("r.yaml", text)
    last = text.count("\n") + 1
    words = ("model.path=tiny", "data=tiny")
    assert refused("sft", *words, "config=r.yaml") == [f"{line}  (r.yaml:{last})"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "r.yaml: empty; need at least one `key: value` line"),
        (b"# nothing\n", "r.yaml: empty; need at least one `key: value` line"),
        (b"\n- a\n", "r.yaml:2: got no `key: value`; a recipe is a mapping"),
        (b"a: [1\nb: 2\n", "r.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
        (b"seed: \xff", "r.yaml: byte 6 is not UTF-8; save it as UTF-8"),
        (b"a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: but found another document"),
        (b"seed: !!python/name:os.system x", "r.yaml:1: seed: could not determine a constructor "
         "for the tag 'tag:yaml.org,2002:python/name:os.system'"),
        (b"train: &a {lr: *a}", "r.yaml:1: train.lr holds itself (a YAML anchor)"),
        (b"seed: " + b"9" * 5000, "r.yaml:1: seed: not a number"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_read_is_one_line(content, line):
    Path("r.yaml").write_bytes(content)
    assert refused("sft", "config=r.yaml") == [line]


def test_a_missing_recipe_names_the_nearest():
    write("mine.yaml", "seed: 1")
    assert refused("sft", "config=mine.yml") == [
        "config: got mine.yml; no such file and no shipped recipe. Try config=mine.yaml"
    ]
    assert refused("sft", "config=.") == [
        "config: . is a folder; need a file. Try config=./FILE.yaml"
    ]


def test_an_unknown_reference_is_one_line():
    write("r.yaml", "output_dir: ${nothing}")
    [line] = refused("sft", *TINY, "config=r.yaml")
    assert line.startswith("output_dir: Interpolation key 'nothing' not found")


def test_anchors_and_merge_keys_work():
    write("r.yaml", "train: &t {lr: 1e-3}\nmodel: {architecture: {<<: *t, lr: 2}}")
    values = recipe.read(Path("r.yaml"), "r.yaml").values
    assert values == {"train": {"lr": 1e-3}, "model": {"architecture": {"lr": 2}}}


# Contradictions


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("sft", ("data=tiny",), "model.path: none given; need a model folder, run folder or hub "
         "id, or model.init=scratch. Try model=runs/sft, or model=tiny (shipped, random weights)"),
        ("sft", ("model=tiny",), "data.path: none given; need a file or folder of rows. "
         "Try data=rows.jsonl, or data=tiny (shipped rows)"),
        ("sft", (*TINY, "max_steps=10", "train.warmup_steps=20"),
         "train.warmup_steps: got 20, more than train.max_steps=10; need at most that. "
         "Try train.warmup_steps=1  (command line)"),
        ("sft", (*TINY, "resume=nowhere"), "resume: got nowhere; need auto, never or the folder "
         "of a checkpoint. Try resume=auto  (command line)"),
        ("sft", (*TINY, "data.format=text"), "data.format: got text; sft needs one of auto, "
         "prompt_completion, chat. Raw text is for rlhf pretrain  (command line)"),
        ("pretrain", (*TINY, "data.format=chat"), "data.format: got chat; pretrain needs auto or "
         "text. Try data.format=auto, or rlhf sft  (command line)"),
        ("pretrain", (*TINY, "data.train_on=response"), "data.train_on: got response; pretrain "
         "learns every token. Try data.train_on=all, or rlhf sft  (command line)"),
        ("sft", ("data=tiny", "model=llama_8m", "model.path=org/name"),
         "model.architecture: given beside model.path=org/name, which has its own; need one of "
         "the two  (command line)"),
        ("sft", ("data=tiny", "model.init=scratch", "model.architecture={hidden_size: 8}"),
         "model.architecture: got no model_type. Try model.architecture.model_type=llama  "
         "(command line)"),
        ("sft", ("data=tiny", "model=org/name", "model.tokenizer_vocab_size=300"),
         "model.tokenizer_vocab_size: got 300 with model.init=auto; a new tokenizer needs new "
         "weights. Try model.init=scratch  (command line)"),
        ("sft", (*TINY, "model.tokenizer_vocab_size=300", "model.tokenizer=gpt2"),
         "model.tokenizer_vocab_size: got 300 beside model.tokenizer=gpt2; need one of the two  "
         "(command line)"),
        ("sft", ("data=tiny", "model.init=scratch", "model.tokenizer_vocab_size=260"),
         "model.tokenizer_vocab_size: got 260; need 0, or at least 261: 256 bytes and 5 special "
         "tokens. Try model.tokenizer_vocab_size=8192  (command line)"),
        ("generate", ("model=tiny",), "prompt: none given; need a prompt or a file of prompts. "
         'Try prompt="Hello, you", or prompts=FILE'),
        ("generate", ("model=tiny", "prompt=x", "prompts=tiny"),
         "prompt: given beside prompts=tiny; need one of the two  (command line)"),
        ("generate", ("model=tiny", "prompt=x", "data=tiny"),
         "data: a key of pretrain, sft, reward, dpo, ppo, grpo, bco, distill, score, evaluate, "
         "doctor, not of generate; did you mean prompts? Try prompts=tiny  "
         "(command line)"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_line(command, words, line):
    assert refused(command, *words) == [line]


def test_a_key_that_is_wrong_by_itself_is_not_a_contradiction_too():
    lines = refused("sft", "data=tiny", "model.init=scrach", "model.architecture={model_type: x}")
    assert [line.partition(":")[0] for line in lines] == ["model.init"]


def test_an_unknown_key_hides_no_contradiction():
    write("r.yaml", "e: 1")
    lines = refused("sft", "config=r.yaml", "data=tiny")
    assert [line.partition(":")[0] for line in lines] == ["e", "model.path"]


def test_items_of_a_list_are_named_by_their_place():
    write("r.yaml", "prompt:\n  - a\n  - 1\n")
    assert refused("generate", "model=tiny", "config=r.yaml") == [
        "prompt[1]: got 1; need text  (r.yaml:3)"
    ]


@pytest.mark.parametrize("word", ["seed=4294967295", "train.adam_beta1=0", "seed=0"])
def test_the_ends_of_a_range(word):
    sft(word)


def test_random_weights_need_no_path():
    assert compose("sft", "data=tiny", "model.init=scratch").config.model.path == ""


# Paths


def test_paths_beside_a_recipe_are_relative_to_it(folder):
    write("elsewhere/rows.jsonl", "{}")
    write("elsewhere/sub/up.yaml", "data: ../rows.jsonl\nmodel: tiny\noutput_dir: ./out")
    write("elsewhere/beside.yaml", "data: {path: rows.jsonl}\nmodel: tiny")
    rows = str(folder / "elsewhere" / "rows.jsonl")
    up = compose("sft", "config=elsewhere/sub/up.yaml").config
    assert (up.data.path, up.output_dir) == (rows, "./out")
    assert compose("sft", "config=elsewhere/beside.yaml").config.data.path == rows


def test_a_word_of_a_key_is_no_path_even_where_a_folder_has_that_name(folder):
    write("copy/config.json", "{}")
    write("elsewhere/copy/config.json", "{}")
    write("elsewhere/r.yaml", "data: tiny\nmodel: {path: tiny, reference: copy}")
    assert compose("dpo", "config=elsewhere/r.yaml").config.model.reference == "copy"
    words = ("model=tiny", "data=tiny", "model.reference=copy")
    assert compose("dpo", *words).config.model.reference == "copy"


def test_other_paths_of_a_recipe_are_relative_to_the_working_folder(folder):
    write("rows.jsonl", "{}")
    write("elsewhere/r.yaml", "data: rows.jsonl\nmodel: tiny")
    config = compose("sft", "config=elsewhere/r.yaml").config
    assert config.data.path == str(folder / "rows.jsonl")


def test_home_and_absolute_paths(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    write("m/config.json", "{}")
    words = ("model=~/m", "data=tiny", "output_dir=~/out")
    config = compose("sft", *words).config
    assert config.model.path == str(folder / "m")
    assert config.output_dir == str(folder / "out")
    assert compose("sft", "model=m", "data=tiny").config.model.path == str(folder / "m")


@pytest.mark.parametrize("name", ["gpt2", "org/name", "Qwen/Qwen2.5-0.5B"])
def test_hub_ids_need_no_file(name):
    assert compose("sft", f"model={name}", "data=tiny").config.model.path == name


@pytest.mark.parametrize(
    "name", ["./x", "../x", "/nowhere/x", "~/nowhere", "a/b/c", "a\\b", "runs/x", "x" * 300]
)
def test_what_cannot_be_a_hub_id_must_be_here(name):
    Path("runs").mkdir()
    [line] = refused("sft", f"model={name}", "data=tiny")
    assert "need a model folder, run folder or hub id; not found here. Try model.path=" in line


def test_the_nearest_path_is_offered():
    Path("runs/sft").mkdir(parents=True)
    write("rows.jsonl", "{}")
    model, data = refused("sft", "model=runs/stf", "data=row.jsonl")
    assert "Try model.path=runs/sft" in model
    assert "Try data.path=rows.jsonl" in data


def test_a_model_that_is_a_file_or_an_unfinished_run():
    write("m/model.safetensors", "")
    write("run/manifest.json", json.dumps({"status": "running"}))
    [line] = refused("sft", "model=m/model.safetensors", "data=tiny")
    assert line.startswith("model.path: got m/model.safetensors; need the model's folder, not a ")
    [line] = refused("sft", "model=run", "data=tiny")
    assert "need a finished run; " in line


def test_a_function_beside_a_shipped_recipe_has_a_name(folder):
    words = (*TINY, "reward.function=tiny/judge.py:score")
    shipped = compose("ppo", *words).config.reward.function
    assert shipped == f"{resources.shipped_folder('recipes') / 'tiny' / 'judge.py'}:score"
    write("tiny/judge.py", "def score(prompts, responses): ...\n")
    assert compose("ppo", *words).config.reward.function == f"{folder}/tiny/judge.py:score"


def test_only_missing_data_is_a_data_error():
    with pytest.raises(DataError):
        compose("sft", "model=tiny", "data=x.jsonl", "data.eval=y.jsonl")
    with pytest.raises(ConfigError):
        compose("sft", "model=tiny", "data=x.jsonl", "seed=x")
    write("r.yaml", "data: {path: 5}")
    with pytest.raises(ConfigError):
        compose("sft", "model=tiny", "config=r.yaml")


def test_a_chat_template_must_be_a_file():
    [line] = refused("sft", *TINY, "model.chat_template=x.jinja")
    assert line == ("model.chat_template: got x.jinja; need a file that exists  (command line)")


# A run's own config.yaml


def test_a_resolved_configuration_reads_back_to_itself():
    words = ("model=llama_8m", "data=tiny", "lr=3e-7", "data.data_dir=1e5", "output_dir=yes")
    first = compose("sft", *words, "data.columns={prompt: '\\${a}', completion: 'null'}")
    write("config.yaml", to_yaml("sft", first.tree))
    again = compose("sft", "config=config.yaml")
    assert again.tree == first.tree
    assert again.config == first.config


plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(
    st.dictionaries(
        st.text("abc_.-", min_size=1),
        plain_text | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(),
        max_size=3,
    )
)
@example({"a": "\x85", "b": "\u2028x", "c": "\u2029"})
def test_yaml_written_by_us_is_read_as_the_same_values(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "r.yaml"
    path.write_text(to_yaml("sft", {"x": values}), encoding="utf-8", newline="")
    read = recipe.read(path, "r.yaml").values.get("x", {})
    assert read == {key: escaped(value) for key, value in values.items()}


def escaped(value: object) -> object:
    return value.replace("${", "\\${") if isinstance(value, str) else value


def test_values_are_shown_as_they_are_typed():
    values = (None, True, 2e-5, 1.0, 1e22, [1, "a b"], {"k": "1e3"})
    assert [format_value(value) for value in values] == [
        "null", "true", "2e-5", "1.0", "1e22", "[1, 'a b']", "{k: '1e3'}",
    ]  # fmt: skip
