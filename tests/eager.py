"""Every activation once more as its users write it: plain torch code on tensors, without any of our modules or ops.

`EAGER[name](module, x)` computes what ``actx.models.activations.ACTIVATIONS[name]`` does, by another spelling, with the
parameters of the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Eager: TypeAlias = Callable[[Any, Tensor], Tensor]


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def _elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * (torch.exp(x.clamp(max=0.0)) - 1))


def _prelu(m: Any, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, m.weight * x)


def _powers(coefficients: Tensor, x: Tensor, first: int = 0) -> Tensor:
    total = torch.zeros_like(x)
    for i, c in enumerate(coefficients):
        total = total + c * x ** (first + i)
    return total


def _rational_a(m: Any, x: Tensor) -> Tensor:
    below = torch.ones_like(x)
    for i, b in enumerate(m.denominator):
        below = below + torch.abs(b * x ** (i + 1))
    return _powers(m.numerator, x) / below


def _rational_b(m: Any, x: Tensor) -> Tensor:
    return _powers(m.numerator, x) / (1 + torch.abs(_powers(m.denominator, x, 1)))


def _rational_c(m: Any, x: Tensor) -> Tensor:
    return _powers(m.numerator, x) / (0.1 + torch.abs(_powers(m.denominator, x)))


def _apl(m: Any, x: Tensor) -> Tensor:
    hinges = zip(m.slopes, m.offsets, strict=True)
    return torch.clamp(x, min=0) + sum(a * torch.clamp(-x + b, min=0) for a, b in hinges)


def _polyrelu(m: Any, x: Tensor) -> Tensor:
    u = torch.clamp(x, min=0)
    w = m.weight
    return ((w[0] * u + w[1]) * u + w[2]) * u + m.bias


def _xielu(m: Any, x: Tensor) -> Tensor:
    ap = torch.log1p(torch.exp(m.alpha_p))
    an = m.beta + torch.log1p(torch.exp(m.alpha_n))
    return torch.where(x > 0, ap * x * x, an * (torch.exp(torch.clamp(x, max=-1e-6)) - 1) - an * x) + m.beta * x


def _la(m: Any, x: Tensor) -> Tensor:
    """A stack and a product of matrices in place of a loop."""
    values = [x, torch.clamp(x, min=0), torch.clamp(x, min=0) ** 2, torch.maximum(x, 0.01 * x)]
    values += [functional.gelu(x), x * torch.sigmoid(x), torch.tanh(x)]
    return torch.stack(values, dim=-1) @ m.coefficients


def moa(m: Any, h: Tensor, source: Tensor) -> Tensor:
    """As `MixtureOfActivations` with sigmoid gates: a stack times its gates, summed up."""
    gates = _sigmoid(source @ m.router.weight.T)
    values = [h, torch.clamp(h, min=0), torch.clamp(h, min=0) ** 2, torch.maximum(h, 0.01 * h)]
    values += [functional.gelu(h), h * torch.sigmoid(h), torch.tanh(h)]
    return (torch.stack(values, dim=-1) * gates.unsqueeze(-2)).sum(-1)


def _norm(z: Tensor, epsilon: float) -> Tensor:
    return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + epsilon)


def _polynorm(m: Any, x: Tensor) -> Tensor:
    terms = [w * _norm(x**power, m.epsilon) for w, power in zip(m.weight, (3, 2, 1), strict=True)]
    return terms[0] + terms[1] + terms[2] + m.bias


def _polynorm_bounded(m: Any, x: Tensor) -> Tensor:
    w, b = torch.sigmoid(m.weight), torch.clamp(m.bias, -0.5, 0.5)
    square = x * x
    terms = [w[0] * _norm(square * x, m.epsilon), w[1] * _norm(square, m.epsilon), w[2] * _norm(x, m.epsilon)]
    return 0.5 * (sum(terms) + b)


def _acon_c(m: Any, x: Tensor) -> Tensor:
    p = (m.p1 - m.p2) * x
    return p / (1 + torch.exp(-m.beta * p)) + m.p2 * x


EAGER: Mapping[str, Eager] = {
    "relu": lambda _, x: torch.clamp(x, min=0),
    "relu6": lambda _, x: torch.clamp(x, 0, 6),
    "relu2": lambda _, x: torch.square(torch.clamp(x, min=0)),
    "leaky_relu": lambda _, x: torch.maximum(x, 0.01 * x),
    "elu": lambda _, x: _elu(x, 1.0),
    "celu": lambda _, x: torch.clamp(x, min=0) + torch.clamp(0.5 * (torch.exp(x / 0.5) - 1), max=0),
    "selu": lambda _, x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "softplus": lambda _, x: torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x))),
    "softsign": lambda _, x: x / (1 + x.abs()),
    "sigmoid": lambda _, x: _sigmoid(x),
    "tanh": lambda _, x: 2 * torch.sigmoid(2 * x) - 1,
    "hard_sigmoid": lambda _, x: torch.clamp(x + 3, 0, 6) / 6,
    "hardtanh": lambda _, x: torch.clamp(x, -1, 1),
    "logsigmoid": lambda _, x: torch.clamp(x, max=0) - torch.log1p(torch.exp(-torch.abs(x))),
    "tanhshrink": lambda _, x: x - torch.tanh(x),
    "gelu": lambda _, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "gelu_tanh": lambda _, x: _gelu_tanh(x),
    "gelu_10": lambda _, x: torch.clip(functional.gelu(x), -10, 10),
    "quick_gelu": lambda _, x: torch.sigmoid(1.702 * x) * x,
    "silu": lambda _, x: x * torch.sigmoid(x),
    "swish": lambda m, x: x * _sigmoid(m.beta * x),
    "swish_per_channel": lambda m, x: x * _sigmoid(m.beta * x),
    "mish": lambda _, x: x * torch.tanh(functional.softplus(x)),
    "hardswish": lambda _, x: x * functional.relu6(x + 3) / 6,
    "laplace": lambda _, x: 0.5 + 0.5 * torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))),
    "sqrt_softplus": lambda _, x: torch.sqrt(functional.softplus(x)),
    "prelu": _prelu,
    "prelu_per_channel": _prelu,
    "rational_a": _rational_a,
    "rational_b": _rational_b,
    "rational_c": _rational_c,
    "rational_d": _rational_b,
    "apl": _apl,
    "polyrelu": _polyrelu,
    "xielu": _xielu,
    "dyt": lambda m, x: torch.tanh(m.alpha * x) * m.weight + m.bias,
    "derf": lambda m, x: torch.erf(m.alpha * x + m.shift) * m.weight + m.bias,
    "la": _la,
    "polynorm": _polynorm,
    "polynorm_bounded": _polynorm_bounded,
    "acon_c": _acon_c,
}
