"""`python -m tests.fake_cuda_rank sft ...` is `rlhf sft ...` on a stand-in for a GPU; one rank."""

import os
import sys

import pytest

from rlhf_cli import cli
from rlhf_cli.train import loop
from tests.fake_cuda import fake_cuda, require_alike

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "measure_peak", lambda device, compute: 1e12)
    require_alike(patch)
    with fake_cuda(patch):
        sys.exit(cli.entry())
