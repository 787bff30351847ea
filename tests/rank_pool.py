"""Processes that stay for many runs of a test module, so that torch is imported once."""

import json
import os
import selectors
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli import cli
from rlhf_cli.config.rank_env import RankEnv
from rlhf_cli.errors import RlhfError
from rlhf_cli.launch import launcher
from rlhf_cli.launch.worker import Task
from rlhf_cli.runs.run_files import RANK_LOGS
from rlhf_cli.train.metrics import read_metrics

SECONDS = 150.0
"""Longest time of a run."""

GRACE = 10.0
"""Time for the other ranks to end their run after the first has."""


class RankPool:
    """Ranks that wait for tasks; `rlhf` in this process gives them its run of several processes.

    Args:
        size: number of processes.
        folder: for the store through which they find each other, and their logs.
    """

    def __init__(self, size: int, folder: Path) -> None:
        self.size, self.folder = size, folder
        self.started = 0
        self.ranks: list[subprocess.Popen[str]] = []

    def run(self, words: list[str]) -> list[dict[str, Any]]:
        """Run a stage in all ranks; returns the lines of its metrics."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launcher, "_world_size", lambda processes: processes)
            patch.setattr(launcher, "run_ranks", lambda task, size: self._run_task(task))
            code = cli.main([*words, f"launch.processes={self.size}"])
        assert code == 0, f"exit code {code}\n{self.logs()}"
        [out] = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
        return read_metrics(Path(out) / "metrics.jsonl")

    def log(self, rank: int) -> str:
        """What a rank has written to stderr since it was started."""
        return (self.folder / f"{self.started}-{rank}.log").read_text()

    def logs(self) -> str:
        """The end of each rank's log."""
        return "\n".join(f"rank {rank}: {self.log(rank)[-3000:]}" for rank in range(self.size))

    def _run_task(self, task: Task) -> dict[str, Any]:
        (Path(task.out) / RANK_LOGS).mkdir(exist_ok=True)
        if not self.ranks:
            self._start()
        for rank in self.ranks:
            assert rank.stdin is not None
            rank.stdin.write(task.to_json() + "\n")
            rank.stdin.flush()
        answers = self._answers()
        if len(answers) < self.size or any("error" in one for one in answers.values()):
            self.close()  # ranks may wait for each other in different collectives
            missing = sorted(set(range(self.size)) - set(answers))
            errors = [
                f"rank {rank}: {one['error']}" for rank, one in answers.items() if "error" in one
            ]
            raise RlhfError("\n".join([*errors, *(f"rank {one} hangs" for one in missing)]))
        summary: dict[str, Any] = answers[0]["summary"]
        return summary

    def _answers(self) -> dict[int, dict[str, Any]]:
        """Rank -> what it answered, of those that did in time."""
        found: dict[int, dict[str, Any]] = {}
        until = time.monotonic() + SECONDS
        with selectors.DefaultSelector() as waiting:
            for i, rank in enumerate(self.ranks):
                assert rank.stdout is not None
                waiting.register(rank.stdout, selectors.EVENT_READ, i)
            while len(found) < self.size and (left := until - time.monotonic()) > 0:
                for key, _ in waiting.select(left):
                    line = self.ranks[key.data].stdout.readline()  # type: ignore[union-attr]
                    found[key.data] = json.loads(line) if line else {"error": "ended"}
                    waiting.unregister(key.fileobj)
                    until = min(until, time.monotonic() + GRACE)
        return found

    def _start(self) -> None:
        self.started += 1
        store = self.folder / f"{self.started}.store"
        for i in range(self.size):
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from tests.rank_pool import serve; serve({str(store)!r})"
            )
            variables = {
                **os.environ,
                **RankEnv(i, i, self.size).variables(),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            with (self.folder / f"{self.started}-{i}.log").open("w") as log:
                self.ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-c", program],
                        env=variables,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                    )
                )

    def close(self) -> None:
        """End the processes."""
        for rank in self.ranks:
            rank.kill()
        for rank in self.ranks:
            rank.communicate()
        self.ranks = []


def serve(store: str) -> None:
    """Run the tasks that arrive, one JSON line each, and answer each with a line."""
    from rlhf_cli.config.rank_env import read_rank_env
    from rlhf_cli.distributed.process_group import init_process_group, rendezvous_store

    own = read_rank_env()
    assert own is not None
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = rendezvous_store(f"file://{store}", own.rank, own.world_size)
    init_process_group(found, own.rank, own.world_size, own.local_rank)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"summary": Task(**json.loads(line)).run()}
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
