"""The labels of a saved sequence classifier, by name and index."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.runs.artifact import resolve_run


def saved_labels(path: str) -> list[str]:
    """The labels of the classifier in a folder or finished run; none where that cannot be told."""
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        return []
    try:
        settings = json.loads((resolve_run(folder) / "config.json").read_text(encoding="utf-8"))
        return labels_of(settings)
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def labels_of(settings: Mapping[str, Any]) -> list[str]:
    """The names in a transformers config, in the order of its outputs.

    A config that names none means two labels, as transformers does.
    """
    names = settings.get("id2label") or {}
    if not names:
        return [f"LABEL_{index}" for index in range(settings.get("num_labels") or 2)]
    return [str(names[key]) for key in sorted(names, key=int)]


def find_label(label: str | int, labels: Sequence[str]) -> int | None:
    """The index of a label given by name (in any case) or index; of a single one also if not given.

    Returns:
        None where there is no such label, or where one of several has to be given.
    """
    if label == "":
        return 0 if len(labels) == 1 else None
    if isinstance(label, int):
        return label if 0 <= label < len(labels) else None
    if label in labels:
        return labels.index(label)
    plain = [name.lower() for name in labels]
    return plain.index(label.lower()) if plain.count(label.lower()) == 1 else None
