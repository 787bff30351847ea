"""What can go wrong, as a user sees it: one clear line and an exit code.

A message says where, what was there, what is needed and what to do, in words the user typed.
"""


class RlhfError(Exception):
    """Root of every error this package raises on purpose; the message is for the user."""

    exit_code = 1


class ConfigError(RlhfError):
    """The configuration cannot be run; the message holds one line per problem."""

    exit_code = 2


class DataError(RlhfError):
    """A data file is missing, empty or holds rows that cannot be trained on."""

    exit_code = 3


class ModelError(RlhfError):
    """A model, tokenizer or template cannot be loaded or does not do what training needs."""


class KernelError(RlhfError):
    """A requested implementation cannot run here."""


class CheckpointError(RlhfError):
    """A checkpoint or run folder cannot be written, read or continued."""


class OutOfMemory(RlhfError):
    """The device has too little memory; the message names overrides that need less."""

    exit_code = 4


class NonFinite(RlhfError):
    """A loss or gradient was not finite; training stopped before the optimizer step."""

    exit_code = 5


class Interrupted(RlhfError):
    """A signal ended the run after its checkpoint was written."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What an exception says, without what it says at length; never empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
