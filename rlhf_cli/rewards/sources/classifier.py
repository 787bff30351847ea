"""Scores of a sequence classifier: the value of one of its labels."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.errors import DataError, ModelError, first_line
from rlhf_cli.models.base import fit_vocabulary
from rlhf_cli.models.checkpoint_keys import SCORER
from rlhf_cli.models.heads import Tap
from rlhf_cli.models.loading import loading, require_config, require_safe_weights
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.source import locate
from rlhf_cli.models.tokenization import from_pretrained
from rlhf_cli.models.vocabulary import embedding_rows, require_embedded_ids
from rlhf_cli.models.weights import load_weights
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.sources.config import RewardSource
from rlhf_cli.rewards.sources.loading import dtype_name, longest_text, nbytes, told_as
from rlhf_cli.runs.labels import find_label, label_problem, labels_of


class ClassifierScorer:
    """Reads texts with the classifier's own tokenizer.

    Args:
        source: `classifier`, `label`, `output`, `reads` and `batch_size`.
        key: that these stand below, for messages.
        ctx: device and compute type.

    Raises:
        ModelError: it cannot be loaded, has no head, or no such label.
    """

    def __init__(self, source: RewardSource, key: str, ctx: RunContext) -> None:
        self.source, self.device = source, ctx.device
        self.who = f"{key}.classifier: {source.classifier}"
        with told_as(f"{key}.classifier"):
            self.tokenizer, self.model = _load(source, ctx)
        labels = labels_of(self.model.config.to_dict())
        index = find_label(source.label, labels)
        if index is None:
            raise ModelError(label_problem(f"{key}.label", source.label, labels))
        self.index = index
        self.limit = longest_text(self.model, self.tokenizer)
        layer = score_layer(self.model)
        self.tap = None if layer is None else Tap(layer, through=slice(None))
        self.nbytes = nbytes(self.model)
        self.described = (
            f"{source.classifier}, {source.output} of {labels[index]} ({dtype_name(self.model)})"
        )
        self._told_of_cuts = False

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Of its own chat template, for prompts that are chats."""
        return ChatRenderer(self.tokenizer)

    def __call__(self, samples: Samples) -> list[float]:
        """[n]: raw outputs, or probabilities.

        Raises:
            DataError: the prompts are chats, and the classifier has no template for them.
        """
        texts = [self._text(samples, index) for index in range(len(samples))]
        scores = torch.zeros(len(texts))
        for rendered in (False, True):  # a template writes the special tokens itself
            chosen = [i for i in range(len(texts)) if self._renders(samples, i) == rendered]
            chosen.sort(key=lambda i: len(texts[i]))
            for first in range(0, len(chosen), self.source.batch_size):
                part = chosen[first : first + self.source.batch_size]
                scores[part] = self._score([texts[i] for i in part], specials=not rendered)
        return scores.tolist()

    def _renders(self, samples: Samples, index: int) -> bool:
        return self.source.reads == "all" and not isinstance(samples.prompts[index], str)

    def _text(self, samples: Samples, index: int) -> str:
        prompt, response = samples.prompts[index], samples.responses[index]
        if self.source.reads == "response":
            return response
        if isinstance(prompt, str):
            return prompt + response
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"{self.who} has no chat template, and the prompts are chats; need a classifier "
                "that has one, or reads=response, which shows it the response alone"
            )
        try:
            return self.renderer.text((*prompt, Message("assistant", response)))
        except Refused as error:
            raise DataError(f"{self.who}: {error}, for {samples.describe(index)}") from error

    def _score(self, texts: list[str], *, specials: bool) -> Tensor:
        """[B] fp32, of texts that are padded to the longest."""
        inputs = self.tokenizer(
            texts,
            add_special_tokens=specials,
            padding=True,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        ).to(self.device)
        self._tell_of_cuts(inputs["attention_mask"])
        ids, shown = inputs["input_ids"].tolist(), [repr(text[:80]) for text in texts]
        require_embedded_ids(ids, self.model, shown.__getitem__, self.who, "texts")
        try:
            with torch.no_grad():
                logits = self._logits(inputs).double()
        except (ValueError, IndexError) as error:  # as of a BART whose texts have no end token
            raise ModelError(f"{self.who} cannot score texts: {first_line(error)}") from error
        if self.source.output == "probability":
            logits = _probabilities(logits, self.model.config.problem_type)
        return logits[:, self.index].float().cpu()

    def _logits(self, inputs: Any) -> Tensor:
        """[B, labels]; a decoder's at the last token, be that the pad token or not."""
        if self.tap is None:
            logits: Tensor = self.model(**inputs).logits
            return logits
        with self.tap.open() as tap:
            self.model(**inputs, use_cache=False)
            hidden = tap.caught
        last = inputs["attention_mask"].sum(1) - 1
        at: Tensor = self.tap.layer(hidden[torch.arange(len(last)), last])
        return at

    def _tell_of_cuts(self, mask: Tensor) -> None:
        if not self._told_of_cuts and int(mask.sum(1).max()) == self.limit:
            self._told_of_cuts = True
            say(f"{self.who}: texts fill its {self.limit} positions; longer ones lose their start")


def _probabilities(logits: Tensor, problem_type: str | None) -> Tensor:
    """[B, labels]: of one label against the others, or of each by itself."""
    alone = logits.shape[1] == 1 or problem_type == "multi_label_classification"
    return logits.sigmoid() if alone else logits.softmax(1)


def _load(source: RewardSource, ctx: RunContext) -> tuple[Any, Any]:
    """Tokenizer and model, on the device, in the compute type.

    Raises:
        ModelError: it is not there, or has no trained head.
    """
    path = source.classifier
    place = locate("model.path", path, source.revision, weights=True)
    require_config(place)
    require_safe_weights(Path(place))
    with loading("model.path", path):
        tokenizer = from_pretrained(place)
        model = load_weights(
            AutoModelForSequenceClassification,
            place,
            SCORER,
            key="model.path",
            dtype=ctx.compute,
            device_map={"": str(ctx.device)},
        )
    fit_vocabulary(model, tokenizer)
    _prepare_padding(path, tokenizer, model)
    return tokenizer, model.requires_grad_(False).eval()


def _prepare_padding(path: str, tokenizer: Any, model: Any) -> None:
    """Let texts of different lengths stand in one batch, cut at their start where too long."""
    tokenizer.truncation_side = "left"
    if score_layer(model) is not None:
        tokenizer.padding_side = "right"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # read by position
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= embedding_rows(model):
            tokenizer.pad_token = tokenizer.eos_token
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"model.path: {path} has neither a pad token nor an end token, so texts of different "
            "lengths cannot be scored together; need another classifier"
        )
