"""A picture of what a search found: latency against drift, with the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.picture import check_picture, new_figure, write_picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from actx.exporter.search.solve import Point

_INK, _FRONT, _BUDGET, _CHOSEN = "#22303c", "#2f6fb0", "#c0392b", "#1d8348"
_EDGE = 0.08  # of the span of the times, shown beyond them
_MOST_DECADES, _FEW_DECADES = 12, 3
_ROOM = 3.0  # factor of drift, shown beyond the drifts


@dataclass(frozen=True)
class Verified:
    """A choice whose drift was measured.

    Attributes:
        saved_ms: milliseconds that it saves per inference.
        drift: measured.
        name: of the choice that was taken, empty for the others.
    """

    saved_ms: float
    drift: float
    name: str = ""


@dataclass(frozen=True)
class _Scale:
    """Where drifts lie on a logarithmic axis: 0, which has no logarithm, at its lower end."""

    low: float
    high: float

    @classmethod
    def of(cls, drifts: Sequence[float]) -> _Scale:
        above = [drift for drift in drifts if drift > 0] or [1.0]
        has_zero = len(above) < len(drifts)
        return cls(min(above) / _ROOM ** (2 if has_zero else 1), max(above) * _ROOM)

    def __call__(self, drift: float) -> float:
        return max(drift, self.low)

    def ticks(self) -> list[float]:
        """Return the powers of ten that are shown, of many only some; of few 2 and 5 times these too."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = 1 + (last - first) // _MOST_DECADES
        multiples = (1, 2, 5) if last - first <= _FEW_DECADES else (1,)
        ticks = [float(f"{multiple}e{power}") for power in range(first, last, every) for multiple in multiples]
        return [tick for tick in ticks if self.low * _ROOM / 2 <= tick < self.high]


def draw(
    front: Sequence[Point],
    verified: Sequence[Verified],
    budget: float,
    original_ms: float,
    path: Path | str,
    *,
    metric: str = "drift",
) -> None:
    """Write a picture of the front, the budget and what was verified; the same bytes for the same arguments.

    Args:
        front: of `solve.front`.
        verified: the choices whose drift was measured.
        budget: the largest drift allowed.
        original_ms: milliseconds of one inference of the original.
        path: the file to write, .png or .svg.
        metric: what the drift is called.

    Raises:
        UsageError: the path has another suffix.
        OSError: the file cannot be written.
    """
    path = check_picture(path)
    figure = new_figure(7.4, 4.8)
    axes = figure.subplots()
    scale = _Scale.of([budget, 0.0, *(point.drift for point in front), *(one.drift for one in verified)])
    _draw_frame(axes, scale, metric)
    _draw_front(axes, scale, front, original_ms)
    _draw_budget(axes, scale, budget)
    _draw_verified(axes, scale, verified, original_ms)
    if not any(one.name and one.saved_ms == 0 for one in verified):
        _draw_original(axes, scale, original_ms)
    low, high = axes.get_xlim()
    axes.set_xlim(low - _EDGE * (high - low), high + _EDGE * (high - low))
    axes.legend(loc="upper right", frameon=True, framealpha=0.92, edgecolor="none", fontsize="small")
    write_picture(figure, path)


def _draw_frame(axes: Axes, scale: _Scale, metric: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter  # noqa: PLC0415 - see picture

    axes.set_yscale("log")
    axes.set_ylim(scale.low / 1.6, scale.high)
    axes.yaxis.set_major_locator(FixedLocator([scale.low, *scale.ticks()]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if y <= scale.low else _power(y)))
    axes.minorticks_off()
    axes.set_xlabel("milliseconds per inference", color=_INK)
    axes.set_ylabel(metric, color=_INK)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.75")


def _power(drift: float) -> str:
    multiple, _, power = f"{drift:.0e}".partition("e")
    times = "" if multiple == "1" else rf"{multiple} \times "
    return rf"${times}10^{{{int(power)}}}$"


def _draw_front(axes: Axes, scale: _Scale, front: Sequence[Point], original_ms: float) -> None:
    """Draw steps: with a budget between two points, the choice is that of the smaller drift."""
    x = [original_ms - point.saved_ms for point in front]
    y = [scale(point.drift) for point in front]
    if len(front) < 2:
        return
    axes.step(x, y, where="pre", color=_FRONT, linewidth=1.6, alpha=0.9, zorder=2, label="predicted front")
    axes.plot(x, y, "o", color=_FRONT, markersize=3.5, zorder=3)


def _draw_budget(axes: Axes, scale: _Scale, budget: float) -> None:
    axes.axhline(
        scale(budget), color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1, label=f"budget {budget:g}"
    )
    axes.axhspan(scale(budget), scale.high, color=_BUDGET, alpha=0.05, linewidth=0, zorder=0)


def _draw_verified(axes: Axes, scale: _Scale, verified: Sequence[Verified], original_ms: float) -> None:
    others = [one for one in verified if not one.name]
    if others:
        x = [original_ms - one.saved_ms for one in others]
        y = [scale(one.drift) for one in others]
        axes.plot(x, y, "D", markersize=6, markerfacecolor="white", markeredgecolor=_INK, zorder=4, label="verified")
    for one in verified:
        if one.name:
            place = (original_ms - one.saved_ms, scale(one.drift))
            axes.plot(
                *place, "D", markersize=8, color=_CHOSEN, markeredgecolor="white", zorder=5, label="verified, chosen"
            )
            _name(axes, one.name, place, _CHOSEN)


def _draw_original(axes: Axes, scale: _Scale, original_ms: float) -> None:
    place = (original_ms, scale.low)
    axes.plot(*place, "s", markersize=7, color=_INK, markeredgecolor="white", zorder=5)
    _name(axes, "original", place, _INK)


def _name(axes: Axes, text: str, place: tuple[float, float], color: str) -> None:
    low, high = axes.get_xlim()
    right = place[0] > (low + high) / 2
    axes.annotate(
        text, place, (-9 if right else 9, 9), textcoords="offset points", ha="right" if right else "left",
        va="bottom", color=color, fontsize="small", fontweight="bold", zorder=6,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
