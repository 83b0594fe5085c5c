from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from actx.custom_ops.ops import DOMAIN
from actx.exporter.errors import ActxError
from actx.exporter.lower import SITE_METADATA
from actx.exporter.tensorrt.library import find, logger
from actx.exporter.tensorrt.network import Network, Origin, check_graph, origins, parse
from tests.exporter.tensorrt.graphs import constant, mlp, write

if TYPE_CHECKING:
    from pathlib import Path

SCALE = constant("s", np.float32(0.1))


def node(op_type: str, given: list[str], gives: str, name: str | None = None, **attributes: Any) -> onnx.NodeProto:
    made = helper.make_node(op_type, given, [gives], name=name or op_type.lower(), **attributes)
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'encoder.ffn', 'gelu']")
    made.metadata_props.add(key=SITE_METADATA, value="encoder.ffn")
    return made


def parsed(path: Path) -> Network:
    library = find("trt-rtx")
    log = logger(library)
    return parse(library, library.module.Builder(log), path, log)


def refusal(path: Path) -> ActxError:
    with pytest.raises(ActxError) as error:
        check_graph(path, "TensorRT-RTX")
    return error.value


def parser_refusal(path: Path) -> ActxError:
    check_graph(path, "TensorRT-RTX")
    with pytest.raises(ActxError) as error:
        parsed(path)
    return error.value


@pytest.mark.parametrize("external", [False, True])
def test_a_graph_with_its_weights_inside_or_beside_it(tmp_path: Path, external: bool) -> None:
    path = mlp(tmp_path / "model.onnx", external=external)
    check_graph(path, "TensorRT-RTX")
    network = parsed(path)
    assert network.definition.get_input(0).name == "x"
    assert network.log.errors == []


def test_nodes_know_their_sites(tmp_path: Path) -> None:
    path = mlp(tmp_path / "model.onnx")
    assert origins(path, {"z": "ffn.act"}) == {"mm": Origin("MatMul", None), "act": Origin("Gelu", "ffn.act")}


def test_missing_weights(tmp_path: Path) -> None:
    path = mlp(tmp_path / "model.onnx", external=True)
    (tmp_path / "weights.data").unlink()
    assert "weights.data" in str(refusal(path))


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    assert "model.onnx" in refusal(tmp_path / "model.onnx").what


def test_an_actx_node_is_caught_before_the_parser_sees_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [node("Spline", ["x"], "z", domain=DOMAIN)], domains=[DOMAIN])
    error = refusal(path)
    assert error.what == "TensorRT-RTX has no kernel for 'spline' (Spline)"
    assert error.note == "an op of domain actx; scope encoder.ffn; site encoder.ffn"
    assert "model.onnx" in error.remedy


def test_an_op_of_another_domain_is_not_taken_for_the_one_of_its_name(tmp_path: Path) -> None:
    """The parser would: it looks a `com.microsoft::Gelu` up as `Gelu`."""
    path = write(tmp_path / "m.onnx", [node("Gelu", ["x"], "z", domain="com.microsoft")], domains=["com.microsoft"])
    assert parsed(path).definition.num_layers > 0
    error = refusal(path)
    assert "does not have 'gelu' (Gelu)" in error.what
    assert "domain com.microsoft" in error.note


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.UINT16, "uint16"),
        (TensorProto.INT16, "int16"),
        (TensorProto.UINT64, "uint64"),
        (TensorProto.COMPLEX64, "complex64"),
        (TensorProto.STRING, "strings"),
    ],
)
def test_an_input_of_a_type_that_it_lacks(tmp_path: Path, dtype: int, name: str) -> None:
    error = refusal(write(tmp_path / "m.onnx", [node("Identity", ["x"], "z")], dtype=dtype, output=dtype))
    assert error.what == f"'x' is {name}, which TensorRT-RTX does not have"
    assert "float16" in error.note


def test_a_value_inside_of_a_type_that_it_lacks(tmp_path: Path) -> None:
    """The parser computes float64 in float32 and says nothing."""
    nodes = [node("Cast", ["x"], "y", to=TensorProto.DOUBLE), node("Cast", ["y"], "z", "back", to=TensorProto.FLOAT)]
    path = write(tmp_path / "m.onnx", nodes)
    assert parsed(path).log.errors == []
    error = refusal(path)
    assert error.what == "'cast' (Cast) gives float64, which TensorRT-RTX does not have"
    assert "scope encoder.ffn; site encoder.ffn" in error.note
    assert "float32" in error.remedy
    path = write(
        tmp_path / "n.onnx", [node("Mul", ["x", "w"], "z")], [constant("w", np.ones(16))], dtype=TensorProto.DOUBLE
    )
    assert "float64" in refusal(path).what


@pytest.mark.parametrize("dtype", [TensorProto.INT8, TensorProto.INT64, TensorProto.BOOL, TensorProto.BFLOAT16])
def test_types_that_it_has(tmp_path: Path, dtype: int) -> None:
    path = write(tmp_path / "m.onnx", [node("Cast", ["x"], "z", to=TensorProto.FLOAT)], dtype=dtype)
    check_graph(path, "TensorRT-RTX")
    parsed(path)


def qdq(zero: Any) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    points = [] if zero is None else [constant("zp", zero)]
    names = ["s", *(point.name for point in points)]
    return [
        node("QuantizeLinear", ["x", *names], "q", "quantize"),
        node("DequantizeLinear", ["q", *names], "z", "dequantize"),
    ], [SCALE, *points]


def test_symmetric_int8_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", *qdq(np.int8(0)))
    check_graph(path, "TensorRT-RTX")
    parsed(path)


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        (np.int8(3), "quantizes symmetrically, and 'quantize' (QuantizeLinear) has a zero point that is not 0"),
        (np.uint8(128), "does not quantize to uint8, as 'quantize' (QuantizeLinear) does"),
        (np.uint8(0), "does not quantize to uint8"),
        (None, "does not quantize to uint8"),
    ],
)
def test_other_quantization_is_refused(tmp_path: Path, zero: Any, said: str) -> None:
    error = refusal(write(tmp_path / "m.onnx", *qdq(zero)))
    assert said in error.what
    assert "site encoder.ffn" in error.note
    assert "symmetrically" in error.remedy


def test_an_int32_bias_is_refused(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["b", "s"], "y", "bias"), node("Add", ["x", "y"], "z")]
    error = refusal(write(tmp_path / "m.onnx", nodes, [SCALE, constant("b", np.ones(16, np.int32))]))
    assert "does not quantize to int32, as 'bias' (DequantizeLinear) does" in error.what
    assert "biases" in error.remedy


def test_names_must_tell_nodes_apart(tmp_path: Path) -> None:
    twice = [node("Relu", ["x"], "y", "same"), node("Relu", ["y"], "z", "same")]
    assert refusal(write(tmp_path / "m.onnx", twice)).what == "two nodes are named 'same'"
    none = [helper.make_node("Relu", ["x"], ["z"])]
    assert refusal(write(tmp_path / "m.onnx", none)).what == "a Relu node has no name"


def test_the_parsers_errors_are_one_that_names_node_scope_and_site(tmp_path: Path) -> None:
    nodes = [node("Nope", ["x"], "y", "first"), node("Nope", ["y"], "z", "second")]
    error = parser_refusal(write(tmp_path / "m.onnx", nodes))
    assert error.what.endswith("does not take 'first' (Nope)")
    assert "scope encoder.ffn; site encoder.ffn; and 1 more" in error.note
    assert error.note.startswith("it has no such op: ")


def test_an_error_inside_a_local_function(tmp_path: Path) -> None:
    opset = helper.make_opsetid("", 20)
    inner = helper.make_function("local", "F", ["a"], ["b"], [node("Nope", ["a"], "b", "inner")], [opset])
    nodes = [node("F", ["x"], "z", "call", domain="local")]
    error = parser_refusal(write(tmp_path / "m.onnx", nodes, domains=["local"], functions=[inner]))
    assert "'inner' (Nope)" in error.what
    assert "in call (F)" in error.note
    assert "site encoder.ffn" in error.note


def test_a_setting_that_it_lacks(tmp_path: Path) -> None:
    resize = node("Resize", ["x", "", "", "to"], "z", coordinate_transformation_mode="tf_crop_and_resize")
    error = parser_refusal(write(tmp_path / "m.onnx", [resize], [constant("to", np.array([1, 2, 32]))]))
    assert "'resize' (Resize)" in error.what
    assert "half_pixel" in error.note
