"""A part of a model that runs by itself: taken out, fed with what it reads, and written as a target takes it.

It is measured in the place of the whole where two ways to write it are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from actx.exporter.bundle import PORTABLE, graph_name
from actx.exporter.errors import ActxError
from actx.exporter.lift.ops import op_of
from actx.exporter.lower import lower
from actx.exporter.save import save
from actx.exporter.targets import Files

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.targets import Graph, Target

_SETTINGS = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING, ir.AttributeType.STRINGS)


def take_part(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Return what computes some values of a model from others, as a model of its own. The model is not changed.

    Raises:
        ActxError: they depend on something else too.
    """
    try:
        graph = ir.convenience.extract(model.graph, inputs, outputs)
    except ValueError as error:
        raise ActxError("the part cannot be taken out of the model", note=str(error)) from error
    return ir.Model(graph, ir_version=model.ir_version)


def read_values(original: Path, batch: Arrays, names: Sequence[str], options: RuntimeOptions) -> Arrays:
    """Return values of a model on a batch, in the order of their names; what the batch has is not computed.

    Raises:
        ActxError: the model cannot be run, or does not give them.
    """
    inside = [name for name in names if name not in batch]
    found = options.open(original, inside).run(batch, inside) if inside else {}
    return {name: batch[name] if name in batch else found[name] for name in names}


def state_inputs(model: ir.Model, part: ir.Model, feeds: Arrays) -> None:
    """Give a part's inputs, in place, the types that they have in the model, and where its shapes are known the shapes."""
    static = all(value.shape is not None and value.shape.is_static() for value in model.graph.inputs)
    for value in part.graph.inputs:
        array = feeds[str(value.name)]
        value.dtype = ir.DataType.from_numpy(array.dtype) if value.dtype is None else value.dtype
        if static or value.shape is None:
            value.shape = ir.Shape(array.shape)


def write_part(
    part: ir.Model,
    choices: Sequence[Choice],
    target: Target,
    folder: Path,
    *,
    options: RuntimeOptions,
    quant: str | None = None,
    fold: bool = True,
    kernels: bool | None = None,
    packed: Collection[str] = (),
) -> Graph:
    """Write a part with forms for sites and return what the target runs of it.

    Args:
        part: see `take_part`.
        choices: the forms of its sites.
        target: what it is written for.
        folder: where to; it is made.
        options: how it is run.
        quant: the scheme of the whole.
        fold: see `lower`.
        kernels: as of the whole: whether a graph of actx nodes must be taken, or must not.
        packed: see `lower`.

    Raises:
        TargetUnavailable: the kernels were asked for and cannot be had.
        ActxError: it cannot be written.
    """
    folder.mkdir()
    lowered = lower(part, choices, fold=fold, native=target.native, packed=packed)
    graphs, models = {"portable": PORTABLE}, {PORTABLE: lowered.portable}
    if lowered.native is not None:
        graphs[target.name] = graph_name(target.name)
        models[graphs[target.name]] = target.compile(lowered.native, ())
    save(models, folder)
    return target.graph(Files(folder, graphs, {}, quant), options, kernels if target.name in graphs else None)


def structure_of(part: ir.Model) -> list[Any]:
    """Return what decides, with its inputs' shapes, how long a part takes, as JSON values.

    These are its ops, their settings and how they are connected, and the types and shapes of its weights; not their numbers.
    """
    numbers = {value: number for number, value in enumerate(part.graph.inputs)}
    weights, nodes = [], []
    for node in part.graph:
        for value in (value for value in node.inputs if value is not None and value not in numbers):
            weights.append((str(value.dtype), str(value.shape)))
            numbers[value] = len(numbers)
        for value in node.outputs:
            numbers[value] = len(numbers)
        settings = sorted((name, _setting(attribute)) for name, attribute in node.attributes.items())
        operands = [-1 if value is None else numbers[value] for value in node.inputs]
        nodes.append((op_of(node), settings, operands, [numbers[value] for value in node.outputs]))
    return [nodes, weights, [numbers.get(value, -1) for value in part.graph.outputs]]


def _setting(attribute: ir.Attr) -> str:
    """Return what an attribute adds to a structure."""
    if attribute.type in _SETTINGS:
        return str(attribute.value)
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape}"
    return str(attribute.type)
