"""Which prompts are likely among desirable rows: embeddings, and a classifier of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.cache import Entry, load_entry, store_entry
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import ModelError
from rlhf_cli.models.base_model import load_checkpoint
from rlhf_cli.models.checks import ENCODER, convert_load_errors
from rlhf_cli.models.load import context_length
from rlhf_cli.models.resolve import resolve_folder
from rlhf_cli.models.tokenizer import load_pretrained_tokenizer, require_tokenizer
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.stages.bco.config import UDMConfig

SHELF = "embeddings"
BATCH = 32
"""Prompts embedded at once."""

Embed = Callable[[list[list[int]]], NDArray[np.float32]]
"""Prompts as the policy's tokens -> [prompts, d], the mean of their last hidden states."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class PromptClassifier:
    """Logistic regression: P(a desirable row's prompt) of an embedding [d]; plain numbers."""

    weight: list[float]
    bias: float

    def probability(self, embeddings: Vectors) -> Tensor:
        """[R] fp64."""
        logits = embeddings.astype(np.float64) @ np.array(self.weight) + self.bias
        return torch.from_numpy(logits).sigmoid()


def fit_classifier(
    embeddings: Vectors, label: NDArray[np.float32], sample_size: int, seed: int
) -> PromptClassifier:
    """Balanced logistic regression on at most `sample_size` rows of each class.

    Args:
        embeddings: [R, d], of each row's prompt.
        label: [R], 1 desirable, 0 not.
        sample_size: rows.
        seed: of the sample.
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
    """[R, d]: an embedding of each row's prompt, from the cache where it has them.

    Args:
        examples: of one row each; the prompt is what stands before the first trained token.
        embed: computes them.
        model_key: names the weights that embed.
        ctx: the ranks, of which the first computes.
    """
    prompts = list(_prompts(examples))
    unique = sorted({tuple(prompt) for prompt in prompts})
    key = hashlib.sha256(repr((model_key, ctx.compute_name, unique)).encode()).hexdigest()[:32]
    entry = load_entry(key, SHELF)
    found = entry.arrays["embeddings"] if entry is not None else None
    if not all(ctx.ranks.gather(found is not None)):
        say(f"udm: embedding {len(unique):,} prompts")
        parts = range(0, len(unique), BATCH)
        found = np.concatenate([embed([list(p) for p in unique[i : i + BATCH]]) for i in parts])
        if ctx.ranks.main:
            store_entry(key, Entry({"embeddings": found}, {}), SHELF)
    assert found is not None
    place = {prompt: i for i, prompt in enumerate(unique)}
    vectors: Vectors = found[[place[tuple(prompt)] for prompt in prompts]]
    return vectors


def _prompts(examples: Examples) -> Iterator[list[int]]:
    for start, end in pairwise(examples.row_starts):
        first = int(np.flatnonzero(examples.trained[start:end])[0])
        yield examples.tokens[start : start + first].tolist()


class Embedder:
    """A transformers model that embeds texts with its own tokenizer.

    Args:
        cfg: `embedding_model` is a folder or hub id of an encoder, a decoder, or an
            encoder-decoder, of which the encoder is taken.
        tokenizer: the policy's, which prompts are decoded with.
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
        place = resolve_folder(key, path, revision, weights=True)
        require_tokenizer(key, path, revision, "Need the model's own beside it")
        with convert_load_errors(key, path):
            self.own = load_pretrained_tokenizer(place)
            model = load_checkpoint(
                AutoModel,
                place,
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
        # a tokenizer that was saved without its model knows no limit
        self.longest = min(self.own.model_max_length, context_length(model) or math.inf)

    def __call__(self, prompts: Sequence[list[int]]) -> Vectors:
        """[prompts, d]: means of the last hidden states, padding left out.

        What is past the model's positions is left out too.
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
    """[B, d]: the mean over the kept positions of [B, T, d]."""
    kept = mask[..., None].to(hidden.dtype)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
