"""Problems with the models that give rewards, as far as their files say."""

from rlhf_cli.resources import SHIPPED
from rlhf_cli.rewards.config import RewardsConfig, ScorerConfig
from rlhf_cli.runs.artifact import (
    find_model_folder,
    is_adapter,
    is_reward_model,
    label_problem,
    list_labels,
    read_labels,
)
from rlhf_cli.runs.model_checks import (
    check_base_revision,
    check_not_encoder_decoder,
    check_revision,
)


def reward_problems(rewards: RewardsConfig) -> list[str]:
    """Problems with the models that score."""
    return [
        line
        for key, source in zip(rewards.keys, rewards.all_terms, strict=True)
        if len(source.given) == 1
        for line in _source_problems(key, source)
    ]


def _source_problems(at: str, source: ScorerConfig) -> list[str]:
    found = []
    if source.model:
        found += _reward_model_problems(f"{at}.model", source)
        found += check_revision(f"{at}.model", source.model, source.revision)
        found += check_base_revision(at, source.model, source.base, source.base_revision)
    if source.classifier:
        found += _classifier_problems(at, source)
        found += check_revision(f"{at}.classifier", source.classifier, source.revision)
    return found


def _reward_model_problems(key: str, source: ScorerConfig) -> list[str]:
    path, revision = source.model, source.revision
    if path == SHIPPED:
        return [f"{key}: got {SHIPPED}, which has random weights; need a reward model"]
    if find_model_folder(path, revision) is None:
        return []
    encoder_decoder = check_not_encoder_decoder(key, path, revision)
    if encoder_decoder:
        return encoder_decoder
    if not is_reward_model(path, revision):
        return [
            f"{key}: got {path}, which writes text and gives no scores; need a reward "
            f"model. Train one: rlhf reward model={path}"
        ]
    labels = [] if is_adapter(path, revision) else read_labels(path, revision)
    if len(labels) < 2:
        return []
    return [
        f"{key}: got {path}, a classifier with {len(labels)} labels "
        f"({list_labels(labels)}); need one with a single label, or say which one counts: "
        f"classifier={path} label={labels[-1]}"
    ]


def _classifier_problems(at: str, source: ScorerConfig) -> list[str]:
    path, revision = source.classifier, source.revision
    if path == SHIPPED:
        return [f"{at}.classifier: got {SHIPPED}, which has random weights; need a classifier"]
    if find_model_folder(path, revision) is None:
        return []
    if is_adapter(path, revision):
        return [
            f"{at}.classifier: got {path}, an adapter; need whole weights. "
            f"Try {at}.model={path}, or rlhf merge"
        ]
    if not is_reward_model(path, revision):
        return [
            f"{at}.classifier: got {path}, which has no classification head; need a sequence "
            "classifier"
        ]
    labels = read_labels(path, revision)
    wrong = label_problem(f"{at}.label", source.label, labels)
    return [wrong] if labels and wrong else []
