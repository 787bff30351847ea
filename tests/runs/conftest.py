"""The model and the finished run that tests of stages use too."""

from tests.stages.conftest import sft_run, small_model

__all__ = ["sft_run", "small_model"]
