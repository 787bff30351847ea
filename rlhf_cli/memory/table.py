"""An estimate as a table of phases and parts."""

from collections.abc import Mapping

from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import Estimate

GB = 10**9

ORDER = (
    "policy weights",
    "reference weights",
    "value weights",
    "reward weights",
    "fp32 masters",
    "gathered weights",
    "gradients",
    "gradient buffers",
    "optimizer",
    "activations",
    "attention",
    "logits",
    "KV cache",
    "reading",
    "freed",
    "allocator",
    "framework",
)
"""Parts in the order of the table."""


def format_bytes(size: float) -> str:
    """Format bytes in GB, or in MB below a tenth of one."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def format_estimate(
    estimate: Estimate, device: Device, measured: Mapping[str, int] | None = None
) -> str:
    """Format an estimate as a table: a line for each part, a column for each phase.

    Args:
        estimate: of a command.
        device: that it would run on.
        measured: phase -> peak in bytes that was measured; adds a line.
    """
    phases = list(estimate.phases)
    found = {part for of in estimate.phases.values() for part in of}
    parts = [part for part in ORDER if part in found]
    unit = "GB" if estimate.peak[1] >= GB else "MB"
    rows = [[unit, *phases]]
    for part in parts:
        rows.append([part, *(_cell(estimate.phases[name].get(part, 0), unit) for name in phases)])
    rows.append(["all", *(_cell(estimate.total(name), unit) for name in phases)])
    if measured:
        rows.append(["measured", *(_cell(measured.get(name, 0), unit) for name in phases)])
    peak = estimate.peak[0]
    rows.append(["", *("▲ peak" if name == peak else "" for name in phases)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    notes = [*_host_lines(estimate), *(f"note: {note}" for note in estimate.notes)]
    return "\n".join([_head(estimate, device), *lines, *notes])


def _line(row: list[str], widths: list[int]) -> str:
    first, *others = (
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def _cell(size: int, unit: str) -> str:
    if not size:
        return "-"
    return f"{size / GB:.2f}" if unit == "GB" else f"{size / 1e6:.1f}"


def _shared(estimate: Estimate, device: Device) -> str:
    """How the processes divide the memory: that of a CPU, while each has a GPU of its own."""
    if estimate.processes == 1:
        return ""
    if device.kind == "cpu":
        return f" / {estimate.processes} processes"
    return f", each of {estimate.processes} processes"


def _host_lines(estimate: Estimate) -> list[str]:
    """What the processes keep in the memory of their machines."""
    if not estimate.host:
        return []
    size = sum(estimate.host.values())
    parts = ", ".join(f"{name} {format_bytes(each)}" for name, each in estimate.host.items())
    return [f"host: {format_bytes(size)} of a machine's memory for each process ({parts})"]


def _head(estimate: Estimate, device: Device) -> str:
    phase, size = estimate.peak
    whose = "device_memory" if device.stated else device.name
    shared = _shared(estimate, device)
    verdict = "fits" if estimate.fits else "does not fit"
    tokens = f", {estimate.micro_batch_tokens} tokens a pass" if estimate.micro_batch_tokens else ""
    return (
        f"memory: {format_bytes(size)} at its peak ({phase}{tokens}); {verdict} in "
        f"{format_bytes(estimate.usable)} of {format_bytes(device.total_bytes)} ({whose}{shared})"
    )
