"""AdamW on fp32 master weights, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_cli.distributed.mesh import ShardMesh
from rlhf_cli.distributed.process_group import raising_rank_failed
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.sharding import layout_of, local_tensor, reshard, shards_of
from rlhf_cli.train.config import TrainConfig


class MasterAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the trained parameters of a module.

    The masters are the module's fp32 parameters. With another compute type the module gets copies
    rounded to it, gradients are accumulated in fp32, and each step rounds the masters again: the
    forward pass is that of the saved model, and policy and reference have the same dtype. Of a
    sharded parameter the master is the shard of this process; it is rounded as it is gathered.

    Args:
        module: the model; some of its parameters may be sharded.
        cfg: optimizer and its constants.
        compute: type of the forward and backward pass.
        mesh: processes that share the weights, or None.
        writes: whether this process saves parameters that are not sharded.
        lr_factors: name -> factor of the learning rate of a parameter; 1 where none is given.

    Attributes:
        masters: name -> fp32 tensor of each trained parameter (tied ones once), this process's part
            of it.
        layouts: name -> where that part lies in the whole parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        cfg: TrainConfig,
        compute: torch.dtype,
        mesh: ShardMesh | None = None,
        *,
        writes: bool = True,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        self._module = module
        self.params = {n: p for n, p in shards_of(module).items() if p.requires_grad}
        self.layouts = {n: layout_of(p, writes=writes) for n, p in self.params.items()}
        self._mesh, self._rounded = mesh, compute != torch.float32
        self._sharded = {name for name, p in self.params.items() if isinstance(p, DTensor)}
        self.masters: dict[str, Tensor] = {}
        for name, param in self.params.items():
            local = local_tensor(param.data)
            self.masters[name] = local.cpu().clone() if self._copies else local
            if self._rounded and name not in self._sharded:
                param.data = param.data.to(compute)
                param.register_post_accumulate_grad_hook(partial(self._collect, name))
        no_decay = {
            name for name, p in self.params.items() if p.ndim < 2 or hasattr(p, "no_weight_decay")
        }
        filled = {name: master for name, master in self.masters.items() if master.numel()}
        factors = lr_factors or {}
        self._lr_factors: list[float] = []
        groups = []
        for factor in sorted({1.0, *factors.values()}):
            own = [name for name in filled if factors.get(name, 1.0) == factor]
            decayed = [filled[name] for name in own if name not in no_decay]
            plain = [filled[name] for name in own if name in no_decay]
            groups.append({"params": decayed, "weight_decay": cfg.weight_decay})
            groups.append({"params": plain, "weight_decay": 0.0})
            self._lr_factors += [factor, factor]
        self._adamw = _adamw(groups, cfg)
        self.zero_grad()

    @property
    def _copies(self) -> bool:
        """Whether the masters are copies on the host of what the device holds."""
        return self._mesh is not None and self._mesh.keeps_masters_on_host

    @property
    def device(self) -> torch.device:
        """Device that computes."""
        first = next(iter(self.params.values()))
        return first.device if self._mesh is None else self._mesh.device

    def _collect(self, name: str, param: Tensor) -> None:
        """Add a new gradient to the master's fp32 sum, and drop it."""
        if param.grad is not None:
            grad, param.grad = param.grad, None
            master = self.masters[name]
            if master.grad is None:
                master.grad = grad.to(master.device, torch.float32)
            else:
                master.grad += grad.to(master.device)

    @property
    def replicated_owners(self) -> dict[str, Tensor]:
        """Name -> tensor whose `grad` holds the fp32 gradient of a parameter that is not sharded.

        Each rank has the gradient of its own rows there; those of sharded parameters are summed
        over the ranks already.
        """
        owners = self.masters if self._rounded else self.params
        return {name: owner for name, owner in owners.items() if name not in self._sharded}

    def gradients(self) -> dict[str, Tensor]:
        """Name -> fp32 gradient of each master that has one: of sharded ones this rank's part."""
        owners: dict[str, Tensor] = {n: self.params[n] for n in self._sharded}
        owners |= self.replicated_owners
        return {
            name: local_tensor(grad)
            for name in self.params
            if (grad := owners[name].grad) is not None
        }

    def gradient_norm(self) -> Tensor:
        """Norm of the whole gradient, over all ranks; they call this together.

        Returns:
            Scalar, fp32, the same on all ranks.
        """
        gradients = self.gradients()
        shared = [grad for name, grad in gradients.items() if name not in self._sharded]
        norm = torch.nn.utils.get_total_norm(shared)
        if self._mesh is None or not self._sharded:
            return norm
        own = [grad for name, grad in gradients.items() if name in self._sharded and grad.numel()]
        squares = torch.nn.utils.get_total_norm(own).to(self.device).square()
        # over all processes: sums of each replica by itself could differ in the last bit
        with raising_rank_failed():
            torch.distributed.all_reduce(squares)
        return (squares / self._mesh.replicas + norm.to(self.device).square()).sqrt()

    def step(self, lr: float) -> None:
        """Update the masters with their gradients, and then the module's copies."""
        for group, factor in zip(self._adamw.param_groups, self._lr_factors, strict=True):
            group["lr"] = lr * factor
        for name, gradient in self.gradients().items():
            self.masters[name].grad = gradient.to(self.masters[name].device)
        self._adamw.step()
        self.zero_grad()
        self._update_params()

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for name, param in self.params.items():
            self.masters[name].grad = None
            param.grad = None

    def _update_params(self) -> None:
        """Copy the masters to the module's parameters where those are others."""
        reshard(self._module)  # no pass may take weights that were gathered before
        names = [
            n for n in self.params if self._copies or (self._rounded and n not in self._sharded)
        ]
        if names:
            params = [local_tensor(self.params[name].data) for name in names]
            torch._foreach_copy_(params, [self.masters[name] for name in names])

    def moments(self) -> dict[str, Tensor]:
        """Optimizer state tensors: `name/exp_avg`, `name/exp_avg_sq`, `name/step`, or in 8 bits."""
        return {
            f"{name}/{key}": _unshared(key, value)
            for name, master in self.masters.items()
            for key, value in self._adamw.state.get(master, {}).items()
        }

    @property
    def eight_bit_from(self) -> float:
        """Values from which a tensor's moments are kept in 8 bits; infinite if they never are."""
        args = getattr(self._adamw, "args", None)  # of bitsandbytes' optimizers
        return math.inf if args is None or args.optim_bits == 32 else float(args.min_8bit_size)

    def load(self, masters: Mapping[str, Tensor], moments: Iterable[tuple[str, Tensor]]) -> None:
        """Restore what `masters` and the items of `moments` returned.

        By name, because torch's `load_state_dict` casts fp32 moments to the parameter's dtype. Each
        tensor is asked for once, and needs to be in memory only until the next one is.

        Args:
            masters: this rank's rows of each parameter.
            moments: `name/slot` and value.

        Raises:
            KeyError: a parameter or moment is missing or unknown.
            ValueError: a shape differs.
        """
        if masters.keys() != self.masters.keys():
            raise KeyError(f"parameters differ: {sorted(masters.keys() ^ self.masters.keys())[:3]}")
        for name, master in self.masters.items():
            stored = masters[name]
            if stored.shape != master.shape:
                raise ValueError(f"{name}: {tuple(stored.shape)}, not {tuple(master.shape)}")
            master.copy_(stored)
        for key, value in moments:
            name, _, slot = key.rpartition("/")
            master = self.masters[name]
            number = value.ndim == 0 and not value.is_floating_point()  # `step` of 8-bit AdamW
            self._adamw.state[master][slot] = value.item() if number else self._put(value, master)
        self._update_params()

    def _put(self, value: Tensor, master: Tensor) -> Tensor:
        """Move a moment to the master's device, into paged memory where the optimizer uses it."""
        paging: Any = self._adamw
        if getattr(paging, "is_paged", False) and value.shape == master.shape:
            buffer: Tensor = paging.get_state_buffer(master, dtype=value.dtype)
            return buffer.copy_(value)
        return value.to(master.device)


def require_device(cfg: TrainConfig, device: torch.device) -> None:
    """Check that the optimizer works on this device.

    Raises:
        ConfigError: a paged optimizer was chosen without a GPU.
    """
    if cfg.optimizer.startswith("paged") and device.type != "cuda":
        plain = cfg.optimizer.removeprefix("paged_")
        raise ConfigError(
            f"train.optimizer: got {cfg.optimizer}, which moves moments between a GPU's memory and "
            f"the host's; this runs on {device.type}. Try train.optimizer={plain}"
        )


def _adamw(groups: list[dict[str, Any]], cfg: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer; the learning rate of each group is set at each step."""
    betas, eps = (cfg.adam_beta1, cfg.adam_beta2), cfg.adam_epsilon
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
    from bitsandbytes import optim

    kinds = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }
    optimizer: torch.optim.Optimizer = kinds[cfg.optimizer](groups, betas=betas, eps=eps)
    return optimizer


def _unshared(key: str, value: Any) -> Tensor:
    """Optimizer state value as a tensor that shares no memory with another."""
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    return value.clone() if key.startswith("qmap") else value  # all parameters have the same map


def learning_rate(peak: float, step: int, total: int, cfg: TrainConfig) -> float:
    """Learning rate of optimizer step `step`.

    Args:
        peak: peak learning rate.
        step: index of the step, 0 to total - 1.
        total: number of steps of the run.
        cfg: `schedule warmup_steps min_lr_ratio decay_fraction`.

    Returns:
        peak · (step + 1) / warmup_steps during warm-up; then a decay from the peak to
        peak · min_lr_ratio, which would be reached at step `total`.
    """
    if step < cfg.warmup_steps:
        return peak * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, total - cfg.warmup_steps)
    share = _decay(progress, cfg)
    return peak * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * share)


def _decay(progress: float, cfg: TrainConfig) -> float:
    """Decay factor: 1 at progress 0 and, unless constant, 0 at progress 1."""
    if cfg.schedule == "constant":
        return 1.0
    if cfg.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if cfg.schedule == "linear":
        return 1 - progress
    return min(1.0, (1 - progress) / cfg.decay_fraction) if cfg.decay_fraction else 1.0
