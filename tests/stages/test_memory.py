"""No tensor of all scored tokens times a large vocabulary is ever made in a DPO step."""

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import preference_loss
from rlhf_cli.stages.reference import Reference
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.update import accumulate
from tests.helpers import random_rows, tiny_llama

VOCABULARY = 151_936
CPU = torch.device("cpu")


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = (leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        self.elements = max([self.elements, *found])
        return out


def test_logits_of_the_whole_batch_are_never_alive():
    model = tiny_llama(vocab_size=VOCABULARY, hidden_size=16, max_position_embeddings=512)
    policy = Policy(model, choose("auto", CPU)[0], flat=True)
    rows = random_rows([512] * 4, VOCABULARY)
    rows = replace(rows, example_of_row=torch.tensor([0, 0, 1, 1]))
    reference = Reference(lambda rows: torch.zeros(len(rows.lengths)))
    loss = preference_loss(DPOConfig(), policy, reference)
    optimizer = MasterAdamW(policy, TrainConfig(), torch.float32)
    with Largest() as largest:
        found = accumulate([rows], loss, optimizer)
    assert found.norm > 0
    assert largest.elements >= VOCABULARY * 16  # the gradient of the output layer was seen
    assert largest.elements < len(rows.scored) * VOCABULARY / 32
