"""Bring a graph into the one shape that the rest of the pipeline expects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx_ir.passes import PassBase, Sequential
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from actx.custom_ops.ops import register_schemas
from actx.exporter.errors import ActxError
from actx.exporter.load.actx_nodes import check_nodes, split_products
from actx.exporter.load.numbers import fold_numbers
from actx.exporter.load.parameters import check_parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Functions come to no more nodes than this once they are inlined.
_MAX_NODES = 1 << 20
# An attribute that a new opset adds has the default that changes nothing, but in these.
_OTHER_MEANING = frozenset({"GroupNormalization", "RoiAlign"})


def prepare(model: ir.Model) -> None:
    """Prepare a graph in place.

    1. Weights that old exporters also list as inputs are no inputs.
    2. Local functions are inlined, those of another opset too if their ops are written alike in both. Functions that call
       functions must not come to more nodes than a model has: each may double them.
    3. Nodes are sorted and names made unique; every value must come from somewhere.
    4. Tensors of Constant nodes become initializers, which may be stored outside the graph.
    5. Nodes of the standard have the inputs, outputs and attributes that it says: onnx infers shapes by them unchecked.
    6. Types and shapes are inferred as far as that goes: strict inference gives nothing at all where one node has none.
       Constants of elementwise ops must fit what they are applied to.
    7. Nodes of domain `actx` are checked, and their multipliers become products of their own.
    8. What is computed of known sizes is written as numbers (see `numbers`).

    Raises:
        ActxError: the graph is invalid.
    """
    passes = (
        RemoveInitializersFromInputsPass(),
        InlinePass(),
        TopologicalSortPass(),
        NameFixPass(),
        LiftConstantsToInitializersPass(size_limit=0),
    )
    _check_calls(model)
    _align_functions(model)
    register_schemas()
    _apply(model, *passes)
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                raise _invalid(f"node {node.name} takes {value.name}, which nothing gives")
    _check_nodes(model)
    _apply(model, ShapeInferencePass(check_type=False, strict_mode=False))
    check_parameters(model)
    check_nodes(model)
    split_products(model)
    if fold_numbers(model):
        ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _apply(model: ir.Model, *passes: PassBase) -> None:
    try:
        Sequential(*passes)(model)
    except Exception as error:
        raise _invalid(str(error.__cause__ or error)) from error


def _check_calls(model: ir.Model) -> None:
    """2."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def size(nodes: Iterable[ir.Node]) -> int:
        return sum(called(node.op_identifier()) for node in nodes)

    def called(name: ir.OperatorIdentifier) -> int:
        function = model.functions.get(name)
        if function is None:
            return 1
        if name not in sizes:
            sizes[name] = 1  # ends a cycle, which the pass refuses
            sizes[name] = size(function.graph.all_nodes())
        return sizes[name]

    if (nodes := size(model.graph.all_nodes())) > _MAX_NODES:
        raise _invalid(f"its functions come to {nodes} nodes, more than the {_MAX_NODES} that are read")


def _check_nodes(model: ir.Model) -> None:
    """5. What holds graphs is left to the runtime: the checker looks for their values in them alone."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = max(model.ir_version, onnx.IR_VERSION)
    context.opset_imports = dict(model.opset_imports)
    opset = model.opset_imports.get("", 0)
    for node in model.graph.all_nodes():
        schema = None if node.domain else _schema(node.op_type, opset)
        if schema is None:
            continue
        if graphs := [name for name, attribute in node.attributes.items() if _is_graph(attribute)]:
            if foreign := [name for name in graphs if name not in schema.attributes]:
                raise _invalid(f"node {node.name} has an attribute {foreign[0]}, which {node.op_type} has not")
            continue
        if node.op_type == "Constant" and len(node.attributes) != 1:
            raise _invalid(f"node {node.name} is a Constant with {len(node.attributes)} attributes, not one")
        try:
            onnx.checker.check_node(ir.to_proto(node), context)
        except Exception as error:
            raise _invalid(str(error)) from error
        if node.op_type == "Split" and node.attributes.get_int("num_outputs", default=len(node.outputs)) != len(
            node.outputs
        ):
            raise _invalid(
                f"node {node.name} has {len(node.outputs)} outputs and another number in its attribute num_outputs"
            )


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


def _align_functions(model: ir.Model) -> None:
    """2."""
    opset = model.opset_imports.get("", 0)
    for function in model.functions.values():
        own = function.opset_imports.get("", opset)
        nodes = [node for node in function.graph.all_nodes() if node.domain == ""]
        changed = [node.op_type for node in nodes if not written_alike(node.op_type, node.attributes, own, opset)]
        if changed:
            raise ActxError(
                f"local function {function.name} is of opset {own}, its model of opset {opset}",
                note=f"{changed[0]} is not written alike in both",
                remedy="Inline it with onnx.inliner.inline_local_functions(model, convert_version=True).",
            )
        if own != opset:
            function.opset_imports[""] = opset


def written_alike(op_type: str, attributes: Collection[str], first: int, second: int) -> bool:
    """Tell whether a node with these attributes means the same in two opsets; new opsets mostly add types."""
    old, new = _schema(op_type, first), _schema(op_type, second)
    if old is None or new is None:
        return old is new
    if old.since_version != new.since_version and op_type in _OTHER_MEANING:
        return False
    both = old.attributes.keys() & new.attributes.keys()
    return (
        [value.name for value in old.inputs] == [value.name for value in new.inputs]
        and both.issuperset(attributes)
        and all(old.attributes[name].default_value == new.attributes[name].default_value for name in both)
    )


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    return onnx.defs.get_schema(op_type, opset, "") if onnx.defs.has(op_type, opset, "") else None


def _invalid(note: str) -> ActxError:
    return ActxError("the model's graph is invalid", note=note, remedy="Check it with onnx.checker.check_model.")
