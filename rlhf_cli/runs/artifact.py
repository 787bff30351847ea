"""Model folders: the run's `artifact.json`, the configs in a folder, and a classifier's labels."""

from collections.abc import Mapping, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any

from rlhf_cli.config.suggest import nearest
from rlhf_cli.config.values import format_value
from rlhf_cli.errors import ModelError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import hub, manifest, run_files
from rlhf_cli.runs.run_files import read_json

NAME = run_files.ARTIFACT
ADAPTER_CONFIG = hub.ADAPTER_CONFIG


def read(path: Path) -> dict[str, Any]:
    """Read the `artifact.json` of a run or of the model folder in it; empty for other folders.

    Raises:
        ModelError: the file is damaged.
    """
    inside = path.parent if path.name == "model" else path
    file = inside / NAME if (inside / NAME).is_file() else path / NAME
    try:
        return read_json(file)
    except (OSError, ValueError):
        raise ModelError(f"{file}: cannot be read as JSON; take another model.path") from None


def find_model_folder(path: str, revision: str = "") -> Path | None:
    """Find the local folder with a model's small files; fetches nothing.

    Args:
        path: a folder, a finished run or a hub id.
        revision: of a hub id; empty is its default branch.

    Returns:
        The folder itself, the result of a run, or the cached files of a hub id; else None.

    Raises:
        ModelError: the run is not finished.
    """
    if path in ("", SHIPPED):
        return None
    folder = Path(path).expanduser()
    return resolve_run(folder) if isdir(folder) else hub.cached_snapshot(path, revision)


def is_reward_model(path: str, revision: str = "") -> bool:
    """Whether local files show that a path holds a reward model or classifier."""
    folder = find_model_folder(path, revision)
    if folder is None:
        return False
    kind = read(folder).get("kind")
    if kind:
        return bool(kind == "reward_model")
    classes = read_model_json(folder).get("architectures") or []
    return read_model_json(folder, ADAPTER_CONFIG).get("task_type") == "SEQ_CLS" or any(
        str(name).endswith("ForSequenceClassification") for name in classes
    )


def is_adapter(path: str, revision: str = "") -> bool:
    """Whether local files show that a path holds an adapter, not a whole model."""
    folder = find_model_folder(path, revision)
    return folder is not None and (folder / ADAPTER_CONFIG).is_file()


def may_be_adapter(path: str, revision: str = "") -> bool:
    """Whether a path is an adapter, or a hub id without local files yet."""
    unseen = path not in ("", SHIPPED) and find_model_folder(path, revision) is None
    return unseen or is_adapter(path, revision)


def read_adapter_base(folder: Path) -> tuple[str, str]:
    """Read the base model that an adapter folder names, and its hub revision."""
    adapter = read_model_json(folder, ADAPTER_CONFIG)
    commit = read(folder).get("base_commit") or adapter.get("revision")
    return str(adapter.get("base_model_name_or_path") or ""), str(commit or "")


def read_model_json(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a JSON file of a model folder; empty if it is missing or damaged."""
    try:
        return read_json(folder / name)
    except (OSError, ValueError):
        return {}


def resolve_run(path: Path) -> Path:
    """Resolve a run folder to its `model/` folder; other paths are returned unchanged.

    Raises:
        ModelError: the run is not finished, or has no model folder.
        CheckpointError: its manifest cannot be read.
    """
    status = manifest.status(path)
    if status == "unknown":
        return path
    if status != "complete":
        advice = f"continue it with the same command and output_dir={path}"
        raise ModelError(f"{path} holds a run that is not finished (status: {status}); {advice}")
    if not (path / "model").is_dir():
        raise ModelError(f"{path} holds a finished run without a model folder")
    return path / "model"


def read_labels(path: str, revision: str = "") -> list[str]:
    """Read the labels of a classifier from local files; empty if they are not known."""
    folder = find_model_folder(path, revision)
    config = read_model_json(folder) if folder else {}
    try:
        return class_labels(config) if config else []
    except (ValueError, TypeError, AttributeError):
        return []


def class_labels(config: Mapping[str, Any]) -> list[str]:
    """Return the label names of a transformers config, in output order.

    A config without names has two labels, as in transformers.
    """
    names = config.get("id2label") or {}
    if not names:
        return [f"LABEL_{index}" for index in range(config.get("num_labels") or 2)]
    return [str(names[key]) for key in sorted(names, key=int)]


def find_label(label: str | int, labels: Sequence[str]) -> int | None:
    """Find the output index of a label given by name (in any case) or by index.

    An empty label means the only one.

    Returns:
        None if there is no such label, or if the label is empty and there are several.
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
    """Describe a label that a classifier lacks, or a missing one; empty if the label is valid."""
    if find_label(label, labels) is not None:
        return ""
    close = nearest(str(label), labels) or labels[-1]
    got = "none given" if label == "" else f"got {label}"
    advice = f"Try {key}={format_value(close)}"
    return f"{key}: {got}; need one of {list_labels(labels)}, or an index. {advice}"


def list_labels(labels: list[str], most: int = 12) -> str:
    """Join label names for a message, at most that many."""
    rest = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + rest
