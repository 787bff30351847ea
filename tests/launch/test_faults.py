"""Faults of one rank in each phase: the message, the exit code, and the run that goes on after."""

import os
import re
import signal
import threading
import time

import pytest
import torch
from torch import distributed as dist

from rlhf_cli import cli
from rlhf_cli.distributed.process_group import raising_rank_failed_in_torch
from rlhf_cli.errors import RankFailed
from rlhf_cli.launch import group
from tests.helpers import lines_of
from tests.launch.starts import two_machines, with_faults, words

TWO = "launch.processes=2"
PPO = ("reward.length_penalty=1", "sampling.max_new_tokens=4", "data.max_length=64", "max_steps=3")
AGAIN = "the last checkpoint is kept. Give the same command again to continue"


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Metrics of runs without a fault, made when a test first asks."""
    made = {}

    def metrics(stage, *changes):
        if stage not in made:
            out = tmp_path_factory.mktemp(stage)
            assert cli.main(words(stage, out / "run", TWO, *changes)) == 0
            made[stage] = lines_of(out / "run")
        return made[stage]

    return metrics


def fail(monkeypatch, argv, fault, capfd):
    """Run with a fault; gives exit code and what was shown."""
    with monkeypatch.context() as patch:
        with_faults(patch, fault)
        code = cli.main(argv)
    return code, capfd.readouterr().err


def test_a_rank_killed_while_it_loads_is_told_in_one_line(tmp_path, monkeypatch, capfd):
    code, shown = fail(monkeypatch, words("sft", tmp_path / "run", TWO), "1:load:1:kill", capfd)
    errors = [line for line in shown.splitlines() if line.startswith("error:")]
    assert code == 1
    assert len(errors) == 1
    assert errors[0].startswith("error: rank 1 was killed by SIGKILL")
    assert errors[0].endswith(AGAIN)
    assert "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", ["1:load:1", "1:update:4", "1:evaluate:3", "1:save:2", "0:save:2"]
)
def test_a_rank_is_killed_and_the_run_goes_on(fault, tmp_path, monkeypatch, capfd, unbroken):
    argv = words("sft", tmp_path / "run", TWO, "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, f"{fault}:kill", capfd)
    assert code == 1
    assert f"error: rank {fault[0]} was killed by SIGKILL" in shown
    assert cli.main(argv) == 0
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


@pytest.mark.slow
def test_a_rank_is_killed_that_shares_the_weights(tmp_path, monkeypatch, capfd):
    """The others fail in a collective call of FSDP's own."""
    argv = words("sft", tmp_path / "run", TWO, "launch.shard=full", "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, "1:evaluate:2:kill", capfd)
    assert code == 1
    assert "error: rank 1 was killed by SIGKILL" in shown
    assert "Traceback" not in shown
    assert cli.main(argv) == 0


@pytest.mark.slow
def test_a_rank_is_killed_in_a_rollout_and_the_run_goes_on(tmp_path, monkeypatch, capfd, unbroken):
    argv = words("ppo", tmp_path / "run", TWO, *PPO, "train.save_steps=1")
    code, shown = fail(monkeypatch, argv, "1:rollout:3:kill", capfd)
    assert (code, "error: rank 1 was killed by SIGKILL" in shown) == (1, True)
    assert cli.main(argv) == 0
    assert lines_of(tmp_path / "run") == unbroken("ppo", *PPO, "train.save_steps=1")


@pytest.mark.slow
def test_a_rank_out_of_memory_is_named_with_its_phase(tmp_path, monkeypatch, capfd, unbroken):
    argv = words("sft", tmp_path / "run", TWO, "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, "1:update:4:memory", capfd)
    assert code == 4
    assert "error: rank 1: out of memory in phase update" in shown
    assert shown.count("error: rank") == 1
    assert cli.main(argv) == 0
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch, capfd, unbroken):
    argv = words("sft", tmp_path / "run", TWO, "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, "0:save:2:disk", capfd)
    assert code == 1
    assert re.search(r"error: .*step-000004: .*could not be written \(file too large\)", shown)
    assert "step-000002 still stands" in shown
    assert cli.main(argv) == 0
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


@pytest.mark.slow
def test_a_slow_rank_is_named_and_the_run_ends_well(tmp_path, monkeypatch, capfd, unbroken):
    argv = words("sft", tmp_path / "run", TWO, "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, "1:evaluate:2:sleep", capfd)
    assert code == 0
    assert re.search(
        r"rank 1 \(process \d+ on .+\) is behind in phase evaluate, at faults.py", shown
    )
    assert shown.count("is behind") == 1
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_goes_on_when_it_is_continued(
    tmp_path, monkeypatch, capfd, unbroken
):
    log = tmp_path / "run" / "log.txt"

    def wake():
        while not (log.exists() and (found := re.search(r"kill -CONT (\d+)", log.read_text()))):
            time.sleep(0.1)
        os.kill(int(found[1]), signal.SIGCONT)

    threading.Thread(target=wake, daemon=True).start()
    argv = words("sft", tmp_path / "run", TWO, "data.eval=tiny")
    code, shown = fail(monkeypatch, argv, "1:update:3:stop", capfd)
    assert (code, "is stopped (SIGSTOP)" in shown) == (0, True)
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


def end_of(ranks):
    shown = [rank.communicate(timeout=200)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], shown


@pytest.mark.slow
def test_two_machines_go_on_after_one_was_killed(tmp_path, unbroken):
    argv = words("sft", tmp_path / "run", "data.eval=tiny")
    with two_machines(argv, argv, fault="1:update:4:kill") as ranks:
        codes, shown = end_of(ranks)
    assert codes == [1, -signal.SIGKILL]
    [line] = [line for line in shown[0].splitlines() if line.startswith("error:")]
    assert re.match(r"error: rank 1 \(process \d+ on .+\) was ended from outside", line)
    assert line.endswith(AGAIN)
    with two_machines(argv, argv) as ranks:
        codes, shown = end_of(ranks)
    assert (codes, shown[1]) == ([0, 0], "")
    assert lines_of(tmp_path / "run") == unbroken("sft", "data.eval=tiny")


@pytest.mark.slow
def test_where_rank_0_is_killed_another_speaks(tmp_path):
    argv = words("sft", tmp_path / "run")
    with two_machines(argv, argv, fault="0:update:2:kill") as ranks:
        codes, shown = end_of(ranks)
    assert codes == [-signal.SIGKILL, 1]
    assert shown[1].startswith("rank 1: error: rank 0 (process")


@pytest.mark.slow
def test_an_error_of_another_machine_is_told_once_with_its_cause(tmp_path):
    argv = words("sft", tmp_path / "run")
    with two_machines(argv, argv, fault="1:update:2:memory") as ranks:
        codes, shown = end_of(ranks)
    assert codes == [1, 4]
    assert "rank 1: error: out of memory in phase update" in shown[1]
    assert re.search(r"error: rank 1 \(.*\) failed in phase update: out of memory", shown[0])


@pytest.mark.slow
def test_machines_with_other_commands_are_refused(tmp_path):
    argv = words("sft", tmp_path / "run")
    with two_machines(argv, [*argv, "weight_decay=0.1"]) as ranks:
        codes, shown = end_of(ranks)
    assert codes == [2, 1]  # rank 1 only repeats that it was refused
    [line] = [line for line in shown[0].splitlines() if line.startswith("error:")]
    assert "command: sft" in line
    assert "weight_decay=0.1" in line
    assert shown[1] == ""


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:4"), RankFailed),
        (dist.DistBackendError("NCCL error"), RankFailed),
        (RuntimeError("shapes cannot be multiplied"), RuntimeError),
        (torch.OutOfMemoryError("NCCL has no memory"), torch.OutOfMemoryError),
    ],
)
def test_only_errors_of_connections_are_told_as_those_of_another_rank(error, raised):
    with pytest.raises(raised) as caught, raising_rank_failed_in_torch():
        raise error
    assert type(caught.value) is raised


def test_a_name_that_the_network_does_not_know(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(group, "RESOLVE_SECONDS", 0.0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "no-such-machine.invalid")
    assert cli.main(words("sft", tmp_path / "run")) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "MASTER_ADDR: got no-such-machine.invalid, a name that" in line
    monkeypatch.delenv("MASTER_ADDR")
    assert cli.main(words("sft", tmp_path / "run")) == 2
    assert "MASTER_ADDR, MASTER_PORT: not set" in capfd.readouterr().err
