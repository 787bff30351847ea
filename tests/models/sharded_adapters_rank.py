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
from rlhf_cli.distributed.mesh import create_mesh
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import ModelError
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig, QuantConfig
from rlhf_cli.models.load import (
    LoadInputs,
    enable_activation_checkpointing,
    load_frozen,
    load_policy,
    load_reward_model,
)
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.quantize import quantized_weight
from rlhf_cli.models.sharding import gathered, local_tensor
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.update import accumulate, clip_and_step
from tests.helpers import random_rows
from tests.rank_processes import join

LENGTHS = [7, 12, 5, 9]


def config_of(case):
    return LoadConfig(
        model=ModelConfig(path=case["folder"]),
        adapter=AdapterConfig(**{"kind": "lora", "rank": 4, **case.get("adapter", {})}),
        quant=QuantConfig(**case.get("quant", {"kind": "none"})),
        kernels=["eager"],
    )


def load(case, ctx, tokenizer):
    loader = load_reward_model if case.get("reward") else load_policy
    inputs = LoadInputs(tokenizer, ctx, new_tokens=case.get("new_tokens", ()))
    torch.manual_seed(3)
    model = loader(config_of(case), inputs)
    if case.get("checkpointing"):
        enable_activation_checkpointing(model)
    for role in case.get("clones", ()):
        model.adapters.clone_adapter(role, trained=role == "value")
    return model


def loss_of(model, case):
    """Negative log-probs or squared scores, and squared log-probs of further roles."""

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
    """Loss and gradient norm of each step, the trained parameters, and their largest change."""
    cfg = TrainConfig(optimizer=case.get("optimizer", "adamw"))
    optimizer = MasterAdamW(model, cfg, ctx.compute, ctx.mesh)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    found = []
    for step in range(case.get("steps", 3)):
        rows = list(random_rows(LENGTHS, 90, step).split())
        own = [rows[i] for i in ctx.ranks.shard(len(rows))]
        gradients = accumulate(own, loss_of(model, case), optimizer, ctx.ranks)
        norm = float(gradients.norm)
        found.append((clip_and_step(gradients, optimizer, 1e-2, 1.0), norm))
    moved = max(float((optimizer.masters[n] - before[n]).abs().max()) for n in before)
    return found, optimizer.masters, moved


def off(whole, part, mesh):
    """Largest difference of a shard from its rows of a whole parameter."""
    if len(part) != len(whole):
        sizes = [len(rows) for rows in whole.chunk(mesh.device_mesh.size())]
        start = sum(sizes[: mesh.device_mesh.get_local_rank()])
        whole = whole[start : start + len(part)]
    return float((whole - part).abs().max()) if part.numel() else 0.0


def held_bytes(model, *, packed=False):
    """Bytes of the frozen weights that this process holds; `packed`: of those in 4 bits."""
    params = [p for p in model.parameters() if not p.requires_grad]
    chosen = [p for p in params if not packed or p.dtype == torch.uint8]
    return sum(local_tensor(p).nbytes for p in chosen)


def compare(case, ctx, sharded, tokenizer):
    """Train in this process alone, and sharded; return the largest relative differences."""
    model = load(case, ctx, tokenizer)
    expected, params, moved = train(model, case, ctx)
    other = load(case, sharded, tokenizer)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in other.named_parameters()}
    found, theirs, _ = train(other, case, sharded)
    pairs = list(zip(expected, found, strict=True))
    return {
        "loss": max(abs(a[0] - b[0]) / abs(a[0]) for a, b in pairs),
        "norm": max(abs(a[1] - b[1]) / abs(a[1]) for a, b in pairs),
        "params": max(off(params[n], part, other.mesh) for n, part in theirs.items()),
        "moved": moved,
        "bytes": held_bytes(other),
        "whole_bytes": held_bytes(model),
        "packed": held_bytes(other, packed=True),
        "whole_packed": held_bytes(model, packed=True),
    }


def compare_frozen(case, ctx, sharded, tokenizer):
    """Log-probs of a frozen model, in turns with and without its weights gathered."""
    cfg = replace(config_of(case), adapter=AdapterConfig())
    expected = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx)).train()
    found = load_frozen(Policy, cfg, LoadInputs(tokenizer, sharded))
    rows = random_rows(LENGTHS, 90)
    with torch.no_grad():
        wanted = expected(rows).logp
        outputs = [found(rows).logp, found(rows).logp]
        with gathered(found):
            alone = [found(rows).logp] * (
                1 + sharded.ranks.rank
            )  # ranks may differ in their number
            heads = [quantized_weight(m.get_output_embeddings()) for m in (found.model,)]
        outputs += [*alone, found(rows).logp]
    assert heads[0] is not None
    return {"off": max(float((one - wanted).abs().max()) for one in outputs)}


def save(case, ctx, sharded, tokenizer):
    """The first process writes the adapters alone."""
    model = load(case, sharded, tokenizer)
    if sharded.ranks.is_main:
        model.adapters.save(Path(case["out"]))
    sharded.ranks.any(False)  # the others wait
    return {"out": case["out"]}


def refuse(case, ctx, sharded, tokenizer):
    try:
        load(case, sharded, tokenizer)
    except ModelError as error:
        return {"error": str(error)}
    return {}


ACTIONS = {"compare": compare, "frozen": compare_frozen, "refuse": refuse, "save": save}


def main(file):
    torch.set_num_threads(1)
    join()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), sharded=True)
    for case in json.loads(Path(file).read_text()):
        tokenizer = AutoTokenizer.from_pretrained(case["folder"])
        compute = torch.bfloat16 if case.get("bf16") else torch.float32
        ctx = RunContext(torch.device("cpu"), compute, 0, Path("unused"))
        launch = {"shard": "full", "processes": ranks.world_size, **case.get("launch", {})}
        mesh = create_mesh(LaunchConfig(**launch), ctx.device)
        sharded = replace(ctx, ranks=ranks, mesh=mesh)
        found = ACTIONS[case.get("action", "compare")](case, ctx, sharded, tokenizer)
        with Path(f"{file}.{ranks.rank}").open("a") as lines:
            lines.write(json.dumps({"name": case["name"], **found}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
