"""Commands in several processes with a fault in one: by our launcher, and as on two machines."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from rlhf_cli.distributed.process_group import host_store
from rlhf_cli.launch import launcher
from tests.helpers import last_of_each

PROGRAM = "import sys; import tests.launch.faults; from rlhf_cli import cli; sys.exit(cli.entry())"


def words(stage, out, *changes):
    """A short run with an evaluation and a checkpoint after every second step."""
    return last_of_each(
        stage,
        "model=tiny",
        "data=tiny",
        "train.precision=fp32",
        "lr=1e-3",
        "batch_size=4",
        "max_steps=6",
        "train.save_steps=2",
        "train.eval_steps=2",
        "log.sample_prompts=0",
        f"output_dir={out}",
        *changes,
    )


def with_faults(monkeypatch, fault):
    """Let the ranks that the launcher starts have a fault."""
    monkeypatch.setattr(launcher, "PROGRAM", f"import tests.launch.faults; {launcher.PROGRAM}")
    monkeypatch.setenv("FAULT", fault)


@contextmanager
def two_machines(*commands, fault="", **variables):
    """One process on each of two machines, as `srun` would start them; both are this machine.

    Args:
        commands: command line of each rank.
        fault: see `tests.launch.faults`.
        variables: of both, beside those of the rank.
    """
    store, port = host_store()
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **({"FAULT": fault} if fault else {}),
        **variables,
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *command],
            env={**common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
        del store
