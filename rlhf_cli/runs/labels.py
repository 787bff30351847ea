"""The labels of a saved sequence classifier, by name and index."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.config.suggest import nearest
from rlhf_cli.config.values import format_value
from rlhf_cli.runs.artifact import local_folder, settings


def saved_labels(path: str, revision: str = "") -> list[str]:
    """The labels of a classifier; none where they are not known here (as `local_folder`)."""
    folder = local_folder(path, revision)
    config = settings(folder) if folder else {}
    try:
        return labels_of(config) if config else []
    except (ValueError, TypeError, AttributeError):
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


def label_problem(key: str, label: str | int, labels: list[str]) -> str:
    """The line for a label that a classifier does not have, or that has to be said; or nothing."""
    if find_label(label, labels) is not None:
        return ""
    close = nearest(str(label), labels) or labels[-1]
    got = "none given" if label == "" else f"got {label}"
    advice = f"Try {key}={format_value(close)}"
    return f"{key}: {got}; need one of {list_labels(labels)}, or an index. {advice}"


def list_labels(labels: list[str], most: int = 12) -> str:
    """The names of labels for a message, cut to a number of them."""
    rest = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest
