"""PPO with a server in real processes: several of them, and ones that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_cli.train.metrics import read_metrics
from tests.rollout.server.stub import rule
from tests.stages.ppo.conftest import lines_of, words_of

GENERATE = "/inference/v1/generate"


def start(*words, out):
    command = [sys.executable, "-m", "rlhf_cli", *words_of(*words, out=out)]
    with Path(f"{out}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stderr=log, env=environment)


def finish(process, out):
    assert process.wait(timeout=400) == 0, Path(f"{out}.log").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["launch.shard=full"]])
def test_two_processes_equal_one(words, ppo, stub, files):
    """Rank 0 hands the weights over, gathered where they are shards; each asks for its own."""
    server = (f"rollout.server={stub.url}", "lr=1e-3", "max_steps=3")
    one = ppo(*server, "rollout.lag=1", out="one")
    before = len(stub.calls)
    finish(start(*server, *words, "rollout.lag=1", "launch.processes=2", out="two"), "two")
    two = read_metrics(files / "two" / "metrics.jsonl")
    for mine, theirs in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "objective/kl", "rollout/mismatch"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-4), name
        for name in ("objective/scores", "tokens/response_length", "rollout/staleness"):
            assert theirs[name] == pytest.approx(mine[name])  # the same responses
    posts = [path for method, path, _ in stub.calls[before:] if method == "POST"]
    assert posts.count("/pause") == 3


def prompts_of(out):
    """Step -> the prompts that it trained on."""
    found = {}
    for line in (Path(out) / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["step"], []).append(row["prompt"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lag", [1, 2])
def test_a_run_that_is_killed_at_random_moments_trains_on_each_prompt_once(lag, stub, files):
    """Responses are by a rule of prompt, seed and the weights' version."""

    def write(prompt, params, weights):
        return rule(prompt, params, Path(weights).name)

    write.load = lambda folder: None
    stub.write, stub.seconds = write, 0.02
    words = (
        *(f"rollout.server={stub.url}", f"rollout.lag={lag}", "rollout.check_steps=0"),
        *("max_steps=14", "train.save_steps=1", "sample_steps=1", "batch_size=3"),
        *("minibatches=1", "ppo_epochs=1"),
    )
    finish(start(*words, out="unbroken"), "unbroken")
    draw, kills, began = random.Random(lag), 0, []
    while not (Path("broken") / "model").is_dir():
        began.append(len(stub.calls))
        process, wanted = start(*words, out="broken"), draw.randint(5, 25)
        while process.poll() is None and kills < 6:
            paths = stub.paths()[began[-1] :]
            if paths.count(GENERATE) > wanted:
                time.sleep(draw.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            time.sleep(0.005)
        assert process.wait() in (0, -signal.SIGKILL), Path("broken.log").read_text()[-3000:]
    assert kills >= 3
    assert Path("broken.log").read_text().count("continuing from step-") >= 2
    assert prompts_of("broken") == prompts_of("unbroken")
    assert sorted(prompts_of("broken")) == [*range(1, 15)]
    if lag == 1:  # with more, it depends on the moment which weights generate
        assert lines_of(files / "broken") == lines_of(files / "unbroken")
    for first, last in zip(began, [*began[1:], len(stub.calls)], strict=True):
        asked = [path for path, body in posts(stub.calls[first:last]) if is_rollout(path, body)]
        assert asked[:1] in ([], ["/pause"])


def posts(calls):
    return [(path, body) for method, path, body in calls if method == "POST"]


def is_rollout(path, body):
    """Whether a request is a hand-over or for a response, not one of the checks at the start."""
    return path == "/pause" or (path == GENERATE and body["sampling_params"]["max_tokens"] > 1)
