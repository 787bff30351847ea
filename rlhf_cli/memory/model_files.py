"""Shapes of models, read from config.json and the headers of weight files; no weights are read."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ConfigError, RlhfError
from rlhf_cli.memory.families import build_tensors
from rlhf_cli.memory.headers import read_headers
from rlhf_cli.memory.shape import ModelShape, build_shape, shape_of, text_config, with_defaults
from rlhf_cli.models.config import DEFAULT_ARCHITECTURE, DEFAULT_VOCAB_SIZE, ModelConfig
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs.artifact import (
    ADAPTER_CONFIG,
    find_model_folder,
    read,
    read_adapter_base,
    read_model_json,
)
from rlhf_cli.runs.run_files import BASE


def read_shape(cfg: ModelConfig, key: str = "model.path") -> ModelShape:
    """Read the shape of the model that a config describes; no weights are read.

    Args:
        cfg: of the model: a folder, a run, a fetched hub id, `tiny`, or an architecture.
        key: config key of its path, for messages.

    Raises:
        ConfigError: there is no such model here, or its files do not describe one.
    """
    try:
        found = _read_random(cfg) if cfg.from_scratch else _read_stored(cfg, key)
    except RlhfError:
        raise
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{key}: cannot read the shape of {cfg.path or 'model.architecture'} ({what}); need a "
            "config.json of a transformers language model"
        ) from None
    return found


def _read_random(cfg: ModelConfig) -> ModelShape:
    """Shape of random weights, with a vocabulary of the tokenizer's size."""
    config: dict[str, Any] = dict(cfg.architecture or DEFAULT_ARCHITECTURE)
    if cfg.path:
        config = read_model_json(_folder(cfg.path, cfg.revision, "model.path"))
    config = {**text_config(config), "vocab_size": _random_vocabulary(cfg)}
    return shape_of(cfg.path or f"a new {config.get('model_type')}", config)


def _random_vocabulary(cfg: ModelConfig) -> int:
    """Size of the vocabulary that random weights get."""
    if cfg.tokenizer_vocab_size:
        return cfg.tokenizer_vocab_size
    path = cfg.tokenizer or cfg.path
    if not path:
        return DEFAULT_VOCAB_SIZE
    revision = cfg.tokenizer_revision if cfg.tokenizer else cfg.revision
    folder = _folder(path, revision, "model.tokenizer")
    size = tokenizer_size(folder)
    return size or int(text_config(read_model_json(folder))["vocab_size"])


def tokenizer_size(folder: Path) -> int:
    """Return the largest id + 1 of a tokenizer.json; 0 if there is none or it is unusual."""
    file = folder / "tokenizer.json"
    try:
        about = file.stat()
        return _count_ids(file, about.st_size, about.st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError):
        return 0


@lru_cache(maxsize=32)
def _count_ids(file: Path, size: int, changed: int) -> int:
    """Largest id + 1; read again where the file's size or time of change differ."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = whole["model"]["vocab"]
    ids = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
    ids += [added["id"] for added in whole.get("added_tokens") or ()]
    return 1 + int(max(ids))


def _read_stored(cfg: ModelConfig, key: str) -> ModelShape:
    folder = _folder(cfg.path, cfg.revision, key)
    if not (folder / ADAPTER_CONFIG).is_file():
        return _read_folder(cfg.path, folder, key)
    facts = read(folder)
    base = _read_folder(cfg.path, _base_folder(cfg, folder, key), key)
    stacked = sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
    adapters = [tensor for each in (*stacked, folder) for tensor in read_headers(each)]
    return replace(base, adapters=tuple(adapters), quant=str(facts.get("quant", "none")))


def _base_folder(cfg: ModelConfig, folder: Path, key: str) -> Path:
    """Folder of an adapter's base: `model.base`, or in the adapter's run, or as recorded."""
    if cfg.base:
        return _folder(cfg.base, cfg.base_revision, "model.base")
    base, revision = read_adapter_base(folder)
    beside = folder.parent / BASE
    if Path(base).name == BASE and beside.is_dir():
        return beside
    return _folder(base, cfg.base_revision or revision, key)


def _folder(path: str, revision: str, key: str) -> Path:
    """Local folder of a model's files.

    Raises:
        ConfigError: there is none.
    """
    found = shipped_model(path) if path == SHIPPED else find_model_folder(path, revision)
    if found is None or not any((found / n).is_file() for n in ("config.json", ADAPTER_CONFIG)):
        raise ConfigError(
            f"{key}: {path or 'no path'} is not here; need a model folder, a finished run or a hub "
            "id that was fetched before. Try model=tiny"
        )
    return found


def _read_folder(name: str, folder: Path, key: str) -> ModelShape:
    config = read_model_json(folder)
    if not config:
        raise ConfigError(f"{key}: {folder / 'config.json'} cannot be read as JSON")
    if config.get("is_encoder_decoder"):
        raise ConfigError(f"{key}: got {name}, an encoder-decoder, which is not supported")
    text = text_config(config)
    headers = read_headers(folder)
    sizes = Counter[int]()
    for tensor in headers:
        sizes[tensor.itemsize] += tensor.count
    # of files that are not fetched yet, the type in the config
    stored = sizes.most_common(1)[0][0] if sizes else _named_size(config, text)
    tensors = headers or [replace(t, itemsize=stored) for t in build_tensors(with_defaults(text))]
    return build_shape(name, text, tensors, stored, from_files=bool(headers))


def _named_size(config: Mapping[str, Any], text: Mapping[str, Any]) -> int:
    named = next((c[k] for c in (config, text) for k in ("dtype", "torch_dtype") if c.get(k)), "")
    return 2 if str(named) in ("bfloat16", "float16") else 4
