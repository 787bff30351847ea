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
            "Work on files of rows: scores of responses from comparisons.",
            "rlhf_cli.commands.data:run",
            {
                "elo FILE [output=NEW.jsonl]": "Rate the `responses` of each row by its "
                "`comparisons`, and write the rows with `scores` to a file or to the screen. "
                "See `rlhf docs data`.",
            },
        ),
        Tool(
            "agreement",
            "Compare the decisions of several raters on the same answers.",
            "rlhf_cli.commands.label.agreement:run",
            {
                "FILE FILE...": "Files of `rlhf label` or `rlhf chat`, or any file of pairs, "
                "labels or rankings. Raters are told apart by the column `rater`, else by file. "
                "Prints raw agreement, Cohen's κ and the confusion of every two raters, and "
                "Krippendorff's α of all, with 95 % intervals.",
                "FILE": "One file with the rows of several raters.",
                "--json": "As one object, for scripts.",
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
            "completion",
            "Print the code that completes commands, keys, choices, recipes and runs in a shell.",
            "rlhf_cli.completion:run",
            {
                "bash": 'Add eval "$(rlhf completion bash)" to ~/.bashrc.',
                "zsh": 'Add eval "$(rlhf completion zsh)" to ~/.zshrc, after compinit.',
                "fish": "Run rlhf completion fish > ~/.config/fish/completions/rlhf.fish.",
            },
        ),
    )
}
