"""Scorer that runs a reward model: loading checks, token rows, scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig

from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext, precision_name
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.data.records.fields import Message, Prompt, Response
from rlhf_cli.data.records.types import PromptCompletionRecord
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.encode import FormattedRow, TokenRow, find_special_tokens, tokenize
from rlhf_cli.data.tokens.format import RowFormatter
from rlhf_cli.data.tokens.packing import truncate
from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.models.checks import refuse_encoder_decoder
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.load_errors import convert_load_errors
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.sharding import local_tensor, shards_of
from rlhf_cli.models.shared_reward_model import SharedRewardModel, can_share_base
from rlhf_cli.models.tokenizer import load_tokenizer, tokenizer_hash
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.rewards.config import ScorerConfig
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.runs import artifact
from rlhf_cli.runs.artifact import class_labels

NO_LIMIT = 2**31 - 1
"""Tokens; tokenizers without a limit report one that libraries do not accept as a length."""

_MODEL_ADVICE = re.compile(r"[.;,]? (or )?(Try|give another with|give one with) model[.=][^;]*$")
"""Advice about the trained model, which does not apply to a reward model."""


@contextmanager
def with_config_key(key: str, base_key: str = "model.base") -> Iterator[None]:
    """Replace the keys `model.path` and `model.base` in the messages of model errors.

    Raises:
        ModelError: with the given keys.
    """
    try:
        yield
    except ModelError as error:
        text = _MODEL_ADVICE.sub("", str(error)).replace("model.path", key)
        text = text.replace("model.base", base_key)
        raise ModelError(text if key in text else f"{key}: {text}") from error


def require_reward_model(cfg: ModelConfig) -> None:
    """Refuse a model without a trained head with a single label.

    Raises:
        ModelError: it is a language model, or has several labels.
    """
    source = resolve_model(cfg)
    if source.adapters:
        _require_scoring_adapter(cfg.path, source)
        return
    with convert_load_errors("model.path", cfg.path):
        config = AutoConfig.from_pretrained(source.folder)
    refuse_encoder_decoder(cfg.path, config)
    classes = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in classes):
        raise ModelError(f"model.path: {cfg.path} {_no_scores(', '.join(classes))}")
    labels = class_labels(config.to_dict())
    if len(labels) > 1:
        raise ModelError(
            f"model.path: {cfg.path} is a classifier with {len(labels)} labels; need one with a "
            "single label, or classifier= and label= to say which one counts"
        )


def _require_scoring_adapter(path: str, source: ModelSource) -> None:
    task = artifact.read_model_json(source.adapters[-1], artifact.ADAPTER_CONFIG).get("task_type")
    if source.kind != "reward_model" and task != "SEQ_CLS":
        raise ModelError(f"model.path: {path} {_no_scores(f'an adapter for {task}')}")


def _no_scores(found: str) -> str:
    return (
        f"gives no scores ({found or 'its config names no class'}); need a run of rlhf reward or "
        "another sequence classifier with one label"
    )


def max_tokens_of(model: Any, tokenizer: Any) -> int:
    """Longest input in tokens, by the model's positions and its tokenizer."""
    return min(context_length(model) or NO_LIMIT, int(tokenizer.model_max_length), NO_LIMIT)


def nbytes(module: nn.Module) -> int:
    """Memory of the parameters in this process, in bytes: of sharded ones its part."""
    return sum(local_tensor(param).nbytes for param in shards_of(module).values())


def dtype_name(module: nn.Module) -> str:
    """Name of the parameters' dtype; of the floating-point ones if some are quantized."""
    found = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return precision_name(found)


class RewardInputFormatter:
    """Formats texts with a reward model's tokenizer and chat template, as `rlhf reward` does.

    Every response gets its end token: the model was trained on whole responses only.

    Args:
        tokenizer: the reward model's.
        as_message: format a text prompt as a user message.
        origin: config key and value of the model, for messages.
    """

    def __init__(self, tokenizer: Any, *, as_message: bool, origin: str) -> None:
        self.tokenizer, self.as_message, self.origin = tokenizer, as_message, origin
        self.specials = find_special_tokens(tokenizer)
        self.writer = RowFormatter(tokenizer, self.specials, "response")

    def __call__(self, samples: Samples) -> list[TokenRow]:
        """Token rows, one per sample.

        Raises:
            DataError: the chat template refuses a sample, or there is no template.
        """
        scripts = [self._format(samples, index) for index in range(len(samples))]
        start = self.specials.document_start
        rows = tokenize(scripts, self.tokenizer, start, train_all=False)
        return [self._response_row(row) for row in rows]

    def _format(self, samples: Samples, index: int) -> FormattedRow:
        prompt: Prompt = samples.prompts[index]
        response: Response = samples.responses[index]
        if isinstance(prompt, str) and self.as_message:
            prompt = (Message("user", prompt),)
        if not isinstance(prompt, str):
            if not self.tokenizer.chat_template:
                raise DataError(
                    f"{self.origin} has no chat template, and the prompts are chats; need a model "
                    "that was trained on chats"
                )
            response = (Message("assistant", samples.responses[index]),)
        try:
            [script] = self.writer.format(PromptCompletionRecord(prompt, response))
        except RefusedRow as error:
            raise DataError(f"{self.origin}: {error}, for {samples.describe(index)}") from error
        return script

    def _response_row(self, row: TokenRow) -> TokenRow:
        """Prompt, response and end token, without what a template adds after them."""
        if row.loss_mask.any():
            return row.up_to_response_end()
        end = np.array(self.specials.suffix, np.int32)  # an empty response is only its end token
        return response_row(row.tokens.tolist(), end.tolist())


def response_row(prompt: Sequence[int], response: Sequence[int]) -> TokenRow:
    """Token row of a prompt and a response."""
    tokens = np.array([*prompt, *response], np.int32)
    trained = np.arange(len(tokens)) >= len(prompt)
    return TokenRow(tokens, trained, len(prompt))


def truncate_rows(rows: Sequence[TokenRow], limit: int, bos: int | None) -> list[list[int]]:
    """Tokens of rows, truncated to `limit` at the start of the prompt."""
    return [
        (row if len(row.tokens) <= limit else _truncate(row, limit, bos)).tokens.tolist()
        for row in rows
    ]


def _truncate(row: TokenRow, limit: int, bos: int | None) -> TokenRow:
    if not row.loss_mask.any():  # an empty response is scored at the prompt's end
        return TokenRow(row.tokens[-limit:], row.loss_mask[-limit:], limit)
    [cut] = truncate([row], limit, "prompt_start", bos)
    return cut.row


def micro_batches(
    rows: Sequence[Sequence[int]], max_tokens: int
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Indices and rows of micro-batches of at most `max_tokens` with padding, longest first."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    while order:
        count = max(1, max_tokens // len(rows[order[0]]))
        chosen, order = order[:count], order[count:]
        yield chosen, _to_batch([rows[index] for index in chosen])


def _to_batch(rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Batch of rows without scored positions: a reward model scores whole rows."""
    tokens = torch.tensor([token for row in rows for token in row])
    lengths = torch.tensor([len(row) for row in rows])
    return TokenBatch(tokens, lengths, torch.empty(0, dtype=torch.long), torch.arange(len(rows)))


class RewardModelScorer:
    """Scores prompts and responses with a reward model.

    If it has the policy's tokenizer, the policy's tokens are scored as they are. Otherwise the
    texts are formatted and tokenized again for the reward model.

    Args:
        cfg: `model`, `base`, their revisions and `output` are read.
        key: config key of the scorer, for messages.
        policy_tokenizer: tokenizer of the samples' tokens; None if they have none, and their texts
            are formatted.
        ctx: device and compute type, and the ranks, which score together.
        max_tokens: tokens per forward pass.
        policy: policy whose base is shared if the reward model is an adapter on it, or none.

    Raises:
        ModelError: it cannot be loaded, or is no reward model.
    """

    def __init__(
        self,
        cfg: ScorerConfig,
        key: str,
        policy_tokenizer: Any,
        ctx: RunContext,
        max_tokens: int,
        policy: Policy | None = None,
    ) -> None:
        model_cfg = ModelConfig(
            path=cfg.model,
            revision=cfg.revision,
            base=cfg.base,
            base_revision=cfg.base_revision,
            init="pretrained",
        )
        self.origin = f"{key}.model: {cfg.model}"
        self.output, self.max_tokens = cfg.output, max_tokens
        self.device, self.ranks = ctx.device, ctx.ranks
        with with_config_key(f"{key}.model", f"{key}.base"):
            require_reward_model(model_cfg)
            self.tokenizer = load_tokenizer(model_cfg)
            self.specials = find_special_tokens(self.tokenizer)
            self.model = self._load(model_cfg, key, ctx, policy)
            same = policy_tokenizer is not None and (
                tokenizer_hash(self.tokenizer) == tokenizer_hash(policy_tokenizer)
            )
            self.formatter = None if same else self._build_formatter(cfg)
        self.limit = max_tokens_of(self.model.model, self.tokenizer)
        self.nbytes = nbytes(self.model)
        layout = "flat rows" if self.model.flat else "padded rows"
        if isinstance(self.model, SharedRewardModel):
            layout = f"an adapter on the policy's base, {layout}"
        tokens = "the policy's tokens" if same else "its own tokenizer"
        self.description = f"{cfg.model} ({dtype_name(self.model)}, {layout}, {tokens})"
        self._logged_truncation = False

    def _load(
        self, cfg: ModelConfig, key: str, ctx: RunContext, policy: Policy | None
    ) -> RewardModel | SharedRewardModel:
        source = resolve_model(cfg)
        if policy is not None and can_share_base(policy, source):
            role = re.sub(r"\W+", "_", key)
            return SharedRewardModel(policy, role, source.adapters[0], ctx.compute)
        with muted():  # `description` is logged instead
            return load_frozen(RewardModel, LoadConfig(model=cfg), LoadInputs(self.tokenizer, ctx))

    def _build_formatter(self, cfg: ScorerConfig) -> RewardInputFormatter:
        folder = artifact.find_model_folder(cfg.model, cfg.revision)
        record = artifact.read(folder) if folder else {}
        as_message = bool(self.tokenizer.chat_template) and record.get("trained_on") != "text"
        return RewardInputFormatter(self.tokenizer, as_message=as_message, origin=self.origin)

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n], no unit: logits, or probabilities.

        Raises:
            DataError: a row has a token id without an embedding.
        """
        rows = self._truncate(self._to_rows(samples))
        require_embedded_ids(rows, self.model.model, samples.describe, self.origin, "responses")
        scores = torch.zeros(len(rows))
        batches = list(micro_batches(rows, self.max_tokens))
        parts = equal_passes([part for _, part in batches], self.ranks, self.device)
        chosen = iter([indices for indices, _ in batches])
        with torch.no_grad():
            for part in parts:
                logits = self.model(part.to(self.device)).double()
                logits = logits.sigmoid() if self.output == "probability" else logits
                if not part.is_filler:
                    scores[next(chosen)] = logits.float().cpu()
        return scores.tolist()

    def _to_rows(self, samples: Samples) -> list[TokenRow]:
        if self.formatter is not None:
            return self.formatter(samples)
        pairs = zip(samples.prompt_tokens, samples.response_tokens, strict=True)
        return [response_row(prompt, response) for prompt, response in pairs]

    def _truncate(self, rows: list[TokenRow]) -> list[list[int]]:
        """Truncate rows to the model's positions; logged once."""
        long = sum(len(row.tokens) > self.limit for row in rows)
        if long and not self._logged_truncation:
            self._logged_truncation = True
            logger.info(
                f"{self.origin}: {long} of {len(rows)} rows are longer than its {self.limit} "
                "positions; they lose the start of the prompt, and so will later ones"
            )
        return truncate_rows(rows, self.limit, self.specials.bos)
