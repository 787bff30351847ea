"""`artifact.json`: what kind of model a run made; read where a model is taken from."""

import json
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ModelError
from rlhf_cli.runs import manifest

NAME = "artifact.json"
ADAPTER = "adapter_config.json"


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


def is_reward_model(path: str) -> bool:
    """Whether a path is a folder or a finished run that holds a model of scores, not of text."""
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        return False
    kind = read(folder).get("kind")
    if kind:
        return bool(kind == "reward_model")
    classes = _settings(folder / "config.json").get("architectures") or []
    return _settings(folder / ADAPTER).get("task_type") == "SEQ_CLS" or any(
        str(name).endswith("ForSequenceClassification") for name in classes
    )


def _settings(file: Path) -> dict[str, Any]:
    """What a JSON file of a model folder says; nothing where there is none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_adapter(path: str) -> bool:
    """Whether a path is a folder or a finished run that holds an adapter, not a whole model."""
    folder = Path(path).expanduser()
    return bool(path) and folder.is_dir() and (resolve_run(folder) / ADAPTER).is_file()


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
