"""A Slurm cluster on this machine: two nodes of two CPUs each, in a temporary folder.

It needs Debian's `slurm-wlm` and `munge`, or the same elsewhere; the daemons run as the user of the
tests. What uses it is skipped where they are not installed.
"""

import getpass
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FOLDERS = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
PROGRAMS = {
    name: shutil.which(name, path=_FOLDERS)
    for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
}

needs_slurm = pytest.mark.skipif(
    not all(PROGRAMS.values()), reason="Slurm and munge are not installed"
)

# Debian's Slurm has several slurmd on one machine; linuxproc and task/none need no cgroups.
_CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=30
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=2 RealMemory=4000 \
Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=2 RealMemory=4000 \
Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes=n1 MaxTime=10 State=UP
"""


class Cluster:
    """A running cluster.

    Attributes:
        folder: of its files; the path is short, as that of a socket has to be.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munge, the controller and both nodes, and wait until the nodes are idle."""
        for name in ("munge", "state"):
            (self.folder / name).mkdir(mode=0o755)
        self.folder.chmod(0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, first, second = free_ports(3)
        text = _CONFIG.format(
            folder=self.folder,
            user=getpass.getuser(),
            controller=controller,
            first=first,
            second=second,
        )
        (self.folder / "slurm.conf").write_text(text)
        # a GPU is a file to Slurm; these two are on every machine
        gpus = "AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
        (self.folder / "gres.conf").write_text(gpus)
        self.start_munge()
        self._daemon("slurmctld", "-D", "-i")
        wait_for(lambda: " is UP" in self.run("scontrol", "ping"), 120, self.logs)
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        idle = lambda: {*self.run("sinfo", "-h", "-N", "-o", "%T").split()} == {"idle"}  # noqa: E731
        wait_for(idle, 120, self.logs)

    def start_munge(self) -> None:
        """Start the daemon that authenticates users."""
        munge = self.folder / "munge"
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        options |= {"seed-file": "seed"}
        paths = [f"--{name}={munge / file}" for name, file in options.items()]
        self.munge = self._daemon("munged", "--foreground", "--force", *paths)
        wait_for((munge / "socket").exists, 20)

    def _daemon(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}-{len(self.daemons)}.out").open("wb") as output:
            program = str(PROGRAMS[name])
            env = {**os.environ, "SLURM_CONF": self.configuration}
            daemon = subprocess.Popen(
                [program, *arguments], stdout=output, stderr=output, env=env, process_group=0
            )
        self.daemons.append(daemon)
        return daemon

    def logs(self) -> str:
        """Last lines of all daemons, for a failed test."""
        texts = {path.name: path.read_text() for path in self.folder.glob("*.out")}
        return "\n".join(f"{name}: {text[-1000:]}" for name, text in texts.items())

    @property
    def configuration(self) -> str:
        """Path of `slurm.conf`; `SLURM_CONF` names it to all of Slurm's commands."""
        return str(self.folder / "slurm.conf")

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        env = {**os.environ, "SLURM_CONF": self.configuration}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False).stdout

    def state(self, job: str) -> str:
        """State of a job, as `RUNNING`."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return shown.partition("JobState=")[2].partition(" ")[0]

    def wait(self, job: str, *states: str, seconds: float = 180) -> str:
        """Wait until a job has one of the states, and return it."""
        wait_for(lambda: self.state(job) in states, seconds, lambda: f"{job}: {self.state(job)}")
        return self.state(job)

    def log_holds(self, out: Path, text: str, seconds: float = 120) -> None:
        """Wait until the log of a run's job has a text."""
        log = out / "slurm.log"
        shown = lambda: log.read_text()[-2000:] if log.exists() else "no log"  # noqa: E731
        wait_for(lambda: text in shown(), seconds, shown)

    def start_now(self, job: str) -> None:
        """Start a requeued job, which Slurm holds back for two minutes."""
        self.run("scontrol", "update", f"job={job}", "StartTime=now")

    def stop(self) -> None:
        """End all jobs and daemons, and remove the folder."""
        self.run("scancel", "--signal=KILL", "--full", f"--user={getpass.getuser()}")
        self.run("scancel", f"--user={getpass.getuser()}")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster whose commands this process and its children use inside the block."""
    cluster = Cluster()
    try:
        cluster.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", cluster.configuration)
            yield cluster
    finally:
        cluster.stop()


def wait_for(
    is_so: Callable[[], bool], seconds: float, describe: Callable[[], str] = lambda: ""
) -> None:
    """Wait until something is so; fails after a time."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"not within {seconds} s {describe()}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that no program uses now, below those that Linux gives to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("", port))
            found.append(port)
    return found
