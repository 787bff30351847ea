"""Presets: files of the keys of a group, chosen by name; shipped, or the user's own.

A user's own preset is `GROUP/NAME.yaml` in a folder of `RLHF_CONFIGS`, or in `configs` beside the
recipe. It must not have the name of a shipped one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from rlhf_cli.config.recipe import Recipe, read
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import presets as shipped_presets
from rlhf_cli.resources import shipped_folder

FOLDERS = "RLHF_CONFIGS"
"""Environment variable: folders of presets, separated as in PATH."""

BESIDE = "configs"
"""Folder of presets beside a recipe."""


def preset_files(group: str, folders: Iterable[Path] = ()) -> dict[str, Path]:
    """Name -> file of each preset of a group.

    Args:
        group: as `adapter`.
        folders: searched before those of `RLHF_CONFIGS`; of two own presets with one name, the
            first is taken.
    """
    found = {
        name: shipped_folder("configs") / group / f"{name}.yaml" for name in shipped_presets(group)
    }
    for folder in _own_folders(folders):
        for file in sorted((folder / group).glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def _own_folders(folders: Iterable[Path]) -> list[Path]:
    named = os.environ.get(FOLDERS, "").split(os.pathsep)
    return [*folders, *(Path(os.path.expanduser(name)) for name in named if name)]


def read_own_preset(group: str, name: str, folders: Iterable[Path] = ()) -> Recipe | None:
    """Read a user's own preset; None for a shipped one.

    Raises:
        ConfigError: The file is not a YAML mapping, has keys that only a recipe can have, or has
            the name of a shipped preset.
    """
    own = [folder / group / f"{name}.yaml" for folder in _own_folders(folders)]
    file = next((file for file in own if file.is_file()), None)
    if file is None:
        return None
    shown = os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)
    if name in shipped_presets(group):
        raise ConfigError(
            f"{group}: got {name}, which is a shipped preset and {shown}; need one of the two. "
            f"Rename the file, then try {group}=my_{name}"
        )
    found = read(file, shown)
    for key, value in (("stage", found.stage), ("base", found.base), ("vars", found.variables)):
        if value:
            raise ConfigError(
                f"{group}={name}: {shown} sets {key}, which only a recipe can set; need keys of "
                f"{group}. Leave {key} out of the file"
            )
    return found
