"""The ops: reference, rounding per type, schema, shape inference, and onnx's own evaluator."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, checker, defs, helper, shape_inference
from onnx.reference import ReferenceEvaluator

from actx.custom_ops import ACTIVATIONS, Spline
from actx.custom_ops.ops import DOMAIN, OPSET, reference_ops, register_schemas
from actx.custom_ops.ops.spline import reference
from actx.exporter import Form, fit

TYPES = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


@pytest.fixture(autouse=True)
def _schemas() -> None:
    register_schemas()


def network(spline: Spline, *, gated: bool = False, kind: int = TensorProto.FLOAT, **changed: Any) -> onnx.ModelProto:
    names = ["x", "u"][: 2 if gated else 1]
    nodes = [
        helper.make_node("Spline", names, ["s"], domain=DOMAIN, **{**spline.attributes(), **changed}),
        helper.make_node("Identity", ["s"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, kind, ["batch", 3]) for name in names]
    outputs = [helper.make_tensor_value_info("y", kind, ["batch", 3])]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), opset_imports=imports, ir_version=9)


@pytest.fixture(scope="module")
def gelu() -> Spline:
    spline: Spline = fit(ACTIVATIONS["gelu"], Form.parse("spline:8x3")).spline
    return spline


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", TYPES.values())
def test_reference_rounds_once(gelu: Spline, dtype: Any, gated: bool) -> None:
    rng = np.random.default_rng(0)
    x, u = (rng.uniform(-5, 5, (40, 3)).astype(dtype) for _ in range(2))
    exact = gelu(x.astype(np.float64)) * (u.astype(np.float64) if gated else 1)
    result = reference(x, u if gated else None, gelu)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, exact.astype(dtype))


def test_reference_overflows_to_infinity_in_silence() -> None:
    square = Spline.of([], [[0, 0, 1]])
    result = reference(np.array([300.0, -300.0, np.inf, np.nan], np.float16), None, square)
    np.testing.assert_array_equal(result, [np.inf, np.inf, np.inf, np.nan])


def test_reference_refuses_other_shapes(gelu: Spline) -> None:
    with pytest.raises(ValueError, match="one shape, got"):
        reference(np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32), gelu)
    with pytest.raises(ValueError, match="axis -1 has 3 elements"):
        reference(np.zeros((2, 3), np.float32), None, gelu.per_channel(4, -1))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_onnx_runs_checks_and_infers_it(gelu: Spline, kind: int, channels: int | None, gated: bool) -> None:
    spline = gelu if channels is None else gelu.per_channel(channels, -1)
    model = network(spline, gated=gated, kind=kind)
    checker.check_model(model, full_check=True)
    inferred = (
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph.value_info[0].type.tensor_type
    )
    assert inferred.elem_type == kind
    assert [dim.dim_param or dim.dim_value for dim in inferred.shape.dim] == ["batch", 3]
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.uniform(-4, 4, (5, 3)).astype(TYPES[kind]) for i in model.graph.input}
    (result,) = ReferenceEvaluator(model, new_ops=reference_ops()).run(None, feeds)
    np.testing.assert_array_equal(result, reference(feeds["x"], feeds.get("u"), spline))


def test_schema_refuses_what_the_kernels_do_not_take(gelu: Spline) -> None:
    with pytest.raises((checker.ValidationError, shape_inference.InferenceError)):
        checker.check_model(network(gelu, kind=TensorProto.DOUBLE), full_check=True)
    with pytest.raises(checker.ValidationError, match="Unrecognized attribute"):
        checker.check_model(network(gelu, colour=3), full_check=True)
    missing = network(gelu)
    del missing.graph.node[0].attribute[:]
    with pytest.raises(checker.ValidationError, match="Required attribute"):
        checker.check_model(missing, full_check=True)


def test_schemas_are_registered_once() -> None:
    register_schemas()
    schema = defs.get_schema("Spline", DOMAIN)
    assert schema.since_version == OPSET
    assert {name: attribute.required for name, attribute in schema.attributes.items()} == {
        "degree": True, "knots": True, "coefficients": True, "origins": True, "axis": False, "channels": False,
    }  # fmt: skip
    assert [op.__name__ for op in reference_ops()] == ["Spline"]
