"""Compile decoder layers with torch.compile, attention left out.

Each kind of layer is compiled once, for rows of any length. Attention over flat rows depends on
their lengths in Python, and would be compiled anew for each batch.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_cli.console import logger
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ConfigError, ModelError, first_line
from rlhf_cli.models.attention import ATTENTION, per_row_attention
from rlhf_cli.models.probes import embedded, gradient_at, probe_rows, tolerance, unlike
from rlhf_cli.models.wrapper import ModelWrapper

ADVICE = "Try train.compile=false"


def require_compiler(compiles: bool, device: torch.device) -> None:
    """Refuse to compile for a CPU without a C++ compiler.

    Raises:
        ConfigError: there is none under the name that torch uses.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if compiles and device.type == "cpu" and shutil.which(name) is None:
        raise ConfigError(
            f"train.compile: got true, but there is no {name}, and a CPU needs a C++ compiler. "
            f"{ADVICE}"
        )


def compile_layers(model: ModelWrapper) -> None:
    """Compile the decoder layers, compare their outputs and gradients, and print the time.

    Args:
        model: probed, in the types that it is computed in.

    Raises:
        ModelError: there are none, they cannot be compiled, or their outputs differ.
    """
    layers = [m for m in model.model.modules() if isinstance(m, GradientCheckpointingLayer)]
    name = type(model.model).__name__
    if not layers:
        raise ModelError(f"train.compile: got true, but {name} has no layers to compile. {ADVICE}")
    AttentionInterface.register(ATTENTION, torch.compiler.disable(per_row_attention))
    rows = probe_rows(model.model.config.get_text_config().vocab_size, model.device)
    plain = _outputs_and_gradient(model, rows)
    began = time.monotonic()
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        compiled = _outputs_and_gradient(model, rows)
        problem = unlike(compiled, plain, model.output_name, tolerance(model))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # raised by the compiler
        problem = f"{type(error).__name__}: {first_line(error)}"
    if problem:
        raise ModelError(f"train.compile: {name} is not exact when compiled ({problem}). {ADVICE}")
    seconds = time.monotonic() - began
    outputs = f"{model.output_name} and gradients as before"
    logger.info(f"compile: {len(layers)} layers in {seconds:.0f} s; {outputs}")


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Run layers uncompiled inside the context, for passes that are not worth compiling for."""
    if all(module._compiled_call_impl is None for module in model.modules()):
        return nullcontext()  # avoids the import of the compiler
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _outputs_and_gradient(model: ModelWrapper, rows: TokenBatch) -> tuple[Tensor, Tensor]:
    with embedded(model) as inputs:
        outputs, _ = model.probe_outputs(rows)
        return outputs.detach(), gradient_at(inputs, outputs)
