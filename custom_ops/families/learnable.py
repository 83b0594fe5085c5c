"""Learnable activations: sum_k a_k f_k(x) over a dictionary of known functions (arXiv 2605.26647).

The weights are found by least squares, for the smallest part of the dictionary that gives the function.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from actx.custom_ops.definition import Family
from actx.custom_ops.formulas import gelu, gelu_tanh, mish, silu

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actx.custom_ops.definition import Array, Probe

_X = np.concatenate([np.linspace(-10.0, 10.0, 161), [-1000.0, -60.0, -20.0, 20.0, 60.0, 1000.0]])
# Part of what the constants of a graph may lose: with that many weights a function is easily met by chance.
_SHARE = 0.25
_LEAST = 1e-12


DICTIONARY: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "mish": mish,
    "tanh": np.tanh,
    "sigmoid": expit,
}


def _la(x: Array, **weights: Any) -> Array:
    total: Array = sum(weight * DICTIONARY[name](x) for name, weight in weights.items())
    return total


def _infer(f: Probe, tolerance: float) -> Mapping[str, float] | None:
    y = np.asarray(f(_X), dtype=np.float64)
    if not np.isfinite(y).all():
        return None
    size = 1 + np.abs(_X) + np.abs(y)
    columns = {name: entry(_X) / size for name, entry in DICTIONARY.items()}
    allowed = max(_SHARE * tolerance, _LEAST)
    if _solved(columns, tuple(columns), y / size)[0] > allowed:
        return None
    for length in range(1, len(columns) + 1):
        solved = (_solved(columns, names, y / size) for names in combinations(columns, length))
        error, weights = min(solved, key=lambda found: found[0])
        if error <= allowed:
            return weights
    return None


def _solved(columns: Mapping[str, Array], names: Sequence[str], y: Array) -> tuple[float, dict[str, float]]:
    """Return the largest error and the weights of a least-squares fit."""
    matrix = np.stack([columns[name] for name in names], axis=1)
    scale = np.linalg.norm(matrix, axis=0)
    weights, *_ = np.linalg.lstsq(matrix / scale, y, rcond=None)
    weights /= scale
    return float(np.abs(matrix @ weights - y).max()), dict(zip(names, map(float, weights), strict=True))


LEARNABLE = Family(
    "la",
    _la,
    _infer,
    dict.fromkeys(("identity", "relu", "gelu", "silu", "tanh"), 1.0),  # weights begin as 1
    text="sum_k a_k f_k(x) over " + ", ".join(DICTIONARY) + "; a weight has the name of its function",
    source="arXiv 2605.26647",
    per_channel=False,
)
