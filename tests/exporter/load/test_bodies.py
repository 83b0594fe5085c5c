"""Models with bodies (If, Loop, Scan): exported as they are, and what is in the bodies is said not to be looked at."""

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


@pytest.mark.parametrize("op_type", ["If", "Loop", "Scan"])
def test_a_model_with_bodies(op_type: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(network(op_type), file)
    found = inspect(file)
    assert [site.kind for site in found.sites] == ["gelu"]
    reasons = {rejection.ops: rejection.reason for rejection in found.rejections}
    assert reasons[op_type] == "what is in its bodies is not looked at"
    original = InferenceSession(str(file))
    for form, limit in (("keep", 1e-6), ("spline:32x3", 1e-3)):
        export(file, tmp_path / "out", form=Form.parse(form), force=True, measure_drift=False, measure_latency=False)
        bundle = session(tmp_path / "out")
        for seed in range(8):  # both branches of the If
            x = np.random.default_rng(seed).standard_normal((1 + seed, WIDTH)).astype(np.float32) - seed % 2
            expected = original.run(None, {"x": x})[0]
            assert np.abs(bundle.run({"x": x})["y"] - expected).max() <= limit * max(1, np.abs(expected).max())
