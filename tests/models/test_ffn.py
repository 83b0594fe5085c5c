"""Every structure against its formula, written with torch functions over the layer's own weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional as f

from actx.models.activations import ACTIVATIONS
from actx.models.ffn import (
    FFNS,
    AttentionDrivenFFN,
    ClampedGatedFFN,
    ContextAwareFFN,
    ExpertsFFN,
    GatedFFN,
    MoABilinearFFN,
    MoAFFN,
    PackedGatedFFN,
    PlainFFN,
    make_ffn,
)

if TYPE_CHECKING:
    from torch import Tensor

    from actx.models.ffn import Layout

WIDTH, HIDDEN = 6, 10
MAX_ABS = 1e-5
ITS_OWN = ("bilinear", "moa", "moa_bilinear", "context_aware", "attention_driven")


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return 3 * torch.randn(2, 5, WIDTH)


def _agree(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=MAX_ABS)


@pytest.mark.parametrize("structure", FFNS)
def test_every_structure_keeps_the_shape(structure: str, x: Tensor) -> None:
    layer = make_ffn(structure, WIDTH, HIDDEN)
    y = layer(x, x) if structure == "attention_driven" else layer(x)
    assert y.shape == x.shape
    torch.autograd.backward(y.sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", [name for name in FFNS if name not in ITS_OWN])
def test_every_activation_fits_every_structure(structure: str, activation: str, x: Tensor) -> None:
    assert make_ffn(structure, WIDTH, HIDDEN, activation)(x).isfinite().all()


def test_plain(x: Tensor) -> None:
    layer = PlainFFN(WIDTH, HIDDEN, "mish")
    _agree(layer(x), layer.down(f.mish(layer.up(x))))


def test_gated(x: Tensor) -> None:
    layer = GatedFFN(WIDTH, HIDDEN)
    _agree(layer(x), layer.down(f.silu(layer.gate(x)) * layer.up(x)))


def test_bilinear(x: Tensor) -> None:
    layer = make_ffn("bilinear", WIDTH, HIDDEN)
    assert isinstance(layer, GatedFFN)
    _agree(layer(x), layer.down(layer.gate(x) * layer.up(x)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gate", [0, 1])
@pytest.mark.parametrize("layout", ["split", "interleaved"])
def test_packed_is_gated_with_the_rows_of_both(layout: Layout, gate: int, bias: bool, x: Tensor) -> None:
    apart = GatedFFN(WIDTH, HIDDEN, "gelu", bias=bias)
    packed = PackedGatedFFN(WIDTH, HIDDEN, "gelu", layout=layout, gate=1 if gate else 0, bias=bias)
    state = {name: value for name, value in apart.state_dict().items() if name.startswith("down")}
    for name in ("weight", "bias") if bias else ("weight",):
        halves = [apart.state_dict()[f"{part}.{name}"] for part in (("up", "gate") if gate else ("gate", "up"))]
        rows = torch.cat(halves) if layout == "split" else torch.stack(halves, dim=1).flatten(0, 1)
        state[f"gate_up.{name}"] = rows
    packed.load_state_dict(state)
    _agree(packed(x), apart(x))


def test_clamped(x: Tensor) -> None:
    layer = ClampedGatedFFN(WIDTH, HIDDEN)
    packed = layer.gate_up(20 * x)
    assert packed.abs().max() > 14  # both limits are reached
    gate, up = packed[..., ::2].clamp(max=7), packed[..., 1::2].clamp(-7, 7)
    _agree(layer(20 * x), layer.down(gate * torch.sigmoid(1.702 * gate) * (up + 1)))


def test_mixtures(x: Tensor) -> None:
    first = MoAFFN(WIDTH, HIDDEN)
    _agree(first(x), first.down(first.activation(first.up(x), x)))
    second = MoABilinearFFN(WIDTH, HIDDEN, gate="softmax")
    product = second.gate_activation(second.gate(x), x) * second.up_activation(second.up(x), x)
    _agree(second(x), second.down(product))


def test_gates_of_the_attention_and_of_the_position(x: Tensor) -> None:
    driven, attended = AttentionDrivenFFN(WIDTH, HIDDEN), torch.randn_like(x)
    _agree(driven(x, attended), driven.down(driven.activation(driven.up(x), attended)))
    assert not torch.allclose(driven(x, attended), driven(x, x), atol=1e-3)
    aware = ContextAwareFFN(WIDTH, HIDDEN)
    same = x[:, :1].expand_as(x)
    assert not torch.allclose(aware(same)[:, 0], aware(same)[:, 1], atol=1e-3)


def test_experts(x: Tensor) -> None:
    layer = ExpertsFFN(WIDTH, HIDDEN, ("gelu", "relu2"))
    share = torch.softmax(layer.router(x), -1)
    first, second = layer.experts
    _agree(layer(x), share[..., :1] * first(x) + share[..., 1:] * second(x))
    kinds = [type(expert.activation) for expert in ExpertsFFN(WIDTH, HIDDEN).experts if isinstance(expert, PlainFFN)]
    assert len(set(kinds)) == 4


def test_factories_are_taken(x: Tensor) -> None:
    layer = make_ffn(lambda width, hidden, activation=None: nn.Linear(width, width), WIDTH, HIDDEN)
    assert isinstance(layer, nn.Linear)
    chosen = make_ffn("gated", WIDTH, HIDDEN, lambda features, axis=-1: nn.Hardswish())
    assert isinstance(chosen, GatedFFN)
    _agree(chosen(x), chosen.down(f.hardswish(chosen.gate(x)) * chosen.up(x)))


@pytest.mark.parametrize("structure", ITS_OWN)
def test_an_activation_is_refused_where_there_is_none_to_choose(structure: str) -> None:
    with pytest.raises(ValueError, match="has activations of its own: it cannot take mish"):
        make_ffn(structure, WIDTH, HIDDEN, "mish")


def test_unknown_structure_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no feed-forward layer is called 'glu'; there are plain, "):
        make_ffn("glu", WIDTH, HIDDEN)
