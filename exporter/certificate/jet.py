"""Numbers that carry proved bounds: every formula of numpy's ufuncs runs on them as it runs on arrays.

A `Jet` encloses, over an interval of x, the values of a function and of its first three derivatives, each in a ball of
python-flint (Johansson, Arb: efficient arbitrary-precision midpoint-radius interval arithmetic, 2017). A `Truth` is what
comparing two jets gives: true or false all over the interval, or undecided. Arithmetic is that of the real numbers:
nothing overflows.

Where a function has a kink inside the interval its derivatives are unknown, and where it is undefined its value is:
such balls are infinite, or NaN, and every bound taken from them is infinite.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from flint import arb, arb_poly
from numpy.lib.mixins import NDArrayOperatorsMixin
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# p and q of a function of x that is p(x) / q(x).
Fraction: TypeAlias = tuple[arb_poly, arb_poly]
# The value of a smooth function over a ball, and its first three derivatives there.
Expansion: TypeAlias = tuple[arb, arb, arb, arb]

MAX_DEGREE = 64  # of the polynomials of a fraction

_ZERO, _ONE = arb(0), arb(1)
_UNKNOWN = arb(0, float("inf"))
_UNDEFINED = arb("nan")


class _Operand(NDArrayOperatorsMixin):
    """What numpy calls instead of its own loops."""

    def __bool__(self) -> bool:
        msg = "a formula may not branch on a jet: use numpy.where"
        raise TypeError(msg)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **settings: Any) -> Any:
        if method != "__call__" or settings:
            return NotImplemented
        numeric = ARITHMETIC.get(ufunc)
        if numeric is not None:
            return numeric(*[v if type(v) is Jet else _number(operand(v)) for v in inputs])
        logical = LOGIC.get(ufunc)
        return NotImplemented if logical is None else logical(*map(operand, inputs))

    def __array_function__(self, function: Any, _: Any, inputs: Any, settings: Any) -> Any:
        if function is np.piecewise:
            return _piecewise(*inputs)
        rule = FUNCTIONS.get(function)
        if rule is None or settings:
            return NotImplemented
        return rule(*map(operand, inputs))


class Jet(_Operand):
    """Enclosures of a function and of its first three derivatives over an interval.

    Attributes:
        value, first, second, third: balls.
        fraction: the function as a quotient of polynomials in x, where it is known to be one all over the interval.
    """

    __slots__ = ("first", "fraction", "second", "third", "value")

    def __init__(self, value: arb, first: arb = _ZERO, second: arb = _ZERO, third: arb = _ZERO) -> None:
        self.value, self.first, self.second, self.third = value, first, second, third
        self.fraction: Fraction | None = None

    @classmethod
    def variable(cls, value: arb) -> Jet:
        """Return x itself."""
        jet = cls(value, _ONE)
        jet.fraction = arb_poly([0, 1]), arb_poly([1])
        return jet

    @classmethod
    def of_fraction(cls, fraction: Fraction, x: arb) -> Jet:
        """Evaluate a quotient of polynomials."""
        p, q = (cls(*(derivative(x) for derivative in _derivatives(part))) for part in fraction)
        return _divide(p, q)

    def intersection(self, other: Jet) -> Jet:
        """Return what is in both enclosures of the same function."""
        parts = ("value", "first", "second", "third")
        return Jet(*(_intersection(getattr(self, part), getattr(other, part)) for part in parts))


class _Exponential(Jet):
    """exp(v), or 1 + exp(v), that remembers v.

    Over an interval on which exp grows by more than the bits of a ball's radius, a ball of it holds zero and negative numbers
    too, and nothing follows for 1 / (1 + exp(v)) or log(1 + exp(v)). From v these are known all the same.

    Attributes:
        exponent: v.
        shifted: whether it is 1 + exp(v).
    """

    __slots__ = ("exponent", "shifted")

    def __init__(self, jet: Jet, exponent: Jet, *, shifted: bool) -> None:
        super().__init__(jet.value, jet.first, jet.second, jet.third)
        self.exponent, self.shifted = exponent, shifted


class Truth(_Operand):
    """A condition over an interval.

    Attributes:
        value: None where it is undecided.
    """

    __slots__ = ("value",)

    def __init__(self, value: bool | None) -> None:
        self.value = value


def operand(value: Any) -> Jet | Truth | None:
    """Return a number or a condition as a constant.

    Raises:
        TypeError: it is neither.
    """
    if value is None or isinstance(value, (Jet, Truth)):
        return value
    number = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    if isinstance(number, bool):
        return Truth(number)
    if isinstance(number, (int, float)):
        return _jet_of(number)
    msg = f"{type(value).__name__} is no operand of a jet"
    raise TypeError(msg)


@lru_cache(maxsize=1024)
def _jet_of(number: float) -> Jet:
    """Return a number as a constant: a formula has few, and is evaluated on thousands of intervals."""
    jet = Jet(arb(number))
    jet.fraction = arb_poly([number]), arb_poly([1])
    return jet


def _derivatives(polynomial: arb_poly) -> Iterator[arb_poly]:
    """Yield a polynomial and its first three derivatives."""
    for _ in range(4):
        yield polynomial
        polynomial = polynomial.derivative()


def _intersection(one: arb, other: arb) -> arb:
    if not (one.is_finite() and other.is_finite()):
        return one if one.is_finite() else other
    return one.intersection(other)


def _number(value: Any) -> Any:
    """Return a condition as 0 or 1, as numpy's arithmetic takes it."""
    if not isinstance(value, Truth):
        return value
    return _kink(union(_ZERO, _ONE)) if value.value is None else Jet(arb(int(value.value)))


def union(*balls: arb) -> arb:
    """Return a ball that holds all of them."""
    found, *others = balls
    for ball in others:
        found = found.union(ball) if found.is_finite() and ball.is_finite() else _UNDEFINED
    return found


def _kink(value: arb) -> Jet:
    return Jet(value, _UNKNOWN, _UNKNOWN, _UNKNOWN)


def _is_linear(a: Jet) -> bool:
    """Tell whether a jet is seen to be p x + q, by the zeros that it was made with: its products are shorter."""
    return a.second is _ZERO and a.third is _ZERO


# --- smooth functions: value and three derivatives over a ball ---


def _monotone(function: Callable[[arb], arb], v: arb) -> arb:
    if v.is_exact():
        return function(v)
    return union(function(v.lower()), function(v.upper()))


def _smooth(expand: Callable[[arb], Expansion]) -> Callable[[Jet], Jet]:
    """Return the chain rule for a function."""

    def apply(x: Jet) -> Jet:
        if not x.value.is_finite():
            return _kink(_UNDEFINED)
        value, first, second, third = expand(x.value)
        if x.first is _ONE and _is_linear(x):
            return Jet(value, first, second, third)
        square = _square(x.first)
        if _is_linear(x):
            return Jet(value, first * x.first, second * square, third * square * x.first)
        return Jet(
            value,
            first * x.first,
            second * square + first * x.second,
            third * square * x.first + 3 * second * x.first * x.second + first * x.third,
        )

    return apply


def _even(function: Callable[[arb], arb], v: arb) -> arb:
    """Bound a function of |v| that is monotone in it."""
    return function(abs(v)) if v.is_exact() else union(function(v.abs_lower()), function(v.abs_upper()))


def _square(v: arb) -> arb:
    return _even(lambda end: end * end, v) if v.is_finite() else _UNKNOWN


def _exp(v: arb) -> Expansion:
    y = _monotone(arb.exp, v)
    return y, y, y, y


def _expm1(v: arb) -> Expansion:
    y = _monotone(arb.exp, v)
    return _monotone(arb.expm1, v), y, y, y


def _log(v: arb) -> Expansion:
    inverse = 1 / v
    square = _square(inverse)
    return _monotone(arb.log, v), inverse, -square, 2 * square * inverse


def _log1p(v: arb) -> Expansion:
    inverse = 1 / (1 + v)
    square = _square(inverse)
    return _monotone(arb.log1p, v), inverse, -square, 2 * square * inverse


def _sqrt(v: arb) -> Expansion:
    y = _monotone(arb.sqrt, v)
    slope = 1 / (2 * y)
    return y, slope, -slope / (2 * v), 3 * slope / (4 * _square(v))


def _reciprocal(v: arb) -> Expansion:
    y = 1 / v
    square = _square(y)
    return y, -square, 2 * square * y, -6 * _square(square)


def _sin(v: arb) -> Expansion:
    y, slope = v.sin(), v.cos()
    return y, slope, -y, -slope


def _cos(v: arb) -> Expansion:
    y, slope = v.cos(), -v.sin()
    return y, slope, -y, -slope


def _tan(v: arb) -> Expansion:
    y = v.tan()
    square = _square(y)
    slope = 1 + square
    return y, slope, 2 * y * slope, slope * (2 * slope + 4 * square)


def _sinh(v: arb) -> Expansion:
    y, slope = _monotone(arb.sinh, v), _even(arb.cosh, v)
    return y, slope, y, slope


def _cosh(v: arb) -> Expansion:
    y, slope = _even(arb.cosh, v), _monotone(arb.sinh, v)
    return y, slope, y, slope


def _tanh(v: arb) -> Expansion:
    y = _monotone(arb.tanh, v)
    square = _square(y)
    slope = 1 - square
    return y, slope, -2 * y * slope, slope * (4 * square - 2 * slope)


def _asin(v: arb) -> Expansion:
    square = _square(v)
    slope = (1 - square).rsqrt()
    cube = slope * _square(slope)
    return _monotone(arb.asin, v), slope, v * cube, cube * (1 + 3 * square * _square(slope))


def _acos(v: arb) -> Expansion:
    _, slope, second, third = _asin(v)
    return _monotone(arb.acos, v), -slope, -second, -third


def _atan(v: arb) -> Expansion:
    square = _square(v)
    slope = 1 / (1 + square)
    return _monotone(arb.atan, v), slope, -2 * v * _square(slope), _square(slope) * (8 * square * slope - 2)


def _asinh(v: arb) -> Expansion:
    square = _square(v)
    slope = (1 + square).rsqrt()
    cube = slope * _square(slope)
    return _monotone(arb.asinh, v), slope, -v * cube, cube * (3 * square * _square(slope) - 1)


def _acosh(v: arb) -> Expansion:
    square = _square(v)
    slope = (square - 1).rsqrt()
    cube = slope * _square(slope)
    return _monotone(arb.acosh, v), slope, -v * cube, cube * (3 * square * _square(slope) - 1)


def _atanh(v: arb) -> Expansion:
    square = _square(v)
    slope = 1 / (1 - square)
    return _monotone(arb.atanh, v), slope, 2 * v * _square(slope), _square(slope) * (8 * square * slope + 2)


def _gaussian(v: arb) -> arb:
    """Return exp(-v^2)."""
    return _even(lambda end: (-end * end).exp(), v)


def _erf(v: arb) -> Expansion:
    slope = 2 / arb.pi().sqrt() * _gaussian(v)
    return _monotone(arb.erf, v), slope, -2 * v * slope, (4 * _square(v) - 2) * slope


def _ndtr(v: arb) -> Expansion:
    """Expand the normal distribution function, (1 + erf(v / sqrt 2)) / 2."""
    root = arb(2).sqrt()
    slope = _gaussian(v / root) / (2 * arb.pi()).sqrt()
    return _monotone(lambda end: (-end / root).erfc() / 2, v), slope, -v * slope, (_square(v) - 1) * slope


def _logistic(v: arb) -> arb:
    return _monotone(lambda end: 1 / (1 + (-end).exp()), v)


def _expit(v: arb) -> Expansion:
    y, rest = _logistic(v), _logistic(-v)
    slope, tilt = y * rest, rest - y
    return y, slope, slope * tilt, slope * (_square(tilt) - 2 * slope)


def _softplus(v: arb) -> Expansion:
    value, slope, second, _ = _expit(v)
    return _monotone(lambda end: end.exp().log1p(), v), value, slope, second


# --- arithmetic ---


def _exponential(a: Jet) -> Jet:
    return _Exponential(_smooth(_exp)(a), a, shifted=False)


def _logarithm(a: Jet) -> Jet:
    return _smooth(_softplus)(a.exponent) if isinstance(a, _Exponential) and a.shifted else _smooth(_log)(a)


def _logarithm_of_next(a: Jet) -> Jet:
    return _smooth(_softplus)(a.exponent) if isinstance(a, _Exponential) and not a.shifted else _smooth(_log1p)(a)


def _inverse(a: Jet) -> Jet:
    if isinstance(a, _Exponential):
        return (_smooth(_expit) if a.shifted else _exponential)(_negative(a.exponent))
    return _smooth(_reciprocal)(a)


def _add(a: Jet, b: Jet) -> Jet:
    if _is_number(a):
        a, b = b, a
    if _is_number(b):
        found = Jet(a.value + b.value, a.first, a.second, a.third)
        if isinstance(a, _Exponential) and not a.shifted and b.value == 1:
            return _Exponential(found, a.exponent, shifted=True)
        return found
    return Jet(a.value + b.value, a.first + b.first, a.second + b.second, a.third + b.third)


def _negative(a: Jet) -> Jet:
    return Jet(-a.value, *[d if d is _ZERO else -d for d in (a.first, a.second, a.third)])


def _subtract(a: Jet, b: Jet) -> Jet:
    if _is_number(b):
        return Jet(a.value - b.value, a.first, a.second, a.third)
    return Jet(a.value - b.value, a.first - b.first, a.second - b.second, a.third - b.third)


def _multiply(a: Jet, b: Jet) -> Jet:
    if a is b:
        return _power_integer(a, 2)
    if _is_number(b):
        return _scaled(a, b.value)
    if _is_number(a):
        return _scaled(b, a.value)
    if _is_linear(b):
        a, b = b, a
    if _is_linear(a):
        return Jet(
            a.value * b.value,
            a.first * b.value + a.value * b.first,
            2 * a.first * b.first + a.value * b.second,
            3 * a.first * b.second + a.value * b.third,
        )
    return Jet(
        a.value * b.value,
        a.first * b.value + a.value * b.first,
        a.second * b.value + 2 * a.first * b.first + a.value * b.second,
        a.third * b.value + 3 * (a.second * b.first + a.first * b.second) + a.value * b.third,
    )


def _is_number(a: Jet) -> bool:
    """Tell whether a jet was made of a number."""
    return a.first is _ZERO and _is_linear(a)


def _scaled(a: Jet, factor: arb) -> Jet:
    return Jet(a.value * factor, *[d if d is _ZERO else d * factor for d in (a.first, a.second, a.third)])


def _divide(a: Jet, b: Jet) -> Jet:
    return _multiply(a, _inverse(b))


def _is_constant(a: Jet) -> bool:
    return bool(a.value.is_exact() and a.first.is_zero() and a.second.is_zero() and a.third.is_zero())


def _power(a: Jet, b: Jet) -> Jet:
    constant = _is_constant(b)
    if constant and b.value.is_integer() and abs(b.value) <= 64:
        return _power_integer(a, int(float(b.value)))
    if constant and a.value.lower() >= 0 and b.value > 0:
        return _root(a, b.value)
    return _smooth(_exp)(_multiply(b, _smooth(_log)(a)))


def _power_integer(a: Jet, n: int) -> Jet:
    def raised(v: arb, power: int) -> arb:
        if power < 2:
            return v if power else _ONE
        return (_monotone if power % 2 else _even)(lambda end: end**power, v)

    if n < 0:
        return _inverse(_power_integer(a, -n))
    if n < 2:
        return a if n else Jet(_ONE)
    if not a.value.is_finite():
        return _kink(_UNDEFINED)

    def derivative(v: arb, order: int) -> arb:
        factor = math.prod(range(n, n - order, -1))
        return factor * raised(v, n - order) if factor else _ZERO

    return _smooth(lambda v: (derivative(v, 0), derivative(v, 1), derivative(v, 2), derivative(v, 3)))(a)


def _root(a: Jet, exponent: arb) -> Jet:
    """a^p for a >= 0 and p > 0, where logarithms would leave 0 out."""

    def raised(v: arb, power: arb) -> arb:
        return _monotone(lambda end: _ZERO if end == 0 else end**power, v)

    def expand(v: arb) -> Expansion:
        if not v > 0:
            return raised(v, exponent), _UNKNOWN, _UNKNOWN, _UNKNOWN
        first = exponent * raised(v, exponent - 1)
        second = exponent * (exponent - 1) * raised(v, exponent - 2)
        return raised(v, exponent), first, second, second * (exponent - 2) / v

    return _smooth(expand)(a)


# --- quotients of polynomials ---


def _rational(rule: Callable[..., Jet], combine: Callable[..., Fraction | None]) -> Callable[..., Jet]:
    """Return a rule that also says what becomes of the fractions of its operands."""

    def apply(*jets: Jet) -> Jet:
        found = rule(*jets)
        if found.fraction is None and all(jet.fraction is not None for jet in jets):
            fraction = combine(*(jet.fraction for jet in jets))
            if fraction is not None and max(part.degree() for part in fraction) <= MAX_DEGREE:
                found.fraction = fraction
        return found

    return apply


def _raised(a: Fraction, b: Fraction) -> Fraction | None:
    """a^b for a small whole number b."""
    if b[0].degree() > 0 or b[1].degree() > 0:
        return None
    exponent = b[0][0] / b[1][0]
    degree = max(part.degree() for part in a)
    if not exponent.is_exact() or not exponent.is_integer() or not 0 <= exponent * max(degree, 1) <= MAX_DEGREE:
        return None
    power = int(float(exponent))
    return a[0] ** power, a[1] ** power


_opposite = _rational(_negative, lambda a: (-a[0], a[1]))


# --- kinks and jumps ---


def _maximum(a: Jet, b: Jet) -> Jet:
    if a.value >= b.value:
        return a
    if b.value >= a.value:
        return b
    if not (a.value.is_finite() and b.value.is_finite()):
        return _kink(_UNDEFINED)
    highs, lows = (a.value.upper(), b.value.upper()), (a.value.lower(), b.value.lower())
    return _kink(union(max(highs), max(lows)))


def _minimum(a: Jet, b: Jet) -> Jet:
    return _opposite(_maximum(_opposite(a), _opposite(b)))


def _absolute(a: Jet) -> Jet:
    if a.value >= 0:
        return a
    if a.value <= 0:
        return _opposite(a)
    return _kink(_even(lambda end: end, a.value) if a.value.is_finite() else _UNDEFINED)


def _step(function: Callable[[arb], arb]) -> Callable[[Jet], Jet]:
    """Return a function that is constant between its jumps."""

    def apply(a: Jet) -> Jet:
        if not a.value.is_finite():
            return _kink(_UNDEFINED)
        low, high = (function(end) for end in (a.value.lower(), a.value.upper()))
        return Jet(low) if low.is_exact() and low == high else _kink(union(low, high))

    return apply


def _rint(v: arb) -> arb:
    """Round half to even."""
    down = (v + arb(0.5)).floor()
    half = (v + arb(0.5)).is_integer()
    return down - 1 if half and not (down / 2).is_integer() else down


def _logaddexp(a: Jet, b: Jet) -> Jet:
    base, other = (b, a) if _is_constant(b) else (a, b)
    return _add(base, _smooth(_softplus)(_subtract(other, base)))


def _remainder(towards: Callable[[Jet], Jet]) -> Callable[[Jet, Jet], Jet]:
    """Return a - b towards(a / b)."""
    return lambda a, b: _subtract(a, _multiply(b, towards(_divide(a, b))))


def _trunc(v: arb) -> arb:
    return v.floor() if v >= 0 else v.ceil()


# --- conditions ---


def _greater(a: Jet, b: Jet) -> Truth:
    return Truth(True if a.value > b.value else False if a.value <= b.value else None)


def _greater_equal(a: Jet, b: Jet) -> Truth:
    return Truth(True if a.value >= b.value else False if a.value < b.value else None)


def _equal(a: Jet | Truth, b: Jet | Truth) -> Truth:
    if isinstance(a, Truth) and isinstance(b, Truth):
        return _not(_xor(a, b))
    p, q = _number(a).value, _number(b).value
    exact = p.is_exact() and q.is_exact()
    return Truth(True if exact and p == q else False if p != q else None)


def _not(a: Truth) -> Truth:
    return Truth(None if a.value is None else not a.value)


def _and(a: Truth, b: Truth) -> Truth:
    if a.value is False or b.value is False:
        return Truth(False)
    return Truth(True if a.value and b.value else None)


def _or(a: Truth, b: Truth) -> Truth:
    return _not(_and(_not(a), _not(b)))


def _xor(a: Truth, b: Truth) -> Truth:
    return Truth(None if a.value is None or b.value is None else a.value != b.value)


def _where(condition: Truth, a: Jet | Truth, b: Jet | Truth) -> Jet | Truth:
    if condition.value is not None:
        return a if condition.value else b
    if isinstance(a, Truth) and isinstance(b, Truth):
        return a if a.value == b.value else Truth(None)
    return _kink(union(_number(a).value, _number(b).value))


def _piecewise(x: Jet, conditions: Sequence[Truth], functions: Sequence[Callable[[Jet], Jet]]) -> Jet:
    """Evaluate only what may hold: the last function is for where no condition does."""
    *rest, last = functions
    result: Jet | None = None if any(c.value for c in conditions) else last(x)
    for condition, function in zip(reversed(conditions), reversed(rest), strict=True):
        if condition.value is not False:
            y = function(x)
            result = y if condition.value or result is None else _kink(union(y.value, result.value))
    assert result is not None
    return result


def _is_finite(a: Jet) -> Truth:
    """Real numbers are neither infinite nor NaN; where the ball is not finite nothing is known."""
    return Truth(True if a.value.is_finite() else None)


def _clip(a: Jet, low: Jet | None, high: Jet | None) -> Jet:
    floor = a if low is None else _maximum(a, low)
    return floor if high is None else _minimum(floor, high)


ARITHMETIC: Mapping[np.ufunc, Callable[..., Jet | Truth]] = {
    np.add: _rational(_add, lambda a, b: (a[0] * b[1] + b[0] * a[1], a[1] * b[1])),
    np.subtract: _rational(_subtract, lambda a, b: (a[0] * b[1] - b[0] * a[1], a[1] * b[1])),
    np.multiply: _rational(_multiply, lambda a, b: (a[0] * b[0], a[1] * b[1])),
    np.divide: _rational(_divide, lambda a, b: (a[0] * b[1], a[1] * b[0])),
    np.power: _rational(_power, _raised),
    np.negative: _opposite, np.positive: lambda a: a, np.absolute: _absolute, np.fabs: _absolute,
    np.square: _rational(lambda a: _power_integer(a, 2), lambda a: (a[0] ** 2, a[1] ** 2)),
    np.reciprocal: _rational(_inverse, lambda a: (a[1], a[0])),
    np.exp: _exponential, np.expm1: _smooth(_expm1), np.log: _logarithm, np.log1p: _logarithm_of_next,
    np.sqrt: _smooth(_sqrt), np.sin: _smooth(_sin), np.cos: _smooth(_cos), np.tan: _smooth(_tan),
    np.sinh: _smooth(_sinh), np.cosh: _smooth(_cosh), np.tanh: _smooth(_tanh),
    np.arcsin: _smooth(_asin), np.arccos: _smooth(_acos), np.arctan: _smooth(_atan),
    np.arcsinh: _smooth(_asinh), np.arccosh: _smooth(_acosh), np.arctanh: _smooth(_atanh),
    special.erf: _smooth(_erf), special.ndtr: _smooth(_ndtr), special.expit: _smooth(_expit),
    special.log_expit: lambda a: _negative(_smooth(_softplus)(_negative(a))), np.logaddexp: _logaddexp,
    np.maximum: _maximum, np.minimum: _minimum,
    np.floor: _step(arb.floor), np.ceil: _step(arb.ceil), np.rint: _step(_rint), np.sign: _step(arb.sgn),
    np.fmod: _remainder(_step(_trunc)), np.remainder: _remainder(_step(arb.floor)),
    np.greater: _greater, np.less: lambda a, b: _greater(b, a), np.greater_equal: _greater_equal,
    np.less_equal: lambda a, b: _greater_equal(b, a),
    np.isnan: lambda a: _not(_is_finite(a)), np.isinf: lambda a: _not(_is_finite(a)), np.isfinite: _is_finite,
}  # fmt: skip
LOGIC: Mapping[np.ufunc, Callable[..., Truth]] = {
    np.equal: _equal, np.not_equal: lambda a, b: _not(_equal(a, b)),
    np.logical_and: _and, np.logical_or: _or, np.logical_xor: _xor, np.logical_not: _not,
    np.bitwise_and: _and, np.bitwise_or: _or, np.bitwise_xor: _xor, np.invert: _not,
}  # fmt: skip
FUNCTIONS: Mapping[Any, Callable[..., Any]] = {
    np.where: _where, np.clip: _clip, np.round: _step(_rint),
    np.result_type: lambda a: np.dtype(bool if isinstance(a, Truth) else float),
}  # fmt: skip
