"""One of several processes that load a policy in shards; started by torchrun in a test."""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import AutoTokenizer

from rlhf_cli.context import RunContext
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.shards import ShardLayout, whole
from tests.helpers import rows_of


def layout_of(param):
    if not isinstance(param, DTensor):
        return whole(param)
    mesh, placements = param.device_mesh, param.placements
    rows, offset = compute_local_shape_and_global_offset(param.shape, mesh, placements)
    return ShardLayout(tuple(param.shape), offset[0], rows[0])


def shard(wrapper):
    assert any(param.is_meta for param in wrapper.parameters())
    for module in wrapper.modules():
        if type(module).__name__.endswith("DecoderLayer"):
            fully_shard(module)
    fully_shard(wrapper)
    return {name: layout_of(param) for name, param in wrapper.named_parameters()}


def main(folder, kind):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    adapter = AdapterConfig(kind=kind)
    cfg = LoadConfig(model=ModelConfig(path=folder), adapter=adapter)
    ctx = RunContext(torch.device("cpu"), torch.float32, 0, Path(folder))
    with patch("rlhf_cli.models.load.probe"):  # it runs the model outside of its forward
        expected = load_policy(cfg, LoadInputs(tokenizer, ctx))
        found = load_policy(cfg, LoadInputs(tokenizer, ctx, shard=shard))
    held = dict(found.named_parameters())
    for name, param in expected.named_parameters():
        assert isinstance(held[name], DTensor), name
        assert torch.equal(held[name].full_tensor(), param), name
    rows = rows_of([5, 6, 7, 8], [9, 10, 11])
    assert torch.equal(found(rows).logp, expected(rows).logp)
    tied = found.model.get_output_embeddings().weight is found.model.get_input_embeddings().weight
    assert tied == expected.model.config.tie_word_embeddings
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
