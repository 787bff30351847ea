"""The finished run that tests of stages use too."""

from tests.stages.conftest import sft_run

__all__ = ["sft_run"]
