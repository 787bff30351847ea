"""What a model's folder must hold, and what is said where one cannot be loaded."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.errors import ModelError, RlhfError, first_line
from rlhf_cli.runs import artifact
from rlhf_cli.runs.model_checks import encoder_decoder_message


def require_config(source: str) -> None:
    """Refuse a local folder that is no model.

    Raises:
        ModelError: it has no config.
    """
    needed = ("config.json", artifact.ADAPTER_CONFIG)
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in needed):
        raise ModelError(
            f"model.path: {source} has no config.json; need a model folder, a finished run or a "
            "hub id. Try model=tiny"
        )


@contextmanager
def loading(key: str, source: str) -> Iterator[None]:
    """Tell what could not be loaded in one line; libraries raise all kinds of exceptions here.

    Args:
        key: what the user set.
        source: what it was set to.

    Raises:
        ModelError: names the key, the source and the library's reason.
    """
    try:
        yield
    except (RlhfError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{key}: {source} brings Python code of its own, which is run when it is loaded. "
                "Read it, and if you trust it try model.trust_remote_code=true"
            ) from error
        reason = textwrap.shorten(first_line(error), 300)  # some name every architecture there is
        raise ModelError(f"{key}: cannot load {source}: {reason}") from error


def require_whole_weights(source: str, config: Any) -> None:
    """Refuse a checkpoint that is packed already.

    Args:
        source: where it is.
        config: of transformers.

    Raises:
        ModelError: names how it is packed.
    """
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        fields = packed if isinstance(packed, dict) else packed.to_dict()
        raise ModelError(
            f"model.path: {source} has weights that are packed already "
            f"({fields.get('quant_method', 'quantization_config')}); need whole ones, bf16 or "
            "fp32, which quant=nf4 or quant=int8 packs as it loads them"
        )


def require_one_stack(source: str, config: Any) -> None:
    """Refuse an encoder-decoder; of its two stacks a class for decoders would load one.

    Args:
        source: where it is.
        config: of transformers.

    Raises:
        ModelError: says that it is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(encoder_decoder_message("model.path", source, config.to_dict()))


def require_safe_weights(folder: Path) -> None:
    """Refuse a local folder without all of its safetensors weights.

    Raises:
        ModelError: it has only a pickle, or a part, or nothing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"model.path: {folder} is not whole: {len(missing)} of {len(shards)} files of "
                f"weights are missing, {missing[0]} among them. Copy or fetch it again"
            )
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
