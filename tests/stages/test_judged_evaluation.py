"""`rlhf evaluate` of reward, dpo and bco runs gives what their own last evaluation gave."""

import json

import pytest

from rlhf_cli import cli
from tests.helpers import last_of_each

NAMES = {
    "reward": {"accuracy": "accuracy", "margin": "margin"},
    "dpo": {
        "rewards/accuracies": "rewards/accuracies",
        "rewards/margins": "rewards/margins",
        "rewards/rejected": "rewards/rejected",
        "logps/chosen": "logps/chosen",
    },
    "bco": {"rewards/chosen": "rewards/chosen", "rewards/rejected": "rewards/rejected"},
}


def train(stage, out, *words):
    command = [
        stage, f"config=tiny/{stage}", "max_steps=4", "train.warmup_steps=0", "batch_size=16",
        "train.precision=fp32", f"output_dir={out}", *words,
    ]  # fmt: skip
    assert cli.main(last_of_each(*command)) == 0
    return json.loads((out / "manifest.json").read_text())["after"]


def evaluate(*words):
    return cli.main(["evaluate", *map(str, words), "precision=fp32"])


def results(file):
    found = json.loads(file.read_text())["results"]
    return {one["metric"]: one for one in found}


@pytest.mark.parametrize("stage", NAMES)
def test_a_saved_run_is_measured_as_it_was_in_training(stage, tmp_path):
    after = train(stage, tmp_path / "run")
    assert evaluate(tmp_path / "run", f"output={tmp_path / 'found.json'}") == 0
    found = results(tmp_path / "found.json")
    for metric, name in NAMES[stage].items():
        assert found[metric]["value"] == pytest.approx(after[name], rel=1e-4, abs=1e-5)
        assert found[metric]["low"] <= found[metric]["value"] <= found[metric]["high"]


@pytest.mark.parametrize("words", [("bco",), ("dpo", "loss_type=kto")], ids=["bco", "kto"])
def test_held_out_rows_of_one_class_are_measured_by_what_it_has(words, tmp_path, capsys):
    rows = [{"prompt": f"{k}?", "completion": " good", "label": True} for k in range(3)]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage, *rest = words
    after = train(stage, tmp_path / "run", *rest, f"data.eval={held_out}", "max_steps=1")
    assert "labels of held-out rows: 3 desirable, 0 undesirable (one class only: no auc)" in (
        capsys.readouterr().err
    )
    assert "rewards/chosen" in after
    assert "rewards/rejected" not in after
    assert evaluate(tmp_path / "run", f"output={tmp_path / 'found.json'}") == 0
    found = results(tmp_path / "found.json")
    assert "rewards/chosen" in found
    assert not [name for name in found if name.endswith(("auc", "rejected"))]


def test_an_adapter_is_compared_with_what_it_started_from(tmp_path):
    train("sft", tmp_path / "sft", "max_steps=2")
    start = (f"model={tmp_path / 'sft'}", "adapter=lora", "adapter.rank=2", "lr=1e-3")
    after = train("dpo", tmp_path / "dpo", *start)
    assert evaluate(tmp_path / "dpo", f"output={tmp_path / 'found.json'}") == 0
    found = results(tmp_path / "found.json")
    assert found["rewards/margins"]["value"] == pytest.approx(after["rewards/margins"], abs=1e-5)


def test_a_reward_model_of_rankings_scores_and_labels(tmp_path, capsys):
    rows = {
        "ranked": {"prompt": "a", "responses": ["b", "c d", "e"], "scores": [1, 2, 2]},
        "scored": {"prompt": "a", "completion": "b", "score": 0.5},
        "labelled": {"prompt": "a", "completion": "b", "label": True},
    }
    expected = {"ranked": "best of each prompt", "scored": "absolute error", "labelled": "auc"}
    train("reward", tmp_path / "run", "data.eval=none")
    for kind, row in rows.items():
        other = {**row, "prompt": "what else"}
        if kind == "scored":
            other["score"] = 1.0
        if kind == "labelled":
            other["label"] = False
        file = tmp_path / f"{kind}.jsonl"
        file.write_text(json.dumps(row) + "\n" + json.dumps(other) + "\n")
        assert evaluate(tmp_path / "run", f"data={file}") == 0
        assert expected[kind] in capsys.readouterr().out


def test_a_run_whose_start_is_gone_needs_a_reference(tmp_path, capsys):
    train("sft", tmp_path / "sft", "max_steps=2")
    train("dpo", tmp_path / "dpo", f"model={tmp_path / 'sft'}")
    (tmp_path / "sft").rename(tmp_path / "moved")
    assert evaluate(tmp_path / "dpo") == 2
    assert "reference: the model that" in capsys.readouterr().err
    assert evaluate(tmp_path / "dpo", f"reference={tmp_path / 'moved'}") == 0
