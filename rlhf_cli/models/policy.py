"""A language model by the log-probabilities it gives to tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.head import Routed, TokenLogprobs
from rlhf_cli.kernels.support import Support
from rlhf_cli.logprobs import token_logprobs
from rlhf_cli.models.router import routed
from rlhf_cli.models.value_model import ValueModel
from rlhf_cli.models.wrapper import ModelWrapper, Tap, read_head


class Policy(ModelWrapper):
    """A causal language model seen as a function from rows to token log-probabilities.

    Attributes:
        value_model: the value model beside it, where the policy is trained with one.
        support: the ids that it can draw, where the tokenizer has no token for some rows of the
            output layer; else none.
    """

    kind = "causal_lm"
    gives = "log-probs"

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.tap = Tap(self.output_layer, through=slice(0))  # logits of a whole batch never exist
        self.value_model: ValueModel | None = None
        self.support: Support | None = None

    @property
    def output_layer(self) -> nn.Module:
        """The layer whose outputs are logits."""
        layer = self.model.get_output_embeddings()
        if layer is None:
            name = type(self.model).__name__
            raise ModelError(f"{name} has no output layer to read logits from")
        found: nn.Module = layer
        return found

    def forward(
        self,
        rows: TokenBatch,
        *,
        role: str = "policy",
        want: Iterable[str] = ("logp",),
        temperature: float = 1.0,
        sampled: bool = False,
    ) -> TokenLogprobs:
        """Log-probability of each scored token of the rows.

        Args:
            rows: on this policy's device.
            role: `policy`, or a role whose adapters stand on the same base.
            want: as in `token_logprobs`, `value` for the value model's values, and `router` for how
                the rows were routed to experts.
            temperature: > 0; divides the logits.
            sampled: under the distribution that responses are drawn from, in which ids without a
                token have no probability. Else under that of all rows of the output layer, which is
                what a model is trained and measured with.

        Returns:
            [S] values, one for each of `rows.scored`.

        Raises:
            KeyError: the base has no such role.
            ValueError: `value` is wanted of a policy without value model.
        """
        wanted = set(want)
        with self.playing(role):
            hidden, router = self._pass(rows, rows.scored, "router" in wanted)
            head, targets = read_head(self.model), rows.targets
            if sampled and self.support is not None:
                head, targets = self.support.compact(head, targets)
            found = token_logprobs(
                hidden,
                head,
                targets,
                temperature=temperature,
                want=wanted - {"value", "router"},
                implementation=self.implementation.run,
            )
        found = replace(found, router=router)
        if "value" not in wanted:
            return found
        if self.value_model is None:
            raise ValueError("want: got value of a policy without value model")
        return replace(found, value=self.value_model(self, rows, lambda: hidden))

    def expected(self, rows: TokenBatch) -> Tensor:
        """[S] fp32: the values at the scored positions, without the output layer.

        The `value` of `forward`; the policy's layers run only for a value model that reads them.

        Raises:
            ValueError: the policy has no value model.
        """
        if self.value_model is None:
            raise ValueError("expected: asked of a policy without value model")
        with self.playing("policy"):
            found: Tensor = self.value_model(
                self, rows, lambda: self.hidden_states(rows, rows.scored)
            )
        return found

    def hidden_states(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        """[P, d]: what the output layer would be given at some positions of the rows."""
        return self._pass(rows, positions, routes=False)[0]

    def _pass(
        self, rows: TokenBatch, positions: Tensor, routes: bool
    ) -> tuple[Tensor, Routed | None]:
        """Hidden states at some positions of the rows, and how their tokens were routed."""
        with self.tap.open() as tap:
            output, place = self._run(rows)
            hidden = place.take(tap.caught, positions)
        return hidden, routed(output, place, rows, self.model) if routes else None

    def values(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """[S] log-probs, nats, and their rows."""
        return self(rows).logp, rows.row_of_scored

    def plain_values(self, row: Tensor) -> Tensor:
        """[T - 1] log-probs, nats, of a row's tokens but the first."""
        logits = self.model(input_ids=row[None], use_cache=False).logits[0]
        logprobs: Tensor = logits.float().log_softmax(-1)[:-1]
        return logprobs.gather(1, row[1:, None]).squeeze(1)
