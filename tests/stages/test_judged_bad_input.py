"""What users get wrong with reward, dpo and bco: one clear line, the right exit code."""

import json
import re
import shutil

import pytest
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from tests.data.toy import toy_tokenizer
from tests.helpers import last_of_each, tiny_llama
from tests.stages.conftest import FAST

PAIR = {"prompt": "Tea?", "chosen": " Yes, please.", "rejected": " No."}
ROW = {"prompt": "Tea?", "completion": " Yes.", "label": True}
RANKED = {"prompt": "Tea?", "responses": [" Yes.", " No."], "scores": [1, 0]}
SCORED = {"prompt": "Tea?", "completion": " Yes.", "score": 0.5}
LONG = {**PAIR, "prompt": "tea " * 40}


def report_of(out):
    return json.loads((out / "manifest.json").read_text())["data"]


def turns(asked, answered):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


TWO_PROMPTS = {"chosen": turns("Tea?", "Yes."), "rejected": turns("Milk?", "No.")}


@pytest.fixture
def run(told, small_model):
    """Runs a stage for one step in an empty folder; gives its exit code and error lines."""

    def run(stage, *words):
        command = [stage, f"model={small_model}", "output_dir=run", "max_steps=1", *FAST, *words]
        return told(*last_of_each(*command))

    return run


@pytest.mark.parametrize(
    ("stage", "row", "words", "pattern"),
    [
        ("dpo", {**PAIR, "chosen": " No."}, [], r"chosen equals rejected; .*rows.jsonl:1"),
        ("reward", {**PAIR, "chosen": " No."}, [], r"chosen equals rejected; .*rows.jsonl:1"),
        ("bco", {**PAIR, "chosen": " No."}, [], r"chosen equals rejected; .*rows.jsonl:1"),
        ("dpo", {**PAIR, "rejected": ""}, [], r"empty response; .*rows.jsonl:1"),
        ("bco", {**ROW, "completion": " "}, [], r"empty response; .*rows.jsonl:1"),
        ("reward", {**RANKED, "responses": ["a", ""]}, [], r"empty response; .*rows.jsonl:1"),
        ("dpo", TWO_PROMPTS, [], r"the two transcripts have different prompts; .*rows.jsonl:1"),
        ("dpo", LONG, ["data.truncation=refuse"], r"longer than data.max_length=24 .*rows.jsonl:1"),
        ("dpo", LONG, ["data.truncation=response_end"], r"no response within data.max_length=24"),
        ("reward", {**RANKED, "responses": ["a"], "scores": [1]}, [], r"only one response; .*:1"),
        ("reward", {**RANKED, "scores": [1, 1]}, [], r"all scores are equal; .*rows.jsonl:1"),
    ],
)
def test_nothing_to_learn_from(run, rows, stage, row, words, pattern):
    code, error = run(stage, f"data={rows(row)}", "max_length=24", *words)
    assert code == 3
    assert error.startswith("rows.jsonl: none of 1 row can be trained on")
    assert re.search(pattern, error), error


@pytest.mark.parametrize(
    ("stage", "row", "pattern"),
    [
        ("bco", {**ROW, "label": "good"}, r'label: got "good"; need true or false'),
        ("bco", {**ROW, "label": 2}, r"label: got 2; need true or false"),
        (
            "bco",
            {**ROW, "label": None},
            r"null: label; found prompt, completion; bco takes labelled rows",
        ),
        ("reward", {**SCORED, "score": "0.5"}, r'score: got "0.5"; need a number'),
        ("reward", {**SCORED, "score": float("nan")}, r"score: got NaN; need a finite number"),
        ("reward", {**RANKED, "scores": [float("nan"), 1]}, r"scores\[0\]: got NaN; need a finite"),
        ("reward", {**RANKED, "scores": ["best", 1]}, r'scores\[0\]: got "best"; need a number'),
        ("reward", {**RANKED, "scores": [1]}, r"scores: got 2 responses and 1 scores"),
        ("reward", {**PAIR, "margin": "much"}, r'margin: got "much"; need a number'),
    ],
)
def test_a_wrong_value_is_named_with_its_row(run, rows, stage, row, pattern):
    code, error = run(stage, f"data={rows(row)}")
    assert code == 3
    assert re.search(rf"rows.jsonl:1: {pattern}", error), error


def test_one_refused_pair_leaves_the_others(run, rows, tmp_path):
    assert run("dpo", f"data={rows(PAIR, TWO_PROMPTS, LONG)}", "max_length=24") == (0, "")
    report = report_of(tmp_path / "run")
    assert (report["rows"], report["kept"]) == (3, 2)
    assert [*report["refused"]] == ["the two transcripts have different prompts"]


@pytest.mark.parametrize("words", [["bco"], ["dpo", "loss_type=kto"]], ids=["bco", "kto"])
@pytest.mark.parametrize("label", [True, False])
def test_only_one_class(run, rows, words, label):
    data = rows({**ROW, "label": label}, {**ROW, "prompt": "Milk?", "label": label})
    code, error = run(*words, f"data={data}")
    assert code == 3
    said = f"rows.jsonl:1 and all other rows have label {str(label).lower()}; need rows of both"
    assert error.startswith(said), error


def test_labels_in_the_words_that_files_have(run, rows):
    labels = ["true", 0, 1, "yes", "No", "FALSE", True]
    data = rows(*({**ROW, "prompt": f"{i}?", "label": label} for i, label in enumerate(labels)))
    assert run("bco", f"data={data}") == (0, "")


@pytest.mark.parametrize(
    ("stage", "row", "taken"),
    [
        ("dpo", ROW, r"labelled rows .*; dpo takes preference rows"),
        ("dpo", SCORED, r"scored rows .*; dpo takes preference rows"),
        ("bco", RANKED, r"ranked rows .*; bco takes labelled rows"),
        ("reward", {"text": "Tea."}, r"text rows .*; reward takes preference rows"),
    ],
)
def test_rows_of_another_stage(run, rows, stage, row, taken):
    code, error = run(stage, f"data={rows(row)}")
    assert code == 3
    assert re.search(taken, error), error


def test_rows_of_two_kinds(run, rows):
    data = f"data=[{rows(PAIR)},{rows(ROW, name='labels.jsonl')}]"
    for stage in ("reward", "bco"):
        code, error = run(stage, data)
        assert (code, "different kinds of rows (preference, labelled)" in error) == (3, True), error


@pytest.mark.parametrize(
    ("row", "words", "code", "pattern"),
    [
        (PAIR, ["loss_type=regression"], 3, r"loss_type: got regression, .*; need comparison"),
        (ROW, ["loss_type=comparison"], 3, r"loss_type: got comparison, .*; need binary"),
        (ROW, ["center_coefficient=0.1"], 2, r"center_coefficient: got 0.1, .* kind labelled"),
        (SCORED, ["center_coefficient=0.1"], 2, r"center_coefficient: got 0.1, .* kind scored"),
    ],
)
def test_a_reward_setting_that_the_rows_do_not_allow(run, rows, row, words, code, pattern):
    got, error = run("reward", f"data={rows(row)}", *words)
    assert (got, bool(re.search(pattern, error))) == (code, True), error


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["dpo", "beta=0"], r"beta: got 0; need a number > 0"),
        (["dpo", "loss_type=sigmod"], r"loss_type: got sigmod; .*Try loss_type=sigmoid"),
        (["dpo", "loss_type=[]"], r"loss_type: got an empty list"),
        (["dpo", "loss_type=[sft,sft]"], r"loss_type: got \[sft,sft\]; need each name once"),
        (["dpo", "loss_type=[sigmoid,sft]", "loss_weights=[1]"], r"loss_weights: got 1 for 2"),
        (["dpo", "loss_type=[kto,sft]"], r"kto takes rows with labels, not pairs"),
        (["dpo", "loss_type=robust"], r"label_smoothing: got 0.0 with loss_type=robust"),
        (["dpo", "loss_type=exo_pair"], r"label_smoothing: got 0.0 with loss_type=exo_pair"),
        (["dpo", "label_smoothing=0.5"], r"label_smoothing: got 0.5; need a number >= 0 and < 0.5"),
        (["dpo", "loss_type=aot", "wpo=true"], r"wpo: got true, which does not go with"),
        (["dpo", "loss_type=ipo", "simpo_gamma=1"], r"simpo_gamma: got 1"),
        (["dpo", "loss_type=nca_pair", "f_divergence=js"], r"f_divergence: got js"),
        (["dpo", "sync_steps=2"], r"sync_steps: got 2 .* Try model.reference=copy"),
        (["dpo", "model.reference=none"], r"model.reference: got none"),
        (["dpo", "loss_type=simpo", "model.reference=copy"], r"which compares with none"),
        (["dpo", "model.reference=adapter_off"], r"need a new adapter to take away"),
        (["dpo", "model.reference=tiny"], r"model.reference: got tiny, a shape with random"),
        (["dpo", "model.reference=runs/gone/x"], r"model.reference: got runs/gone/x"),
        (["dpo", "data.packing=true"], r"data.packing: got true; dpo compares whole responses"),
        (["bco", "data.train_on=all"], r"data.train_on: got all; bco"),
        (["bco", "model.reference=none"], r"model.reference: got none; bco compares"),
        (["bco", "delta=mean"], r"delta: got mean; need one of running, ema, balanced"),
        (["bco", "delta_decay=0.5"], r"delta_decay: got 0.5 with delta=running"),
        (["bco", "udm.sample_size=0"], r"udm.sample_size: got 0"),
        (["bco", "desirable_weight=0", "undesirable_weight=0"], r"so no row counts"),
        (["reward", "center_coefficient=-1"], r"center_coefficient: got -1; need a number >= 0"),
        (["reward", "center_coefficient=1", "loss_type=binary"], r"which fixes where 0 is"),
        (["reward", "data.format=chat"], r"data.format: got chat; reward needs one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting(run, words, pattern):
    code, error = run(*words, "data=tiny")
    assert (code, bool(re.search(pattern, error))) == (2, True), error
    assert len(error.splitlines()) == 1


def test_a_reference_with_another_vocabulary(run, rows, tmp_path):
    toy = toy_tokenizer()
    tiny_llama(vocab_size=len(toy)).save_pretrained(tmp_path / "other")
    toy.save_pretrained(tmp_path / "other")
    code, error = run("dpo", f"data={rows(PAIR)}", "model.reference=other")
    assert code == 1
    assert "model.reference: " in error
    assert f"other has another vocabulary ({len(toy)} tokens, the policy 1024)" in error


def test_a_reference_with_fewer_embeddings_than_tokens(run, rows, small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "short")
    tiny_llama(vocab_size=1000).save_pretrained(tmp_path / "short")
    code, error = run("bco", f"data={rows(PAIR)}", "model.reference=short")
    assert (code, error.startswith("model.reference: ")) == (1, True), error
    assert "short does not fit its tokenizer: 24 of 1024 tokens" in error
    assert (
        "the policy has 1024. Need a model that embeds every token that the policy can generate"
        in error
    )


def test_a_reference_without_a_tokenizer(run, rows, small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "bare")
    for file in (tmp_path / "bare").glob("tokenizer*"):
        file.unlink()
    for words, key in (
        (["dpo", "model.reference=bare"], "model.reference"),
        (["bco", "udm.embedding_model=bare"], "udm.embedding_model"),
    ):
        code, error = run(*words, f"data={rows(PAIR)}")
        assert (code, error.startswith(f"{key}: ")) == (1, True), error
        assert "bare has no tokenizer" in error


def test_a_reference_that_cannot_be_fetched_is_named_as_typed(run, rows):
    code, error = run("dpo", f"data={rows(PAIR)}", "model.reference=nobody/gone")
    assert code == 1
    assert error.startswith("model.reference: cannot load nobody/gone")


def test_a_reference_with_fewer_positions_than_the_rows(run, rows, small_model, tmp_path):
    """Learned positions have an end; past it there is no embedding."""
    shutil.copytree(small_model, tmp_path / "short")
    shape = GPT2Config(vocab_size=1024, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path / "short")
    code, error = run("dpo", f"data={rows(LONG)}", "model.reference=short")
    assert code == 2
    assert "data.max_length: 2 rows are longer than the reference's 16 positions" in error


def test_an_embedding_model_with_fewer_positions_than_the_prompts(run, rows, small_model, tmp_path):
    """It embeds the prompts' beginnings."""
    shutil.copytree(small_model, tmp_path / "short")
    encoder(tmp_path / "short", labels=1, max_position_embeddings=16)
    data = rows(LONG, {**LONG, "prompt": "milk " * 40})
    assert run("bco", f"data={data}", "udm.embedding_model=short") == (0, "")


def encoder(folder, labels, **changes):
    shape = BertConfig(
        vocab_size=1024, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=labels, **changes,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(shape).save_pretrained(folder)


def test_a_classifier_of_several_labels_is_no_reward_model(run, rows, small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "moods")
    encoder(tmp_path / "moods", labels=3)
    code, error = run("reward", f"data={rows(PAIR)}", "model=moods")
    assert (code, "moods is a classifier of 3 labels" in error) == (1, True), error


def test_an_encoder_has_no_rows_one_after_another(run, rows, small_model, tmp_path):
    shutil.copytree(small_model, tmp_path / "bert")
    encoder(tmp_path / "bert", labels=1)
    words = ["model=bert", "model.attention=per_row"]
    code, error = run("reward", f"data={rows(PAIR)}", *words)
    assert (code, "model.attention: got per_row" in error) == (1, True), error


@pytest.mark.parametrize(
    ("words", "file", "pattern"),
    [
        (["bco"], "messy_binary.jsonl", r"all other rows have label true; need rows of both"),
    ],
)
def test_real_rows_that_cannot_be_trained_on(run, real_data, words, file, pattern):
    code, error = run(*words, f"data={real_data / file}", "max_length=256")
    assert (code, bool(re.search(pattern, error))) == (3, True), error


def test_real_rows_of_which_some_cannot_be_trained_on(run, real_data, tmp_path):
    assert run("dpo", f"data={real_data / 'messy_preference.jsonl'}", "max_length=64") == (0, "")
    report = report_of(tmp_path / "run")
    refused = {reason: found["rows"] for reason, found in report["refused"].items()}
    assert refused.keys() >= {"empty response", "chosen equals rejected"}
    assert sum(refused.values()) + report["kept"] == report["rows"] == 45
