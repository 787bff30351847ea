import re
from dataclasses import dataclass, field
from typing import Annotated

from rlhf_cli.config.schema import FilePath, Ge, Le, RuntimeOnly, Unit

_UNLIMITED = ("unlimited", "infinite")
_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+)(?::(?P<seconds>\d+))?)?"
    r"|(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)|(?P<only>\d+))"
)
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
_NAME = re.compile(r"[^\s'\"\\#]*")

OWN_OPTIONS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "time",
    "nodes": "nodes",
    "ntasks-per-node": "ntasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "gpus": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "mem",
    "job-name": "job_name",
    "signal": "signal_seconds",
    "requeue": "requeue",
    "no-requeue": "requeue",
}
"""Option of sbatch -> the key of `launch.slurm` that sets it."""

_SHORT = {"p": "partition", "A": "account", "q": "qos", "t": "time", "N": "nodes", "J": "job-name"}
_SHORT |= {"c": "cpus-per-task", "n": "ntasks", "o": "output", "e": "error", "a": "array"}
_SHORT |= {"D": "chdir", "W": "wait", "G": "gpus"}

_GPUS_IN_GRES = re.compile(r"--gres[=\s](?:.*,)?(?:gres[:/])?gpu\b")

_FIXED = {
    "ntasks": "the number of processes is launch.slurm.nodes x launch.slurm.ntasks_per_node",
    "array": "the jobs of an array would share one run folder",
    "output": "the log stands in the run folder",
    "error": "the log stands in the run folder",
    "open-mode": "the log is continued when the job is requeued",
    "chdir": "the job runs in the folder that it was submitted from",
    "wait": "the command returns when the job is submitted",
    "wrap": "the job runs job.sbatch",
}
"""Option of sbatch that no key sets -> the reason."""


@dataclass(kw_only=True)
class SlurmConfig:
    """The Slurm job of a run with `launch=slurm`; keys are named as in sbatch."""

    partition: Annotated[str, RuntimeOnly()] = ""
    """Partition; empty for the cluster's default."""

    account: Annotated[str, RuntimeOnly()] = ""
    """Account that is charged; empty for the user's default."""

    qos: Annotated[str, RuntimeOnly()] = ""
    """Quality of service; empty for the default."""

    time: Annotated[str, RuntimeOnly()] = ""
    """Time limit, as in `30` (minutes), `12:00:00` or `2-00:00:00` (days); empty for the
    partition's default."""

    nodes: Annotated[int, Ge(1), RuntimeOnly()] = 1
    """Machines of the job. They must share the run folder and the data."""

    gpus_per_node: Annotated[int, Ge(0), RuntimeOnly()] = 1
    """GPUs of each machine; 0 for training on CPUs."""

    ntasks_per_node: Annotated[int, Ge(0), RuntimeOnly()] = 0
    """Processes on each machine; 0 is one per GPU, or a single one without GPUs."""

    cpus_per_task: Annotated[int, Ge(0), RuntimeOnly()] = 0
    """CPU cores of each process, and its number of threads; 0 for the cluster's default, which
    often is one."""

    mem: Annotated[str, RuntimeOnly()] = ""
    """Memory of each machine, as in `64G`; `0` is all of it, empty the cluster's default."""

    job_name: Annotated[str, RuntimeOnly()] = ""
    """Name of the job in the queue; empty for `rlhf-` and the stage."""

    signal_seconds: Annotated[int, Ge(1), Le(65535), Unit("seconds"), RuntimeOnly()] = 120
    """Time before the limit at which Slurm sends SIGUSR1, for the step in progress and a
    checkpoint. Slurm may send it up to a minute earlier."""

    requeue: Annotated[bool, RuntimeOnly()] = True
    """Requeue the job after a checkpoint that the time limit or a preemption caused, and after the
    failure of a machine. It then continues the same run."""

    setup: Annotated[str | list[str], RuntimeOnly()] = field(default_factory=list)
    """A line of shell that runs before the processes start, as in `module load cuda`, or a list of
    lines."""

    extra: Annotated[str | list[str], RuntimeOnly()] = field(default_factory=list)
    """A further option of sbatch, as in `--constraint=a100`, or a list of options."""

    template: Annotated[str, FilePath(), RuntimeOnly()] = ""
    """File of a job script with fields as `{{ command }}`, to use instead of the shipped one; see
    `rlhf docs slurm`."""

    @property
    def setup_lines(self) -> list[str]:
        """Lines of shell before the processes start."""
        return self.setup if isinstance(self.setup, list) else [self.setup]

    @property
    def extra_options(self) -> list[str]:
        """Further options of sbatch, one each."""
        return self.extra if isinstance(self.extra, list) else [self.extra]

    @property
    def tasks_per_node(self) -> int:
        """Number of processes on each machine."""
        return self.ntasks_per_node or max(1, self.gpus_per_node)

    @property
    def processes(self) -> int:
        """Number of processes of the run."""
        return self.nodes * self.tasks_per_node

    def problems(self) -> list[str]:
        """Contradictions, and values that sbatch would refuse, one line each."""
        return [*self._names(), *self._time(), *self._tasks(), *self._extra(), *self._setup()]

    def _names(self) -> list[str]:
        keys = ("partition", "account", "qos", "job_name")
        values = {key: getattr(self, key) for key in keys}
        found = [
            f"launch.slurm.{key}: got {value!r}; need a name without spaces and quotes"
            for key, value in values.items()
            if not _NAME.fullmatch(value)
        ]
        if self.mem and not _MEMORY.fullmatch(self.mem):
            found.append(
                f"launch.slurm.mem: got {self.mem!r}; need a whole number with K, M, G or T. "
                "Try launch.slurm.mem=64G"
            )
        return found

    def _time(self) -> list[str]:
        if not self.time or self.time.lower() in _UNLIMITED:
            return []
        limit = time_limit(self.time)
        if not limit:
            return [
                f"launch.slurm.time: got {self.time!r}; need minutes, HOURS:MINUTES:SECONDS or "
                "DAYS-HOURS:MINUTES:SECONDS. Try launch.slurm.time=12:00:00"
            ]
        if self.signal_seconds >= limit:
            return [
                f"launch.slurm.signal_seconds: got {self.signal_seconds} with launch.slurm.time="
                f"{self.time}; need less than the {limit} seconds of the limit. "
                f"Try launch.slurm.signal_seconds={limit // 2}"
            ]
        return []

    def _tasks(self) -> list[str]:
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            return [
                f"launch.slurm.ntasks_per_node: got {self.ntasks_per_node} with "
                f"launch.slurm.gpus_per_node={self.gpus_per_node}; need one process per GPU. "
                "Try launch.slurm.ntasks_per_node=0, or launch.slurm.gpus_per_node=0 for CPUs"
            ]
        return []

    def _extra(self) -> list[str]:
        found = []
        for option in self.extra_options:
            name = _long_name(option)
            if not option.startswith("-") or "\n" in option:
                found.append(
                    f"launch.slurm.extra: got {option!r}; need an option of sbatch, as in "
                    "--constraint=a100"
                )
            elif name in OWN_OPTIONS:
                found.append(
                    f"launch.slurm.extra: got {option}; need its key. "
                    f"Try launch.slurm.{OWN_OPTIONS[name]}=VALUE"
                )
            elif name in _FIXED:
                found.append(f"launch.slurm.extra: got {option}, but {_FIXED[name]}. Leave it out")
        return found

    def _setup(self) -> list[str]:
        lines = [line for line in self.setup_lines if line.lstrip().startswith("#SBATCH")]
        return [
            f"launch.slurm.setup: got {line!r}; need shell. Try launch.slurm.extra for options"
            for line in lines
        ]


def _long_name(option: str) -> str:
    """Name of an option of sbatch, as `partition` for `--partition=gpu` and `-p gpu`."""
    if _GPUS_IN_GRES.match(option):
        return "gpus"
    if option.startswith("--"):
        return re.split(r"[=\s]", option[2:], maxsplit=1)[0]
    return _SHORT.get(option[1:2], option[1:2])


def time_limit(text: str) -> int:
    """Seconds of a time limit in one of Slurm's forms; 0 for text in none of them.

    Args:
        text: `MINUTES`, `[HOURS:]MINUTES:SECONDS`, `DAYS-HOURS[:MINUTES[:SECONDS]]`.
    """
    found = _TIME.fullmatch(text)
    if not found:
        return 0
    part = {name: int(value or 0) for name, value in found.groupdict().items()}
    hours = 24 * part["days"] + part["hours"] + part["h"]
    minutes = 60 * hours + part["minutes"] + part["m"] + part["only"]
    return 60 * minutes + part["seconds"] + part["s"]
