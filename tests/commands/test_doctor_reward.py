"""`rlhf doctor reward=RUN policy=RUN`, with tiny models."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.doctor.responses import PolicyResponses
from rlhf_cli.commands.generator import Responses
from rlhf_cli.data.prompts import PromptEncoder, PromptSet
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer

PROMPTS = ["Tell Ana about tea.", "Tell Ben about jazz.", "Tell Ana about jazz."]
JUDGE = """
def length(prompts, responses, **columns):
    return [len(response) for response in responses]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def doctor(run_of, capsys):
    """Runs the command; gives the exit code, stdout and error lines."""

    def run(*words: str, reward: str = "", policy: str = "") -> tuple[int, str, str]:
        models = [f"reward={reward or run_of('reward')}", f"policy={policy or run_of('sft')}"]
        argv = ["doctor", *models, "prompts=prompts.jsonl", "max_new_tokens=6", "precision=fp32"]
        code = cli.main([*argv, "samples_per_prompt=3", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_a_judge_and_responses_give_a_verdict(doctor):
    code, out, _ = doctor("judge=judge.py:length", "output=own.jsonl", "--json")
    found = json.loads(out)
    severities = {one["code"]: one["severity"] for one in found["findings"]}
    assert code == ("problem" in severities.values())
    assert found["healthy"] == (code == 0)
    assert {"reward.agreement", "reward.best_of_n", "reward.noise", "reward.precision"} <= {
        *severities
    }
    assert (found["prompts"], found["samples_per_prompt"]) == (3, 3)
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 3]
    rows = [json.loads(line) for line in Path("own.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["scores"] == [len(text) for text in row["responses"]]
    every = [score for row in rows for score in row["reward_scores"]]
    assert found["best_of_n"][0]["score"] == pytest.approx(sum(every) / 9)
    judged = [score for row in rows for score in row["scores"]]
    assert found["best_of_n"][0]["judge"] == pytest.approx(sum(judged) / 9)


def test_labelled_pairs_stand_in_for_a_judge(doctor):
    pairs = [{"prompt": PROMPTS[0], "chosen": "Yes.", "rejected": f"No {n}."} for n in range(4)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    code, out, err = doctor("data=pairs.jsonl")
    assert "[reward.labelled]" in out
    assert "[reward.range]" in out
    assert "labelled pairs: 4" in err
    assert out.splitlines()[0].split(": ")[-1] in ("good enough", "doubtful", "not good enough")
    assert (code == 1) == out.splitlines()[0].endswith("not good enough")


@pytest.mark.parametrize(
    ("words", "code", "key"),
    [
        (["sampling.temperature=0"], 2, "sampling.temperature: got 0"),
        (["judge=judge.py:none"], 2, "judge: got judge.py:none"),
        (["data=prompts.jsonl"], 3, "prompts.jsonl has prompt rows"),
        (["output=prompts.jsonl"], 2, "output: got prompts.jsonl"),
    ],
)
def test_wrong_input_is_one_line(words, code, key, doctor):
    got, _, err = doctor(*words)
    assert got == code
    assert f"error: {key}" in err


def test_models_in_the_wrong_place_are_refused(doctor, run_of):
    sft, reward = str(run_of("sft")), str(run_of("reward"))
    code, _, err = doctor(reward=sft)
    assert code == 2
    assert f"error: reward: got {sft}, which writes text and gives no scores" in err
    code, _, err = doctor(policy=reward)
    assert code == 2
    assert f"error: policy: got {reward}, a reward model" in err


def test_changed_copies_end_as_their_responses_do():
    """A response that was cut off has no end token, as in PPO."""
    tokenizer = load_tokenizer(ModelConfig(path="tiny"))
    encoder = PromptEncoder(tokenizer, as_message=False)
    ids = [[5, 6, tokenizer.eos_token_id], [5, 6]]
    responses = Responses([[1], [1]], ids, ["a", "b"], [True, False])
    sampled = PolicyResponses(PromptSet(["Tea?"]), responses, encoder)
    changed = sampled.changed([0, 1], ["Yes", "Yes"])
    words = tokenizer("Yes", add_special_tokens=False)["input_ids"]
    assert changed.response_tokens == [[*words, tokenizer.eos_token_id], words]
    assert sampled.lengths.tolist() == [[3, 2]]
