"""Scorer that reads one label of a sequence classifier."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.errors import DataError, ModelError, first_line
from rlhf_cli.models.base_model import load_checkpoint
from rlhf_cli.models.checks import REWARD_MODEL, require_safetensors
from rlhf_cli.models.load_errors import convert_load_errors, require_model_folder
from rlhf_cli.models.resolve import resolve_folder
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.tokenizer import load_pretrained_tokenizer
from rlhf_cli.models.vocabulary import fit_vocabulary, num_embeddings, require_embedded_ids
from rlhf_cli.models.wrapper import HiddenStateHook
from rlhf_cli.rewards.config import ScorerConfig
from rlhf_cli.rewards.reward_model import dtype_name, max_tokens_of, nbytes, with_config_key
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.runs.artifact import class_labels, find_label, label_problem


class ClassifierScorer:
    """Scores texts by one label of a classifier, which uses its own tokenizer.

    Args:
        cfg: `classifier`, `label`, `output`, `reads` and `batch_size` are read.
        key: config key of the scorer, for messages.
        ctx: device and compute type.

    Raises:
        ModelError: it cannot be loaded, has no head, or no such label.
    """

    def __init__(self, cfg: ScorerConfig, key: str, ctx: RunContext) -> None:
        self.cfg, self.device = cfg, ctx.device
        self.origin = f"{key}.classifier: {cfg.classifier}"
        with with_config_key(f"{key}.classifier"):
            self.tokenizer, self.model = _load(cfg, ctx)
        labels = class_labels(self.model.config.to_dict())
        index = find_label(cfg.label, labels)
        if index is None:
            raise ModelError(label_problem(f"{key}.label", cfg.label, labels))
        self.index = index
        self.limit = max_tokens_of(self.model, self.tokenizer)
        layer = score_layer(self.model)
        self.hook = None if layer is None else HiddenStateHook(layer, keep=slice(None))
        self.nbytes = nbytes(self.model)
        self.description = (
            f"{cfg.classifier}, {cfg.output} of {labels[index]} ({dtype_name(self.model)})"
        )
        self._logged_truncation = False

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Renderer of the classifier's chat template, for chat prompts."""
        return ChatRenderer(self.tokenizer)

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n]: logits, or probabilities.

        Raises:
            DataError: the prompts are chats, and the classifier has no chat template.
        """
        texts = [self._text(samples, index) for index in range(len(samples))]
        scores = torch.zeros(len(texts))
        for rendered in (False, True):  # a template includes the special tokens
            chosen = [i for i in range(len(texts)) if self._renders(samples, i) == rendered]
            chosen.sort(key=lambda i: len(texts[i]))
            for first in range(0, len(chosen), self.cfg.batch_size):
                part = chosen[first : first + self.cfg.batch_size]
                scores[part] = self._score([texts[i] for i in part], specials=not rendered)
        return scores.tolist()

    def _renders(self, samples: Samples, index: int) -> bool:
        return self.cfg.reads == "all" and not isinstance(samples.prompts[index], str)

    def _text(self, samples: Samples, index: int) -> str:
        prompt, response = samples.prompts[index], samples.responses[index]
        if self.cfg.reads == "response":
            return response
        if isinstance(prompt, str):
            return prompt + response
        if not getattr(self.tokenizer, "chat_template", None):
            raise DataError(
                f"{self.origin} has no chat template, and the prompts are chats; need a classifier "
                "that has one, or reads=response, which shows it the response alone"
            )
        try:
            return self.renderer.render((*prompt, Message("assistant", response)))
        except RefusedRow as error:
            raise DataError(f"{self.origin}: {error}, for {samples.describe(index)}") from error

    def _score(self, texts: list[str], *, specials: bool) -> Tensor:
        """Scores [B] in fp32 of texts, padded to the longest."""
        inputs = self.tokenizer(
            texts,
            add_special_tokens=specials,
            padding=True,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        ).to(self.device)
        self._log_truncation(inputs["attention_mask"])
        ids, shown = inputs["input_ids"].tolist(), [repr(text[:80]) for text in texts]
        require_embedded_ids(ids, self.model, shown.__getitem__, self.origin, "texts")
        try:
            with torch.no_grad():
                logits = self._logits(inputs).double()
        except (ValueError, IndexError) as error:  # such as BART on texts without an end token
            raise ModelError(f"{self.origin} cannot score texts: {first_line(error)}") from error
        if self.cfg.output == "probability":
            logits = _probabilities(logits, self.model.config.problem_type)
        return logits[:, self.index].float().cpu()

    def _logits(self, inputs: Any) -> Tensor:
        """Logits [B, labels]; for a decoder at the last token, even if that is the pad token."""
        if self.hook is None:
            logits: Tensor = self.model(**inputs).logits
            return logits
        with self.hook.open() as hook:
            self.model(**inputs, use_cache=False)
            hidden = hook.hidden
        last = inputs["attention_mask"].sum(1) - 1
        pooled: Tensor = self.hook.layer(hidden[torch.arange(len(last)), last])
        return pooled

    def _log_truncation(self, mask: Tensor) -> None:
        if not self._logged_truncation and int(mask.sum(1).max()) == self.limit:
            self._logged_truncation = True
            limit = f"its {self.limit} positions"
            logger.info(f"{self.origin}: texts fill {limit}; longer ones lose their start")


def _probabilities(logits: Tensor, problem_type: str | None) -> Tensor:
    """Probabilities [B, labels]: softmax over labels, or sigmoid if they are independent."""
    independent = logits.shape[1] == 1 or problem_type == "multi_label_classification"
    return logits.sigmoid() if independent else logits.softmax(1)


def _load(cfg: ScorerConfig, ctx: RunContext) -> tuple[Any, Any]:
    """Load tokenizer and model, on the device, in the compute type.

    Raises:
        ModelError: it is missing, or has no trained head.
    """
    path = cfg.classifier
    folder = resolve_folder("model.path", path, cfg.revision, weights=True)
    require_model_folder(folder)
    require_safetensors(Path(folder))
    with convert_load_errors("model.path", path):
        tokenizer = load_pretrained_tokenizer(folder)
        model = load_checkpoint(
            AutoModelForSequenceClassification,
            folder,
            REWARD_MODEL,
            key="model.path",
            dtype=ctx.compute,
            device_map={"": str(ctx.device)},
        )
    fit_vocabulary(model, tokenizer)
    _prepare_padding(path, tokenizer, model)
    return tokenizer, model.requires_grad_(False).eval()


def _prepare_padding(path: str, tokenizer: Any, model: Any) -> None:
    """Set padding for batches, and truncation at the start of long texts."""
    tokenizer.truncation_side = "left"
    if score_layer(model) is not None:
        tokenizer.padding_side = "right"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # read by position
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= num_embeddings(model):
            tokenizer.pad_token = tokenizer.eos_token
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"model.path: {path} has neither a pad token nor an end token, so texts of different "
            "lengths cannot be scored together; need another classifier"
        )
