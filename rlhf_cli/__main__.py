"""`python -m rlhf_cli` is `rlhf`."""

import sys

from rlhf_cli.cli import entry

sys.exit(entry())
