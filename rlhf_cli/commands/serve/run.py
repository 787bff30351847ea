"""`rlhf serve RUN`: print the commands that serve a result; nothing is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rlhf_cli.commands.serve.facts import Served, read_served
from rlhf_cli.commands.serve.servers import Recipe, recipes
from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError

SERVERS = ("transformers", "vllm", "sglang", "llama.cpp")
FORMATS = ("text", "json")


@dataclass(frozen=True)
class Arguments:
    """What follows `rlhf serve`."""

    run: str
    server: str = ""
    format: str = "text"


def run(args: list[str]) -> None:
    """Print the commands for every server, or for one.

    Raises:
        ConfigError: an argument is not valid, or there is no such result.
        ModelError: the run is not finished.
    """
    asked = parse(args)
    served = read_served(asked.run)
    found = [one for one in recipes(served) if asked.server in ("", one.server.lower())]
    print(
        _as_json(served, found) if asked.format == "json" else _as_text(served, found), flush=True
    )


def parse(args: Sequence[str]) -> Arguments:
    """Parse the arguments.

    Raises:
        ConfigError: one is not known, or no run is given.
    """
    keys = dict(arg.split("=", 1) for arg in args if _is_key(arg))
    runs = [arg for arg in args if not _is_key(arg)]
    if len(runs) != 1 or runs[0].startswith("-"):
        got = " ".join(runs) or "nothing"
        raise ConfigError(
            f"serve: got {got}; need one run or model folder. Try rlhf serve runs/sft"
        )
    _require("server", keys.get("server", SERVERS[0]), SERVERS)
    _require("format", keys.get("format", FORMATS[0]), FORMATS)
    return Arguments(runs[0], **keys)


def _is_key(word: str) -> bool:
    return word.partition("=")[0] in ("server", "format") and "=" in word


def _require(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        close = nearest(value, known) or known[0]
        raise ConfigError(f"{key}: got {value}; need one of {', '.join(known)}. Try {key}={close}")


def _as_text(served: Served, found: Sequence[Recipe]) -> str:
    lines = [describe(served)]
    for one in found:
        lines += ["", f"# {one.server} {one.version}"]
        lines += [f"# {note}" for note in one.notes]
        lines += [*one.commands, *([one.request] if one.request else [])]
    return "\n".join(lines)


def describe(served: Served) -> str:
    """One line on what is served, as a comment of the shell."""
    kind = "reward model" if served.scores else "chat model" if served.chats else "text model"
    if served.is_adapter:
        kind += f", adapter of rank {served.rank} on {served.base}"
    parts = [f"# {served.given}: {kind}", served.dtype]
    parts.append(f"{served.positions} positions" if served.positions else "")
    if served.ends:
        parts.append(f"ends with {' or '.join(served.ends)}")
    return ", ".join(part for part in parts if part)


def _as_json(served: Served, found: Sequence[Recipe]) -> str:
    facts = asdict(served)
    del facts["adapter"]
    content = {"model": {**facts, "rank": served.rank}, "servers": [asdict(one) for one in found]}
    return json.dumps(content, indent=2, ensure_ascii=False)
