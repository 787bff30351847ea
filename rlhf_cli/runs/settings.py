"""Configuration of an earlier run, read from its folder."""

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
from rlhf_cli.runs.run_files import CONFIG

# A run's result does not need the files that it was made from.
_MAY_BE_GONE = ("model.path", "model.base", "model.tokenizer", "model.chat_template")


@dataclass(frozen=True)
class Settings:
    """Settings of an earlier run.

    Attributes:
        stage: the command.
        config: instance of its config class; paths that no longer exist are empty.
        gone: the problem of each data path that no longer exists.
        commits: `ID@REVISION` -> commit of the hub repositories it used.
    """

    stage: str
    config: Any
    gone: list[ConfigProblem]
    commits: dict[str, str] = field(default_factory=dict)


def read_settings(model: str) -> Settings | None:
    """Read the settings of a run from its folder or the model folder in it; None if it is no run.

    Raises:
        ConfigError: `config.yaml` cannot be read, or a value is no longer valid.
    """
    path = Path(model).expanduser()
    file = (path.parent if path.name == "model" else path) / CONFIG
    if not model or not file.is_file():
        return None
    found = read(file, str(file))
    if found.stage not in COMMANDS:
        return None
    command = COMMANDS[found.stage]
    # a key that did not exist then takes its present default
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
