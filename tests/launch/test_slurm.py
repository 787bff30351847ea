"""The job of a run with `launch=slurm`, with small programs in place of Slurm's commands."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlhf_cli import cli
from rlhf_cli.launch import torchrun
from rlhf_cli.launch.slurm import cluster, ranks
from rlhf_cli.launch.slurm.config import SlurmConfig, time_limit
from rlhf_cli.launch.slurm.script import TEMPLATE
from rlhf_cli.runs import lock

TINY = ["sft", "model=tiny", "data=tiny"]
JOB = [*TINY, "launch=slurm", "launch.slurm.gpus_per_node=0"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    for name in ("sbatch", "squeue", "sinfo", "scontrol", "srun"):
        program(name, "exit 1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def program(name: str, *lines: str) -> None:
    """Put a shell script into PATH."""
    file = Path(os.environ["PATH"].partition(os.pathsep)[0]) / name
    file.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    file.chmod(0o755)


def refused(capsys, *words: str, code: int = 2) -> str:
    """The lines of an error."""
    capsys.readouterr()
    assert cli.main(list(words)) == code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("1:02:03", 3723), ("2-3", 183600), ("1-2:03", 93780),
        ("1-02:03:04", 93784), ("1:2:3:4", 0), ("2h", 0), ("-5", 0), ("1-", 0),
    ],
)  # fmt: skip
def test_the_forms_of_a_time_limit(text, seconds):
    assert time_limit(text) == seconds


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["time=2h"], "launch.slurm.time: got '2h'; need minutes, "),
        (["time=2"], "launch.slurm.signal_seconds: got 120 with launch.slurm.time=2; "),
        (["partition=a b"], "launch.slurm.partition: got 'a b'; need a name without spaces"),
        (["mem=64 gigabytes"], "launch.slurm.mem: got '64 gigabytes'; "),
        (["extra=--nodes=3"], "launch.slurm.extra: got --nodes=3; need its key. Try launch.slurm."),
        (["extra=-p gpu"], "launch.slurm.extra: got -p gpu; need its key. Try launch.slurm."),
        (["extra=--array=1-4"], "launch.slurm.extra: got --array=1-4, but the jobs of an array"),
        (["extra=--gpus=8"], "launch.slurm.extra: got --gpus=8; need its key. Try launch.slurm."),
        (["extra=-G 8"], "launch.slurm.extra: got -G 8; need its key. Try launch.slurm.gpus_per_"),
        (["extra=--gres=gpu:8"], "launch.slurm.extra: got --gres=gpu:8; need its key. Try launch."),
        (["extra=--gres=tmp:1,gpu"], "launch.slurm.extra: got --gres=tmp:1,gpu; need its key. Try"),
        (["extra=a100"], "launch.slurm.extra: got 'a100'; need an option of sbatch"),
        (["setup=#SBATCH --mem=1"], "launch.slurm.setup: got '#SBATCH --mem=1'; need shell."),
        (["gpus_per_node=4", "ntasks_per_node=3"], "launch.slurm.ntasks_per_node: got 3 with "),
        (["template=none.sbatch"], "launch.slurm.template: got none.sbatch; "),
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_before_anything_is_written(words, line, capsys, folder):
    found = refused(capsys, *TINY, "launch=slurm", *(f"launch.slurm.{word}" for word in words))
    assert found.startswith(f"error: {line}")
    assert list(folder.iterdir()) == []


def test_processes_have_to_fit_the_mesh(capsys):
    words = [*TINY, "launch=slurm", "launch.slurm.nodes=2", "launch.slurm.gpus_per_node=8"]
    mesh = ["launch.shard=hybrid", "launch.replicas=3"]
    found = refused(capsys, *words, *mesh)
    assert found.startswith(
        "error: launch.slurm.nodes: got 2 with 8 processes on each, 16 together"
    )
    found = refused(capsys, *words, "launch.processes=4")
    assert "launch.processes: got 4 with launch=slurm, which starts 16" in found
    assert cli.main([*words, "launch.shard=hybrid", "launch.replicas=2", "--cfg"]) == 0


def test_keys_of_a_job_need_launch_slurm(capsys):
    found = refused(capsys, *TINY, "launch.slurm.nodes=2")
    assert found.startswith("error: launch.slurm.nodes: given, but the run starts on this machine")


def test_a_sweep_is_not_submitted_as_one_job(capsys, folder):
    found = refused(capsys, "sft", "-m", *JOB[1:], "lr=1e-3,1e-4")
    assert "Try launch=local hydra/launcher=submitit_slurm" in found
    assert list(folder.iterdir()) == []


def test_a_dry_run_writes_and_shows_the_job_and_submits_nothing(folder, capsys):
    program("sbatch", "touch submitted; echo 7")
    keys = ["nodes=2", "gpus_per_node=8", "partition=gpu", "time=1-00:00:00", "account=lab"]
    keys += ["cpus_per_task=4", "mem=64G", "extra=--constraint=a100", "setup=module load cuda"]
    words = [*JOB[:-1], *(f"launch.slurm.{key}" for key in keys), "output_dir=run", "lr=1e-3"]
    assert cli.main([*words, "--dry-run", "device_memory=80GB"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("dry run of rlhf sft: nothing is loaded, trained or submitted\n")
    assert "\nmemory\n" in shown
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["job.sbatch", "job.yaml"]
    text = (folder / "run" / "job.sbatch").read_text()
    assert all(f"  {line}".rstrip() in shown for line in text.splitlines())
    lines = text.splitlines()
    assert lines[:16] == [
        "#!/bin/bash",
        "#SBATCH --job-name=rlhf-sft",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=lab",
        "#SBATCH --time=1-00:00:00",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=64G",
        "#SBATCH --signal=USR1@120",
        "#SBATCH --requeue",
        f"#SBATCH --chdir={folder}",
        f"#SBATCH --output={folder}/run/slurm.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --constraint=a100",
    ]
    assert "module load cuda" in lines
    assert "srun --distribution=block --kill-on-bad-exit=1 --cpus-per-task=4 \\" in lines
    assert "    launch.processes=16 \\" in lines
    written = yaml.safe_load((folder / "run" / "job.yaml").read_text())
    assert written["train"] == {"lr": 0.001}
    assert written["launch"]["slurm"]["partition"] == "gpu"
    assert "output_dir" not in written
    assert not (folder / "submitted").exists()


def test_the_json_of_a_dry_run_has_the_script(folder, capsys):
    assert cli.main([*JOB, "output_dir=run", "--dry-run", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)["job"]
    assert job == {"script": f"{folder}/run/job.sbatch", "text": Path(job["script"]).read_text()}


def submit(out: str, *words: str) -> Path:
    program("sbatch", "echo 12")
    program("squeue", "exit 0")
    assert cli.main([*JOB, f"output_dir={out}", *words]) == 0
    return Path(out).absolute()


def test_submitting_prints_the_job_and_how_to_watch_it(capsys):
    out = submit("my run")
    log = shlex.quote(f"{out}/slurm.log")
    assert capsys.readouterr().out.splitlines() == [
        "submitted: job 12",
        f"  run folder  {out}",
        f"  script      {out}/job.sbatch",
        "  state       squeue --job 12",
        f"  log         tail -F {log}",
        "  cancel      scancel 12",
    ]
    submit("my run", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "status": "submitted",
        "job": "12",
        "output_dir": str(out),
        "script": f"{out}/job.sbatch",
        "log": f"{out}/slurm.log",
    }


def run_script(out: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a job script as a batch shell does, and give what it prints."""
    env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n[1-2]", **os.environ, **variables}
    command = ["bash", str(out / "job.sbatch")]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_no_name_of_a_folder_reaches_the_shell_as_code():
    """The folder's name would make three files if it were not quoted."""
    name = 'it\'s $(touch a) `touch b`; touch c # "x" %j'
    out = submit(name)
    program("srun", 'printf "%s\\n" "$@"')
    done = run_script(out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [
        "--distribution=block",
        "--kill-on-bad-exit=1",
        sys.executable,
        "-P",
        "-m",
        "rlhf_cli",
        "sft",
        f"config={out}/job.yaml",
        "launch=local",
        "launch.processes=1",
        f"output_dir={out}",
    ]
    assert sorted(path.name for path in Path.cwd().iterdir()) == [name]


def test_a_folder_that_slurm_cannot_name_is_refused(capsys):
    found = refused(capsys, *JOB, "output_dir=a\\b")
    assert "need a path without backslashes and line breaks" in found


NEW_CHECKPOINT = 'mkdir -p "${@: -1:1}"; mkdir -p run/checkpoints/step-000010'


@pytest.mark.parametrize(
    ("ends", "restarts", "requeued"),
    [
        ([NEW_CHECKPOINT.partition("; ")[2], "exit 130"], "9", True),
        (["mkdir -p run/checkpoints/step-000010.tmp", "exit 130"], "9", False),
        (["exit 130"], "2", True),
        (["exit 0"], "0", False),
        (["exit 1"], "0", False),
    ],
    ids=["a checkpoint", "part of one", "a first start without one", "complete", "failed"],
)
def test_a_job_is_requeued_where_it_gets_further(ends, restarts, requeued):
    out = submit("run")
    program("srun", *ends)
    program("scontrol", 'echo "scontrol $*"')
    done = run_script(out, SLURM_RESTART_COUNT=restarts)
    assert ("scontrol requeue 12" in done.stdout) == requeued
    assert done.returncode == int(ends[-1].split()[1])


def test_a_strict_shell_of_the_user_still_requeues():
    out = submit("run", "launch.slurm.setup=set -euo pipefail")
    program("srun", "exit 130")
    program("scontrol", 'echo "scontrol $*"')
    done = run_script(out)
    assert "scontrol requeue 12" in done.stdout
    assert (done.returncode, done.stderr) == (130, "")


def test_a_job_without_requeue_stays_ended():
    out = submit("run", "launch.slurm.requeue=false")
    program("srun", "exit 130")
    program("scontrol", 'echo "scontrol $*"')
    assert "scontrol" not in run_script(out).stdout
    assert "#SBATCH --no-requeue" in (out / "job.sbatch").read_text()


def test_other_lines_of_squeue_are_no_jobs():
    program("squeue", "echo slurm_load_jobs: again", "echo '12|PENDING|run'")
    assert cluster.find_job(Path("run")) == cluster.Job("12", "PENDING")


def test_resources_beside_gpus_can_be_added():
    assert SlurmConfig(extra="--gres=lscratch:100").problems() == []


def test_a_folder_with_a_job_in_the_queue_is_refused(capsys):
    out = submit("run")
    program("squeue", f'echo "12|PENDING|{out}/job.sbatch"')
    found = refused(capsys, *JOB, "output_dir=run", code=1)
    assert found.startswith(f"error: output_dir: {out} is that of job 12, which is pending")


def test_the_values_of_a_job_that_never_started_can_change():
    submit("run", "lr=1e-3")
    submit("run", "lr=2e-3")
    assert yaml.safe_load(Path("run/job.yaml").read_text())["train"]["lr"] == 0.002


def test_a_complete_run_is_not_submitted(capsys):
    assert cli.main([*TINY, "train=smoke", "data.eval=none", "output_dir=run"]) == 0
    words = [*JOB, "train=smoke", "data.eval=none", "output_dir=run"]
    capsys.readouterr()
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"already complete: {Path('run').absolute()}\n"
    assert not Path("run/job.sbatch").exists()


def test_a_checkpoint_of_another_run_is_not_started_from_again_and_again(capsys):
    Path("elsewhere/step-000010").mkdir(parents=True)
    found = refused(capsys, *JOB, "resume=elsewhere/step-000010")
    assert "Try launch.slurm.requeue=false" in found
    out = submit("run", "resume=elsewhere/step-000010", "launch.slurm.requeue=false")
    assert "    resume=elsewhere/step-000010 \\" in (out / "job.sbatch").read_text().splitlines()


# Errors of Slurm


def test_a_machine_without_slurm(capsys, monkeypatch, folder):
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused(capsys, *JOB).startswith(
        "error: launch: got slurm, but there is no sbatch in PA"
    )
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("lines", "told", "code"),
    [
        (
            ["Munge encode failed: Failed to access socket (Did you start munged?)"],
            "Slurm: munge, which authenticates its users, does not run on this machine (Munge en",
            1,
        ),
        (
            ["invalid partition specified: gpux", "Batch job submission failed: Invalid partition"],
            "launch.slurm.partition: got gpux; need one of the cluster's, debug, gpu. "
            "Try launch.slurm.partition=gpu\n",
            2,
        ),
        (
            ["Batch job submission failed: Invalid account or account/partition combination"],
            "launch.slurm.account: got nothing; Slurm says: Batch job submission failed: Inv",
            2,
        ),
        (
            ["Batch job submission failed: Requested time limit is invalid"],
            "launch.slurm.time: got nothing; Slurm says: Batch job submission failed: Requested ti",
            2,
        ),
        (
            ["Invalid generic resource (gres) specification"],
            "launch.slurm.gpus_per_node: got nothing; Slurm says: Invalid generic resource",
            2,
        ),
        (
            ["Batch job submission failed: Unable to contact slurm controller"],
            "Slurm refuses the job: Batch job submission failed: Unable to contact slurm controlle",
            1,
        ),
    ],
)
def test_what_slurm_refuses_is_one_line_and_leaves_no_folder(lines, told, code, capsys, folder):
    program(
        "sbatch", *(f"echo {shlex.quote(f'sbatch: error: {line}')} >&2" for line in lines), "false"
    )
    program("sinfo", "printf 'debug\\ngpu\\n'")
    found = refused(capsys, *JOB, "launch.slurm.partition=gpux", "output_dir=run", code=code)
    assert found.startswith(f"error: {told}")
    assert found.count("\n") == 1
    assert list(folder.iterdir()) == []


# Templates


def test_a_template_that_lacks_fields_is_refused_with_all_of_them(capsys, folder):
    Path("my.sbatch").write_text("#!/bin/bash\n{{ comand }}\n")
    words = [*JOB, "launch.slurm.template=my.sbatch", "launch.slurm.setup=module load cuda"]
    found = refused(capsys, *words).splitlines()
    assert found[0].endswith(
        "my.sbatch lacks {{ directives }}, {{ command }}, {{ setup }}; see rlhf docs slurm"
    )
    assert found[1].endswith("has {{ comand }}, which is no field. Try {{ command }}")
    assert not Path("my run").exists()


def test_a_template_needs_its_program(capsys):
    Path("my.sbatch").write_text("{{ directives }}\n{{ command }}\n")
    found = refused(capsys, *JOB, "launch.slurm.template=my.sbatch")
    assert "does not begin with #!" in found


def test_a_template_of_the_users_own():
    Path("my.sbatch").write_text("#!/bin/bash\n{{directives}}\narray=(${#x[@]})\n{{ command }}\n")
    out = submit("run", "launch.slurm.template=my.sbatch")
    lines = (out / "job.sbatch").read_text().splitlines()
    assert lines[:2] == ["#!/bin/bash", "#SBATCH --job-name=rlhf-sft"]
    assert "array=(${#x[@]})" in lines
    assert lines[-1] == f"    output_dir={out}"


def test_the_shipped_template_is_found_in_the_package():
    assert TEMPLATE.is_file()
    assert SlurmConfig(nodes=2, gpus_per_node=8).processes == 16


# Ranks


STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_TASKS_PER_NODE": "5(x2),2",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "1",
    "SLURM_CPUS_PER_TASK": "3",
}


def test_a_task_of_a_step_has_the_variables_of_torchrun():
    assert ranks.rank_variables(STEP) == {
        "RANK": "11",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "12",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(10_000 + 8 * 123456 % 20_000),
        "OMP_NUM_THREADS": "3",
    }


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_STEP_ID": ""},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PTY_PORT": "4711"},
        {"RANK": "0", "WORLD_SIZE": "2"},
    ],
    ids=["a batch shell", "a single task", "a terminal", "torchrun in a task"],
)
def test_other_processes_in_a_job_are_no_ranks_of_slurm(other):
    assert ranks.rank_variables({**STEP, **other}) == {}


def test_the_variables_of_a_user_are_kept(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "9")
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert torchrun.read_launcher_env(["sft"]).rank == 11
    assert os.environ["MASTER_PORT"] == "9"
    assert os.environ["MASTER_ADDR"] == "10.0.0.1"
    assert torchrun.read_launcher_env(["recipes"]) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"), ("gpu[07-09,12],login1", "gpu07"), ("a,b", "a"),
        ("rack[1-2]node[03-04]-ib", "rack1node03-ib"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list_of_nodes(nodes, first):
    assert ranks.first_host(nodes) == first


def test_a_node_without_a_name_in_the_network_has_the_address_that_slurm_knows():
    program("scontrol", '[ "$4" = n1.invalid ] && echo "NodeName=n1 NodeAddr=10.1.2.3 X=1"')
    found = ranks.rank_variables({**STEP, "SLURM_STEP_NODELIST": "n1.invalid,n2"})
    assert found["MASTER_ADDR"] == "10.1.2.3"


def test_a_requeued_job_waits_for_the_lock_of_its_former_start(tmp_path, monkeypatch):
    held = [True, True, True, False, False]
    waited = []
    monkeypatch.setattr(lock, "is_held", lambda path: held.pop(0))
    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    ranks.wait_for_former_start(tmp_path)
    assert len(held) == 5, "this is no requeued job"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    ranks.wait_for_former_start(tmp_path)
    assert waited == [ranks.POLL_SECONDS] * 2


def test_accelerate_with_cpu_would_train_in_one_process(capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    assert "Try --multi_gpu in place of --cpu" in refused(capsys, *TINY)


def test_a_failed_rank_lets_rank_0_record_the_error_first(monkeypatch):
    """The launcher ends rank 0 when another rank ends with an error; 130 is none."""
    slept = []
    monkeypatch.setattr(torchrun.time, "sleep", slept.append)
    assert torchrun._end_after_rank_0(130) == 0
    assert slept == []
    assert torchrun._end_after_rank_0(5) == 5
    assert slept == [torchrun.GRACE_SECONDS]
