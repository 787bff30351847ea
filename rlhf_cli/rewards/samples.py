"""Responses to score, with their prompts, tokens and data columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.data.records.fields import Prompt, prompt_to_json
from rlhf_cli.data.sources.base import describe_value


@dataclass(frozen=True)
class Samples:
    """Prompts with one response each.

    Attributes:
        prompts: text or messages, as in the rows.
        responses: text, without end tokens.
        prompt_tokens: prompt in the policy's tokens.
        response_tokens: response in the policy's tokens, with its end token if there is one.
        columns: column name -> value of each row.
        locations: `file:line` of each sample, for messages; empty if they come from no file.
    """

    prompts: Sequence[Prompt]
    responses: Sequence[str]
    prompt_tokens: Sequence[list[int]]
    response_tokens: Sequence[list[int]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    locations: Sequence[str] = ()

    def __post_init__(self) -> None:
        parts = (self.responses, self.prompt_tokens, self.response_tokens, *self.columns.values())
        if any(len(part) != len(self.prompts) for part in parts):
            raise ValueError(f"parts of different lengths for {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, first: int, end: int) -> Samples:
        """Samples `first` up to, not including, `end`."""
        chosen = slice(first, end)
        return Samples(
            self.prompts[chosen],
            self.responses[chosen],
            self.prompt_tokens[chosen],
            self.response_tokens[chosen],
            {name: values[chosen] for name, values in self.columns.items()},
            self.locations[chosen],
        )

    def call_arguments(self) -> dict[str, Any]:
        """Prompts and responses as JSON lists, for a function or endpoint."""
        prompts = [prompt_to_json(prompt) for prompt in self.prompts]
        return {"prompts": prompts, "responses": list(self.responses)}

    def describe(self, index: int, first: int = 0) -> str:
        """Short description of one sample, for a message.

        Args:
            index: index of the sample.
            first: index of the first of these samples among all.
        """
        prompt = self.prompts[index]
        shown = prompt if isinstance(prompt, str) else prompt[-1].content
        at = f"responses[{first + index}]"
        if self.locations:
            at = f"a response of {self.locations[index]}"
        return f"{at}, whose prompt begins {describe_value(shown)}"
