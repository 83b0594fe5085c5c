"""What a form is to the fit step: a name, integer parameters with their ranges, and a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from actx.custom_ops.spline import Spline
    from actx.exporter.fitting.form import Form
    from actx.exporter.fitting.problem import Problem


@dataclass(frozen=True)
class Parameter:
    """An integer parameter of a form: its letter in the form's syntax and its inclusive range."""

    letter: str
    low: int
    high: int


@dataclass(frozen=True)
class Solution:
    """What a solver returns: the rounded spline and, for hardswish, the slope c of hs(c x) / c."""

    spline: Spline
    slope: float | None = None


@dataclass(frozen=True)
class Family:
    """A kind of form.

    Attributes:
        name: the word before the colon.
        parameters: what stands after the colon, joined by ``x``.
        shape: (largest number of segments, degree) for given parameters.
        solve: fits the form to a problem; None where there is nothing to fit.
        tail_degree: highest degree that a tail of this form can follow exactly.
        has_law: whether the free-knot law speaks about the form.
        continuous: whether a jump of f can not be followed.
        fixed: the table has no freedom to follow f's asymptotes, so its error may be infinite.

    """

    name: str
    parameters: tuple[Parameter, ...]
    shape: Callable[[tuple[int, ...]], tuple[int, int]]
    solve: Callable[[Problem, Form], Solution] | None
    tail_degree: Callable[[Form], int]
    has_law: bool = False
    continuous: bool = True
    fixed: bool = False

    @property
    def syntax(self) -> str:
        """The form as written, with its ranges: ``pwl:K (2 <= K <= 32)``."""
        if not self.parameters:
            return self.name
        letters = "x".join(p.letter for p in self.parameters)
        ranges = ", ".join(f"{p.low} <= {p.letter} <= {p.high}" for p in self.parameters)
        return f"{self.name}:{letters} ({ranges})"
