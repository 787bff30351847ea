"""Memory of the device, and sizes as text."""

import pytest

from rlhf_cli.config.sizes import parse_size, size_problems
from rlhf_cli.errors import ConfigError
from rlhf_cli.memory import device
from rlhf_cli.memory.device import find_device, machine_memory, stated_gpu


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 * 10**9),
        ("24G", 24 * 10**9),
        ("22.5GiB", int(22.5 * 2**30)),
        ("800 mb", 8 * 10**8),
        ("1TB", 10**12),
        ("0GB", None),
        ("GB", None),
        ("24 apples", None),
        ("-1GB", None),
        ("iB", None),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size
    assert bool(size_problems("device_memory", text)) == (size is None)


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    whole = machine_memory()
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine_memory() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory() == whole


def test_the_memory_of_a_device_can_be_stated():
    found = find_device("3GB")
    assert (found.total_bytes, found.stated) == (3 * 10**9, True)
    assert stated_gpu("24GB").kind == "cuda"
    with pytest.raises(ConfigError, match="device_memory"):
        find_device("much")


def test_nvidia_smi_names_the_gpu_that_is_visible(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$*" in *--id=1*) echo "NVIDIA H200, 143771, 9.0";; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    device._find_gpu.cache_clear()
    found = find_device()
    device._find_gpu.cache_clear()
    assert (found.name, found.kind, found.total_bytes) == ("NVIDIA H200", "cuda", 143771 << 20)
    assert found.bf16
