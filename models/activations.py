"""Torch modules of the activations that have no class in `torch.nn`, and a registry of them all.

`ACTIVATIONS[name](features)` makes any activation of one tensor, torch's own among them. A module with a parameter per
channel finds its channels on `axis`, counted from the end: -1 of [..., channels], -3 of images [batch, channels, height,
width]. Its parameters are stored in the shape that they broadcast in, so that no graph holds a reshape of them.
The mixtures (`MixtureOfActivations`, `ContextAwareMixture`) are of two tensors: what they act on, and what decides the gates.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import nn
from torch.nn import functional

# Registers torch.ops.actx.*
import actx.custom_ops.torch_ops  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

RationalVersion: TypeAlias = Literal["A", "B", "C", "D"]
Gate: TypeAlias = Literal["sigmoid", "softmax", "tanh"]

IMAGE_CHANNELS = -3
"""The axis of the channels of [batch, channels, height, width]."""

DICTIONARY = ("identity", "relu", "relu2", "leaky_relu", "gelu", "silu", "tanh")
"""The entries of the mixtures of arXiv 2605.26647."""


class ActivationFactory(Protocol):
    """Makes an activation of tensors with so many channels on the given axis."""

    def __call__(self, features: int, axis: int = -1) -> nn.Module:
        """Return a new module, with parameters of its own."""


def make_activation(activation: str | ActivationFactory, features: int, axis: int = -1) -> nn.Module:
    """Return a new activation, given its name in `ACTIVATIONS` or a factory.

    Args:
        activation: a name, or what makes the module.
        features: number of channels.
        axis: the axis of the channels, counted from the end.

    Raises:
        ValueError: there is no activation of that name, or it cannot have its channels on that axis.
    """
    if not isinstance(activation, str):
        return activation(features, axis)
    if activation not in ACTIVATIONS:
        msg = f"no activation is called {activation!r}; there are {', '.join(ACTIVATIONS)}"
        raise ValueError(msg)
    return ACTIVATIONS[activation](features, axis)


def identity(features: int, axis: int = -1) -> nn.Module:
    """Make ``nn.Identity``: no activation, but the gate of a bilinear feed-forward layer and an entry of mixtures."""
    del features, axis
    return nn.Identity()


def _shape(features: int, axis: int) -> tuple[int, ...]:
    """Return the shape in which a parameter per channel broadcasts."""
    return (features, *[1] * (-axis - 1))


# --- fixed functions ---


class ReLU2(nn.Module):
    """relu(x)^2 (Primer, arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return functional.relu(x).square()


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x) (Hendrycks and Gimpel, arXiv 1606.08415; the GELU of CLIP)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return x * torch.sigmoid(1.702 * x)


class ClippedGELU(nn.Module):
    """gelu(x) within [-10, 10] (arXiv 2004.09602; `gelu_10` of Hugging Face)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return functional.gelu(x).clamp(-10.0, 10.0)


class Laplace(nn.Module):
    """(1 + erf((x - m) / (s sqrt 2))) / 2, m = 0.707107, s = 0.282095 (Mega, arXiv 2209.10655)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


class SqrtSoftplus(nn.Module):
    """sqrt(softplus(x)) (the router scores of DeepSeek-V4)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return functional.softplus(x).sqrt()


# --- with parameters ---


class Swish(nn.Module):
    """x sigmoid(beta x), beta = 1 at first (arXiv 1710.05941).

    Args:
        features: number of betas, one per channel; None for one of the whole layer, [1].
        axis: the axis of the channels, counted from the end.
    """

    def __init__(self, features: int | None = None, axis: int = -1) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1 if features is None else _shape(features, axis)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return x * torch.sigmoid(self.beta * x)


class PReLU(nn.Module):
    """max(0, x) + a min(0, x), a = 1/4 per channel at first (arXiv 1502.01852).

    ``nn.PReLU`` has its channels on axis 1, which of [batch, tokens, channels] are the tokens.
    """

    def __init__(self, features: int, axis: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(_shape(features, axis), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return x.clamp(min=0.0) + self.weight * x.clamp(max=0.0)


class APL(nn.Module):
    """max(0, x) + sum_s a_s max(0, -x + b_s), a_s and b_s per channel (arXiv 1412.6830).

    Args:
        features: number of channels.
        axis: the axis of the channels, counted from the end.
        hinges: S. `slopes` and `offsets` are [S, channels], drawn at first from N(0, 0.1^2) and N(0, 1).
    """

    def __init__(self, features: int, axis: int = -1, hinges: int = 2) -> None:
        super().__init__()
        shape = (hinges, *_shape(features, axis))
        self.slopes = nn.Parameter(0.1 * torch.randn(shape))
        self.offsets = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        total = functional.relu(x)
        for slope, offset in zip(self.slopes, self.offsets, strict=True):
            total = total + slope * functional.relu(offset - x)
        return total


class PolyReLU(nn.Module):
    """w0 u^3 + w1 u^2 + w2 u + b with u = relu(x) (PolyCom, arXiv 2411.03884).

    `weight` [3] is 1/3 and `bias` [1] is 0 at first; weight[0] is that of the CUBE.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        u = functional.relu(x)
        return self.weight[0] * u**3 + self.weight[1] * u**2 + self.weight[2] * u + self.bias


class XIELU(nn.Module):
    """x > 0: ap x^2 + b x; else an (expm1(min(x, -1e-6)) - x) + b x (arXiv 2411.13010).

    ap = softplus(`alpha_p`) = 0.8, b = 0.5 and an = b + softplus(`alpha_n`) = 0.8 at first; the parameters are [1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = 0.5
        self.alpha_p = nn.Parameter(torch.tensor([math.log(math.expm1(0.8))]))
        self.alpha_n = nn.Parameter(torch.tensor([math.log(math.expm1(0.8 - self.beta))]))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        positive = functional.softplus(self.alpha_p) * x * x + self.beta * x
        alpha = self.beta + functional.softplus(self.alpha_n)
        negative = alpha * (torch.expm1(x.clamp(max=-1e-6)) - x) + self.beta * x
        return torch.where(x > 0, positive, negative)


# Numerator from x^0 and denominator from x^1 (C: from x^0), fitted to GELU by least squares over 1201 points of [-3, 3]. The
# largest errors there are 3.3e-3, 9.2e-4 and 1.5e-3. The last number of A is not 0: |b| would have no gradient there.
_RATIONAL_GELU: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "A": (
        (-0.0012381608, 0.50306802, 0.41122859, 0.11920555, 0.017154632, 0.0015905815),
        (0.03132304, 0.19693254, 0.0200058, 2.5858603e-09),
    ),
    "B": (
        (-0.00042367812, 0.5, 0.40269135, 0.073742239, -0.012896458, -0.0037302762),
        (0.0, 0.1474845, 0.0, -0.007460552),
    ),
    "C": (
        (-3.7650501e-05, 0.053441578, 0.049302701, 0.012680082, -0.00024701445, -0.00032361724),
        (0.0070157751, 0.012527248, 0.014974674, 0.002800764, -0.0008899079),
    ),
}


class Rational(nn.Module):
    """P(x) / Q(x), degrees 5 and 4, one for the layer (Padé activation units, arXiv 1907.06732).

    A: Q = 1 + sum |b_i x^i|; B: 1 + |sum b_i x^i|; C: 0.1 + |sum b_i x^i| from i = 0 on; D: B, with each coefficient times
    a number of [0.9, 1.1] at random while training.
    `numerator` [6] and `denominator` [4] (C: [5]), from the lowest power, make a GELU on [-3, 3] at first; beyond, they do not.
    """

    def __init__(self, version: RationalVersion = "A") -> None:
        super().__init__()
        self.version = version
        numerator, denominator = _RATIONAL_GELU["B" if version == "D" else version]
        self.numerator = nn.Parameter(torch.tensor(numerator))
        self.denominator = nn.Parameter(torch.tensor(denominator))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        p, q = self._coefficients()
        if self.version == "C":
            return _polynomial(p, x) / (0.1 + _polynomial(q, x).abs())
        if self.version == "A":
            return _polynomial(p, x) / (1.0 + _polynomial(q.abs(), x.abs()) * x.abs())
        return _polynomial(p, x) / (1.0 + (_polynomial(q, x) * x).abs())

    def _coefficients(self) -> tuple[Tensor, Tensor]:
        if self.version != "D" or not self.training:
            return self.numerator, self.denominator
        p, q = self.numerator, self.denominator
        return p * torch.empty_like(p).uniform_(0.9, 1.1), q * torch.empty_like(q).uniform_(0.9, 1.1)


def _polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    """Evaluate by Horner's rule, the coefficients [n] from the lowest power."""
    value = coefficients[-1] * x
    for i in range(len(coefficients) - 2, 0, -1):
        value = (value + coefficients[i]) * x
    return value + coefficients[0]


class DyT(nn.Module):
    """w tanh(a x) + c in place of a norm: a [1] = 1/2, w and c per channel, 1 and 0 at first (arXiv 2503.10622)."""

    def __init__(self, features: int, axis: int = -1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight = nn.Parameter(torch.ones(_shape(features, axis)))
        self.bias = nn.Parameter(torch.zeros(_shape(features, axis)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return self.weight * torch.tanh(self.alpha * x) + self.bias


class Derf(nn.Module):
    """w erf(a x + s) + c in place of a norm: a [1] = 1/2, s [1] = 0, w and c as of `DyT` (arXiv 2512.10938)."""

    def __init__(self, features: int, axis: int = -1) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.shift = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(_shape(features, axis)))
        self.bias = nn.Parameter(torch.zeros(_shape(features, axis)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return self.weight * torch.erf(self.alpha * x + self.shift) + self.bias


class LearnableActivation(nn.Module):
    """sum_k a_k f_k(x), a_k = 1 at first, [entries], of the layer (arXiv 2605.26647).

    Args:
        entries: names in `ACTIVATIONS` of activations, or ``identity``.
            One with parameters per channel has one set of them for all channels.
    """

    def __init__(self, entries: Sequence[str] = DICTIONARY) -> None:
        super().__init__()
        self.entries = _entries(entries)
        self.coefficients = nn.Parameter(torch.ones(len(entries)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return _mixture(self.entries, self.coefficients, x)


# --- rows ---


class PolyNorm(nn.Module):
    """w0 N(x^3) + w1 N(x^2) + w2 N(x) + b, N(z) = z / sqrt(mean(z^2) + epsilon) over the last axis (arXiv 2411.03884).

    `weight` [3] is 1/3 and `bias` [1] is 0 at first; weight[0] is that of the CUBE. Calls ``torch.ops.actx.polynorm``.
    """

    def __init__(self, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.full((3,), 1 / 3))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        result: Tensor = torch.ops.actx.polynorm(x, self.weight, self.bias, epsilon=self.epsilon)
        return result


class BoundedPolyNorm(PolyNorm):
    """(sum_i sigmoid(w_i) N(x^(3 - i)) + clip(b, -1/2, 1/2)) / 2: the same op with bounded coefficients."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        weight, bias = 0.5 * torch.sigmoid(self.weight), 0.5 * self.bias.clamp(-0.5, 0.5)
        result: Tensor = torch.ops.actx.polynorm(x, weight, bias, epsilon=self.epsilon)
        return result


# --- mixtures ---


def _sigmoid(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits)


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def _tanh(logits: Tensor) -> Tensor:
    return torch.tanh(logits)


_GATES: Mapping[Gate, Callable[[Tensor], Tensor]] = {"sigmoid": _sigmoid, "softmax": _softmax, "tanh": _tanh}


def _entries(names: Sequence[str]) -> nn.ModuleList:
    # One channel, as a mixture does not know how many there are.
    return nn.ModuleList(nn.Identity() if name == "identity" else make_activation(name, 1) for name in names)


def _mixture(entries: nn.ModuleList, gates: Tensor, h: Tensor) -> Tensor:
    """Return sum_k gates[..., k:k+1] * f_k(h) for gates [..., entries]."""
    total: Tensor = gates[..., 0:1] * entries[0](h)
    for k in range(1, len(entries)):
        total = total + gates[..., k : k + 1] * entries[k](h)
    return total


class MixtureOfActivations(nn.Module):
    """sum_k pi_k f_k(h), pi = gate(u . source), one number per token and entry (MoA, arXiv 2605.26647).

    Of MoA the source is the input of the feed-forward layer. With the attention sub-layer's output for a source this is the
    attention-driven activation.

    Args:
        source_features: width of the tensor that decides the gates.
        entries: names in `ACTIVATIONS` of activations, or ``identity``.
            One with parameters per channel has one set of them for all channels.
        gate: what makes gates of the logits; softmax is over the entries.
    """

    def __init__(self, source_features: int, entries: Sequence[str] = DICTIONARY, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.entries = _entries(entries)
        self.router = nn.Linear(source_features, len(entries), bias=False)
        self.gate = gate

    def forward(self, h: Tensor, source: Tensor) -> Tensor:
        """Return a tensor of the shape of h [..., tokens, hidden]; source is [..., tokens, source_features]."""
        return _mixture(self.entries, _GATES[self.gate](self.router(source)), h)


class ContextAwareMixture(nn.Module):
    """sum_k g_k f_k(h), the gates g looked up by the kind of each token: its type, or its position.

    Args:
        kinds: number of types or positions.
        entries: names in `ACTIVATIONS` of activations, or ``identity``.
            One with parameters per channel has one set of them for all channels.
        gate: what makes gates of the embedding; softmax is over the entries.
    """

    def __init__(self, kinds: int, entries: Sequence[str] = DICTIONARY, gate: Gate = "softmax") -> None:
        super().__init__()
        self.entries = _entries(entries)
        self.embedding = nn.Embedding(kinds, len(entries))
        self.gate = gate

    def forward(self, h: Tensor, kind: Tensor) -> Tensor:
        """Return a tensor of the shape of h [..., tokens, hidden]; kind is int64 [..., tokens]."""
        return _mixture(self.entries, _GATES[self.gate](self.embedding(kind)), h)


# --- with parameters that depend on the input ---


def _pooled(x: Tensor, axis: int) -> Tensor:
    """Return [batch, channels]: the mean over all axes but the first and that of the channels."""
    others = [i for i in range(1, x.dim()) if i != x.dim() + axis]
    return x.mean(others) if others else x


def _spread(y: Tensor, x: Tensor, axis: int) -> Tensor:
    """Give y [batch, channels] the rank of x, with its channels on the axis."""
    shape = [1] * x.dim()
    shape[0], shape[axis] = -1, y.shape[1]
    return y.reshape(shape)


class DyReLU(nn.Module):
    """max_k(a_k x + b_k), k = 2, with a and b per channel from the pooled input (DyReLU-B, arXiv 2003.10027).

    a = (1, 0) + t and b = t / 2 with t = 2 sigmoid(two linear layers of the mean over tokens or pixels) - 1. As the mean is
    of the whole sequence, a causal decoder cannot have it.

    Args:
        features: number of channels.
        axis: the axis of the channels, counted from the end.
        reduction: by how much the layer between the two is narrower.
    """

    def __init__(self, features: int, axis: int = -1, reduction: int = 8) -> None:
        super().__init__()
        self.axis = axis
        self.squeeze = nn.Linear(features, max(1, features // reduction))
        self.expand = nn.Linear(max(1, features // reduction), 4 * features)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        theta = self.expand(functional.relu(self.squeeze(_pooled(x, self.axis))))
        parts = (2 * torch.sigmoid(theta) - 1).chunk(4, dim=1)
        a, c, b, d = (_spread(part, x, self.axis) for part in parts)
        return torch.maximum((1 + a) * x + 0.5 * b, c * x + 0.5 * d)


class AconC(nn.Module):
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x (arXiv 2009.04759).

    `p1` and `p2` are drawn from N(0, 1) at first, `beta` is 1; all are per channel.
    """

    def __init__(self, features: int, axis: int = -1) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(_shape(features, axis)))
        self.p2 = nn.Parameter(torch.randn(_shape(features, axis)))
        self.beta = nn.Parameter(torch.ones(_shape(features, axis)))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        difference = (self.p1 - self.p2) * x
        return difference * torch.sigmoid(self.beta * difference) + self.p2 * x


class MetaAcon(nn.Module):
    """`AconC` with beta = sigmoid(two linear layers of the mean over tokens or pixels), per channel (arXiv 2009.04759).

    The paper's batch norms behind the two layers are left out. As the mean is of the whole sequence, a causal decoder cannot
    have it.

    Args:
        features: number of channels.
        axis: the axis of the channels, counted from the end.
        reduction: by how much the layer between the two is narrower.
    """

    def __init__(self, features: int, axis: int = -1, reduction: int = 16) -> None:
        super().__init__()
        self.axis = axis
        self.p1 = nn.Parameter(torch.randn(_shape(features, axis)))
        self.p2 = nn.Parameter(torch.randn(_shape(features, axis)))
        self.squeeze = nn.Linear(features, max(1, features // reduction))
        self.expand = nn.Linear(max(1, features // reduction), features)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        beta = torch.sigmoid(self.expand(self.squeeze(_pooled(x, self.axis))))
        difference = (self.p1 - self.p2) * x
        return difference * torch.sigmoid(_spread(beta, x, self.axis) * difference) + self.p2 * x


# --- the registry ---


def _of_layer(make: Callable[[], nn.Module]) -> ActivationFactory:
    """Return the factory of an activation that is the same for all channels."""

    def build(features: int, axis: int = -1) -> nn.Module:
        del features, axis
        return make()

    return build


def _of_rows(make: Callable[[], nn.Module]) -> ActivationFactory:
    """Return the factory of an activation that normalises the channels."""

    def build(features: int, axis: int = -1) -> nn.Module:
        del features
        if axis != -1:
            msg = f"{make.__name__} normalises over the last axis: the channels cannot be on axis {axis}"
            raise ValueError(msg)
        return make()

    return build


ACTIVATIONS: Mapping[str, ActivationFactory] = {
    "relu": _of_layer(nn.ReLU),
    "relu6": _of_layer(nn.ReLU6),
    "relu2": _of_layer(ReLU2),
    "leaky_relu": _of_layer(nn.LeakyReLU),
    "elu": _of_layer(nn.ELU),
    "celu": _of_layer(partial(nn.CELU, 0.5)),  # with alpha 1 it is ELU
    "selu": _of_layer(nn.SELU),
    "softplus": _of_layer(nn.Softplus),
    "softsign": _of_layer(nn.Softsign),
    "sigmoid": _of_layer(nn.Sigmoid),
    "tanh": _of_layer(nn.Tanh),
    "hard_sigmoid": _of_layer(nn.Hardsigmoid),
    "hardtanh": _of_layer(nn.Hardtanh),
    "logsigmoid": _of_layer(nn.LogSigmoid),
    "tanhshrink": _of_layer(nn.Tanhshrink),
    "gelu": _of_layer(nn.GELU),
    "gelu_tanh": _of_layer(partial(nn.GELU, approximate="tanh")),
    "gelu_10": _of_layer(ClippedGELU),
    "quick_gelu": _of_layer(QuickGELU),
    "silu": _of_layer(nn.SiLU),
    "swish": _of_layer(Swish),
    "swish_per_channel": Swish,
    "mish": _of_layer(nn.Mish),
    "hardswish": _of_layer(nn.Hardswish),
    "laplace": _of_layer(Laplace),
    "sqrt_softplus": _of_layer(SqrtSoftplus),
    "prelu": _of_layer(nn.PReLU),
    "prelu_per_channel": PReLU,
    "rational_a": _of_layer(partial(Rational, "A")),
    "rational_b": _of_layer(partial(Rational, "B")),
    "rational_c": _of_layer(partial(Rational, "C")),
    "rational_d": _of_layer(partial(Rational, "D")),
    "apl": APL,
    "polyrelu": _of_layer(PolyReLU),
    "xielu": _of_layer(XIELU),
    "dyt": DyT,
    "derf": Derf,
    "la": _of_layer(LearnableActivation),
    "polynorm": _of_rows(PolyNorm),
    "polynorm_bounded": _of_rows(BoundedPolyNorm),
    "dy_relu": DyReLU,
    "acon_c": AconC,
    "meta_acon": MetaAcon,
}
"""Every activation of one tensor: its name, and what makes it for a number of channels."""
