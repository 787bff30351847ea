"""The outline of a model: config, vocabulary and end tokens, without any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from rlhf_cli.context import forked_rng
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.load_errors import convert_load_errors, require_model_folder
from rlhf_cli.models.resolve import resolve_folder


def load_outline(cfg: ModelConfig) -> Any:
    """Build a transformers model on the meta device; no weight is read.

    It is for commands whose responses come from a server that has the weights.

    Args:
        cfg: of a whole model in a folder, a run or on the hub.

    Raises:
        ModelError: there is no such model, or its config cannot be read.
    """
    folder = resolve_folder("model.path", cfg.path, cfg.revision)
    require_model_folder(folder)
    trust = cfg.trust_remote_code
    with convert_load_errors("model.path", folder), forked_rng():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
