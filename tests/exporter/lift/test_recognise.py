"""Functions that equal a known one at most points, and not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from actx.exporter.lift import lift
from actx.exporter.load.prepare import prepare
from tests.networks import HIDDEN, Graph, onnx_mlp

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
