"""The test rows of a finished run, as its result judges them and as they stand in their files."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import data_folder
from rlhf_cli.config.args import parse
from rlhf_cli.console import muted
from rlhf_cli.context import create_context
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import load_eval_examples
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.records.types import LabelledRecord, PreferenceRecord
from rlhf_cli.models.load import LoadInputs, load_policy, load_reward_model
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve
from rlhf_cli.train.evaluation import compute_row_values
from rlhf_cli.train.row_loss import row_logprobs

RECORDS = {"reward": PreferenceRecord, "dpo": PreferenceRecord, "bco": LabelledRecord}

TOKENS = 4096
"""Of a forward pass."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The test rows of a run; of a pair two responses, the chosen first.

    Attributes:
        values: [R], of each response: the reward model's score, or beta * (log p - log p_ref).
        examples: [E], as they stand in the file.
        files: [E], the name of each one's file.
    """

    values: Values
    examples: list[dict[str, Any]]
    files: list[str]


def judge(run: Path, stage: str) -> Judged:
    """Let the result of a run judge the rows that it held out."""
    words = parse(COMMANDS[stage], [f"config={run / 'config.yaml'}"])
    cfg: Any = resolve(COMMANDS[stage], words).config
    with muted():
        ctx = create_context(cfg.train.precision, cfg.seed, run)
        tokenizer = load_tokenizer(replace(cfg.model, path=str(run)))
        loaded = load_eval_examples(cfg.data, stage, tokenizer, (RECORDS[stage],))
        assert loaded is not None
        examples = loaded[0]

        def scores(load: Any, path: str) -> Values:
            model = load(
                replace(cfg, model=replace(cfg.model, path=path)), LoadInputs(tokenizer, ctx)
            )
            if load is load_reward_model:
                return _per_row(model, examples)
            return _per_row(lambda rows: row_logprobs(model(rows), rows), examples)

        if stage == "reward":
            values = scores(load_reward_model, str(run))
        else:
            gain = scores(load_policy, str(run)) - scores(load_policy, cfg.model.path)
            values = cfg.beta * gain
    return Judged(values, *_as_they_stand(examples))


def _per_row(of: Callable[[TokenBatch], Tensor], examples: Examples) -> Values:
    with torch.no_grad():
        values, _ = compute_row_values(
            lambda rows: {"value": of(rows)}, examples, TOKENS, torch.device("cpu")
        )
    return values["value"].double().numpy()


def _as_they_stand(examples: Examples) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the files that the examples were made of, and the names of the files."""
    paths = [data_folder() / Path(name).name for name in examples.files]
    lines = [path.read_text(encoding="utf-8").split("\n") for path in paths]
    rows = [json.loads(lines[file][line - 1]) for file, line in examples.origin]
    return rows, [paths[file].stem for file, _ in examples.origin]
