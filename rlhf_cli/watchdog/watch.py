"""The thread of each rank that posts its beats, and names the rank that the others wait for.

Collective calls wait for 10 minutes with NCCL and for 30 with gloo until they fail. The beats go
through the store in which the ranks found each other. Rank 0 reads all of them; the others read its
beat alone, in which it says why the run must end. If rank 0 itself is silent, each reads all,
and the lowest rank that runs prints what is found.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from rlhf_cli.errors import RankFailed, first_line
from rlhf_cli.watchdog.beats import (
    DONE,
    FAILED,
    RUNNING,
    Beat,
    own_beat,
    process_space,
    process_state,
    read_beat,
)
from rlhf_cli.watchdog.observer import Finding, Limits, Observer

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

KEY = "rlhf/beat/"

CAUSE_SECONDS = 2.0
"""How long a rank whose collective call failed looks for the rank that caused it, if all are on its
machine: a process that was killed is there for a moment longer than its connections."""

STORE_GONE = "the store of the run, on the machine that MASTER_ADDR names, does not answer"

AGAIN = "the last checkpoint is kept. Give the same command again to continue"

_current: list[Watch] = []
"""The watch of this process, if it is one of several ranks."""


class Watch:
    """Beats of one rank and its view of the others.

    Args:
        store: through which the ranks found each other; a connection of its own is opened.
        rank: of this process.
        world_size: number of ranks.
        say: prints one line; only the rank that reports for all calls it.
        end: ends this process with an error, from the watching thread; called if the main thread
            has not ended by itself.
        limits: times.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        say: Callable[[str], None],
        end: Callable[[RankFailed], None],
        limits: Limits | None = None,
    ) -> None:
        self.store: Store = cast(Any, store).clone()  # missing in torch's stubs
        self.rank, self.world_size = rank, world_size
        self.say, self.end = say, end
        self.limits = limits or Limits()
        self.observer = Observer(self.limits, time.monotonic())
        self.closed = threading.Event()
        self.lock = threading.Lock()
        """The thread and the main thread use the store in turn."""
        self.number = 0
        self.verdict = ""
        self.states: dict[str, str] = {}
        self.said: dict[str, tuple[float, float]] = {}
        self.answered_at = time.monotonic()
        self.threads = [
            threading.Thread(target=act, name="rlhf-watch", daemon=True)
            for act in (self._run, self._guard)
        ]

    def start(self) -> None:
        """Post the first beat, and begin to watch."""
        self.post()
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        before = time.monotonic()
        while not self.closed.wait(self.limits.beat):
            now = time.monotonic()
            if now - before > self.limits.silent:  # this process was stopped, or its machine
                self.observer.forget_times(now)
            before = now
            try:
                with self.lock:
                    self._look(now)
            except RuntimeError as error:
                self._end(f"{STORE_GONE} ({first_line(error)})")
                return
            self.answered_at = time.monotonic()
            if self.verdict:
                self._end(self.verdict)
                return

    def _guard(self) -> None:
        """End where the store does not answer: a request to a dead machine may not return."""
        before = time.monotonic()
        while not self.closed.wait(self.limits.beat):
            now = time.monotonic()
            if now - before > 2 * self.limits.beat:  # this process was stopped
                self.answered_at = now
            before = now
            quiet = now - self.answered_at
            if quiet > self.limits.silent_enough and not self.verdict:
                self._end(f"{STORE_GONE} for {quiet:.0f} s")
                return

    def _look(self, now: float) -> None:
        """Post a beat, read those of others, and judge them; nothing after the last beat."""
        if self.closed.is_set():
            return
        self.post()
        first = self._read([0] if self.rank else range(self.world_size))
        self.observer.see(first, now)
        if self.rank and self._is_unwell(0, now):
            self.observer.see(self._read(range(self.world_size)), now)
        if 0 in first:
            self._look_at_suspects(first[0])
            self.verdict = first[0].verdict
        found = self.observer.finding(now)
        if found is not None:
            self._act_on(found, now)

    def _is_unwell(self, rank: int, now: float) -> bool:
        beat = self.observer.beats.get(rank)
        unwell = {silent.rank for silent in self.observer.silent(now)}
        return beat is not None and (rank in unwell or beat.outcome != RUNNING)

    def _look_at_suspects(self, watcher: Beat) -> None:
        """Tell the watcher what it cannot see: the processes of this machine."""
        self.states = {
            rank: process_state(pid)
            for rank, (space, pid) in watcher.suspects.items()
            if space == process_space()
        }

    def _act_on(self, found: Finding, now: float) -> None:
        if found.fatal:
            self.verdict = found.text
            self.post()  # the others read it
            return
        after, pause = self.said.get(found.kind, (now, self.limits.repeat))
        if now >= after and self.reports(now):
            self.said[found.kind] = (now + pause, 2 * pause)
            self.say(found.text)

    def reports(self, now: float) -> bool:
        """Whether no lower rank is there to say what all of them see."""
        silent = {beat.rank for beat in self.observer.silent(now)}
        return not any(rank < self.rank and rank not in silent for rank in self.observer.beats)

    def _end(self, text: str) -> None:
        if not self.closed.wait(self.limits.grace):
            self.end(RankFailed(f"{text}; {AGAIN}"))

    def post(self, outcome: str = RUNNING, error: str = "") -> None:
        """Write this rank's beat into the store."""
        self.number += 1
        suspects = {
            str(beat.rank): (beat.space, beat.pid)
            for beat in self.observer.silent(time.monotonic())
        }
        beat = replace(
            own_beat(self.rank, self.number),
            outcome=outcome,
            error=error,
            suspects=suspects,
            states=self.states,
            verdict=self.verdict,
        )
        self.observer.see({self.rank: beat}, time.monotonic())
        self.store.set(f"{KEY}{self.rank}", beat.to_json())

    def _read(self, ranks: Iterable[int]) -> dict[int, Beat]:
        """Beats of other ranks; those that have not begun are missing."""
        keys = [f"{KEY}{rank}" for rank in ranks if rank != self.rank]
        if keys and not self.store.check(keys):  # some have not begun
            keys = [key for key in keys if self.store.check([key])]
        beats = [read_beat(text) for text in self.store.multi_get(keys)] if keys else []
        return {beat.rank: beat for beat in beats}

    def close(self, error: BaseException | None = None) -> None:
        """Post how this rank ended, and watch no longer; the first call counts."""
        if self.closed.is_set():
            return
        self.closed.set()
        own = error is not None and not isinstance(error, RankFailed)
        text = first_line(error) if own and error is not None else ""
        if self.lock.acquire(timeout=self.limits.beat):  # else the store does not answer
            with contextlib.suppress(RuntimeError):
                self.post(DONE if error is None else FAILED, text)
            self.lock.release()

    def find_cause(self) -> str:
        """The rank that ended, and how; empty where it cannot be seen."""
        began = time.monotonic()
        deadline = began + CAUSE_SECONDS
        while (now := time.monotonic()) < deadline and not self.verdict:
            with contextlib.suppress(RuntimeError), self.lock:
                self.observer.see(self._read(range(self.world_size)), now)
            if any(beat.space != process_space() for beat in self.observer.beats.values()):
                deadline = began + self.limits.silent_enough + self.limits.beat
            self._conclude(now)
            time.sleep(CAUSE_SECONDS / 20)
        return self.verdict

    def _conclude(self, now: float) -> None:
        with self.lock:  # the watching thread adds beats meanwhile
            told = [beat.verdict for beat in self.observer.beats.values() if beat.verdict]
            found = self.observer.finding(now)
        if told:
            self.verdict = told[0]
        elif found is not None and found.fatal:
            self.verdict = found.text
            with contextlib.suppress(RuntimeError), self.lock:
                self.post()  # ranks of other machines read it


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[Watch]:
    """Watch the other ranks inside the block, and tell them how it ends."""
    watch.start()
    _current.append(watch)
    try:
        yield watch
    except BaseException as error:
        watch.close(error)
        raise
    else:
        watch.close()
    finally:
        _current.remove(watch)


def find_cause() -> str:
    """The rank that ended, and how; empty without a watch, or where it cannot be seen."""
    return _current[-1].find_cause() if _current else ""


def tell_end(error: BaseException) -> None:
    """Tell the other ranks the error that ends this one."""
    for watch in _current:
        watch.close(error)


def reports_for_all() -> bool:
    """Whether no lower rank is there to say what all of them see."""
    return bool(_current) and _current[-1].reports(time.monotonic())


def last_phase(store: Store, rank: int) -> str:
    """The phase of a rank's last beat in the store; empty if there is none."""
    key = f"{KEY}{rank}"
    return read_beat(store.get(key)).phase if store.check([key]) else ""
