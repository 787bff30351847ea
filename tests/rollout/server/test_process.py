"""A server that is started ends with the run, whatever ends it."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.http_client import HTTPClient
from rlhf_cli.rollout.server import process
from rlhf_cli.rollout.server.process import ServedModel, ServerProcess, build_command, choose_port

MODEL = ServedModel(Path("/models/m"), "bfloat16", 300)

SERVER = """
import os, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
key = os.environ["VLLM_API_KEY"]
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        open_path = self.path == "/health"
        good = open_path or self.headers.get("Authorization") == f"Bearer {key}"
        self.send_response(200 if good else 401)
        self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path):
    """A server that starts a process of its own, as vLLM does."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return f"{shlex.quote(sys.executable)} {script} {{port}}"


def pids(log):
    line = next(line for line in log.read_text().splitlines() if line.startswith("pids"))
    return [int(word) for word in line.split()[1:]]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, and not waited for where this container has no init


def require_ended(found, seconds=8.0):
    began = time.monotonic()
    while any(map(is_running, found)):
        assert time.monotonic() - began < seconds, found
        time.sleep(0.02)


def test_it_is_healthy_with_a_key_of_its_own_and_stops_with_all_its_processes(command, tmp_path):
    log = tmp_path / "server.log"
    server = ServerProcess(command, MODEL, log)
    server.wait_until_healthy(20)
    found = pids(log)
    assert all(map(is_running, found))
    with pytest.raises(Exception, match="HTTP 401"):
        HTTPClient(server.address, "key", 2).request("/v1/models")
    server.stop()
    require_ended(found)
    server.stop()


def test_a_server_does_not_take_itself_for_a_rank_of_the_trainer(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "RANKED"):
        monkeypatch.setenv(name, "1")
    script = tmp_path / "env.py"
    script.write_text("import os\nprint(sorted(os.environ))\n")
    log = tmp_path / "log"
    ServerProcess(f"{sys.executable} {script} {{port}}", MODEL, log)._process.wait(10)
    names = log.read_text()
    assert "'RANKED'" in names
    assert "'VLLM_API_KEY'" in names
    assert not any(f"'{name}'" in names for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    assert "TORCHELASTIC" not in names


TRAINER = """
import sys, time
from pathlib import Path
from rlhf_cli.rollout.server.process import ServedModel, ServerProcess
server = ServerProcess(sys.argv[1], ServedModel(Path("/m"), "auto", 9), Path(sys.argv[2]))
server.wait_until_healthy(20)
print("ready", flush=True)
if sys.argv[3] == "exit":
    sys.exit(0)
if sys.argv[3] == "raise":
    raise KeyboardInterrupt
time.sleep(600)
"""


@pytest.mark.parametrize(
    "end",
    [
        "SIGKILL",
        "SIGTERM",
        *(pytest.param(end, marks=pytest.mark.slow) for end in ("SIGINT", "exit", "raise")),
    ],
)
def test_it_ends_when_the_trainer_ends(end, command, tmp_path):
    log = tmp_path / "server.log"
    words = [sys.executable, "-c", TRAINER, command, str(log), end]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as trainer:
        assert trainer.stdout.readline() == b"ready\n"
        found = pids(log)
        if end.startswith("SIG"):
            trainer.send_signal(getattr(signal, end))
        trainer.wait(20)
    require_ended(found)


def test_a_command_that_ends_is_named_with_its_code_and_last_lines(tmp_path):
    script = tmp_path / "bad.py"
    script.write_text("import sys\nfor k in range(9): print('line', k)\nsys.exit(3)\n")
    server = ServerProcess(f"{sys.executable} {script} {{port}}", MODEL, tmp_path / "server.log")
    with pytest.raises(InferenceServerError) as caught:
        server.wait_until_healthy(20)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert "ended with exit code 3" in line
    assert "line 4 | line 5 | line 6 | line 7 | line 8" in line
    assert "line 3" not in line
    assert f"{tmp_path}/server.log" in line


def test_a_server_that_never_answers_is_stopped_at_the_deadline(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text("import os, time\nprint('pids', os.getpid(), flush=True)\ntime.sleep(600)\n")
    log = tmp_path / "server.log"
    server = ServerProcess(
        f"{sys.executable} {script} {{port}}", MODEL, log, lambda _: time.sleep(0.05)
    )
    with pytest.raises(InferenceServerError, match="not ready within 1 seconds"):
        server.wait_until_healthy(1)
    require_ended(pids(log))


def test_a_server_that_dies_later_ends_the_wait_for_it_at_once(command, tmp_path):
    log = tmp_path / "server.log"
    server = ServerProcess(command, MODEL, log)
    server.wait_until_healthy(20)
    server.require_running()
    os.kill(pids(log)[0], signal.SIGKILL)
    require_ended(pids(log))
    server._process.wait(10)
    with pytest.raises(InferenceServerError, match="exit code 137"):
        server.require_running()


def test_a_named_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for given in (f"vllm serve --port {port}", f"vllm serve --port={port}"):
            with pytest.raises(ConfigError, match=f"port {port} is taken"):
                choose_port(given)
    assert choose_port(f"vllm serve --port {port}") == port
    assert choose_port("vllm") > 0


def test_a_program_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no program /no/such/vllm is there"):
        ServerProcess("/no/such/vllm serve", MODEL, tmp_path / "log")


def test_commands_get_the_options_that_the_run_needs():
    rest = "--host 127.0.0.1 --port 81 --served-model-name policy --dtype bfloat16"
    options = "--max-model-len 300 --logprobs-mode processed_logprobs --enable-scale-out"
    assert shlex.join(build_command("vllm", MODEL, 81, "key")) == (
        f"vllm serve /models/m {rest} {options}"
    )
    module = "py -m vllm.entrypoints.openai.api_server --gpu-memory-utilization 0.4"
    assert shlex.join(build_command(module, MODEL, 81, "key")) == (
        f"{module} --model /models/m {rest} {options}"
    )
    given = build_command("a {model}/x {port} '{name} b'", MODEL, 81, "key")
    assert given == ["a", "/models/m/x", "81", "policy b"]
    assert "--port" not in build_command("vllm serve --port=99", MODEL, 99, "key")[3:]
    adapters = ServedModel(Path("/m"), "float32", 9, adapter_rank=12, adapters=3)
    assert shlex.join(build_command("vllm", adapters, 81, "key")).endswith(
        "--enable-lora --max-lora-rank 16 --max-loras 3 --max-cpu-loras 3"
    )
    assert shlex.join(build_command("sglang", adapters, 81, "key")) == (
        "python -m sglang.launch_server --model-path /m --host 127.0.0.1 --port 81 "
        "--served-model-name policy --dtype float32 --context-length 9 --api-key key "
        "--enable-deterministic-inference --enable-lora --max-lora-rank 12 "
        "--lora-target-modules all --max-loras-per-batch 3"
    )


def test_on_a_cpu_vllm_splits_no_prompt_unless_the_command_says_so():
    on_cpu = replace(MODEL, on_cpu=True)
    (added,) = {*build_command("vllm", on_cpu, 81, "key")} - {
        *build_command("vllm", MODEL, 81, "key")
    }
    assert added == "--no-enable-chunked-prefill"
    given = "vllm serve --enable-chunked-prefill"
    assert build_command(given, on_cpu, 81, "key") == build_command(given, MODEL, 81, "key")


def test_the_key_is_not_printed(command, tmp_path, capsys):
    given = f"{command} --api-key {{port}}"
    server = ServerProcess(given, MODEL, tmp_path / "log")
    server.stop()
    assert server.token not in capsys.readouterr().err
    assert process.HOST == "127.0.0.1"
