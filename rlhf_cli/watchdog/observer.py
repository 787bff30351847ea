"""Judge from the ranks' beats which of them the others wait for, and whether the run must end.

Times are those of the observing process, so the clocks of the machines need not agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlhf_cli.watchdog.beats import (
    ALIVE,
    DONE,
    FAILED,
    GONE,
    RUNNING,
    STOPPED,
    Beat,
    process_space,
    process_state,
)


@dataclass(frozen=True)
class Limits:
    """Times of the watchdog, in seconds.

    Attributes:
        beat: between two beats. 512 ranks then make about 200 small requests a second to the store.
        silent: without a beat until a rank is suspected: six beats, because a long call of C code
            can keep the thread that beats from running.
        slow: without progress of any rank until the rank is named that the others wait for. With
            `silent` and three beats it is less than a minute.
        repeat: until the same is said again; doubled each time, since a reward function may
            take an hour.
        grace: for the main thread to end by its own error, before its process is ended.
    """

    beat: float = 5.0
    silent: float = 30.0
    slow: float = 45.0
    repeat: float = 600.0
    grace: float = 5.0

    @property
    def silent_enough(self) -> float:
        """Silence in seconds that ends the run, unless another rank sees the process alive."""
        return self.silent + 2 * self.beat


@dataclass(frozen=True)
class Finding:
    """What is wrong with the ranks.

    Attributes:
        text: one line: the rank, its machine, its phase, and what to do.
        kind: the same for the same finding at a later time.
        fatal: whether the run must end.
    """

    text: str
    kind: str
    fatal: bool = False


class Observer:
    """What one rank has seen of the others.

    Args:
        limits: times after which something is said.
        now: seconds of a clock that never goes back.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        self.beats: dict[int, Beat] = {}
        self.seen_at: dict[int, float] = {}
        self.moved_at = now
        """When a rank last began a collective call or another phase."""

    def forget_times(self, now: float) -> None:
        """Begin to wait anew, after this process itself was stopped."""
        self.moved_at = now
        self.seen_at = dict.fromkeys(self.seen_at, now)

    def see(self, beats: Mapping[int, Beat], now: float) -> None:
        """Take in the newest beats."""
        for rank, beat in beats.items():
            before = self.beats.get(rank)
            if before is None or beat.number != before.number:
                self.seen_at[rank] = now
            if before is None or _progress(before) != _progress(beat):
                self.moved_at = now
            self.beats[rank] = beat

    def silent(self, now: float) -> list[Beat]:
        """Ranks that should beat and do not, or whose process on this machine is gone."""
        running = (beat for beat in self.beats.values() if beat.outcome == RUNNING)
        return [
            beat
            for beat in running
            if now - self.seen_at[beat.rank] > self.limits.silent or _seen_here(beat) == GONE
        ]

    def finding(self, now: float) -> Finding | None:
        """The most important thing that is wrong, or None."""
        found = [self._failed(), *self._silent(now), self._left(now), self._slow(now)]
        every = [one for one in found if one is not None]
        return next((one for one in every if one.fatal), every[0] if every else None)

    def _failed(self) -> Finding | None:
        for beat in self.beats.values():
            if beat.outcome == FAILED and beat.error:
                return Finding(f"{beat.name} failed{beat.doing}: {beat.error}", "failed", True)
        return None

    def _silent(self, now: float) -> list[Finding | None]:
        return [self._judge_silent(beat, now) for beat in self.silent(now)]

    def _judge_silent(self, beat: Beat, now: float) -> Finding | None:
        quiet = now - self.seen_at[beat.rank]
        state = self._state(beat)
        if state == GONE:
            text = (
                f"{beat.name} was ended from outside{beat.doing} (the system does so where memory "
                "runs out)"
            )
            return Finding(text, f"gone {beat.rank}", True)
        if state == STOPPED:
            text = (
                f"{beat.name} is stopped (SIGSTOP) for {quiet:.0f} s{beat.doing}; the other ranks "
                f"wait for it. Continue it with kill -CONT {beat.pid} on {beat.machine}"
            )
            return Finding(text, f"stopped {beat.rank}")
        if state == ALIVE:
            text = (
                f"{beat.name} gives no sign of life for {quiet:.0f} s{beat.doing}, though its "
                "process runs: it is in one long call outside of Python"
            )
            return Finding(text, f"busy {beat.rank}")
        if quiet < self.limits.silent_enough:  # its neighbours may answer yet
            return None
        text = (
            f"no sign of life from {beat.name} for {quiet:.0f} s{beat.doing}: its machine is down "
            "or out of reach"
        )
        return Finding(text, f"lost {beat.rank}", True)

    def _state(self, beat: Beat) -> str:
        """State of a silent rank, seen from here or told by another rank of its machine."""
        here = _seen_here(beat)
        told = (other.states.get(str(beat.rank), "") for other in self.beats.values())
        return here or next(filter(None, told), "")

    def _left(self, now: float) -> Finding | None:
        """A rank that ended its part while others wait for its next collective call."""
        beats = list(self.beats.values())
        for beat in beats:
            if beat.outcome == DONE and self._stands(now) and _is_behind_any(beat, beats):
                text = f"{beat.name} has ended its part, but the other ranks wait for it"
                return Finding(text, f"left {beat.rank}", True)
        return None

    def _slow(self, now: float) -> Finding | None:
        running = [beat for beat in self.beats.values() if beat.outcome == RUNNING]
        slow = [beat for beat in running if _is_behind_any(beat, running)]
        # one that waits for another, slower one in a smaller group is not to blame
        slow = [beat for beat in slow if not any(_is_behind(other, beat) for other in running)]
        if not slow or not self._stands(now):
            return None
        others = len(running) - len(slow)
        waiting = "1 other rank has" if others == 1 else f"{others} other ranks have"
        text = (
            f"{slow[0].name}{_and_more(len(slow) - 1)} is behind{slow[0].doing}; {waiting} waited "
            f"{now - self.moved_at:.0f} s for it"
        )
        return Finding(text, f"slow {slow[0].rank}")

    def _stands(self, now: float) -> bool:
        return now - self.moved_at > self.limits.slow


def _is_behind(beat: Beat, other: Beat) -> bool:
    """Whether a rank has begun fewer collective calls than another, in a group of both."""
    own, others = beat.collectives, other.collectives
    return any(own[group] < others[group] for group in own.keys() & others.keys())


def _is_behind_any(beat: Beat, others: Iterable[Beat]) -> bool:
    return any(_is_behind(beat, other) for other in others)


def _progress(beat: Beat) -> tuple[dict[str, int], str, str]:
    return beat.collectives, beat.phase, beat.outcome


def _seen_here(beat: Beat) -> str:
    """State of a rank's process if this machine can see it, else empty."""
    return process_state(beat.pid) if beat.space == process_space() else ""


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count else ""
