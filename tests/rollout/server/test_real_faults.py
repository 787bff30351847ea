"""A real vLLM that is killed in the middle of a rollout."""

import os
import shlex
import signal
import subprocess
import threading
import time
from contextlib import suppress

from rlhf_cli.errors import InferenceServerError
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.server.process import ServedModel, build_command, choose_port
from tests.rollout.server import test_real_vllm as real

pytestmark = real.pytestmark
_cpu, tokenizer = real._cpu, real.tokenizer


def start(folder, port, log):
    """A server that is not the run's own."""
    words = build_command(real.COMMAND, ServedModel(folder, "float32", 256), port, "")
    words[words.index("--served-model-name") + 1] = "theirs"
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            words, env=env, stdout=output, stderr=output, start_new_session=True
        )


def kill(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def in_background(engine, prompts, samples):
    """Generate in a thread; gives the thread, and what it found or raised."""
    found = []

    def act():
        try:
            found.extend(
                engine.generate(prompts, samples=samples, prompt_numbers=range(len(prompts)))
            )
        except InferenceServerError as error:
            found.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    return thread, found


def test_a_server_that_is_killed_and_started_again_completes_the_rollout(tokenizer, tmp_path):
    model = real.make_model(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    policy = real.policy_of(model)
    port = choose_port("")
    process = start(tmp_path / "model", port, tmp_path / "log")
    try:
        deadline = time.monotonic() + 200
        sampling = SamplingConfig(max_new_tokens=200, temperature=0)
        while True:
            try:
                engine = real.opened(
                    policy, tokenizer, sampling, tmp_path, server=f"http://127.0.0.1:{port}"
                )
                break
            except InferenceServerError:
                assert time.monotonic() < deadline
                time.sleep(1)
        real.change(policy.model, 1)  # not the weights that the server starts with
        engine.hand_over(1)
        prompts = real.prompts_of(24)
        thread, found = in_background(engine, prompts, 4)
        time.sleep(0.5)
        assert thread.is_alive()
        kill(process)
        process = start(tmp_path / "model", port, tmp_path / "log")
        thread.join(250)
        own = generate(policy, tokenizer, prompts, sampling)
        assert [one.token_ids for one in found[::4]] == [one.token_ids for one in own]
        assert {one.weights_version for one in found} == {1}
        engine.close()
    finally:
        kill(process)


def test_a_started_server_that_is_killed_ends_the_rollout_in_one_line(tokenizer, tmp_path):
    policy = real.policy_of(real.make_model(tokenizer))
    sampling = SamplingConfig(max_new_tokens=200)
    engine = real.opened(policy, tokenizer, sampling, tmp_path, start=real.COMMAND)
    engine.hand_over(0)
    thread, found = in_background(engine, real.prompts_of(64), 4)
    time.sleep(0.5)
    assert thread.is_alive()
    (child,) = subprocess.run(
        ["pgrep", "-P", str(engine.process._process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(child), signal.SIGKILL)
    thread.join(60)
    (error,) = found
    assert "the server ended with exit code 137" in str(error)
    assert len(str(error).splitlines()) == 1
    assert shlex.quote(str(tmp_path)) in str(error)
    engine.close()
