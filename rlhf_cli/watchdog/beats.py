"""What each rank says of itself every few seconds, and what is seen of a process from outside."""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.memory.phase import RECORD

RUNNING, DONE, FAILED = "running", "done", "failed"
"""Outcome of a rank so far."""

GONE, STOPPED, ALIVE = "gone", "stopped", "alive"
"""State of a process, as another process of the same machine sees it."""


@dataclass(frozen=True)
class Beat:
    """Sign of life of a rank.

    Attributes:
        rank: of the process.
        machine: its host name.
        space: its machine and process namespace; within one, process ids mean the same.
        pid: its process id.
        number: of the beat, from 1; it rises while the process lives.
        phase: that it is in; empty outside of all.
        place: line that its main thread executes, as `loop.py:210 in train_step`.
        collectives: process group -> collective calls that it has begun there. Counts of different
            groups say nothing about each other.
        outcome: `running`, `done` or `failed`.
        error: first line of its own error; empty for one that another rank caused.
        suspects: rank -> [space, pid], of ranks without a sign of life; written by the watcher.
        states: rank -> state of suspects that this rank can see.
        verdict: why the run must end; written by the watcher.
    """

    rank: int
    machine: str
    space: str
    pid: int
    number: int
    phase: str = ""
    place: str = ""
    collectives: dict[str, int] = field(default_factory=dict)
    outcome: str = RUNNING
    error: str = ""
    suspects: dict[str, tuple[str, int]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    verdict: str = ""

    @property
    def name(self) -> str:
        """Rank, machine and process id, for messages."""
        return f"rank {self.rank} (process {self.pid} on {self.machine})"

    @property
    def doing(self) -> str:
        """Phase and line, for messages; begins with a space."""
        return (f" in phase {self.phase}" if self.phase else "") + (
            f", at {self.place}" if self.place else ""
        )

    def to_json(self) -> str:
        """Serialize the beat for the store."""
        return json.dumps(asdict(self))


def read_beat(text: bytes | str) -> Beat:
    """Read a beat from the store."""
    return Beat(**json.loads(text))


def own_beat(rank: int, number: int) -> Beat:
    """Describe what this process does now."""
    return Beat(
        rank=rank,
        machine=socket.gethostname(),
        space=process_space(),
        pid=os.getpid(),
        number=number,
        phase=RECORD.failed or RECORD.phase,
        place=main_thread_place(),
        collectives=count_collectives(),
    )


_counted: list[dict[str, int]] = [{}]
"""The last counts, which stand after the groups were destroyed."""


def count_collectives() -> dict[str, int]:
    """Collective calls that this process has begun, by process group; the last ones after its end.

    Torch's own sequence numbers also count the calls that FSDP and NCCL make by themselves. A group
    is named by its name in torch, which distinct groups can share, and its first rank.
    """
    if "torch.distributed" not in sys.modules:
        return {}
    from torch import distributed as dist
    from torch.distributed import distributed_c10d

    if not (dist.is_available() and dist.is_initialized()):
        return _counted[0]
    found: dict[str, int] = {}
    groups = distributed_c10d._world
    for group, members in list(groups.pg_group_ranks.items()):
        if group not in groups.pg_names:  # the main thread destroys them
            return _counted[0]
        backends: list[Any] = [group._get_backend(device) for device in group._device_types]
        try:
            count = sum(backend._get_sequence_number_for_group() for backend in backends)
        except RuntimeError:  # a backend that counts no calls: such a group is not compared
            continue
        found[f"{groups.pg_names[group]} of rank {min(members)}"] = count
    _counted[0] = found
    return found


def main_thread_place() -> str:
    """The line that the main thread executes, as file, number and function; empty if it asks."""
    main = threading.main_thread()
    frame = sys._current_frames().get(main.ident or 0)
    if frame is None or main is threading.current_thread():
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"


@functools.cache
def process_space() -> str:
    """Machine and process namespace: containers of one machine may not see each other."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        namespace = ""
    return f"{socket.gethostname()} {namespace}"


def process_state(pid: int) -> str:
    """State of a process of this machine; a zombie is gone."""
    try:
        os.kill(pid, 0)
        stat = Path("/proc", str(pid), "stat").read_text(encoding="utf-8")
    except ProcessLookupError:
        return GONE
    except OSError:  # another user's process, or no /proc, as on macOS
        return ALIVE
    letter = stat.rpartition(")")[2].split()[0]
    return {"Z": GONE, "X": GONE, "T": STOPPED, "t": STOPPED}.get(letter, ALIVE)
