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
def test_measurings_cast_to_numbers(write: Any, formula: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
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


# --- ops that only look alike ---


def _kinds(write: Callable[[Graph, str], str]) -> list[str]:
    return [site.kind for site in lifted(onnx_mlp(write)).sites]


def _typed(write: Callable[[Graph, str], str]) -> Lifted:
    """Lift a network where the results of ops that nothing is known about are float32."""
    model = prepared(onnx_mlp(write))
    for value in values_of(model.graph).values():
        value.dtype = value.dtype or ir.DataType.FLOAT
    return lift(model)


@pytest.mark.parametrize(
    ("op_type", "domain", "layer"),
    [
        ("MatMul", "", True),
        ("MatMul", "ai.onnx", True),
        ("MatMul", "custom", False),
        ("FusedMatMul", "com.microsoft", True),
        ("FusedMatMul", "custom", False),
        ("LayerNormalization", "custom", False),
    ],
)
def test_a_layer_is_told_by_its_domain_too(op_type: str, domain: str, layer: bool) -> None:
    def write(g: Graph, x: str) -> str:
        cut_off = g.op("CumSum", x, -1)  # from the layer before
        return g.op("Tanh", g.op(op_type, cut_off, g.weight("square", np.eye(HIDDEN)), domain=domain))

    assert len(_typed(write).sites) == layer


def test_a_change_of_layout_is_told_by_its_domain_too() -> None:
    def sites(domain: str) -> int:
        return len(_typed(lambda g, x: g.op("Tanh", g.op("Reshape", x, [0, 0, HIDDEN], domain=domain))).sites)

    assert (sites(""), sites("custom")) == (1, 0)


@pytest.mark.parametrize("op_type", ["Softmax", "TopK", "LayerNormalization"])
def test_an_op_of_another_domain_is_not_known_to_act_on_rows(op_type: str) -> None:
    found = _typed(lambda g, x: g.op(op_type, g.op("Tanh", x), domain="custom"))
    assert [site.kind for site in found.sites] == ["tanh"]
    assert not found.rejections


def test_a_product_of_another_domain_is_no_gate() -> None:
    def gated(domain: str) -> Callable[[Graph, str], str]:
        return lambda g, x: g.op("Mul", g.op("Sigmoid", x), g.op("Softmax", x), domain=domain)

    for domain in ("", "custom"):
        (site,) = _typed(gated(domain)).sites
        assert (site.gate is None) == (domain == "custom")


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [((), ["scalar"]), ((0.1, np.array(False)), ["scalar"]), ((0.1, np.array(True)), ["tanh"])],
)
def test_a_dropout_is_an_identity_unless_it_trains(mode: tuple[Any, ...], kinds: list[str]) -> None:
    def write(g: Graph, x: str) -> str:
        return g.op("Sigmoid", g.op("Dropout", g.op("Tanh", x), *mode))

    assert _kinds(write) == kinds


def test_a_dropout_that_an_input_switches_is_no_identity() -> None:
    def write(g: Graph, x: str) -> str:
        return g.op("Sigmoid", g.op("Dropout", g.op("Tanh", x), 0.1, g.input("training", [], np.bool_)))

    assert _kinds(write) == ["tanh"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 0), (1, 1), (0, 0)])
def test_infinities_of_one_sign(low: int, high: int) -> None:
    def write(g: Graph, x: str) -> str:
        infinite = g.op("IsInf", g.op("Mul", x, float("inf")), detect_negative=low, detect_positive=high)
        return g.op("Where", infinite, 1.0, g.op("Tanh", x))

    expected = [1 if low else np.tanh(-2.0), 1 if high else np.tanh(2.0)]
    np.testing.assert_array_equal(only_site(onnx_mlp(write)).evaluate(np.array([-2.0, 2.0])), expected)


# --- precision ---


def _rounded_gelu(g: Graph, x: str, dtype: Any) -> str:
    """Gelu with the constants that float16 has, in any type."""
    root, one, half = (np.array(c, np.float16).astype(dtype) for c in (2**0.5, 1, 0.5))
    phi = g.op("Add", g.op("Erf", g.op("Div", x, root)), one)
    return g.op("Mul", g.op("Mul", x, phi), half)


@pytest.mark.parametrize("order", [(np.float16, np.float32), (np.float32, np.float16)])
def test_a_name_depends_on_the_precision_and_not_on_the_order(order: tuple[Any, Any]) -> None:
    graph = Graph()
    for dtype in order:
        name = np.dtype(dtype).name
        x = graph.input(f"x.{name}", ["batch", "tokens", WIDTH], dtype)
        hidden = _rounded_gelu(graph, graph.op("MatMul", x, np.eye(WIDTH, dtype=dtype)), dtype)
        graph.output(graph.op("MatMul", hidden, np.eye(WIDTH, dtype=dtype)), f"y.{name}", 3, dtype)
    kinds = {site.dtype.numpy().name: site.kind for site in lifted(graph.model()).sites}
    assert kinds == {"float16": "gelu", "float32": "scalar"}


# --- constants that widen ---

UNKNOWN = None
BETA = np.linspace(1, 2, HIDDEN, dtype=np.float32)


def _sites_over(root: tuple[int | str | None, ...] | None, constant: NDArray[Any]) -> tuple[Site, ...]:
    """Lift x * sigmoid(constant * x) behind a layer whose result has these dimensions as far as is known."""
    graph = Graph()
    hidden = graph.op("MatMul", graph.input("x", []), graph.input("weight", []))
    wide = graph.op("Mul", hidden, graph.op("Sigmoid", graph.op("Mul", constant, hidden)))
    graph.output(graph.op("MatMul", wide, np.ones((HIDDEN, 2), np.float32)), "y", 3)
    model = ir.from_proto(graph.model())
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    prepare(model)
    layer = next(node for node in model.graph if node.op_type == "MatMul").outputs[0]
    layer.shape = None if root is None else ir.Shape(root)
    return lift(model).sites


@pytest.mark.parametrize(
    ("root", "constant"),
    [
        (("batch", "tokens", HIDDEN), BETA),
        ((UNKNOWN, UNKNOWN, HIDDEN), BETA[None, None]),
        (("batch", HIDDEN, UNKNOWN, "width"), BETA[:, None, None]),
        (("batch", "tokens", "hidden"), np.float32(2)),
        (("batch", UNKNOWN), np.full((1, 1), 2, np.float32)),
        ((UNKNOWN,), np.full(1, 2, np.float32)),
        (None, np.float32(2)),
    ],
)
def test_constants_that_cannot_widen_the_output(root: Any, constant: NDArray[Any]) -> None:
    assert len(_sites_over(root, np.asarray(constant))) == 1


@pytest.mark.parametrize(
    ("root", "constant"),
    [
        (("batch", "tokens", "hidden"), BETA),
        (("batch", "tokens", UNKNOWN), BETA),
        (("batch", "tokens", 1), BETA),
        (("batch", "channels", "height", "width"), BETA[:, None, None]),
        ((HIDDEN,), BETA[None]),
        ((), np.full(1, 2, np.float32)),
        (None, np.full(1, 2, np.float32)),
        (None, BETA),
    ],
)
def test_constants_that_may_widen_the_output(root: Any, constant: NDArray[Any]) -> None:
    assert not _sites_over(root, constant)


# --- products of values whose shapes are not known ---


def _gate_of(write: Callable[[Graph, str, str], tuple[str, str]], unknown: tuple[str, ...] = ("x", "u")) -> bool:
    """Tell whether sigmoid(g) * u is gated, where g and u come from two inputs of rank 3 with unknown dimensions."""
    graph = Graph()
    g, u = write(graph, *(graph.input(name, ["batch", "tokens", WIDTH]) for name in ("x", "u")))
    graph.output(graph.linear(graph.op("Mul", graph.op("Sigmoid", g), u), "down", np.ones((HIDDEN, 2))), "y", 3)
    model = ir.from_proto(graph.model())
    for value in model.graph.inputs:
        if value.name in unknown:
            value.shape = ir.Shape([None] * len(value.shape or ()))
    prepare(model)
    (site,) = lift(model).sites
    return site.gate is not None


def _layer(g: Graph, x: str) -> str:
    return g.op("MatMul", x, np.ones((WIDTH, HIDDEN), np.float32))


def test_two_layers_of_one_input_have_one_shape() -> None:
    assert _gate_of(lambda g, x, _: (_layer(g, x), _layer(g, x)))


def test_layers_of_two_inputs_may_have_two_shapes() -> None:
    assert not _gate_of(lambda g, x, u: (_layer(g, x), _layer(g, u)))


def test_a_shared_weight_on_the_left_is_no_shared_input() -> None:
    def write(g: Graph, x: str, u: str) -> tuple[str, str]:
        weight = g.weight("weight", np.ones((5, 5)))
        return g.op("MatMul", weight, x), g.op("MatMul", weight, u)

    assert not _gate_of(write)
    assert _gate_of(write, ())


def test_layers_whose_weights_have_unknown_sizes() -> None:
    def write(g: Graph, x: str, u: str) -> tuple[str, str]:
        return g.op("MatMul", x, g.input("first", [WIDTH, "h"])), g.op("MatMul", x, g.input("second", [WIDTH, "h"]))

    assert not _gate_of(write, ("x", "u", "first", "second"))
    assert _gate_of(write, ("x", "u"))


def test_a_scale_that_may_widen_the_other_factor() -> None:
    def write(g: Graph, x: str, u: str) -> tuple[str, str]:
        weights = [g.input(name, [WIDTH, "h"]) for name in ("first", "second")]
        gate, up = (g.op("MatMul", x, weight) for weight in weights)
        return gate, g.op("Mul", up, np.ones(HIDDEN, np.float32))

    assert not _gate_of(write)


@pytest.mark.parametrize(
    ("sizes", "width", "same"),
    [
        ([HIDDEN, HIDDEN], 2 * HIDDEN, True),
        ([HIDDEN, 1], HIDDEN + 1, False),
        ([HIDDEN, HIDDEN], UNKNOWN, True),
        ([HIDDEN, 1], UNKNOWN, False),
        ("sizes", UNKNOWN, False),
        (None, 2 * HIDDEN, True),
        (None, 2 * HIDDEN - 1, False),
        (None, UNKNOWN, False),
    ],
)
def test_parts_of_one_split(sizes: Any, width: int | None, same: bool) -> None:
    def write(g: Graph, x: str, _: str) -> tuple[str, str]:
        wide = g.op(
            "MatMul", x, g.input("weight", [WIDTH, 1]) if width is None else np.ones((WIDTH, width), np.float32)
        )
        settings = {"num_outputs": 2} if sizes is None else {}
        given = [g.input(sizes, [2], np.int64)] if isinstance(sizes, str) else [] if sizes is None else [sizes]
        first, second = g.ops("Split", 2, wide, *given, axis=-1, **settings)
        return first, second

    assert _gate_of(write, ("x", "u", "weight")) == same


def test_parts_of_a_split_of_unknown_rank() -> None:
    def is_gated(sizes: list[int]) -> bool:
        graph = Graph()
        hidden = graph.op("MatMul", graph.input("x", []), graph.input("weight", []))
        gate, up = graph.ops("Split", 2, hidden, sizes, axis=-1)
        product = graph.op("Mul", graph.op("Sigmoid", gate), up)
        graph.output(graph.op("MatMul", product, np.ones((HIDDEN, 2), np.float32)), "y", 3)
        model = ir.from_proto(graph.model())
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = None
        prepare(model)
        (site,) = lift(model).sites
        return site.gate is not None

    assert is_gated([HIDDEN, HIDDEN])
    assert not is_gated([HIDDEN, 1])


def test_a_product_inside_a_branch_is_no_gate() -> None:
    model = onnx_mlp(lambda g, x: g.op("Sigmoid", x))
    sigmoid = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    up, activated = sigmoid.input[0], sigmoid.output[0]
    del model.graph.node[-2:]
    del model.graph.output[:]

    def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])

    layer = helper.make_node("MatMul", ["product", "down.weight"], ["then_out"])
    then = branch("then", helper.make_node("Mul", [activated, up], ["product"], "product"), layer)
    other = branch("other", helper.make_node("MatMul", ["x", "x"], ["other_out"]))
    switch = helper.make_node("If", ["condition"], ["z"], then_branch=then, else_branch=other)
    model.graph.input.append(helper.make_tensor_value_info("condition", 9, []))
    model.graph.node.append(switch)
    model.graph.output.append(helper.make_tensor_value_info("z", 1, None))
    site = only_site(model)
    assert (site.kind, site.gate) == ("sigmoid", None)


def test_two_slices_of_one_value_are_the_halves_of_a_gated_layer() -> None:
    """As torch's older exporter writes chunk: in graphs with dynamic axes only the last dimension of each is known."""
    g = Graph(17)
    x = g.input("x", ["batch", "tokens", WIDTH])
    packed = g.linear(x, "gate_up", np.ones((WIDTH, 2 * HIDDEN)))
    gate, up = (g.op("Slice", packed, [i * HIDDEN], [(i + 1) * HIDDEN], [2], [1]) for i in (0, 1))
    product = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
    g.output(g.linear(product, "down", np.ones((HIDDEN, WIDTH))), "y", 3)
    model = prepared(g.model())
    for node in model.graph:
        if node.op_type == "Slice":  # what shape inference leaves where it does not know the other dimensions
            node.outputs[0].shape = ir.Shape([None, None, HIDDEN])
    (site,) = lift(model).sites
    assert site.gate is not None
