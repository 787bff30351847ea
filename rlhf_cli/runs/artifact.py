"""`artifact.json`: what kind of model a run made; read where a model is taken from.

The labels of a saved sequence classifier, by name and index.
"""

import json
from collections.abc import Mapping, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ModelError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import hub, manifest, run_files

NAME = run_files.ARTIFACT
ADAPTER = hub.ADAPTER_CONFIG


def read(path: Path) -> dict[str, Any]:
    """What a run, or the model folder inside it, says of its model; empty for other folders.

    Raises:
        ModelError: The file is damaged.
    """
    inside = path.parent if path.name == "model" else path
    file = inside / NAME if (inside / NAME).is_file() else path / NAME
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError):
        raise ModelError(f"{file}: cannot be read as JSON; take another model.path") from None


def local_folder(path: str, revision: str = "") -> Path | None:
    """The folder here that holds a model's small files; nothing is fetched for it.

    Args:
        path: a folder, a finished run or a hub id.
        revision: of a hub id; empty is its default branch.

    Returns:
        The folder itself, the result of a run, or what was fetched of a hub id; else none.

    Raises:
        ModelError: The run is not finished.
    """
    if path in ("", SHIPPED):
        return None
    folder = Path(path).expanduser()
    return resolve_run(folder) if isdir(folder) else hub.cached_snapshot(path, revision)


def is_reward_model(path: str, revision: str = "") -> bool:
    """Whether a path is known here to hold a model of scores, not of text; as `local_folder`."""
    folder = local_folder(path, revision)
    if folder is None:
        return False
    kind = read(folder).get("kind")
    if kind:
        return bool(kind == "reward_model")
    classes = settings(folder).get("architectures") or []
    return settings(folder, ADAPTER).get("task_type") == "SEQ_CLS" or any(
        str(name).endswith("ForSequenceClassification") for name in classes
    )


def is_adapter(path: str, revision: str = "") -> bool:
    """Whether a path is known here to hold an adapter, not a whole model; as `local_folder`."""
    folder = local_folder(path, revision)
    return folder is not None and (folder / ADAPTER).is_file()


def may_be_adapter(path: str, revision: str = "") -> bool:
    """Whether a path is an adapter, or a hub id of which nothing was fetched yet."""
    unseen = path not in ("", SHIPPED) and local_folder(path, revision) is None
    return unseen or is_adapter(path, revision)


def recorded_base(folder: Path) -> tuple[str, str]:
    """The base of an adapter as its folder names it, and the revision of a base on the hub."""
    adapter = settings(folder, ADAPTER)
    commit = read(folder).get("base_commit") or adapter.get("revision")
    return str(adapter.get("base_model_name_or_path") or ""), str(commit or "")


def settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """What a JSON file of a model folder says; nothing where there is none."""
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def resolve_run(path: Path) -> Path:
    """The model folder that a path means: a finished run's result, else the path itself.

    Raises:
        ModelError: The run is not finished, or left no model.
        CheckpointError: Its manifest cannot be read.
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
