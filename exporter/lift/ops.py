"""The ops that lifting and folding know by name. An op is its domain and its type.

Ops of the domain ``com.microsoft`` are those that ONNX Runtime's own optimisers and quantizers write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Mapping

Op: TypeAlias = tuple[str, str]

MICROSOFT = "com.microsoft"


def op_of(node: ir.Node) -> Op:
    """Return the node's op; a Dropout that surely drops nothing is an Identity."""
    op = ("" if node.domain == "ai.onnx" else node.domain), node.op_type
    return ("", "Identity") if op == ("", "Dropout") and not _may_train(node) else op


def _may_train(dropout: ir.Node) -> bool:
    mode = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    tensor = tensor_of(mode)
    return mode is not None and (tensor is None or bool(tensor.numpy().any()))


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node, None for any other value."""
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def standard(*types: str) -> frozenset[Op]:
    """Return ops of ONNX's default domain."""
    return frozenset(("", op_type) for op_type in types)


def contrib(*types: str) -> frozenset[Op]:
    """Return ops of ONNX Runtime's domain."""
    return frozenset((MICROSOFT, op_type) for op_type in types)


MUL: Op = ("", "Mul")
DIV: Op = ("", "Div")
SPLIT: Op = ("", "Split")
SLICE: Op = ("", "Slice")
CONCAT: Op = ("", "Concat")
SUMS = standard("Add", "Sub")
# Linear in their one non-constant operand: a layer's bias or a normalisation's scale where the constant is per channel.
AFFINE = SUMS | {MUL, DIV}
# Linear in each operand.
MULTILINEAR = standard("Mul", "MatMul", "Einsum") | contrib("FusedMatMul")

# Linear ops that mix features.
LAYERS = standard(
    "MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose", "DeformConv", "MatMulInteger", "QLinearMatMul", "ConvInteger",
    "QLinearConv",
) | contrib(
    "FusedMatMul", "FusedGemm", "FusedConv", "QLinearConv", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
)  # fmt: skip
NORMALISATIONS = standard(
    "LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization", "InstanceNormalization",
    "LpNormalization", "SimplifiedLayerNormalization",  # the last one is ONNX Runtime's all the same
) | contrib("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")  # fmt: skip
# The inputs that the result is linear in, taken together: weight and bias, or scale and bias.
WEIGHT_AND_BIAS: Mapping[Op, tuple[int, ...]] = {
    ("", "Gemm"): (1, 2),
    ("", "Conv"): (1, 2),
    ("", "ConvTranspose"): (1, 2),
    ("", "DeformConv"): (1, 3),
    ("", "LayerNormalization"): (1, 2),
    ("", "BatchNormalization"): (1, 2),
    ("", "GroupNormalization"): (1, 2),
    ("", "InstanceNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2,),
}
# The same numbers in another layout.
LAYOUT = standard("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
# Some of the numbers, or more, or in another type. A factor is not folded through these: it would have to reach the other
# parts too, or the type may not hold it.
SELECTION = standard(
    "Cast", "Split", "Slice", "Gather", "Concat", "Expand", "Pad", "DepthToSpace", "SpaceToDepth", "QuantizeLinear",
    "DequantizeLinear", "ScatterND",
) | contrib("QuantizeLinear", "DequantizeLinear")  # fmt: skip
POOLINGS = standard(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
    "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LpPool",
)  # fmt: skip
# On whole rows: what comes out depends on more than the element that went in.
ROWWISE = standard("Softmax", "LogSoftmax", "Hardmax", "TopK", "ArgMax", "ArgMin", "CumSum", "NonZero")
