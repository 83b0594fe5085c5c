"""Models with bodies (If, Loop, Scan), in functions too: exported as they are, and said not to be looked into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from actx.exporter import Form, export, inspect, session

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 4
STEPS = 3


def info(name: str, shape: list[int | str] | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op_type, inputs.split(), outputs.split(), f"the_{outputs.split(maxsplit=1)[0]}", **attributes
    )


def _if() -> list[onnx.NodeProto]:
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("MatMul", "h w", f"{name}_m"), node(op, f"{name}_m", name)], name, [], [info(name, None)]
        )
        for name, op in (("then", "Gelu"), ("else", "Relu"))
    }
    return [
        node("ReduceSum", "h", "sum", keepdims=0),
        node("Greater", "sum zero", "c"),
        node("If", "c", "z", **branches),
    ]


def _loop() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [node("MatMul", "s w", "m"), node("Gelu", "m", "o"), node("Identity", "go", "on")],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", None)],
        [info("on", [], TensorProto.BOOL), info("o", None)],
    )
    return [helper.make_node("Loop", ["steps", "", "h"], ["z"], "the_z", body=body)]


def _scan() -> list[onnx.NodeProto]:
    body = helper.make_graph(
        [node("MatMul", "r w", "m"), node("Add", "s m", "a"), node("Gelu", "a", "o"), node("Identity", "o", "row")],
        "body",
        [info("s", [WIDTH]), info("r", [WIDTH])],
        [info("o", [WIDTH]), info("row", [WIDTH])],
    )
    return [helper.make_node("Scan", ["start", "h"], ["last", "z"], "the_z", body=body, num_scan_inputs=1)]


def network(op_type: str, opset: int = 20) -> onnx.ModelProto:
    """x [n, 4] -> MatMul -> Gelu, a site -> the op with bodies -> MatMul -> y."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "zero": np.zeros((), np.float32),
        "start": np.zeros(WIDTH, np.float32),
        "steps": np.array(STEPS),
    }
    nodes = {"If": _if, "Loop": _loop, "Scan": _scan}[op_type]()
    graph = helper.make_graph(
        [node("MatMul", "x w", "v"), node("Gelu", "v", "h"), *nodes, node("MatMul", "z w", "y")],
        "network",
        [info("x", ["n", WIDTH])],
        [info("y", ["n", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def nested_functions(opset: int = 20) -> onnx.ModelProto:
    """x [n, 4] -> outer -> MatMul -> y: outer calls inner, a layer and its Gelu, and so do an If and a Loop in it."""
    call = {"domain": "own"}
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("inner", ["h", weight], [name], f"call_{name}", **call)], name, [], [info(name, None)]
        )
        for name, weight in (("then", "w"), ("else", "v"))
    }
    body = helper.make_graph(
        [helper.make_node("inner", ["s", "w"], ["o"], "call_o", **call), node("Identity", "go", "on")],
        "body",
        [info("i", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("s", None)],
        [info("on", [], TensorProto.BOOL), info("o", None)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    inner = helper.make_function(
        "own", "inner", ["a", "b"], ["d"], [node("MatMul", "a b", "c"), node("Gelu", "c", "d")], imports
    )
    steps = [
        helper.make_node("inner", ["x", "w"], ["h"], "call_h", **call),
        node("ReduceSum", "h", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("If", "positive", "z", **branches),
        helper.make_node("Loop", ["steps", "", "z"], ["y"], "the_y", body=body),
    ]
    outer = helper.make_function("own", "outer", ["x", "w", "v", "zero", "steps"], ["y"], steps, imports)
    rng = np.random.default_rng(0)
    constants = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) for name in ("w", "v")}
    constants |= {"zero": np.zeros((), np.float32), "steps": np.array(STEPS)}
    graph = helper.make_graph(
        [helper.make_node("outer", ["x", *constants], ["last"], "call", **call), node("MatMul", "last w", "y")],
        "network",
        [info("x", ["n", WIDTH])],
        [info("y", ["n", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[inner, outer])


@pytest.mark.parametrize("op_type", ["If", "Loop", "Scan"])
def test_a_model_with_bodies(op_type: str, tmp_path: Path) -> None:
    reasons = exported(network(op_type), tmp_path)
    assert reasons[op_type] == "what is in its bodies is not looked at"


def test_a_model_with_nested_functions_that_have_bodies(tmp_path: Path) -> None:
    reasons = exported(nested_functions(), tmp_path)
    assert {"If", "Loop"} <= reasons.keys()


def exported(model: onnx.ModelProto, folder: Path) -> dict[str, str]:
    """Export a model, whose one site is a gelu, as it is and rewritten; return why its other nodes are no sites."""
    file = folder / "model.onnx"
    onnx.save(model, file)
    found = inspect(file)
    assert [site.kind for site in found.sites] == ["gelu"]
    original = InferenceSession(str(file))
    for form, limit in (("keep", 1e-6), ("spline:32x3", 1e-3)):
        export(file, folder / "out", form=Form.parse(form), force=True, measure_drift=False, measure_latency=False)
        bundle = session(folder / "out")
        for seed in range(8):  # both branches of the If
            x = np.random.default_rng(seed).standard_normal((1 + seed, WIDTH)).astype(np.float32) - seed % 2
            expected = original.run(None, {"x": x})[0]
            assert np.abs(bundle.run({"x": x})["y"] - expected).max() <= limit * max(1, np.abs(expected).max())
    return {rejection.ops: rejection.reason for rejection in found.rejections}
