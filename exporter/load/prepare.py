"""Bring a graph into the one shape that the rest of the pipeline expects."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import InlinePass, NameFixPass, ShapeInferencePass, TopologicalSortPass

from actx.exporter.errors import ActxError


def prepare(model: ir.Model) -> None:
    """Inline local functions, sort, make names unique, and infer types and shapes, in place.

    Raises:
        ActxError: the graph is invalid.
    """
    try:
        Sequential(InlinePass(), TopologicalSortPass(), NameFixPass(), ShapeInferencePass())(model)
    except Exception as error:
        cause = error.__cause__ or error
        raise ActxError("the model's graph is invalid", note=str(cause), remedy="Check it with onnx.checker.check_model.") from error
