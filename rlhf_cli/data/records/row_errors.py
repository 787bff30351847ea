"""Why one row is not used: caught and counted by the reader, shown with `file:line`."""


class Malformed(Exception):
    """The row breaks its format: broken JSON, a missing column, a wrong type."""


class Refused(Exception):
    """The row is well formed, but there is nothing to learn from it; the message is the reason."""
