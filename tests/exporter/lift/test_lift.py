"""Every way an activation is written is one site with the right name, function and place; nothing else is a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from actx.exporter.lift import Lifted, Site, lift
from actx.exporter.load.prepare import prepare
from tests.networks import (
    HIDDEN,
    MANY_SITES_KINDS,
    NOT_SITES,
    RANGE,
    SPELLINGS,
    SURROUNDINGS,
    WIDTH,
    Gate,
    Graph,
    Spelling,
    after,
    chain,
    many_sites,
    onnx_mlp,
    unary,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from numpy.typing import NDArray

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11}
# Of 1 + |x| + |f|: the constants of the graph are rounded once to its type; in a rational, above and below.
ROUNDINGS = 2
X = np.linspace(-RANGE, RANGE, 5 * HIDDEN).reshape(5, HIDDEN)


def prepared(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    prepare(graph)
    return graph


def lifted(model: onnx.ModelProto) -> Lifted:
    return lift(prepared(model))


def only_site(model: onnx.ModelProto) -> Site:
    (site,) = lifted(model).sites
    return site


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    return found | {str(value.name): value for node in graph for value in node.outputs}


def assert_regions_are_closed(model: ir.Model, sites: tuple[Site, ...]) -> None:
    """A site's values depend on its input only, and only its output is read elsewhere; no two sites share a value."""
    values = values_of(model.graph)
    varying = set(model.graph.inputs)
    for node in model.graph:
        if any(v in varying for v in node.inputs):
            varying.update(node.outputs)
    owned = [name for site in sites for name in site.values]
    assert len(owned) == len(set(owned))
    for site in sites:
        inside = {values[name].producer() for name in site.values}
        assert site.values[-1] == site.output
        known = {values[site.input]}
        for name in site.values:
            node = values[name].producer()
            assert node is not None
            assert {v for v in node.inputs if v in varying} <= known
            known.add(values[name])
            if name != site.output:
                assert not values[name].is_graph_output()
                assert all(consumer in inside for consumer in values[name].consumers())


def expected(name: str, spelling: Spelling) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], bool]:
    """Return the function of the site, and whether it can be the gate of a product."""
    if name == "dyt":  # the scale per channel belongs to the layer behind, as that of a normalisation does
        return lambda x: np.tanh(0.5 * x), False
    return spelling, True


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_one_site(name: str) -> None:
    spelling = SPELLINGS[name]
    function, gateable = expected(name, spelling)
    for dtype in spelling.dtypes:
        for gated in (None, *get_args(Gate)):
            for opset in sorted(
                {spelling.opsets[0], min(max(18, spelling.since), spelling.until), spelling.opsets[-1]}
            ):
                site = only_site(spelling.model(opset, dtype, gated=gated))
                assert site.kind == spelling.kind
                assert (site.gate is not None) == (gated is not None and gateable)
                assert site.dtype.numpy() == np.dtype(dtype)
                error = np.abs(site.evaluate(X) - function(X)) / (1 + np.abs(X) + np.abs(function(X)))
                assert error.max() <= ROUNDINGS * UNIT[dtype]
                for found, stored in zip(
                    site.parameters.values(), spelling.parameters, strict=spelling.kind != "prelu"
                ):
                    np.testing.assert_allclose(found, stored, rtol=4 * UNIT[dtype], atol=4 * UNIT[dtype])


@pytest.mark.parametrize("name", ["prelu_per_channel", "prelu_by_relu", "swish_beta_per_channel"])
def test_parameters_per_channel(name: str) -> None:
    site = only_site(SPELLINGS[name].model())
    assert (site.axis, site.function.channels) == (-1, HIDDEN)
    assert [value.shape for value in site.parameters.values()] == [(HIDDEN,)]
    rows = np.stack([site.function.channel(i)(X[:, i]) for i in range(HIDDEN)], axis=1)
    np.testing.assert_array_equal(rows, site.evaluate(X))
    assert len({site.function.channel(i).key for i in range(HIDDEN)}) == HIDDEN


@pytest.mark.parametrize("name", SPELLINGS)
def test_regions_are_closed_and_the_model_is_unchanged(name: str) -> None:
    for gated in (None, "split"):
        model = prepared(SPELLINGS[name].model(gated=gated))
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        found = lift(model)
        assert_regions_are_closed(model, found.sites)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", NOT_SITES)
def test_not_a_site(name: str) -> None:
    for opset in (13, 18, 25):
        case = NOT_SITES[name]
        model = prepared(case.build(opset))
        found = lift(model)
        assert tuple(site.kind for site in found.sites) == case.kinds
        assert not any(site.gate for site in found.sites)
        values = values_of(model.graph)
        used = {values[name].producer().op_type for site in found.sites for name in site.values}  # type: ignore[union-attr]
        assert not used & set(case.forbidden)


@pytest.mark.parametrize(
    ("name", "ops", "reason"),
    [
        ("layer_norm", "Add+Sqrt", "does not come from a linear op"),
        ("softmax", "Exp", "but through a reduction of itself"),
        ("softcap", "Div+Tanh+Mul", "but through a reduction of itself"),
        ("rotary", "Cos", "does not come from a linear op"),
        ("attention_mask", "Softmax", "acts on whole rows"),
    ],
)
def test_rejections_say_why_in_words(name: str, ops: str, reason: str) -> None:
    rejections = lifted(NOT_SITES[name].build(18)).rejections
    assert any(row.ops == ops and reason in row.reason for row in rejections)
    assert all(row.name and row.ops and len(row.reason.split()) > 3 for row in rejections)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(name: str) -> None:
    case = SURROUNDINGS[name]
    for opset in (17, 18, 25):
        model = prepared(case.build(opset))
        sites = lift(model).sites
        assert tuple(site.kind for site in sites) == case.kinds
        assert tuple(site.gate is not None for site in sites) == case.gated
        assert_regions_are_closed(model, sites)


def test_axis_of_a_convolution() -> None:
    site = only_site(SURROUNDINGS["conv_prelu"].build(18))
    assert (site.axis, site.function.channels) == (-3, HIDDEN)
    x = np.full((2, HIDDEN, 3, 3), -1.0)
    np.testing.assert_allclose(site.evaluate(x)[1, :, 2, 2], -site.parameters["slope"])


def test_gate_names_the_product_and_the_other_factor() -> None:
    site = only_site(SPELLINGS["silu"].model(gated="split"))
    assert site.gate is not None
    model = prepared(SPELLINGS["silu"].model(gated="split"))
    product = values_of(model.graph)[site.gate.product].producer()
    assert product is not None
    assert product.op_type == "Mul"
    assert {str(v.name) for v in product.inputs if v} == {site.output, site.gate.multiplier}


def test_of_two_factors_that_are_functions_one_is_the_gate() -> None:
    first, second = lifted(SURROUNDINGS["wavenet"].build(18)).sites
    assert first.gate is not None
    assert first.gate.multiplier == second.output
    assert second.gate is None


# --- names ---


def test_names_are_unique_and_stable() -> None:
    model = many_sites(60)
    first, second = lifted(model), lifted(model)
    names = [site.name for site in first.sites]
    assert names == [site.name for site in second.sites]
    assert names == [f"layers.{i}" for i in range(60)]
    assert [site.kind for site in first.sites] == [MANY_SITES_KINDS[i % 4] for i in range(60)]


def _two_sites_of_one_scope() -> onnx.ModelProto:
    graph = Graph()
    x = graph.input("x", ["batch", "tokens", WIDTH])
    eye = np.eye(WIDTH)
    for scope in ("/act/", "/act/", "/act:1/", "/act/"):
        graph.scope = ""
        x = graph.op("MatMul", x, graph.weight(f"weight.{len(graph._nodes)}", eye))
        graph.scope = scope
        x = graph.op("Tanh", x)
    graph.scope = ""
    graph.output(graph.linear(x, "down", eye), "y", 3)
    return graph.model()


def test_names_do_not_collide_with_numbered_ones() -> None:
    names = [site.name for site in lifted(_two_sites_of_one_scope()).sites]
    assert len(set(names)) == 4
    assert names[:2] == ["act", "act:1"]


def test_metadata_of_the_new_exporter_names_a_site() -> None:
    for key, value in (
        ("pkg.torch.onnx.name_scopes", "['', 'encoder', 'encoder.layer', 'encoder.layer.act', 'gelu']"),
        ("namespace", "encoder: a.B/encoder.layer: a.C/encoder.layer.act: a.D/gelu: aten.gelu"),
    ):
        model = prepared(SPELLINGS["gelu_legacy"].model())
        for node in model.graph:
            node.metadata_props[key] = value
        (site,) = lift(model).sites
        assert site.name == "encoder.layer.act"


def test_damaged_metadata_is_no_error() -> None:
    model = prepared(SPELLINGS["gelu_legacy"].model())
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', broken"
    (site,) = lift(model).sites
    assert site.name


# --- functions that are easily mistaken for others ---


def test_a_clamp_far_out_is_not_forgotten() -> None:
    bounded = only_site(onnx_mlp(lambda g, x: g.op("Clip", x, 0.0, 100.0)))
    assert bounded.kind == "hardtanh"
    assert (float(bounded.parameters["low"]), float(bounded.parameters["high"])) == (0.0, 100.0)
    clamped = after(SPELLINGS["gelu_legacy"].write, lambda g, x: g.op("Clip", x, -30.0, 30.0))
    assert only_site(onnx_mlp(clamped)).kind == "scalar"


def _shifted_gelu(g: Graph, x: str) -> str:
    """Gelu plus a bump of 2e-3."""
    bump = g.op("Exp", g.op("Neg", g.op("Mul", x, x)))
    return g.op("Add", SPELLINGS["gelu_legacy"].write(g, x), g.op("Mul", bump, 0.002))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nearly_gelu_is_not_gelu(dtype: str) -> None:
    assert only_site(onnx_mlp(_shifted_gelu, 18, dtype)).kind == "scalar"


def _bfloat16(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    for value in graph.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(
            value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy()), dtype=ir.DataType.BFLOAT16, name=value.name
        )
        value.dtype = ir.DataType.BFLOAT16
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.dtype = ir.DataType.BFLOAT16
    prepare(graph)
    return graph


@pytest.mark.parametrize("name", ["gelu_legacy", "gelu_tanh_op", "quick_gelu", "silu", "relu2_mul", "mish_op"])
def test_bfloat16(name: str) -> None:
    model = _bfloat16(SPELLINGS[name].model(20))
    (site,) = lift(model).sites
    assert (site.kind, site.dtype) == (SPELLINGS[name].kind, ir.DataType.BFLOAT16)


def test_double_precision_is_rejected_with_its_reason() -> None:
    found = lifted(onnx_mlp(unary("Tanh"), 18, np.float64))
    assert not found.sites
    assert [row.reason for row in found.rejections] == ["its type is DOUBLE, not float32, float16 or bfloat16"]


# --- logic and types ---


def _sign(g: Graph, x: str) -> str:
    up, down = (g.op("Cast", g.op(op, x, 0.0), to=ir.DataType.FLOAT.value) for op in ("Greater", "Less"))
    return g.op("Sub", up, down)


def _nonzero(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("Cast", g.op("Cast", g.op("Relu", x), to=ir.DataType.BOOL.value), to=1))


def _step_like(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.op("CastLike", g.op("Greater", x, 1.0), x))


@pytest.mark.parametrize(
    ("write", "formula"),
    [(_sign, np.sign), (_nonzero, lambda x: np.maximum(x, 0)), (_step_like, lambda x: np.where(x > 1, x, 0))],
)
def test_comparisons_cast_to_numbers(write: Any, formula: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    site = only_site(onnx_mlp(write))
    np.testing.assert_array_equal(site.evaluate(X), formula(X))


def test_a_detour_over_integers_is_no_identity() -> None:
    rounded = chain("Relu")

    def write(g: Graph, x: str) -> str:
        whole = g.op("Cast", g.op("Mul", rounded(g, x), 4.0), to=ir.DataType.INT32.value)
        return g.op("Mul", g.op("Cast", whole, to=ir.DataType.FLOAT.value), 0.25)

    model = prepared(onnx_mlp(write))
    sites = lift(model).sites
    assert [site.kind for site in sites] == ["polyrelu"]  # 4 relu(x)
    assert_regions_are_closed(model, sites)
    assert all("Cast" not in name for site in sites for name in site.values)


def test_constants_computed_from_integers_follow_integer_rules() -> None:
    def write(g: Graph, x: str) -> str:
        half = g.op("Cast", g.op("Div", np.int64(7), np.int64(2)), to=ir.DataType.FLOAT.value)
        return g.op("Clip", x, g.op("Neg", half), half)

    site = only_site(onnx_mlp(write))
    assert (float(site.parameters["low"]), float(site.parameters["high"])) == (-3, 3)


def test_parameters_that_widen_the_output_make_no_site() -> None:
    graph = Graph()
    x = graph.input("x", ["batch", "tokens", WIDTH])
    narrow = graph.linear(x, "up", np.ones((WIDTH, 1)))
    beta = graph.op("Mul", narrow, np.linspace(1, 2, HIDDEN).astype(np.float32))
    wide = graph.op("Mul", narrow, graph.op("Sigmoid", beta))
    graph.output(graph.linear(wide, "down", np.ones((HIDDEN, 2))), "y", 3)
    found = lifted(graph.model())
    assert all(site.input != "up" for site in found.sites)
    assert all(site.axis is None or site.shape is None or site.shape[-1] == HIDDEN for site in found.sites)


def test_parameters_along_two_axes_make_no_site() -> None:
    def write(g: Graph, x: str) -> str:
        channels = g.op("Mul", x, np.linspace(1, 2, HIDDEN).astype(np.float32))
        tokens = g.op("Mul", x, np.linspace(1, 2, 5).astype(np.float32)[:, None])
        return g.op("Mul", g.op("Tanh", channels), g.op("Sigmoid", tokens))

    assert not lifted(onnx_mlp(write)).sites


def test_fused_gelu_with_a_bias() -> None:
    bias = np.linspace(-1, 1, HIDDEN).astype(np.float32)
    site = only_site(onnx_mlp(lambda g, x: g.op("FastGelu", x, bias, domain="com.microsoft")))
    exact = SPELLINGS["gelu_new"](X + bias.astype(np.float64))
    np.testing.assert_allclose(site.evaluate(X), exact, atol=1e-12)
    plain = only_site(onnx_mlp(unary("FastGelu", domain="com.microsoft")))
    assert plain.kind == "gelu_tanh"


def test_a_value_that_a_subgraph_reads_is_not_hidden_in_a_region() -> None:
    model = onnx_mlp(lambda g, x: g.op("Tanh", g.op("Relu", x)))
    relu = next(node for node in model.graph.node if node.op_type == "Relu").output[0]
    branch = helper.make_graph(
        [helper.make_node("Identity", [relu], ["branch_out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("branch_out", 1, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["other_out"])],
        "other",
        [],
        [helper.make_tensor_value_info("other_out", 1, None)],
    )
    condition = helper.make_node("Constant", [], ["condition"], value=helper.make_tensor("c", 9, [], [1]))
    model.graph.node.extend(
        [condition, helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=other)]
    )
    model.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    graph = prepared(model)
    sites = lift(graph).sites
    assert sites[0].kind == "relu"
    assert_regions_are_closed(graph, sites)
