"""`rlhf push RUN to=org/name`: upload a result with a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.commands.arguments import parse_arguments
from rlhf_cli.commands.push.card import write_card
from rlhf_cli.commands.push.facts import (
    CardFacts,
    read_card_facts,
    run_folder,
    without_local_paths,
)
from rlhf_cli.commands.push.upload import CARD, has_card, hub_files, require_token, upload
from rlhf_cli.commands.serve.facts import find_folder
from rlhf_cli.console import format_table, logger
from rlhf_cli.errors import ConfigError, DataError, first_line
from rlhf_cli.runs import artifact
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import read_json

KEYS = {
    "to": (),
    "private": ("true", "false"),
    "license": (),
    "results": (),
    "card": ("keep", "replace"),
    "output": (),
}
DRY_RUN = "--dry-run"
_BLANK_CARD = "Model Card for Model ID"
"""Title of the card that PEFT saves beside an adapter; it names the base by its local path."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Push:
    """What to upload.

    Attributes:
        hub_id: where to.
        card: text of the model card.
        files: name on the hub -> file.
        record: artifact.json without local paths; empty without one.
    """

    hub_id: str
    card: str
    files: dict[str, Path]
    record: dict[str, Any]


def run(args: list[str]) -> None:
    """Upload, or show what would be uploaded.

    Raises:
        ConfigError: an argument is not valid, or the result cannot be used by others.
        DataError: the card or the results cannot be written or read.
        ModelError: the run is not finished, or the upload failed.
    """
    asked = parse_arguments("push", args, dict(KEYS), (DRY_RUN,))
    values = asked.values
    shows = DRY_RUN in asked.switches or "output" in values
    private = values.get("private") != "false"
    hub_id = _hub_id(values, asked.run, needed=not shows)
    push = prepare(asked.run, hub_id, values)
    if "output" in values:
        with open_output(Path(values["output"])) as write:
            write(push.card)
        logger.info(f"model card: {values['output']}")
    if DRY_RUN in asked.switches:
        print(_plan(push, private=private), flush=True)
    if not shows:
        _send(push, private=private, replaced=values.get("card") == "replace")


def _hub_id(values: Mapping[str, str], given: str, *, needed: bool) -> str:
    name = run_folder(given).name
    hub_id = values.get("to") or ("" if needed else f"ORGANIZATION/{name}")
    if not _HUB_ID.fullmatch(hub_id):
        got = f"got {hub_id}" if hub_id else "none given"
        raise ConfigError(f"to: {got}; need a hub id with its owner. Try to=me/{name}")
    return hub_id


def prepare(given: str, hub_id: str, values: Mapping[str, str]) -> Push:
    """Read the result, check that others can use it, and write its card."""
    facts = replace(read_card_facts(given), results=_results(values.get("results", "")))
    if facts.served.is_adapter and facts.served.base.startswith("/"):
        raise ConfigError(
            f"{given}: an adapter on a base in a local folder ({facts.served.base}), which others "
            f"do not have; need whole weights. Try rlhf merge {given} output_dir={given}-merged, "
            f"then rlhf push {given}-merged to={hub_id}"
        )
    folder = find_folder(given)
    files = hub_files(folder, run_folder(given) / artifact.NAME)
    record = _public_record(files.pop(artifact.NAME, None), facts)
    own = own_card(files.pop(CARD, None))
    license_name = values.get("license", "") or facts.license
    if not license_name:
        logger.info("license: unknown, so the card names none. Try license=apache-2.0")
    return Push(hub_id, own or write_card(facts, hub_id, license_name), files, record)


def own_card(file: Path | None) -> str:
    """The user's card in the model folder; empty for none, and for the blank form of PEFT."""
    text = file.read_text(encoding="utf-8") if file else ""
    return "" if _BLANK_CARD in text else text


def _results(path: str) -> tuple[Mapping[str, Any], ...]:
    """Results that `rlhf evaluate output=FILE.json` wrote; nothing without a path.

    Raises:
        DataError: the file cannot be read, or holds no results.
    """
    if not path:
        return ()
    try:
        found = read_json(Path(path).expanduser()).get("results")
    except (OSError, ValueError) as error:
        raise DataError(f"results: {path} cannot be read ({first_line(error)})") from error
    if not found or not isinstance(found, list) or not all(_is_result(one) for one in found):
        raise DataError(
            f"results: {path} holds no results; need a file of rlhf evaluate RUN output={path}"
        )
    return tuple(found)


def _is_result(one: Any) -> bool:
    """Whether a value is a measurement of `rlhf evaluate`."""
    return (
        isinstance(one, dict)
        and {"run", "metric", "value"} <= {*one}
        and isinstance(one.get("n"), int)
    )


def _public_record(file: Path | None, facts: CardFacts) -> dict[str, Any]:
    """The record of the run without local paths, by which `rlhf` knows the result on the hub."""
    if file is None:
        return {}
    record = {**read_json(file), "base": facts.base_model}
    text = without_local_paths(json.dumps(record, ensure_ascii=False))
    found: dict[str, Any] = json.loads(text)
    return found


def _plan(push: Push, *, private: bool) -> str:
    sizes = {name: file.stat().st_size for name, file in push.files.items()}
    sizes |= {CARD: len(push.card.encode())}
    if push.record:
        sizes[artifact.NAME] = len(json.dumps(push.record))
    rows = [[name, f"{size:,} bytes"] for name, size in sorted(sizes.items())]
    kind = "private" if private else "public"
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    head = f"to {push.hub_id} ({kind} if it is new): {total}"
    return "\n".join([head, format_table(rows), "", f"{CARD}:", "", push.card])


def _send(push: Push, *, private: bool, replaced: bool) -> None:
    require_token("to")
    content: dict[str, Path | bytes] = dict(push.files)
    if push.record:
        content[artifact.NAME] = (json.dumps(push.record, indent=2) + "\n").encode()
    if replaced or not has_card("to", push.hub_id):
        content[CARD] = push.card.encode()
    else:
        logger.info(f"{push.hub_id} has a model card, which is kept. card=replace replaces it")
    address = upload("to", push.hub_id, content, private=private, message="Upload a result of rlhf")
    logger.info(f"uploaded: {address}")
