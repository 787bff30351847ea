"""What a model's folder tells before anything is loaded: lines for what it cannot be used for.

They are asked when a configuration is checked, and once more when what it names on the hub has been
fetched. Each names the key that the user set.
"""

from os.path import expanduser, isdir
from pathlib import Path

from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs.artifact import (
    ADAPTER,
    is_adapter,
    is_reward_model,
    local_folder,
    recorded_base,
    settings,
)


def language_model_problems(key: str, path: str, revision: str) -> list[str]:
    """The lines for a path that is to be a language model, and for its revision."""
    return [
        *revision_problems(key, path, revision),
        *not_a_language_model(key, path, revision),
        *not_one_stack(key, path, revision),
    ]


def not_a_language_model(key: str, path: str, revision: str = "") -> list[str]:
    """The line for a model that gives scores where one that writes is needed."""
    if not is_reward_model(path, revision):
        return []
    return [
        f"{key}: got {path}, a reward model, which gives scores and writes no text; "
        "need a language model. Try the model that it was trained from"
    ]


def not_one_stack(key: str, path: str, revision: str = "") -> list[str]:
    """The line for an encoder-decoder, whose config or whose adapter's base says that it is one."""
    folder = local_folder(path, revision)
    config = _config_under(folder) if folder else {}
    return [encoder_decoder(key, path, config)] if config.get("is_encoder_decoder") else []


def _config_under(folder: Path) -> dict[str, object]:
    """The config of a model, or of the local base of an adapter."""
    if not (folder / ADAPTER).is_file():
        return settings(folder)
    base = local_folder(*recorded_base(folder))
    return settings(base) if base else {}


def encoder_decoder(key: str, path: str, config: dict[str, object]) -> str:
    """The line for an encoder-decoder.

    Args:
        key: that named it.
        path: what it was set to.
        config: of transformers, as in `config.json`.
    """
    kind = config.get("model_type", "unknown")
    return (
        f"{key}: got {path}, an encoder-decoder ({kind}), which is not supported; need a model of "
        "one stack: a decoder, or for scores an encoder"
    )


def revision_problems(key: str, path: str, revision: str) -> list[str]:
    """The line for a revision of what has none.

    Args:
        key: of the model, as `model.path` (whose revision is `model.revision`) or `model.tokenizer`
            (`model.tokenizer_revision`).
        path: what it was set to.
        revision: what the key of its revision was set to.
    """
    own = "revision" if key.endswith((".path", ".model", ".classifier")) else ""
    named = f"{key.rpartition('.')[0]}.{own}" if own else f"{key}_revision"
    if not revision:
        return []
    if not path:
        return [f"{named}: got {revision} without {key}; need the hub id that it is a revision of"]
    if path == SHIPPED or isdir(expanduser(path)):
        return [
            f"{named}: got {revision} with {key}={path}, which is not on the hub and has no "
            f"revisions. Leave {named} out"
        ]
    return []


def base_revision_problems(group: str, path: str, base: str, revision: str) -> list[str]:
    """The line for a revision of a base that is not on the hub, or of no base at all.

    Args:
        group: that the keys stand below, as `model` (`model.base` and `model.base_revision`).
        path: of the model.
        base: what the key of the base was set to.
        revision: what the key of its revision was set to.
    """
    if base:
        return revision_problems(f"{group}.base", base, revision)
    if not revision or not isdir(expanduser(path)) or is_adapter(path):
        return []
    return [
        f"{group}.base_revision: got {revision}, but {path} is no adapter and stands on no base. "
        f"Leave {group}.base_revision out"
    ]
