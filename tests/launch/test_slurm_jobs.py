"""Jobs of a real Slurm cluster on this machine; skipped where Slurm is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli import cli
from tests.helpers import last_of_each, lines_of
from tests.launch.slurm_cluster import needs_slurm, running_cluster, wait_for

pytestmark = needs_slurm

STEPS = 60


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory):
    """One thread: the result of two processes is bitwise the same for equal numbers of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def words(out, *changes):
    return last_of_each(
        "sft",
        "model=tiny",
        "data=tiny",
        "train.precision=fp32",
        "batch_size=4",
        "lr=1e-3",
        f"max_steps={STEPS}",
        f"output_dir={out}",
        *changes,
    )


def slurm(out, *changes, nodes=2):
    keys = [f"nodes={nodes}", "gpus_per_node=1", "partition=debug"]
    return words(out, "launch=slurm", *(f"launch.slurm.{key}" for key in keys), *changes)


def submit(capsys, *argv) -> str:
    """Submit a run, and return the number of its job."""
    capsys.readouterr()
    assert cli.main([*argv, "--json"]) == 0, capsys.readouterr()
    return json.loads(capsys.readouterr().out)["job"]


def logged_steps(out) -> int:
    file = out / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def status(out) -> str:
    return json.loads((out / "manifest.json").read_text())["status"]


# Without training: fast


@pytest.mark.usefixtures("cluster")
def test_partitions_of_the_cluster_are_named(tmp_path, capsys):
    assert cli.main(slurm(tmp_path / "run", "launch.slurm.partition=shrt")) == 2
    assert capsys.readouterr().err == (
        "error: launch.slurm.partition: got shrt; need one of the cluster's, debug, short. "
        "Try launch.slurm.partition=short\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("cluster")
def test_what_no_node_has_is_refused_by_its_key(tmp_path, capsys):
    assert cli.main(slurm(tmp_path / "run", "launch.slurm.mem=900G", nodes=1)) == 2
    assert capsys.readouterr().err.startswith("error: launch.slurm.mem: got 900G; Slurm says: ")


def test_without_munge_the_line_says_so(tmp_path, capsys):
    with running_cluster() as own:
        own.munge.terminate()
        own.munge.wait()
        assert cli.main(slurm(tmp_path / "run")) == 1
        own.start_munge()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Slurm: munge, which authenticates its users, does not run on")
    assert not (tmp_path / "run").exists()


TEMPLATE = """\
#!/bin/bash
{{ directives }}
{{ setup }}
arguments=$(printf '<%s>' {{ command }})
echo "$SLURM_JOB_NUM_NODES nodes, $SLURM_NTASKS_PER_NODE tasks, $CUDA_VISIBLE_DEVICES: $arguments"
"""


def test_sbatch_reads_the_script_as_it_is_meant(cluster, tmp_path, capsys, monkeypatch):
    """Its log is in a folder whose name needs quotes, and every option has its effect."""
    monkeypatch.chdir(tmp_path)
    Path("my.sbatch").write_text(TEMPLATE)
    out = tmp_path / 'it\'s "a" %j # run'
    keys = ["template=my.sbatch", "gpus_per_node=2", "setup=cd /", "time=10", "job_name=mine"]
    job = submit(capsys, *slurm(out, *(f"launch.slurm.{key}" for key in keys)))
    assert cluster.wait(job, "COMPLETED", "FAILED", seconds=60) == "COMPLETED"
    cluster.log_holds(out, f"<output_dir={out}>", 10)
    [line] = (out / "slurm.log").read_text().splitlines()
    assert line.startswith("2 nodes, 2 tasks, 0,1: <srun><--distribution=block><--kill-on-bad-")
    assert "<launch.processes=4>" in line
    shown = cluster.run("scontrol", "--oneliner", "show", "job", job)
    for text in ("JobName=mine", "TimeLimit=00:10:00", "Requeue=1", f"WorkDir={tmp_path}"):
        assert f" {text} " in f" {shown} "


def test_a_job_in_the_queue_keeps_its_folder(cluster, tmp_path, capsys):
    out = tmp_path / "run"
    job = submit(capsys, *slurm(out, "launch.slurm.extra=--hold"))
    assert cli.main(slurm(out)) == 1
    assert f"is that of job {job}, which is pending" in capsys.readouterr().err
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")


# Training


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The run in two processes of this machine, without Slurm."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert cli.main(words(out, "launch.processes=2")) == 0
    return out


@pytest.mark.slow
def test_a_job_of_two_nodes_is_the_run_of_two_processes(cluster, unbroken, tmp_path, capsys):
    out = tmp_path / "run"
    job = submit(capsys, *slurm(out))
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", (out / "slurm.log").read_text()
    assert lines_of(out) == lines_of(unbroken)
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["processes"], manifest["status"]) == (2, "complete")
    assert (out / "ranks" / "rank-1.log").exists()
    again = submit_complete(capsys, out)
    assert again == {"status": "complete", "output_dir": str(out)}
    assert "Traceback" not in (out / "slurm.log").read_text()


def submit_complete(capsys, out):
    capsys.readouterr()
    assert cli.main([*slurm(out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_signal_requeues_the_job_which_continues_to_the_same_metrics(
    cluster, unbroken, tmp_path, capsys
):
    out = tmp_path / "run"
    job = submit(capsys, *slurm(out))
    wait_for(lambda: logged_steps(out) > 5, 120)
    cluster.run("scancel", "--signal=USR1", job)
    cluster.wait(job, "PENDING", "COMPLETED", "FAILED")
    assert status(out) == "interrupted"
    [checkpoint] = (out / "checkpoints").iterdir()
    assert int(checkpoint.name.removeprefix("step-")) < STEPS
    cluster.log_holds(out, "is requeued and continues from its last checkpoint", 5)
    cluster.start_now(job)
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", (out / "slurm.log").read_text()
    log = (out / "slurm.log").read_text()
    assert f"continuing from {checkpoint.name}" in log
    assert "Traceback" not in log
    assert lines_of(out) == lines_of(unbroken)
    assert len(json.loads((out / "manifest.json").read_text())["starts"]) == 2


@pytest.mark.slow
def test_the_time_limit_requeues_and_scancel_does_not(cluster, tmp_path, capsys):
    """Slurm itself sends the signal; `scancel` ends the second start after a checkpoint.

    Slurm looks every 30 seconds and sends the signal up to 30 seconds early: here 70 to 100 seconds
    after the start.
    """
    out = tmp_path / "run"
    keys = ["launch.slurm.time=2", "launch.slurm.signal_seconds=20", "max_steps=100000"]
    job = submit(capsys, *slurm(out, *keys, nodes=1))
    cluster.wait(job, "RUNNING")
    cluster.log_holds(out, "is requeued", 150)
    cluster.wait(job, "PENDING")
    cluster.run("scontrol", "update", f"job={job}", "TimeLimit=10")
    cluster.start_now(job)
    steps = logged_steps(out)
    wait_for(lambda: logged_steps(out) > steps + 5, 120)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    wait_for(lambda: status(out) == "interrupted", 60)
    [*_, line] = lines_of(out)
    assert (out / "checkpoints" / f"step-{line['step']:06d}").is_dir()
    steps = [line["step"] for line in lines_of(out) if "loss" in line]
    assert steps == sorted(set(steps)), "one history"
    assert (out / "slurm.log").read_text().count("is requeued") == 1


@pytest.mark.slow
def test_a_failing_job_tells_its_error_and_is_not_requeued(cluster, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "How deep?", "completion": " Deep"}\n' * 8)
    out = tmp_path / "run"
    job = submit(capsys, *slurm(out, f"data={rows}", "lr=1e38"))
    cluster.wait(job, "RUNNING", "FAILED")
    assert cluster.wait(job, "COMPLETED", "FAILED", "PENDING") == "FAILED"
    log = (out / "slurm.log").read_text()
    assert " ExitCode=5:0" in cluster.run("scontrol", "show", "job", job), log
    told = [line for line in log.splitlines() if "stopped before the optimizer step" in line]
    assert [line.partition("error: ")[0] for line in sorted(told)] == ["", "rank 1: "], log
    assert "Traceback" not in log
    assert status(out) == "failed"


# Sweeps and torchrun


def installed(plugin: str) -> bool:
    if not importlib.util.find_spec("hydra_plugins"):
        return False
    return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not installed("hydra_submitit_launcher"), reason="not installed")
def test_the_jobs_of_a_sweep_are_jobs_of_slurm(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug"]
    limit = ["hydra.launcher.timeout_min=10", "hydra.launcher.max_num_timeout=1"]
    argv = words("sweep", "lr=1e-3,1e-4", "max_steps=3", "-m", *launcher, *limit)
    assert cli.main(argv) == 0, capfd.readouterr()
    out = capfd.readouterr().out
    assert "sweep: 2 of 2 jobs complete" in out
    assert "best by eval/loss (min): job 0" in out
    scripts = [path.read_text() for path in Path("sweep/.submitit").rglob("*.sh")]
    assert any("#SBATCH --array=0-1" in text for text in scripts)


@pytest.mark.slow
def test_torchrun_on_two_nodes_is_the_run_of_two_processes(unbroken, tmp_path):
    """No Slurm: each torchrun believes to be on a machine of its own."""
    out = tmp_path / "run"
    port = str(10_000 + os.getpid() % 20_000)
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    start = [sys.executable, "-m", "torch.distributed.run", *options, f"--master-port={port}"]
    nodes = [
        subprocess.Popen(
            [*start, f"--node-rank={rank}", "-m", "rlhf_cli", *words(out)], stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    errors = [node.communicate(timeout=150)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert lines_of(out) == lines_of(unbroken)
