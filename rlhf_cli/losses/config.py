"""What can be said of the preference losses without torch: which options each of them reads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """A loss of the DPO family or a relative.

    Attributes:
        reference: it compares the policy with a reference.
        smoothing: it reads `label_smoothing`.
        divergence: it takes another `f_divergence` than reverse KL.
        couples: the pairs of a whole step depend on each other.
    """

    reference: bool = True
    smoothing: bool = False
    divergence: bool = False
    couples: bool = False


PREFERENCE_LOSSES = {
    "sigmoid": Facts(smoothing=True, divergence=True),
    "hinge": Facts(divergence=True),
    "ipo": Facts(divergence=True),
    "robust": Facts(smoothing=True, divergence=True),
    "exo_pair": Facts(smoothing=True, divergence=True),
    "nca_pair": Facts(),
    "bco_pair": Facts(),
    "sppo_hard": Facts(),
    "aot": Facts(smoothing=True, couples=True),
    "aot_unpaired": Facts(smoothing=True, couples=True),
    "apo_zero": Facts(),
    "apo_down": Facts(),
    "discopop": Facts(divergence=True),
    "sigmoid_norm": Facts(divergence=True),
    "sft": Facts(reference=False, divergence=True),
    "simpo": Facts(reference=False),
    "cpo": Facts(reference=False),
    "orpo": Facts(reference=False),
}
