"""A server that is asked again while it fails, until a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol, TypeVar

from rlhf_cli.console import logger
from rlhf_cli.errors import InferenceServerError
from rlhf_cli.http_client import HTTPFailure, RefusedRequest, RetryableFailure, backoffs
from rlhf_cli.rollout.server.api import ServerAPI

T = TypeVar("T")

MAX_WAIT = 5.0
"""Longest pause, in seconds, before a server that fails is asked again."""


class Started(Protocol):
    """A server's process that this run has started."""

    def require_running(self) -> None:
        """Raise InferenceServerError where it has ended."""


class Connection:
    """One server and what is done while it fails.

    A request that fails is repeated once the server is healthy again and has this run's weights.
    After `deadline` seconds without success it is an error; no other server takes its requests
    over, since it would not get the next weights.

    Args:
        api: of the server.
        deadline: seconds.
        slots: one for each request in flight; connections to several servers may share them.
        process: of a server that this run has started, or None.
        sleep: waits for a number of seconds.
        clock: seconds that pass.
    """

    def __init__(
        self,
        api: ServerAPI,
        deadline: float,
        slots: threading.BoundedSemaphore,
        process: Started | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.api, self.origin, self.deadline = api, api.origin, deadline
        self.process = process
        self._sleep, self._clock = sleep, clock
        self._slots = slots
        self._restoring = threading.Lock()
        self._is_failing, self._unhealthy = False, ""

    def call(
        self,
        act: Callable[[], T],
        restore: Callable[[], None] | None = None,
        *,
        takes_slot: bool = True,
    ) -> T:
        """Call a function that asks the server, again and again while it fails.

        Args:
            act: asks the server; raises its failures.
            restore: makes a server that has failed usable again, before `act` is called again.
            takes_slot: wait for a free slot; a hand-over of weights does not wait for requests.

        Raises:
            InferenceServerError: it failed for longer than the deadline, or refused the request.
        """
        began: float | None = None
        waits = backoffs()
        while True:
            try:
                if began is not None:
                    self._recover(restore)
                with self._slots if takes_slot else nullcontext():
                    found = act()
            except RefusedRequest as error:
                raise InferenceServerError(f"{self.origin}: {error}") from error
            except RetryableFailure as error:
                if self.process is not None:
                    self.process.require_running()
                began = self._clock() if began is None else began
                self._wait(error, began, min(next(waits), MAX_WAIT))
            else:
                self._is_failing = False
                return found

    def _recover(self, restore: Callable[[], None] | None) -> None:
        """Ask for the server's health, and restore what it may have lost.

        One thread does so at a time, since a server that hangs takes its time to fail; what it
        finds counts for those that wait.
        """
        if not self._restoring.acquire(blocking=False):
            with self._restoring:
                pass
            if self._unhealthy:
                raise RetryableFailure(self._unhealthy)
            return
        try:
            self.api.require_healthy()
            if restore is not None:
                restore()
            self._unhealthy = ""
        except HTTPFailure as error:
            self._unhealthy = str(error)
            raise
        finally:
            self._restoring.release()

    @property
    def _limit(self) -> str:
        """The deadline, with its key where there is one: a teacher's server has none."""
        key = "rollout.deadline=" if self.origin.startswith("rollout.") else ""
        return f"{key}{self.deadline:g}"

    def _wait(self, error: HTTPFailure, began: float, seconds: float) -> None:
        """Wait before the next try.

        Raises:
            InferenceServerError: the deadline is over.
        """
        left = self.deadline - (self._clock() - began)
        if left <= 0:
            raise InferenceServerError(
                f"{self.origin}: {error}; no better within {self._limit} "
                "seconds. Start the server again, then give the same command again"
            ) from error
        if not self._is_failing:  # many requests fail at once
            self._is_failing = True
            logger.info(f"{self.origin}: {error}; asking again for {self._limit} s")
        self._sleep(min(seconds, left))
