"""Rational activations (Molina et al., Pade activation units, arXiv 1907.06732) in the versions that are in use.

    rational_a: P / (1 + sum |b_i x^i|)        rational_b: P / (1 + |sum b_i x^i|), which D is at inference
    rational_c: P / (0.1 + |sum b_i x^i|), i from 0

with P = sum a_i x^i. Values of such a function tell its coefficients badly, where P and Q nearly have a factor in common;
its own arithmetic tells them exactly. So the function is evaluated on a `Quotient` of polynomials, which takes what a
rational function may be written in, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.polynomial import polynomial

from actx.custom_ops.definition import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actx.custom_ops.definition import Array, Probe

Version: TypeAlias = Literal["a", "b", "c"]

_MAX_DEGREE = 32
_NEAR_TENTH = 2.0**-8  # a rounding of 0.1 in the coarsest type


@dataclass(frozen=True)
class _Sum:
    """A polynomial plus signed absolute values of polynomials; coefficients ascending, without zeros at the end."""

    plain: Array
    absolute: tuple[tuple[float, Array], ...] = ()

    @classmethod
    def constant(cls, value: float) -> _Sum:
        return cls(np.array([value]))

    @property
    def degree(self) -> int:
        return max(len(p) for p in (self.plain, *(p for _, p in self.absolute))) - 1

    @property
    def is_constant(self) -> bool:
        return self.degree == 0 and not self.absolute

    def __add__(self, other: _Sum) -> _Sum:
        return _Sum(_trimmed(polynomial.polyadd(self.plain, other.plain)), (*self.absolute, *other.absolute))

    def __mul__(self, other: _Sum) -> _Sum:
        if self.degree + other.degree > _MAX_DEGREE:
            raise TypeError
        crossed = [(s * t, _trimmed(polynomial.polymul(p, q))) for s, p in self.absolute for t, q in other.absolute]
        for left, right in ((self, other), (other, self)):
            crossed += [_scaled(sign, p, right.plain) for sign, p in left.absolute if right.plain.any()]
        return _Sum(_trimmed(polynomial.polymul(self.plain, other.plain)), tuple(crossed))

    def equals(self, other: _Sum) -> bool:
        pairs = zip((self.plain, *self._parts()), (other.plain, *other._parts()), strict=False)
        return len(self.absolute) == len(other.absolute) and all(np.array_equal(p, q) for p, q in pairs)

    def _parts(self) -> tuple[Array, ...]:
        return tuple(np.append(p, sign) for sign, p in self.absolute)


def _trimmed(coefficients: Any) -> Array:
    return np.asarray(polynomial.polytrim(coefficients), dtype=np.float64)


def _scaled(sign: float, p: Array, factor: Array) -> tuple[float, Array]:
    """Return |p| times a constant as the absolute value of a polynomial."""
    if len(factor) > 1:
        raise TypeError
    return sign * float(np.sign(factor[0])), p * abs(factor[0])


class Quotient(NDArrayOperatorsMixin):
    """A function of x that is known to be a quotient of sums of polynomials and their absolute values.

    What numpy's ufuncs make of it is one again, or they raise a TypeError.

    Attributes:
        above, below: numerator and denominator.
    """

    __slots__ = ("above", "below")

    def __init__(self, above: _Sum, below: _Sum) -> None:
        self.above, self.below = above, below

    @classmethod
    def variable(cls) -> Quotient:
        """Return x itself."""
        return cls(_Sum(np.array([0.0, 1.0])), _Sum.constant(1))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        rule = _ARITHMETIC.get(ufunc)
        if method != "__call__" or settings or rule is None:
            return NotImplemented
        return rule(*map(_quotient, inputs))

    def __array_function__(self, *_: Any) -> Any:
        return NotImplemented


def _quotient(value: Any) -> Quotient:
    """Return a number as a constant; raise a TypeError where it is none."""
    if isinstance(value, Quotient):
        return value
    return Quotient(_Sum.constant(float(value)), _Sum.constant(1))


def _number(value: Quotient) -> float:
    if not (value.above.is_constant and value.below.is_constant):
        raise TypeError
    return float(value.above.plain[0] / value.below.plain[0])


def _negative(u: Quotient) -> Quotient:
    return Quotient(u.above * _Sum.constant(-1), u.below)


def _add(u: Quotient, v: Quotient) -> Quotient:
    if u.below.equals(v.below):
        return Quotient(u.above + v.above, u.below)
    return Quotient(u.above * v.below + v.above * u.below, u.below * v.below)


def _multiply(u: Quotient, v: Quotient) -> Quotient:
    return Quotient(u.above * v.above, u.below * v.below)


def _reciprocal(u: Quotient) -> Quotient:
    return Quotient(u.below, u.above)


def _power(u: Quotient, exponent: Quotient) -> Quotient:
    n = _number(exponent)
    if n != round(n) or abs(n) > _MAX_DEGREE:
        raise TypeError
    base, result = (u if n >= 0 else _reciprocal(u)), _quotient(1.0)
    for _ in range(abs(round(n))):
        result = _multiply(result, base)
    return result


def _absolute(u: Quotient) -> Quotient:
    return Quotient(_absolute_sum(u.above), _absolute_sum(u.below))


def _absolute_sum(s: _Sum) -> _Sum:
    never_negative = (s.plain >= 0).all() and not s.plain[1::2].any()
    if never_negative and all(sign > 0 for sign, _ in s.absolute):
        return s
    if not s.absolute:
        return _Sum(np.zeros(1), ((1.0, s.plain),))
    if len(s.absolute) == 1 and not s.plain.any():
        return _Sum(s.plain, ((1.0, s.absolute[0][1]),))
    raise TypeError


def _maximum(u: Quotient, v: Quotient) -> Quotient:
    """Return max(u, -u) = |u|."""
    difference = _add(u, v).above
    if not difference.is_constant or difference.plain[0] != 0:
        raise TypeError
    return _absolute(u)


_ARITHMETIC: Mapping[np.ufunc, Callable[..., Quotient]] = {
    np.add: _add, np.subtract: lambda u, v: _add(u, _negative(v)), np.multiply: _multiply,
    np.divide: lambda u, v: _multiply(u, _reciprocal(v)), np.reciprocal: _reciprocal, np.power: _power,
    np.square: lambda u: _multiply(u, u), np.negative: _negative, np.positive: lambda u: u,
    np.absolute: _absolute, np.fabs: _absolute, np.maximum: _maximum,
}  # fmt: skip


def read(f: Probe) -> tuple[Version, Array, Array] | None:
    """Return version and coefficients of a rational activation from its own arithmetic, or None where f is none.

    Returns:
        The version; a_0 to a_m; and b_0 to b_n, n at least 1 and b_0 = 0 but in version c.
    """
    try:
        found = f(Quotient.variable())
    except (TypeError, ValueError, ZeroDivisionError):  # it is written in other operations
        return None
    if not isinstance(found, Quotient) or found.above.absolute:
        return None
    above, below = found.above.plain, found.below
    sign = -1.0 if below.plain[0] < 0 else 1.0
    below = below * _Sum.constant(sign)
    if below.plain[0] <= 0 or (not below.absolute and below.degree == 0):
        return None
    return _with_monomials(sign * above, below) or _with_one_absolute(sign * above, below)


def _with_monomials(above: Array, below: _Sum) -> tuple[Version, Array, Array] | None:
    """Version a. A positive even power is its own absolute value; the sign of b_i is as it was written."""
    one, *rest = below.plain
    b = np.zeros(below.degree + 1)
    b[1 : len(below.plain)] = rest
    if (b < 0).any() or b[1::2].any():
        return None
    for sign, p in below.absolute:
        order = len(p) - 1
        if sign < 0 or p[:-1].any():
            return None
        b[order] = p[-1] if b[order] == 0 else abs(b[order]) + abs(p[-1])
    return "a", above / one, b / one


def _with_one_absolute(above: Array, below: _Sum) -> tuple[Version, Array, Array] | None:
    """Versions b and c, which are one where b_0 is scaled out."""
    if len(below.plain) > 1 or len(below.absolute) != 1 or below.absolute[0][0] < 0:
        return None
    one, b = float(below.plain[0]), below.absolute[0][1]
    is_tenth = abs(one - 0.1) <= 0.1 * _NEAR_TENTH
    if is_tenth or b[0] != 0:
        scale = 1.0 if is_tenth else 0.1 / one
        return "c", above * scale, b * scale
    return "b", above / one, b / one


def _infer(version: Version, f: Probe, _: float) -> Mapping[str, float] | None:
    found = read(f)
    if found is None or found[0] != version:
        return None
    first = 0 if version == "c" else 1
    above = {f"a{i}": float(c) for i, c in enumerate(found[1])}
    return above | {f"b{i}": float(c) for i, c in enumerate(found[2]) if i >= first}


def _formula(version: Version, x: Array, **parameters: Any) -> Array:
    above, below = (_coefficients(letter, parameters) for letter in ("a", "b"))
    if version == "a":
        y: Array = _horner(above, x) / (1 + _horner([0.0, *map(np.abs, below[1:])], np.abs(x)))
    else:
        y = _horner(above, x) / ((0.1 if version == "c" else 1) + np.abs(_horner(below, x)))
    return y


def _coefficients(letter: str, parameters: Mapping[str, Any]) -> list[Any]:
    """Return the ascending coefficients whose names begin with the letter."""
    degree = max(int(name[1:]) for name in parameters if name[0] == letter)
    return [parameters.get(f"{letter}{i}", 0.0) for i in range(degree + 1)]


def _horner(coefficients: list[Any], x: Any) -> Any:
    *lower, value = coefficients
    for coefficient in reversed(lower):
        value = value * x + coefficient
    return value


# A fit of leaky ReLU, degrees 5 and 4, as it is published with arXiv 1907.06732.
_ABOVE = (0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987)
_BELOW = (1.19160814, 4.40811795, 0.91111034, 0.34885983)


def _defaults(version: Version) -> dict[str, float]:
    below = (0.9, *_BELOW) if version == "c" else _BELOW  # of c the polynomial is positive, so the sum is as that of b
    first = 0 if version == "c" else 1
    return {f"a{i}": c for i, c in enumerate(_ABOVE)} | {f"b{i}": c for i, c in enumerate(below, first)}


_BELOWS: Mapping[Version, str] = {
    "a": "1 + sum_i abs(b_i x^i)",
    "b": "1 + abs(sum_i b_i x^i)",
    "c": "0.1 + abs(sum_i b_i x^i), i from 0",
}
RATIONALS = tuple(
    Family(
        f"rational_{version}",
        partial(_formula, version),
        partial(_infer, version),
        _defaults(version),
        text=f"(sum_i a_i x^i) / ({below})",
        source="arXiv 1907.06732",
    )
    for version, below in _BELOWS.items()
)
