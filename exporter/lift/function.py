"""What a site computes: a scalar function, as the straight-line program of its region of the graph; PolyNorm; a mixture."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from actx.custom_ops import Spline
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.exporter.lift.elementwise import ELEMENTWISE, SPLINE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Constant:
    """A constant operand: one number, or one per channel.

    Attributes:
        values: float64 (or bool), shape ``()`` or ``(C,)``.
    """

    values: NDArray[Any]

    @property
    def per_channel(self) -> bool:
        """Whether there is one number per channel."""
        return self.values.ndim > 0


@dataclass(frozen=True)
class Step:
    """One op: its operands are indices of earlier values (0 is x, i + 1 the result of step i), constants or absent."""

    op: tuple[str, str]
    attributes: Mapping[str, Any]
    operands: tuple[int | Constant | None, ...]


@dataclass(frozen=True, eq=False)
class ScalarFunction:
    """f(x), evaluated in float64 by the ops of the region itself.

    Attributes:
        steps: the ops in topological order; the last one gives f(x).
        channels: C where the function differs per channel, else None.
    """

    steps: tuple[Step, ...]
    channels: int | None = None

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Evaluate f.

        Args:
            x: any shape; for a per-channel function the first dimension must be C or 1. What implements numpy's ufuncs
                itself is handed to them as it is.

        Returns:
            float64 of the shape of x (broadcast to C in the first dimension where f is per channel).
        """
        if isinstance(x, NDArrayOperatorsMixin):
            return self._evaluate(x, 0)
        array = np.asarray(x, dtype=np.float64)
        with np.errstate(all="ignore"):
            result = np.asarray(self._evaluate(array, array.ndim), dtype=np.float64)
        return result if result.ndim else result[()]

    def _evaluate(self, x: Any, rank: int) -> Any:
        values = [x]

        def operand(of: int | Constant | None) -> Any:
            if isinstance(of, Constant):
                return of.values.reshape(-1, *[1] * (rank - 1)) if of.per_channel else of.values
            return None if of is None else values[of]

        for step in self.steps:  # a step reads what the steps before it gave
            values.append(ELEMENTWISE[step.op](step.attributes, *map(operand, step.operands)))  # noqa: PERF401
        return values[-1]

    @cached_property
    def key(self) -> str:
        """A digest of the program: equal for equal functions, whatever their place in the graph."""
        digest = hashlib.sha256()
        for step in self.steps:
            digest.update(repr((step.op, sorted(step.attributes.items()))).encode())
            for operand in step.operands:
                digest.update(operand.values.tobytes() if isinstance(operand, Constant) else repr(operand).encode())
                digest.update(b"|")
        return digest.hexdigest()

    def channel(self, index: int) -> ScalarFunction:
        """Return the function of one channel."""

        def pick(operand: int | Constant | None) -> int | Constant | None:
            return Constant(operand.values[index]) if isinstance(operand, Constant) and operand.per_channel else operand

        steps = tuple(Step(s.op, _of_channel(s, index), tuple(map(pick, s.operands))) for s in self.steps)
        return ScalarFunction(steps)


def _of_channel(step: Step, index: int) -> Mapping[str, Any]:
    """Return the attributes of the step on one channel: of a spline per channel, those of its table."""
    if step.op != SPLINE or step.attributes.get("axis") is None:
        return step.attributes
    return Spline.from_attributes(step.attributes).channel(index).attributes()


@dataclass(frozen=True, eq=False)
class PolyNorm:
    """x -> sum_i weights[i] N(x^(K - i)) + bias, N(z) = z / sqrt(mean(z^2) + epsilon) along the last axis.

    Attributes:
        weights: float64 (K,), from the highest power.
        bias: a number.
        epsilon: what is added to the mean of squares.
    """

    weights: NDArray[np.float64]
    bias: float
    epsilon: float

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        """Evaluate in float64 on rows, [..., D]."""
        with np.errstate(all="ignore"):
            rows = np.asarray(x, dtype=np.float64)
            return PolyNormOp(self.epsilon).evaluate([rows, self.weights, np.array([self.bias]), None])

    @cached_property
    def key(self) -> str:
        """A digest: equal for equal functions."""
        return hashlib.sha256(np.array([*self.weights, self.bias, self.epsilon]).tobytes()).hexdigest()

    @property
    def parameters(self) -> dict[str, NDArray[np.float64]]:
        """The parameters by name, the weight of the highest power first."""
        named = {f"w{i}": np.array(weight) for i, weight in enumerate(self.weights)}
        return {**named, "b": np.array(self.bias), "eps": np.array(self.epsilon)}


@dataclass(frozen=True, eq=False)
class Mixture:
    """x, g_0 .. g_(E-1) -> sum_e g_e f_e(x).

    Attributes:
        entries: f_e.
    """

    entries: tuple[ScalarFunction, ...]

    def __call__(self, x: ArrayLike, *gates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate in float64: x is [..., H], every gate [..., 1]."""
        with np.errstate(all="ignore"):
            terms = [gate * entry(x) for gate, entry in zip(gates, self.entries, strict=True)]
            return np.asarray(reduce(np.add, terms), dtype=np.float64)

    @cached_property
    def key(self) -> str:
        """A digest: equal for equal functions."""
        return hashlib.sha256("".join(entry.key for entry in self.entries).encode()).hexdigest()


SiteFunction: TypeAlias = ScalarFunction | PolyNorm | Mixture

AFFINE_TOLERANCE = 1e-6
_PROBE = np.concatenate([-np.geomspace(6e4, 1e-3, 90), [0.0], np.geomspace(1e-3, 6e4, 90)])


def is_affine(function: ScalarFunction) -> bool:
    """Tell whether f is a x + b over the finite fp16 range (a clamp at its very ends does not count)."""
    values = np.atleast_2d(function(np.broadcast_to(_PROBE, (function.channels or 1, _PROBE.size))))
    if not np.isfinite(values).all():
        return False
    slope = (values[:, -1:] - values[:, :1]) / (_PROBE[-1] - _PROBE[0])
    line = values[:, 90:91] + slope * _PROBE
    scale = np.maximum(np.abs(line), np.abs(slope) * np.abs(_PROBE)) + np.abs(values[:, 90:91])
    return bool((np.abs(values - line) <= AFFINE_TOLERANCE * scale + 1e-12).all())
