"""Adapters on whole and on packed weights: losses, merge drift, PPO's models in memory.

    RLHF_DATA=... python -m benchmarks.adapters

An 8 M Llama is pretrained for a minute, then adapters on it, whole or packed in 4 or 8 bits, see
the same 20 steps of real rows (shell commands). Each is merged in both types, and PPO is started
with four whole models and with one base under four roles. A few minutes on two cores.
"""

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.common import SCRATCH, data_folder, save
from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

OUT = SCRATCH / "adapters"

WEIGHTS = {"whole": "none", "nf4": "nf4", "int8": "int8"}

ROLES = ("policy", "reference", "value model", "reward model", "all")

ADAPTED = ("adapter=lora", "adapter.rank=8")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    data = data_folder()
    rlhf("pretrain", "base", "model=llama_8m", f"data={data / 'text_speeches.txt'}", "max_steps=60",
         "data.max_length=256", "batch_size=8", "lr=1e-3")  # fmt: skip
    losses = {name: adapted(kind, data) for name, kind in WEIGHTS.items()}
    print("\nloss of 20 steps (first, mean of the last five), then held out")
    for name, (steps, held_out) in losses.items():
        last = sum(steps[-5:]) / 5
        print(f"{name:8}{steps[0]:10.4f}{last:10.4f}{held_out:10.4f}")
    drifts = {name: merged(name) for name in WEIGHTS}
    print("\nmerge: difference of log-probs, nats, mean (most)")
    for name, lines in drifts.items():
        for what, (mean, most) in lines.items():
            print(f"{name:8}{what:60}{mean:10.1e} ({most:.1e})")
    memory = {"four models": four_models(data), "one base": one_base(data)}
    print("\nPPO's models in memory, MB")
    for name, found in memory.items():
        print(f"{name:14}" + "".join(f"{role} {found[role]:.1f}  " for role in ROLES))
    save("adapters", {"losses": losses, "drifts": drifts, "memory_mb": memory})


def rlhf(command: str, name: str, *words: str) -> str:
    """Run a command in the benchmark's folder; gives its log."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        code = cli.main([command, f"output_dir={OUT / name}", *words])
    if code:
        raise SystemExit(log.getvalue())
    return log.getvalue()


def adapted(kind: str, data: Path) -> tuple[list[float], float]:
    """Loss of each of 20 steps, and of held-out rows at the end."""
    name = next(name for name, found in WEIGHTS.items() if found == kind)
    rlhf("sft", name, f"model={OUT / 'base'}", f"data={data / 'sft_commands_train.jsonl'}",
         f"data.eval={data / 'sft_commands_test.jsonl'}", "data.split=[:640]", "batch_size=32",
         "max_steps=20", "lr=1e-3", f"quant={kind}", *ADAPTED)  # fmt: skip
    lines = read_metrics(OUT / name / "metrics.jsonl")
    return [line["loss"] for line in lines if "loss" in line], lines[-1]["eval/loss"]


def merged(name: str) -> dict[str, tuple[float, float]]:
    """Mean and largest difference of log-probs that `rlhf merge` tells, by what is compared."""
    found: dict[str, tuple[float, float]] = {}
    for dtype in ("fp32", "bf16"):
        log = rlhf("merge", f"{name}-{dtype}", f"model={OUT / name}", f"dtype={dtype}")
        pattern = r"^(.*): log-probs differ by (\S+) in the mean, (\S+) at most$"
        for what, mean, most in re.findall(pattern, log, re.MULTILINE):
            found[what] = (float(mean), float(most))
    return found


def four_models(data: Path) -> dict[str, float]:
    """A policy, its copy, a value model and a reward model, all of them whole."""
    scored = rewarded("reward-whole", data)
    return in_memory("ppo-whole", data, f"reward.model={scored}", "value=model")


def one_base(data: Path) -> dict[str, float]:
    """The same roles as adapters on the policy's base."""
    scored = rewarded("reward-adapter", data, *ADAPTED)
    return in_memory("ppo-adapters", data, f"reward.model={scored}", "value=adapter", *ADAPTED)


def rewarded(name: str, data: Path, *words: str) -> Path:
    """A reward model of one step."""
    rows = data / "preference_arguments_train.jsonl"
    rlhf("reward", name, f"model={OUT / 'base'}", f"data={rows}", "data.split=[:32]", "max_steps=1",
         "data.max_length=256", *words)  # fmt: skip
    return OUT / name


def in_memory(name: str, data: Path, *words: Any) -> dict[str, float]:
    """MB of each model of a run of PPO of its own, as the run tells."""
    log = rlhf("ppo", name, f"model={OUT / 'base'}", f"data={data / 'prompts_movie.jsonl'}",
               "template=never", "data.eval=none", "data.split=[:8]", "batch_size=8", "max_steps=1",
               "max_new_tokens=8", *words)  # fmt: skip
    table = re.findall(r"^  (\w.*?)\s+([\d.,]+) MB", log, re.MULTILINE)
    sizes = {role: float(size.replace(",", "")) for role, size in table}
    return {"reward model" if "reward" in role else role: size for role, size in sizes.items()}


if __name__ == "__main__":
    main()
