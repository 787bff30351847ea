"""Start a server for a run: `rollout.start`."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.http_client import HTTPClient, HTTPFailure
from rlhf_cli.rollout.server import supervisor
from rlhf_cli.rollout.server.api import HEALTH_TIMEOUT, bearer
from rlhf_cli.rollout.server.config import VLLM_RANKS

HOST = "127.0.0.1"
"""Started servers listen to this machine alone."""

NAME = "policy"
"""Name that a started server gives the model."""

LAST_LINES = 5
"""Lines of a server's output that an error shows."""

PROGRAMS = {"vllm": ["vllm", "serve"], "sglang": ["python", "-m", "sglang.launch_server"]}

RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Variables of torchrun, which vLLM and SGLang would read."""

_FIXED_PORT = re.compile(r"--port[ =](\d+)")


@dataclass(frozen=True)
class ServedModel:
    """What a started server has to serve.

    Attributes:
        folder: of the model and its tokenizer.
        dtype: `float32`, `bfloat16` or `float16`.
        context_length: tokens of prompt and response.
        adapter_rank: rank of the adapters that it gets; 0 for whole weights.
        adapters: number of adapters loaded at once.
        on_cpu: whether it computes on a CPU.
    """

    folder: Path
    dtype: str
    context_length: int
    adapter_rank: int = 0
    adapters: int = 2
    on_cpu: bool = False


def build_command(start: str, model: ServedModel, port: int, token: str) -> list[str]:
    """Build the command of a server.

    Args:
        start: `vllm`, `sglang`, or a command whose placeholders are filled in; options are appended
            where it has none.
        model: to serve.
        port: to listen on.
        token: key to ask for; vLLM takes it from the environment.
    """
    if start in PROGRAMS:
        words = list(PROGRAMS[start])
    else:
        words = shlex.split(start)
        filled = {"model": str(model.folder), "port": str(port), "name": NAME}
        replaced = [_fill(word, filled) for word in words]
        if replaced != words:
            return replaced
    if any("sglang" in word for word in words):
        return [*words, *_sglang_options(model, port, token)]
    return [*words, *_vllm_options(words, model, port)]


def _fill(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _vllm_options(words: Sequence[str], model: ServedModel, port: int) -> list[str]:
    # `vllm serve MODEL`; the module of the API server has an option
    given = [str(model.folder)] if "serve" in words else ["--model", str(model.folder)]
    options = [
        *given,
        *("--host", HOST, *([] if _has_port(words) else ["--port", str(port)])),
        *("--served-model-name", NAME, "--dtype", model.dtype),
        *("--max-model-len", str(model.context_length)),
        *("--logprobs-mode", "processed_logprobs", "--enable-scale-out"),
    ]
    if model.on_cpu and not any("chunked-prefill" in word for word in words):
        # vLLM 0.32 ends where a request with a seed has part of its prompt left for the next step:
        # it sets the generator back, which on a CPU has no offset
        options.append("--no-enable-chunked-prefill")
    if model.adapter_rank:
        rank = next(rank for rank in VLLM_RANKS if rank >= model.adapter_rank)
        options += ["--enable-lora", "--max-lora-rank", str(rank)]
        options += ["--max-loras", str(model.adapters), "--max-cpu-loras", str(model.adapters)]
    return options


def _sglang_options(model: ServedModel, port: int, token: str) -> list[str]:
    options = [
        *("--model-path", str(model.folder), "--host", HOST, "--port", str(port)),
        *("--served-model-name", NAME, "--dtype", model.dtype),
        *("--context-length", str(model.context_length), "--api-key", token),
        "--enable-deterministic-inference",
    ]
    if model.adapter_rank:
        options += ["--enable-lora", "--max-lora-rank", str(model.adapter_rank)]
        options += ["--lora-target-modules", "all", "--max-loras-per-batch", str(model.adapters)]
    return options


def _has_port(words: Sequence[str]) -> bool:
    return bool(_FIXED_PORT.search(" ".join(words)))


def choose_port(start: str) -> int:
    """The port that a command names, else a free one.

    Raises:
        ConfigError: the named one is taken.
    """
    named = _FIXED_PORT.search(start)
    port = int(named[1]) if named else 0
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"rollout.start: port {port} is taken ({error.strerror}); need a free one. "
                "Leave --port out, and a free one is chosen"
            ) from error
        found: int = tried.getsockname()[1]
    return found


class ServerProcess:
    """A server that this process has started, and ends.

    It ends with this process, also where this one is killed: a small process watches both.

    Args:
        start: `rollout.start`.
        model: to serve.
        log: file that its output is appended to.
        sleep: waits for a number of seconds.

    Raises:
        ConfigError: its program is not there, or its port is taken.
    """

    def __init__(
        self,
        start: str,
        model: ServedModel,
        log: Path,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        port, self.token = choose_port(start), secrets.token_hex(16)
        self.command = build_command(start, model, port, self.token)
        _require_program(self.command[0])
        self.address, self.log, self._sleep = f"http://{HOST}:{port}", log, sleep
        environment = {
            **{name: value for name, value in os.environ.items() if not _is_of_rank(name)},
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_API_KEY": self.token,
        }
        logger.info(f"rollout.start: {shlex.join(self._shown())}, whose output goes to {log}")
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, supervisor.__file__, str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def _shown(self) -> list[str]:
        return ["KEY" if word == self.token else word for word in self.command]

    def wait_until_healthy(self, deadline: float) -> None:
        """Wait until it serves requests.

        Args:
            deadline: seconds.

        Raises:
            InferenceServerError: it ended, or was not ready in time.
        """
        client = HTTPClient(self.address, "rollout.start", HEALTH_TIMEOUT, bearer(self.token))
        began = time.monotonic()
        while True:
            self.require_running()
            try:
                client.request("/health")
                client.request("/v1/models")  # asks for the key, which another's server has not
            except HTTPFailure as error:
                reason = error
            else:
                logger.info(f"rollout.start: ready after {time.monotonic() - began:.0f} s")
                return
            if time.monotonic() - began > deadline:
                self.stop()
                raise InferenceServerError(
                    f"rollout.start: the server was not ready within {deadline:g} seconds "
                    f"({reason}); its last lines in {self.log}: {self._last_lines()}"
                )
            self._sleep(0.5)

    def require_running(self) -> None:
        """Check that it has not ended.

        Raises:
            InferenceServerError: it has; with its exit code and its last lines.
        """
        code = self._process.poll()
        if code is not None:
            raise InferenceServerError(
                f"rollout.start: the server ended with exit code {code}; its last lines in "
                f"{self.log}: {self._last_lines()}"
            )

    def _last_lines(self) -> str:
        """The end of its output, on one line."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return "none"
        kept = [" ".join(line.split()) for line in lines if line.strip()][-LAST_LINES:]
        return " | ".join(line[:200] for line in kept) or "none"

    def stop(self) -> None:
        """End it and all its processes; nothing where it has ended."""
        atexit.unregister(self.stop)
        if self._process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(2 * supervisor.GRACE)
        except subprocess.TimeoutExpired:  # it would have killed the server by now
            self._process.kill()
            self._process.wait()


def _is_of_rank(name: str) -> bool:
    """Whether a variable gives a process its place among ranks, of which the server is none."""
    return name in RANK_VARIABLES or name.startswith("TORCHELASTIC_")


def _require_program(program: str) -> None:
    """Refuse a command whose program is not there.

    Raises:
        ConfigError: says what to install or to type.
    """
    if shutil.which(program) is None:
        raise ConfigError(
            f"rollout.start: no program {program} is there; need an inference server. Install it, "
            "or give its command: rollout.start='/PATH/TO/VENV/bin/vllm serve'"
        )
