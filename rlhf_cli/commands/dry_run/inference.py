"""Dry run of `generate` and `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.commands.config import GenerateConfig
from rlhf_cli.commands.dry_run.choices import (
    Choice,
    choice_section,
    model_choices,
    precision_choice,
)
from rlhf_cli.commands.dry_run.memory import MemoryReport
from rlhf_cli.commands.dry_run.prompts import prompt_lengths, prompt_section, served_sections
from rlhf_cli.commands.dry_run.rates import find_rate
from rlhf_cli.commands.dry_run.rows import RowFacts, load_held_out_rows
from rlhf_cli.commands.dry_run.section import Section
from rlhf_cli.commands.dry_run.training import (
    device_text,
    memory_rows,
    row_facts,
    row_lines,
)
from rlhf_cli.commands.dry_run.work import Work, decode_work, forward_flops, time_section
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.commands.evaluate.targets import Target, load_targets, target_model
from rlhf_cli.config.schema import no_rows
from rlhf_cli.data.prompts import PromptSet, load_prompts
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.parts import Rows, compute_itemsize
from rlhf_cli.memory.weights import HeldModel, frozen_model
from rlhf_cli.models.config import ModelConfig

Found = tuple[list[Section], bool]
"""The report, and whether the command fits the device."""


@dataclass(frozen=True)
class _Part:
    """What a dry run finds out about one model."""

    model: HeldModel
    name: str
    memory: MemoryReport
    work: list[Work]
    rows: RowFacts | None = None


def generate_sections(cfg: GenerateConfig, device: Device) -> Found:
    """Build the dry run of `generate`.

    Raises:
        ConfigError: the model is not here.
        DataError: the prompts cannot be read.
    """
    given = [cfg.prompt] if isinstance(cfg.prompt, str) else cfg.prompt
    prompts = (
        PromptSet([prompt for prompt in given if prompt])
        if no_rows(cfg.prompts)
        else load_prompts(cfg.prompts)
    )
    if cfg.rollout.is_used:
        return served_sections(cfg, [cfg.model], prompts), True
    part = _decoding("generate", cfg, cfg.model, prompts, device)
    longest = part.memory.rows.longest_prompt
    return _report(cfg, device, [part], prompt_section(cfg, prompts, longest))


def evaluate_sections(cfg: EvaluateConfig, device: Device) -> Found:
    """Build the dry run of `evaluate`: models are loaded one after the other.

    Raises:
        ConfigError: a model is not here.
        DataError: the rows cannot be read, or no model has any.
    """
    if cfg.judge:
        prompts = load_prompts(cfg.prompts)
        models = [target_model(cfg, path) for _, path in cfg.named_models]
        if cfg.rollout.is_used:
            return served_sections(cfg, models, prompts), True
        parts = [_decoding("evaluate", cfg, model, prompts, device) for model in models]
        longest = parts[0].memory.rows.longest_prompt
        return _report(cfg, device, parts, prompt_section(cfg, prompts, longest))
    parts = [_measuring(cfg, target, device) for target in load_targets(cfg)]
    lines = [line for part in parts if part.rows for line in row_lines(part.name, part.rows)]
    facts = {part.name: row_facts(part.rows) for part in parts if part.rows}
    return _report(cfg, device, parts, Section("data", lines, facts))


def _decoding(
    command: str, cfg: Any, model: ModelConfig, prompts: PromptSet, device: Device
) -> _Part:
    """A model that responds to prompts."""
    lengths = prompt_lengths(cfg.template, model, prompts)
    itemsize, new = compute_itemsize(cfg.precision, device), cfg.sampling.max_new_tokens
    held = frozen_model(model, "policy", itemsize, "model.path", cfg.quant)
    longest = int(lengths.max())
    rows = Rows(longest=longest + new, mean=float(lengths.mean()) + new, longest_prompt=longest)
    responses = len(prompts) * getattr(cfg, "samples_per_prompt", 1)
    work = decode_work(held, lengths, new, responses, cfg.batch_size, itemsize)
    memory = MemoryReport.of(command, replace(cfg, model=model), rows, device)
    return _Part(held, model.path, memory, [work])


def _measuring(cfg: EvaluateConfig, target: Target, device: Device) -> _Part:
    """A model that is measured on held-out rows."""
    facts = load_held_out_rows(target.config, target.stage, given=not no_rows(cfg.data.path))
    itemsize = compute_itemsize(cfg.precision, device)
    model = target.config.model
    held = frozen_model(model, "policy", itemsize, "model.path", cfg.quant)
    scores = target.stage == "reward"
    forward = forward_flops(held, scores=scores).of_rows(facts.lengths, facts.scored)
    compared = 2 if getattr(model, "reference", "none") != "none" else 1
    rows = _memory_rows(target, facts)
    one = replace(cfg, model=target_model(cfg, model.path))
    memory = MemoryReport.of("evaluate", one, rows, device)
    work = Work("evaluation", compared * facts.share * forward)
    return _Part(held, target.name, memory, [work], facts)


def _memory_rows(target: Target, facts: RowFacts) -> Rows:
    """What the memory model needs to know of rows, or of the prompts of ppo."""
    if facts.examples is not None:
        return memory_rows(target.config, facts)
    return replace(Rows.of_config(target.config), longest_prompt=facts.longest)


def _report(cfg: Any, device: Device, parts: Sequence[_Part], data: Section) -> Found:
    """The report on the models; memory is that of the largest, as one is loaded at a time."""
    largest = max(parts, key=lambda part: part.memory.estimate.peak[1])
    rate = find_rate(device, compute_itemsize(cfg.precision, device), cfg.device_flops)
    names = {work.name for part in parts for work in part.work}
    work = [
        Work(
            name,
            sum(w.flops for part in parts for w in part.work if w.name == name),
            sum(w.read_bytes for part in parts for w in part.work if w.name == name),
        )
        for name in sorted(names)
    ]
    chosen: list[Choice] = [
        *precision_choice("precision", cfg.precision, device),
        *(one for one in model_choices(cfg.model) if one.key != "model.attention"),
    ]
    sections = [
        _run(cfg, device, parts),
        data,
        time_section(work, rate, 1),
        choice_section(chosen),
        largest.memory.section(),
    ]
    return sections, largest.memory.estimate.fits


def _run(cfg: Any, device: Device, parts: Sequence[_Part]) -> Section:
    lines = [
        ("model", f"{part.model.shape.name} ({part.model.shape.model_type}), {count:,} parameters")
        for part in parts
        for count in [sum(tensor.count for tensor in part.model.shape.tensors)]
    ]
    lines += [("device", device_text(device)), ("output", cfg.output or "the screen")]
    facts = {
        "models": [part.model.shape.name for part in parts],
        "device": device.name,
        "device_bytes": device.total_bytes,
        "output": cfg.output,
    }
    return Section("run", lines, facts)
