from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge, Gt, Le, Lt, Unit, unused_options
from rlhf_cli.losses.config import PREFERENCE_LOSSES
from rlhf_cli.models.config import ComparedModelConfig
from rlhf_cli.stages.config import ResponseRowsConfig, response_rows_problems
from rlhf_cli.stages.dpo.online_config import OnlineConfig
from rlhf_cli.stages.rollouts.config import server_problems
from rlhf_cli.sweep.config import Objective

_ACCURACY = Objective("eval/rewards/accuracies", "max")

NLL = ("sft", "cpo", "orpo")
"""Losses that include the chosen responses' negative log-likelihood."""

LossName = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
    "simpo",
    "cpo",
    "orpo",
    "kto",
]


@dataclass(kw_only=True)
class DPOConfig(OnlineConfig, ResponseRowsConfig):
    """Direct preference optimization: train on pairs of a chosen and a rejected response."""

    default_lr: ClassVar[tuple[float, float]] = (1e-6, 5e-6)

    model: ComparedModelConfig = field(default_factory=ComparedModelConfig)

    beta: Annotated[float, Gt(0)] = 0.1
    """DPO β, 1/nats: larger keeps the policy closer to the reference; the paper uses 0.1 to 0.5.
    For simpo the scale of its margin (2 to 10), for orpo its λ."""

    loss_type: LossName | list[LossName] = "sigmoid"
    """`sigmoid` is DPO (arXiv:2305.18290). A list sums several losses, as in `[sigmoid, sft]`.
    `simpo`, `cpo` and `orpo` need no reference; `kto` takes labelled rows instead of pairs."""

    loss_weights: list[float] = field(default_factory=list)
    """Weights of the loss types, in their order; empty gives each the weight 1."""

    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Label smoothing ε: probability that a pair's labels are flipped; used by sigmoid, robust,
    exo_pair and aot."""

    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """Divergence from the reference (f-DPO, arXiv:2309.16240)."""

    f_alpha: Annotated[float, Ge(0), Lt(1)] = 0.5
    """α of `f_divergence=alpha`: 0 is forward KL, near 1 is reverse KL."""

    ld_alpha: Annotated[float, Ge(0), Le(1)] = 1.0
    """LD-DPO's α (arXiv:2409.06411): weight of response tokens past the length of the pair's
    shorter response; 1 weighs all tokens equally."""

    wpo: bool = False
    """WPO (arXiv:2406.11827): weigh pairs by their probability under the policy."""

    discopop_tau: Annotated[float, Gt(0)] = 0.05
    """Temperature τ of discopop's gate."""

    simpo_gamma: Annotated[float, Ge(0), Unit("nats")] = 0.5
    """Target margin γ of simpo."""

    nll_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the chosen responses' negative log-likelihood in cpo and orpo."""

    desirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of desirable rows in kto."""

    undesirable_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of undesirable rows in kto."""

    sync_steps: Annotated[int, Ge(0), Unit("optimizer steps")] = 0
    """TR-DPO (arXiv:2404.09656): steps between updates of the reference towards the policy; needs
    `model.reference=copy`. 0 never updates it."""

    sync_alpha: Annotated[float, Gt(0), Le(1)] = 0.6
    """TR-DPO's α: weight of the policy in the updated reference."""

    @property
    def losses(self) -> dict[str, float]:
        """Loss type -> weight."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        weights = self.loss_weights or [1.0] * len(names)
        return dict(zip(names, weights, strict=False))

    @property
    def unpaired(self) -> bool:
        """Whether the loss reads labelled rows instead of pairs."""
        return "kto" in self.losses

    @property
    def default_objective(self) -> Objective:
        """Reward accuracy: unlike losses, it is comparable across `beta` and `loss_type`.

        Online it is the score of held-out responses.
        """
        if self.online:
            return Objective("eval/score", "max")
        return super().default_objective if self.unpaired else _ACCURACY

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""
        return self.unpaired or any(PREFERENCE_LOSSES[name].reference for name in self.losses)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems()
        if self.online:
            found += server_problems(self)
            found += self.online_problems(self.data, self.launch) + self._online_loss_problems()
        else:
            formats = ("preference", "labelled") if self.unpaired else ("preference",)
            found += response_rows_problems("dpo", self.data, formats) + self.offline_problems()
        return found + self._loss_problems() + self._option_problems() + self._reference_problems()

    def _loss_problems(self) -> list[str]:
        names = [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)
        if not names:
            return ["loss_type: got an empty list; need one at least. Try loss_type=sigmoid"]
        found = []
        if len({*names}) < len(names):
            found.append(f"loss_type: got {_listed(names)}; need each name once")
        if self.unpaired and len(names) > 1:
            found.append(
                f"loss_type: got {_listed(names)}; kto takes rows with labels, not pairs, and "
                "stands alone. Try loss_type=kto"
            )
        if self.loss_weights and len(self.loss_weights) != len(names):
            ones = _listed(["1"] * len(names))
            found.append(
                f"loss_weights: got {len(self.loss_weights)} for {len(names)} loss types; need as "
                f"many. Try loss_weights={ones}"
            )
        if "robust" in names and not self.label_smoothing:
            found.append(
                "label_smoothing: got 0.0 with loss_type=robust, which is then sigmoid; need the "
                "share of flipped pairs. Try label_smoothing=0.1"
            )
        if "exo_pair" in names and not self.label_smoothing:
            found.append(
                "label_smoothing: got 0.0 with loss_type=exo_pair, whose loss is then infinite; "
                "need more than 0. Try label_smoothing=0.001"
            )
        return found

    def _online_loss_problems(self) -> list[str]:
        found = []
        if self.unpaired or not self.needs_reference:
            what = "takes rows with labels" if self.unpaired else "compares with no reference"
            found.append(
                f"loss_type: got {_listed(self.losses)} with online=true; it {what}, and an online "
                "run ranks pairs and measures its KL from a reference. Try loss_type=sigmoid"
            )
        if self.model.reference in ("stored", "none"):
            found.append(
                f"model.reference: got {self.model.reference} with online=true, whose responses "
                "are not known before the run; need a reference in memory. Try model.reference=auto"
            )
        return found

    def _option_problems(self) -> list[str]:
        """Options that no configured loss reads, and that would have no effect."""
        names = list(self.losses)
        facts = [PREFERENCE_LOSSES[name] for name in names if name in PREFERENCE_LOSSES]
        found = []
        if self.label_smoothing and not any(fact.smoothing for fact in facts):
            found.append(_unread("label_smoothing", self.label_smoothing, names, 0))
        if self.f_divergence != "reverse_kl" and not (
            facts and all(fact.divergence for fact in facts)
        ):
            found.append(_unread("f_divergence", self.f_divergence, names, "reverse_kl"))
        if self.wpo and (
            self.unpaired or any(f.needs_full_batch for f in facts) or {*names} & {*NLL}
        ):
            found.append(_unread("wpo", "true", names, "false"))
        if self.ld_alpha < 1 and self.unpaired:
            found.append(_unread("ld_alpha", self.ld_alpha, names, 1))
        only = {
            "f_alpha": self.f_divergence == "alpha",
            "discopop_tau": "discopop" in names,
            "simpo_gamma": "simpo" in names,
            "nll_weight": bool({"cpo", "orpo"} & {*names}),
            "desirable_weight": self.unpaired,
            "undesirable_weight": self.unpaired,
            "sync_alpha": bool(self.sync_steps),
        }
        for name, default in unused_options(self, only).items():
            found.append(_unread(name, getattr(self, name), names, default))
        return found

    def _reference_problems(self) -> list[str]:
        found, reference = self.model.reference_problems(self.adapter.kind), self.model.reference
        if self.needs_reference and reference == "none":
            found.append(
                f"model.reference: got none with loss_type={_listed(self.losses)}, which compares "
                "with a reference. Try model.reference=auto, or loss_type=simpo"
            )
        if not self.needs_reference and reference not in ("auto", "none"):
            found.append(
                f"model.reference: got {reference} with loss_type={_listed(self.losses)}, which "
                "compares with none. Try model.reference=auto"
            )
        if self.sync_steps and reference != "copy":
            found.append(
                f"sync_steps: got {self.sync_steps} with model.reference={reference}; need a "
                "reference that can move. Try model.reference=copy"
            )
        return found


def _listed(names: Sequence[str] | dict[str, float]) -> str:
    found = list(names)
    return found[0] if len(found) == 1 else f"[{','.join(found)}]"


def _unread(name: str, value: object, losses: list[str], default: object) -> str:
    return (
        f"{name}: got {value}, which does not go with loss_type={_listed(losses)}. "
        f"Try {name}={default}"
    )
