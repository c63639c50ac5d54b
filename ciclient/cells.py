"""Text measured in the columns that it takes on a terminal, where some characters take two."""

from rich.cells import cell_len, set_cell_size


def fitted(text: str, width: int) -> str:
    """Not wider than this; what was cut off leaves an ellipsis."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width, 1) - 1) + "…"


def padded(text: str, width: int) -> str:
    """Exactly this wide."""
    return set_cell_size(fitted(text, width), width)
