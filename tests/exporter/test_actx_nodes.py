"""Sources that hold actx nodes: what is loaded, lifted, kept or rewritten, and what stands in both graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, checker, helper, numpy_helper
from torch import nn

import actx.custom_ops.torch_ops  # noqa: F401 - registers the ops that the networks below call
from actx.custom_ops.ops import DOMAIN, OPS, OPSET, Op, register_schemas
from actx.exporter import ActxError, Form, export, inspect
from actx.exporter.certificate import certify
from actx.exporter.choose import KEEP, Choice, choose
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.targets import find_target
from tests.exporter.lower.running import chosen, in_reference, in_runtime, op_types, prepared
from tests.op_cases import Case, cases, channel_table, gelu_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.custom_ops import Spline

WIDTH, HIDDEN = 8, 6
GELU = gelu_table(16, 3)
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


# --- one node of each op, alone ---


def alone(case: Case, opset: int) -> onnx.ModelProto:
    register_schemas()
    names = ["" if given is None else p.name for given, p in zip(case.inputs, case.op.INPUTS, strict=True)]
    output = case.op.reference(case.inputs)

    def value(name: str, array: NDArray[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    graph = helper.make_graph(
        [actx_node(case.op, names, "y")],
        "alone",
        [value(name, given) for name, given in zip(names, case.inputs, strict=True) if given is not None],
        [value("y", output)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def actx_node(op: Op, inputs: Sequence[str], output: str, name: str = "act") -> onnx.NodeProto:
    node = helper.make_node(op.NAME, inputs, [output], name, domain=DOMAIN)
    kinds = {a.name: int(a.type.value) for a in op.ATTRIBUTES}
    node.attribute.extend(helper.make_attribute(k, v, attr_type=kinds[k]) for k, v in op.attributes().items())
    return node


def ordinary(op_type: str) -> list[Case]:
    """Cases of finite numbers and sizes above zero: what the portable graph promises."""
    found = []
    for case in cases(op_type):
        arrays = [given for given in case.inputs if given is not None]
        finite = all(np.isfinite(given.astype(np.float64)).all() for given in arrays)
        if finite and all(given.size for given in arrays) and arrays[0].dtype.name != "bfloat16":
            found.append(case)
    return found[:: max(1, len(found) // 16)]


@pytest.mark.parametrize("op_type", OPS)
def test_a_node_becomes_standard_ops_that_compute_the_same(op_type: str) -> None:
    """Exactly for codes; for floats within 64 roundings of the largest result, far below what a wrong formula gives."""
    for case in ordinary(op_type):
        for opset in (13, 18, 21):
            lowered = lower(prepared(alone(case, opset)), [])
            assert {node.domain for node in lowered.portable.graph} == {""}
            assert lowered.native is not None
            assert [node.op_type for node in lowered.native.graph if node.domain == DOMAIN] == [op_type]
            feeds = {p.name: given for p, given in zip(case.op.INPUTS, case.inputs, strict=True) if given is not None}
            (result,) = in_runtime(lowered.portable, feeds)
            expected = case.op.reference(case.inputs)
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape), str(case)
            wide, exact = result.astype(np.float64), expected.astype(np.float64)
            unit = UNIT.get(result.dtype.name, 0)
            assert np.abs(wide - exact).max() <= 64 * unit * np.abs(exact).max(), str(case)


def test_what_a_node_needs_to_know_is_named() -> None:
    case = Case("", OPS["GatedSpline"](GELU), (np.zeros((2, 4), np.float32),))
    model = alone(case, 18)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "width"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "half"
    with pytest.raises(ActxError) as raised:
        lower(prepared(model), [])
    assert "node act cannot be written as standard ops" in str(raised.value)
    assert "the size of X along axis -1 is not known" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "what", "note"),
    [
        (lambda node: setattr(node, "op_type", "Spleen"), "actx::Spleen, which does not exist", "opset 1 has Spline,"),
        (lambda node: node.attribute.pop(0), "not as actx::Spline is defined", "needs the attribute degree"),
        (lambda node: node.attribute[1].floats.append(0.0), "not as actx::Spline is defined", "do not fit together"),
    ],
)
def test_nodes_that_no_kernel_would_take_are_refused(tmp_path: Path, change: Any, what: str, note: str) -> None:
    model = alone(Case("", OPS["Spline"](GELU), (np.zeros((2, 4), np.float32), None)), 18)
    change(model.graph.node[0])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ActxError) as raised:
        load(tmp_path / "model.onnx")
    assert raised.value.what.startswith("node act ")
    assert what in raised.value.what
    assert note in raised.value.note


def test_a_node_in_a_body_is_refused(tmp_path: Path) -> None:
    register_schemas()
    inner = [actx_node(OPS["Spline"](GELU), ["x"], "inner"), helper.make_node("Identity", ["x"], ["outer"])]
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("inner", "outer")]
    bodies = [helper.make_graph([inner[i]], f"body{i}", [], [out[i]]) for i in range(2)]
    node = helper.make_node("If", ["c"], ["y"], "branch", then_branch=bodies[0], else_branch=bodies[1])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", inputs, outputs), opset_imports=imports, ir_version=8),
        tmp_path / "model.onnx",
    )
    with pytest.raises(ActxError, match="node act is an actx::Spline in a body of If, Loop or Scan"):
        load(tmp_path / "model.onnx")


# --- a spline between two layers is a site ---


def network(spline: Spline, *, gated: bool = False, dtype: Any = np.float32, opset: int = 18) -> onnx.ModelProto:
    register_schemas()
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 1, shape).astype(dtype)
        for name, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH)))
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["g"], "gate_layer"),
        helper.make_node("MatMul", ["x", "up"], ["u"], "up_layer"),
        actx_node(OPS["Spline"](spline), ["g", "u"] if gated else ["g"], "h"),
        helper.make_node("MatMul", ["h", "down"], ["y"], "down_layer"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", kind, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def feeds(dtype: Any = np.float32) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(1).uniform(-1, 1, (5, WIDTH)).astype(dtype)}


TABLES = {
    "one table": GELU,
    "per channel": channel_table(5, HIDDEN, -1),
    "axis from the front": channel_table(5, HIDDEN, 1),
}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_the_function_of_a_spline_is_that_spline(name: str, gated: bool) -> None:
    spline = TABLES[name]
    (site,) = lift(prepared(network(spline, gated=gated))).sites
    assert (site.gate is not None) == gated
    assert site.axis == (None if spline.axis is None else -1)
    x = np.random.default_rng(2).uniform(-6, 6, (50, HIDDEN))
    np.testing.assert_array_equal(site.evaluate(x), spline(x))
    assert site.spline is not None
    np.testing.assert_array_equal(site.spline(x), spline(x))
    if spline.axis is not None:
        np.testing.assert_array_equal(site.function.channel(2)(x[:, 2]), spline.channel(2)(x[:, 2]))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_kept_spline_stays_itself_in_the_native_graph(name: str, gated: bool, dtype: Any) -> None:
    source = prepared(network(TABLES[name], gated=gated, dtype=dtype))
    (site,) = lift(source).sites
    lowered = lower(source, [Choice(site, KEEP, None, "")])
    assert DOMAIN not in {node.domain for node in lowered.portable.graph}
    assert lowered.native is not None
    assert op_types(lowered.native).count("Spline") == 1
    assert op_types(lowered.native).count("Mul") == 0
    (expected,) = in_reference(prepared(network(TABLES[name], gated=gated, dtype=dtype)), feeds(dtype))
    for result in (in_runtime(lowered.portable, feeds(dtype))[0], in_reference(lowered.native, feeds(dtype))[0]):
        scale = np.abs(expected.astype(np.float64)).max()
        error = np.abs(result.astype(np.float64) - expected.astype(np.float64)).max()
        assert error <= 64 * UNIT[np.dtype(dtype).name] * scale
    (place,) = lowered.placements
    assert "Spline" not in place.lowering
    assert (place.input, place.output) == (site.input, site.output)


@pytest.mark.parametrize("gated", [False, True])
def test_a_spline_may_be_rewritten(gated: bool) -> None:
    source = prepared(network(GELU, gated=gated))
    (site,) = lift(source).sites
    choice = chosen(site, "pwl:16")
    lowered = lower(source, [choice])
    assert choice.fit is not None
    assert lowered.native is not None
    (node,) = [node for node in lowered.native.graph if node.domain == DOMAIN]
    assert (len(node.inputs) == 2) == gated
    assert node.attributes.get_int("degree") == 1
    (portable,) = in_runtime(lowered.portable, feeds())
    (native,) = in_reference(lowered.native, feeds())
    np.testing.assert_allclose(portable, native, rtol=0, atol=1e-5 * np.abs(native).max())
    assert DOMAIN not in {node.domain for node in lowered.portable.graph}


def test_unasked_a_spline_is_kept() -> None:
    sites = lift(prepared(network(GELU))).sites
    for target in ("ort-cpu", "onnx"):
        (choice,) = choose(sites, find_target(target))
        assert (choice.form, choice.reason) == (KEEP, "the source has it as one actx::Spline")


def test_what_is_proved_of_a_rewritten_spline_holds() -> None:
    (site,) = lift(prepared(network(GELU))).sites
    found = chosen(site, "pwl:16").fit
    assert found is not None
    assert found.certificate is not None
    x = np.linspace(*found.certificate.interval, 200_001).astype(np.float32)
    assert np.abs(found.spline(x) - GELU(x)).max() <= found.certificate.error
    assert found.certificate.error <= 1.01 * found.max_error


def test_a_spline_is_no_distance_from_itself() -> None:
    (site,) = lift(prepared(network(GELU))).sites
    proved = certify(site.function, GELU, (-6.0, 6.0), expected=0.0)
    assert proved is not None
    assert proved.error <= 1e-14


def test_another_opset_keeps_the_nodes(tmp_path: Path) -> None:
    onnx.save(network(GELU, gated=True, opset=18), tmp_path / "model.onnx")
    for opset in (15, 22):
        loaded = load(tmp_path / "model.onnx", opset=opset)
        assert loaded.opset == opset
        assert op_types(loaded.model).count("Spline") == 1
        assert len(lift(loaded.model).sites) == 1


# --- the whole way ---


class Block(nn.Module):
    """Layers with an actx op of each kind of floats between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (
            nn.Linear(WIDTH, HIDDEN),
            nn.Linear(HIDDEN, 2 * HIDDEN),
            nn.Linear(HIDDEN, HIDDEN),
        )
        self.gate, self.last = nn.Linear(HIDDEN, 2), nn.Linear(HIDDEN, 3)
        self.weight, self.bias = nn.Parameter(torch.tensor([0.5, -1.0, 2.0])), nn.Parameter(torch.tensor([0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops, table = torch.ops.actx, GELU.attributes()
        h = ops.gated_spline(self.second(ops.spline(self.first(x), **table)), **table, gate=1)
        mixed = {**table, "entries": 2, "coefficients": [*table["coefficients"], *table["coefficients"]]}
        h = ops.spline_mix(self.third(h), torch.sigmoid(self.gate(h)), **mixed)
        result: torch.Tensor = self.last(ops.polynorm(h, self.weight, self.bias))
        return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("block") / "block.pt2"
    program = torch.export.export(Block(), (torch.zeros(2, WIDTH),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, file)
    return file


def test_a_torch_program_loads_as_the_same_nodes(archive: Path) -> None:
    loaded = load(archive)
    assert [node.op_type for node in loaded.model.graph if node.domain == DOMAIN] == [
        "Spline", "GatedSpline", "SplineMix", "PolyNorm",
    ]  # fmt: skip
    (result,) = in_reference(loaded.model, feeds())
    with torch.no_grad():
        expected = Block()(torch.from_numpy(feeds()["x"])).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_torch_program_is_inspected_and_exported(archive: Path, tmp_path: Path) -> None:
    assert len(inspect(archive).sites) == 2  # the spline, and the sigmoid of the mixture's weights
    for form, count in ((None, 4), (Form.parse("pwl:8"), 5)):
        made = export(archive, tmp_path / str(form), form=form, measure_latency=False)
        portable = onnx.load(made.path / "model.onnx")
        checker.check_model(portable, full_check=True)
        assert {node.domain for node in portable.graph.node} == {""}
        native = onnx.load(made.path / "model.ort-cpu.onnx")
        assert sum(node.domain == DOMAIN for node in native.graph.node) == count
        assert made.drift is not None
        assert made.drift.drift <= (1e-5 if form is None else 0.2)
