"""Build PEFT's config of a new adapter: its target layers, experts and fully trained layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from peft.utils import TrainableTokensWrapper
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.parameters import find_modules, non_text_pattern
from rlhf_cli.models.quantize import has_quantized_weight
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.trainable_tokens import trainable_token_indices

Targets = tuple[str | list[str], list[str]]
"""PEFT's `target_modules` and `target_parameters`."""


def build_lora_config(model: Any, cfg: AdapterConfig, new_tokens: Sequence[int] = ()) -> LoraConfig:
    """Build PEFT's config of the adapter that the user's config describes.

    Args:
        model: the base, perhaps with other adapters on it.
        cfg: the user's.
        new_tokens: ids whose embedding rows are trained beside the matrices.

    Raises:
        ModelError: a target is no layer of the model, or is tied to the embeddings.
    """
    targets, parameters = find_targets(model, cfg)
    whole = _find_modules_to_save(model, cfg)
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    return LoraConfig(
        task_type=peft_task(model),
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        use_dora=cfg.kind == "dora",
        use_rslora=cfg.kind == "rslora",
        modules_to_save=whole or None,
        trainable_token_indices=trainable_token_indices(model, new_tokens, targets, whole) or None,
        fan_in_fan_out=transposed,
        exclude_modules=non_text_pattern(model),
    )


def peft_task(model: Any) -> str:
    """Return PEFT's task type of a model; with `SEQ_CLS` its head is trained and saved too."""
    return "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"


def find_targets(model: Any, cfg: AdapterConfig) -> Targets:
    """Find the layers that the config names, in the form that PEFT takes.

    The experts of a mixture are not layers but parameters of three dimensions, one slice an expert.

    Raises:
        ModelError: no layer has the name, or the layer cannot have an adapter.
    """
    experts = fused_experts(model)
    if cfg.targets == "all-linear":
        return _all_linear(model, cfg, experts) if experts else (cfg.targets, [])
    wanted = [cfg.targets] if isinstance(cfg.targets, str) else cfg.targets
    parameters = [name for name in wanted if _is_expert(name, experts)]
    if parameters and (problem := _unsupported_on_experts(cfg)):
        raise ModelError(
            f"adapter.targets: got {parameters[0]}, which are experts, with {problem}; PEFT adapts "
            "experts with lora and rslora and without dropout. Try adapter=lora"
        )
    layers = linear_layers(model)
    for name in wanted:
        if name in parameters:
            continue
        found = find_modules("adapter.targets", name, layers, "linear layer", "all-linear")
        output = model.get_output_embeddings()
        if getattr(output, "original_module", output) in found.values():
            _require_adaptable_output(model, cfg, name)
    return [name for name in wanted if name not in parameters], parameters


def _all_linear(model: Any, cfg: AdapterConfig, experts: list[str]) -> Targets:
    """Target every linear layer but the output layer, and the experts; print what is left out."""
    output = model.get_output_embeddings()
    last = (output, score_layer(model))
    layers = [name for name, layer in linear_layers(model).items() if layer not in last]
    reserved = _expert_layer_names(model)
    without = [name for name in layers if name.rpartition(".")[2] in reserved]
    modules = sorted({name.rpartition(".")[2] for name in layers} - reserved)
    if without:
        logger.info(
            f"adapter: {len(without)} linear layers get none, as {without[0]}: PEFT takes their "
            "names for those of experts"
        )
    problem = _unsupported_on_experts(cfg)
    if problem:
        logger.info(f"adapter: the experts get none ({problem}; PEFT adapts them without)")
        return modules, []
    return modules, sorted({re.split(r"\.\d+\.", name)[-1] for name in experts})


def fused_experts(model: Any) -> list[str]:
    """List the parameters that hold the weights of all experts of a layer as one tensor."""
    return [
        f"{name.removesuffix('.base_layer')}.{own}".replace(".base_layer.", ".")
        for name, module in model.named_modules()
        if "experts" in name.replace(".base_layer", "").rpartition(".")[2]
        for own, param in module.named_parameters(recurse=False)
        if param.ndim == 3 and param.is_floating_point()
    ]


def _is_expert(name: str, experts: list[str]) -> bool:
    return any(full == name or full.endswith(f".{name}") for full in experts)


def _unsupported_on_experts(cfg: AdapterConfig) -> str:
    """Return the setting that PEFT supports on layers but not on experts, or an empty string."""
    if cfg.kind == "dora":
        return "adapter.kind=dora"
    return f"adapter.dropout={cfg.dropout}" if cfg.dropout else ""


def _expert_layer_names(model: Any) -> set[str]:
    """Return the layer names that PEFT reserves for experts in this model type.

    It converts adapters that were made before transformers fused the experts.
    """
    families = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    names = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(names.get(families.get(model.config.model_type), ()))


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Map names to linear layers of the base, also where adapters are attached already."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    others = re.compile(non_text_pattern(model) or "(?!)")
    return {
        n.removesuffix(".base_layer").removesuffix(".token_adapter"): m
        for n, m in found.items()
        if ".lora_" not in n and not others.fullmatch(n)
    }


def _require_adaptable_output(model: Any, cfg: AdapterConfig, name: str) -> None:
    """Refuse an adapter on an output layer where it could not be computed or merged."""
    reason = ""
    if model.config.get_text_config().tie_word_embeddings:
        reason = "it shares its weights with the input embeddings, which would change with it"
    elif cfg.kind == "dora" or cfg.dropout:
        reason = "it takes lora or rslora without adapter.dropout only"
    elif isinstance(model.get_output_embeddings(), TrainableTokensWrapper):
        reason = (
            "the adapter below has rows of single tokens in it, and PEFT puts no matrices there"
        )
    elif has_quantized_weight(model.get_output_embeddings()):
        reason = "quantized (quant.output_layer=true), it takes no adapter"
    if reason:
        raise ModelError(
            f"adapter.targets: got {name}, the output layer; {reason}. "
            "Try adapter.targets=all-linear, which leaves it out"
        )


def _find_modules_to_save(model: Any, cfg: AdapterConfig) -> list[str]:
    """Find the full names of layers that are trained fully and saved beside the adapter.

    Full names, because PEFT takes every layer whose name ends so: `norm` would match each
    `layernorm`.
    """
    found: list[str] = []
    others = re.compile(non_text_pattern(model) or "(?!)")
    modules = {n: module for n, module in model.named_modules() if not others.fullmatch(n)}
    shared = {model.get_input_embeddings(), model.get_output_embeddings()}
    for name in cfg.modules_to_save:
        for full, module in find_modules("adapter.modules_to_save", name, modules).items():
            if module in shared and model.config.get_text_config().tie_word_embeddings:
                raise ModelError(
                    f"adapter.modules_to_save: got {name}; input embeddings and output layer share "
                    "their weights, and of a copy only one would be trained. Leave it out"
                )
            if not all(param.is_floating_point() for param in module.parameters()):
                raise ModelError(
                    f"adapter.modules_to_save: got {name}, whose weights are quantized and have no "
                    "gradient. Try quant=none, or leave it out"
                )
            found.append(full)
    return found
