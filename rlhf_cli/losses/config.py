from dataclasses import dataclass


@dataclass(frozen=True)
class LossTraits:
    """Properties of a preference loss that a config check needs without torch.

    Attributes:
        reference: compares the policy with a reference.
        smoothing: reads `label_smoothing`.
        divergence: accepts an `f_divergence` other than reverse KL.
        needs_full_batch: the loss of a pair depends on all pairs of the optimizer step.
    """

    reference: bool = True
    smoothing: bool = False
    divergence: bool = False
    needs_full_batch: bool = False


PREFERENCE_LOSSES = {
    "sigmoid": LossTraits(smoothing=True, divergence=True),
    "hinge": LossTraits(divergence=True),
    "ipo": LossTraits(divergence=True),
    "robust": LossTraits(smoothing=True, divergence=True),
    "exo_pair": LossTraits(smoothing=True, divergence=True),
    "nca_pair": LossTraits(),
    "bco_pair": LossTraits(),
    "sppo_hard": LossTraits(),
    "aot": LossTraits(smoothing=True, needs_full_batch=True),
    "aot_unpaired": LossTraits(smoothing=True, needs_full_batch=True),
    "apo_zero": LossTraits(),
    "apo_down": LossTraits(),
    "discopop": LossTraits(divergence=True),
    "sigmoid_norm": LossTraits(divergence=True),
    "sft": LossTraits(reference=False, divergence=True),
    "simpo": LossTraits(reference=False),
    "cpo": LossTraits(reference=False),
    "orpo": LossTraits(reference=False),
}
