"""What a configuration names on the hub, resolved to commits and checked before any is loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from os.path import exists, expanduser, isabs, isdir
from typing import Any, get_args, get_origin

from rlhf_cli.config.check import check
from rlhf_cli.config.paths import is_data_id
from rlhf_cli.config.schema import DataPath, ModelPath, field_types, is_group, unmark
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs import hub
from rlhf_cli.runs.artifact import ADAPTER_CONFIG, find_model_folder, read_adapter_base
from rlhf_cli.stages.registry import Command


@dataclass(frozen=True)
class Named:
    """A value of a configuration that names a model or rows.

    Attributes:
        key: dotted.
        path: folder, file, finished run or hub id.
        revision: of a hub id; empty is the default branch.
        rows: it names rows, not a model.
        base: of a model that is an adapter, where the configuration says what it stands on.
        base_revision: of a base on the hub.
    """

    key: str
    path: str
    revision: str = ""
    rows: bool = False
    base: str = ""
    base_revision: str = ""


def fetch_named(command: Command, config: Any, tree: dict[str, Any]) -> None:
    """Resolve each hub id to its commit, fetch all but its weights, and check what it tells.

    What the check of a configuration finds in a local folder, it finds here of what is on the hub.

    Args:
        command: that is to run.
        config: an instance of its config class; its defaults are fitted to the model.
        tree: the same as plain values.

    Raises:
        ModelError: a model cannot be fetched.
        DataError: a data set cannot be found.
        ConfigError: a model does not go with the rest of the configuration.
    """
    for named in names(config):
        if named.rows:
            hub.resolve_dataset(named.path, named.revision)
        else:
            _fetch(named)
    if hasattr(config, "fit_to_model"):
        config.fit_to_model()
    problems = check(command, tree, {}).problems if hub.commits() else []
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problem.text for problem in problems)))


def _fetch(named: Named) -> None:
    """Fetch a model, and the base of an adapter that is on the hub."""
    if not isdir(expanduser(named.path)):
        hub.fetch_model(named.key, named.path, named.revision)
    folder = find_model_folder(named.path, named.revision)
    if named.base or folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return
    base, recorded = read_adapter_base(folder)
    if base and not isdir(base) and not isabs(base):
        hub.fetch_model(f"{named.key} (its base)", base, named.base_revision or recorded)


def names(config: Any, prefix: str = "") -> Iterator[Named]:
    """The models in the fields of a configuration, and rows on the hub."""
    for name, annotation in field_types(type(config)).items():
        value, (kind, marks) = getattr(config, name), unmark(annotation)
        mark = next((mark for mark in marks if isinstance(mark, ModelPath | DataPath)), None)
        if mark is not None:
            listed = value if isinstance(value, list) else [value]
            for item in listed:
                yield from _named(config, prefix + name, item, mark)
        elif is_group(kind):
            yield from names(value, f"{prefix}{name}.")
        elif get_origin(kind) is list and is_group(get_args(kind)[0]):
            for index, item in enumerate(value):
                yield from names(item, f"{prefix}{name}[{index}].")


def _named(config: Any, key: str, item: Any, mark: ModelPath | DataPath) -> Iterator[Named]:
    revision = getattr(config, mark.revision) if mark.revision else ""
    if isinstance(mark, DataPath):
        path = item if isinstance(item, str) else getattr(item, "path", "")
        own = getattr(item, "revision", "") or revision
        if is_data_id(path) and not exists(expanduser(path)):
            yield Named(key, path, own, rows=True)
    elif item not in ("", SHIPPED, *mark.words):
        base = getattr(config, mark.base) if mark.base else ""
        base_revision = getattr(config, f"{mark.base}_revision") if mark.base else ""
        yield Named(key, item, revision, False, base, base_revision)
