"""One of several processes that load a policy in shards; started by torchrun in a test."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.mesh import create_mesh
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.sharding import shards_of
from tests.helpers import rows_of


def main(folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = AdapterConfig(kind=kind)
    cfg = LoadConfig(model=ModelConfig(path=folder), adapter=adapter)
    alone = RunContext(torch.device("cpu"), torch.float32, 0, Path(folder))
    mesh = create_mesh(LaunchConfig(processes=2, shard="full"), alone.device)
    expected = load_policy(cfg, LoadInputs(tokenizer, alone))
    found = load_policy(cfg, LoadInputs(tokenizer, replace(alone, mesh=mesh)))
    held = shards_of(found)
    for name, param in expected.named_parameters():
        whole = kind != "none" and param.requires_grad  # adapters are not divided
        assert isinstance(held[name], DTensor) != whole, name
        values = held[name] if whole else held[name].full_tensor()
        assert torch.equal(values, param), name
    rows = rows_of([5, 6, 7, 8], [9, 10, 11])
    assert torch.equal(found(rows).logp, expected(rows).logp)
    tied = found.model.get_output_embeddings().weight is found.model.get_input_embeddings().weight
    assert tied == expected.model.config.tie_word_embeddings
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
