"""From what `model.path` says to what transformers can load, with the refusals in words."""

from __future__ import annotations

from pathlib import Path

from rlhf_cli.errors import ModelError
from rlhf_cli.resources import shipped
from rlhf_cli.run_folder import resolve_run

SHIPPED = {"tiny": "tiny/model"}
"""Models that come with the package: a config and a tokenizer, no weights."""

DEFAULT_ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 288,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""What `model.init=scratch` builds when nothing else is said: an 8 M parameter Llama."""

DEFAULT_VOCAB_SIZE = 8192


def locate(path: str) -> str:
    """A local folder, or the hub id as it stands.

    Raises:
        ModelError: the folder is an unfinished run, or holds no config.
    """
    if path in SHIPPED:
        return str(shipped("recipes") / SHIPPED[path])
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    resolved = resolve_run(folder)
    if not (resolved / "config.json").is_file():
        raise ModelError(
            f"model.path: {path} has no config.json; need a model folder, a finished run or a "
            "hub id. Try model=tiny"
        )
    return str(resolved)


def require_safe_weights(folder: Path) -> None:
    """Refuse a local folder without safetensors weights.

    Raises:
        ModelError: it has only a pickle, or nothing.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(
        file.name for file in folder.glob("*.pt*")
    )
    if pickles:
        raise ModelError(
            f"model.path: {folder} has its weights as a pickle ({pickles[0]}), which can run any "
            "code when it is loaded; need safetensors. Convert it where you trust it: "
            "model.save_pretrained(folder)"
        )
    raise ModelError(
        f"model.path: {folder} has a config and no weights (*.safetensors). "
        "Try model.init=scratch to start from random ones"
    )
