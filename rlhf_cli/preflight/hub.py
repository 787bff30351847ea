"""The models and rows that a configuration names: finished runs, and what is on the hub."""

from dataclasses import asdict
from os.path import exists, expanduser, isabs, isdir
from pathlib import Path
from typing import Any

from rlhf_cli.config.command import Command, load_function
from rlhf_cli.config.paths import Input, is_data_id, named_inputs
from rlhf_cli.config.schema import DataPath, ModelPath
from rlhf_cli.errors import CheckpointError, ConfigError, ModelError
from rlhf_cli.runs import hub
from rlhf_cli.runs.artifact import ADAPTER_CONFIG, find_model_folder, read_adapter_base, resolve_run


def unfinished_runs(cfg: Any) -> list[str]:
    """The line for every run that is named as a model and left none."""
    found = []
    for named in named_inputs(asdict(cfg), type(cfg)):
        if isinstance(named.kind, ModelPath) and named.names_file and isdir(named.value):
            try:
                resolve_run(Path(named.value))
            except (ModelError, CheckpointError) as error:
                found.append(f"{named.key}: got {named.value}; need a finished run; {error}")
    return found


def fetch_named(command: Command, config: Any, tree: dict[str, Any]) -> None:
    """Resolve each hub id to its commit, fetch all but the weights, and repeat the preflight.

    What the check of a configuration finds in a local folder, it finds here of what is on the hub.

    Args:
        command: that is to run.
        config: an instance of its config class; its defaults are fitted to the model.
        tree: the same as plain values.

    Raises:
        ModelError: A model cannot be fetched.
        DataError: A data set cannot be found.
        ConfigError: A model does not go with the rest of the configuration.
    """
    for named in named_inputs(tree, command.config):
        if isinstance(named.kind, DataPath):
            if is_data_id(named.value) and not exists(expanduser(named.value)):
                hub.resolve_dataset(named.value, named.beside.get(named.kind.revision, ""))
        elif isinstance(named.kind, ModelPath) and named.names_file:
            _fetch(named, named.kind)
    found = load_function(command.preflight)(config) if command.preflight else []
    if found and hub.commits():
        raise ConfigError("\n".join(dict.fromkeys(found)))


def _fetch(named: Input, kind: ModelPath) -> None:
    """Fetch a model, and the base of an adapter that is on the hub."""
    revision = named.beside.get(kind.revision, "")
    if not isdir(expanduser(named.value)):
        hub.fetch_model(named.key, named.value, revision)
    folder = find_model_folder(named.value, revision)
    if named.beside.get(kind.base) or folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return
    base, recorded = read_adapter_base(folder)
    if base and not isdir(base) and not isabs(base):
        given = named.beside.get(f"{kind.base}_revision", "")
        hub.fetch_model(f"{named.key} (its base)", base, given or recorded)
