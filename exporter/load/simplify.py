"""Bring what torch's converter writes into a plain graph, without changing a number.

Torch's own clean-up (`optimize=True`) also takes a summand below 1e-8 for 0 and a factor within 1e-5 of 1 for 1: a norm
loses its epsilon, and a row of zeros becomes NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    OutputFixPass,
    RemoveUnusedNodesPass,
)
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

if TYPE_CHECKING:
    import onnx_ir as ir


def _times(op: Any, x: ir.Value, one: ir.Value) -> Any:
    return op.Mul(x, one)


def _itself(op: Any, x: ir.Value, one: ir.Value) -> Any:  # noqa: ARG001 - the arguments of the pattern
    return op.Identity(x)


def _is_one(context: Any, x: ir.Value, one: ir.Value) -> bool:  # noqa: ARG001
    return one.const_value is not None and one.const_value.shape == () and one.const_value.numpy() == 1


# All that match by structure. Those of the library that compare a constant do so with a tolerance.
_RULES = (
    *rewriter.RewriteRule(_times, _itself, _is_one).commute(),
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.dropout_inference_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.slice_split_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.fuse_batchnorm_into_gemm_rule,
)
_ROUNDS = 2  # what one round folds lets rules match in the next


def simplify(model: ir.Model) -> None:
    """Inline functions, fold constants and take out what does nothing, in place."""
    InlinePass()(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.rewrite(model, _RULES)
    Sequential(
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        LiftSubgraphInitializersToMainGraphPass(),
        DeduplicateInitializersPass(),
        CommonSubexpressionEliminationPass(),
        OutputFixPass(),
        NameFixPass(),
    )(model)
