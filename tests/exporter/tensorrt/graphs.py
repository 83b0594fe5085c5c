"""Small graphs for the engines' tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from actx.exporter.data import InputSpec
from actx.exporter.lower import SITE_METADATA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike

SPEC = InputSpec("x", "float32", ("batch", "seq", 16))
FLOAT = onnx.TensorProto.FLOAT


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    dtype: int = FLOAT,
    output: int = FLOAT,
    dims: Sequence[int | str] = SPEC.dims,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    external: bool = False,
) -> Path:
    """Write a model with one input x and one output z."""
    value = helper.make_tensor_value_info("x", dtype, list(dims))
    result = helper.make_tensor_value_info("z", output, None)
    graph = helper.make_graph(list(nodes), "g", [value], [result], list(initializers))
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location="weights.data", size_threshold=0)
    return path


def mlp(path: Path, dtype: DTypeLike = np.float32, *, external: bool = False) -> Path:
    """MatMul and Gelu, whose site is `ffn.act`; both dimensions in front are dynamic."""
    weights = np.random.default_rng(0).standard_normal((16, 32)).astype(dtype)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="mm"),
        helper.make_node("Gelu", ["y"], ["z"], name="act"),
    ]
    nodes[1].metadata_props.add(key=SITE_METADATA, value="ffn.act")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return write(path, nodes, [constant("w", weights)], dtype=kind, output=kind, external=external)
