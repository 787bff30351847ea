"""Tools: the commands of `rlhf` that take arguments of their own and no keys."""

from rlhf_cli.config.command import Tool

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
            "Look at the rows of a file as a stage reads them, check, count and convert them.",
            "rlhf_cli.commands.data.run:run",
            {
                "show FILE [key=value ...]": "Show rows as a stage reads them: trained tokens, "
                "special tokens, what truncation cut, packed examples, and why a row is left out. "
                "`row=N` and `rows=A..B` choose lines, `rows=N` the first rows; `format=json`, "
                "`format=html` and `output=FILE` give other forms; `full=true` shortens nothing. "
                "`stage=STAGE` and all keys of the stage are taken, as `model=` and "
                "`data.max_length=`; or `config=RECIPE` in place of the file.",
                "check FILE [--strict] [key=value ...]": "Look for faults of rows, tokens and "
                "masks, each with its rows and what to do. `ignore=CODES` leaves checks out, "
                "`rows=N` bounds the rows, `format=json` is for scripts. Exit code 3 for errors, 1 "
                "for warnings with --strict.",
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
            "report",
            "Write the report of a run, or compare several, as one HTML file.",
            "rlhf_cli.commands.report:run",
            {
                "RUN": "Write report.html into the folder of a run: finished, failed, still going, "
                "of an older version, or of transformers' Trainer.",
                "RUN RUN…": "Compare runs: curves over each other, keys that differ. The file is "
                "report.html in the working folder.",
                "SWEEP": "The same for the jobs of a sweep, with its table; into its folder.",
                "… output=FILE.html": "Write to this file instead. See `rlhf docs report`.",
                "… --open": "Then show it in the browser.",
            },
        ),
        Tool(
            "runs",
            "List run folders with their stage, status, steps, main metric and size.",
            "rlhf_cli.commands.runs:run",
            {
                "[FOLDER]...": "Runs in these folders and below; by default those in runs/.",
                "--json": "As a list of objects, for scripts.",
            },
        ),
        Tool(
            "agreement",
            "Compare the decisions of several raters on the same answers.",
            "rlhf_cli.commands.label.agreement:run",
            {
                "FILE FILE...": "Files of `rlhf label` or `rlhf chat`, or any file of pairs, "
                "labels or rankings. Raters are distinguished by the column `rater`, else by file. "
                "Prints raw agreement, Cohen's κ and the confusion of every two raters, and "
                "Krippendorff's α of all, with 95 % intervals.",
                "FILE": "One file with the rows of several raters.",
                "--json": "As one object, for scripts.",
            },
        ),
        Tool(
            "serve",
            "Print the commands that serve a result with other programs; nothing is started.",
            "rlhf_cli.commands.serve.run:run",
            {
                "RUN": "For transformers, vLLM, SGLang and llama.cpp, each with a request to try "
                "it; adapters and reward models too.",
                "RUN server=vllm": "For one of transformers, vllm, sglang, llama.cpp.",
                "RUN format=json": "As one object, for scripts.",
            },
        ),
        Tool(
            "push",
            "Upload a result to the Hugging Face hub, with a model card.",
            "rlhf_cli.commands.push.run:run",
            {
                "RUN to=ORG/NAME [KEY=VALUE ...]": "Upload the model folder of a finished run, or "
                "any model folder. The card has data, metrics before and after, recipe, command "
                "and versions. A new repository is private; private=false makes it public. "
                "license=NAME names the licence, by default that of the base's card. "
                "results=FILE.json adds the table of rlhf evaluate RUN output=FILE.json, with its "
                "intervals. card=replace replaces a card that the repository has, which is kept "
                "otherwise.",
                "RUN --dry-run": "Show the files and the card; nothing is sent.",
                "RUN output=CARD.md": "Write the card to a file; nothing is sent.",
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
            "completion",
            "Print the code that completes commands, keys, choices, recipes and runs in a shell.",
            "rlhf_cli.completion:run",
            {
                "bash": 'Add eval "$(rlhf completion bash)" to ~/.bashrc.',
                "zsh": 'Add eval "$(rlhf completion zsh)" to ~/.zshrc, after compinit.',
                "fish": "Run rlhf completion fish > ~/.config/fish/completions/rlhf.fish.",
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
