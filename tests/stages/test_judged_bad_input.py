"""What reward, dpo and bco refuse: one clear line, the right exit code, no model loaded."""

import json

import pytest

from rlhf_cli import cli

TINY = ("model=tiny", "data=tiny")


@pytest.fixture(autouse=True)
def _an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, code, *words):
    assert cli.main([*map(str, words)]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line.startswith("error:")][-1]


def pair(prompt="Say a", chosen="a a", rejected="b", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def label(value, prompt="Say a", completion="a"):
    return {"prompt": prompt, "completion": completion, "label": value}


@pytest.mark.parametrize(
    ("stage", "bad", "says"),
    [
        ("dpo", pair(rejected="a a"), "chosen equals rejected"),
        ("dpo", pair(rejected="  "), "empty response"),
        ("reward", {"chosen": "Human: x\n\nAssistant: a", "rejected": "Human: y\n\nAssistant: b"},
         "the two transcripts have different prompts"),
        ("reward", {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]},
         "all scores are equal"),
        ("reward", {"prompt": "a", "responses": ["b"], "scores": [1]}, "one response"),
    ],
)  # fmt: skip
def test_rows_without_anything_to_learn_are_refused_and_named(stage, bad, says, rows, capsys):
    file = rows(bad)
    said = refused(capsys, 3, stage, "model=tiny", f"data={file}")
    assert "none of 1 rows can be trained on" in said or says in said
    assert cli.main([stage, "model=tiny", f"data={file}"]) == 3
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "bad", "says"),
    [
        ("bco", label("maybe"), "label: got 'maybe'; need true or false"),
        ("bco", label(2), "label: got 2; need true or false"),
        ("bco", label(None), "label: got null; need true or false"),
        ("reward", {"text": "a", "score": "high"}, "score: got 'high'; need a number"),
        ("reward", {"prompt": "a", "responses": ["b", "c"], "scores": [1, "x"]}, "need a number"),
        ("reward", {"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "need as many"),
        ("reward", pair(margin="big"), "margin: got 'big'; need a number"),
    ],
)
def test_malformed_rows_stop_the_run_with_file_and_line(stage, bad, says, rows, capsys):
    good = {key: value for key, value in bad.items() if key != "margin"}
    good |= {"label": True} if "label" in bad else {}
    good |= {"score": 1.0} if "score" in bad else {}
    good |= {"scores": [0, 1]} if "scores" in bad else {}
    file = rows(good, bad)
    assert cli.main([stage, "model=tiny", f"data={file}"]) == 3
    said = capsys.readouterr().err
    assert "rows.jsonl:2" in said
    assert says.replace("'", '"') in said or says in said
    assert "policy:" not in said


@pytest.mark.parametrize("value", [True, 1, "true", "Yes", "1", 1.0])
def test_labels_that_can_only_mean_one_thing_are_taken(value, rows, capsys):
    file = rows(label(value), label(not True, completion="b"))
    words = ["bco", "model=tiny", f"data={file}", "max_steps=1", "train.precision=fp32"]
    assert cli.main([*words, "output_dir=" + file + ".run"]) == 0
    assert "labels: 1 desirable, 1 undesirable" in capsys.readouterr().err


def test_one_class_alone_is_refused(rows, capsys):
    file = rows(label(True), label(True, completion="b"))
    said = refused(capsys, 3, "bco", "model=tiny", f"data={file}")
    assert "have label true; need rows of both labels" in said


def test_a_pair_whose_prompt_leaves_no_room_is_cut_alike_or_refused_by_the_rule(rows, capsys):
    long = " ".join(["word"] * 200)
    file = rows(pair(long), pair(long, chosen="c"))
    words = ["dpo", "model=tiny", f"data={file}", "max_length=32", "data.truncation=refuse"]
    assert cli.main(words) == 3
    assert "longer than data.max_length=32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dpo", "loss_type=robust"], "label_smoothing: got 0.0 with loss_type=robust"),
        (["dpo", "loss_type=exo_pair"], "whose loss is then infinite"),
        (["dpo", "label_smoothing=0.5"], "label_smoothing: got 0.5; need a number >= 0 and < 0.5"),
        (["dpo", "loss_type=[sigmoid,kto]"], "stands alone"),
        (["dpo", "loss_type=[sigmoid,sigmoid]"], "need each name once"),
        (["dpo", "loss_type=nca_pair", "f_divergence=js"], "f_divergence: got js"),
        (["dpo", "loss_type=aot", "wpo=true"], "wpo: got true"),
        (["dpo", "loss_type=kto", "ld_alpha=0.5"], "ld_alpha: got 0.5"),
        (["dpo", "simpo_gamma=1"], "simpo_gamma: got 1.0"),
        (["dpo", "sync_steps=5"], "need a reference that can move"),
        (["dpo", "model.reference=none"], "compares with a reference"),
        (["dpo", "model.reference=adapter_off"], "need a new adapter to take away"),
        (["dpo", "model.reference=stroed"], "Try model.reference=stored"),
        (["dpo", "data.packing=true"], "data.packing: got true"),
        (["dpo", "data.train_on=all"], "data.train_on: got all"),
        (["dpo", "data.format=chat"], "data.format: got chat"),
        (["bco", "model.reference=none"], "bco compares with a reference"),
        (["bco", "delta_decay=0.5"], "Try delta=ema"),
        (["bco", "desirable_weight=0", "undesirable_weight=0"], "no row counts"),
        (["reward", "loss_type=binary", "center_coefficient=0.1"], "Try center_coefficient=0"),
    ],
)
def test_contradictions_are_told_before_anything_is_loaded(words, says, capsys):
    stage, *rest = words
    assert says in refused(capsys, 2, stage, *TINY, *rest)


def test_a_loss_that_the_rows_cannot_feed_is_refused(capsys):
    said = refused(capsys, 3, "reward", *TINY, "loss_type=regression", "data.eval=none")
    assert "the rows are of kind preference; need comparison" in said


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "reward"
    words = ["max_steps=1", "train.precision=fp32", "data.eval=none", f"output_dir={out}"]
    assert cli.main(["reward", *TINY, *words]) == 0
    return out


@pytest.mark.parametrize("stage", ["sft", "dpo", "bco", "pretrain"])
def test_a_reward_run_is_no_policy(stage, reward_run, capsys):
    said = refused(capsys, 2, stage, f"model={reward_run}", "data=tiny")
    assert "a reward model, which gives scores and writes no text" in said


def test_a_reward_run_writes_nothing_and_is_no_reference(reward_run, capsys):
    assert "a reward model" in refused(capsys, 2, "generate", reward_run, "prompt=x")
    said = refused(capsys, 2, "dpo", *TINY, f"model.reference={reward_run}")
    assert "model.reference: got" in said


def test_a_reference_with_another_vocabulary(tmp_path, sft_run, capsys):
    other = tmp_path / "other"
    words = ["data=tiny", "model.init=scratch", "model.tokenizer_vocab_size=300", "max_steps=1"]
    words += ["model.architecture={model_type: llama, hidden_size: 16, num_hidden_layers: 1, "
              "num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 16}"]  # fmt: skip
    assert cli.main(["pretrain", *words, "data.eval=none", f"output_dir={other}"]) == 0
    out = tmp_path / "dpo"
    words = [f"model={sft_run}", "data=tiny", f"model.reference={other}", f"output_dir={out}"]
    assert "has another vocabulary (300 tokens" in refused(capsys, 1, "dpo", *words)


def test_real_messy_rows(real_data, tmp_path, capsys):
    file = real_data / "messy_preference.jsonl"
    words = ["max_steps=1", "max_length=64", "batch_size=2", f"output_dir={tmp_path / 'run'}"]
    assert cli.main(["dpo", "model=tiny", f"data={file}", *words]) == 0
    refusals = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["refused"]
    assert {"empty response", "chosen equals rejected"} <= refusals.keys()
    file = real_data / "messy_transcripts.jsonl"
    said = refused(capsys, 3, "reward", "model=tiny", f"data={file}")
    assert "10 rows, the two transcripts have different prompts" in said
    file = real_data / "messy_binary.jsonl"
    assert "need rows of both labels" in refused(capsys, 3, "bco", "model=tiny", f"data={file}")
