"""Two series of losses and gradient norms, side by side."""

TOLERANCE = 1e-4
"""Relative to the value; fp32 sums in another order differ by about 1e-6."""


def compare(
    name: str, ours: dict[str, list[float]], peer: dict[str, list[float]]
) -> dict[str, object]:
    """Print the largest and mean difference of each series.

    Raises:
        SystemExit: a series has another length, or differs by more than the tolerance.
    """
    result: dict[str, object] = {"ours": ours, "peer": peer}
    for key, values in ours.items():
        pairs = list(zip(values, peer[key], strict=True))
        off = [abs(a - b) / max(abs(b), 1.0) for a, b in pairs]
        result[f"{key}_largest"], result[f"{key}_mean"] = max(off), sum(off) / len(off)
        print(
            f"{name}: {key} of {len(off)} steps, first {pairs[0][0]:.6f} and {pairs[0][1]:.6f}, "
            f"last {pairs[-1][0]:.6f} and {pairs[-1][1]:.6f}; "
            f"largest difference {max(off):.1e}, mean {sum(off) / len(off):.1e}"
        )
        if max(off) > TOLERANCE:
            raise SystemExit(f"{name}: {key} differs by more than {TOLERANCE:g}")
    return result
