"""Models measured on held-out rows, side by side."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.commands.evaluate.targets import short_names
from rlhf_cli.errors import DataError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluate(*words: str) -> dict[tuple[str, str], dict]:
    """(run, metric) -> result."""
    assert cli.main(["evaluate", *map(str, words), "precision=fp32", "output=out.json"]) == 0
    results = json.loads(Path("out.json").read_text())["results"]
    return {(row["run"], row["metric"]): row for row in results}


def values(found: dict[tuple[str, str], dict]) -> dict[str, float]:
    return {metric: row["value"] for (_, metric), row in found.items()}


def after(run: Path) -> dict[str, float]:
    return json.loads((run / "manifest.json").read_text())["after"]


def told(capsys, *words: object) -> tuple[int, list[str]]:
    code = cli.main(["evaluate", *map(str, words)])
    lines = capsys.readouterr().err.splitlines()
    return code, [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]


def write(*rows: object, name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


PAIRS = (
    {"prompt": "Tea? ", "completion": "Yes, with milk."},
    {"prompt": "Is salt sweet? ", "completion": "No."},
    {"prompt": "Name a colour. ", "completion": "Blue is a colour."},
)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("sft", ()),
        ("sft", ("data.train_on=all", "max_length=30")),
        ("sft", ("data.eval=0.05", "data.packing=true")),
        ("sft", ("adapter=lora",)),
        ("pretrain", ()),
    ],
    ids=str,
)
def test_a_run_is_measured_as_it_measured_itself(run_of, stage, settings):
    run = run_of(stage, *settings)
    found = evaluate(run)
    assert values(found) == pytest.approx(after(run), rel=1e-6)
    assert all(row["low"] < row["value"] < row["high"] for row in found.values())


def test_what_is_given_wins_over_the_rules_of_the_run(run_of):
    run = run_of("sft", "data.train_on=all", "max_length=30")
    given = evaluate(run, "data.train_on=response", "max_length=1024")
    plain = run_of("sft")
    assert given["sft", "loss"]["value"] != pytest.approx(after(run)["loss"], rel=1e-3)
    shutil.copytree(run / "model", "copied")
    assert values(evaluate("copied", "data=tiny")) == pytest.approx(values(given))
    assert evaluate(plain, "data.train_on=all")["sft", "loss"]["value"] != after(plain)["loss"]


@pytest.mark.parametrize("words", [(), ("template=always",)], ids=str)
def test_long_rows_are_cut_to_the_positions_of_a_model_that_is_no_run(run_of, capsys, words):
    shutil.copytree(run_of("sft") / "model", "plain")
    long = {"prompt": "Tea? ", "completion": "Yes, with milk. " * 200}
    capsys.readouterr()
    found = evaluate("plain", f"data={write(long, *PAIRS)}", *words)
    assert found["plain", "loss"]["n"] == 4
    assert "data.max_length: 512, the model's positions" in capsys.readouterr().err


def test_the_loss_is_that_of_the_models_own_forward_pass(run_of):
    run = run_of("sft")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    nll, right, count = 0.0, 0, 0
    for row in PAIRS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        picked = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        nll, count = nll - float(picked.sum()), count + len(answer)
        right += int((logits.argmax(-1) == torch.tensor(answer)).sum())
    found = values(evaluate(run, f"data={write(*PAIRS)}"))
    assert found["loss"] == pytest.approx(nll / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert found["accuracy"] == right / count


def test_how_rows_are_cut_does_not_matter(run_of):
    whole, parts = (evaluate(run_of("sft"), f"micro_batch_tokens={n}") for n in (4096, 60))
    assert values(whole) == pytest.approx(values(parts), rel=1e-6)


def test_models_stand_side_by_side_in_the_order_given(run_of, capsys):
    runs = [run_of("sft"), run_of("sft", "adapter=lora"), run_of("pretrain")]
    both = evaluate(runs[2], runs[0], f"data={write(*PAIRS)}")
    assert [run for run, metric in both if metric == "loss"] == ["pretrain", "sft"]
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["pretrain", "sft", "n"]
    assert [line.split()[0] for line in lines] == ["loss", "perplexity", "accuracy"]
    assert [line.split()[-1] for line in lines] == ["3"] * 3
    alone = evaluate(runs[0], f"data={write(*PAIRS)}")
    assert alone["sft", "loss"] == both["sft", "loss"]


def test_a_metric_that_a_model_has_not_is_left_open(run_of, capsys):
    evaluate(run_of("pretrain"), run_of("sft"))
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[0] == "bits_per_byte"
    assert last[-2] == "-"


def test_models_are_named_as_far_as_it_sets_them_apart(tmp_path):
    for name in ("one/sft", "two/sft"):
        Path(name).mkdir(parents=True)
    one, two = str(tmp_path / "one/sft"), str(tmp_path / "two/sft")
    assert short_names([one, "org/name"]) == ["sft", "name"]
    assert short_names([one, two, "org/name"]) == ["one/sft", "two/sft", "org/name"]
    assert short_names([f"{one}/model"]) == ["sft"]


def test_the_jobs_of_a_sweep_are_named_by_what_they_set(tmp_path):
    for number, beta in enumerate(("0.1", "0.3")):
        (tmp_path / "sweep" / str(number)).mkdir(parents=True)
        note = tmp_path / "sweep" / ".jobs" / f"{number}.json"
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"set": {"beta": beta, "lr": "1e-6"}, "exit_code": 0}))
    jobs = [str(tmp_path / "sweep" / name) for name in ("0", "1/model")]
    assert short_names([*jobs, "org/name"]) == ["beta=0.1,lr=1e-6", "beta=0.3,lr=1e-6", "name"]


def test_an_unfinished_run_is_refused(run_of, capsys):
    shutil.copytree(run_of("sft"), "cut")
    manifest = json.loads(Path("cut/manifest.json").read_text())
    Path("cut/manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    code, [line] = told(capsys, "cut", "data=tiny")
    assert code == 2
    assert "a run that is not finished (status: interrupted)" in line


def test_a_run_without_held_out_rows_needs_some(run_of, capsys):
    run = run_of("sft", "data.eval=none")
    code, [line] = told(capsys, run)
    assert code == 2
    assert line.startswith(f"data.path: none given, and {run} held out no rows. Try data=FILE")
    assert told(capsys, run, "data=tiny", "--cfg") == (0, [])


def test_held_out_rows_that_are_gone_are_named(run_of, capsys):
    held = str(Path(write(*PAIRS)).absolute())
    run = run_of("sft", f"data.eval={held}")
    Path(held).unlink()
    code, [line] = told(capsys, run)
    assert code == 3
    assert line.startswith(f"{run}: its held-out rows are gone; data.eval: got {held}; need a file")
    assert told(capsys, run, "data=tiny") == (0, [])


@pytest.mark.parametrize(
    ("words", "code", "begins"),
    [
        (["tiny"], 2, "data.path: none given, and tiny is no run that held out rows. Try data="),
        ([], 2, "model.path: none given"),
        (["runs/none", "data=tiny"], 2, "model.path: got runs/none; need a model folder"),
        (["tiny", "runs/none", "data=tiny"], 2, "beside[0]: got runs/none; need a model folder"),
        (["tiny", "data=gone.jsonl"], 3, "data.path: got gone.jsonl; need a file"),
        (["tiny", "data.split=test"], 2, "data.split: given without data.path"),
        (["tiny", "gpt2", "data=tiny", "model.tokenizer=x"], 2, "model.tokenizer: given with se"),
        (["tiny", "gpt2", "gpt2", "data=tiny"], 2, "beside: got gpt2 twice; need each model once"),
        (["tiny", "data=tiny", "baseline=tiny"], 2, "baseline: given without a judge"),
        (["tiny", "data=tiny", "prompts=tiny"], 2, "prompts: given without a judge"),
        (["tiny", "data=prompts.jsonl"], 3, "prompts.jsonl has prompt rows"),
        (["tiny", "data=empty.jsonl"], 3, "empty.jsonl: "),
        (["tiny", "data=tiny", "output=runs"], 3, "output: runs cannot be written"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_measured_is_one_line(words, code, begins, capsys):
    Path("runs").mkdir()
    write({"prompt": "a"}, name="prompts.jsonl")
    write(name="empty.jsonl")
    assert told(capsys, *words)[0] == code
    found = told(capsys, *words)[1]
    assert any(line.startswith(begins) for line in found), found


def test_a_stage_that_cannot_be_measured_is_refused(run_of, capsys, monkeypatch):
    from rlhf_cli import registry

    monkeypatch.delitem(registry.EVALUATORS, "sft")
    run = run_of("sft")
    code, [line] = told(capsys, run)
    assert code == 2
    assert line.startswith(f"model.path: {run} is a run of sft; evaluate measures runs of pretrain")


CHOICES = (
    {"prompt": "Tea? ", "chosen": "Yes, with milk.", "rejected": "No."},
    {"prompt": "Is salt sweet? ", "chosen": "No.", "rejected": "It is, and so is everything."},
    {"prompt": "Name a colour. ", "chosen": "Blue.", "rejected": "Seven"},
)


def own_logprobs(run: Path, prompt: str, response: str) -> tuple[float, int]:
    """Of a response, by the model's own forward pass: nats, and the number of tokens."""
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    given = tokenizer(prompt)["input_ids"]
    said = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([given + said])).logits[0, len(given) - 1 : -1]
    picked = logits.log_softmax(-1).gather(1, torch.tensor(said)[:, None])
    return float(picked.sum()), len(said)


def test_any_language_model_is_measured_on_pairs(run_of):
    """Base, sft and dpo side by side on the same pairs; a sft run by its own forward pass."""
    runs = [run_of("pretrain"), run_of("sft"), run_of("dpo")]
    found = evaluate(*runs, f"data={write(*CHOICES)}")
    both = [
        [own_logprobs(runs[1], row["prompt"], row[side]) for side in ("chosen", "rejected")]
        for row in CHOICES
    ]
    summed = [chosen[0] - rejected[0] for chosen, rejected in both]
    per_token = [chosen[0] / chosen[1] - rejected[0] / rejected[1] for chosen, rejected in both]
    for name, margins in (("logps", summed), ("logps_per_token", per_token)):
        assert found["sft", f"{name}/margins"]["value"] == pytest.approx(sum(margins) / 3, rel=1e-4)
        right = sum(margin > 0 for margin in margins) / 3
        assert found["sft", f"{name}/accuracies"]["value"] == right
        for run in ("pretrain", "dpo"):
            assert (run, f"{name}/margins") in found
    assert {run for run, metric in found if metric == "rewards/margins"} == {"dpo"}
    assert found["sft", "logps/accuracies"]["n"] == 3


LABELS = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in CHOICES]
LABELS += [
    {"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in CHOICES
]
SCORED = [
    {"prompt": row["prompt"], "completion": row["completion"], "score": place}
    for place, row in enumerate(LABELS)
]
RANKED = {"prompt": "Tea? ", "responses": ["Yes.", "No.", "With milk."], "scores": [1, 3, 2]}


@pytest.mark.parametrize(
    ("rows", "metric"),
    [
        (LABELS, "logps/auc"),
        ([RANKED], "logps_per_token/accuracies"),
        (SCORED, "logps/rank_correlation"),
    ],
    ids=["labelled", "ranked", "scored"],
)
def test_any_language_model_is_measured_on_judged_rows(run_of, rows, metric):
    runs = [run_of("sft"), run_of("dpo"), run_of("bco")]
    found = evaluate(*runs, f"data={write(*rows)}")
    assert {run for run, name in found if name == metric} == {"sft", "dpo", "bco"}
    assert ("bco", "rewards/chosen") in found or metric != "logps/auc"


def test_runs_of_dpo_and_ppo_have_a_loss_on_responses(run_of):
    ppo = run_of("ppo", "reward.length_penalty=1", "max_new_tokens=4")
    found = evaluate(run_of("dpo"), ppo, f"data={write(*PAIRS)}")
    assert {run for run, metric in found if metric == "perplexity"} == {"dpo", "ppo"}
    plain = ppo.parent / "plain"
    if not plain.exists():
        shutil.copytree(ppo / "model", plain)
    copied = evaluate(plain, f"data={write(*PAIRS)}")
    assert copied["plain", "loss"]["value"] == pytest.approx(found["ppo", "loss"]["value"])


def test_template_holds_for_rows_of_every_model(run_of):
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in PAIRS]
    runs = [run_of("pretrain"), run_of("sft")]
    expected = evaluate(*runs, f"data={write(*asked)}", "data.train_on=response")
    words = ["template=always", "data.train_on=response"]
    assert evaluate(*runs, f"data={write(*PAIRS)}", *words) == expected


def test_the_rows_of_all_models_are_opened_before_any_is_measured(run_of, capsys):
    """A reward model takes no responses without a judgment."""
    models = [run_of("sft"), run_of("reward"), f"data={write(*PAIRS)}"]
    code, [line] = told(capsys, *models, "output=out.json")
    assert code == 3
    assert "rows.jsonl has prompt_completion rows" in line
    assert "held-out" not in capsys.readouterr().out


def test_the_columns_that_are_finished_are_kept(run_of, capsys):
    broken = shutil.copytree(run_of("sft", "adapter=lora"), "broken")
    weights = Path(broken) / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    words = [run_of("sft"), broken, run_of("pretrain"), f"data={write(*PAIRS)}", "output=out.json"]
    assert cli.main(["evaluate", *map(str, words)]) == 1
    shown = capsys.readouterr()
    assert "broken: not measured, " in shown.err
    assert shown.out.splitlines()[0].split() == ["sft", "pretrain", "n"]
    assert "what was written so far is in" in shown.err
    assert not Path("out.json").exists()
    results = json.loads(Path("out.json.partial").read_text())["results"]
    assert {row["run"] for row in results} == {"sft", "pretrain"}


def test_an_interrupt_keeps_the_columns_that_are_finished(run_of, capsys, monkeypatch):
    from rlhf_cli.commands.evaluate import run as verb

    measured = verb._measured

    def stop(subject, *rest):
        if subject.name == "pretrain":
            raise KeyboardInterrupt
        return measured(subject, *rest)

    monkeypatch.setattr(verb, "_measured", stop)
    words = [run_of("sft"), run_of("pretrain"), f"data={write(*PAIRS)}", "output=out.json"]
    assert cli.main(["evaluate", *map(str, words)]) == 130
    assert capsys.readouterr().out.splitlines()[0].split() == ["sft", "n"]


def test_an_interrupt_after_a_failure_is_reported_as_an_interrupt(run_of, capsys, monkeypatch):
    from rlhf_cli.commands.evaluate import run as verb

    errors = iter([DataError("rows.jsonl: broken"), KeyboardInterrupt()])

    def fail(*_):
        raise next(errors)

    monkeypatch.setattr(verb, "_measured", fail)
    words = [run_of("sft"), run_of("pretrain"), f"data={write(*PAIRS)}"]
    assert cli.main(["evaluate", *map(str, words)]) == 130
    assert "sft: not measured, rows.jsonl: broken" in capsys.readouterr().err
