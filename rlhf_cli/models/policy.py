"""The policy: a causal language model as a function from rows to token log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.divergence import DivergenceSum, OutputStates, linear_divergence
from rlhf_cli.kernels.lm_head import RouterLoad, Support, TokenLogprobs
from rlhf_cli.logprobs import token_logprobs
from rlhf_cli.losses.distillation import Divergence
from rlhf_cli.models.batch_layout import Selection
from rlhf_cli.models.router import routing_sums
from rlhf_cli.models.value_model import ValueModel
from rlhf_cli.models.wrapper import HiddenStateHook, ModelWrapper, read_head, without_dropout


class Policy(ModelWrapper):
    """A causal language model that computes log-probabilities of tokens.

    Attributes:
        value_model: trained beside the policy in PPO; else none.
        support: token ids that sampling can give, where the tokenizer has no token for some rows of
            the output layer; else none.
    """

    kind = "causal_lm"
    output_name = "log-probs"
    entry_points = ("values", "hidden_states", "plain_outputs", "output_states", "divergence")

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        # keeps no position: the logits of a whole batch are never computed
        self.hook = HiddenStateHook(self.output_layer, keep=slice(0))
        self.value_model: ValueModel | None = None
        self.support: Support | None = None

    @property
    def output_layer(self) -> nn.Module:
        """The layer that maps hidden states to logits."""
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
        """Compute the log-probability of each scored token.

        Args:
            rows: on this policy's device.
            role: `policy`, or another role with adapters on the same base.
            want: as in `token_logprobs`; also `value` for the value model's values and `router` for
                the routing of the rows' tokens to experts.
            temperature: > 0; divides the logits.
            sampled: normalize over the ids that sampling can give (`support`), not over all rows of
                the output layer. Training and evaluation use all rows.

        Returns:
            [S] values, one for each of `rows.scored`.

        Raises:
            KeyError: the base has no such role.
            ValueError: `value` is wanted of a policy without value model.
        """
        wanted = set(want)
        with self.use_adapters(role):
            hidden, selected, router = self._run_to_hidden(rows, rows.scored, "router" in wanted)
            head, targets = read_head(self.model), selected.own(rows.targets)
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
        given = {name: value for name, value in vars(found).items() if value is not None}
        gathered = {name: selected.gather(value) for name, value in given.items()}
        value = self._value(rows, hidden, selected) if "value" in wanted else None
        return replace(found, **gathered, router=router, value=value)

    def _value(self, rows: TokenBatch, hidden: Tensor, selected: Selection) -> Tensor:
        """Compute the values [S] from the hidden states [S, d] that the log-probs are made of.

        Raises:
            ValueError: the policy has no value model, or a context group divides the positions.
        """
        if self.value_model is None:
            raise ValueError("want: got value of a policy without value model")
        if selected.places is not None:  # its head's gradient would count once for each rank
            raise ValueError("want: got value, which is not divided over a context group")

        def hidden_states(adapters: str) -> Tensor:
            return hidden if adapters == "policy" else self._role_hidden_states(adapters, rows)

        found: Tensor = self.value_model(rows, hidden_states)
        return found

    def values(self, rows: TokenBatch) -> Tensor:
        """Compute the values [S], fp32, of the scored positions, without the output layer.

        They are the `value` of `forward`. The policy's layers run only for a value model that uses
        their hidden states.

        Raises:
            ValueError: the policy has no value model.
        """
        if self.value_model is None:
            raise ValueError("values: asked of a policy without value model")
        found: Tensor = self.value_model(rows, lambda role: self._role_hidden_states(role, rows))
        return found

    def output_states(self, rows: TokenBatch) -> OutputStates:
        """Compute the inputs of the output layer at the scored positions, and read the layer.

        It covers the ids that sampling can give (`support`).
        """
        return self._output_states(rows)

    def _output_states(self, rows: TokenBatch) -> OutputStates:
        hidden, head = self._hidden_states(rows, rows.scored), read_head(self.model)
        if self.support is not None:
            head, _ = self.support.compact(head, rows.targets)
        return OutputStates(hidden, head)

    def divergence(
        self,
        rows: TokenBatch,
        teacher: OutputStates | str,
        divergence: Divergence,
        want: Iterable[str] = (),
        *,
        logprobs_at: float | None = None,
        sampled: bool = False,
    ) -> DivergenceSum:
        """Compute the divergence of this policy from a teacher, summed over the scored tokens.

        Args:
            rows: on this policy's device.
            teacher: `output_states` of another model for the same rows, or the role of other
                adapters on this base.
            divergence: kind and temperature.
            want: further values, as in `linear_divergence`.
            logprobs_at: temperature at which the log-probs of the rows' own tokens are computed
                too; none leaves them out.
            sampled: normalize these over the ids that sampling can give, as in `forward`.

        Raises:
            KeyError: the base has no such role.
            ValueError: the teacher has another number of token ids.
        """
        if isinstance(teacher, str):
            with torch.no_grad(), without_dropout(self), self.use_adapters(teacher):
                teacher = self._output_states(rows)
        with self.use_adapters("policy"):
            own = self._output_states(rows)
            found = linear_divergence(own, teacher, divergence, want)
            if logprobs_at is None:
                return found
            head, targets = read_head(self.model), rows.targets
            if sampled and self.support is not None:
                head, targets = self.support.compact(head, targets)
            of_targets = token_logprobs(
                own.hidden,
                head,
                targets,
                temperature=logprobs_at,
                implementation=self.implementation.run,
            )
            return replace(found, logp=of_targets.logp)

    def hidden_states(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        """Compute the inputs [P, d] of the output layer at some positions of the rows."""
        return self._hidden_states(rows, positions)

    def _hidden_states(self, rows: TokenBatch, positions: Tensor) -> Tensor:
        hidden, selected, _ = self._run_to_hidden(rows, positions, routing=False)
        return selected.gather(hidden)

    def _role_hidden_states(self, role: str, rows: TokenBatch) -> Tensor:
        with self.use_adapters(role):
            return self._hidden_states(rows, rows.scored)

    def _run_to_hidden(
        self, rows: TokenBatch, positions: Tensor, routing: bool
    ) -> tuple[Tensor, Selection, RouterLoad | None]:
        """Compute hidden states at this rank's share of some positions, and the rows' routing."""
        with self.hook.open() as hook:
            output, index = self._run(rows)
            selected = index.select(positions)
            hidden = selected.take(hook.hidden)
        router = routing_sums(output, index, rows, self.model) if routing else None
        return hidden, selected, router

    def probe_outputs(self, rows: TokenBatch) -> tuple[Tensor, Tensor]:
        """Compute log-probs [S], nats, and the row of each."""
        return self(rows).logp, rows.row_of_scored

    def plain_outputs(self, row: Tensor) -> Tensor:
        """Compute log-probs [T - 1], nats, of a row's tokens but the first, by transformers."""
        logits = self.model(input_ids=row[None], use_cache=False).logits[0]
        logprobs: Tensor = logits.float().log_softmax(-1)[:-1]
        return logprobs.gather(1, row[1:, None]).squeeze(1)
