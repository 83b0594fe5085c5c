"""Bring a graph into the one shape that the rest of the pipeline expects."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import (
    InlinePass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)
from onnxscript.optimizer import fold_constants

from actx.exporter.errors import ActxError

# Constants larger than this stay as the nodes that compute them.
MAX_FOLDED = 1024


def prepare(model: ir.Model) -> None:
    """Prepare a graph in place.

    1. Weights that old exporters also list as inputs are no inputs.
    2. Local functions are inlined.
    3. Nodes are sorted, names made unique, types and shapes inferred.
    4. Small constants that nodes compute from constants are computed now.

    Raises:
        ActxError: the graph is invalid.
    """
    passes = (RemoveInitializersFromInputsPass(), InlinePass(), TopologicalSortPass(), NameFixPass(), ShapeInferencePass())
    try:
        Sequential(*passes)(model)
        fold_constants(model, input_size_limit=MAX_FOLDED, output_size_limit=MAX_FOLDED)
    except Exception as error:
        cause = error.__cause__ or error
        note, remedy = str(cause), "Check it with onnx.checker.check_model."
        raise ActxError("the model's graph is invalid", note=note, remedy=remedy) from error
