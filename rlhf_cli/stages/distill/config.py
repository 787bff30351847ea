from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from rlhf_cli.config.paths import is_url
from rlhf_cli.config.references import public_url
from rlhf_cli.config.schema import Ge, Gt, Le, Lt, ModelPath, RuntimeOnly, unused_options
from rlhf_cli.models.config import QuantConfig, TrainedModelConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import is_loopback
from rlhf_cli.stages.config import StageConfig, prompt_rows_problems
from rlhf_cli.stages.rollouts.config import RolloutStageConfig, server_problems

ADAPTER_OFF = "adapter_off"
"""Value of `teacher`: the student without its new adapter."""

COMPLETION_FORMATS = ("auto", "prompt_completion", "chat")
"""Values of `data.format` that have completions."""


@dataclass(kw_only=True)
class DistillConfig(RolloutStageConfig, StageConfig):
    """On-policy distillation: write responses, and follow a teacher at each token.

    A step is one update on the responses to `train.batch_size` prompts.
    """

    model: TrainedModelConfig = field(default_factory=TrainedModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    teacher: Annotated[str, ModelPath("teacher_revision", words=(ADAPTER_OFF,), urls=True)] = ""
    """Teacher: a model folder, run folder or hub id with the student's vocabulary; `adapter_off`,
    the student without its new adapter; or the address of a vLLM or SGLang server, whose log-probs
    of the sampled tokens estimate the reverse KL. `tiny` has random weights, for a trial."""

    teacher_revision: str = ""
    """Branch, tag or commit of the hub id in `teacher`."""

    teacher_token: Annotated[str, RuntimeOnly()] = ""
    """Key that a server as teacher asks for (`Authorization: Bearer`), as `${oc.env:NAME}`. Needed
    for a server on another machine."""

    teacher_quant: Literal["auto", "none", "nf4", "int8"] = "auto"
    """Quantization of a teacher in memory; `auto` is that of the adapter at `teacher`, else
    none."""

    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """Divergence that is minimized at each token. `reverse_kl` makes the student keep to what the
    teacher finds likely, `forward_kl` to cover all of it; `jsd` is GKD's mix (arXiv:2306.13649)."""

    jsd_beta: Annotated[float, Gt(0), Lt(1)] = 0.5
    """With `divergence=jsd`: weight β of the teacher in the mixture; towards 0 the gradient is that
    of forward KL, towards 1 that of reverse KL."""

    divergence_temperature: Annotated[float, Gt(0)] = 1.0
    """Temperature that divides the logits of student and teacher in the divergence; the responses
    have `sampling.temperature`."""

    on_policy_fraction: Annotated[float, Ge(0), Le(1)] = 1.0
    """GKD's λ: share of each step's prompts that the student answers; the others keep the
    completions of the rows. 1 is on-policy, 0 is distillation on the rows alone."""

    sft_coef: Annotated[float, Ge(0)] = 0.0
    """Coefficient of the negative log-likelihood of the rows' completions, which is added to the
    divergence at their tokens."""

    undivided: ClassVar[str] = (
        "distill decodes each response with all its keys and values on one process, so a row that "
        "one device cannot hold cannot be generated either"
    )

    @property
    def generates(self) -> bool:
        """Whether the student generates responses; else the stage reads rows as sft does."""
        return self.prompts_per_step > 0

    @property
    def as_messages(self) -> bool:
        """Whether prompts and completions that are text are put into the chat template."""
        return self.template == "always"

    @property
    def teacher_is_server(self) -> bool:
        """Whether the teacher is asked over HTTP."""
        return is_url(self.teacher)

    @property
    def prompts_per_step(self) -> int:
        """Prompts of a step that the student answers."""
        return round(self.on_policy_fraction * self.train.batch_size)

    @property
    def completions_per_step(self) -> int:
        """Rows of a step whose completions are kept."""
        return self.train.batch_size - self.prompts_per_step

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return 1

    @property
    def teacher_load(self) -> QuantConfig:
        """Quantization of the teacher's base."""
        return QuantConfig(kind=self.teacher_quant)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        return [
            *super().problems(),
            *self._teacher_problems(),
            *self._share_problems(),
            *self._server_problems(),
            *self._sampling_problems(),
            *self._rollout_problems(),
            *self._unread_problems(),
            *self._rows_problems(),
        ]

    def _rows_problems(self) -> list[str]:
        if self.generates:
            return prompt_rows_problems("distill", self.data, self.sampling.max_new_tokens)
        if self.data.format in COMPLETION_FORMATS:
            return []
        return [
            f"data.format: got {self.data.format} with on_policy_fraction=0; need one of "
            f"{', '.join(COMPLETION_FORMATS)}. Try data.format=auto"
        ]

    def _teacher_problems(self) -> list[str]:
        if not self.teacher:
            return [
                "teacher: none given; need a model with the student's vocabulary. "
                "Try teacher=runs/sft, or adapter=lora teacher=adapter_off"
            ]
        if self.teacher == ADAPTER_OFF and self.adapter.kind == "none":
            return [
                "teacher: got adapter_off with adapter.kind=none; need a new adapter to take away. "
                "Try adapter=lora"
            ]
        return []

    def _share_problems(self) -> list[str]:
        found, size, share = [], self.train.batch_size, self.on_policy_fraction
        if abs(share * size - self.prompts_per_step) > 1e-6 * size:
            near = self.prompts_per_step / size
            found.append(
                f"on_policy_fraction: got {share:g}, which is no whole number of the {size} "
                f"prompts of a step (train.batch_size). Try on_policy_fraction={near:g}"
            )
        if self.generates and self.completions_per_step and self.data.format == "prompt":
            found.append(
                f"data.format: got prompt with on_policy_fraction={share:g}; need rows with "
                "completions. Try data.format=auto, or on_policy_fraction=1"
            )
        return found

    def _server_problems(self) -> list[str]:
        """Settings that need the teacher's whole distributions, which a server does not give."""
        if not self.teacher_is_server:
            return []
        found = []
        address = urlsplit(self.teacher)
        if not self.teacher_token and not is_loopback(address.hostname or ""):
            found.append(
                f"teacher_token: none given for {public_url(self.teacher)}; need the server's key "
                "for another machine than this one. Try teacher_token='${oc.env:NAME}', and start "
                "the server with --api-key"
            )
        needed = {
            "divergence": "reverse_kl",
            "divergence_temperature": 1.0,
            "on_policy_fraction": 1.0,
            "sampling.temperature": 1.0,
            "sampling.top_k": 0,
            "sampling.top_p": 1.0,
            "sampling.min_p": 0.0,
            "sampling.min_new_tokens": 0,
        }
        for key, value in needed.items():
            owner, _, name = key.rpartition(".")
            given = getattr(getattr(self, owner) if owner else self, name)
            if given != value:
                found.append(
                    f"{key}: got {given}, but a server as teacher gives the log-probs of sampled "
                    "tokens at temperature 1, which estimate the reverse KL only where the student "
                    f"samples from its whole distribution. Try {key}={value:g}"
                    if not isinstance(value, str)
                    else f"{key}: got {given}, but a server as teacher gives the log-probs of "
                    f"sampled tokens, which estimate {value} alone. Try {key}={value}"
                )
        return found

    def _rollout_problems(self) -> list[str]:
        """Keys of servers that generate the responses which do not go with the rest."""
        rollout = self.rollout
        if not rollout.is_used:
            return []
        if not self.generates:
            return [
                "rollout.server: given with on_policy_fraction=0, which generates nothing. "
                "Leave rollout.server and rollout.start out"
            ]
        found = server_problems(self)
        corrects = self.teacher_is_server
        if rollout.correction == "sequence" or (rollout.correction == "token" and not corrects):
            need = "token" if corrects else "none"
            found.append(
                f"rollout.correction: got {rollout.correction}; distill weighs "
                + ("single tokens. " if corrects else "no tokens of a teacher in memory. ")
                + f"Try rollout.correction={need}"
            )
        if rollout.correction == "auto" and not corrects:
            found += rollout.unweighted_problems(
                "a teacher in memory, whose divergence needs no importance weights. Leave it out"
            )
        return found

    def _sampling_problems(self) -> list[str]:
        found = []
        if self.sampling.temperature == 0 and self.samples_per_prompt > 1:
            found.append(
                f"samples_per_prompt: got {self.samples_per_prompt} with sampling.temperature=0, "
                "where all responses to a prompt are the same. Try samples_per_prompt=1"
            )
        if self.sampling.cuda_graphs and self.launch.shard != "none":
            found.append(
                f"sampling.cuda_graphs: got true with launch.shard={self.launch.shard}, whose "
                "gathered weights lie elsewhere in memory at each rollout, where a captured graph "
                "would not find them. Try sampling.cuda_graphs=false"
            )
        return found

    def _unread_problems(self) -> list[str]:
        """Options that are set but have no effect in this run."""
        writes, in_memory = self.generates, not self.teacher_is_server
        own_weights = in_memory and self.teacher != ADAPTER_OFF
        needs = {
            "jsd_beta": (self.divergence == "jsd", "divergence=jsd"),
            "sft_coef": (self.completions_per_step > 0, "on_policy_fraction below 1"),
            "samples_per_prompt": (writes, "on_policy_fraction above 0"),
            "max_num_seqs": (writes, "on_policy_fraction above 0"),
            "sample_steps": (writes, "on_policy_fraction above 0"),
            "teacher_token": (not in_memory, "a server as teacher"),
            "teacher_quant": (own_weights, "a teacher with weights of its own"),
            "teacher_revision": (own_weights, "a teacher on the hub"),
        }
        read = {name: reads for name, (reads, _) in needs.items()}
        found = [
            f"{name}: given, but only {needs[name][1]} reads it. Try {name}={default}"
            for name, default in unused_options(self, read).items()
        ]
        default = SamplingConfig()
        return found + [
            f"sampling.{name}: given, but only on_policy_fraction above 0 samples responses. "
            f"Leave sampling.{name} out"
            for name, value in vars(self.sampling).items()
            if not writes and value != getattr(default, name)
        ]
