"""What every rank of a run is to do; ranks compose no configuration and make no folder."""

import json
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rlhf_cli.config.check import check
from rlhf_cli.config.command import Command
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import hub, manifest, secrets


@dataclass(frozen=True)
class Task:
    """A stage, its resolved configuration and the folder that the first process claimed.

    The tree holds `resume` too, which the folder's `config.yaml` leaves out.
    """

    stage: str
    tree: dict[str, Any]
    out: str
    references: dict[str, str] = field(default_factory=secrets.references)

    @property
    def command(self) -> Command:
        """The stage's line in the registry."""
        return COMMANDS[self.stage]

    def prepare(self) -> None:
        """What is done once, before the ranks start: tokenizer and tokens."""
        self._call("prepare")

    def run(self) -> dict[str, Any]:
        """This rank's part of the run; rank 0 gets what the manifest tells of it."""
        summary: dict[str, Any] = self._call(self.command.runner.partition(":")[2])
        return summary

    def _call(self, function: str) -> Any:
        """Call a function of the stage's runner module, which imports torch and the rest."""
        hub.begin(manifest.commits(Path(self.out)))
        checked = check(self.command, self.tree, {})
        if checked.problems:  # on another machine a path may be missing
            raise ConfigError("\n".join(problem.text for problem in checked.problems))
        secrets.begin(self.references)
        module = import_module(self.command.runner.partition(":")[0])
        return getattr(module, function)(checked.config, Path(self.out))

    def to_json(self) -> str:
        """As text, for another process."""
        return json.dumps(asdict(self))
