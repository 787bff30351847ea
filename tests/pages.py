"""Every command that the pages, the help texts and the recipes show."""

import re
from pathlib import Path

from rlhf_cli.config.help import overview, page
from rlhf_cli.registry import COMMANDS
from rlhf_cli.tools import TOOLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = ROOT / "recipes"
PAGES = [
    *sorted(ROOT.glob("[A-Z]*.md")),
    *sorted(DOCS.glob("*.md")),
    *sorted(RECIPES.glob("*/README.md")),
]
FILES = (
    "FILE",
    "chats.jsonl",
    "pairs.jsonl",
    "answers.jsonl",
    "preferences.jsonl",
    "texts.jsonl",
    "held_out.jsonl",
    "rows.jsonl",
    "table.csv",
    "labels.jsonl",
    "prompts.jsonl",
    "best.jsonl",
    "ranked.jsonl",
)
FOLDERS = (
    "folder", "texts", "runs/base", "runs/domain", "runs/sft", "runs/qsft", "runs/dpo",
    "runs/tiny/pretrain", "runs/tiny/sft", "runs/reward", "runs/student", "runs/tiny/student",
    "runs/arithmetic_grpo/sft",
)  # fmt: skip


def fenced_blocks(path: Path, language: str = "") -> list[str]:
    """Fenced code blocks of a page in one language; by default those without a language."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def page_commands() -> list[str]:
    """Commands in the code blocks of all pages."""
    return _commands(
        line for path in PAGES for text in fenced_blocks(path) for line in text.splitlines()
    )


def help_commands() -> list[str]:
    """Commands in `rlhf --help` and in the examples of each help page."""
    overall = overview(COMMANDS.values(), TOOLS.values())
    texts = [overall, *(page(command) for command in COMMANDS.values())]
    lines = (line.strip() for text in texts for line in text.splitlines() if line[:1] == " ")
    return [line for line in _commands(lines) if not {"COMMAND", "|"} & {*line.split()}]


def recipe_commands() -> list[str]:
    """Commands in the headers of the shipped recipes."""
    headers = [path.read_text().splitlines() for path in sorted(RECIPES.rglob("*.yaml"))]
    return _commands(
        line.removeprefix("#").strip()
        for header in headers
        for line in header
        if line.startswith("#   rlhf")
    )


def _commands(lines) -> list[str]:
    return list(dict.fromkeys(line for line in lines if line.startswith("rlhf ")))


def shown_only(words: list[str]) -> list[str]:
    """The words of a command that shows its configuration: less work than a dry run."""
    return [*(word for word in words if word not in ("--dry-run", "--json")), "--cfg"]


def create_files(folder: Path) -> None:
    """Create the files and folders that the commands name."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in FILES:
        (folder / name).touch()
    (folder / "judge.py").write_text("def score(prompts, responses, **columns): ...\n")
    (folder / "runs/sft/config.yaml").write_text("stage: sft\ndata: {path: tiny}\n")
    for name in ("runs/sft", "runs/dpo"):
        (folder / name / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "runs/reward/artifact.json").write_text('{"kind": "reward_model"}')
    (folder / "chats.yaml").write_text(fenced_blocks(DOCS / "start.md", "yaml")[0])
    (folder / "sft.yaml").write_text(fenced_blocks(DOCS / "configuration.md", "yaml")[0])
    (folder / "compared.jsonl").write_text(fenced_blocks(DOCS / "data.md", "jsonl")[0])
    (folder / "rankings.jsonl").write_text(fenced_blocks(DOCS / "data.md", "jsonl")[1])
