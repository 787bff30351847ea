"""Names of weights: whose they are and how far they are trained.

A server holds the weights of one run. The name tells two runs on one server apart.
"""

from __future__ import annotations

import hashlib
import re
import socket
from dataclasses import dataclass
from pathlib import Path

PREFIX = "rlhf"
FREE = "free"
"""Name that a run leaves behind at its end."""

_NAME = re.compile(rf"{PREFIX}-([0-9a-f]{{12}})-(\d+)")


@dataclass(frozen=True)
class Owner:
    """The run that a server's weights belong to.

    Attributes:
        token: 12 hexadecimal digits.
    """

    token: str

    @classmethod
    def of_run(cls, folder: Path) -> Owner:
        """The owner for a run folder: the same after a resume, another for each folder."""
        place = f"{socket.gethostname()}:{folder.absolute()}"
        return cls(hashlib.sha256(place.encode()).hexdigest()[:12])

    def name(self, version: int) -> str:
        """Name of this run's weights after `version` steps."""
        return f"{PREFIX}-{self.token}-{version}"

    def version(self, name: str) -> int | None:
        """Version of weights of this run; None for those of another, or of none."""
        found = _NAME.fullmatch(name)
        return int(found[2]) if found and found[1] == self.token else None

    def is_foreign(self, name: str) -> bool:
        """Whether weights belong to another run."""
        found = _NAME.fullmatch(name)
        return found is not None and found[1] != self.token


def was_handed_over(name: str) -> bool:
    """Whether a run has handed over the weights of this name, now or before its end."""
    return name == FREE or _NAME.fullmatch(name) is not None
