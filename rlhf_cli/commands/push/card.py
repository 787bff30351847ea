"""The model card of a result: YAML front matter and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from rlhf_cli.commands.push.facts import (
    CardFacts,
    command_line,
    metric_rows,
    without_local_paths,
)
from rlhf_cli.evaluation.intervals import Estimate
from rlhf_cli.progress import format_duration

STAGES = {
    "pretrain": "pretraining",
    "sft": "supervised fine-tuning",
    "reward": "reward modelling",
    "ppo": "proximal policy optimization",
    "grpo": "group-relative policy optimization",
    "dpo": "direct preference optimization",
    "bco": "binary classifier optimization",
    "distill": "on-policy distillation",
}


def write_card(facts: CardFacts, hub_id: str, license_name: str) -> str:
    """Text of the card.

    Args:
        facts: of the result.
        hub_id: id under which it will be found.
        license_name: licence; empty leaves the entry out.
    """
    sections = [
        _front_matter(facts, license_name),
        f"# {hub_id.rpartition('/')[2]}",
        _summary(facts),
        "## Use\n\n" + _usage(facts, hub_id),
        *_training(facts),
        *_metrics(facts),
        *_recipe(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, license_name: str) -> str:
    served = facts.served
    base = served.base if served.is_adapter else facts.base_model
    data = ModelCardData(
        library_name="peft" if served.is_adapter else "transformers",
        pipeline_tag="text-classification" if served.scores else "text-generation",
        license=license_name or None,
        base_model=base or None,
        datasets=list(dict.fromkeys(facts.datasets)) or None,
        tags=["rlhf", *dict.fromkeys(stage for stage, _ in facts.stages)],
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(facts: CardFacts) -> str:
    served = facts.served
    kind = "Reward model" if served.scores else "Language model"
    if served.is_adapter:
        kind = f"LoRA adapter of rank {served.rank} ({kind.lower()})"
    base = served.base if served.is_adapter else facts.base_model
    of = f" from [{base}](https://huggingface.co/{base})" if base else ""
    names = [STAGES.get(stage, stage) for stage, _ in facts.stages]
    by = f", trained by {', then '.join(names)}" if names else ""
    return f"{kind}{of}{by} with the command-line tool `rlhf`."


def _usage(facts: CardFacts, hub_id: str) -> str:
    return "\n\n".join([f"```python\n{_snippet(facts, hub_id)}\n```", _shell(facts, hub_id)])


def _shell(facts: CardFacts, hub_id: str) -> str:
    if facts.served.scores:
        return f"```bash\nrlhf score {hub_id} data=rows.jsonl\n```"
    return f'```bash\nrlhf generate {hub_id} prompt="Hello, you"\n```'


def _snippet(facts: CardFacts, hub_id: str) -> str:
    served = facts.served
    if served.scores:
        return _score_snippet(facts, hub_id)
    if served.is_adapter:
        load = (
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer, pipeline\n\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("{hub_id}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{hub_id}")\n'
            'generate = pipeline("text-generation", model=model, tokenizer=tokenizer)'
        )
    else:
        load = (
            "from transformers import pipeline\n\n"
            f'generate = pipeline("text-generation", model="{hub_id}")'
        )
    if served.chats:
        ask = (
            'chat = [{"role": "user", "content": "Hello, you"}]\n'
            'print(generate(chat, max_new_tokens=64)[0]["generated_text"][-1]["content"])'
        )
    else:
        ask = 'print(generate("Hello, you", max_new_tokens=64)[0]["generated_text"])'
    return f"{load}\n{ask}"


def _score_snippet(facts: CardFacts, hub_id: str) -> str:
    end = json.dumps(facts.served.ends[0] if facts.served.ends else "")
    model = (
        "AutoPeftModelForSequenceClassification"
        if facts.served.is_adapter
        else "AutoModelForSequenceClassification"
    )
    package = "peft" if facts.served.is_adapter else "transformers"
    own = "" if facts.served.is_adapter else f", {model}"
    lines = [
        "import torch",
        *([f"from peft import {model}"] if package == "peft" else []),
        f"from transformers import AutoTokenizer{own}",
        "",
        f'model = {model}.from_pretrained("{hub_id}", num_labels=1)',
        f'tokenizer = AutoTokenizer.from_pretrained("{hub_id}")',
    ]
    if facts.served.chats:
        lines += [
            'chat = [{"role": "user", "content": "Hello"}]',
            'chat += [{"role": "assistant", "content": "Hi!"}]',
            "text = tokenizer.apply_chat_template(chat, tokenize=False)",
            f"text = text[: text.rindex({end}) + len({end})]  # the score is read at the end token",
        ]
    else:
        lines += [f'text = "Hello Hi!" + {end}  # the score is read at the end token']
    lines += [
        'ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]',
        "with torch.no_grad():",
        "    print(model(ids).logits[0, 0].item())",
    ]
    return "\n".join(lines)


def _training(facts: CardFacts) -> Iterator[str]:
    found = facts.manifest
    if not found:
        return
    yield "## Training"
    command = command_line(found)
    if command:
        yield f"```bash\n{command}\n```"
    if len(facts.stages) > 1:
        yield "Chain of runs: " + " → ".join(f"{stage} ({name})" for stage, name in facts.stages)
    data = [("training", found.get("data")), ("held out", found.get("held_out_data"))]
    rows = [_data_row(role, report) for role, report in data if report]
    if rows:
        head = ("", "files", "kind", "rows", "kept", "refused or malformed", "tokens")
        yield _table([head, *rows])
    yield _table([("", ""), *_facts_of_run(found)])


def _data_row(role: str, report: Mapping[str, Any]) -> tuple[str, ...]:
    left_out = [
        f"{count.get('rows', 0)} {reason}"
        for reason, count in (report.get("refused") or {}).items()
    ]
    if report.get("malformed"):
        left_out.append(f"{report['malformed']} malformed")
    files = ", ".join(without_local_paths(name) for name in report.get("files", []))
    counts = (f"{report.get(name, 0):,}" for name in ("rows", "kept"))
    tokens = f"{report.get('tokens', 0):,}"
    return (role, files, report.get("kind", ""), *counts, "; ".join(left_out) or "none", tokens)


def _facts_of_run(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "steps" in found:
        yield "steps", f"{found['steps']:,}"
    if found.get("seconds"):
        yield "time", format_duration(found["seconds"])
    count = found.get("processes", 1)
    hardware = [found.get("device"), (found.get("machinery") or {}).get("compute")]
    hardware.append(f"{count} processes" if count > 1 else "")
    yield "hardware", ", ".join(str(part) for part in hardware if part)
    peaks = found.get("peak_memory_bytes_by_rank")
    if peaks:
        yield "peak memory", f"{max(peaks) / 1e9:.1f} GB a process"
    versions = found.get("versions") or {}
    yield "versions", ", ".join(f"{name} {value}" for name, value in versions.items())


def _metrics(facts: CardFacts) -> Iterator[str]:
    rows = metric_rows(facts.manifest)
    if rows:
        yield "## Held-out metrics"
        yield _table([("", "before", "after"), *rows])
        if any("[" in after for _, _, after in rows):
            yield "In brackets: 95 % intervals (bootstrap of the held-out examples)."
    if facts.results:
        yield "## Evaluation"
        yield _table([("", "", "value, 95 % interval", "n"), *map(_result_row, facts.results)])


def _result_row(result: Mapping[str, Any]) -> tuple[str, ...]:
    values = {name: result.get(name) for name in ("value", "low", "high")}
    plain = {name: float("nan") if value is None else value for name, value in values.items()}
    shown = Estimate(**plain, n=int(result["n"])).as_text(".4g")
    return (str(result["run"]), str(result["metric"]), shown, f"{result['n']:,}")


def _recipe(facts: CardFacts) -> Iterator[str]:
    if facts.config:
        text = without_local_paths(facts.config).rstrip()
        yield "## Recipe"
        yield f"<details><summary>All keys</summary>\n\n```yaml\n{text}\n```\n\n</details>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown table, its first row the head; a bar in a cell is escaped."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    head, *body = cells
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    plain = " ".join(str(text).split()).replace("|", "\\|")
    return plain.replace("<", "&lt;").replace("[[", "[ [")
