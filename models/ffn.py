"""The feed-forward layers of transformers, one class per structure, and a registry of them.

Every layer takes [..., tokens, width] to the same shape. `AttentionDrivenFFN` takes a second tensor of that shape, the output
of the attention sub-layer. `FFNS[structure](width, hidden, activation)` makes any of them; of a gated one the activation
is the gate's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import torch
from torch import nn

from actx.models.activations import (
    DICTIONARY,
    ActivationFactory,
    ContextAwareMixture,
    Gate,
    MixtureOfActivations,
    identity,
    make_activation,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

Layout: TypeAlias = Literal["split", "interleaved"]
ActivationLike: TypeAlias = str | ActivationFactory

MAX_POSITIONS = 256
"""Tokens that `ContextAwareFFN` has gates for."""


class FFNFactory(Protocol):
    """Makes a feed-forward layer."""

    def __call__(self, width: int, hidden: int, activation: ActivationLike | None = None) -> nn.Module:
        """Return a new layer; without an activation it has that of its structure."""


def make_ffn(
    structure: str | FFNFactory, width: int, hidden: int, activation: ActivationLike | None = None
) -> nn.Module:
    """Return a new feed-forward layer, given its name in `FFNS` or a factory.

    Args:
        structure: a name, or what makes the module.
        width: features per token.
        hidden: features that the activation acts on.
        activation: a name in `ACTIVATIONS` or a factory; None for the structure's own.

    Raises:
        ValueError: there is no structure or activation of that name, or the structure has no activation to choose.
    """
    if not isinstance(structure, str):
        return structure(width, hidden, activation)
    if structure not in FFNS:
        msg = f"no feed-forward layer is called {structure!r}; there are {', '.join(FFNS)}"
        raise ValueError(msg)
    return FFNS[structure](width, hidden, activation)


class PlainFFN(nn.Module):
    """Down(f(Up(x)))."""

    def __init__(self, width: int, hidden: int, activation: ActivationLike = "gelu", *, bias: bool = True) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias)
        self.activation = make_activation(activation, hidden)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        result: Tensor = self.down(self.activation(self.up(x)))
        return result


class GatedFFN(nn.Module):
    """Down(f(Gate(x)) * Up(x)) of three linear layers (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, activation: ActivationLike = "silu", *, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias)
        self.activation = make_activation(activation, hidden)
        self.up = nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        result: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return result


class PackedGatedFFN(nn.Module):
    """`GatedFFN` with gate and up in one linear layer of width 2 * hidden.

    Args:
        width: features per token.
        hidden: features of the gate.
        activation: a name in `ACTIVATIONS`, or a factory.
        layout: ``split`` has the halves one after the other, ``interleaved`` every other feature.
        gate: 0 where the gate is the first half or the even features, 1 where it is the other.
        bias: whether the linear layers have one.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: ActivationLike = "silu",
        *,
        layout: Layout = "split",
        gate: Literal[0, 1] = 0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.gate = gate
        self.gate_up = nn.Linear(width, 2 * hidden, bias)
        self.activation = make_activation(activation, hidden)
        self.down = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        packed = self.gate_up(x)
        halves = packed.chunk(2, dim=-1) if self.layout == "split" else (packed[..., ::2], packed[..., 1::2])
        result: Tensor = self.down(self.product(halves[self.gate], halves[1 - self.gate]))
        return result

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return f(gate) * up."""
        result: Tensor = self.activation(gate) * up
        return result


class ClampedGatedFFN(PackedGatedFFN):
    """Down(f(min(gate, 7)) * (clip(up, -7, 7) + 1)), interleaved and with biases, as gpt-oss has it (arXiv 2508.10925)."""

    LIMIT = 7.0

    def __init__(self, width: int, hidden: int, activation: ActivationLike = "quick_gelu") -> None:
        super().__init__(width, hidden, activation, layout="interleaved", bias=True)

    def product(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return f(min(gate, 7)) * (clip(up, -7, 7) + 1)."""
        result: Tensor = self.activation(gate.clamp(max=self.LIMIT)) * (up.clamp(-self.LIMIT, self.LIMIT) + 1)
        return result


class _MixtureFFN(nn.Module):
    """A feed-forward layer whose activation is a mixture with gates from a tensor of the same width."""

    def __init__(self, width: int, hidden: int, *, entries: Sequence[str] = DICTIONARY, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = MixtureOfActivations(width, entries, gate)
        self.down = nn.Linear(hidden, width)


class MoAFFN(_MixtureFFN):
    """Type I of arXiv 2605.26647: Down(sum_k pi_k f_k(Up(x))), pi = gate(u . x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        result: Tensor = self.down(self.activation(self.up(x), x))
        return result


class AttentionDrivenFFN(_MixtureFFN):
    """`MoAFFN` whose gates are computed from the attention sub-layer's output of the same token."""

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return a tensor of the shape of x and attended."""
        result: Tensor = self.down(self.activation(self.up(x), attended))
        return result


class MoABilinearFFN(nn.Module):
    """Type II "bi" of arXiv 2605.26647: Down([sum_k rho_k f_k(Gate(x))] * [sum_l pi_l f_l(Up(x))])."""

    def __init__(self, width: int, hidden: int, *, entries: Sequence[str] = DICTIONARY, gate: Gate = "sigmoid") -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.gate_activation = MixtureOfActivations(width, entries, gate)
        self.up = nn.Linear(width, hidden, bias=False)
        self.up_activation = MixtureOfActivations(width, entries, gate)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        product = self.gate_activation(self.gate(x), x) * self.up_activation(self.up(x), x)
        result: Tensor = self.down(product)
        return result


class ContextAwareFFN(nn.Module):
    """Down(sum_k g_k f_k(Up(x))), the gates g looked up by the position of each of at most `positions` tokens."""

    def __init__(
        self, width: int, hidden: int, *, entries: Sequence[str] = DICTIONARY, positions: int = MAX_POSITIONS
    ) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = ContextAwareMixture(positions, entries)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        position = torch.arange(x.shape[-2], device=x.device)
        result: Tensor = self.down(self.activation(self.up(x), position))
        return result


class ExpertsFFN(nn.Module):
    """sum_e p_e(x) FFN_e(x), p = softmax(r . x): every expert is a `PlainFFN`, with an activation of its own, and all run."""

    def __init__(
        self, width: int, hidden: int, activations: Sequence[ActivationLike] = ("gelu", "silu", "relu2", "mish")
    ) -> None:
        super().__init__()
        self.router = nn.Linear(width, len(activations), bias=False)
        self.experts = nn.ModuleList(PlainFFN(width, hidden, activation) for activation in activations)

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        share = self.router(x).softmax(dim=-1)
        total: Tensor = share[..., 0:1] * self.experts[0](x)
        for e in range(1, len(self.experts)):
            total = total + share[..., e : e + 1] * self.experts[e](x)
        return total


# --- the registry ---


def _of_one(make: Callable[..., nn.Module]) -> FFNFactory:
    """Return the factory of a structure that takes an activation."""

    def build(width: int, hidden: int, activation: ActivationLike | None = None) -> nn.Module:
        return make(width, hidden) if activation is None else make(width, hidden, activation)

    return build


def _of_its_own(make: Callable[[int, int], nn.Module]) -> FFNFactory:
    """Return the factory of a structure whose activations cannot be chosen."""

    def build(width: int, hidden: int, activation: ActivationLike | None = None) -> nn.Module:
        if activation is not None:
            msg = f"this feed-forward layer has activations of its own: it cannot take {activation}"
            raise ValueError(msg)
        return make(width, hidden)

    return build


def _experts(width: int, hidden: int, activation: ActivationLike | None = None) -> nn.Module:
    return ExpertsFFN(width, hidden) if activation is None else ExpertsFFN(width, hidden, [activation] * 4)


FFNS: Mapping[str, FFNFactory] = {
    "plain": _of_one(PlainFFN),
    "gated": _of_one(GatedFFN),
    "gated_bias": _of_one(partial(GatedFFN, bias=True)),
    "bilinear": _of_its_own(partial(GatedFFN, activation=identity)),
    "packed": _of_one(PackedGatedFFN),
    "packed_bias": _of_one(partial(PackedGatedFFN, bias=True)),
    "packed_gate_second": _of_one(partial(PackedGatedFFN, gate=1)),
    "interleaved": _of_one(partial(PackedGatedFFN, layout="interleaved")),
    "interleaved_gate_second": _of_one(partial(PackedGatedFFN, layout="interleaved", gate=1)),
    "clamped": _of_one(ClampedGatedFFN),
    "moa": _of_its_own(MoAFFN),
    "moa_bilinear": _of_its_own(MoABilinearFFN),
    "context_aware": _of_its_own(ContextAwareFFN),
    "attention_driven": _of_its_own(AttentionDrivenFFN),
    "experts": _experts,
}
"""Every structure of a feed-forward layer: its name, and what makes it."""
