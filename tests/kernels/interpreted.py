"""Tests that need Triton's interpreter, which has to be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(name: str, which: str = "not slow") -> None:
    """Run tests of a file beside this one in a process of its own, under the interpreter."""
    file = Path(__file__).with_name(name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([*command, str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
