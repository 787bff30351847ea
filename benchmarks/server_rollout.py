"""The slots engine, transformers' generate and a vLLM server on the same prompts, in turns.

python -m benchmarks.server_rollout --start 'PYTHON -m vllm.entrypoints.openai.api_server ...'
    [--model 8m FOLDER] [--dtype bf16 fp32] [--batch 16 64 256] [--new 32] [--rounds 3]
python -m benchmarks.server_rollout --start ... --ppo RUN_FOLDER [--steps 6] [--rounds 2]

All of them take OMP_NUM_THREADS threads. Next to other work, set GOMP_SPINCOUNT=1000, which they
all read: docs/performance.md. The first prints tokens per second, the second the time of a PPO step
on the tiny recipe from a model in a run folder: in process, by a server, and by a server with
`rollout.lag=1`.
"""

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.common import RESULTS, SCRATCH, save, spread
from rlhf_cli import cli
from rlhf_cli.context import configure_cpu
from rlhf_cli.models.config import DEFAULT_ARCHITECTURE
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import GenerationJob, generate, generate_with_transformers
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.engine import ServerEngine
from rlhf_cli.rollout.server.open import open_fixed_engine
from rlhf_cli.rollout.stopping import StopCriteria
from rlhf_cli.train.metrics import read_metrics

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

VOCABULARY = 8192

LONGEST = 128
"""Tokens of the longest prompt."""

Way = Callable[[list[list[int]], int], list[list[int]]]
"""Generates responses to prompts, a number of them at once."""


def small_model() -> Path:
    """A folder with the 8 M Llama of docs/performance.md and a tokenizer with a word for each id.

    It has 9 heads of 32 in place of 6 of 48, which vLLM's attention for CPUs does not have.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = SCRATCH / "llama_8m_heads_of_32"
    if not folder.exists():
        shape = {k: v for k, v in DEFAULT_ARCHITECTURE.items() if k != "model_type"}
        shape |= {"num_attention_heads": 9, "num_key_value_heads": 9, "vocab_size": VOCABULARY}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
        words = WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0")
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words), unk_token="w0", eos_token="w2", pad_token="w1"
        ).save_pretrained(folder)
    return folder


def make_prompts(count: int, rows: int, seed: int) -> list[list[int]]:
    """8 to 128 tokens, most of them short; new ones for each seed, which no server has cached."""
    chance = random.Random(seed)
    lengths = [min(LONGEST, 8 + int(chance.expovariate(1 / 32))) for _ in range(count)]
    return [[chance.randrange(3, rows) for _ in range(length)] for length in lengths]


def in_process(model: Any, tokenizer: Any, sampling: SamplingConfig) -> dict[str, Way]:
    """The two engines of this process."""

    def slots(prompts: list[list[int]], batch: int) -> list[list[int]]:
        found = generate(model, tokenizer, prompts, sampling, batch_size=batch)
        return [one.token_ids for one in found]

    def plain(prompts: list[list[int]], batch: int) -> list[list[int]]:
        rows = [Response(n, n, prompt) for n, prompt in enumerate(sorted(prompts, key=len))]
        seeds = [(0, row.index, 0) for row in rows]
        stop = StopCriteria(model, tokenizer, sampling)
        job = GenerationJob(model, tokenizer, rows, seeds, sampling, stop, batch)
        generate_with_transformers(job)
        return [row.token_ids for row in rows]

    return {"slots": slots, "generate": plain}


def by_server(engine: ServerEngine) -> Way:
    """A server, which gets all requests at once; it gives log-probs too, as it does in training."""

    def served(prompts: list[list[int]], batch: int) -> list[list[int]]:
        found = engine.generate(prompts, samples=1, prompt_numbers=range(len(prompts)))
        return [one.token_ids for one in found]

    return served


def open_server(
    cfg: ServerConfig, folder: Path, model: Any, tokenizer: Any, sampling: SamplingConfig
) -> ServerEngine:
    """Start a vLLM server of a folder on as many threads as this process has, or find one."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    log = SCRATCH / "server.log"
    log.unlink(missing_ok=True)
    return open_fixed_engine(
        cfg,
        model,
        tokenizer,
        sampling,
        LONGEST + sampling.max_new_tokens,
        folder=folder,
        log=log,
        dtype=str(model.dtype).removeprefix("torch."),
        path=str(folder),
        on_cpu=True,
    )


def measure(name: str, dtype: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens per second of a model in a type, at each batch size."""
    folder = small_model() if name == "8m" else Path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    known = AutoTokenizer.from_pretrained(folder)
    model.generation_config.eos_token_id = None  # every response has the same length
    tokenizer = SimpleNamespace(eos_token_id=None, get_vocab=known.get_vocab)
    sampling = SamplingConfig(max_new_tokens=arguments.new)
    cfg = ServerConfig(start=arguments.start, server=arguments.server, deadline=600.0)
    engine = open_server(cfg, folder, model, _Endless(known), sampling)
    try:
        ways = {**in_process(model, tokenizer, sampling), "server": by_server(engine)}
        label = "8 M" if name == "8m" else folder.name
        return [
            {
                "model": label,
                "dtype": dtype,
                "batch": batch,
                **in_turns(ways, model.config.vocab_size, batch, arguments),
            }
            for batch in arguments.batch
        ]
    finally:
        engine.close()


class _Endless:
    """A tokenizer without an end token."""

    eos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.get_vocab = tokenizer, tokenizer.get_vocab

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self._tokenizer(*texts, **options)


def in_turns(
    ways: dict[str, Way], rows: int, batch: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Tokens per second of each way in every round, after one that is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-1, arguments.rounds):
        prompts = make_prompts(batch, rows, seed=1 + round_)
        for name, way in ways.items():
            if round_ < 0:
                way(prompts[:16], batch)
                continue
            began = time.monotonic()
            tokens = way(prompts, batch)
            assert {len(one) for one in tokens} == {arguments.new}
            speeds[name].append(batch * arguments.new / (time.monotonic() - began))
    shown = (f"{name} {spread(found)}" for name, found in speeds.items())
    print(f"batch {batch}:", *shown, "tokens/s", flush=True)
    return speeds


def table(results: list[dict[str, Any]]) -> str:
    """Median tokens per second, and slots over each of the others: median of the rounds' ratios."""
    lines = [
        "| model | type | batch | slots | generate | vLLM | slots / generate | slots / vLLM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        medians = [
            f"{statistics.median(row[name]):,.0f}" for name in ("slots", "generate", "server")
        ]
        ratios = [ratio(row["slots"], row[name]) for name in ("generate", "server")]
        cells = [row["model"], row["dtype"], str(row["batch"]), *medians, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(ours: list[float], others: list[float]) -> str:
    """Median and range of the ratios of each round."""
    return spread([mine / other for mine, other in zip(ours, others, strict=True)])


PPO_WAYS = {"in process": [], "server": ["rollout.lag=0"], "server, lag 1": ["rollout.lag=1"]}
PPO_TIMES = ("step_seconds", "time/rollout", "time/wait")


def ppo_times(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a step of the tiny PPO recipe, without the first step, in every round."""
    found: dict[str, dict[str, list[float]]] = {
        way: {key: [] for key in PPO_TIMES} for way in PPO_WAYS
    }
    for _ in range(arguments.rounds):
        for way, words in PPO_WAYS.items():
            for line in _ppo_run(arguments, words)[1:]:
                for key in PPO_TIMES:
                    found[way][key] += [line[key]] if key in line else []
    return [{"way": way, **times} for way, times in found.items()]


def _ppo_run(arguments: argparse.Namespace, words: list[str]) -> list[dict[str, Any]]:
    """Metrics of the steps of a run."""
    out = SCRATCH / "server_rollout_ppo"
    shutil.rmtree(out, ignore_errors=True)
    served = [f"rollout.start={arguments.start}", "rollout.check_steps=0"] if words else []
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    given = [f"model={arguments.ppo}", f"output_dir={out}", f"train.max_steps={arguments.steps}"]
    options = ["train.precision=fp32"]
    code = cli.main(["ppo", "config=tiny/ppo", *given, *options, *served, *words])
    if code:
        raise SystemExit(code)
    return [line for line in read_metrics(out / "metrics.jsonl") if "step_seconds" in line]


def ppo_table(results: list[dict[str, Any]]) -> str:
    """Median seconds of a step, its rollout and the wait for it."""
    lines = ["| responses | step, s | rollout, s | wait, s |", "|---|---|---|---|"]
    for row in results:
        cells = [spread(row[key]) if row[key] else "–" for key in PPO_TIMES]
        lines.append(f"| {' | '.join([row['way'], *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", default="", help="command of vLLM")
    parser.add_argument("--server", default="", help="address of one that runs with the model")
    parser.add_argument("--model", nargs="+", default=["8m"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ppo", default="")
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    configure_cpu()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    if arguments.ppo:
        results = ppo_times(arguments)
        save("server_rollout_ppo", {"threads": torch.get_num_threads(), "results": results})
        print(ppo_table(results))
        return
    cells = [(name, dtype) for name in arguments.model for dtype in arguments.dtype]
    results = []
    for name, dtype in cells:
        results += measure(name, dtype, arguments)
        shape = {"threads": torch.get_num_threads(), "new_tokens": arguments.new}
        save("server_rollout", {**shape, "results": results})
    print(table(results), f"\n{RESULTS / 'server_rollout.json'}")


if __name__ == "__main__":
    main()
