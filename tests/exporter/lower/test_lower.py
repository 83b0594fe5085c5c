"""Whole graphs after lower: their structure, their numbers and their validity at once."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from actx.exporter import Form
from actx.exporter.calibrate import SiteStatistics
from actx.exporter.choose import KEEP, Choice, choose
from actx.exporter.lift import Site, lift
from actx.exporter.lower import OWN_MATHEMATICS, SITE_METADATA, Lowered, lower
from actx.exporter.targets import TARGETS
from tests.exporter.lower.running import UNIT, checked, in_reference, in_runtime, op_types, prepared, values_of
from tests.networks import (
    HIDDEN,
    SPELLINGS,
    SURROUNDINGS,
    WIDTH,
    Gate,
    Graph,
    feeds,
    many_sites,
    mlp_reference,
    onnx_mlp,
)

FUNCTIONS = ("gelu_legacy", "silu", "mish_threshold", "tanh", "relu2_pow", "prelu_per_channel", "swish_beta_per_channel",
             "selu", "apl", "exp", "hardtanh_min_max", "gelu_in_float32")  # fmt: skip
FORMS = ("relu", "hardswish", "pwl:8", "poly:4", "spline:4x3", "spline:16x3")
GATES: tuple[Gate | None, ...] = (None, "split", "matmul")
OBSERVED = SiteStatistics(-6.0, 6.0, 1.0, 0.0)
# Of the magnitudes of `mlp_reference`: 8 for the network alone, the rest for a chain of some thirty ops.
ROUNDINGS = 64


@cache
def choices_of(name: str, dtype: str, form: str, opset: int, gated: Gate | None) -> tuple[Choice, ...]:
    model = prepared(SPELLINGS[name].model(opset, np.dtype(dtype), gated=gated))
    sites = lift(model).sites
    statistics = {site.name: OBSERVED for site in sites}
    return choose(sites, TARGETS["ort-cpu"], form=Form.parse(form), statistics=statistics, fold=False)


def only_site(model: ir.Model) -> Site:
    (site,) = lift(model).sites
    return site


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_structure_numbers_and_validity(name: str, form: str) -> None:
    spelling = SPELLINGS[name]
    per_channel = name == "swish_beta_per_channel"  # twelve fits each time
    for i, opset in enumerate((13, 25) if per_channel else (13, 18, 21, 25)):
        dtype, gated = spelling.dtypes[i % len(spelling.dtypes)], GATES[i % len(GATES)]
        proto = spelling.model(opset, np.dtype(dtype), gated=gated)
        model = prepared(proto)
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        (choice,) = choices_of(name, dtype, form, opset, gated)
        lowered = lower(model, [choice])
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before
        (place,) = lowered.placements
        assert (place.site, place.scale) == (choice.site.name, 1)
        if choice.fit is None:
            assert lowered.native is None
            assert op_types(lowered.portable) == op_types(model)
            continue
        inputs = feeds(proto)
        (y,) = in_runtime(lowered.portable, inputs)
        own = choice.fit.core_error <= OWN_MATHEMATICS
        expected, magnitude = mlp_reference(proto, spelling if own else choice.fit.spline, inputs["x"], gated)
        assert (np.abs(y - expected) <= ROUNDINGS * UNIT[dtype] * magnitude).all()
        assert lowered.native is not None
        assert_native(lowered.native, choice.site)
        table, magnitude = mlp_reference(proto, choice.fit.spline, inputs["x"], gated)
        (native,) = in_reference(lowered.native, inputs)
        assert (np.abs(native - table) <= ROUNDINGS * UNIT[dtype] * magnitude).all()
        assert_values_are_there(lowered)


def assert_native(model: ir.Model, site: Site) -> None:
    """One actx node stands for all of the site, its product included."""
    nodes = [node for node in model.graph if node.domain == "actx"]
    assert [node.op_type for node in nodes] == ["Spline"]
    (node,) = nodes
    assert [v.name for v in node.inputs if v] == (
        [site.input] if site.gate is None else [site.input, site.gate.multiplier]
    )
    assert node.outputs[0].name == (site.output if site.gate is None else site.gate.product)
    assert node.metadata_props[SITE_METADATA] == site.name
    remaining = values_of(model)
    assert not [name for name in site.values if name in remaining and name != node.outputs[0].name]
    assert model.opset_imports["actx"] == 1


def assert_values_are_there(lowered: Lowered) -> None:
    values = values_of(lowered.portable)
    for place in lowered.placements:
        assert {place.input, place.output} <= set(values)
        marked = marked_values(lowered.portable, place.site)
        assert place.output in marked
        used = {values[name].producer().op_type for name in marked}  # type: ignore[union-attr]
        assert used == set(place.lowering.split("+"))


def marked_values(model: ir.Model, site: str) -> set[str]:
    """Names of the values whose nodes are marked as a site's."""
    nodes = [node for node in model.graph if node.metadata_props.get(SITE_METADATA) == site]
    return {str(value.name) for node in nodes for value in node.outputs}


# --- the source's own mathematics ---


@pytest.mark.parametrize(
    ("name", "opset", "op", "attributes"),
    [
        ("gelu_legacy", 20, "Gelu", {}),
        ("gelu_new", 20, "Gelu", {"approximate": "tanh"}),
        ("mish_threshold", 18, "Mish", {}),
        ("sigmoid_by_exp", 13, "Sigmoid", {}),
        ("tanh_by_sigmoid", 13, "Tanh", {}),
        ("softsign_div", 13, "Softsign", {}),
        ("softplus_stable", 13, "Softplus", {}),
        ("elu_where", 13, "Elu", {"alpha": 1.0}),
        ("celu_by_exp", 13, "Celu", {"alpha": 0.5}),
        ("leaky_relu_max", 13, "LeakyRelu", {"alpha": 0.125}),
        ("hardswish_mobilenet", 14, "HardSwish", {}),
        ("hard_sigmoid_clip", 13, "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("relu_by_abs", 13, "Relu", {}),
    ],
)
def test_a_close_form_becomes_the_sources_own_op(name: str, opset: int, op: str, attributes: dict[str, Any]) -> None:
    spelling = SPELLINGS[name]
    form = "spline:32x3" if name == "softsign_div" else "spline:16x3"
    proto = spelling.model(opset)
    model = prepared(proto)
    choices = choose(lift(model).sites, TARGETS["onnx"], form=Form.parse(form))
    lowered = lower(model, choices)
    assert lowered.placements[0].lowering == op
    (node,) = (node for node in lowered.portable.graph if node.op_type == op)
    found = {key: value.as_string() if key == "approximate" else value.value for key, value in node.attributes.items()}
    assert found.keys() == attributes.keys()
    assert all(found[key] == value or np.isclose(found[key], value, rtol=1e-6) for key, value in attributes.items())
    expected, magnitude = mlp_reference(proto, spelling, feeds(proto)["x"])
    (y,) = in_runtime(lowered.portable, feeds(proto))
    assert (np.abs(y - expected) <= ROUNDINGS * UNIT["float32"] * magnitude).all()


@pytest.mark.parametrize(("name", "opset"), [("gelu_legacy", 19), ("silu", 25), ("derf", 18), ("mish_decomposed", 17)])
def test_where_the_opset_lacks_it_the_nodes_stay(name: str, opset: int) -> None:
    model = prepared(SPELLINGS[name].model(opset))
    choices = choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("spline:16x3"))
    lowered = lower(model, choices)
    assert _nodes(lowered.portable) == _nodes(model)
    assert marked_values(lowered.portable, choices[0].site.name) == set(choices[0].site.values)
    assert lowered.native is not None


def _nodes(model: ir.Model) -> list[bytes]:
    """Every node without the mark of its site."""
    protos = list(checked(model).graph.node)
    for proto in protos:
        del proto.metadata_props[:]
    return [proto.SerializeToString(deterministic=True) for proto in protos]


@pytest.mark.parametrize("name", ["gelu_legacy", "gelu_new", "elu_where", "selu", "laplace"])
def test_own_mathematics_in_half_precision(name: str) -> None:
    """An fp16 graph computes with rounded constants; the one op does not, and must not be further away."""
    proto = SPELLINGS[name].model(21, np.float16)
    model = prepared(proto)
    lowered = lower(model, choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("spline:16x3")))
    expected, magnitude = mlp_reference(proto, SPELLINGS[name], feeds(proto)["x"])
    (y,) = in_runtime(lowered.portable, feeds(proto))
    assert (np.abs(y - expected) <= 8 * UNIT["float16"] * magnitude).all()


def test_a_clamped_function_does_not_become_the_unclamped_op() -> None:
    proto = onnx_mlp(lambda g, x: g.op("Mul", g.op("Clip", g.op("Mul", x, 100.0), 0.0, 100.0), 0.01))
    model = prepared(proto)
    lowered = lower(model, choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("pwl:8")))
    expected, magnitude = mlp_reference(proto, lambda x: np.clip(x, 0, 1), feeds(proto)["x"])
    (y,) = in_runtime(lowered.portable, feeds(proto))
    assert (np.abs(y - expected) <= ROUNDINGS * UNIT["float32"] * magnitude).all()


def test_a_target_of_standard_ops_has_every_form_as_itself() -> None:
    """The portable graph has the source's own op; both graphs have the same names for what the site takes and gives."""
    proto = SPELLINGS["gelu_legacy"].model(20, gated="matmul")
    model = prepared(proto)
    choices = choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("poly:12"))
    lowered = lower(model, choices, native="standard")
    (place,) = lowered.placements
    assert (place.own, place.lowering) == (True, "Gelu")
    assert lowered.native is not None
    assert "Gelu" not in op_types(lowered.native)
    for graph in (lowered.portable, lowered.native):
        assert {place.input, place.output} <= set(values_of(graph))
        assert place.output in marked_values(graph, place.site)
    assert choices[0].fit is not None
    expected, magnitude = mlp_reference(proto, choices[0].fit.spline, feeds(proto)["x"], "matmul")
    (y,) = in_runtime(lowered.native, feeds(proto))
    assert (np.abs(y - expected) <= ROUNDINGS * UNIT["float32"] * magnitude).all()
    assert lower(model, [], native="standard").native is None


# --- kept sites, several sites ---


def test_kept_sites_stay_node_for_node() -> None:
    for name in ("gelu_legacy", "silu", "prelu_per_channel"):
        for gated in GATES:
            model = prepared(SPELLINGS[name].model(gated=gated))
            choices = choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("keep"))
            lowered = lower(model, choices)
            assert _nodes(lowered.portable) == _nodes(model)
            assert lowered.native is None
            assert marked_values(lowered.portable, choices[0].site.name) == set(choices[0].site.values)


def test_a_site_without_a_choice_is_kept() -> None:
    model = prepared(many_sites(4))
    lowered = lower(model, [])
    assert _nodes(lowered.portable) == _nodes(model)
    assert (lowered.native, lowered.placements) == (None, ())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["keep", "relu", "hardswish", "pwl:4", "poly:4", "spline:8x3"]), min_size=8, max_size=8)
)
def test_any_mixture_of_forms(forms: list[str]) -> None:
    proto = many_sites(8)
    model = prepared(proto)
    sites = lift(model).sites
    pins = {site.name: Form.parse(form) for site, form in zip(sites, forms, strict=True)}
    choices = choose(sites, TARGETS["ort-cpu"], pins=pins)
    lowered, plain = lower(model, choices), lower(model, choices, fold=False)
    inputs = feeds(proto)
    assert all(place.scale == 1 for place in plain.placements)
    reference = lowered.native or lowered.portable
    (expected,) = in_reference(reference, inputs)
    own = sum(c.fit.core_error for c in choices if c.fit and c.fit.core_error <= OWN_MATHEMATICS)
    # The widths, weights and activations of this network keep every error below its own size.
    allowed = (1e-4 + 8 * own) * (1 + np.abs(expected))
    for graph in (lowered, plain):
        (y,) = in_runtime(graph.portable, inputs)
        assert (np.abs(y - expected) <= allowed).all()
    kept = [site for site, form in zip(sites, forms, strict=True) if form == "keep"]
    values = values_of(lowered.portable)
    assert all(name in values for site in kept for name in site.values)
    assert op_types(reference).count("Spline") == 8 - len(kept)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings(name: str) -> None:
    proto = SURROUNDINGS[name].build(18)
    model = prepared(proto)
    sites = lift(model).sites
    for form in ("hardswish", "pwl:8"):
        statistics = {site.name: OBSERVED for site in sites}
        choices = choose(sites, TARGETS["ort-cpu"], form=Form.parse(form), statistics=statistics)
        lowered = lower(model, choices)
        inputs = {k: v for k, v in feeds(proto).items() if k not in model.graph.initializers}
        results = in_runtime(lowered.portable, inputs)
        if lowered.native is not None:
            for y, native in zip(results, in_reference(lowered.native, inputs), strict=True):
                assert (np.abs(y - native) <= 1e-4 * (1 + np.abs(native))).all()


def test_of_two_factors_both_are_lowered() -> None:
    model = prepared(SURROUNDINGS["wavenet"].build(18))
    lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse("pwl:8")))
    assert lowered.native is not None
    assert op_types(lowered.native).count("Spline") == 2
    assert "Mul" not in op_types(lowered.native)


def test_constants_are_shared_between_sites() -> None:
    model = prepared(many_sites(40))
    lowered = lower(model, choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("pwl:8")))
    added = [name for name in lowered.portable.graph.initializers if name.startswith("actx/")]
    assert 0 < len(added) < 60


def test_lowering_a_lowered_graph_again() -> None:
    """Names that lower invents do not collide with those it invented before."""
    proto = many_sites(4)
    choices = choose(lift(prepared(proto)).sites, TARGETS["onnx"], form=Form.parse("poly:4"))
    once = lower(prepared(proto), choices).portable
    again = ir.from_proto(checked(once))
    from_once = prepared(ir.to_proto(again))
    sites = lift(from_once).sites
    assert len(sites) == 4
    twice = lower(from_once, choose(sites, TARGETS["onnx"], form=Form.parse("pwl:16")))
    (expected,) = in_runtime(once, feeds(proto))
    (y,) = in_runtime(twice.portable, feeds(proto))
    assert np.abs(y - expected).max() <= 0.05  # pwl:16 of the polynomials


def test_lift_reads_the_ops_that_lower_writes() -> None:
    """A native graph is a model like any other: its splines are sites."""
    proto = many_sites(4)
    model = prepared(proto)
    lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse("spline:8x3")))
    assert lowered.native is not None
    again = prepared(checked(lowered.native))
    sites = lift(again).sites
    assert len(sites) == 4  # the gated one among them
    x = np.linspace(-5, 5, 101)
    for site in sites:
        np.testing.assert_allclose(site.evaluate(x), SPELLINGS["gelu_legacy"](x), atol=0.4)


def test_per_channel_splines_in_a_source_are_sites() -> None:
    model = prepared(SPELLINGS["swish_beta_per_channel"].model())
    lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse("pwl:8")))
    assert lowered.native is not None
    (site,) = lift(prepared(checked(lowered.native))).sites
    assert site.axis == -1


def _with_branches() -> onnx.ModelProto:
    """The activation's input and output are read inside the branches of an If."""
    model = onnx_mlp(SPELLINGS["gelu_legacy"].write)
    activated = next(node for node in model.graph.node if list(node.input[1:]) == ["down.weight"]).input[0]

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(f"{name}_result", onnx.TensorProto.FLOAT, ["a", "b", HIDDEN])
        return helper.make_graph([helper.make_node(op_type, [activated], [f"{name}_result"])], name, [], [result])

    which = helper.make_tensor_value_info("which", onnx.TensorProto.BOOL, [])
    z = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["a", "b", HIDDEN])
    model.graph.input.append(which)
    model.graph.output.append(z)
    branches = {"then_branch": branch("then", "Identity"), "else_branch": branch("else", "Neg")}
    model.graph.node.append(helper.make_node("If", ["which"], ["z"], "if", **branches))
    return model


@pytest.mark.parametrize("form", ["hardswish", "pwl:8", "relu"])
def test_branches_read_the_new_value(form: str) -> None:
    proto = _with_branches()
    model = prepared(proto)
    lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse(form)))
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, WIDTH)).astype(np.float32)
    assert lowered.native is not None
    for which in (True, False):
        inputs = {"x": x, "which": np.array(which)}
        for y, native in zip(in_runtime(lowered.portable, inputs), in_reference(lowered.native, inputs), strict=True):
            assert np.abs(y - native).max() <= 1e-4


def test_an_output_of_the_graph_keeps_its_name_type_and_shape() -> None:
    proto = SURROUNDINGS["graph_output"].build(18)
    graph = Graph()
    x = graph.input("x", ["batch", "tokens", WIDTH])
    activated = graph.op("Sigmoid", graph.linear(x, "up", np.ones((WIDTH, HIDDEN))))
    direct = graph.model()
    direct.graph.output.append(helper.make_tensor_value_info(activated, 1, ["rows", "columns", HIDDEN]))
    for model in (prepared(proto), prepared(direct)):
        lowered = lower(model, choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse("pwl:8")))
        for result in (lowered.portable, lowered.native):
            assert result is not None
            assert list(checked(result).graph.output) == list(checked(model).graph.output)


def test_no_native_graph_unless_asked_for() -> None:
    model = prepared(SPELLINGS["mish_decomposed"].model())
    choices = choose(lift(model).sites, TARGETS["onnx"], form=Form.parse("pwl:8"))
    assert lower(model, choices).native is not None
    assert lower(model, choices, native=None).native is None


def test_square_is_written_as_one_piece() -> None:
    """x^2 is a spline of one segment: no knots at all."""
    model = prepared(onnx_mlp(lambda g, x: g.op("Mul", x, x)))
    (choice,) = choose(lift(model).sites, TARGETS["ort-cpu"], form=Form.parse("spline:8x3"))
    assert choice.fit is not None
    assert choice.fit.spline.segments == 1
    lowered = lower(model, [choice])
    assert lowered.native is not None
    (y,) = in_reference(lowered.native, feeds(ir.to_proto(model)))
    (expected,) = in_runtime(lowered.portable, feeds(ir.to_proto(model)))
    assert np.abs(y - expected).max() <= 1e-4


# --- kernels among a runtime's own layers ---


@pytest.mark.parametrize("names", [("gelu",), ("mish", "silu"), ("gelu", "silu", "mish")])
def test_some_sites_are_actx_nodes_and_the_others_as_in_the_portable_graph(names: tuple[str, ...]) -> None:
    proto = many_sites(4)
    model = prepared(proto)
    sites = lift(model).sites
    plugins = [site.name for site in sites if site.kind in names]
    coarse = choose(sites, TARGETS["trt"], form=Form.parse("pwl:8"))
    mixed = lower(model, coarse, native=None, plugins=plugins)
    assert mixed.native is not None
    nodes = {node.metadata_props[SITE_METADATA]: node.op_type for node in mixed.native.graph if node.domain == "actx"}
    assert nodes == dict.fromkeys(plugins, "Spline")
    for site in sites:
        if site.name not in plugins:
            assert marked_values(mixed.native, site.name) == marked_values(mixed.portable, site.name)
    assert op_types(mixed.portable) == op_types(lower(model, coarse, native=None).portable)
    # Where the other sites are kept, it is the graph of actx nodes.
    pinned = [choice if choice.site.name in plugins else Choice(choice.site, KEEP, None, "") for choice in coarse]
    alone, nodes_only = lower(model, pinned, native=None, plugins=plugins).native, lower(model, pinned).native
    assert alone is not None
    assert nodes_only is not None
    inputs = feeds(proto)
    results = [in_reference(graph, inputs)[0] for graph in (alone, nodes_only)]
    np.testing.assert_array_equal(*results)
    in_reference(mixed.native, inputs)  # it is valid


def test_without_such_sites_there_is_no_native_graph() -> None:
    model = prepared(SPELLINGS["mish_op"].model(20))
    choices = choose(lift(model).sites, TARGETS["trt"], form=Form.parse("pwl:8"))
    assert lower(model, choices, native=None).native is None
