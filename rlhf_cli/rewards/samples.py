"""Responses that are to be scored, with what is known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.data.records.fields import Prompt, prompt_to_json
from rlhf_cli.data.sources.base import describe_value


@dataclass(frozen=True)
class Samples:
    """Prompts with a response each.

    Attributes:
        prompts: as they stand in the rows: text, or messages.
        responses: text, without the tokens that end it.
        prompt_tokens: what the policy was given, in its own tokens.
        response_tokens: what it wrote, the end token included where there is one.
        columns: name -> a value for each, as it stands in the row.
    """

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    prompt_tokens: Sequence[list[int]]
    response_tokens: Sequence[list[int]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = (self.responses, self.prompt_tokens, self.response_tokens, *self.columns.values())
        if any(len(part) != len(self.prompts) for part in parts):
            raise ValueError(f"parts of different lengths for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, first: int, end: int) -> Samples:
        """Those with index `first` up to, not including, `end`."""
        chosen = slice(first, end)
        return Samples(
            self.prompts[chosen],
            self.responses[chosen],
            self.prompt_tokens[chosen],
            self.response_tokens[chosen],
            {name: values[chosen] for name, values in self.columns.items()},
        )

    def call_arguments(self) -> dict[str, Any]:
        """Prompts and responses as plain lists; messages are dicts."""
        prompts = [prompt_to_json(prompt) for prompt in self.prompts]
        return {"prompts": prompts, "responses": list(self.responses)}

    def describe(self, index: int, first: int = 0) -> str:
        """One of them in a few words, for a message.

        Args:
            index: of the one.
            first: index of the first of these among all.
        """
        prompt = self.prompts[index]
        shown = prompt if isinstance(prompt, str) else prompt[-1].content
        return f"responses[{first + index}], whose prompt begins {describe_value(shown)}"
