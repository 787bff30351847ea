"""The console script `rlhf`; `python -m rlhf_cli` is the same."""

import os
import sys


def entry() -> int:
    """Complete a command line where the shell asks for it, else run it."""
    if "_ARGCOMPLETE" in os.environ:
        from rlhf_cli.completion import complete  # without the config classes: 0.1 s

        complete()
    from rlhf_cli import cli

    return cli.entry()


if __name__ == "__main__":
    sys.exit(entry())
