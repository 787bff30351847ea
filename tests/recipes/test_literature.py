"""Recipes of the literature: their headers, their chains, and the small twin of each."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

RECIPES = Path(__file__).parents[2] / "recipes"
OVERLAYS = {"qlora", "sharded"}
"""Recipes that come after one of a stage."""

CHAINS = {
    "stack_llama": ["sft", "reward", "ppo"],
    "stack_llama_2": ["sft", "dpo"],
    "zephyr": ["sft", "dpo"],
    "instructgpt": ["pretrain", "sft", "reward", "ppo"],
    "detox": ["ppo"],
    "bco_thumbs": ["bco"],
    "r1_zero": ["grpo"],
}
FILES = [path for name in CHAINS for path in sorted((RECIPES / name).glob("*.yaml"))]
HUB_ID = r"[\w.-]+/[\w.-]+"
SHORT = ["max_steps=1", "batch_size=8", "train.warmup_steps=0"]
NOTE = """#!/usr/bin/env bash
printf '%s\\0' "$@" >>"$NOTES"
printf '\\n\\0' >>"$NOTES"
"""
"""In the place of `rlhf`: writes down what it was called with, and does nothing."""


def load(recipe, name):
    spec = importlib.util.spec_from_file_location(
        f"{recipe}_{name}", RECIPES / recipe / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chain(name, out, *words, **environment):
    return subprocess.run(
        ["bash", str(RECIPES / name / "run.sh"), str(out), *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def commands(name, folder, *words, **environment):
    """What a recipe's run.sh calls `rlhf` with; its scripts that fetch data write empty files."""
    tools, notes = folder / "bin", folder / "notes"
    tools.mkdir()
    (tools / "rlhf").write_text(NOTE)
    (tools / "python").write_text('#!/usr/bin/env bash\ntouch "${@: -1}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    run = chain(name, folder / "runs", *words, PATH=path, NOTES=str(notes), **environment)
    assert run.returncode == 0, run.stderr
    calls = notes.read_text().split("\n\0")[:-1]
    return [call.removesuffix("\0").split("\0") for call in calls]


def header(path):
    lines = path.read_text().splitlines()
    return "\n".join(line.removeprefix("#") for line in lines if line.startswith("#"))


def name_of(path):
    return path.relative_to(RECIPES).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_header_says_where_it_comes_from_and_what_it_takes(path):
    text = header(path)
    for said in ("Source", "Hardware", "time", "memory", "model", "data"):
        assert said.lower() in text.lower(), said
    assert (
        "estimated" in text
        or "as sft.yaml" in text
        or "as pretrain.yaml" in text
        or ("see sft.yaml" in text)
    )


@pytest.mark.parametrize("name", CHAINS)
def test_the_model_and_each_stage_s_data_are_those_of_the_hub(name):
    stages = [path for path in sorted((RECIPES / name).glob("*.yaml")) if path.stem not in OVERLAYS]
    models = [re.search(rf"^(?:model|  path): {HUB_ID}$", p.read_text(), re.M) for p in stages]
    assert any(models)
    for path in stages:
        data = re.search(r"Data:(.*?)(?:\. |$)", header(path), re.DOTALL)
        assert re.search(HUB_ID, data[1]), path


@pytest.mark.parametrize(
    ("name", "words"),
    [*((name, []) for name in CHAINS), *(("zephyr", [word]) for word in sorted(OVERLAYS))],
)
def test_the_commands_of_a_chain_compose(name, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = commands(name, tmp_path, *words)
    assert [call[0] for call in calls] == CHAINS[name]
    for call in calls:
        code, printed = cli.main([*call, "--cfg"]), capsys.readouterr()
        assert code == 0, printed.err
        leave_a_result(call, printed.out)


def leave_a_result(call, printed):
    """As much of a run as the checks of the next command look at."""
    out = Path(dict(word.split("=", 1) for word in call[1:])["output_dir"])
    out.mkdir(parents=True)
    kind = "reward_model" if call[0] == "reward" else "language_model"
    (out / "artifact.json").write_text(json.dumps({"kind": kind}))
    if yaml.safe_load(printed)["adapter"]["kind"] != "none":
        (out / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize("name", CHAINS)
def test_without_the_data_a_twin_says_so_in_one_line(name, tmp_path):
    run = chain(name, tmp_path, "twin", RLHF_DATA="")
    assert run.returncode != 0
    [line] = run.stderr.splitlines()
    assert line.endswith("set RLHF_DATA to the folder of public data (see rlhf docs data)")


@pytest.fixture
def cut_data(real_data, tmp_path):
    """The first rows of every file."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in real_data.iterdir():
        if path.suffix == ".jsonl":
            lines = path.read_text().splitlines(keepends=True)
            most = 220 if path.name == "prompts_movie.jsonl" else 40
            (folder / path.name).write_text("".join(lines[:most]))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("instructgpt", []),  # every stage
        ("stack_llama_2", []),  # QLoRA
        *(
            pytest.param(name, [], marks=pytest.mark.slow)
            for name in CHAINS
            if name not in ("instructgpt", "stack_llama_2")
        ),
        pytest.param("zephyr", ["qlora"], marks=pytest.mark.slow),
    ],
)
def test_a_twin_runs_a_step_of_each_stage(name, words, cut_data, tmp_path):
    if name.startswith("stack_llama") or words:
        pytest.importorskip("bitsandbytes")
    calls = commands(name, tmp_path, "twin", *words, RLHF_DATA=str(cut_data))
    assert [call[0] for call in calls][-len(CHAINS[name]) :] == CHAINS[name]
    for call in calls:
        assert cli.main([*call, *SHORT]) == 0


# What each twin shows, as its manifests and metrics have it


@pytest.fixture
def twin(tmp_path, real_data):
    """Run a whole twin; gives run -> (held-out metrics before, after)."""

    def run_all(name):
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        run = chain(name, tmp_path, "twin", PATH=path, RLHF_DATA=str(real_data))
        assert run.returncode == 0, run.stderr
        files = list(tmp_path.glob("*/manifest.json"))
        manifests = {path.parent.name: json.loads(path.read_text()) for path in files}
        assert sum(manifest["seconds"] for manifest in manifests.values()) < 300
        return {run: (m["before"], m["after"]) for run, m in manifests.items()}

    return run_all


def losses(out):
    """Means of the first and the last ten training losses."""
    lines = [line["loss"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    return sum(lines[:10]) / 10, sum(lines[-10:]) / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "judge", "chance"),
    [
        ("stack_llama", "reward", 0.6),
        ("instructgpt", "reward", 0.55),
        ("detox", "classifier", 0.65),
    ],
)
def test_a_twin_learns_to_judge_and_ppo_to_please_the_judge(name, judge, chance, twin):
    runs = twin(name)
    assert runs[judge][1]["accuracy"] > chance
    before, after = runs["ppo"]
    assert after["score"] > before["score"] + 0.1
    assert after["kl"] < 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stack_llama_2", "zephyr"])
def test_a_twin_imitates_and_then_tells_its_pairs_apart(name, twin, tmp_path):
    before, after = twin(name)["sft"]
    assert after["loss"] < before["loss"] - 0.1
    first, last = losses(tmp_path / "dpo")
    assert last < first - 0.1


@pytest.mark.slow
def test_the_twin_of_thumbs_tells_them_apart(twin):
    before, after = twin("bco_thumbs")["bco"]
    assert after["loss"] < before["loss"] - 0.05
    assert after["rewards/chosen"] > after["rewards/rejected"]


@pytest.mark.slow
def test_the_twin_of_r1_zero_earns_more_of_its_two_rules(twin):
    before, after = twin("r1_zero")["grpo"]
    assert after["score"] > before["score"] + 0.1


# The programs beside the recipes


def response(thought="2 + 3 = 5", answer="5"):
    return f" <think> {thought} </think> <answer> {answer} </answer>"


@pytest.mark.parametrize(
    ("text", "right", "points"),
    [
        (response(), "2 and 3\n#### 5", 1.0),
        (response(answer="It is $1,234.50."), "1234.5", 1.0),
        (response(answer="-7"), "-7", 1.0),
        (response(answer="6"), "5", 0.0),
        (response(thought="5", answer="none"), "5", 0.0),
        ("5", "5", 0.0),
        ("", "5", 0.0),
    ],
)
def test_the_number_between_the_answer_tags_counts(text, right, points):
    judge = load("r1_zero", "judge")
    assert judge.exact(prompts=["?"], responses=[text], answer=[right]) == [points]


@pytest.mark.parametrize(
    ("text", "points"),
    [
        (response(), 1.0),
        (response() + "\n", 1.0),
        ("So: " + response(), 0.0),
        (response() + " done", 0.0),
        (response() * 2, 0.0),
        (response(thought=""), 1.0),
        ("<think></think><answer>5</answer>", 0.0),
        ("<answer>5</answer><think>5</think>", 0.0),
        ("", 0.0),
    ],
)
def test_thoughts_and_answer_stand_in_their_tags_and_nothing_else(text, points):
    judge = load("r1_zero", "judge")
    assert judge.formatted(prompts=["?"], responses=[text], answer=["5"]) == [points]


def test_a_row_without_a_number_is_never_right():
    judge = load("r1_zero", "judge")
    assert math.isnan(judge.last_number("none"))
    assert judge.exact(prompts=["?"], responses=[response(answer="x")], answer=["x"]) == [0.0]


def test_rankings_have_the_turns_and_the_best_answer_has_the_highest_score():
    row = {
        "prompt": "\n\nHuman: Tea?\n\nAssistant: Yes.\n\nHuman: Which?\n\nAssistant: ",
        "answers": [{"answer": "Green.", "rank": 2}, {"answer": "Black, for now.", "rank": 1}],
    }
    assert load("instructgpt", "rankings").ranking(row) == {
        "prompt": [
            {"role": "user", "content": "Tea?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Which?"},
        ],
        "responses": ["Green.", "Black, for now."],
        "scores": [-2, -1],
    }


def test_toxic_prompts_are_those_above_the_limit_with_the_start_of_what_follows():
    rows = [
        {"prompt": {"text": "one", "toxicity": 0.4}, "continuation": {"text": " two" * 40}},
        {"prompt": {"text": "no", "toxicity": 0.3}, "continuation": {"text": "."}},
        {"prompt": {"text": "no", "toxicity": None}, "continuation": {"text": "."}},
    ]
    assert list(load("detox", "prompts").toxic_prompts(rows)) == ["one" + " two" * 26]
