"""Pictures in files that are the same from run to run.

Matplotlib is imported where something is drawn: it takes a second, and few commands draw.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from actx.exporter.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_picture(path: Path | str) -> Path:
    """Return the path of a picture to be.

    Raises:
        UsageError: its suffix is neither .png nor .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"cannot draw to {path.name}", note=f"allowed suffixes: {', '.join(_FORMATS)}", remedy="Rename the output."
        )
    return path


def write_picture(figure: Figure, path: Path | str) -> None:
    """Write a figure; the same bytes for the same figure.

    Raises:
        UsageError: see `check_picture`.
        OSError: the file cannot be written.
    """
    from matplotlib import rc_context

    path = check_picture(path)
    # The salt and the empty date keep the file the same from run to run.
    with rc_context({"svg.hashsalt": "actx"}):
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)
