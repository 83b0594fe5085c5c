"""The activations, the piecewise polynomials they are rewritten to, and the ops that run them."""

from actx.custom_ops.activations import ACTIVATIONS, Activation
from actx.custom_ops.spline import Spline

__all__ = ["ACTIVATIONS", "Activation", "Spline"]
