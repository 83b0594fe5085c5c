"""Models of one node of an op, as ONNX Runtime takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from actx.custom_ops.ops import DOMAIN, OPSET, TensorType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.op_cases import Case

KINDS = {
    np.dtype(dtype): kind
    for dtype, kind in (
        (np.float32, TensorProto.FLOAT),
        (np.float16, TensorProto.FLOAT16),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
        (np.int8, TensorProto.INT8),
        (np.uint8, TensorProto.UINT8),
        (np.int32, TensorProto.INT32),
    )
}


def model(op_type: str, attributes: dict[str, Any], inputs: Sequence[TensorType | None], output: TensorType) -> bytes:
    """One node; an input that is absent in the middle has an empty name."""
    names = [f"x{i}" if tensor else "" for i, tensor in enumerate(inputs)]
    while not names[-1]:
        names.pop()
    values = [
        helper.make_tensor_value_info(name, KINDS[tensor.dtype], tensor.shape)
        for name, tensor in zip(names, inputs, strict=False)
        if tensor
    ]
    present = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(op_type, names, ["y"], "node", domain=DOMAIN)
    node.attribute.extend(
        helper.make_attribute(name, value, attr_type=None if value != [] else 6) for name, value in present.items()
    )
    result = helper.make_tensor_value_info("y", KINDS[output.dtype], output.shape)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    graph = helper.make_graph([node], "g", values, [result])
    return helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()


def is_inferred(case: Case) -> bool:
    """Whether ONNX Runtime infers the type of the output: that of X, or the only one that the op gives."""
    types = [None if array is None else TensorType.of(array) for array in case.inputs]
    assert types[0] is not None
    return case.op.output(types).dtype == types[0].dtype or len(case.op.TYPES[case.op.OUTPUT.type_name]) == 1
