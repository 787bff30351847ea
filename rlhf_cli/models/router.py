"""The router of a mixture of experts: sums for its load balancing loss.

The loss (Fedus et al. 2021, arXiv:2101.03961, eq. 4 to 6) multiplies two means over all tokens of a
batch, so it is computed from sums by row, which add up over a whole optimizer step.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.lm_head import RouterLoad
from rlhf_cli.models.batch_layout import TokenIndex


def balancing_loss_coef(model: Any) -> float:
    """Return the coefficient of the balancing loss that a model's config asks for, or 0.

    The config asks by `output_router_logits` and `router_aux_loss_coef`. The formula is the one
    that transformers has for the class.
    """
    config = model.config.get_text_config()
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = hasattr(sys.modules[type(plain).__module__], "load_balancing_loss_func")
    asked = getattr(config, "output_router_logits", False) and known
    return float(getattr(config, "router_aux_loss_coef", None) or 0.0) if asked else 0.0


def report_balancing_loss(model: Any, *, added: bool) -> None:
    """Print for a mixture of experts whether its balancing loss is trained, or why not.

    Args:
        model: any transformers model.
        added: the stage adds the loss where the config asks for it.
    """
    config = model.config.get_text_config()
    asked = getattr(config, "router_aux_loss_coef", None)
    if not asked:
        return
    coefficient = balancing_loss_coef(model)
    if coefficient and added:
        logger.info(
            f"router: its balancing loss is added, times {coefficient:g} (router_aux_loss_coef)"
        )
        return
    reason = f"{config.model_type} has one of its own in transformers"
    if coefficient:
        reason = "it is a part of the loss of sft and pretrain alone"
    elif not getattr(config, "output_router_logits", False):
        reason = "output_router_logits is false in the model's config"
    logger.info(f"router: its balancing loss is not added ({reason})")


def routing_sums(output: Any, index: TokenIndex, rows: TokenBatch, model: Any) -> RouterLoad:
    """Sum the routers' choices and probabilities over the tokens of each row.

    Args:
        output: of the model, with the logits [tokens, E] of each router.
        index: of the rows' tokens in the output.
        rows: input of the model.
        model: its config has the number of experts for each token.

    Raises:
        ModelError: the class does not return router logits.
    """
    if getattr(output, "router_logits", None) is None:
        raise ModelError(
            f"model.path: {type(model).__name__} does not give its routers' logits, from which the "
            "balancing loss is made. Set output_router_logits to false in its config.json"
        )
    top_k = model.config.get_text_config().num_experts_per_tok
    every = torch.arange(len(rows.tokens), device=rows.tokens.device)
    tokens_of_rows = index.select(every)
    count = len(rows.lengths)
    chosen, share = [], []
    for logits in output.router_logits:
        probs = tokens_of_rows.gather(tokens_of_rows.take(logits[None])).float().softmax(-1)
        picked = torch.zeros_like(probs).scatter_(1, probs.topk(top_k, dim=-1).indices, 1.0)
        chosen.append(_sum_by_row(picked.detach(), rows, count))
        share.append(_sum_by_row(probs, rows, count))
    tokens = rows.lengths.float() * len(share)
    return RouterLoad(torch.stack(chosen).sum(0), torch.stack(share).sum(0), tokens)


def _sum_by_row(values: Tensor, rows: TokenBatch, count: int) -> Tensor:
    """Sum values over the tokens of each row; [R, E]."""
    found = values.new_zeros(count, values.shape[1])
    return found.index_add(0, rows.row_of_token, values)
