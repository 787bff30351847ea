"""`rlhf schema`: the JSON Schema of recipes, for editors."""

import json

from rlhf_cli.config.json_schema import recipe_schema
from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS


def run(words: list[str]) -> None:
    """Print the schema of one command's recipes, or of all.

    Raises:
        ConfigError: The arguments name no command.
    """
    if len(words) > 1:
        raise ConfigError(
            f"schema: got {' '.join(words)}; need one command. See rlhf schema --help"
        )
    unknown = [word for word in words if word not in COMMANDS]
    if unknown:
        close = nearest(unknown[0], COMMANDS) or "sft"
        needed = ", ".join(COMMANDS)
        raise ConfigError(
            f"schema: got {unknown[0]}; need one of {needed}. Try rlhf schema {close}"
        )
    chosen = [COMMANDS[word] for word in words] or list(COMMANDS.values())
    print(format_schema(recipe_schema(chosen)), end="", flush=True)


def format_schema(schema: dict[str, object]) -> str:
    """The schema as the text of its file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
