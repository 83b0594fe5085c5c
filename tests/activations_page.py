"""The table and the drawings of docs/activations.md, written from the catalogue: `python tests/activations_page.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actx.custom_ops import ACTIVATIONS, FAMILIES, Activation
from actx.exporter.certificate import certify
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Fit, Form, fit

if TYPE_CHECKING:
    from numpy.typing import NDArray

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "activations.md"
DRAWINGS = DOCS / "activations"
FORM = Form.parse("spline:16x3")
NARROW = (-8.0, 8.0)
# Of a drawing, in its own units: the function above, the error below.
WIDTH, ABOVE, BELOW, GAP = 120.0, 44.0, 20.0, 4.0
SHOWN = (-6.0, 6.0)
POINTS = 121

TABLE = re.compile(r"(?<=\|---\|---\|---\|---\|---\|---\|---\|\n)(?:\|[^\n]*\n)+")


@dataclass(frozen=True)
class Entry:
    """A row of the page and its drawing."""

    activation: Activation
    fit: Fit


def entry(name: str) -> Entry:
    """Fit one activation: everywhere, or where its tails do not allow that on `NARROW`."""
    activation = ACTIVATIONS[name]
    try:
        return Entry(activation, fit(activation, FORM))
    except ActxError:
        return Entry(activation, fit(activation, FORM, interval=NARROW))


def row(found: Entry) -> str:
    """Return the line of the table."""
    activation, fitted = found.activation, found.fit
    pairs = zip(activation.parameters, activation.defaults, strict=True)
    parameters = ", ".join(f"{name} = {value:.4g}" for name, value in pairs)
    if activation.name in FAMILIES:
        parameters += ", for example"
    cells = (
        f"`{activation.name}`", activation.text, parameters, activation.source,
        f"![{activation.name} and its error](activations/{activation.name}.svg)", _near(found), _everywhere(fitted),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def _near(found: Entry) -> str:
    if found.fit.exact:
        return "exact"
    x = np.linspace(*NARROW, 20_001)
    expected = float(np.abs(found.activation(x) - found.fit.spline(x)).max())
    proved = certify(found.activation, found.fit.spline, NARROW, expected=expected)
    assert proved is not None
    return f"{proved.error:.1e}"


def _everywhere(fitted: Fit) -> str:
    if fitted.bounds is not None:
        return "fitted on [-8, 8]"
    assert fitted.certificate is not None
    return f"{fitted.certificate.error:.1e}"


def drawing(found: Entry) -> str:
    """Return an SVG image of a few kilobytes, the same for the same fit."""
    x = np.linspace(*SHOWN, POINTS)
    with np.errstate(all="ignore"):
        y = np.asarray(found.activation(x), dtype=np.float64)
    error = np.asarray(found.fit.spline(x), dtype=np.float64) - y
    if found.fit.exact:
        error = np.zeros_like(error)
    low, high = min(0.0, float(y.min())), min(max(float(y.max()), 0.0), 6.0)
    largest = float(np.abs(error).max()) or 1.0
    lines = (
        _line("#888", 0.5, np.array([0.0, WIDTH]), np.full(2, _place(np.zeros(1), low, high, 0, ABOVE)[0])),
        _line("#888", 0.5, np.full(2, WIDTH / 2), np.array([0.0, ABOVE])),
        _line("#1f77b4", 1.5, _across(x), _place(np.minimum(y, high), low, high, 0, ABOVE)),
        _line("#888", 0.5, np.array([0.0, WIDTH]), np.full(2, ABOVE + GAP + BELOW / 2)),
        _line("#d62728", 1.0, _across(x), _place(error, -largest, largest, ABOVE + GAP, BELOW)),
    )
    height = ABOVE + GAP + BELOW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{height:g}" viewBox="0 0 {WIDTH:g} {height:g}">'
    return "\n".join([head, f"<title>{found.activation.name}</title>", *lines, "</svg>", ""])


def _across(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x - SHOWN[0]) / (SHOWN[1] - SHOWN[0]) * WIDTH


def _place(y: NDArray[np.float64], low: float, high: float, top: float, height: float) -> NDArray[np.float64]:
    """Return heights in the drawing, with a margin of one unit."""
    return top + 1 + (height - 2) * (high - y) / (high - low)


def _line(colour: str, width: float, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y + 0.0, strict=True))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="{width:g}" points="{points}"/>'


def write() -> None:
    """Write the page and its drawings."""
    DRAWINGS.mkdir(exist_ok=True)
    for old in DRAWINGS.glob("*.svg"):
        old.unlink()
    found = [entry(name) for name in ACTIVATIONS]
    for one in found:
        (DRAWINGS / f"{one.activation.name}.svg").write_text(drawing(one), encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    rows = "".join(map(row, found))
    PAGE.write_text(TABLE.sub(lambda _: rows, text, count=1), encoding="utf-8")


if __name__ == "__main__":
    write()
