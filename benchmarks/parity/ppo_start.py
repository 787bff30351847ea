"""What both sides of PPO start from: four small models that all differ, and prompts."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import data_folder
from benchmarks.parity import start
from rlhf_cli import cli
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.models.base_model import BaseOptions, load_base_model
from rlhf_cli.models.checks import NEW_REWARD_HEAD
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.runs.run_files import read_json_lines


@dataclass(frozen=True)
class Models:
    """Folders.

    Attributes:
        policy: writes short answers and ends most of them.
        reference: the policy as it was some steps earlier.
        reward: on the policy's layers.
        value: the same with another score layer, for a value at the end that is not the score.
    """

    policy: Path
    reference: Path
    reward: Path
    value: Path


def make_models(folder: Path) -> Models:
    """Train a small Llama on real questions, so that it draws end tokens and hardly a pad token."""
    language, _ = start.small_models(folder)
    rows = data_folder() / "sft_questions_train.jsonl"
    reference = _train(language, rows, folder / "reference", 150)
    policy = _train(reference, rows, folder / "policy", 30)
    reward, value = (
        _scorer(policy, folder / name, seed) for seed, name in ((1, "reward"), (2, "value"))
    )
    return Models(policy, reference, reward, value)


def _scorer(policy: Path, out: Path, seed: int) -> Path:
    model = ModelConfig(path=str(policy))
    tokenizer = load_tokenizer(model)
    options = BaseOptions(kind="reward_model", allowed=NEW_REWARD_HEAD, seed=seed)
    found = load_base_model(model, str(policy), tokenizer, options)
    found.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _train(model: Path, rows: Path, out: Path, steps: int) -> Path:
    argv = ["sft", f"model={model}", f"data={rows}", "data.eval=none", f"output_dir={out}"]
    if cli.main([*argv, f"max_steps={steps}", "lr=3e-3", "batch_size=16", "train.precision=fp32"]):
        raise SystemExit(1)
    return out / "model"


def write_prompts(file: Path, policy: Path, count: int) -> dict[tuple[int, ...], str]:
    """Write the token ids of real questions; returns the text of each."""
    tokenizer = load_tokenizer(ModelConfig(path=str(policy)))
    encoder = PromptEncoder(tokenizer, as_message=False)
    prompts = [row["prompt"] for row in read_json_lines(data_folder() / "sft_questions_test.jsonl")]
    found = {tuple(encoder.encode(text)): text for text in prompts}
    kept = dict(list(found.items())[:count])
    ids = "".join(json.dumps({"input_ids": list(tokens)}) + "\n" for tokens in kept)
    file.write_text(ids, encoding="utf-8")
    return kept
