"""`rlhf serve RUN`: print the commands that serve a result; nothing is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rlhf_cli.commands.arguments import parse_arguments
from rlhf_cli.commands.serve.facts import Served, read_served
from rlhf_cli.commands.serve.servers import Recipe, recipes

SERVERS = ("transformers", "vllm", "sglang", "llama.cpp")
FORMATS = ("text", "json")


def run(args: list[str]) -> None:
    """Print the commands for every server, or for one.

    Raises:
        ConfigError: an argument is not valid, or there is no such result.
        ModelError: the run is not finished.
    """
    asked = parse_arguments("serve", args, {"server": SERVERS, "format": FORMATS})
    served = read_served(asked.run)
    server = asked.values.get("server", "")
    found = [one for one in recipes(served) if server in ("", one.server.lower())]
    show = _as_json if asked.values.get("format") == "json" else _as_text
    print(show(served, found), flush=True)


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
