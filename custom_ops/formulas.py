"""Formulas that more than one entry of the catalogue is written in: float64 arrays, elementwise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Array = NDArray[np.float64]


def softplus(x: Array) -> Array:
    """Return log(1 + e^x), without overflow."""
    return np.logaddexp(0.0, x)


def gelu(x: Array) -> Array:
    """Return x Phi(x)."""
    y: Array = x * ndtr(x)
    return y


def gelu_tanh(x: Array) -> Array:
    """Return gelu by the approximation of its paper (arXiv 1606.08415)."""
    y: Array = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return y


def silu(x: Array) -> Array:
    """Return x sigmoid(x)."""
    y: Array = x * expit(x)
    return y


def mish(x: Array) -> Array:
    """Return x tanh(softplus(x))."""
    y: Array = x * np.tanh(softplus(x))
    return y
