"""Which attention a model computes with: refused, set, probed, and told."""

from __future__ import annotations

import torch

from rlhf_cli.context import RunContext
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import FLASH, LoadConfig, ModelConfig
from rlhf_cli.models.precision import as_computed, without_own_gradients
from rlhf_cli.models.probes import probe
from rlhf_cli.models.wrapper import ModelWrapper, without_dropout

PADDED = ("sdpa", "eager")
"""Attention by which rows are padded; any other keeps flat rows apart."""


def require_attention(cfg: ModelConfig, ctx: RunContext, *, flat: bool) -> None:
    """Refuse an attention that the model, the device or the compute type does not allow.

    Raises:
        ModelError: says which of them.
    """
    asked, reason = cfg.attention, ""
    if asked not in ("auto", *PADDED) and not flat:
        reason = f"keeps the rows of decoders apart, and {cfg.path} is an encoder"
    elif asked not in ("auto", "per_row", *PADDED) and ctx.device.type != "cuda":
        reason = f"is trained with on CUDA alone, and this runs on {ctx.device.type}"
    elif asked in FLASH and ctx.compute == torch.float32:
        reason = "has no kernels for fp32, which train.precision=fp32 asks for"
    if reason:
        raise ModelError(f"model.attention: got {asked}, which {reason}. Try model.attention=auto")


def set_attention(loaded: ModelWrapper, cfg: LoadConfig, compute: torch.dtype) -> None:
    """Let a model compute with the attention that is asked for, and probe it.

    Raises:
        KernelError: with the layers that are asked for, it does not give what it gives by itself.
        ModelError: nor with the attention that is.
    """
    attention = cfg.model.attention
    if attention not in ("auto", "per_row"):
        loaded.model.set_attn_implementation(attention)
    with without_dropout(loaded), as_computed(loaded, compute), without_own_gradients(loaded):
        probe(
            loaded,
            may_fall_back=attention == "auto",
            may_drop_layers=cfg.kernels == "auto",
        )
