"""One of several processes that train adapters on one sharded base; started by a test."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from rlhf_cli.context import RunContext
from rlhf_cli.distributed import Ranks
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.mesh import create_mesh
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig, QuantConfig
from rlhf_cli.models.load import (
    LoadInputs,
    enable_activation_checkpointing,
    load_policy,
    load_reward_model,
)
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gather_whole, layout_of, local_tensor
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.update import accumulate, clip_and_step
from tests.helpers import random_rows

LENGTHS = [7, 12, 5, 9]


def load(case, ctx, tokenizer):
    cfg = LoadConfig(
        model=ModelConfig(path=case["folder"]),
        adapter=AdapterConfig(**{"kind": "lora", "rank": 4, **case.get("adapter", {})}),
        quant=QuantConfig(**case.get("quant", {"kind": "none"})),
        kernels=["eager"],
    )
    loader = load_reward_model if case.get("reward") else load_policy
    new = case.get("new_tokens", ())
    torch.manual_seed(3)
    model = loader(cfg, LoadInputs(tokenizer, ctx, new_tokens=new))
    if case.get("checkpointing"):
        enable_activation_checkpointing(model)
    for role in case.get("clones", ()):
        model.adapters.clone_adapter(role, trained=role == "value")
    return model


def loss_of(model, case):
    """Negative log-probs, with a penalty on the distance from another role where there is one."""

    def loss(rows):
        if not isinstance(model, Policy):
            return LossOutput({"loss": LossTerm(model(rows).square().sum(), "rows")})
        total = -model(rows).logp.sum()
        for role in case.get("roles", ()):
            with torch.no_grad() if role != "value" else nullcontext():
                other = model(rows, role=role).logp.square().sum()
            total = total + other
        return LossOutput({"loss": LossTerm(total, "tokens")})

    return loss


def train(model, case, ctx):
    """Losses, norms and final trained parameters, in `steps` steps over the ranks of `ctx`."""
    cfg = TrainConfig(optimizer=case.get("optimizer", "adamw"))
    optimizer = MasterAdamW(model, cfg, ctx.compute, ctx.mesh)
    found = []
    for step in range(case.get("steps", 5)):
        rows = list(random_rows(LENGTHS, 90, step).split())
        own = [rows[i] for i in ctx.ranks.shard(len(rows))]
        gradients = accumulate(own, loss_of(model, case), optimizer, ctx.ranks)
        norm = float(gradients.norm)
        found.append((clip_and_step(gradients, optimizer, 1e-2, 1.0), norm))
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    whole = {n: gather_whole(p, optimizer.masters[n]) for n, p in params.items()}
    return found, whole


def held_bytes(model):
    """Bytes of the frozen weights that this process holds."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return sum(local_tensor(p).nbytes for p in frozen)


def compare(case, tokenizer, ranks):
    """Train the case in this process alone, and sharded; return the differences."""
    compute = torch.bfloat16 if case.get("bf16") else torch.float32
    ctx = RunContext(torch.device("cpu"), compute, 0, Path("unused"))
    model = load(case, ctx, tokenizer)
    expected, params = train(model, case, ctx)
    launch = LaunchConfig(processes=ranks.world_size, **case.get("launch", {"shard": "full"}))
    mesh = create_mesh(launch, ctx.device)
    sharded = replace(ctx, ranks=replace(ranks, sharded=True), mesh=mesh)
    other = load(case, sharded, tokenizer)
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in other.named_parameters()}
    found, theirs = train(other, case, sharded)
    return {
        "loss": max(abs(a[0] - b[0]) / abs(a[0]) for a, b in zip(expected, found, strict=True)),
        "norm": max(abs(a[1] - b[1]) / abs(a[1]) for a, b in zip(expected, found, strict=True)),
        "params": max(float((params[n] - theirs[n]).abs().max()) for n in params),
        "trained": len(params),
        "falls": expected[-1][0] < expected[0][0],
        "bytes": held_bytes(other),
        "whole_bytes": held_bytes(model),
        "layouts": sum(layout_of(p).rows < len(p) for p in other.parameters() if p.ndim),
    }


def main(file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    for case in json.loads(Path(file).read_text()):
        tokenizer = AutoTokenizer.from_pretrained(case["folder"])
        found = compare(case, tokenizer, ranks)
        print(json.dumps({"rank": ranks.rank, "name": case["name"], **found}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
