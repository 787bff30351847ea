"""A response to a prompt: token ids, the sampler's log-probs and text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TextStreamer


@dataclass
class Response:
    """A prompt and a response to it; `token_ids` and `logprobs` grow while it is generated.

    Attributes:
        index: position among all responses, in a rollout over all ranks.
        prompt_index: position of the prompt among the prompts.
        prompt_ids: token ids of the prompt.
        token_ids: token ids of the response, including its end token where there is one.
        finished: whether an end token or a stop string ended it, not the length limit.
        logprobs: nats, one per token under the distribution it was sampled from before truncation;
            empty unless asked for.
        weights_version: number of training steps of the weights that generated its first token.
        text: the response without end and padding tokens, where it has been decoded.
        trailing_pad: a token after the end that gets a value of its own (`compat=trl`), or None.
    """

    index: int
    prompt_index: int
    prompt_ids: Sequence[int]
    token_ids: list[int] = field(default_factory=list)
    finished: bool = False
    logprobs: list[float] = field(default_factory=list)
    weights_version: int = 0
    text: str = ""
    trailing_pad: int | None = None

    @property
    def last_token(self) -> int:
        """The token that the model reads next."""
        return self.token_ids[-1] if self.token_ids else self.prompt_ids[-1]

    @property
    def last_position(self) -> int:
        """Position of `last_token`; all tokens before it are in the KV cache."""
        return len(self.prompt_ids) + len(self.token_ids) - 1

    @property
    def prefill_ids(self) -> Sequence[int]:
        """The tokens that must be in the KV cache before the first token is sampled."""
        return self.prompt_ids[:-1]

    @property
    def scored_ids(self) -> list[int]:
        """The tokens after the prompt that have a log-prob or a value."""
        return [*self.token_ids, *([] if self.trailing_pad is None else [self.trailing_pad])]

    @property
    def fingerprint(self) -> str:
        """Hash of the token ids, to count distinct responses."""
        return hashlib.sha256(repr(list(self.token_ids)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.scored_ids)


def response_text(
    tokenizer: Any,
    token_ids: Sequence[int],
    end_ids: Sequence[int],
    *,
    skip_special_tokens: bool = False,
) -> str:
    """Decode a response, without the tokens that end or pad it.

    Args:
        tokenizer: decodes the tokens.
        token_ids: token ids of the response.
        end_ids: tokens that end a response.
        skip_special_tokens: leave out every special token, not only end and padding tokens. The
            others may have a meaning of their own (the borders of a thought, a label).
    """
    hidden = {*end_ids, tokenizer.pad_token_id}
    kept = [token for token in token_ids if token not in hidden]
    text: str = tokenizer.decode(
        kept, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )
    return text


class ResponseStreamer(TextStreamer):  # type: ignore[misc]  # transformers has no types
    """Prints a response while it is generated, with the text that `response_text` returns.

    Args:
        tokenizer: decodes the tokens.
        end_ids: tokens that end a response.
    """

    def __init__(self, tokenizer: Any, end_ids: Sequence[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, clean_up_tokenization_spaces=False)
        self.hidden = {*end_ids, tokenizer.pad_token_id}

    def put(self, value: Any) -> None:
        """Receive the prompt's tokens, then the response's tokens one at a time."""
        if self.next_tokens_are_prompt or not {*value.flatten().tolist()} & self.hidden:
            super().put(value)
