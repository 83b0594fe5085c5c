"""Graphs whose actx nodes hold their code."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from actx.custom_ops.ops import OPS
from actx.custom_ops.tensorrt import KernelNode, embed
from tests.op_cases import gelu_table

pytest.importorskip("triton", reason="actx was installed without the extra gpu")

HALF = ir.DataType.FLOAT16


def model(*, typed: bool = True) -> ir.Model:
    """X -> GatedSpline -> Spline(., U), with another op behind."""
    x = ir.val("x", HALF if typed else None, ["n", 96] if typed else None)
    u, h, y = (ir.val(name, HALF, ["n", 48]) for name in ("u", "h", "y"))
    table = gelu_table(16, 3)
    nodes = [
        ir.node("GatedSpline", [x], OPS["GatedSpline"](table).attributes(), domain="actx", outputs=[h], name="gate"),
        ir.node("Spline", [h, u], OPS["Spline"](table).attributes(), domain="actx", outputs=[y], name="spline"),
        ir.node("Relu", [y], outputs=[ir.val("z", HALF, ["n", 48])], name="relu"),
    ]
    graph = ir.Graph([x, u], [nodes[-1].outputs[0]], nodes=nodes, opset_imports={"": 18, "actx": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def test_every_node_is_replaced() -> None:
    found = model()
    assert embed(found, 87) == 2
    gate, spline, relu = found.graph
    assert [(node.domain, node.op_type, node.name) for node in found.graph] == [
        ("actx", "Kernel2", "gate"), ("actx", "Kernel3", "spline"), ("", "Relu", "relu"),
    ]  # fmt: skip
    assert [value.name for value in gate.inputs if value] == ["x", "h_table"]
    assert [value.name for value in spline.inputs if value] == ["h", "u", "y_table"]
    assert relu.inputs[0] is spline.outputs[0]
    assert (gate.outputs[0].name, gate.outputs[0].dtype, gate.outputs[0].shape) == ("h", HALF, ir.Shape(["n", 48]))
    launch = KernelNode.parse(gate.attributes["launch"].as_string())
    assert (launch.halved, launch.output, launch.kernel.inputs) == (1, "float16", (0, 0))
    table = found.graph.initializers["h_table"].const_value
    assert table is not None
    assert table.numpy().dtype == np.float32
    ir.serde.serialize_model(found)


def test_nodes_are_chosen_by_name() -> None:
    found = model()
    assert embed(found, 87, {"spline"}) == 1
    assert [node.op_type for node in found.graph] == ["GatedSpline", "Kernel3", "Relu"]


def test_a_graph_without_types_is_refused() -> None:
    with pytest.raises(ValueError, match=r"node gate: the type of x is not known: infer the types"):
        embed(model(typed=False), 87)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="node gate: no kernels for compute capability 70"):
        embed(model(), 70)
