"""Upload of a result to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.errors import ModelError, first_line

CARD = "README.md"


def hub_files(folder: Path, artifact: Path | None = None) -> dict[str, Path]:
    """Files of a result by their name on the hub, without hidden ones.

    Args:
        folder: the model folder.
        artifact: record of the run, which lies outside the folder.
    """
    found = {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    if artifact is not None and artifact.is_file():
        found.setdefault(artifact.name, artifact)
    return found


def require_token(key: str) -> None:
    """Require a login.

    Raises:
        ModelError: there is no token.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise ModelError(
            f"{key}: no token for the hub is here; need a login. Try hf auth login, or set HF_TOKEN"
        )


def has_card(key: str, hub_id: str) -> bool:
    """Whether the repository has a model card already; false if there is no repository.

    Raises:
        ModelError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return bool(HfApi().file_exists(hub_id, CARD))
    except Exception as error:
        raise _failed(key, hub_id, error) from error


def upload(
    key: str, hub_id: str, files: dict[str, Path | bytes], *, private: bool, message: str
) -> str:
    """Create the repository if there is none, and upload files in one commit.

    Args:
        key: key that named the id, for messages.
        hub_id: `organization/name`.
        files: name on the hub -> file or content.
        private: of a new repository.
        message: of the commit.

    Returns:
        Address of the repository.

    Raises:
        ModelError: the hub cannot be reached, or does not accept it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        address = HfApi().create_repo(hub_id, private=private, exist_ok=True)
        operations: list[Any] = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        HfApi().create_commit(hub_id, operations, commit_message=message)
    except Exception as error:  # connection, token, name: each has its own error class
        raise _failed(key, hub_id, error) from error
    return str(address)


def _failed(key: str, hub_id: str, error: Exception) -> ModelError:
    reasons = [first_line(error).rstrip(".")]
    if error.__cause__ is not None:  # an upload of one file says only which
        reasons.append(first_line(error.__cause__).rstrip("."))
    reason = ": ".join(dict.fromkeys(reasons))
    return ModelError(
        f"{key}: {hub_id} could not be uploaded ({reason}). Check the name, the connection and the "
        "login (hf auth whoami); nothing local was changed"
    )
