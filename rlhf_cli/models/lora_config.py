"""Which layers of a model a new adapter stands on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from peft.utils import TrainableTokensWrapper
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.context import say
from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.parameters import modules_named, others_pattern
from rlhf_cli.models.quantize import packed_weight
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.trainable_tokens import token_rows

Targets = tuple[str | list[str], list[str]]
"""What PEFT is to find modules by, and parameters."""


def find_targets(model: Any, cfg: AdapterConfig) -> Targets:
    """The layers that the config asks for, in the form that PEFT takes.

    The experts of a mixture are not layers but parameters of three dimensions, one slice an expert.

    Raises:
        ModelError: a name is that of no layer, or of one that cannot have an adapter.
    """
    experts = fused_experts(model)
    if cfg.targets == "all-linear":
        return _all_linear(model, cfg, experts) if experts else (cfg.targets, [])
    wanted = [cfg.targets] if isinstance(cfg.targets, str) else cfg.targets
    parameters = [name for name in wanted if _named(name, experts)]
    if parameters and (problem := _unfit_for_experts(cfg)):
        raise ModelError(
            f"adapter.targets: got {parameters[0]}, which are experts, with {problem}; PEFT adapts "
            "experts with lora and rslora and without dropout. Try adapter=lora"
        )
    layers = linear_layers(model)
    for name in wanted:
        if name in parameters:
            continue
        found = modules_named("adapter.targets", name, layers, "linear layer", "all-linear")
        output = model.get_output_embeddings()
        if getattr(output, "original_module", output) in found.values():
            _require_own_output(model, cfg, name)
    return [name for name in wanted if name not in parameters], parameters


def _all_linear(model: Any, cfg: AdapterConfig, experts: list[str]) -> Targets:
    """Every linear layer but the output layer, and the experts; one line for what gets none."""
    output = model.get_output_embeddings()
    last = (output, score_layer(model))
    layers = [name for name, layer in linear_layers(model).items() if layer not in last]
    taken = _names_of_experts(model)
    without = [name for name in layers if name.rpartition(".")[2] in taken]
    modules = sorted({name.rpartition(".")[2] for name in layers} - taken)
    if without:
        say(
            f"adapter: {len(without)} linear layers get none, as {without[0]}: PEFT takes their "
            "names for those of experts"
        )
    problem = _unfit_for_experts(cfg)
    if problem:
        say(f"adapter: the experts get none ({problem}; PEFT adapts them without)")
        return modules, []
    return modules, sorted({re.split(r"\.\d+\.", name)[-1] for name in experts})


def fused_experts(model: Any) -> list[str]:
    """Names of the parameters that hold the weights of all experts of a layer, as one tensor."""
    return [
        f"{name.removesuffix('.base_layer')}.{own}".replace(".base_layer.", ".")
        for name, module in model.named_modules()
        if "experts" in name.replace(".base_layer", "").rpartition(".")[2]
        for own, param in module.named_parameters(recurse=False)
        if param.ndim == 3 and param.is_floating_point()
    ]


def _named(name: str, experts: list[str]) -> bool:
    return any(full == name or full.endswith(f".{name}") for full in experts)


def _unfit_for_experts(cfg: AdapterConfig) -> str:
    """What of an adapter PEFT has for layers alone; empty where nothing is."""
    if cfg.kind == "dora":
        return "adapter.kind=dora"
    return f"adapter.dropout={cfg.dropout}" if cfg.dropout else ""


def _names_of_experts(model: Any) -> set[str]:
    """Names of layers that PEFT, as it did before experts were fused, takes for experts' layers."""
    families = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    names = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(names.get(families.get(model.config.model_type), ()))


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """Those of the base by their names, also where adapters stand on them already."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    others = re.compile(others_pattern(model) or "(?!)")
    return {
        n.removesuffix(".base_layer").removesuffix(".token_adapter"): m
        for n, m in found.items()
        if ".lora_" not in n and not others.fullmatch(n)
    }


def _require_own_output(model: Any, cfg: AdapterConfig, name: str) -> None:
    """Refuse an adapter on an output layer that it cannot be merged into or computed for."""
    reason = ""
    if model.config.get_text_config().tie_word_embeddings:
        reason = "it shares its weights with the input embeddings, which would change with it"
    elif cfg.kind == "dora" or cfg.dropout:
        reason = "it takes lora or rslora without adapter.dropout only"
    elif isinstance(model.get_output_embeddings(), TrainableTokensWrapper):
        reason = (
            "the adapter below has rows of single tokens in it, and PEFT puts no matrices there"
        )
    elif packed_weight(model.get_output_embeddings()) is not None:
        reason = "packed (quant.output_layer=true), it takes no adapter"
    if reason:
        raise ModelError(
            f"adapter.targets: got {name}, the output layer; {reason}. "
            "Try adapter.targets=all-linear, which leaves it out"
        )


def new_adapter(model: Any, cfg: AdapterConfig, new_tokens: Sequence[int] = ()) -> LoraConfig:
    """PEFT's description of the adapter that the config asks for.

    Args:
        model: the base, perhaps with other adapters on it.
        cfg: what is asked for.
        new_tokens: ids whose rows are trained beside the matrices.

    Raises:
        ModelError: a target is no layer of the model, or is tied to the embeddings.
    """
    targets, parameters = find_targets(model, cfg)
    whole = _trained_whole(model, cfg)
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
        trainable_token_indices=token_rows(model, new_tokens, targets, whole) or None,
        fan_in_fan_out=transposed,
        exclude_modules=others_pattern(model),
    )


def peft_task(model: Any) -> str:
    """PEFT's word for what stands on the layers; a classifier's head is trained and saved too."""
    return "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"


def _trained_whole(model: Any, cfg: AdapterConfig) -> list[str]:
    """Whole names of layers that are trained and saved beside the adapter's matrices.

    Whole, because PEFT takes every layer whose name ends so: `norm` would mean each `layernorm`.
    """
    found: list[str] = []
    others = re.compile(others_pattern(model) or "(?!)")
    modules = {n: module for n, module in model.named_modules() if not others.fullmatch(n)}
    shared = {model.get_input_embeddings(), model.get_output_embeddings()}
    for name in cfg.modules_to_save:
        for full, module in modules_named("adapter.modules_to_save", name, modules).items():
            if module in shared and model.config.get_text_config().tie_word_embeddings:
                raise ModelError(
                    f"adapter.modules_to_save: got {name}; input embeddings and output layer share "
                    "their weights, and of a copy only one would be trained. Leave it out"
                )
            if not all(param.is_floating_point() for param in module.parameters()):
                raise ModelError(
                    f"adapter.modules_to_save: got {name}, whose weights are packed and have no "
                    "gradient. Try quant=none, or leave it out"
                )
            found.append(full)
    return found
