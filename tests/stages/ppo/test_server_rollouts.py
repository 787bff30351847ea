"""PPO with responses by a server, whose stub has a real model: against the engine of this process.

The stub takes the weights that are handed over; only its sampler's random numbers are its own.
"""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_cli import cli
from rlhf_cli.rollout import engines
from rlhf_cli.rollout.server.engine import ServerEngine
from rlhf_cli.train.metrics import read_metrics
from tests.rollout.server.stub import Refusal
from tests.stages.ppo.conftest import lines_of, words_of

ONCE = ("ppo_epochs=1", "minibatches=1")
slow = partial(pytest.param, marks=pytest.mark.slow)
PLAIN = (*ONCE, "whiten_advantages=false", "max_steps=1")  # a loss that is not 0


def change_logprobs(stub, change):
    """Make the stub's log-probs wrong."""
    real = stub.write

    def write(prompt, params, weights):
        tokens, logprobs, reason = real(prompt, params, weights)
        return tokens, change(tokens, logprobs, prompt, weights), reason

    write.load = real.load
    stub.write = write


def test_the_weights_of_a_step_generate_the_next_rollout(ppo, stub, capsys):
    lines = ppo(f"rollout.server={stub.url}", *ONCE, "lr=1e-2")
    for line in lines:
        assert 0 < line["rollout/mismatch"] < 1e-5  # an update moves it by 1e-2
        assert 0 <= line["rollout/mismatch_kl"] < 1e-9
        assert line["rollout/staleness"] == 0
        assert line["policy/ratio"] == 1
        assert line["correction/weight"] == pytest.approx(1, abs=1e-5)
        assert line["correction/cut"] == 0
        assert line["time/wait"] >= line["time/rollout"] > 0
    assert "the server's log-probs differ from the policy's by" in capsys.readouterr().err
    assert stub.version == "free"
    assert [path for method, path, _ in stub.calls if method == "POST"].count("/pause") == 3
    assert not Path(stub.weights).exists()


@pytest.mark.slow
def test_the_metrics_are_those_of_the_engine_of_this_process(ppo, stub, files, monkeypatch):
    """Of the same responses: the local engine replays those of the server."""
    drawn, real = [], ServerEngine.generate

    def record(self, *args, **words):
        drawn.append(real(self, *args, **words))
        return drawn[-1]

    monkeypatch.setattr(ServerEngine, "generate", record)
    words = ("batch_size=4", "max_steps=3", "sample_steps=1")
    ppo(*words, f"rollout.server={stub.url}", "rollout.check_steps=0", out="server")
    monkeypatch.setattr(engines, "generate", lambda *_, **__: drawn.pop(0))
    ppo(*words, out="local")
    server, local = lines_of(files / "server"), lines_of(files / "local")
    for one, other in zip(server, local, strict=True):
        assert other.keys() < one.keys()
        for name, value in other.items():
            assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_with_a_lag_the_next_rollout_is_generated_while_the_update_runs(ppo, stub, monkeypatch):
    stub.seconds = 0.3
    lines = ppo(f"rollout.server={stub.url}", "rollout.lag=1", "max_steps=4")
    assert [line["rollout/staleness"] for line in lines] == [0, 1, 1, 1]
    assert all(line["time/rollout"] > 0.3 for line in lines)
    later = lines[1:]
    waited, written = (sum(line[f"time/{k}"] for line in later) for k in ("wait", "rollout"))
    assert waited < 0.8 * written
    assert lines[0]["rollout/mismatch"] < 1e-5 < lines[2]["rollout/mismatch"]


@pytest.mark.parametrize(
    ("off", "words", "weight", "cut"),
    [
        (0.5, [], math.exp(0.5), 0),
        slow(0.5, ["correction=none"], 1, None),
        slow(0.5, ["correction=token"], math.exp(0.5), 0),
        slow(1.5, ["correction=token"], 3, 1),
        slow(1.5, ["correction=token", "correction_cap=5"], math.exp(1.5), 0),
        slow(1.5, ["correction=token", "correction_mask=true"], 0, 1),
        slow(0.1, ["correction=sequence"], math.exp(0.8), 0),  # 8 tokens
    ],
)
def test_the_loss_is_multiplied_by_the_weight(off, words, weight, cut, ppo, stub, files):
    """The server's log-probs are too small by `off`, so that every token's weight is known."""
    change_logprobs(stub, lambda tokens, logprobs, *_: [value - off for value in logprobs])
    server = (f"rollout.server={stub.url}", "rollout.check_bound=9")
    (line,) = ppo(*PLAIN, *server, *(f"rollout.{word}" for word in words))
    (plain,) = ppo(*PLAIN, *server, "rollout.correction=none", out="plain")
    assert plain["tokens/response_length"] == 8
    assert abs(plain["loss/policy"]) > 1e-3
    assert line["loss/policy"] == pytest.approx(weight * plain["loss/policy"], rel=1e-4, abs=1e-7)
    assert line["loss/value"] == plain["loss/value"]
    assert line["rollout/mismatch"] == pytest.approx(off, abs=1e-4)
    assert line["rollout/mismatch_kl"] == pytest.approx(math.exp(off) - 1 - off, rel=1e-3)
    assert line.get("correction/weight", 1) == pytest.approx(weight, rel=1e-4)
    assert line.get("correction/cut") == cut


def failed(capsys, *words, out="run"):
    """The error line of a run that ends with code 1."""
    assert cli.main(words_of(*words, out=out)) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    (line,) = (one for one in shown.splitlines() if one.startswith("error: "))
    return line, shown


def test_log_probs_before_temperature_are_refused(stub, files, capsys):
    def at_temperature_1(tokens, _, prompt, weights):
        with torch.no_grad():
            logits = stub.model(weights)(torch.tensor([[*prompt, *tokens]])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()

    stub.model = stub.write.load
    change_logprobs(stub, at_temperature_1)
    words = ("temperature=0.2", "rollout.check_bound=0.01", "max_steps=1")
    line, _ = failed(capsys, f"rollout.server={stub.url}", *words)
    assert "rollout.check_bound: step 1: the server's log-probs differ" in line
    assert "They are those at temperature 1, not 0.2" in line


@pytest.mark.slow
def test_another_model_than_the_policy_is_refused(stub, files, capsys):
    real = stub.write
    stub.write = lambda prompt, params, weights: real(prompt, params, "start")
    stub.write.load = real.load
    line, _ = failed(capsys, f"rollout.server={stub.url}", "rollout.check_bound=0.01")
    assert "step 1: " in line
    assert "The likely causes are another model or template than this run's" in line


def keep_first_weights(stub):
    """As if only the first hand-over took effect."""
    real, first = stub.write, []

    def write(prompt, params, weights):
        first[:] = first or ([weights] if weights != "start" else [])
        return real(prompt, params, first[0] if first else weights)

    write.load = real.load
    stub.write = write


@pytest.mark.slow
def test_weights_that_became_stale_are_refused_or_reported(stub, files, capsys):
    keep_first_weights(stub)
    words = (f"rollout.server={stub.url}", "lr=1e-2", "train.save_steps=1")
    line, _ = failed(capsys, *words, "rollout.check_bound=0.01")
    assert "step 2: " in line
    assert "At first they differed by" in line
    assert "some of its weights may be stale" in line
    assert cli.main(words_of(*words, "rollout.check_bound=9", "max_steps=2", out="other")) == 0
    shown = capsys.readouterr().err
    assert "warning: rollout: the server's log-probs differ" in shown
    assert "after step 1" in shown


def fail_with(stub, version):
    """Answer no request for a response by the weights of a version."""

    def answer(body):
        if stub.version.endswith(f"-{version}"):
            raise Refusal(503, {"error": "overloaded"})

    stub.always = answer


def refuse_weights(stub, version):
    """Take no weights of a version; give back what takes all again."""
    real = stub.write.load

    def load(folder):
        if Path(folder).name == str(version):
            raise Refusal(503, {"error": "overloaded"})
        return real(folder)

    stub.write.load = load
    return real


SAME = (
    *("max_steps=4", "sample_steps=1", "train.save_steps=0"),
    *("rollout.deadline=0.3", "rollout.check_steps=0"),
)


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_run_whose_server_fails_saves_and_the_same_command_continues_it(
    lag, ppo, stub, files, capsys
):
    words = (*SAME, f"rollout.server={stub.url}", f"rollout.lag={lag}")
    ppo(*words, out="unbroken")
    capsys.readouterr()
    if lag:  # the rollout of step 3 is complete, the weights after step 2 are refused
        load = refuse_weights(stub, 2)
    else:
        fail_with(stub, 2)
    line, shown = failed(capsys, *words, out="broken")
    assert "no better within rollout.deadline=0.3 seconds" in line
    assert "the checkpoint after step 2 is written" in shown
    saved = files / "broken" / "checkpoints"
    assert [folder.name for folder in saved.iterdir()] == ["step-000002"]
    failed(capsys, *words, out="broken")  # nothing is lost where it fails again
    stub.always = None
    if lag:
        stub.write.load = load
    before = len(stub.calls)
    ppo(*words, out="broken")
    require_equal(files)
    asked = [path for method, path, _ in stub.calls[before:] if method == "POST"]
    generated = asked[: asked.index("/pause")].count("/inference/v1/generate")
    assert generated == 4  # checks of the endpoint, vocabulary, log-probs; then the hand-over


def require_equal(files):
    unbroken, broken = files / "unbroken", files / "broken"
    assert lines_of(unbroken) == lines_of(broken)
    assert (unbroken / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()
    one, other = (load_file(out / "model" / "model.safetensors") for out in (unbroken, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_server_that_fails_in_an_evaluation_leaves_a_run_that_repeats_it(
    ppo, stub, files, capsys
):
    words = (*SAME, f"rollout.server={stub.url}", "data.eval=prompts.jsonl", "train.eval_steps=2")
    ppo(*words, out="unbroken")
    capsys.readouterr()
    fail_with(stub, 2)
    failed(capsys, *words, out="broken")
    assert len(read_metrics(files / "broken" / "metrics.jsonl")) == 2  # steps 0 and 1
    stub.always = None
    ppo(*words, out="broken")
    require_equal(files)
    assert sum("eval/score" in line for line in lines_of(files / "broken")) == 3


@pytest.mark.slow
def test_a_server_that_fails_while_groups_are_replaced_leaves_the_rewards_as_they_were(
    ppo, stub, files, capsys
):
    words = (
        *SAME,
        f"rollout.server={stub.url}",
        *("advantage=grpo", "samples_per_prompt=2", "dynamic_sampling=2", "reward.scale=running"),
        "reward.function=judge.py:some",
    )
    ppo(*words, out="unbroken")
    capsys.readouterr()
    asked = []

    def fail_later(body):
        if stub.version.endswith("-2"):
            asked.append(body)
            if len(asked) > 8:  # the rollout itself is complete
                raise Refusal(503, {})

    stub.always = fail_later
    failed(capsys, *words, out="broken")
    stub.always = None
    ppo(*words, out="broken")
    assert any(line["rollout/redrawn"] > 0 for line in lines_of(files / "broken"))
    require_equal(files)
