"""What a command prints beside its results: the package's logger."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _StderrHandler(logging.Handler):
    """Prints each message on `sys.stderr` as it is then: `log.txt` and tests replace the stream."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


logger = logging.getLogger("rlhf_cli")
"""Messages for the user, on stderr; results go to stdout."""

logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(_StderrHandler())


@contextmanager
def muted() -> Iterator[None]:
    """Log nothing inside the block, because the same was logged before."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
