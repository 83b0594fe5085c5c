"""Activations by the GPU's own functions: what takes fewer instructions there than a table within 1e-5.

They are no ops of domain `actx`. Every one is within `launch.MAX_ERROR` * (1 + |x|) of its definition in float32; NaN gives
NaN, and infinities follow the asymptotes.
"""

import triton
import triton.language as tl


@triton.jit
def times_sigmoid(x, t):
    """Return x / (1 + exp(-t)), 0 where t is -inf."""
    e = tl.exp(-t)
    return tl.where(e == float("inf"), 0.0, x / (1.0 + e))


@triton.jit
def evaluate(x, NAME: tl.constexpr):
    """Return the function of x, float32, by its name in the catalogue; `identity` is x."""
    if NAME == "identity":
        y = x
    elif NAME == "gelu":
        y = tl.where(x == -float("inf"), 0.0, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)))
    elif NAME == "gelu_tanh":
        # (1 + tanh(z)) / 2 = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
        y = times_sigmoid(x, 1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif NAME == "silu":
        y = times_sigmoid(x, x)
    elif NAME == "tanh":
        y = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))
    else:
        tl.static_assert(NAME == "mish")
        # tanh(log(1 + e)) = n / (n + 2), with n = e^2 + 2 e; beyond 20 it is 1 in float32
        e = tl.exp(tl.minimum(x, 20.0, propagate_nan=tl.PropagateNan.ALL))
        n = e * (e + 2.0)
        y = tl.where(x == -float("inf"), 0.0, x * (n / (n + 2.0)))
    return y
