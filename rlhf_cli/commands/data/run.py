"""`rlhf data`: the actions on files of rows, each in a module of its own."""

from __future__ import annotations

from rlhf_cli.config.command import load_function
from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ConfigError
from rlhf_cli.torch_free import hide_torch

ACTIONS = {
    "show": "rlhf_cli.commands.data.show:run",
    "check": "rlhf_cli.commands.data.check:run",
    "stats": "rlhf_cli.commands.data.stats:run",
    "convert": "rlhf_cli.commands.data.convert:run",
    "elo": "rlhf_cli.commands.data.elo:run",
}
"""Action -> `module:function`, called with the arguments after it."""


def run(args: list[str]) -> None:
    """Run `rlhf data ACTION ARGS`; torch is not imported.

    Raises:
        ConfigError: no such action, or its arguments are invalid.
        DataError: the file cannot be read, has bad rows, or the result cannot be written.
    """
    action, *rest = args or [""]
    if action not in ACTIONS:
        needed = ", ".join(ACTIONS)
        advice = f"Try rlhf data {nearest(action, ACTIONS) or 'show'} FILE"
        raise ConfigError(f"data: got {action or 'nothing'}; need one of {needed}. {advice}")
    hide_torch()
    load_function(ACTIONS[action])(_with_format(action, rest))


AS_JSON = ("show", "check", "stats")
"""Actions with `format=json`, for which `--json` stands."""


def _with_format(action: str, words: list[str]) -> list[str]:
    """Replace `--json` by the key that it stands for.

    Raises:
        ConfigError: the action has no JSON form.
    """
    if "--json" not in words:
        return words
    if action not in AS_JSON:
        raise ConfigError(
            f"--json: data {action} prints a summary only; {', '.join(AS_JSON)} have a JSON form. "
            "Leave it out"
        )
    return [*(word for word in words if word != "--json"), "format=json"]
