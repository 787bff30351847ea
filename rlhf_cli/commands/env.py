"""`rlhf env`: versions, devices, folders and environment variables of this machine."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.console import format_table
from rlhf_cli.cores import cores
from rlhf_cli.errors import ConfigError, first_line
from rlhf_cli.memory.device import machine_memory
from rlhf_cli.resources import PACKAGE, cache_folder
from rlhf_cli.runs.manifest import git_commit

PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "peft", "tokenizers", "safetensors",
    "huggingface-hub", "numpy", "hydra-core", "omegaconf",
)  # fmt: skip

EXTRAS = {
    "bitsandbytes": "quant",
    "liger-kernel": "kernels",
    "tensorboard": "track",
    "hydra-joblib-launcher": "sweep",
    "hydra-optuna-sweeper": "sweep",
    "hydra-submitit-launcher": "sweep",
}
"""Optional package -> the extra that installs it."""

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS")


def run(args: list[str]) -> None:
    """Print the facts as lines, or with `--json` as one object.

    Raises:
        ConfigError: another argument was given.
    """
    for arg in args:
        if arg != "--json":
            raise ConfigError(f"env: got {arg}; need nothing or --json. Try rlhf env --json")
    found = facts()
    print(json.dumps(found, indent=2) if args else _format_lines(found), flush=True)


def facts() -> dict[str, Any]:
    """Collect `versions`, `platform`, `computing`, `folders`, `switches` and `git_commit`."""
    checkout = PACKAGE.parent
    return {
        "versions": {"rlhf-cli": __version__, "python": platform.python_version(), **_installed()},
        "platform": platform.platform(),
        "computing": _computing(),
        "folders": _folders(),
        "switches": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "git_commit": git_commit(checkout) if (checkout / ".git").exists() else "",
    }


def _installed() -> dict[str, str | None]:
    return {name: _version(name) for name in (*PACKAGES, *EXTRAS, "triton")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _computing() -> dict[str, Any]:
    """Devices that torch finds, or the error if torch cannot be imported."""
    cpu = {"name": "CPU", "memory_gib": _gib(machine_memory()), "cores": cores()}
    try:
        import torch

        from rlhf_cli.context import bf16_support, current_device
    except (ImportError, OSError) as error:  # OSError: a CUDA library that does not load
        return {"devices": [cpu], "error": first_line(error)}
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "devices": [{"name": g.name, "memory_gib": _gib(g.total_memory)} for g in gpus] + [cpu],
        "threads": torch.get_num_threads(),
        "bf16": bf16_support(current_device()),
    }


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _folders() -> dict[str, str]:
    from huggingface_hub.constants import HF_HOME

    return {"cache": str(cache_folder()), "hf_home": HF_HOME}


def _format_lines(found: dict[str, Any]) -> str:
    computing = found["computing"]
    rows = [(name, number or _missing(name)) for name, number in found["versions"].items()]
    rows.append(("platform", found["platform"]))
    rows += [("device", _device(device)) for device in computing["devices"]]
    if "error" in computing:
        rows.append(("torch", f"cannot be imported: {computing['error']}"))
    else:
        bf16 = f"computed by {computing['bf16']}" if computing["bf16"] else _NO_BF16
        rows += [("threads", str(computing["threads"])), ("bf16", bf16)]
    folders = found["folders"]
    rows.append(("cache", f"{folders['cache']}  (RLHF_CACHE)"))
    rows.append(("hub", f"{folders['hf_home']}  (HF_HOME)"))
    switches = " ".join(f"{name}={value}" for name, value in found["switches"].items())
    rows.append(("switches", switches or f"none of {', '.join(VARIABLES)} is set"))
    if found["git_commit"]:
        rows.append(("commit", found["git_commit"]))
    return format_table([(name, str(value)) for name, value in rows])


_NO_BF16 = "no arithmetic for it here, so train.precision=auto is fp32"


def _missing(package: str) -> str:
    if package in EXTRAS:
        return f'not installed; pip install "rlhf-cli[{EXTRAS[package]}]"'
    if package == "triton":
        return "not installed; comes with torch for CUDA"
    return "not installed; pip install rlhf-cli"


def _device(device: dict[str, Any]) -> str:
    several = "" if device.get("cores") == 1 else "s"
    cores = f", {device['cores']} core{several}" if "cores" in device else ""
    return f"{device['name']}{cores}, {device['memory_gib']} GiB"
