"""Scorer that calls a user's Python function, imported from its file, in this process."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import traceback
import weakref
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rlhf_cli.errors import ConfigError, DataError, first_line
from rlhf_cli.rewards.samples import Samples

PASS_THROUGH = (MemoryError, torch.OutOfMemoryError)
"""Errors that are not the function's fault; the command line reports them."""

FAILURES = (Exception, SystemExit, asyncio.CancelledError)
"""Errors of the function that are reported as such."""


class FunctionScorer:
    """Scores responses by calling `score(prompts=, responses=, **columns)`.

    A coroutine that it returns, as an `async def` function does, is awaited in an event loop of
    this scorer's own, the same for all calls: a client that the function keeps belongs to one loop.

    Args:
        value: `FILE.py:FUNCTION`.
        key: config key of the function, for messages.

    Raises:
        ConfigError: the file cannot be imported, or has no such function.
    """

    nbytes = 0

    def __init__(self, value: str, key: str) -> None:
        file, _, name = value.rpartition(":")
        self.file = Path(file).expanduser().absolute()
        self.origin = f"{key}: {value}"
        self.description = f"{self.file.name}:{name}"
        self.function = self._load_function(name)

    def _load_function(self, name: str) -> Callable[..., Any]:
        try:
            module = _import_file(self.file)
        except PASS_THROUGH:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"{self.origin} cannot be imported: {self._format_error(error)}"
            ) from error
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError(f"{self.origin} is no function; need one with that name in the file")
        return function  # type: ignore[no-any-return]

    def __call__(self, samples: Samples) -> Any:
        """Return value of the function, unchecked.

        Raises:
            ConfigError: it does not accept these arguments.
            DataError: it raises; names the sample if it also raises for that one alone.
        """
        self._require_signature(samples)
        try:
            return self._call(samples)
        except PASS_THROUGH:
            raise
        except FAILURES as error:
            where = self._describe_failing(samples)
            raise DataError(
                f"{self.origin} raised {self._format_error(error)}, for {where}"
            ) from error

    def _call(self, samples: Samples) -> Any:
        columns = {name: list(values) for name, values in samples.columns.items()}
        given = self.function(**samples.call_arguments(), **columns)
        return self.loop.run_until_complete(given) if inspect.iscoroutine(given) else given

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Event loop of an asynchronous function, closed when this scorer is deleted."""
        loop = asyncio.new_event_loop()
        weakref.finalize(self, loop.close)
        return loop

    def _require_signature(self, samples: Samples) -> None:
        for name in ("prompts", "responses"):
            if name in samples.columns:
                raise ConfigError(
                    f"{self.origin} is given {name}, and the rows have a column of that name too; "
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
                f"{self.origin} cannot be called with {', '.join(given)} ({error}); need "
                "def score(prompts, responses, **columns)"
            ) from None

    def _describe_failing(self, samples: Samples) -> str:
        """First sample that the function raises for, called with each alone."""
        for index in range(len(samples)):
            try:
                self._call(samples.part(index, index + 1))
            except FAILURES:
                return samples.describe(index)
        return f"{len(samples)} responses together, for none of them alone"

    def _format_error(self, error: BaseException) -> str:
        """Error text with the innermost line of the user's file."""
        message = f": {first_line(error)}" if str(error).strip() else ""
        text = f"{type(error).__name__}{message}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(self.file)]
        return f"{text} ({self.file.name}:{own[-1].lineno}: {own[-1].line})" if own else text


def _import_file(file: Path) -> ModuleType:
    """Import a file as a module, once for all its functions; it may import modules beside it.

    The module gets a name of its own, since the file's name may be another module's.
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
