"""Errors in a run of PPO: one line each, before work is lost."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.rollout import probe
from rlhf_cli.runs import run_files
from tests.stages.ppo.conftest import words_of

BROKEN = """
def nan(prompts, responses, **columns): return [float("nan")] * len(responses)
def short(prompts, responses, **columns): return [1.0]
def text(prompts, responses, **columns): return ["good"] * len(responses)
def fails(prompts, responses, **columns): return [1 / 0]
"""


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["minibatches=3"], "minibatches: got 3, which does not divide the 4 responses"),
        (["advantage=grpo"], "samples_per_prompt: got 1 with advantage=grpo"),
        (["temperature=0"], "sampling.temperature: got 0.0"),
        (["sampling.top_p=0.9"], "sampling.top_p: given"),
        (["sampling.min_new_tokens=2"], "sampling.min_new_tokens: given"),
        (["sampling.top_k=5", "sampling.min_p=0.1"], "sampling.top_k, sampling.min_p: given"),
        (["data.max_length=8"], "data.max_length: got 8, which leaves no token for the prompt"),
        (["data.packing=true"], "data.packing: given, but ppo reads prompts alone"),
        (["data.format=preference"], "data.format: got preference; ppo takes prompts"),
        (["model.reference=stored"], "model.reference: got stored; "),
        (["reward.function="], "reward.model: none given; need something that scores responses"),
        (["value=adapter"], "value: got adapter with adapter.kind=none"),
        (["value=model"], "value_model: none given with value=model"),
        (["ptx_coef=1"], "ptx_coef: given without ptx_data"),
        (["vf_coef=0.5", "advantage=reinforce_pp"], "vf_coef: given, but only advantage=gae"),
        (["kl_controller=adaptive", "kl_coef=0"], "kl_coef: got 0.0 with kl_controller=adaptive"),
        (["kl_in=loss"], "kl_estimator: got k1 with kl_in=loss"),
        (["value=adapter", "advantage=reinforce_pp"], "value: given, but only advantage=gae"),
        (
            ["rollout_logprobs=reuse", "rollout.start=vllm", "rollout.correction_mask=true"],
            "rollout.correction_mask: given with rollout_logprobs=reuse, which needs no",
        ),
        (
            ["rollout_logprobs=reuse", "compat=trl"],
            "rollout_logprobs: got reuse with compat=trl, which computes them again",
        ),
        (
            ["sampling.cuda_graphs=true", "launch.shard=full"],
            "sampling.cuda_graphs: got true with launch.shard=full, whose gathered weights",
        ),
        (["kl_target=3"], "kl_target: given, but only kl_controller=adaptive reads it"),
    ],
)
def test_a_contradiction_is_refused_in_one_line(words, begins, files, capsys):
    assert cli.main(words_of(*words)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {begins}")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nan", "gave nan for responses[0], whose prompt begins"),
        ("short", "gave 1 scores for 4 responses"),
        ("text", "gave 'good' for responses[0]"),
        ("fails", "raised ZeroDivisionError: division by zero (broken.py:5"),
    ],
)
def test_a_failing_reward_function_is_reported_with_its_line(name, told, files, capsys):
    Path("broken.py").write_text(BROKEN)
    assert cli.main(words_of(f"reward.function=broken.py:{name}")) == 3
    [line] = errors(capsys)
    assert told in line


def errors(capsys):
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return [line for line in shown.splitlines() if line.startswith("error: ")]


def test_an_unreachable_endpoint_is_reported_before_the_first_rollout(files, capsys):
    words = ["reward.function=", "reward.url=http://127.0.0.1:9/score", "reward.retries=0"]
    assert cli.main(words_of(*words)) == 3
    [line] = errors(capsys)
    assert "http://127.0.0.1:9/score" in line


def test_a_language_model_as_reward_model_is_refused(files, capsys, sft_run):
    assert cli.main(words_of("reward.function=", f"reward.model={sft_run}")) == 2
    [line] = errors(capsys)
    assert "writes text and gives no scores" in line


def test_reused_logprobs_need_continuous_batching(files, capsys, monkeypatch):
    monkeypatch.setattr(probe, "supports_continuous_batching", lambda model: False)
    assert cli.main(words_of("rollout_logprobs=reuse")) == 2
    [line] = errors(capsys)
    assert line.startswith("error: rollout_logprobs: got reuse, which needs continuous batching")
    assert line.endswith("Try rollout_logprobs=recompute")


def test_a_file_without_prompts_is_refused(files, capsys):
    Path("empty.jsonl").write_text("")
    assert cli.main(words_of("data=empty.jsonl")) == 3
    assert len(errors(capsys)) == 1


def test_prompts_that_leave_no_room_are_cut_or_refused(files, capsys):
    Path("long.jsonl").write_text('{"prompt": "%s", "wanted": "e"}\n' % ("tea " * 300))
    words = ["data=long.jsonl", "data.max_length=64", "batch_size=1", "minibatches=1"]
    assert cli.main(words_of(*words, "max_steps=1")) == 0
    assert "1 prompts lose their oldest tokens: longer than 56" in capsys.readouterr().err
    assert cli.main(words_of(*words, "data.truncation=refuse", out="other")) == 3
    assert "all 1 prompts are longer than 56 tokens" in errors(capsys)[0]


def test_rows_longer_than_the_models_positions_are_refused(files, capsys):
    Path("long.jsonl").write_text('{"prompt": "%s", "wanted": "e"}\n' % ("tea " * 600))
    assert cli.main(words_of("data=long.jsonl", "data.max_length=2000")) == 2
    assert "but the model has 512 positions. Try data.max_length=512" in errors(capsys)[0]


def test_a_policy_that_never_ends_gets_a_warning(ppo, capsys):
    ppo("missing_eos_penalty=1", "max_steps=1")
    assert "No response ended by itself" in capsys.readouterr().err


def test_rows_without_a_prompt_are_reported_with_their_reason(files, capsys):
    rows = [
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}]}'
    ]
    rows += ['{"messages": [{"role": "assistant", "content": " "}]}']
    Path("chats.jsonl").write_text("\n".join(rows))
    words = ["data=chats.jsonl", "reward.function=judge.py:length", "max_steps=1"]
    assert cli.main(words_of(*words)) == 0
    shown = capsys.readouterr().err
    assert "chats.jsonl: 1 prompt of 2 rows" in shown
    assert (
        "  refused: 1 row, no message before the assistant's; the first is chats.jsonl:2" in shown
    )


def test_a_run_whose_reward_failed_can_be_started_again(files, capsys):
    Path("failing.py").write_text(
        "from pathlib import Path\n"
        "calls = []\n"
        "def score(prompts, responses, **columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2 and not Path('back').exists():\n"
        "        raise ValueError('the judge is away')\n"
        "    return [1.0] * len(responses)\n"
    )
    words = words_of("train.log_steps=5", "sample_steps=1", "reward.function=failing.py:score")
    assert cli.main(words) == 3
    names = {path.name for path in Path("run").iterdir()}
    assert {"config.yaml", "manifest.json", "log.txt", "metrics.jsonl", "samples.jsonl"} <= names
    assert names <= {
        *run_files.FILES,
        *run_files.FOLDERS,
        run_files.MANIFEST,
        run_files.CHECKPOINTS,
    }
    Path("back").touch()
    assert cli.main(words) == 0
    rows = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {1, 2, 3}
