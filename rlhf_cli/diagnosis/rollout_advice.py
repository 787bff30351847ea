"""Advice of the rules about responses: in words, and as an override that fits the run."""

from rlhf_cli.diagnosis.series import number, scaled, times
from rlhf_cli.runs.record import RunRecord

LESS_RATE, MORE_KL = "a smaller train.lr", "a larger kl_coef (of dpo: beta)"
MORE_TOKENS = "a larger sampling.max_new_tokens"
MORE_ENDS = "missing_eos_penalty=1"


def concrete(record: RunRecord, advice: str) -> str:
    """Advice in words as an override with a number, where the configuration is known."""
    if not record.config:
        return advice
    if advice == LESS_RATE:
        return scaled(record, "train.lr", 0.3)
    if advice == MORE_ENDS:
        return more_ends(record)
    if advice == MORE_TOKENS:
        return times(record, "sampling.max_new_tokens", 2, 128)
    if advice == MORE_KL and record.stage == "dpo":
        return scaled(record, "beta", 2)
    if advice == MORE_KL:
        return f"kl_coef={4 * number(record, 'kl_coef') or 0.05:g}"
    return advice


def more_ends(record: RunRecord) -> str:
    """Advice for responses that do not end, beside what the run does about them already."""
    if record.options.get("mask_truncated"):
        return "mask_truncated=false"  # those that do not end are not trained on
    if number(record, "missing_eos_penalty"):
        return scaled(record, "missing_eos_penalty", 2)
    if number(record, "overlong_buffer"):
        return scaled(record, "overlong_penalty", 2)
    return MORE_ENDS
