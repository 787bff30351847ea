"""How evenly the routers of a mixture of experts spread a row's tokens over the experts.

The loss that keeps them even (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6) multiplies two means
over all tokens of a batch, so it is made of sums of rows, which can be added up over a whole step.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.head import Routed
from rlhf_cli.models.batch_layout import TokenIndex


def balance_coefficient(model: Any) -> float:
    """Weight of the balancing loss that a model's config asks for; 0 where it asks for none.

    It does so by `output_router_logits` and `router_aux_loss_coef`, and the formula is the one that
    transformers has for the class.
    """
    config = model.config.get_text_config()
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = hasattr(sys.modules[type(plain).__module__], "load_balancing_loss_func")
    asked = getattr(config, "output_router_logits", False) and known
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0) if asked else 0.0


def tell_of_balance(model: Any, *, added: bool) -> None:
    """Say of a mixture of experts whether its balancing loss is trained, and why where it is not.

    Args:
        model: any.
        added: the stage adds it where the config asks for it.
    """
    config = model.config.get_text_config()
    asked = getattr(config, "router_aux_loss_coef", None)
    if not asked:
        return
    coefficient = balance_coefficient(model)
    if coefficient and added:
        say(f"router: its balancing loss is added, times {coefficient:g} (router_aux_loss_coef)")
        return
    reason = f"{config.model_type} has one of its own in transformers"
    if coefficient:
        reason = "it is a part of the loss of sft and pretrain alone"
    elif not getattr(config, "output_router_logits", False):
        reason = "output_router_logits is false in the model's config"
    say(f"router: its balancing loss is not added ({reason})")


def routed(output: Any, place: TokenIndex, rows: TokenBatch, model: Any) -> Routed:
    """What a forward pass tells of the routers.

    Args:
        output: of the model; with the logits of each router, [tokens, E].
        place: where the tokens of the rows are in it.
        rows: that were given to it.
        model: its config says how many experts each token has.

    Raises:
        ModelError: the class does not give the routers' logits.
    """
    if getattr(output, "router_logits", None) is None:
        raise ModelError(
            f"model.path: {type(model).__name__} does not give its routers' logits, from which the "
            "balancing loss is made. Set output_router_logits to false in its config.json"
        )
    top_k = model.config.get_text_config().num_experts_per_tok
    every = torch.arange(len(rows.tokens), device=rows.tokens.device)
    count = len(rows.lengths)
    chosen, share = [], []
    for logits in output.router_logits:
        own = place.take(logits[None], every).float().softmax(-1)
        picked = torch.zeros_like(own).scatter_(1, own.topk(top_k, dim=-1).indices, 1.0)
        chosen.append(_by_row(picked.detach(), rows, count))
        share.append(_by_row(own, rows, count))
    tokens = rows.lengths.float() * len(share)
    return Routed(torch.stack(chosen).sum(0), torch.stack(share).sum(0), tokens)


def _by_row(values: Tensor, rows: TokenBatch, count: int) -> Tensor:
    """[R, E]: sums over the tokens of each row."""
    found = values.new_zeros(count, values.shape[1])
    return found.index_add(0, rows.row_of_token, values)
