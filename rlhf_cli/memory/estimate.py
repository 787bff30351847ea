"""Estimate of the memory of a command, by phase and part, before anything is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any

from rlhf_cli.memory import activations, rollout
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.weights import HeldModel, frozen_model, same_base, trained_model
from rlhf_cli.models.config import ModelConfig

MOST_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of a micro-batch by device: larger ones do not make its matrix products faster."""

LEAST_TOKENS = 256
"""Fewest tokens that a micro-batch is shrunk to."""

USABLE = {"cpu": 0.9, "cuda": 0.95}
"""Share of the device's memory that a run may fill; the rest is for what is not counted."""

FRAMEWORK = {"cpu": 600 << 20, "cuda": 700 << 20}
"""Libraries, their buffers, and the context of a GPU."""

MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2.0, "paged_adamw": 8.0, "paged_adamw_8bit": 2.0}
"""Bytes of optimizer state a trained parameter."""

PHASES = ("load", "prepare", "rollout", "score", "update", "evaluate", "save")

Parts = dict[str, int]


@dataclass(frozen=True)
class Rows:
    """What an estimate needs to know of the data.

    Attributes:
        longest: tokens of the longest row.
        mean: tokens of a row on average.
        rows_per_example: rows of an example that is never split: 2 for pairs.
        scored: tokens of a row that are in the loss, on average; 0 for all.
        shared: tokens that the rows of an example begin with in common, on average; these are
            computed once.
        longest_prompt: tokens of the longest prompt of a rollout; 0 takes what `data.max_length`
            leaves.
        examples: in the training data; 0 if unknown.
        new_tokens: tokens that were added to the tokenizer, whose embeddings an adapter learns.
    """

    longest: int
    mean: float
    rows_per_example: int = 1
    scored: float = 0.0
    shared: float = 0.0
    longest_prompt: int = 0
    examples: int = 0
    new_tokens: int = 0

    @classmethod
    def of_config(cls, cfg: Any, rows_per_example: int = 1) -> "Rows":
        """Assume the worst that a config allows: every row is as long as `data.max_length`."""
        data = getattr(cfg, "data", None)
        length = int(getattr(data, "max_length", 0) or 1024)
        return cls(longest=length, mean=float(length), rows_per_example=rows_per_example)


@dataclass(frozen=True)
class Estimate:
    """Memory of each phase, per process.

    Attributes:
        phases: phase -> part -> bytes; the phases that the command has, in their order.
        micro_batch_tokens: tokens of a forward and backward pass; 0 for a command without.
        processes: that share the memory, on a CPU.
        usable: bytes that this process may fill.
        trained: number of trained parameters.
        notes: what the reader has to know.
    """

    phases: Mapping[str, Parts]
    micro_batch_tokens: int = 0
    processes: int = 1
    usable: int = 0
    trained: int = 0
    notes: tuple[str, ...] = field(default=())

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that needs most, and its bytes."""
        phase = max(self.phases, key=self.total)
        return phase, self.total(phase)

    @property
    def fits(self) -> bool:
        """Whether the peak fits the memory that this process may fill."""
        return self.peak[1] <= self.usable


def estimate_memory(
    command: str,
    cfg: Any,
    rows: Rows,
    device: Device,
    *,
    processes: int = 1,
    micro_batch_tokens: int = 0,
) -> Estimate:
    """Estimate the memory of a command, per process.

    Args:
        command: a training stage, `generate` or `evaluate`.
        cfg: its checked config.
        rows: of its data.
        device: that it would run on.
        processes: of the run; on a CPU they share its memory.
        micro_batch_tokens: tokens of a pass; 0 takes those of the config, or finds the most that
            fit.

    Raises:
        ConfigError: a model is not here, or its files do not describe one.
    """
    if command in ("generate", "evaluate"):
        return _Inference(command, cfg, rows, device, processes).estimate()
    run = _Training(command, cfg, rows, device, processes)
    return run.estimate(micro_batch_tokens or cfg.train.micro_batch_tokens or run.fit_tokens())


def compute_itemsize(precision: str, device: Device) -> int:
    """Bytes of the compute type that `precision` chooses on a device."""
    return 4 if precision == "fp32" or (precision == "auto" and not device.bf16) else 2


@dataclass(frozen=True)
class _Command:
    """What the estimates of all commands share."""

    command: str
    cfg: Any
    rows: Rows
    device: Device
    processes: int

    @property
    def usable(self) -> int:
        sharing = self.processes if self.device.kind == "cpu" else 1
        return int(USABLE[self.device.kind] * self.device.total_bytes / sharing)

    def framework(self) -> Parts:
        return {"framework": FRAMEWORK[self.device.kind]}


class _Training(_Command):
    """Estimate of a training stage."""

    @property
    def b(self) -> int:
        """Bytes of the compute type."""
        return compute_itemsize(self.cfg.train.precision, self.device)

    @property
    def models(self) -> list[HeldModel]:
        """Every model of the run, the policy first."""
        cfg, b = self.cfg, self.b
        policy = trained_model(cfg, "policy", b, self.rows.new_tokens)
        return [policy, *other_models(self.command, cfg, policy, b)]

    def fit_tokens(self) -> int:
        """Most tokens of a micro-batch that fit, down to `LEAST_TOKENS`."""
        most = MOST_TOKENS[self.device.kind]
        tokens = most
        while tokens > LEAST_TOKENS and not self.estimate(tokens).fits:
            tokens = max(LEAST_TOKENS, tokens * 3 // 4)
        return tokens

    def estimate(self, tokens: int) -> Estimate:
        """Estimate with a number of tokens a pass."""
        models = self.models
        phases = {"load": self._load(models)}
        if self.command in ("dpo", "bco") and kind_of_reference(self.cfg) in ("stored", "path"):
            phases["prepare"] = self._prepare(models, tokens)
        if self.command == "ppo":
            phases |= rollout.phases(self, models, tokens)
        phases["update"] = self._update(models, tokens)
        if self.cfg.data.holds_out:
            phases["evaluate"] = self._evaluate(models, tokens)
        phases["save"] = self._held(models, moments=True)
        ordered = {name: phases[name] for name in PHASES if name in phases}
        return Estimate(
            ordered,
            tokens,
            self.processes,
            self.usable,
            sum(model.trained for model in models),
            tuple(_notes(models)),
        )

    def held(self, models: Iterable[HeldModel], *, moments: bool) -> Parts:
        """What is in memory between two steps: weights, masters and moments."""
        return self._held(models, moments=moments)

    def _held(self, models: Iterable[HeldModel], *, moments: bool) -> Parts:
        parts: Parts = {}
        rounded = self.b != 4
        trained = 0
        for model in models:
            copy = model.trained * (self.b if rounded else 4)
            _add(parts, f"{model.role} weights", model.frozen_bytes + copy)
            trained += model.trained
        if rounded:
            _add(parts, "fp32 masters", 4 * trained)
        if moments:
            _add(parts, "optimizer", int(MOMENT_BYTES[self.cfg.train.optimizer] * trained))
        return parts | self.framework()

    def _load(self, models: Iterable[HeldModel]) -> Parts:
        """Weights as they are read: trained ones in fp32; their copy is that of the probe."""
        parts: Parts = {}
        for model in models:
            _add(parts, f"{model.role} weights", model.frozen_bytes + 4 * model.trained)
        policy = next(iter(models))
        copy = policy.trained * self.b if self.b != 4 else 0
        read = policy.shape.stored_bytes if self.device.kind == "cpu" else 0
        _add(parts, "reading", max(copy, read))
        return parts | self.framework()

    def forward(self, tokens: int) -> Pass:
        """The largest pass of a step: at most `tokens`, unless one example is longer."""
        rows = self.rows
        example = rows.longest * rows.rows_per_example
        step = self.cfg.train.batch_size / self.processes * rows.rows_per_example
        spread = 2 * (rows.longest - rows.mean) / 3 * sqrt(step)
        largest = max(example, min(tokens, ceil(step * rows.mean + spread)))
        share = (rows.scored or rows.mean) / rows.mean
        saved = rows.shared * (rows.rows_per_example - 1) / (rows.rows_per_example * rows.mean)
        return Pass(
            self.b,
            self.device.kind,
            tokens=int(largest * (1 - saved)),
            length=min(rows.longest, ceil(1.3 * rows.mean)),
            scored=ceil(largest * share),
            attention=self.cfg.model.attention,
            kernels=self.cfg.kernels,
        )

    def _prepare(self, models: list[HeldModel], tokens: int) -> Parts:
        """Log-probs of the reference before the first step: fp32 weights and a cast copy."""
        parts = self._held(models, moments=False)
        return self._with_pass(parts, models[0], tokens)

    def _with_pass(self, parts: Parts, model: HeldModel, tokens: int) -> Parts:
        """Add what a pass without gradients needs."""
        forward = self.forward(tokens)
        parts = dict(parts)
        _add(parts, "activations", activations.transient_bytes(model, forward))
        if not self.cfg.scores:
            tile = activations.logits_bytes(model.shape, forward, backward=False)
            _add(parts, "logits", tile)
        return parts

    def _evaluate(self, models: list[HeldModel], tokens: int) -> Parts:
        return self._with_pass(self._held(models, moments=True), models[0], tokens)

    def _update(self, models: list[HeldModel], tokens: int) -> Parts:
        """The backward pass of a micro-batch beside the gradients of those before it."""
        parts = self._held(models, moments=True)
        forward = self.forward(tokens)
        trained = sum(model.trained for model in models)
        for model in models:
            if not model.trained or (model.role == "value" and not model.own_base):
                continue
            kept = (
                activations.checkpointed_bytes(model, forward)
                if self.cfg.train.gradient_checkpointing
                else activations.saved_bytes(model, forward)
            )
            scores = forward.tokens * model.shape.layers
            scores *= activations.layer_bytes(model, forward)["scores"]
            if self.cfg.train.gradient_checkpointing:
                scores //= model.shape.layers
            _add(parts, "activations", kept - scores)
            _add(parts, "attention", scores)
        _add(parts, "activations", activations.backward_bytes(models[0], forward))
        if not self.cfg.scores:
            tile = activations.logits_bytes(
                models[0].shape, forward, backward=True, entropy=self.command == "ppo"
            )
            _add(parts, "logits", tile)
        _add(parts, "gradients", 4 * trained)
        return parts


class _Inference(_Command):
    """Estimate of `generate` and `evaluate`."""

    @property
    def b(self) -> int:
        return compute_itemsize(self.cfg.precision, self.device)

    def estimate(self) -> Estimate:
        cfg = self.cfg
        model = frozen_model(cfg.model, "policy", self.b, "model.path", cfg.quant)
        weights: Parts = {"policy weights": model.frozen_bytes}
        reading = model.shape.stored_bytes if self.device.kind == "cpu" else 0
        phases = {"load": {**weights, "reading": reading, **self.framework()}}
        tokens = 0
        if self.command == "generate" or cfg.judge:
            phases["rollout"] = weights | self.framework()
            longest = (self.rows.longest_prompt or self.rows.longest) + cfg.sampling.max_new_tokens
            phases["rollout"] |= rollout.decode_parts(
                model, self.b, cfg.batch_size, longest, self.device.kind
            )
        else:
            tokens = cfg.micro_batch_tokens or MOST_TOKENS[self.device.kind]
            forward = Pass(
                self.b,
                self.device.kind,
                max(tokens, self.rows.longest),
                min(self.rows.longest, ceil(1.3 * self.rows.mean)),
                ceil(tokens * (self.rows.scored or self.rows.mean) / self.rows.mean),
            )
            phases["evaluate"] = {
                **weights,
                "activations": activations.transient_bytes(model, forward),
                "logits": activations.logits_bytes(model.shape, forward, backward=False),
                **self.framework(),
            }
        return Estimate(phases, tokens, self.processes, self.usable, 0, tuple(_notes([model])))


def _add(parts: Parts, name: str, size: int) -> None:
    if size:
        parts[name] = parts.get(name, 0) + int(size)


def _notes(models: Iterable[HeldModel]) -> Iterable[str]:
    for model in models:
        if not model.shape.exact:
            yield (
                f"{model.role}: the tensors of {model.shape.model_type} are not known without its "
                "weight files; counted as a Llama of the same sizes"
            )


def kind_of_reference(cfg: Any) -> str:
    """How the reference is kept: `adapter_off`, `copy`, `stored`, `none` or `path`."""
    if not getattr(cfg, "needs_reference", True):
        return "none"
    named = cfg.model.reference
    if named == "auto":
        if cfg.adapter.kind != "none":
            return "adapter_off"
        return "copy" if hasattr(cfg, "sampling") else "stored"
    return named if named in cfg.model.reference_choices else "path"


def other_models(command: str, cfg: Any, policy: HeldModel, b: int) -> list[HeldModel]:
    """Reference, value and reward models beside the policy."""
    found: list[HeldModel] = []
    if command in ("dpo", "bco", "ppo"):
        found += _reference(cfg, policy, b)
    if command == "ppo":
        found += _value_model(cfg, policy, b) + _reward_models(cfg, policy, b)
    return found


def _reference(cfg: Any, policy: HeldModel, b: int) -> list[HeldModel]:
    kind = kind_of_reference(cfg)
    if kind == "path":
        other = ModelConfig(path=cfg.model.reference, revision=cfg.model.reference_revision)
        return [frozen_model(other, "reference", b, "model.reference")]
    if kind != "copy":
        return []
    size = policy.adapter * b if policy.adapter else sum(t.count for t in policy.shape.tensors) * b
    return [HeldModel("reference", policy.shape, frozen_bytes=size, own_base=not policy.adapter)]


def _value_model(cfg: Any, policy: HeldModel, b: int) -> list[HeldModel]:
    if not cfg.has_value_model:
        return []
    head = policy.shape.width + 1
    if cfg.value == "shared":
        return [HeldModel("value", policy.shape, trained=head, own_base=False)]
    if cfg.value == "adapter":
        count = policy.adapter + head
        return [HeldModel("value", policy.shape, trained=count, adapter=count, own_base=False)]
    path = ModelConfig(path=cfg.value_start, revision=cfg.value_start_revision)
    found = frozen_model(path, "value", b, "value_model")
    shape = found.shape.as_reward_model()
    if shape.adapters:
        count = sum(t.count for t in shape.adapters)
        return [HeldModel("value", shape, count, found.frozen_bytes - count * b, adapter=count)]
    return [HeldModel("value", shape, trained=sum(t.count for t in shape.tensors))]


def _reward_models(cfg: Any, policy: HeldModel, b: int) -> list[HeldModel]:
    found = []
    for key, term in zip(cfg.reward.keys, cfg.reward.all_terms, strict=False):
        path = term.model or term.classifier
        if not path:
            continue
        name = f"{key}.model" if term.model else f"{key}.classifier"
        other = ModelConfig(path=path, revision=term.revision, base=term.base, init="pretrained")
        model = frozen_model(other, "reward", b, name)
        if policy.adapter and term.model and same_base(policy.shape, other, name):
            adapters = sum(t.count for t in model.shape.adapters)
            model = HeldModel("reward", model.shape, frozen_bytes=adapters * b, own_base=False)
        found.append(model)
    return found
