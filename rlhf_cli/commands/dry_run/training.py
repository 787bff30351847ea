"""Dry run of a training stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.commands.dry_run.choices import choice_section, training_choices
from rlhf_cli.commands.dry_run.disk import DiskNeed, disk_need
from rlhf_cli.commands.dry_run.memory import MemoryReport
from rlhf_cli.commands.dry_run.rates import Rate, find_rate
from rlhf_cli.commands.dry_run.rows import (
    RowFacts,
    RunRows,
    first_texts,
    load_prompt_rows,
    load_stage_rows,
)
from rlhf_cli.commands.dry_run.section import Section, format_count
from rlhf_cli.commands.dry_run.steps import Steps, count_steps
from rlhf_cli.commands.dry_run.work import (
    Work,
    distill_work,
    rollout_work,
    stage_work,
    time_section,
)
from rlhf_cli.config.references import public_url
from rlhf_cli.data.examples import rows_of
from rlhf_cli.data.report import pluralize
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.parts import Rows, compute_itemsize
from rlhf_cli.memory.roles import held_models
from rlhf_cli.memory.sharding import Sharding
from rlhf_cli.memory.table import format_bytes
from rlhf_cli.memory.weights import HeldModel
from rlhf_cli.models.tokenizer import load_tokenizer, trains_tokenizer
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.records import records_of
from rlhf_cli.stages.tokenizers import load_prompt_encoder, load_row_tokenizer


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that a dry run finds out about a training stage.

    Attributes:
        stage: its name.
        cfg: its configuration.
        device: that it would run on.
        processes: of the run.
        rows: training and held-out rows.
        models: that it holds, the trained one first.
        memory: its estimate.
        steps: their number and size.
        rate: speed of the device.
        work: by purpose.
        disk: that it needs.
        done: steps of an unfinished run that are taken already.
    """

    stage: str
    cfg: Any
    device: Device
    processes: int
    rows: RunRows
    models: list[HeldModel]
    memory: MemoryReport
    steps: Steps
    rate: Rate
    work: list[Work]
    disk: DiskNeed
    done: int

    @property
    def left(self) -> float:
        """Share of the steps that are still to be taken."""
        return max(0.0, 1 - self.done / self.steps.total)


def plan_training(
    stage: str, cfg: Any, device: Device, processes: int, out: Path, done: int = 0
) -> TrainingPlan:
    """Read the rows and model files of a stage, and work out what its run would do.

    Raises:
        ConfigError: a model is not here.
        DataError: the rows cannot be used.
    """
    itemsize = compute_itemsize(cfg.train.precision, device)
    rows, new_tokens = _load(stage, cfg)
    models = held_models(cfg, itemsize, new_tokens)
    policy = models[0]
    needed = (
        _prompt_memory(cfg, rows) if cfg.generates else memory_rows(cfg, rows.train, new_tokens)
    )
    memory = MemoryReport.of(stage, cfg, needed, device, processes)
    estimate = memory.estimate
    groups = Sharding.of(cfg.launch, processes, device.kind).data_parallel
    steps = count_steps(cfg, rows.train, estimate.micro_batch_tokens, groups)
    if stage == "distill":
        work = distill_work(cfg, rows, steps, models, itemsize)
    elif cfg.generates:
        work = rollout_work(cfg, rows, steps, models, itemsize)
    else:
        work = stage_work(stage, cfg, rows, steps, policy)
    rate = find_rate(device, itemsize, cfg.device_flops)
    disk = disk_need(cfg, policy, estimate.trained, steps, itemsize, out)
    return TrainingPlan(
        stage, cfg, device, processes, rows, models, memory, steps, rate, work, disk, done
    )


def _load(stage: str, cfg: Any) -> tuple[RunRows, int]:
    """The rows of a stage, and the number of tokens that are added to its tokenizer."""
    if cfg.generates:
        return load_prompt_rows(cfg, load_prompt_encoder(cfg)), 0
    records = records_of(stage, cfg)
    if trains_tokenizer(cfg.model):
        tokenizer = load_tokenizer(cfg.model, partial(first_texts, cfg, stage, records))
        return load_stage_rows(cfg, stage, tokenizer, records), 0
    tokenizer, new = load_row_tokenizer(cfg, stage, records)
    return load_stage_rows(cfg, stage, tokenizer, records), len(new)


def memory_rows(cfg: Any, rows: RowFacts, new_tokens: int = 0) -> Rows:
    """What the memory model needs to know of examples, as a run tells it."""
    assert rows.examples is not None
    found = rows_of(rows.examples)
    longest = cfg.data.max_length if rows.read and rows.report.cut else found.longest
    return replace(found, longest=longest, examples=rows.count, new_tokens=new_tokens)


def _prompt_memory(cfg: Any, rows: RunRows) -> Rows:
    """The same of prompts: responses are taken to fill `data.max_length`, as a run does."""
    longest = max(each.longest for each in (rows.train, rows.held_out) if each)
    return replace(Rows.of_config(cfg), longest_prompt=longest, examples=rows.train.count)


def sections(plan: TrainingPlan, where: str) -> list[Section]:
    """Build the report of a dry run, part by part.

    Args:
        plan: of the run.
        where: describes the run folder.
    """
    return [
        _run(plan, where),
        _data(plan),
        _steps(plan),
        _time(plan),
        _choices(plan),
        plan.memory.section(),
    ]


def device_text(device: Device) -> str:
    """Name and memory of a device."""
    stated = " (device_memory)" if device.stated else ""
    return f"{device.name}, {format_bytes(device.total_bytes)}{stated}"


def _run(plan: TrainingPlan, where: str) -> Section:
    policy = plan.models[0]
    shape, trained = policy.shape, plan.memory.estimate.trained
    total = sum(tensor.count for tensor in shape.tensors) + policy.adapter
    share = "all trained" if policy.trains_base and trained >= total else f"{trained:,} trained"
    lines = [
        ("model", f"{shape.name} ({shape.model_type}), {total:,} parameters, {share}"),
        *((model.role, model.shape.name) for model in plan.models[1:] if model.shape is not shape),
        ("rows", ", ".join(plan.rows.train.report.files)),
        ("device", device_text(plan.device) + _processes_text(plan)),
        ("output", where),
    ]
    facts = {
        "model": shape.name,
        "model_type": shape.model_type,
        "parameters": total,
        "trained_parameters": trained,
        "files": list(plan.rows.train.report.files),
        "device": plan.device.name,
        "device_bytes": plan.device.total_bytes,
        "processes": plan.processes,
        "shard": plan.cfg.launch.shard,
        "output_dir": plan.cfg.output_dir,
    }
    return Section("run", lines, facts)


def _processes_text(plan: TrainingPlan) -> str:
    """Number of processes, and what they divide."""
    launch = plan.cfg.launch
    found = [f"{plan.processes} processes"] if plan.processes > 1 else []
    if launch.shard != "none":
        found.append(f"launch.shard={launch.shard}")
    if launch.replicas > 1:
        found.append(f"{launch.replicas} replicas")
    if launch.context_parallel > 1:
        found.append(f"{launch.context_parallel} processes a row")
    return "".join(f", {text}" for text in found)


def _data(plan: TrainingPlan) -> Section:
    train, held_out = plan.rows.train, plan.rows.held_out
    lines = [*row_lines("training", train)]
    if plan.cfg.data.packing:
        lines.append(("", f"packed into examples of at most {plan.cfg.data.max_length:,} tokens"))
    facts = {"training": row_facts(train)}
    if held_out is not None:
        lines += row_lines("held-out", held_out)
        facts["held_out"] = row_facts(held_out)
    return Section("data", lines, facts)


def row_lines(role: str, rows: RowFacts) -> Iterator[tuple[str, str]]:
    """Lines about rows: their number, tokens, what was left out and cut."""
    exact, report = not rows.read, rows.report
    unit = "examples" if rows.examples is not None else "prompts"
    kept = f"{format_count(rows.count, exact=exact)} {unit} from"
    yield role, f"{kept} {format_count(rows.rows, exact=exact)} rows ({report.kind or 'prompts'})"
    tokens = f"{format_count(rows.tokens, exact=exact)} tokens"
    if rows.examples is not None:
        tokens += f", {format_count(rows.trained, exact=exact)} trained"
    yield "", f"{tokens}; a row has {rows.mean:,.0f} on average, {rows.longest:,} at most"
    if rows.read:
        first = pluralize(rows.read, "row")
        yield "", f"estimated from the first {first}, {rows.characters:,} characters"
    for line in [*report.left_out_lines(), *_cut_lines(report), *report.note_lines()]:
        yield "", line.strip()


def _cut_lines(report: Any) -> list[str]:
    return [
        f"{end} cut: {pluralize(cut.rows, 'row')}, {pluralize(cut.tokens, 'token')}"
        for end, cut in report.cut.items()
    ]


def row_facts(rows: RowFacts) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "rows": rows.rows,
        "examples": rows.count,
        "tokens": rows.tokens,
        "trained_tokens": rows.trained,
        "mean_tokens": round(rows.mean, 1),
        "longest_tokens": rows.longest,
        "kind": rows.report.kind,
        "refused_rows": sum(found.rows for found in rows.report.refused.values()),
        "malformed_rows": rows.report.malformed,
        "cut_rows": sum(cut.rows for cut in rows.report.cut.values()),
        "estimated_from_rows": rows.read,
    }


def _steps(plan: TrainingPlan) -> Section:
    steps, cfg, exact = plan.steps, plan.cfg, not plan.rows.train.read
    unit = "prompts" if plan.cfg.generates else "examples"
    what = f"{format_count(steps.total, exact=exact)} of {steps.items} {unit}"
    epochs = steps.total / steps.per_epoch
    lines = [
        (
            "steps",
            f"{what}; {format_count(steps.per_epoch, exact=exact)} an epoch, "
            f"{_several(epochs, 'epoch')}",
        ),
        *([("left", f"{steps.total - plan.done:,} steps")] if plan.done else []),
        *_step_details(plan),
        ("warm-up", f"{cfg.train.warmup_steps} steps, then {cfg.train.schedule}"),
    ]
    if steps.evaluations:
        lines.append(("evaluations", f"{steps.evaluations} of the held-out rows"))
    lines += _disk_lines(plan)
    facts = {**asdict(steps), "epochs": epochs, "disk": _disk_facts(plan.disk)}
    return Section("steps", lines, facts)


def _step_details(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    steps, cfg = plan.steps, plan.cfg
    tokens = plan.memory.estimate.micro_batch_tokens
    if cfg.generates:
        kept = getattr(cfg, "completions_per_step", 0)
        responses = (steps.items - kept) * cfg.samples_per_prompt
        completions = f" and {pluralize(kept, 'completion')}" if kept else ""
        yield (
            "a step",
            (
                f"{responses} responses of at most {cfg.sampling.max_new_tokens} tokens"
                f"{completions}, {pluralize(cfg.optimizer_steps, 'update')}; "
                f"at most {tokens} tokens a pass"
            ),
        )
        if cfg.rollout.is_used:
            yield "responses", f"generated by {_servers(cfg.rollout)}, not counted here"
        return
    each = " a process" if plan.processes > 1 else ""
    passes = f"{_several(steps.micro_batches, 'pass')}{each} of at most {tokens} tokens"
    yield "a step", f"{steps.tokens:,.0f} tokens in {passes}"


def _servers(cfg: RolloutConfig) -> str:
    """Who generates the responses, as a reader knows it."""
    if cfg.start:
        return "a server that the run starts"
    return ", ".join(map(public_url, cfg.addresses))


def _several(number: float, unit: str) -> str:
    """Format a number, which need not be whole, with its unit."""
    plural = f"{unit}es" if unit.endswith("s") else f"{unit}s"
    return f"{number:.3g} {unit if number == 1 else plural}"


def _disk_lines(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    disk, steps = plan.disk, plan.steps
    yield (
        "checkpoints",
        f"{steps.checkpoints} written, {steps.kept} kept, {format_bytes(disk.checkpoint)} each",
    )
    base = f", base {format_bytes(disk.base)}" if disk.base else ""
    yield (
        "disk",
        f"{format_bytes(disk.total)} at most, result {format_bytes(disk.result)} of it{base}; "
        f"{format_bytes(disk.free)} free",
    )
    if not disk.fits:
        yield "", "warning: that does not fit. Try another output_dir, or train.keep_checkpoints=1"


def _disk_facts(disk: DiskNeed) -> dict[str, Any]:
    return {**asdict(disk), "total": disk.total, "fits": disk.fits}


def _time(plan: TrainingPlan) -> Section:
    shared = plan.processes if plan.device.kind == "cuda" else 1  # processes on a CPU share it
    found = time_section(plan.work, plan.rate, shared, plan.left)
    if not plan.cfg.generates:
        return found
    most = f"every response has {plan.cfg.sampling.max_new_tokens} tokens; fewer take less time"
    if plan.cfg.rollout.is_used:
        most += "; the time of the servers is not counted"
    return replace(found, lines=[*found.lines, ("", most)])


def _choices(plan: TrainingPlan) -> Section:
    found = training_choices(
        plan.stage, plan.cfg, plan.models[0], plan.memory.estimate, plan.device
    )
    return choice_section(found)
