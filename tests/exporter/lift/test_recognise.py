"""Functions that equal a known one at most points, and not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.custom_ops import ACTIVATIONS, FAMILIES, REGISTERED, activation
from actx.exporter.lift import ScalarFunction, lift
from actx.exporter.lift.function import Constant, Step, is_affine
from actx.exporter.lift.recognise import recognise
from actx.exporter.load.prepare import prepare
from tests.networks import HIDDEN, SPELLINGS, UNNAMED, Graph, Spelling, onnx_mlp

if TYPE_CHECKING:
    from collections.abc import Callable


def _threshold(g: Graph, x: str) -> str:
    """torch.nn.Threshold(0.05, 0)."""
    return g.op("Where", g.op("Greater", x, 0.05), x, g.constant(0.0))


def _hardshrink(g: Graph, x: str) -> str:
    return g.op("Where", g.op("Greater", g.op("Abs", x), 0.05), x, g.constant(0.0))


def _leaky_threshold(g: Graph, x: str) -> str:
    return g.op("Where", g.op("Greater", x, 0.05), x, g.op("Mul", x, 0.1))


def _tanh_with_a_notch(g: Graph, x: str) -> str:
    """Tanh but for (3.02, 3.08), between two points of a grid of tenths."""
    inside = g.op("And", g.op("Greater", x, 3.02), g.op("Less", x, 3.08))
    return g.op("Where", inside, g.constant(0.0), g.op("Tanh", x))


def _prelu_with_a_threshold(g: Graph, x: str) -> str:
    """A PReLU per channel with a dead zone."""
    slopes = np.linspace(0.1, 0.9, HIDDEN).astype(np.float32)
    return g.op("Where", g.op("Greater", g.op("Abs", x), 0.05), g.op("PRelu", x, slopes), g.constant(0.0))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "write", [_threshold, _hardshrink, _leaky_threshold, _tanh_with_a_notch, _prelu_with_a_threshold]
)
def test_a_kink_between_points_of_a_grid_is_seen(write: Callable[[Graph, str], str], dtype: str) -> None:
    model = ir.from_proto(onnx_mlp(write, 18, dtype))
    prepare(model)
    (site,) = lift(model).sites
    assert (site.kind, site.parameters) == ("scalar", {})


# --- no false names ---

UNITS = {"float32": 2.0**-24, "float16": 2.0**-11}
UNARY = ("Tanh", "Sigmoid", "Relu", "Abs", "Neg", "Erf", "Softplus", "Exp", "Sqrt", "Reciprocal", "Gelu", "HardSwish")
BINARY = ("Add", "Mul", "Max", "Min", "Sub", "Div")
PLACES = np.concatenate([np.linspace(-11.87, 11.93, 4001), [-4321.0, -55.0, 55.0, 4321.0]])


@st.composite
def programs(draw: st.DrawFn) -> ScalarFunction:
    """Any few ops in a row, each on what was computed before it."""
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            steps.append(Step(("", draw(st.sampled_from(UNARY))), {}, (i,)))
            continue
        constant = Constant(np.array(draw(st.sampled_from((-2.0, -0.5, 0.25, 1.0, 1.7, 3.0)))))
        other = draw(st.one_of(st.integers(0, i), st.just(constant)))
        steps.append(Step(("", draw(st.sampled_from(BINARY))), {}, (i, other)))
    return ScalarFunction(tuple(steps))


@settings(max_examples=300, deadline=None)
@given(programs(), st.sampled_from(sorted(UNITS)))
def test_a_name_is_never_false(function: ScalarFunction, dtype: str) -> None:
    """Between the points that decide the name, too, f is what its name and parameters say, to rounding of its type."""
    if is_affine(function):
        return
    kind, parameters = recognise(function, UNITS[dtype])
    if kind == UNNAMED:
        return
    family = FAMILIES.get(kind)
    entry = ACTIVATIONS[kind] if family is None else family.member(tuple(parameters))
    y = function(PLACES)
    with np.errstate(all="ignore"):
        error = np.abs(entry.formula(PLACES, *parameters.values()) - y) / (1 + np.abs(PLACES) + np.abs(y))
    assert error[np.isfinite(y)].max() <= max(0.5 * UNITS[dtype], 8 * 2.0**-24)


@pytest.mark.parametrize("dtype", sorted(UNITS))
@pytest.mark.parametrize("outer", ["tanh", "gelu_new", "silu", "mish_decomposed", "softplus", "relu2_mul"])
@pytest.mark.parametrize("inner", ["tanh", "gelu_legacy", "softsign", "xielu", "apl", "rational_b"])
def test_one_activation_of_another_has_no_name(inner: str, outer: str, dtype: str) -> None:
    def write(g: Graph, x: str) -> str:
        return SPELLINGS[outer].write(g, g.op("Add", SPELLINGS[inner].write(g, x), 0.25))

    model = ir.from_proto(onnx_mlp(write, 18, dtype))
    prepare(model)
    assert [(site.kind, site.parameters) for site in lift(model).sites] == [(UNNAMED, {})]


# --- names of the user ---


def _kind(spelling: Spelling) -> str:
    model = ir.from_proto(spelling.model())
    prepare(model)
    (site,) = lift(model).sites
    return site.kind


def test_a_registered_function_names_its_sites_alone() -> None:
    assert _kind(SPELLINGS["snake"]) == UNNAMED
    activation("snake_2", SPELLINGS["snake"].formula)
    activation("my_gelu", ACTIVATIONS["gelu"].formula)
    try:
        assert [_kind(SPELLINGS[name]) for name in ("snake", "serf", "gelu_legacy")] == ["snake_2", UNNAMED, "gelu"]
    finally:
        REGISTERED.clear()
