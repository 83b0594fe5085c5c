"""A gated FFN in any layout becomes one layer, one actx node and the layer behind it, with the numbers that it had."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter import Form, fit
from actx.exporter.choose import KEEP, Choice, choose
from actx.exporter.ffn.product import Refusal
from actx.exporter.lift import lift
from actx.exporter.lift.regions import attributes_of
from actx.exporter.lower import SITE_METADATA, Lowered, lower
from actx.exporter.lower.packing import OTHER_SITE_METADATA
from actx.exporter.save import save
from actx.exporter.targets import TARGETS
from tests.exporter.ffn.graphs import HIDDEN, NETWORKS, WIDTH, Network
from tests.exporter.lift.test_polynorm import polynorm
from tests.exporter.lower.running import UNIT, in_reference, in_runtime, op_types, prepared, values_of
from tests.networks import RANGE, SPELLINGS, Array, Graph

if TYPE_CHECKING:
    from pathlib import Path

    import onnx
    from numpy.typing import DTypeLike

    from actx.exporter.fitting import Fit
    from actx.exporter.lift import Site

# Of the magnitudes that rounding scales with: 8 for the layers, the rest for a chain of some thirty ops.
ROUNDINGS = 64
PLAIN = NETWORKS["matmuls"]


@cache
def fitted(kind: str, form: str) -> Fit:
    model = prepared(PLAIN.model(SPELLINGS[kind].write))
    (site,) = lift(model).sites
    return fit(site.function, Form.parse(form))


def packed(model: ir.Model, choices: list[Choice]) -> Lowered:
    names = [choice.site.name for choice in choices if choice.site.gate is not None]
    return lower(model, choices, packed=names)


def chosen(sites: tuple[Site, ...], form: str = "spline:8x3") -> list[Choice]:
    return [Choice(site, Form.parse(form), fit(site.function, Form.parse(form)), "") for site in sites]


def of_spelling(proto: onnx.ModelProto, kind: str, form: str) -> tuple[ir.Model, Choice]:
    model = prepared(proto)
    (site,) = lift(model).sites
    return model, Choice(site, Form.parse(form), fitted(kind, form), "")


def tapped(model: ir.Model, names: list[str], inputs: dict[str, Array]) -> list[np.ndarray]:
    """Run a model of standard ops with values inside as further outputs, in float64."""
    copy = model.clone()
    values = values_of(copy)
    copy.graph.outputs.extend(values[name] for name in names)
    return [result.astype(np.float64) for result in in_runtime(copy, inputs)]


def behind(network: Network, magnitudes: Array, model: onnx.ModelProto) -> Array:
    """What the layer behind makes of magnitudes."""
    (weight,) = (t for t in model.graph.initializer if t.name == "down.weight")
    matrix = np.abs(numpy_helper.to_array(weight).astype(np.float64))
    if len(network.shape) == 4:
        return np.einsum("oc,nchw->nohw", matrix[:, :, 0, 0], magnitudes)
    return magnitudes @ matrix


def assert_close(
    network: Network, proto: onnx.ModelProto, model: ir.Model, sites: tuple[Site, ...], lowered: Lowered, error: float,
    dtype: DTypeLike = np.float32, portable_error: float = 0.0,
) -> None:  # fmt: skip
    """Both graphs give what the original gives, to rounding and, of the native one, the error of the gate's form."""
    gate = next(site.gate for site in sites if site.gate is not None)
    inputs = network.feeds(dtype)
    y, product, multiplier = tapped(model, [gate.product, gate.multiplier], inputs)
    rounding = ROUNDINGS * UNIT[np.dtype(dtype).name] * behind(network, 1 + RANGE + np.abs(product), proto)
    (portable,) = in_runtime(lowered.portable, inputs)
    form = behind(network, np.abs(multiplier), proto)
    assert (np.abs(portable - y) <= rounding + portable_error * form).all()
    assert lowered.native is not None
    (native,) = in_reference(lowered.native, inputs)
    assert (np.abs(native - y) <= rounding + error * form).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_one_layer_one_node_and_the_layer_behind(name: str) -> None:
    network = NETWORKS[name]
    proto = network.model(SPELLINGS["silu"].write)
    model, choice = of_spelling(proto, "silu", "spline:16x3")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lowered = packed(model, [choice])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert lowered.native is not None
    down = op_types(model)[op_types(model).index("Mul", op_types(model).index("Sigmoid") + 2) + 1 :]
    assert op_types(lowered.native) == [*network.layers, "GatedSpline", *down]
    if not network.packed:
        assert op_types(lowered.portable) == [*network.layers, "Split", "Sigmoid", "Mul", "Mul", *down]
    assert choice.fit is not None
    assert_close(network, proto, model, (choice.site,), lowered, choice.fit.max_error)
    (place,) = lowered.placements
    assert {place.input, place.output} <= set(values_of(lowered.portable))


@pytest.mark.parametrize("name", ["matmuls", "convs, one bias", "in turn", "gemms"])
def test_half_precision(name: str) -> None:
    network = NETWORKS[name]
    proto = network.model(SPELLINGS["silu"].write, dtype=np.float16)
    model, choice = of_spelling(proto, "silu", "spline:16x3")
    lowered = packed(model, [choice])
    assert lowered.native is not None
    assert "GatedSpline" in op_types(lowered.native)
    assert choice.fit is not None
    assert_close(network, proto, model, (choice.site,), lowered, choice.fit.max_error, np.float16)


# --- the other factor ---


def plus_one(g: Graph, u: str) -> str:
    return g.op("Add", u, 1.0)


def clamped(g: Graph, u: str) -> str:
    return g.op("Add", g.op("Clip", u, -2.0, 2.0), 1.0)


def clamped_gate(g: Graph, x: str) -> str:
    low = g.op("Min", x, 2.0)
    return g.op("Mul", low, g.op("Sigmoid", g.op("Mul", low, 1.702)))


def prelu(g: Graph, u: str) -> str:
    return g.op("PRelu", u, np.linspace(0.1, 0.5, HIDDEN).astype(np.float32))


@pytest.mark.parametrize("name", ["matmuls", "in turn, gate second", "conv split"])
def test_an_affine_function_of_the_other_half(name: str) -> None:
    network = NETWORKS[name]
    proto = network.model(SPELLINGS["silu"].write, plus_one)
    model, choice = of_spelling(proto, "silu", "spline:16x3")
    lowered = packed(model, [choice])
    assert lowered.native is not None
    assert op_types(lowered.native)[: len(network.layers) + 1] == [*network.layers, "GatedSpline"]
    assert choice.fit is not None
    assert_close(network, proto, model, (choice.site,), lowered, choice.fit.max_error)


@pytest.mark.parametrize("second", ["keep", "spline"])
@pytest.mark.parametrize("name", ["matmuls", "pairs, gate second"])
def test_both_factors_clamped_as_in_gpt_oss(name: str, second: str) -> None:
    network = NETWORKS[name]
    proto = network.model(clamped_gate, clamped)
    model = prepared(proto)
    sites = lift(model).sites
    assert len(sites) == 2
    choices = chosen(sites, "spline:16x3")
    kept = [i for i, choice in enumerate(choices) if choice.fit is not None and choice.fit.exact]
    if second == "keep":  # what is a table already needs no form for that
        (i,) = kept
        if choices[i].site.gate is None:
            choices[i] = Choice(choices[i].site, KEEP, None, "")
    lowered = packed(model, choices)
    assert lowered.native is not None
    (node,) = (node for node in lowered.native.graph if node.domain == "actx")
    assert node.op_type == "GatedSpline"
    gate = next(site for site in sites if site.gate is not None)
    other = next(site for site in sites if site.gate is None)
    assert node.metadata_props[SITE_METADATA] == gate.name
    assert node.metadata_props[OTHER_SITE_METADATA] == other.name
    assert "other_knots" in attributes_of(node)
    error = sum(choice.fit.max_error for choice in choices if choice.fit is not None)
    inputs = network.feeds()
    (y,), (portable,) = in_runtime(model, inputs), in_runtime(lowered.portable, inputs)
    (native,) = in_reference(lowered.native, inputs)
    factor = np.full([*y.shape[:-1], HIDDEN], 3 * error + 2e-5)  # the gate and h are at most 3
    within = behind(network, factor, proto)
    assert (np.abs(portable - y) <= within).all()
    assert (np.abs(native - y) <= within).all()
    assert [place.site for place in lowered.placements] == [site.name for site in sites]


def test_a_function_with_a_table_per_channel_is_called_the_gate() -> None:
    network = NETWORKS["split"]
    proto = network.model(SPELLINGS["silu"].write, prelu)
    model = prepared(proto)
    sites = lift(model).sites
    lowered = packed(model, list(choose(sites, TARGETS["ort-cpu"], form=Form.parse("spline:16x3"))))
    assert lowered.native is not None
    nodes = [node for node in lowered.native.graph if node.domain == "actx"]
    (node,) = nodes
    assert node.op_type == "GatedSpline"
    assert attributes_of(node)["channels"] == HIDDEN
    assert attributes_of(node)["gate"] == 1
    inputs = network.feeds()
    (y,), (native,) = in_runtime(model, inputs), in_reference(lowered.native, inputs)
    assert np.abs(native - y).max() <= 1e-3


def test_a_function_without_a_table_leaves_the_split() -> None:
    """It is a site that is kept: the gate is one node, the product with it included, behind a packed layer."""
    network = NETWORKS["matmuls"]
    proto = network.model(SPELLINGS["silu"].write, SPELLINGS["mish_threshold"].write)
    model = prepared(proto)
    sites = lift(model).sites
    choices = [
        Choice(site, Form.parse("spline:16x3"), fitted("silu", "spline:16x3"), "")
        if site.kind == "silu"
        else Choice(site, KEEP, None, "")
        for site in sites
    ]
    lowered = packed(model, choices)
    assert lowered.native is not None
    types = op_types(lowered.native)
    assert types[:3] == ["MatMul", "Add", "Split"]
    assert "GatedSpline" not in types
    inputs = network.feeds()
    (y,), (native,) = in_runtime(model, inputs), in_reference(lowered.native, inputs)
    assert np.abs(native - y).max() <= 1e-3


def test_a_kept_site_is_packed_and_left_behind_the_split() -> None:
    proto = PLAIN.model(SPELLINGS["silu"].write)
    model = prepared(proto)
    (site,) = lift(model).sites
    lowered = packed(model, [Choice(site, KEEP, None, "")])
    assert lowered.native is None
    assert op_types(lowered.portable)[:6] == ["MatMul", "Add", "Split", "Sigmoid", "Mul", "Mul"]
    (y,), (got,) = in_runtime(model, PLAIN.feeds()), in_runtime(lowered.portable, PLAIN.feeds())
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)


def test_a_slope_is_folded_before_the_layers_are_packed() -> None:
    proto = PLAIN.model(SPELLINGS["gelu_legacy"].write)
    model, choice = of_spelling(proto, "gelu_legacy", "hardswish")
    lowered = packed(model, [choice])
    assert choice.fit is not None
    (place,) = lowered.placements
    assert place.scale == choice.fit.slope != 1
    assert lowered.native is not None
    assert op_types(lowered.native)[:3] == ["MatMul", "Add", "GatedSpline"]
    (portable,) = in_runtime(lowered.portable, PLAIN.feeds())
    (native,) = in_reference(lowered.native, PLAIN.feeds())
    np.testing.assert_allclose(native, portable, rtol=1e-4, atol=1e-4)
    error = choice.fit.max_error
    assert_close(PLAIN, proto, model, (choice.site,), lowered, error, portable_error=error)


def test_a_row_wise_gate_is_one_node_behind_the_split() -> None:
    proto = PLAIN.model(polynorm)
    model = prepared(proto)
    lowered = packed(model, list(choose(lift(model).sites, TARGETS["ort-cpu"])))
    assert lowered.native is not None
    types = op_types(lowered.native)
    assert types[:4] == ["MatMul", "Add", "Split", "PolyNorm"]
    (node,) = (node for node in lowered.native.graph if node.domain == "actx")
    gate, other = lowered.native.graph[types.index("Split")].outputs
    assert (node.inputs[0], node.inputs[3]) == (gate, other)
    inputs = PLAIN.feeds()
    (y,), (portable,) = in_runtime(model, inputs), in_runtime(lowered.portable, inputs)
    (native,) = in_reference(lowered.native, inputs)
    np.testing.assert_allclose(portable, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(native, y, rtol=1e-4, atol=1e-4)


# --- the weight ---


def test_both_graphs_read_one_weight_that_is_put_together_when_written(tmp_path: Path) -> None:
    model, choice = of_spelling(PLAIN.model(SPELLINGS["silu"].write), "silu", "spline:16x3")
    lowered = packed(model, [choice])
    assert lowered.native is not None
    weights = [graph.graph.initializers for graph in (lowered.portable, lowered.native)]
    (name,) = (name for name in weights[0] if name.endswith("/actx/packed/weight"))
    first, second = (held[name].const_value for held in weights)
    assert first is second
    assert isinstance(first, ir.LazyTensor)
    assert tuple(first.shape) == (WIDTH, 2 * HIDDEN)
    assert not {"gate.weight", "up.weight", "gate.bias", "up.bias"} & {*weights[0], *weights[1]}
    wide = PLAIN.model(SPELLINGS["silu"].write)
    save({"a.onnx": lowered.portable, "b.onnx": lowered.native}, tmp_path)
    stored = sum(len(t.raw_data) for t in wide.graph.initializer if len(t.raw_data) > 1024)
    assert (tmp_path / "weights.data").stat().st_size <= stored + 4096


def test_what_is_not_packed_is_refused_and_the_model_untouched() -> None:
    proto = NETWORKS["matmuls"].model(SPELLINGS["silu"].write)
    proto.graph.output.append(_value(proto, "Add_1_output_0"))
    model, choice = of_spelling(proto, "silu", "spline:16x3")
    with pytest.raises(Refusal, match="read elsewhere"):
        packed(model, [choice])


def _value(proto: onnx.ModelProto, name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", HIDDEN])
