"""The activations, the piecewise polynomials they are rewritten to, and the ops that run them."""

from actx.custom_ops.activations import ACTIVATIONS
from actx.custom_ops.definition import Activation, Family
from actx.custom_ops.families import FAMILIES
from actx.custom_ops.registration import REGISTERED, activation
from actx.custom_ops.spline import Spline

__all__ = ["ACTIVATIONS", "FAMILIES", "REGISTERED", "Activation", "Family", "Spline", "activation"]
