"""Sizes of memory as text, as in `24GB`."""

import re

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Parse a size in bytes: `24GB`, `24G`, `22.5GiB`, `800MB`; None where it is none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit, binary = float(match[1]), match[2].upper(), bool(match[3])
    if binary and not unit:
        return None
    return int(number * (BINARY_UNITS if binary else UNITS)[unit]) or None


def size_problems(key: str, text: str) -> list[str]:
    """List the problem of a size that is none; an empty text is allowed."""
    if not text or parse_size(text):
        return []
    return [f"{key}: got {text}; need a size of memory. Try {key}=24GB"]
