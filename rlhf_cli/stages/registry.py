"""The stages and verbs of the command line: a name, its config and where its code is.

The runner is named, not imported: the command line checks a config before torch is loaded.
"""

from dataclasses import dataclass
from typing import Any

from rlhf_cli.stages.pretrain.config import PretrainConfig
from rlhf_cli.stages.sft.config import SFTConfig
from rlhf_cli.verbs.config import GenerateConfig, MergeConfig


@dataclass(frozen=True)
class Command:
    """A word after `rlhf`: its config class and the `module:function` that runs it."""

    name: str
    config: type[Any]
    runner: str
    trains: bool


COMMANDS = {
    command.name: command
    for command in (
        Command("pretrain", PretrainConfig, "rlhf_cli.stages.pretrain.run:run", trains=True),
        Command("sft", SFTConfig, "rlhf_cli.stages.sft.run:run", trains=True),
        Command("generate", GenerateConfig, "rlhf_cli.verbs.generate:run", trains=False),
        Command("merge", MergeConfig, "rlhf_cli.verbs.merge:run", trains=False),
    )
}
