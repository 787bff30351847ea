"""The configuration that a run was made with, read back from its folder."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_cli.config.check import ConfigProblem, check
from rlhf_cli.config.recipe import read
from rlhf_cli.config.references import with_unset_as_text
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import manifest
from rlhf_cli.runs.contents import CONFIG

# A run's result does not need what it was made from, which may be gone.
_MAY_BE_GONE = ("model.path", "model.base", "model.tokenizer", "model.chat_template")


@dataclass(frozen=True)
class Settings:
    """What a run was made with.

    Attributes:
        stage: the command.
        config: an instance of its config class; paths that are gone are left empty in it.
        gone: the line for each path of data that is no longer there.
        commits: `ID@REVISION` -> commit of what it used of the hub.
    """

    stage: str
    config: Any
    gone: list[ConfigProblem]
    commits: dict[str, str] = field(default_factory=dict)


def read_settings(model: str) -> Settings | None:
    """The settings of a run, given its folder or the model folder inside; none for other models.

    Raises:
        ConfigError: The file cannot be read, or a value is none of today's.
    """
    path = Path(model).expanduser()
    file = (path.parent if path.name == "model" else path) / CONFIG
    if not model or not file.is_file():
        return None
    found = read(file, str(file))
    if found.stage not in COMMANDS:
        return None
    command = COMMANDS[found.stage]
    # a key that was added since has what is its default now
    whole = OmegaConf.merge(asdict(command.config()), with_unset_as_text(found.values))
    tree: Any = OmegaConf.to_container(whole, resolve=True)
    checked = check(command, tree, {}, commands=COMMANDS, whole=False)
    gone = [problem for problem in checked.problems if problem.about_data]
    other = [
        f"{file}: {problem.text}"
        for problem in checked.problems
        if not problem.about_data and problem.key not in _MAY_BE_GONE
    ]
    if other:
        raise ConfigError("\n".join(other))
    return Settings(found.stage, checked.config, gone, manifest.commits(file.parent))
