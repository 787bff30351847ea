"""Memory of a training stage, phase by phase."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from math import ceil, sqrt

from rlhf_cli.memory import activations, rollout
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.parts import (
    PHASES,
    Estimate,
    Parts,
    Settings,
    add,
    compute_itemsize,
    shape_notes,
)
from rlhf_cli.memory.roles import held_models, reference_kind
from rlhf_cli.memory.sharding import MASTER_BYTES, Sharding
from rlhf_cli.memory.weights import HeldModel
from rlhf_cli.models.config import LIGER_MODULE

MOST_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens of a micro-batch by device: larger ones do not make its matrix products faster."""

LEAST_TOKENS = 256
"""Fewest tokens that a micro-batch is shrunk to."""

MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2.03, "paged_adamw": 8.0, "paged_adamw_8bit": 2.03}
"""Bytes of optimizer state a trained parameter; in 8 bits with one scale for each 256 values."""


def estimate(settings: Settings, tokens: int = 0) -> Estimate:
    """Estimate a training stage.

    Args:
        settings: command, config, rows and device.
        tokens: of a pass; 0 takes those of the config, or the most that fit.
    """
    run = _Run(settings)
    return run.estimate(tokens or settings.cfg.train.micro_batch_tokens or run.fit_tokens())


def fit_tokens(settings: Settings) -> tuple[int, Estimate]:
    """Find the tokens of a micro-batch, where the config leaves them open; and their estimate."""
    run = _Run(settings)
    tokens = run.fit_tokens()
    return tokens, run.estimate(tokens)


def fit_slots(settings: Settings) -> int:
    """Find how many responses a rollout can decode at once, beside the models that are held."""
    return _Run(settings).fit_slots()


@dataclass(frozen=True)
class _Run:
    """Estimate of one training run."""

    settings: Settings

    @cached_property
    def b(self) -> int:
        """Bytes of the compute type."""
        return compute_itemsize(self.settings.cfg.train.precision, self.settings.device)

    @cached_property
    def models(self) -> list[HeldModel]:
        """Every model of the run, the policy first."""
        own = self.settings
        return held_models(own.cfg, self.b, own.rows.new_tokens)

    @cached_property
    def sharding(self) -> Sharding:
        """What the processes divide among them."""
        own = self.settings
        return Sharding.of(own.cfg.launch, own.processes, own.device.kind)

    @property
    def policy(self) -> HeldModel:
        return self.models[0]

    @cached_property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(model.trained for model in self.models)

    @cached_property
    def trained_here(self) -> int:
        """Of these, those whose gradients and moments this process holds."""
        return sum(self.sharding.trained_here(model) for model in self.models)

    def fit_tokens(self) -> int:
        """Most tokens of a micro-batch that fit, at least `LEAST_TOKENS`."""
        tokens = MOST_TOKENS[self.settings.device.kind]
        while tokens > LEAST_TOKENS and not self.estimate(tokens).fits:
            tokens = max(LEAST_TOKENS, tokens * 3 // 4)
        return tokens

    def estimate(self, tokens: int) -> Estimate:
        """Estimate with a number of tokens a pass."""
        own, cfg = self.settings, self.settings.cfg
        forward = self.forward(tokens)
        phases = {"load": self._load(), "update": self._update(forward, tokens)}
        slots = 0
        if cfg.generates:
            if not cfg.rollout.is_used:
                slots = self.fit_slots()
                phases["rollout"] = self._decode(slots, rollout.longest_response(cfg, own.rows))
            phases |= self._experience(forward)
        if "rollout" not in phases and self.sharding.divides and cfg.log.sample_prompts:
            phases["rollout"] = self._decode(cfg.log.sample_prompts, own.rows.longest)
        if self._precomputes():
            phases["prepare"] = self._without_gradients(self.held(moments=False), forward)
        if cfg.data.holds_out:
            phases["evaluate"] = self._without_gradients(self.held(), forward)
        phases["save"] = self.held()
        return Estimate(
            {name: self._whole(phases[name]) for name in PHASES if name in phases},
            own.usable,
            micro_batch_tokens=tokens,
            slots=slots,
            processes=own.processes,
            trained=self.trained,
            host=self.sharding.on_host(phases["update"], adapter=bool(self.policy.adapter)),
            notes=(
                *shape_notes(self.models),
                *self.sharding.notes(self.policy, self.b, decodes="rollout" in phases),
            ),
        )

    def _whole(self, parts: Parts) -> Parts:
        """The device's parts of a phase, with what the allocator and the libraries hold."""
        adapter = bool(self.policy.adapter)
        held = self.sharding.on_device(parts, adapter=adapter)
        kind = self.settings.device.kind
        add(held, "freed", self.sharding.freed_bytes(self.models, self.b, kind))
        return self.settings.with_allocator(held, self.b, adapter=adapter)

    def fit_slots(self) -> int:
        """Responses decoded at once: as configured, or as many as fit."""
        own = self.settings
        slots = rollout.slots_of(own.cfg, self.sharding.data_parallel)
        while not own.cfg.max_num_seqs and slots > 1 and not self._rollout_fits(slots):
            slots = max(1, slots * 3 // 4)
        return slots

    def _rollout_fits(self, slots: int) -> bool:
        own = self.settings
        parts = self._decode(slots, rollout.longest_response(own.cfg, own.rows))
        return sum(self._whole(parts).values()) <= self.settings.usable

    def held(self, *, moments: bool = True) -> Parts:
        """What is in memory between two steps: weights, masters and moments."""
        parts: Parts = {}
        for model in self.models:
            add(parts, f"{model.role} weights", self.sharding.weight_bytes(model, self.b))
            add(parts, "fp32 masters", self.sharding.master_bytes(model, self.b))
        if self._keeps_file():
            add(parts, "reading", self.sharding.share(self.policy.shape.stored_bytes))
        if moments:
            each = MOMENT_BYTES[self.settings.cfg.train.optimizer]
            add(parts, "optimizer", each * self.trained_here)
        return parts

    def _keeps_file(self) -> bool:
        """Whether the file of a quantized base stays mapped: its embeddings are used from there."""
        policy, on_cpu = self.policy, self.settings.device.kind == "cpu"
        return on_cpu and policy.quantized and policy.shape.stored == self.b

    def _load(self) -> Parts:
        """Trained weights in fp32, their copy in the probe, and the file they are read from."""
        on_cpu = self.settings.device.kind == "cpu"
        read = self.sharding.share(self.policy.shape.stored_bytes) if on_cpu else 0
        if self.sharding.divides:
            parts = self.held(moments=False)
            parts.pop("reading", None)  # of a quantized base, read once
            add(parts, "reading", read)
            add(parts, "gathered weights", self.sharding.gathered_bytes([self.policy], self.b))
            return parts
        parts = {}
        for model in self.models:
            loaded = model.frozen_bytes + MASTER_BYTES * model.trained
            add(parts, f"{model.role} weights", loaded)
        copies = self.policy.trained * self.b if self.b != 4 else 0
        add(parts, "reading", copies + read)
        return parts

    def forward(self, tokens: int) -> Pass:
        """The largest pass of a step: at most `tokens`, unless a single example is longer."""
        rows, cfg = self.settings.rows, self.settings.cfg
        example = rows.longest * rows.rows_per_example
        largest = max(example, min(tokens, self._step_tokens()))
        of_mean = rows.rows_per_example * rows.mean
        saved = rows.shared * (rows.rows_per_example - 1) / of_mean
        return Pass(
            self.b,
            self.settings.device.kind,
            tokens=self.sharding.tokens(ceil(largest * (1 - saved))),
            length=min(rows.longest, ceil(rows.mean + (rows.longest - rows.mean) / 3)),
            scored=self.sharding.tokens(
                ceil(largest * min(1.0, (rows.scored or rows.mean) / rows.mean))
            ),
            attention=cfg.model.attention,
            kernels=cfg.kernels,
            liger=self._uses_liger(),
        )

    def _step_tokens(self) -> int:
        """Tokens of a step of this process, of two deviations more than on average."""
        rows, cfg = self.settings.rows, self.settings.cfg
        examples: float = cfg.train.batch_size / self.sharding.data_parallel
        if cfg.generates:
            examples *= cfg.rows_per_prompt / rows.rows_per_example / getattr(cfg, "minibatches", 1)
        count = max(1.0, examples) * rows.rows_per_example
        return ceil(count * rows.mean + 2 * sqrt(count) * (rows.longest - rows.mean) / 3)

    def _uses_liger(self) -> bool:
        kernels = self.settings.cfg.kernels
        wanted = kernels == "auto" or "liger" in kernels
        on_gpu = self.settings.device.kind == "cuda"
        return bool(on_gpu and wanted) and find_spec(LIGER_MODULE) is not None

    def _update(self, forward: Pass, tokens: int) -> Parts:
        """The moment of a step that needs most.

        Either the backward pass begins, with everything kept; or it ends, with every gradient. On a
        GPU gradients take the place of what was kept; a CPU's allocator seldom has holes that fit.
        """
        begins = self._backward_begins(forward)
        grows = self.settings.device.kind == "cuda" and self._step_tokens() <= tokens
        gradients = MASTER_BYTES * self.trained_here
        if not grows:
            add(begins, "gradients", gradients)
        ends: Parts = {}
        add(ends, "gradients", gradients)
        self._add_last_gradients(ends)
        layer = forward.tokens * sum(activations.layer_bytes(self.policy, forward).values())
        add(ends, "activations", layer)
        most = max(begins, ends, key=lambda parts: sum(parts.values()))
        return self.held() | most

    def _add_last_gradients(self, parts: Parts) -> None:
        """Gradients that are whole at the end: of the embeddings, or of all that is not a layer."""
        if self.sharding.divides:
            add(parts, "gathered weights", self.sharding.gathered_bytes([self.policy], self.b))
            add(parts, "gradient buffers", self.sharding.buffers_of_root(self.policy, self.b))
        elif self.policy.trains_base:
            add(parts, "gradients", self.b * self.policy.shape.embedding)

    def _add_first_gradients(self, parts: Parts) -> None:
        """Gradients that are whole while activations are kept: of the output layer, and a layer."""
        if self.sharding.divides:
            passing = [*self._with_gradients(), *(self._references() if self._compares() else ())]
            add(parts, "gathered weights", self.sharding.gathered_bytes(passing, self.b))
            add(parts, "gradient buffers", self.sharding.buffers_of_layer(self.policy, self.b))
        elif self.policy.trains_base and not self.settings.cfg.scores:
            shape = self.policy.shape
            add(parts, "gradients", self.b * shape.vocab * shape.width)

    def _references(self) -> list[HeldModel]:
        return [model for model in self.models if model.role in ("reference", "teacher")]

    @property
    def _has_teacher(self) -> bool:
        """Whether a teacher in memory gives whole distributions."""
        cfg = self.settings.cfg
        return bool(getattr(cfg, "teacher", "")) and not cfg.teacher_is_server

    def _backward_begins(self, forward: Pass) -> Parts:
        """What the forward passes kept, and the widest moment after it: log-probs or a layer."""
        parts: Parts = {}
        recomputes = self.settings.cfg.train.gradient_checkpointing
        for model in self._with_gradients():
            if recomputes:
                add(parts, "activations", activations.checkpointed_bytes(model.shape, forward))
                continue
            scores = forward.tokens * activations.score_bytes(model.shape, forward)
            scores *= model.shape.layers
            add(parts, "activations", activations.saved_bytes(model, forward) - scores)
            add(parts, "attention", scores)
        layer = max(activations.backward_bytes(self.policy, forward), self._comparing(forward))
        if recomputes:
            layer += activations.one_layer_bytes(self.policy, forward)
        head = self._logits(forward)
        add(parts, "logits" if head > layer else "activations", max(head, layer))
        self._add_first_gradients(parts)
        return parts

    def _comparing(self, forward: Pass) -> int:
        """A pass of the model that is compared with, beside what the policy keeps."""
        if not self._compares():
            return 0
        others = [model for model in self._references() if model.own_base] or [self.policy]
        return max(activations.transient_bytes(model, forward) for model in others)

    def _with_gradients(self) -> Sequence[HeldModel]:
        """Models whose passes are kept for a backward pass of their own."""
        return [
            m for m in self.models if m.trained and (m.role == "policy" or m.targets or m.own_base)
        ]

    def _compares(self) -> bool:
        """Whether reference or teacher are computed beside what the policy keeps."""
        own = self.settings
        if self._has_teacher:
            return True
        held = ("adapter_off", "copy", "path") if own.cfg.generates else ("adapter_off", "copy")
        return own.command in ("dpo", "bco") and reference_kind(own.cfg) in held

    def _precomputes(self) -> bool:
        """Whether the log-probs of the reference are computed before the first step."""
        own = self.settings
        rows_are_known = own.command in ("dpo", "bco") and not own.cfg.generates
        return rows_are_known and reference_kind(own.cfg) in ("stored", "path")

    def _logits(self, forward: Pass) -> int:
        """Workspace of the log-probs and their backward pass."""
        if self.settings.cfg.scores:
            return 0
        shape = self.policy.shape
        if self._has_teacher:
            return activations.divergence_bytes(shape, forward, trained=self.policy.trains_base)
        entropy = self.settings.command in ("ppo", "grpo")
        return activations.logits_bytes(shape, forward, backward=True, entropy=entropy)

    def _without_gradients(self, held: Parts, forward: Pass) -> Parts:
        """A pass of the policy without gradients, beside what is held."""
        parts = dict(held)
        own = [model for model in self.models if model.own_base]
        most = max(self.sharding.gathered_bytes([model], self.b) for model in own)
        add(parts, "gathered weights", most)
        compared = self._comparing(forward) if self._has_teacher else 0
        own_pass = activations.transient_bytes(self.policy, forward)
        add(parts, "activations", max(own_pass, compared))
        shape = self.policy.shape
        if self._has_teacher:
            add(parts, "logits", activations.divergence_bytes(shape, forward, trained=False))
        elif not self.settings.cfg.scores:
            add(parts, "logits", activations.logits_bytes(shape, forward, backward=False))
        return parts

    def _decode(self, slots: int, longest: int) -> Parts:
        """Decoding of responses, with all weights of the policy."""
        kind = self.settings.device.kind
        parts = self.held() | rollout.decode_parts(self.policy, self.b, slots, longest, kind)
        gathered = self.sharding.gathered_bytes([self.policy], self.b, whole=True)
        add(parts, "gathered weights", gathered)
        return parts

    def _experience(self, forward: Pass) -> dict[str, Parts]:
        """Scores of responses and their log-probs, beside all models."""
        held = self.held()
        found = {"prepare": self._without_gradients(held, forward)}
        scorers = [model for model in self.models if model.role == "reward"]
        if scorers:
            most = max(activations.transient_bytes(model, forward) for model in scorers)
            found["score"] = held | {"activations": most}
            gathered = max(self.sharding.gathered_bytes([model], self.b) for model in scorers)
            add(found["score"], "gathered weights", gathered)
        return found
