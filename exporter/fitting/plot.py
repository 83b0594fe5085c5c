"""A picture of a fit: both curves with the knots above, the signed error below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from actx.exporter.picture import check_picture, new_figure, write_picture

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from actx.exporter.fitting.fitting import Fit
    from actx.exporter.fitting.problem import Function

_POINTS = 4001
_MARGIN = 0.25  # of the stretch between the outer knots, shown beyond them
_LEAST_MARGIN = 1.0


def draw(fit: Fit, function: Function, name: str, path: Path | str) -> None:
    """Write a picture of f, s and s - f; the same bytes for the same fit.

    Args:
        fit: the result of `fit`.
        function: the function that was fitted, float64 to float64.
        name: how to call the function in the title.
        path: the file to write, .png or .svg.

    Raises:
        UsageError: the path has another suffix.
        OSError: the file cannot be written.

    """
    path = check_picture(path)
    figure = new_figure(7.0, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = _points(fit)
    with np.errstate(all="ignore"):
        f = np.asarray(function(x), dtype=np.float64)
    _draw_curves(above, fit, x, f, name)
    _draw_error(below, fit, x, fit.spline(x) - f)
    write_picture(figure, path)


def _points(fit: Fit) -> NDArray[np.float64]:
    """Sample the fit's interval; on all of R, the stretch in which the knots and the largest error are."""
    knots = fit.spline.knots.astype(np.float64)
    if np.isfinite(fit.interval).all():
        low, high = fit.interval
    else:
        marks = [*knots.tolist(), 0.0]
        margin = max(_MARGIN * (max(marks) - min(marks)), min(_LEAST_MARGIN, 2 * (max(marks) - min(marks)) or 1.0))
        low, high = min(marks) - margin, max(marks) + margin
    inside = knots[(knots > low) & (knots < high)]
    # Just before each knot too, so that a jump is drawn as one.
    before = np.nextafter(inside.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    return np.unique(np.concatenate([np.linspace(low, high, _POINTS), inside, before]))


def _draw_curves(axes: Axes, fit: Fit, x: NDArray[np.float64], f: NDArray[np.float64], name: str) -> None:
    knots = fit.spline.knots.astype(np.float64)
    axes.plot(x, f, color="0.6", linewidth=4, label=name)
    axes.plot(x, fit.spline(x), color="C0", linewidth=1.3, label=str(fit.form))
    axes.plot(knots, fit.spline(knots), "o", color="C3", markersize=4, label=f"{len(knots)} knots")
    axes.set_title(f"{name} as {fit.form}: largest error {fit.max_error:.3g}{_ratio(fit)}", fontsize="medium")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)


def _ratio(fit: Fit) -> str:
    ratio = fit.ratio
    if ratio is None:
        return ""
    return " (exact)" if ratio == "exact" else f" ({ratio:.2f} of the free-knot law)"


def _draw_error(axes: Axes, fit: Fit, x: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    axes.plot(x, error, color="C0", linewidth=1.0)
    if np.isfinite(fit.max_error):
        for sign in (-1, 1):
            axes.axhline(sign * fit.max_error, color="C3", linewidth=0.8, linestyle="--")
    for knot in fit.spline.knots.tolist():
        axes.axvline(knot, color="0.85", linewidth=0.6, zorder=0)
    axes.set_xlim(float(x[0]), float(x[-1]))
    axes.set_xlabel("x")
    axes.set_ylabel("s(x) - f(x)")
    axes.grid(alpha=0.25, axis="y")
