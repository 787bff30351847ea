"""AdamW on fp32 masters, whatever type the forward pass computes in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_cli.errors import ConfigError
from rlhf_cli.train.config import TrainConfig


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the trained parameters of a module.

    The masters are the fp32 tensors that the parameters hold at first. With another compute type
    the module is given copies that are rounded to it, gradients are added up in fp32 as they come,
    and each step rounds anew: the forward pass is then that of the saved model, and policy and
    reference can share its type.

    Attributes:
        masters: name -> fp32 tensor, one for each trained parameter (tied ones once).
    """

    def __init__(self, module: nn.Module, cfg: TrainConfig, compute: torch.dtype) -> None:
        self.params = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, param in self.params.items():
            self.masters[name] = param.data
            if compute != torch.float32:
                param.data = param.data.to(compute)
                param.register_post_accumulate_grad_hook(partial(self._collect, name))
        self._rounded = compute != torch.float32
        kept = {
            name for name, p in self.params.items() if p.ndim < 2 or hasattr(p, "no_weight_decay")
        }
        decayed = [master for name, master in self.masters.items() if name not in kept]
        plain = [master for name, master in self.masters.items() if name in kept]
        self._adamw = _adamw(decayed, plain, cfg)
        self.zero_grad()

    def _collect(self, name: str, param: Tensor) -> None:
        """Move a gradient that was just made into the master's fp32 sum."""
        if param.grad is not None:
            grad, param.grad = param.grad, None
            master = self.masters[name]
            if master.grad is None:
                master.grad = grad.float()
            else:
                master.grad += grad

    @property
    def owners(self) -> dict[str, Tensor]:
        """Name -> the tensor whose `grad` is a trained parameter's fp32 gradient."""
        return dict(self.masters if self._rounded else self.params)

    def gradients(self) -> dict[str, Tensor]:
        """Name -> fp32 gradient of each parameter that took part in the step."""
        return {name: owner.grad for name, owner in self.owners.items() if owner.grad is not None}

    def step(self, lr: float) -> None:
        """Update the masters with their gradients, and the module's copies with them."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        if not self._rounded:
            for name, param in self.params.items():
                self.masters[name].grad = param.grad
        self._adamw.step()
        self.zero_grad()
        if self._rounded:
            self._round()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for name, param in self.params.items():
            self.masters[name].grad = None
            param.grad = None

    def _round(self) -> None:
        params = [param.data for param in self.params.values()]
        torch._foreach_copy_(params, list(self.masters.values()))

    def moments(self) -> dict[str, Tensor]:
        """`name/exp_avg`, `name/exp_avg_sq` and `name/step`, or their 8-bit forms, as tensors."""
        return {
            f"{name}/{key}": _alone(key, value)
            for name, master in self.masters.items()
            for key, value in self._adamw.state.get(master, {}).items()
        }

    def load(self, masters: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Put back what `masters` and `moments` gave.

        Set by name, because torch's own loading casts fp32 moments to the parameter's type.

        Raises:
            KeyError: a parameter or moment is missing or unknown.
            ValueError: a shape is another.
        """
        if masters.keys() != self.masters.keys():
            raise KeyError(f"parameters differ: {sorted(masters.keys() ^ self.masters.keys())[:3]}")
        for name, master in self.masters.items():
            if masters[name].shape != master.shape:
                raise ValueError(f"{name}: {tuple(masters[name].shape)}, not {tuple(master.shape)}")
            master.copy_(masters[name])
        for key, value in moments.items():
            name, _, slot = key.rpartition("/")
            master = self.masters[name]
            number = value.ndim == 0 and not value.is_floating_point()  # the 8-bit kind's step
            self._adamw.state[master][slot] = value.item() if number else self._put(value, master)
        if self._rounded:
            self._round()

    def _put(self, value: Tensor, master: Tensor) -> Tensor:
        """A moment on the master's device; paged where the optimizer pages."""
        paging: Any = self._adamw
        if getattr(paging, "is_paged", False) and value.shape == master.shape:
            buffer: Tensor = paging.get_state_buffer(master, dtype=value.dtype)
            return buffer.copy_(value)
        return value.to(master.device)


def require_device(cfg: TrainConfig, device: torch.device) -> None:
    """Refuse an optimizer that the device has no kernels for.

    Raises:
        ConfigError: moments are to be paged, and there is no GPU that they could be paged out of.
    """
    if cfg.optimizer.startswith("paged") and device.type != "cuda":
        plain = cfg.optimizer.removeprefix("paged_")
        raise ConfigError(
            f"train.optimizer: got {cfg.optimizer}, which moves moments between a GPU's memory and "
            f"the host's; this runs on {device.type}. Try train.optimizer={plain}"
        )


def _adamw(decayed: list[Tensor], plain: list[Tensor], cfg: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the configuration; its rate is set at each step."""
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    betas, eps = (cfg.adam_beta1, cfg.adam_beta2), cfg.adam_epsilon
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
    from bitsandbytes import optim

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    packed: torch.optim.Optimizer = kinds[cfg.optimizer](groups, betas=betas, eps=eps)
    return packed


def _alone(key: str, value: Any) -> Tensor:
    """A value of the optimizer's state as a tensor that shares no memory with another."""
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    return value.clone() if key.startswith("qmap") else value  # all parameters have the same map
