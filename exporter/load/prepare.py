"""Bring a graph into the one shape that the rest of the pipeline expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    InlinePass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    import onnx_ir as ir


def prepare(model: ir.Model) -> None:
    """Prepare a graph in place.

    1. Weights that old exporters also list as inputs are no inputs.
    2. Local functions are inlined.
    3. Nodes are sorted, names made unique, types and shapes inferred.

    Raises:
        ActxError: the graph is invalid.
    """
    passes = (
        RemoveInitializersFromInputsPass(),
        InlinePass(),
        TopologicalSortPass(),
        NameFixPass(),
        ShapeInferencePass(),
    )
    try:
        Sequential(*passes)(model)
    except Exception as error:
        cause = error.__cause__ or error
        note, remedy = str(cause), "Check it with onnx.checker.check_model."
        raise ActxError("the model's graph is invalid", note=note, remedy=remedy) from error
