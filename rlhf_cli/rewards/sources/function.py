"""Scores of a user's Python function, which is imported from its file and runs in this process."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rlhf_cli.errors import ConfigError, DataError, first_line
from rlhf_cli.rewards.samples import Samples

_OURS_TO_TELL = (MemoryError, torch.OutOfMemoryError)
"""Not the function's fault; the command line knows what to say."""


class FunctionScorer:
    """Calls `score(prompts=, responses=, **columns)`.

    Args:
        value: `FILE.py:FUNCTION`.
        key: that named it, for messages.

    Raises:
        ConfigError: the file cannot be imported, or has no such function.
    """

    nbytes = 0

    def __init__(self, value: str, key: str) -> None:
        file, _, name = value.rpartition(":")
        self.file = Path(file).expanduser().absolute()
        self.who = f"{key}: {value}"
        self.described = f"{self.file.name}:{name}"
        self.function = self._find(name)

    def _find(self, name: str) -> Callable[..., Any]:
        try:
            module = _load(self.file)
        except _OURS_TO_TELL:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{self.who} cannot be imported: {self._told(error)}") from error
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError(f"{self.who} is no function; need one with that name in the file")
        return function  # type: ignore[no-any-return]

    def __call__(self, samples: Samples) -> Any:
        """Whatever it returns.

        Raises:
            ConfigError: it does not take these arguments.
            DataError: it raises; the sample is named where it also raises for that one alone.
        """
        self._require_taken(samples)
        try:
            return self._call(samples)
        except _OURS_TO_TELL:
            raise
        except (Exception, SystemExit) as error:
            where = self._find_culprit(samples)
            raise DataError(f"{self.who} raised {self._told(error)}, for {where}") from error

    def _call(self, samples: Samples) -> Any:
        columns = {name: list(values) for name, values in samples.columns.items()}
        return self.function(**samples.call_arguments(), **columns)

    def _require_taken(self, samples: Samples) -> None:
        for name in ("prompts", "responses"):
            if name in samples.columns:
                raise ConfigError(
                    f"{self.who} is given {name}, and the rows have a column of that name too; "
                    "need another name for the column"
                )
        try:
            signature = inspect.signature(self.function)
        except ValueError:  # a function of a C extension need not have one
            return
        given = ["prompts", "responses", *samples.columns]
        try:
            signature.bind(**dict.fromkeys(given))
        except TypeError as error:
            raise ConfigError(
                f"{self.who} cannot be called with {', '.join(given)} ({error}); need "
                "def score(prompts, responses, **columns)"
            ) from None

    def _find_culprit(self, samples: Samples) -> str:
        """The first sample that the function does not take, called with each alone."""
        for index in range(len(samples)):
            try:
                self._call(samples.part(index, index + 1))
            except (Exception, SystemExit):
                return samples.describe(index)
        return f"{len(samples)} responses together, for none of them alone"

    def _told(self, error: BaseException) -> str:
        """The error, and the last line of the user's file that led to it."""
        said = f": {first_line(error)}" if str(error).strip() else ""
        text = f"{type(error).__name__}{said}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(self.file)]
        return f"{text} ({self.file.name}:{own[-1].lineno}: {own[-1].line})" if own else text


def _load(file: Path) -> ModuleType:
    """The module of a file, run once for all of its functions; modules beside it can be imported.

    It is not called by its file's name, which may be that of another module.
    """
    name = f"rlhf_reward:{file}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is no .py file")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
