"""GRPO on responses of a server that differs from the policy, with importance weights and without.

    python -m benchmarks.correction --python build/vllm/bin/python [--steps 40] [--seeds 0,1,2]
        [--corrections none,token,sequence]

The recipe arithmetic_grpo, trained in fp32. `bf16`: a vLLM server computes in bf16; `lag`: the
weights of the server are four steps older than those that are updated. Each is trained with
`rollout.correction` as listed, and beside them once on responses of this process.
The policy's output layer is not tied to its embeddings: a vLLM on a CPU would keep the first one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.common import SCRATCH, save

PORT = 8171
ADDRESS = f"http://127.0.0.1:{PORT}"
SETUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bf16": ("bfloat16", ()),
    "lag": ("float32", ("rollout.lag=4",)),
}
"""Setup -> type of the server's arithmetic, and keys of the run."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--corrections", default="none,token,sequence")
    chosen = parser.parse_args()
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    model = prepare()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        found.setdefault("this process", []).append(train(model, chosen.steps, seed, ()))
    for setup, (dtype, keys) in SETUPS.items():
        with serving(chosen.python, model, dtype):
            for correction in chosen.corrections.split(","):
                own = (f"rollout.server={ADDRESS}", f"rollout.correction={correction}", *keys)
                name = f"{setup}, {correction}"
                found[name] = [train(model, chosen.steps, seed, own) for seed in seeds]
    save("correction", {"steps": chosen.steps, "seeds": seeds, "runs": found})
    print("| responses, correction | held-out score | lowest | mismatch_kl | entropy at the end |")
    print("| --- | --- | --- | --- | --- |")
    for name, runs in found.items():
        print(f"| {name} | {' | '.join(cells(runs))} |")


def cells(runs: list[dict[str, float]]) -> Iterator[str]:
    scores = [run["score"] for run in runs]
    yield " ".join(f"{score:.3f}" for score in scores) + f" (mean {statistics.mean(scores):.3f})"
    yield f"{min(scores):.3f}"
    yield f"{statistics.mean(run['mismatch_kl'] for run in runs):.2g}"
    yield f"{statistics.mean(run['entropy'] for run in runs):.3f}"


def prepare() -> Path:
    """The recipe's SFT model with an output layer of its own."""
    own, folder = SCRATCH / "correction" / "sft", SCRATCH / "correction" / "untied"
    rlhf("sft", "config=arithmetic_grpo/sft", f"output_dir={own}")
    model = AutoModelForCausalLM.from_pretrained(own / "model", dtype=torch.float32)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(own / "model").save_pretrained(folder)
    return folder


def train(model: Path, steps: int, seed: int, keys: tuple[str, ...]) -> dict[str, float]:
    """Train once; the last held-out score and the means of the last ten steps."""
    out = SCRATCH / "correction" / f"run-{time.time_ns()}"
    common = (f"model={model}", f"seed={seed}", f"sampling.seed={seed}", "train.precision=fp32")
    rlhf(
        "grpo",
        "config=arithmetic_grpo/grpo",
        *common,
        f"max_steps={steps}",
        "log.sample_prompts=0",
        f"output_dir={out}",
        *keys,
    )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "objective/scores" in line][-10:]
    return {
        "score": next(one["eval/score"] for one in reversed(lines) if "eval/score" in one),
        "mismatch_kl": statistics.mean(one.get("rollout/mismatch_kl", 0.0) for one in last),
        "entropy": statistics.mean(one["policy/entropy"] for one in last),
    }


def rlhf(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"rlhf {' '.join(words)}\n{done.stderr}")


@contextmanager
def serving(python: str, model: Path, dtype: str) -> Iterator[None]:
    """A vLLM server of the model while the block runs."""
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--host", "127.0.0.1", "--port", str(PORT), "--dtype", dtype]
    words += ["--max-model-len", "64", "--logprobs-mode", "processed_logprobs"]
    words += ["--enable-scale-out", "--served-model-name", "policy"]
    words += ["--no-enable-chunked-prefill"]
    env: dict[str, Any] = {
        **os.environ,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with (SCRATCH / "correction" / f"server-{dtype}.log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            wait(server)
            yield
        finally:
            os.killpg(server.pid, 15)
            server.wait()


def wait(server: subprocess.Popen[bytes], seconds: float = 600) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            urllib.request.urlopen(f"{ADDRESS}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(2)
    raise SystemExit("the server is not ready")


if __name__ == "__main__":
    main()
