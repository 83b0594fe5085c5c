"""Adaptive piecewise linear units: max(0, x) + sum_s a_s max(0, b_s - x) (Agostinelli et al., arXiv 1412.6830).

Every continuous piecewise linear function whose right tail is x is one. Its lines are found by bisection, and its hinges
are where neighbouring lines meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.definition import Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actx.custom_ops.definition import Array, Probe

_END = 6e4
_ROUNDING = 1e-12  # of float64 evaluation, relative to 1 + |x| + |f(x)|
_SAME = 1e-9  # lines whose slopes differ by less are one
# Where an interval is looked at: all over it, and ever closer to its ends, where another part may begin.
_CLOSER = 2.0 ** -np.arange(1, 28)
_WITHIN = np.unique(np.concatenate([[0.0, 1.0], 0.6180339887 * np.arange(1, 41) % 1, _CLOSER, 1 - _CLOSER]))
_STARTS = ((-_END, -16.0), (-16.0, 16.0), (16.0, _END))
_MIDDLE = 0.4837  # where an interval is divided: kinks are found at round numbers
_EDGE = 1 / 64  # of an interval: the stretches at its ends from which their lines are taken
_BUDGET = 400  # intervals looked at: of a smooth function there is no end
_NARROW = 1e-10
_NEAR = 1e-6  # of the place where f changes to where its lines meet


@dataclass(frozen=True)
class _Line:
    """What f is from `low` to the next line's `low`."""

    low: float
    slope: float
    offset: float


def _apl(x: Array, **parameters: Any) -> Array:
    y = np.maximum(x, 0)
    for i in range(1, len(parameters) // 2 + 1):
        y = y + parameters[f"a{i}"] * np.maximum(parameters[f"b{i}"] - x, 0)
    return y


def _infer(f: Probe, _: float) -> Mapping[str, float] | None:
    """Return a1, .., b1, .. with the hinges b ascending."""
    right = _line(f, _END / 2, _END)
    if right is None or abs(right.slope - 1) > _SAME or abs(right.offset) > _SAME or _line(f, -_END, -_END / 2) is None:
        return None
    lines = _lines(f)
    if not lines:
        return None
    kinks = {_meeting(left, right): right.slope - left.slope for left, right in pairwise(lines)}
    if any(abs(kink - line.low) > _NEAR * (1 + abs(kink)) for kink, line in zip(kinks, lines[1:], strict=True)):
        return None
    at_zero = next((kink for kink in kinks if abs(kink) <= _SAME), 0.0)
    kinks[0.0] = kinks.pop(at_zero, 0.0) - 1  # that of max(0, x) itself
    hinges = sorted((b, a) for b, a in kinks.items() if abs(a) > _SAME)
    slopes = {f"a{i}": a for i, (_, a) in enumerate(hinges, 1)}
    return slopes | {f"b{i}": b for i, (b, _) in enumerate(hinges, 1)}


def _meeting(left: _Line, right: _Line) -> float:
    return (left.offset - right.offset) / (right.slope - left.slope)


def _lines(f: Probe) -> list[_Line]:
    """Return the lines of f from left to right; none where it has other parts, or jumps."""
    found: list[_Line] = []
    pending = list(reversed(_STARTS))
    for _ in range(_BUDGET):
        if not pending:
            return _merged(found)
        low, high = pending.pop()
        lines = _between(f, low, high)
        if lines is not None:
            found.extend(lines)
        elif high - low <= _NARROW * (1 + abs(low)):
            return []
        else:
            middle = low + _MIDDLE * (high - low)
            pending += [(middle, high), (low, middle)]
    return []


def _between(f: Probe, low: float, high: float) -> list[_Line] | None:
    """Return the one line that f is on an interval, or the two with a kink between them; None where it has more."""
    line = _line(f, low, high)
    if line is not None:
        return [line]
    edge = _EDGE * (high - low)
    first, last = _line(f, low, low + edge), _line(f, high - edge, high)
    if first is None or last is None or abs(first.slope - last.slope) <= _SAME:
        return None
    kink = _meeting(first, last)
    if not low < kink < high:
        return None
    before, behind = _line(f, low, kink), _line(f, kink, high)
    return None if before is None or behind is None else [before, behind]


def _line(f: Probe, low: float, high: float) -> _Line | None:
    x = low + _WITHIN * (high - low)
    y = np.asarray(f(x), dtype=np.float64)
    if not np.isfinite(y).all():
        return None
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    error = np.abs(y[0] + slope * (x - x[0]) - y)
    if (error > _ROUNDING * (1 + np.abs(x).max() + np.abs(y).max())).any():
        return None
    return _Line(low, float(slope), float(y[0] - slope * x[0]))


def _merged(lines: list[_Line]) -> list[_Line]:
    """Join neighbours that are one line: an interval was divided there, not the function."""
    kept = lines[:1]
    for line in lines[1:]:
        if abs(line.slope - kept[-1].slope) > _SAME:
            kept.append(line)
    return kept


APL = Family(
    "apl",
    _apl,
    _infer,
    {"a1": 0.2, "a2": -0.1, "b1": -0.5, "b2": 1.0},
    text="max(0, x) + sum_s a_s max(0, b_s - x), b ascending",
    source="arXiv 1412.6830",
)
