"""Memory and time of one long row, by the number of processes that share its tokens.

    python -m benchmarks.context_parallel [--tokens 8192 16384] [--ranks 1 2 4] [--recompute]

A Llama of 2 layers with random fp32 weights, forward and backward pass of a row of which every
token is trained. Each process has one thread. "activations" is the peak of resident memory during
the pass above what the process holds before it and its gradients, of the rank that needs most; the
gradient norm over all ranks shows that they compute the same thing.
"""

import argparse
import json
import os
import tempfile
import time
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import save

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 16384])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    given = parser.parse_args()
    found = []
    print("| tokens | processes | activations, MB | of one | seconds | loss | gradient norm |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for tokens in given.tokens:
        whole = 0.0
        for size in given.ranks:
            ranks = measure(tokens, size, recompute=given.recompute)
            peak, seconds = (max(rank[name] for rank in ranks) for name in ("bytes", "seconds"))
            whole = whole or peak
            loss, norm = ranks[0]["loss"], ranks[0]["norm"]
            print(
                f"| {tokens:,} | {size} | {peak / 1e6:,.0f} | {peak / whole:.2f} | {seconds:.1f} "
                f"| {loss:.6f} | {norm:.6f} |",
                flush=True,
            )
            found.append({"tokens": tokens, "processes": size, "ranks": ranks})
    save("context_parallel", {"recompute": given.recompute, "measured": found})


def measure(tokens: int, size: int, *, recompute: bool) -> list[dict[str, float]]:
    """Measure a pass in processes of their own; one dictionary for each rank."""
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = [
            spawn.Process(target=run_rank, args=(folder, rank, size, tokens, recompute))
            for rank in range(size)
        ]
        for process in every:
            process.start()
        for process in every:
            process.join()
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def run_rank(folder: Path, rank: int, size: int, tokens: int, recompute: bool) -> None:
    """Measure the pass of one rank; its gradients exist before."""
    import torch

    from rlhf_cli.context import keep_freed_memory
    from rlhf_cli.distributed.process_group import init_process_group, rendezvous_store
    from rlhf_cli.distributed.ranks import current_ranks, divide_ranks
    from rlhf_cli.memory.phase import read_status, reset_process_peak
    from rlhf_cli.models.load import enable_activation_checkpointing

    keep_freed_memory()
    torch.set_num_threads(1)
    if size > 1:
        url = f"file://{folder / 'store'}"
        store = rendezvous_store(url, rank, size, timedelta(minutes=10))
        init_process_group(store, rank, size, rank)
    ranks = divide_ranks(current_ranks(), size)
    policy, rows = make_policy(), make_rows(tokens)
    policy.context = ranks.context
    if recompute:
        enable_activation_checkpointing(policy)
    for param in policy.parameters():
        param.grad = torch.zeros_like(param)
    reset_process_peak()
    held, began = read_status("VmRSS"), time.monotonic()
    loss = -policy(rows).logp.mean()
    loss.backward()
    found: dict[str, Any] = {"bytes": read_status("VmHWM") - held}
    found |= {"seconds": time.monotonic() - began, "loss": float(loss.detach())}
    for param in policy.parameters():
        ranks.all_reduce(param.grad)
    found["norm"] = float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()]))
    (folder / f"{rank}.json").write_text(json.dumps(found))


def make_policy() -> Any:
    """A policy of `SHAPE` with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_cli.kernels.registry import choose
    from rlhf_cli.models.policy import Policy

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=1 << 20)).train()
    return Policy(model, choose("none", torch.device("cpu"))[0], flat=True)


def make_rows(tokens: int) -> Any:
    """One row of random tokens, every one but the first a target."""
    import torch

    from rlhf_cli.data.batches import TokenBatch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, SHAPE["vocab_size"], (tokens,), generator=generator)
    return TokenBatch(ids, torch.tensor([tokens]), torch.arange(tokens - 1), torch.zeros(1).long())


if __name__ == "__main__":
    main()
