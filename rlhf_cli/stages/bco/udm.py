"""Underlying distribution matching (UDM): weights of undesirable rows by their prompts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from rlhf_cli.cache import CacheEntry, load_entry, store_entry
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed.ranks import is_first_on_machine
from rlhf_cli.errors import ModelError
from rlhf_cli.losses.unpaired import density_ratio
from rlhf_cli.models.base_model import load_checkpoint
from rlhf_cli.models.checks import ENCODER
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.load_errors import convert_load_errors
from rlhf_cli.models.parameters import cast_for_compute
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import resolve_folder
from rlhf_cli.models.tokenizer import load_pretrained_tokenizer, require_tokenizer
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.models.weights_hash import hash_weights
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.stages.bco.config import BCOConfig, UDMConfig
from rlhf_cli.stages.prepare_data import StageData
from rlhf_cli.stages.training import TrainingPlan
from rlhf_cli.train.checkpoint import read_state

CACHE_KIND = "embeddings"
BATCH_SIZE = 32
"""Prompts per embedding batch."""

Embed = Callable[[list[list[int]]], NDArray[np.float32]]
"""Prompts as token ids of the policy -> [prompts, d], mean of their last hidden states."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class PromptClassifier:
    """Logistic regression: P(the prompt is a desirable row's) from its embedding [d]."""

    weight: list[float]
    bias: float

    def probability(self, embeddings: Vectors) -> Tensor:
        """[R] fp64: probabilities of embeddings [R, d]."""
        logits = embeddings.astype(np.float64) @ np.array(self.weight) + self.bias
        return torch.from_numpy(logits).sigmoid()


def fit_classifier(
    embeddings: Vectors, label: NDArray[np.float32], sample_size: int, seed: int
) -> PromptClassifier:
    """Fit a class-balanced logistic regression on at most `sample_size` rows of each class.

    Args:
        embeddings: [R, d], embedding of each row's prompt.
        label: [R], 1 desirable, 0 not.
        sample_size: maximum number of rows per class.
        seed: seed of the sample.
    """
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(seed)
    sides = [np.flatnonzero((label > 0.5) == wanted) for wanted in (True, False)]
    kept = np.concatenate(
        [
            side if len(side) <= sample_size else np.sort(draw.choice(side, sample_size, False))
            for side in sides
        ]
    )
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(embeddings[kept].astype(np.float64), label[kept] > 0.5)
    return PromptClassifier(model.coef_[0].tolist(), float(model.intercept_[0]))


def embed_prompts(examples: Examples, embed: Embed, model_key: str, ctx: RunContext) -> Vectors:
    """[R, d]: embedding of each row's prompt, from the cache where it has them.

    Args:
        examples: of one row each; the prompt is all before the first trained token.
        embed: computes embeddings.
        model_key: hash of the embedding model's weights.
        ctx: the ranks; the first of each machine writes the cache.
    """
    prompts = list(_prompts(examples))
    unique = sorted({tuple(prompt) for prompt in prompts})
    key = hashlib.sha256(repr((model_key, ctx.compute_name, unique)).encode()).hexdigest()[:32]
    entry = load_entry(key, CACHE_KIND)
    found = entry.arrays["embeddings"] if entry is not None else None
    if not all(ctx.ranks.all_gather_json(found is not None)):
        logger.info(f"udm: embedding {len(unique):,} prompts")
        parts = range(0, len(unique), BATCH_SIZE)
        found = np.concatenate(
            [embed([list(p) for p in unique[i : i + BATCH_SIZE]]) for i in parts]
        )
        if is_first_on_machine(ctx.ranks):
            store_entry(key, CacheEntry({"embeddings": found}, {}), CACHE_KIND)
    assert found is not None
    index = {prompt: i for i, prompt in enumerate(unique)}
    vectors: Vectors = found[[index[tuple(prompt)] for prompt in prompts]]
    return vectors


def _prompts(examples: Examples) -> Iterator[list[int]]:
    for start, end in pairwise(examples.row_starts):
        first = int(np.flatnonzero(examples.loss_mask[start:end])[0])
        yield examples.tokens[start : start + first].tolist()


class Embedder:
    """Transformers model that embeds texts with its own tokenizer.

    Args:
        cfg: `embedding_model` is a folder or hub id of an encoder, a decoder, or an
            encoder-decoder, of which the encoder is taken.
        tokenizer: the policy's, which decodes prompts.
        ctx: device and compute type.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, cfg: UDMConfig, tokenizer: Any, ctx: RunContext) -> None:
        key, path, revision = (
            "udm.embedding_model",
            cfg.embedding_model,
            cfg.embedding_model_revision,
        )
        source = resolve_folder(key, path, revision, weights=True)
        require_tokenizer(key, path, revision, "Need the model's own beside it")
        with convert_load_errors(key, path):
            self.own = load_pretrained_tokenizer(source)
            model = load_checkpoint(
                AutoModel,
                source,
                ENCODER,
                key="udm.embedding_model",
                dtype=ctx.compute,
                device_map={"": str(ctx.device)},
            )
        if self.own.pad_token_id is None:
            self.own.pad_token = self.own.eos_token
        if self.own.pad_token_id is None:
            raise ModelError(
                f"udm.embedding_model: {path} has neither a pad token nor an end token, so prompts "
                "of different lengths cannot be embedded together; need another model"
            )
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        self.model = encoder.eval()
        self.device, self.tokenizer, self.path = ctx.device, tokenizer, path
        # a tokenizer saved without its model has no limit
        self.longest = min(self.own.model_max_length, context_length(model) or math.inf)

    def __call__(self, prompts: Sequence[list[int]]) -> Vectors:
        """[prompts, d]: means of the last hidden states without padding.

        Prompts are cut at the model's positions.
        """
        texts = self.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        inputs = self.own(
            texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.device)
        ids, name = inputs["input_ids"].tolist(), "embedding model"
        require_embedded_ids(ids, self.model, lambda index: repr(texts[index][:80]), name)
        mask = inputs["attention_mask"]
        with torch.no_grad():
            hidden = self.model(input_ids=inputs["input_ids"], attention_mask=mask)[0].float()
        return mean_over(hidden, mask).cpu().numpy()


def mean_over(hidden: Tensor, mask: Tensor) -> Tensor:
    """[B, d]: mean of [B, T, d] over the positions that the mask keeps."""
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


WEIGHT = "weight"
"""Column: factor of a row's loss; 1 for desirable rows."""


def add_udm_weights(
    cfg: BCOConfig, plan: TrainingPlan, policy: Policy, data: StageData
) -> tuple[PromptClassifier | None, StageData]:
    """Add a column with the weight of each row, if `udm.embedding_model` asks for it.

    Returns:
        The prompt classifier, which a continued run takes from its checkpoint, and the data.
    """
    if cfg.udm.embedding_model == "none":
        return None, data
    with torch.no_grad(), without_dropout(policy), cast_for_compute(policy, plan.ctx.compute):
        embed, name = _embedder(cfg, policy, data.tokenizer, plan.ctx)
        vectors = embed_prompts(data.train, embed, name, plan.ctx)
        checkpoint = plan.start.checkpoint
        if checkpoint is not None:
            classifier = PromptClassifier(**read_state(checkpoint)["stage"]["classifier"])
        else:
            label = data.train.columns["score"]
            classifier = fit_classifier(vectors, label, cfg.udm.sample_size, cfg.seed)
        train = _add_weights(data.train, classifier, vectors)
        held_out = data.held_out
        if held_out is not None:
            vectors = embed_prompts(held_out, embed, name, plan.ctx)
            held_out = _add_weights(held_out, classifier, vectors)
    return classifier, replace(data, train=train, held_out=held_out)


def _add_weights(examples: Examples, classifier: PromptClassifier, vectors: Vectors) -> Examples:
    label = examples.columns["score"]
    ratio = density_ratio(classifier.probability(vectors)).numpy()
    weight = np.where(label > 0.5, 1.0, ratio).astype(np.float32)
    undesirable = weight[label <= 0.5]
    logger.info(
        f"udm: undesirable rows weigh {undesirable.mean():.2f} in the mean "
        f"({undesirable.min():.2f} to {undesirable.max():.2f})"
    )
    return replace(examples, columns={**examples.columns, WEIGHT: weight})


def _embedder(cfg: BCOConfig, policy: Policy, tokenizer: Any, ctx: RunContext) -> tuple[Embed, str]:
    """Embedding function, and the hash of its weights."""
    if cfg.udm.embedding_model != "reference":
        embedder = Embedder(cfg.udm, tokenizer, ctx)
        return embedder, hash_weights(embedder.model, ctx.ranks)

    def embed(prompts: Sequence[list[int]]) -> Vectors:
        rows = _rows_of(prompts).to(policy.device)
        every = torch.arange(len(rows.tokens), device=rows.tokens.device)
        hidden = policy.hidden_states(rows, every).float()
        means = hidden.new_zeros(len(prompts), hidden.shape[1])
        means.index_add_(0, rows.row_of_token, hidden)
        found: Vectors = (means / rows.lengths[:, None]).cpu().numpy()
        return found

    return embed, hash_weights(policy, ctx.ranks)


def _rows_of(prompts: Sequence[list[int]]) -> TokenBatch:
    nothing: Tensor = torch.zeros(0, dtype=torch.long)
    tokens = torch.tensor([token for prompt in prompts for token in prompt])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return TokenBatch(tokens, lengths, nothing, torch.arange(len(prompts)))
