"""A fault in one rank; processes that tests start import this before anything of the package.

The environment variable FAULT is `rank:phase:count:act`: what happens to the rank when it enters
the phase for that time. The times of the watchdog are short here.
"""

import os
import resource
import signal
import time

from rlhf_cli.memory.phase import PhaseRecord
from rlhf_cli.watchdog import watch
from rlhf_cli.watchdog.observer import Limits

SHORT = Limits(beat=0.1, silent=3.0, slow=3.0, repeat=30.0, grace=1.0)


def run_out_of_memory():
    """As Python and torch report it."""
    raise MemoryError


def fill_the_disk():
    """No file of this process may grow beyond what its log needs."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))


ACTS = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleep": lambda: time.sleep(8),
    "memory": run_out_of_memory,
    "disk": fill_the_disk,
}


def install():
    """Let this process have its fault."""
    rank, phase, count, act = os.environ["FAULT"].split(":")
    watch.Limits = lambda: SHORT
    if rank != os.environ.get("RANK"):
        return
    real, entered = PhaseRecord.enter, []

    def enter(self, name):
        real(self, name)
        if name == phase:
            entered.append(name)
            if len(entered) == int(count):
                ACTS[act]()

    PhaseRecord.enter = enter


if "FAULT" in os.environ:
    install()
