"""Underlying distribution matching: weights for undesirable rows, by their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.context import say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.losses.bco import density_ratio
from rlhf_cli.models.parameters import cast_for_compute
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.bco.prompts import (
    Embed,
    Embedder,
    PromptClassifier,
    Vectors,
    embed_prompts,
    fit_classifier,
)
from rlhf_cli.stages.session import Session
from rlhf_cli.train.checkpoint import read_state
from rlhf_cli.train.reference import weights_key

WEIGHT = "weight"
"""Column: what a row's loss is multiplied by; 1 for desirable rows."""


def match_prompts(cfg: BCOConfig, policy: Policy, run: Session) -> PromptClassifier | None:
    """Give undesirable rows their weights, if the configuration asks for it.

    A run that goes on takes its classifier from the checkpoint.

    Returns:
        The classifier, for the checkpoint.
    """
    if cfg.udm.embedding_model == "none":
        return None
    with torch.no_grad(), without_dropout(policy), cast_for_compute(policy, run.ctx.compute):
        embed, name = _embedder(cfg, policy, run)
        classifier = None
        if run.checkpoint is not None:
            classifier = PromptClassifier(**read_state(run.checkpoint)["stage"]["classifier"])

        def weighted(examples: Examples) -> Examples:
            nonlocal classifier
            vectors = embed_prompts(examples, embed, name, run.ctx)
            label = examples.columns["score"]
            if classifier is None:  # the training rows come first
                classifier = fit_classifier(vectors, label, cfg.udm.sample_size, cfg.seed)
            return _weigh(examples, classifier, vectors)

        run.add_columns(weighted)
    return classifier


def _weigh(examples: Examples, classifier: PromptClassifier, vectors: Vectors) -> Examples:
    label = examples.columns["score"]
    ratio = density_ratio(classifier.probability(vectors)).numpy()
    weight = np.where(label > 0.5, 1.0, ratio).astype(np.float32)
    undesirable = weight[label <= 0.5]
    say(
        f"udm: undesirable rows weigh {undesirable.mean():.2f} in the mean "
        f"({undesirable.min():.2f} to {undesirable.max():.2f})"
    )
    return replace(examples, columns={**examples.columns, WEIGHT: weight})


def _embedder(cfg: BCOConfig, policy: Policy, run: Session) -> tuple[Embed, str]:
    """What embeds prompts, and a name for its weights."""
    if cfg.udm.embedding_model != "reference":
        embedder = Embedder(cfg.udm, run.tokenizer, run.ctx)
        return embedder, weights_key(embedder.model)

    def embed(prompts: Sequence[list[int]]) -> Vectors:
        rows = _rows_of(prompts).to(policy.device)
        every = torch.arange(len(rows.tokens), device=rows.tokens.device)
        hidden = policy.hidden_states(rows, every).float()
        means = hidden.new_zeros(len(prompts), hidden.shape[1])
        means.index_add_(0, rows.row_of_token, hidden)
        found: Vectors = (means / rows.lengths[:, None]).cpu().numpy()
        return found

    return embed, weights_key(policy)


def _rows_of(prompts: Sequence[list[int]]) -> TokenBatch:
    nothing: Tensor = torch.zeros(0, dtype=torch.long)
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return TokenBatch(tokens, lengths, nothing, torch.arange(len(prompts)))
