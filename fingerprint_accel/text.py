"""Format text for the terminal.

This module imports no other module of the package.
"""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], words: int | None = None) -> str:
    """Format rows of text cells as a table with aligned columns.

    Args:
        rows: Rows with the same number of cells.
        words: The first `words` columns are aligned to the left, and the other columns to the right. By default all
            columns are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) if words is None else words
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if place < words else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def printable(text: str) -> str:
    """Replace each character that cannot be printed, such as a line break or an escape code, by U+FFFD."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
