"""What can go wrong, as a user sees it: one clear line and an exit code.

A message says where, what was there, what is needed and what to do, in words the user typed. The
first clause of a docstring is what the help says about the exit code.
"""


class RlhfError(Exception):
    """Any other error; root of all that this package raises on purpose, worded for the user."""

    exit_code = 1


class ConfigError(RlhfError):
    """The configuration is wrong; the message holds one line per problem."""

    exit_code = 2


class DataError(RlhfError):
    """Data are missing or cannot be used; a file is not there, is empty or has bad rows."""

    exit_code = 3


class ModelError(RlhfError):
    """A model, tokenizer or template cannot be loaded or does not do what training needs."""


class KernelError(RlhfError):
    """A requested implementation cannot run here."""


class CheckpointError(RlhfError):
    """A checkpoint or run folder cannot be written, read or continued."""


class RankFailed(RlhfError):
    """Another process of the run ended first; its own error tells why."""


class OutOfMemory(RlhfError):
    """Out of memory; the message names overrides that need less."""

    exit_code = 4


class NonFinite(RlhfError):
    """A loss or gradient was not finite; training stopped before the optimizer step."""

    exit_code = 5


class Interrupted(RlhfError):
    """Interrupted; a signal ended the run, whose last checkpoint stands."""

    exit_code = 130


def exit_codes() -> dict[int, str]:
    """Every exit code of the command line, in words."""
    kinds: list[type[RlhfError]] = [RlhfError, *RlhfError.__subclasses__()]
    own = {kind.exit_code: kind for kind in kinds if "exit_code" in vars(kind)}
    meanings = {code: (kind.__doc__ or "").partition(";")[0] for code, kind in own.items()}
    return {0: "done", **{code: text[:1].lower() + text[1:] for code, text in meanings.items()}}


def first_line(error: BaseException) -> str:
    """What an exception says, without what it says at length; never empty."""
    lines = (line.rstrip() for line in str(error).split("\n"))
    return next(filter(None, lines), type(error).__name__)
