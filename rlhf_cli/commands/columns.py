"""Texts side by side in a terminal that is wide enough for them."""

MIN_COLUMN = 36
"""Cells of the narrowest column; on a narrower terminal texts stand one below the other."""

GAP = 2
"""Cells between two columns."""


def column_width(width: int, columns: int) -> int:
    """Cells of each of several columns."""
    return (width - GAP * (columns - 1)) // columns


def fits_columns(width: int, columns: int) -> bool:
    """Whether several texts can stand side by side."""
    return columns > 1 and column_width(width, columns) >= MIN_COLUMN
