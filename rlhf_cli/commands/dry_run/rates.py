"""Speed of a device, measured without torch or taken from its datasheet."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_cli.memory.device import CPUINFO, Device

DATASHEETS: dict[str, tuple[float, float, float]] = {
    r"B200": (2250, 80, 8000),
    r"GH200": (989, 67, 4000),
    r"H200": (989, 67, 4800),
    r"H100 NVL": (835, 60, 3900),
    r"H100 PCIe": (756, 51, 2000),
    r"H100": (989, 67, 3350),
    r"H20\b": (148, 44, 4000),
    r"A100.*80GB": (312, 19.5, 2000),
    r"A[18]00": (312, 19.5, 1555),
    r"L40S": (362, 91, 864),
    r"L40\b": (181, 90, 864),
    r"L4\b": (121, 30, 300),
    r"A10G": (70, 31, 600),
    r"A10\b": (125, 31, 600),
    r"A30\b": (165, 10, 933),
    r"A40\b": (150, 37, 696),
    r"RTX 6000 Ada": (364, 91, 960),
    r"RTX A6000": (155, 39, 768),
    r"RTX 5090": (209, 105, 1792),
    r"RTX 4090": (165, 83, 1008),
    r"RTX 3090": (71, 36, 936),
    r"T4\b": (65, 8.1, 320),
    r"V100": (125, 15.7, 900),
}
"""Pattern of a GPU's name -> its datasheet: TFLOP/s in bf16 (dense, fp32 sums), TFLOP/s in fp32,
memory bandwidth in GB/s. The first that fits counts."""

USED = {"cpu": 0.4, "cuda": 0.4}
"""Share of the rate that training reaches: the rest are norms, attention's softmax, the optimizer,
copies and launches. Measured on a CPU (docs/performance.md); of a GPU's datasheet 0.3 to 0.5 is
usual."""

CPU_BF16 = {"amx_bf16": 6.0, "avx512_bf16": 3.0}
"""CPU feature -> speed of products in bf16 to that in fp32, which NumPy measures."""

SIZE = 1024
REPEATS = 3


@dataclass(frozen=True)
class Rate:
    """Speed of a device.

    Attributes:
        flops: FLOP/s that training is assumed to reach; 0 if unknown.
        bandwidth: bytes/s that are read from memory; 0 if unknown.
        source: where the numbers come from, in words.
    """

    flops: float
    bandwidth: float
    source: str


def find_rate(device: Device, itemsize: int, stated: float = 0.0) -> Rate:
    """Find the speed of a device.

    Args:
        device: that a run would use.
        itemsize: bytes of the compute type.
        stated: FLOP/s that a run reaches on it, as the user states; 0 for none.
    """
    found = _cpu_rate(itemsize) if device.kind == "cpu" else _gpu_rate(device, itemsize)
    if stated:
        return Rate(stated, found.bandwidth, f"device_flops={stated:g}")
    return found


def _gpu_rate(device: Device, itemsize: int) -> Rate:
    for pattern, (half, single, bandwidth) in DATASHEETS.items():
        if re.search(pattern, device.name):
            peak = half if itemsize == 2 else single
            used = USED["cuda"]
            return Rate(
                used * peak * 1e12,
                bandwidth * 1e9,
                f"{used:.0%} of the datasheet's {peak:g} TFLOP/s of {device.name}",
            )
    return Rate(0.0, 0.0, f"no datasheet of {device.name} here")


def _cpu_rate(itemsize: int) -> Rate:
    matrix = np.ones((SIZE, SIZE), np.float32)
    product = np.empty_like(matrix)
    flops = 2 * SIZE**3 / _best(lambda: np.matmul(matrix, matrix, out=product))
    source, target = np.ones(8 << 20, np.float32), np.empty(8 << 20, np.float32)
    bandwidth = 2 * source.nbytes / _best(lambda: np.copyto(target, source))
    feature = _bf16_feature() if itemsize == 2 else ""
    faster = CPU_BF16.get(feature, 1.0)
    used = USED["cpu"]
    measured = f"{used:.0%} of {flops / 1e9:,.0f} GFLOP/s, measured in fp32"
    assumed = f", times {faster:g} for {feature}" if feature else ""
    return Rate(used * flops * faster, bandwidth, measured + assumed)


def _bf16_feature() -> str:
    flags = Path(CPUINFO).read_text().split() if Path(CPUINFO).is_file() else []
    return next((name for name in CPU_BF16 if name in flags), "")


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    found = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)
