"""All commands and tools of `rlhf`, and how runs of each stage are evaluated."""

from rlhf_cli.commands.config import GenerateConfig, MergeConfig
from rlhf_cli.commands.evaluate.config import EvaluateConfig
from rlhf_cli.config.command import Command, Tool
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.pretrain.config import PretrainConfig
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.stages.sft.config import SFTConfig

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "pretrain",
            PretrainConfig,
            "rlhf_cli.stages.pretrain.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "sft",
            SFTConfig,
            "rlhf_cli.stages.sft.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "reward",
            RewardConfig,
            "rlhf_cli.stages.reward.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:training",
        ),
        Command(
            "dpo",
            DPOConfig,
            "rlhf_cli.stages.dpo.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:dpo",
        ),
        Command(
            "ppo",
            PPOConfig,
            "rlhf_cli.stages.ppo.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:ppo",
            needs="reward.function=tiny/judge.py:score",
        ),
        Command(
            "bco",
            BCOConfig,
            "rlhf_cli.stages.bco.run:run",
            trains=True,
            preflight="rlhf_cli.preflight.commands:bco",
        ),
        Command(
            "generate",
            GenerateConfig,
            "rlhf_cli.commands.generate:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:generate",
            positional="model",
            examples=(
                'runs/sft prompt="Hello, you"',
                "model=tiny prompt=Hello max_new_tokens=8 --cfg",
            ),
        ),
        Command(
            "merge",
            MergeConfig,
            "rlhf_cli.commands.merge:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:merge",
            positional="model",
            examples=("runs/sft output_dir=runs/merged",),
        ),
        Command(
            "evaluate",
            EvaluateConfig,
            "rlhf_cli.commands.evaluate.run:run",
            trains=False,
            preflight="rlhf_cli.preflight.commands:evaluate",
            positional="model",
            more="beside",
            examples=(
                "runs/sft",
                "runs/base runs/sft data=held_out.jsonl output=results.json",
                "runs/dpo baseline=runs/sft judge=judge.py:score prompts=prompts.jsonl",
                "runs/dpo baseline=runs/sft judge=tiny/judge.py:score prompts=tiny",
            ),
        ),
    )
}

EVALUATORS = {
    "pretrain": "rlhf_cli.stages.likelihood:open_likelihood_evaluation",
    "sft": "rlhf_cli.stages.likelihood:open_likelihood_evaluation",
    "reward": "rlhf_cli.stages.reward.run:open_evaluation",
    "dpo": "rlhf_cli.stages.dpo.run:open_evaluation",
    "ppo": "rlhf_cli.stages.ppo.evaluate:open_evaluation",
    "bco": "rlhf_cli.stages.bco.run:open_evaluation",
}
"""Stage -> `module:function`, which opens the rows that a run of the stage is measured on.

Called with the run's configuration, whose `model.path` is its result and whose `data.eval` are the
rows, and the stage's name; returns a `stages.evaluation.Evaluation`, which is called with the
context to load the model and measure it.
"""

TOOLS = {
    tool.name: tool
    for tool in (
        Tool(
            "recipes",
            "List the shipped recipes, print one, or copy one to change it.",
            "rlhf_cli.commands.shipped:run_recipes",
            {
                "ls": "Name and purpose of each; `rlhf recipes` alone does the same.",
                "show NAME": "Print the file.",
                "cp NAME [TARGET]": "Copy the file, by default into the working folder. Nothing is "
                "overwritten. Paths in it go on to mean what they mean in the shipped file.",
            },
        ),
        Tool(
            "data",
            "Look at the rows of a file as a stage reads them, count them, convert them.",
            "rlhf_cli.commands.data.run:run",
            {
                "show FILE [key=value ...]": "Show rows as a stage reads them: trained tokens, "
                "special tokens, what truncation cut, packed examples, and why a row is left out. "
                "`row=N` and `rows=A..B` choose lines, `rows=N` the first rows; `format=json`, "
                "`format=html` and `output=FILE` give other forms; `full=true` shortens nothing. "
                "`stage=STAGE` and all keys of the stage are taken, as `model=` and "
                "`data.max_length=`; or `config=RECIPE` in place of the file.",
                "stats FILE [key=value ...]": "Count rows, reasons of refusal, lengths, "
                "truncation, turns, labels and margins. Keys as above; `format=json`.",
                "convert SOURCE TARGET.jsonl [key=value ...]": "Write rows in another layout: "
                "`to=records` (ours), `trl`, `alpaca`, `sharegpt` or `llama_factory`. `from=` "
                "names the layout to expect, `pairs=all`, `best_worst` or `adjacent` makes pairs "
                "of rankings, `transcripts=messages` makes messages of text with turn marks.",
                "elo FILE [output=NEW.jsonl]": "Rate the `responses` of each row by its "
                "`comparisons`, and write the rows with `scores` to a file or to the screen. "
                "See `rlhf docs data`.",
            },
        ),
        Tool(
            "env",
            "Show what a run finds here: versions, devices, folders and switches.",
            "rlhf_cli.commands.env:run",
            {
                "": "As lines, for a look or a bug report.",
                "--json": "As one object, for scripts.",
            },
        ),
        Tool(
            "schema",
            "Print the JSON Schema of recipes, with which editors complete and check them.",
            "rlhf_cli.commands.schema:run",
            {
                "": "For a recipe of any command; its key `stage` selects the command. Shipped "
                "recipes name this schema in their first line.",
                "COMMAND": "For the recipes of one command. Save it with "
                "`rlhf schema sft > sft.schema.json`, and begin a recipe with "
                "`# yaml-language-server: $schema=sft.schema.json`, a path relative to the recipe. "
                "Editors with yaml-language-server (VS Code's YAML extension, Neovim, Emacs) read "
                "that line; in JetBrains IDEs add the file under JSON Schema Mappings.",
            },
        ),
        Tool(
            "docs",
            "List the pages of the documentation, or print one.",
            "rlhf_cli.commands.shipped:run_docs",
            {"": "Name and title of each page.", "NAME": "Print the page, as in `rlhf docs data`."},
        ),
    )
}
