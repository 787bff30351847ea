"""Memory model: estimate against measured peak, for stages and kinds of weights of two shapes.

    python -m benchmarks.memory_model [--only TEXT] [--device cuda]

Each case is a run of two steps in a process of its own, with random weights and rows of
known lengths. On a CPU the measured peak is the largest resident memory beside what the process
held after its imports; on a GPU that of torch's allocator. Ten minutes on two cores.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import SCRATCH, save

OUT = SCRATCH / "memory_model"

SHAPES: dict[str, dict[str, Any]] = {
    "deep": {
        "hidden_size": 384,
        "num_hidden_layers": 16,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 32_768,
        "tie_word_embeddings": True,
    },
    "wide": {
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "intermediate_size": 2048,
        "vocab_size": 8192,
        "tie_word_embeddings": False,
    },
}
"""`deep` has 38 M parameters in many narrow layers and one large tied embedding; `wide` 55 M in few
layers, and an output layer of its own."""

PROMPT, RESPONSE = 32, 96
"""Tokens of a prompt and of a response; rows of text have both."""

ROW = PROMPT + RESPONSE


@dataclass(frozen=True)
class Case:
    """A run that is estimated and measured.

    Attributes:
        stage: of `rlhf`.
        shape: key of `SHAPES`.
        words: arguments beside model and data.
        batch: examples of a step.
    """

    stage: str
    shape: str
    words: tuple[str, ...] = ()
    batch: int = 4
    weights: str = field(default="full bf16")

    @property
    def name(self) -> str:
        """Stage, shape and weights."""
        return f"{self.stage} {self.shape} {self.weights}"


LORA = ("adapter=lora",)
QLORA = ("adapter=lora", "quant=nf4")
FP32 = ("train.precision=fp32",)
RECOMPUTE = ("train.gradient_checkpointing=true",)

CASES = (
    Case("pretrain", "deep"),
    Case("pretrain", "wide", FP32, weights="full fp32"),
    Case("sft", "wide", batch=8),
    Case("sft", "deep", RECOMPUTE, batch=8, weights="full bf16, checkpointing"),
    Case("sft", "deep", LORA, weights="LoRA bf16", batch=8),
    Case("sft", "wide", QLORA, batch=8, weights="LoRA nf4"),
    Case("sft", "wide", ("train.optimizer=adamw_8bit",), batch=8, weights="full bf16, 8-bit AdamW"),
    Case("sft", "wide", ("train.micro_batch_tokens=256",), batch=8, weights="full bf16, 4 passes"),
    Case("reward", "wide", batch=4),
    Case("reward", "deep", LORA, batch=4, weights="LoRA bf16"),
    Case("dpo", "wide", weights="full bf16, stored reference", batch=4),
    Case("dpo", "wide", ("model.reference=copy",), batch=4, weights="full bf16, reference copy"),
    Case("dpo", "deep", LORA, batch=4, weights="LoRA bf16"),
    Case("bco", "wide", batch=8, weights="full bf16, stored reference"),
    Case("ppo", "wide", ("reward.length_penalty=1",), batch=8, weights="full bf16"),
    Case("ppo", "deep", ("reward.length_penalty=1", *LORA), batch=8, weights="LoRA bf16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this text")
    only = parser.parse_args().only
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {"device": device, "cases": {}}
    print(f"{'case':52}{'estimate MB':>13}{'measured MB':>13}{'error':>9}", flush=True)
    for case in CASES:
        if only in case.name:
            found = run(case)
            results["cases"][case.name] = found
            print(line(case, found), flush=True)
            if not only:
                save(f"memory_model_{device}", results)


def line(case: Case, found: dict[str, Any]) -> str:
    """A case as a line of the table."""
    estimate, measured = found["estimate"], found["measured"]
    error = 100 * (estimate / measured - 1)
    return f"{case.name:52}{estimate / 1e6:13,.0f}{measured / 1e6:13,.0f}{error:8.1f}%"


def run(case: Case) -> dict[str, Any]:
    """Estimate and measure a case in a process of its own."""
    out = OUT / "run"
    shutil.rmtree(out, ignore_errors=True)
    words = [
        f"model={model_folder(case.shape)}",
        f"data={data_file(case)}",
        f"train.batch_size={case.batch}",
        f"data.max_length={ROW}",
        "train.max_steps=2",
        "log.preview=false",
        *case.words,
    ]
    if case.stage == "ppo":
        words += [f"sampling.max_new_tokens={RESPONSE}", "ppo_epochs=1", "template=never"]
    given = {"stage": case.stage, "words": words, "rows": rows_of(case), "out": str(out)}
    command = [sys.executable, "-m", "benchmarks.workers.memory_case", json.dumps(given)]
    log = OUT / "child.log"
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        sys.exit(f"{case.name} failed; see {log}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(case: Case) -> dict[str, float]:
    """Lengths of the rows of `data_file`, as the fields of `Rows`."""
    found: dict[str, float] = {"longest": ROW, "mean": ROW}
    if case.stage in ("reward", "dpo"):
        found |= {"rows_per_example": 2, "shared": PROMPT}
    if case.stage not in ("pretrain", "reward"):
        found["scored"] = RESPONSE
    if case.stage == "ppo":
        found["longest_prompt"] = PROMPT
    return found


def data_file(case: Case) -> Path:
    """Rows of a stage, each of `ROW` tokens: a word of the tokenizer, repeated."""
    path = OUT / f"{case.stage}.jsonl"
    lines = [json.dumps(row) for row in make_rows(case.stage)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_rows(stage: str) -> Iterator[dict[str, Any]]:
    """48 rows; pairs differ in their last word, so that all rows have one length."""
    prompt, response = " the" * PROMPT, " and" * (RESPONSE - 1)  # then the end token
    for number in range(48):
        if stage == "pretrain":
            yield {"text": " the" * (ROW - 1)}
        elif stage == "ppo":
            yield {"prompt": prompt}
        elif stage in ("reward", "dpo"):
            other = " of" * (RESPONSE - 1)
            yield {"prompt": prompt, "chosen": response, "rejected": other}
        elif stage == "bco":
            yield {"prompt": prompt, "completion": response, "label": number % 2 == 0}
        else:
            yield {"prompt": prompt, "completion": response}


def model_folder(shape: str) -> Path:
    """A folder with random bf16 weights and the shipped tokenizer, whose ids are the first ones."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.resources import shipped_model

    folder = OUT / shape
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(shipped_model())
        config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        torch.manual_seed(0)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
