"""The text that names a form, such as ``pwl:16``, and its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.errors import UsageError
from actx.exporter.fitting.registry import FAMILIES

if TYPE_CHECKING:
    from actx.exporter.fitting.family import Family


@dataclass(frozen=True, order=True)
class Form:
    """A family that a site can be rewritten to, with its parameters.

    Attributes:
        name: ``keep``, ``relu``, ``hardswish``, ``pwl``, ``poly``, ``spline`` or ``polynorm``.
        parameters: the numbers after the colon: (K,), (N,) or (K, D).

    """

    name: str
    parameters: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the name and the ranges.

        Raises:
            UsageError: there is no such form, or a parameter is missing or out of its range.

        """
        family = FAMILIES.get(self.name)
        if family is None or len(family.parameters) != len(self.parameters):
            raise _unknown(str(self))
        for parameter, value in zip(family.parameters, self.parameters, strict=True):
            if not parameter.low <= value <= parameter.high:
                raise _unknown(str(self))

    @classmethod
    def parse(cls, text: str) -> Form:
        """Read a form as the user writes it.

        Raises:
            UsageError: anything else than keep, relu, hardswish, pwl:K, poly:N, spline:KxD or polynorm within their ranges.

        """
        match = re.fullmatch(r"([a-z]+)(?::([1-9][0-9]{0,3}(?:x[1-9][0-9]{0,3})*))?", text)
        if match is None:
            raise _unknown(text)
        numbers = match[2].split("x") if match[2] else []
        try:
            return cls(match[1], tuple(int(n) for n in numbers))
        except UsageError:
            raise _unknown(text) from None

    def __str__(self) -> str:
        return self.name + (":" + "x".join(map(str, self.parameters)) if self.parameters else "")

    @property
    def family(self) -> Family:
        """The family, with its solver."""
        family: Family = FAMILIES[self.name]
        return family

    @property
    def segments(self) -> int:
        """Largest number of segments, tails included; 0 where nothing is fitted."""
        return self.family.shape(self.parameters)[0]

    @property
    def degree(self) -> int:
        """Degree of the segments; 0 where nothing is fitted."""
        return self.family.shape(self.parameters)[1]


def _unknown(text: str) -> UsageError:
    allowed = ", ".join(family.syntax for family in FAMILIES.values())
    return UsageError(
        f"unknown form {text!r}", note=f"allowed: {allowed}", remedy="Write for example pwl:16 or spline:16x3."
    )
