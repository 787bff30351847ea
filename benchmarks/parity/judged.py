"""Twenty steps of `rlhf reward`, `dpo` and `bco` beside TRL's own trainers, on the same token ids.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.parity.judged [--only dpo]

In fp32 from the same weights, 8 examples a step. TRL tokenizes the same texts itself, and the ids
of both sides are compared before anything else. Ours cuts a step into several micro-batches.
"""

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import SCRATCH, child, save
from benchmarks.parity import ours, start
from benchmarks.parity.compare import compare
from rlhf_cli.data.records.types import LabelledRecord, PreferenceRecord
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer

STEPS, BATCH, LR, MICRO_BATCH_TOKENS = 20, 8, 3e-4, 1024


@dataclass(frozen=True)
class Peer:
    """A trainer of TRL.

    Attributes:
        script: runs it.
        version: of TRL.
        metrics: its name of each number that is compared, by ours.
    """

    script: str
    version: str
    metrics: dict[str, str]


ALWAYS = {"loss": "loss", "grad_norm": "grad_norm"}
MARGINS = {name: name for name in ("rewards/accuracies", "rewards/margins")}
PEERS = {
    "reward": Peer("trl_reward", "1.16.0", {**ALWAYS, "accuracy": "accuracy", "margin": "margin"}),
    "dpo": Peer("trl_dpo", "1.16.0", {**ALWAYS, **MARGINS}),
    "bco": Peer("trl_bco", "1.13.0", {**ALWAYS, "delta": "delta"}),
}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        stage: of ours.
        name: of the case.
        rows: name of the file.
        ours: settings of our command line.
        peer: options of TRL's script.
    """

    stage: str
    name: str
    rows: str
    ours: tuple[str, ...] = ()
    peer: tuple[str, ...] = ()


CASES = (
    Case("reward", "pairs", "pairs"),
    Case("reward", "margin", "margins"),
    Case(
        "reward",
        "centring",
        "pairs",
        ("center_coefficient=0.01",),
        ("--set", "center_rewards_coefficient=0.01"),
    ),
    *(
        Case("dpo", loss, "pairs", (f"loss_type={loss}",), ("--loss-type", loss))
        for loss in ("sigmoid", "ipo", "apo_zero")
    ),
    Case(
        "dpo",
        "robust",
        "pairs",
        ("loss_type=robust", "label_smoothing=0.1"),
        ("--loss-type", "robust", "--set", "label_smoothing=0.1"),
    ),
    Case("bco", "plain", "labelled"),
    Case("bco", "UDM", "labelled", ("udm.embedding_model=reference",), ("--udm",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PEERS)
    only = parser.parse_args().only
    folder = SCRATCH / "parity" / "judged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    language, reward = start.small_models(folder)
    write_rows(folder, language)
    for stage in [only] if only else PEERS:
        model = reward if stage == "reward" else language
        cases = [case for case in CASES if case.stage == stage]
        save(f"parity_{stage}", {case.name: compared(case, folder, model) for case in cases})


def write_rows(folder: Path, model: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(model)))
    count = STEPS * BATCH
    start.write_pairs(folder / "pairs.jsonl", tokenizer, count, margin=False)
    start.write_pairs(folder / "margins.jsonl", tokenizer, count, margin=True)
    start.write_labelled(folder / "labelled.jsonl", tokenizer, count)


def compared(case: Case, folder: Path, model: Path) -> dict[str, object]:
    """Run both sides on the same rows.

    Raises:
        SystemExit: they tokenize differently, or a number differs by more than is allowed.
    """
    name, peer = f"{case.stage}, {case.name}", PEERS[case.stage]
    rows = folder / f"{case.rows}.jsonl"
    theirs = run_peer(case, folder, model, rows)
    same_tokens(name, rows, model, case.stage, theirs)
    settings = [
        f"max_length={start.LONGEST}",
        f"batch_size={BATCH}",
        f"max_steps={STEPS}",
        f"lr={LR}",
        f"train.micro_batch_tokens={MICRO_BATCH_TOKENS}",
        *case.ours,
    ]
    out = folder / f"{case.stage}_{case.name}"
    here = ours.run(case.stage, out, model, rows, settings, tuple(peer.metrics))
    return compare(name, here, {key: theirs[there] for key, there in peer.metrics.items()})


def run_peer(case: Case, folder: Path, model: Path, rows: Path) -> dict[str, Any]:
    peer = PEERS[case.stage]
    out = folder / f"{case.stage}_{case.name}.json"
    where = ["--model", str(model), "--rows", str(rows), "--out", str(out)]
    options = [*where, "--batch", str(BATCH), "--lr", str(LR), *case.peer]
    child(f"benchmarks.parity.{peer.script}", *options, path=f"build/peers/trl-{peer.version}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def same_tokens(name: str, rows: Path, model: Path, stage: str, theirs: dict[str, Any]) -> None:
    record = LabelledRecord if stage == "bco" else PreferenceRecord
    tokens, response_starts = start.our_rows(rows, model, record)
    if tokens != theirs["tokens"]:
        raise SystemExit(f"{name}: the two sides do not have the same token ids")
    if theirs.get("response_starts", response_starts) != response_starts:
        raise SystemExit(f"{name}: a response does not start at the same token on both sides")
    print(f"{name}: {len(tokens)} rows of {sum(map(len, tokens)):,} tokens, the same on both sides")


if __name__ == "__main__":
    main()
