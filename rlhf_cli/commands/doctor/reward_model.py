"""`rlhf doctor reward=RUN policy=RUN`: whether a reward model is good enough for a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.commands.doctor.config import DoctorConfig
from rlhf_cli.commands.doctor.measure import RewardScores, measure
from rlhf_cli.commands.doctor.responses import sample_responses, write_responses
from rlhf_cli.commands.doctor.reward_findings import (
    Names,
    calibration_pairs,
    reward_findings,
    worst,
)
from rlhf_cli.config.paths import as_typed
from rlhf_cli.console import format_table, print_result
from rlhf_cli.context import create_context
from rlhf_cli.diagnosis.findings import ORDER, Finding, of_severity
from rlhf_cli.errors import ConfigError
from rlhf_cli.evaluation.metrics import pair_confidence, reliability_curve
from rlhf_cli.evaluation.reward_quality import best_of_n, kl_of_best_of_n
from rlhf_cli.preflight.hub import unfinished_runs
from rlhf_cli.preflight.rewards import reward_problems
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.runs.model_checks import check_not_reward_model
from rlhf_cli.runs.outputs import check_output

NOT_GOOD_ENOUGH = 1
"""Exit code."""

VERDICTS = {
    "problem": "not good enough",
    "warning": "doubtful",
    "note": "good enough",
    "ok": "good enough",
}


def run(cfg: DoctorConfig) -> int:
    """Sample, score, and print the verdict; returns the exit code.

    Raises:
        ConfigError: a model is not what its key needs.
        DataError: prompts or rows cannot be read, or something gives no finite score.
    """
    refuse(cfg)
    ctx = create_context(cfg.precision, cfg.seed, Path())
    sampled = sample_responses(cfg, ctx)
    found = measure(cfg, sampled, ctx)
    if cfg.output:
        write_responses(cfg.output, sampled, found.scores, found.judged)
    names = Names(*map(as_typed, (cfg.reward, cfg.policy, cfg.prompts, cfg.judge)))
    findings = reward_findings(found, names, cfg.seed)
    print_result(_page(cfg, found, findings), _to_json(cfg, found, findings))
    return NOT_GOOD_ENOUGH if worst(findings) == "problem" else 0


def refuse(cfg: DoctorConfig) -> None:
    """Check the models and keys before anything is loaded.

    Raises:
        ConfigError: the message has a line for every problem.
    """
    found = unfinished_runs(cfg)
    if not found:
        reward = RewardsConfig(model=cfg.reward, revision=cfg.reward_revision)
        found = [line.replace("reward.model", "reward") for line in reward_problems(reward)]
        found += check_not_reward_model("policy", cfg.policy, cfg.policy_revision)
        found += check_output(cfg)
    if cfg.sampling.temperature == 0:
        found.append(
            "sampling.temperature: got 0, at which all responses to a prompt are the same; need a "
            "temperature > 0. Try temperature=0.7"
        )
    if found:
        raise ConfigError("\n".join(found))


def _page(cfg: DoctorConfig, found: RewardScores, findings: Sequence[Finding]) -> str:
    prompts, count = found.scores.shape
    lines = [
        f"{as_typed(cfg.reward)} for {as_typed(cfg.policy)}: {VERDICTS[worst(findings)]}",
        f"{prompts:,} prompts, {count} responses each, temperature {cfg.sampling.temperature:g}; "
        "95 % intervals",
        "",
    ]
    for one in of_severity(findings, *ORDER):
        lines.append(f"{one.severity}: {one.text} [{one.code}]")
    lines += ["", *_best_of_n_lines(found)]
    curve = _calibration_rows(found)
    if curve:
        lines += ["", "Predicted and observed share of pairs in order", format_table(curve)]
    return "\n".join(lines)


def _best_of_n_lines(found: RewardScores) -> list[str]:
    rows = best_of_n_rows(found)
    head = {"n": "n", "kl": "KL at most", "score": "score", "judge": "judge", "most": "by judge"}
    table = [[head[name] for name in rows[0]]]
    table += [[f"{value:.3g}" for value in row.values()] for row in rows]
    what = "Best of n by score: mean score" + (
        ", judge's score, and judge's score of its own choice" if found.judged is not None else ""
    )
    return [what, format_table(table)]


def best_of_n_rows(found: RewardScores) -> list[dict[str, float]]:
    """Mean score, and judge's scores, of the best of n; KL in nats."""
    columns = {"score": best_of_n(found.scores, found.scores).mean(0)}
    if found.judged is not None:
        columns["judge"] = best_of_n(found.scores, found.judged).mean(0)
        columns["most"] = best_of_n(found.judged, found.judged).mean(0)
    return [
        {"n": n, "kl": kl_of_best_of_n(n)}
        | {name: float(values[n - 1]) for name, values in columns.items()}
        for n in range(1, found.scores.shape[1] + 1)
    ]


def _calibration_rows(found: RewardScores) -> list[list[str]]:
    better, worse = calibration_pairs(found)
    if not len(better):
        return []
    bins = reliability_curve(*pair_confidence(better, worse), low=0.5)
    rows = [
        [f"{one.predicted:.2f}", f"{one.observed.value:.2f}", f"{one.observed.estimate().n:,}"]
        for one in bins
    ]
    return [["predicted", "observed", "pairs"], *rows]


def _to_json(cfg: DoctorConfig, found: RewardScores, findings: Sequence[Finding]) -> dict[str, Any]:
    better, worse = calibration_pairs(found)
    bins = reliability_curve(*pair_confidence(better, worse), low=0.5) if len(better) else []
    return {
        "reward": cfg.reward,
        "policy": cfg.policy,
        "verdict": VERDICTS[worst(findings)],
        "healthy": worst(findings) != "problem",
        "prompts": found.scores.shape[0],
        "samples_per_prompt": found.scores.shape[1],
        "findings": [one.to_dict() for one in findings],
        "best_of_n": best_of_n_rows(found),
        "calibration": [
            {"predicted": one.predicted, "observed": one.observed.value} for one in bins
        ],
    }
