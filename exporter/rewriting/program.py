"""A torch module as two graphs, torch's own and ONNX, and the way from a site of the second back to the first."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import Dim, ShapesCollection
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from actx.exporter.errors import ActxError
from actx.exporter.lift import ScalarFunction
from actx.exporter.load.inputs import name_batch
from actx.exporter.load.prepare import prepare
from actx.exporter.load.program import OPSET
from actx.exporter.load.quiet import quiet
from actx.exporter.load.simplify import simplify

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from torch import nn
    from torch.export import ExportedProgram

    from actx.exporter.lift import Site

# Where torch notes, in an ONNX node, the text of the node that it was converted from: "%name : ...".
_SOURCE = "pkg.torch.onnx.fx_node"
# Where what was found is compared with the site's function.
_PROBES = (-3.0, -1.0, -0.25, 0.5, 2.0, 5.0)


@dataclass(frozen=True)
class Place:
    """A site in the graph of torch ops.

    Attributes:
        input: the value that the site's function is applied to.
        output: the value that it gives.
        nodes: all ops on the way, in topological order; the last one is `output`.
        parameters: what they take besides: weights and buffers of the module.
    """

    input: fx.Node
    output: fx.Node
    nodes: tuple[fx.Node, ...]
    parameters: tuple[fx.Node, ...]

    def body(self) -> fx.GraphModule:
        """Return the ops as a module without state, of the input and the parameters."""
        graph = fx.Graph()
        known = {node: graph.placeholder(node.name) for node in (self.input, *self.parameters)}
        for node in self.nodes:
            known[node] = graph.node_copy(node, known.__getitem__)
        graph.output(known[self.output])
        return fx.GraphModule({}, graph)


class Program:
    """A module that torch.export has turned into a graph.

    Attributes:
        original: a copy of the module it was.
        module: the graph of torch ops, with the weights under the names they had.
        model: the ONNX graph that `load` would give for the same program.
    """

    def __init__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
    ) -> None:
        self.original = copy.deepcopy(module).eval()
        with quiet():
            exported = _exported(self.original, args, kwargs, dynamic_shapes)
            # Without the guards: they are Python code, which cannot be exported again.
            self.module = exported.module(check_guards=False)
            self.model, converted = _converted(exported)
        # On the module that torch gives, these only say that they are not supported.
        del self.module.train, self.module.eval
        self._nodes = {node.name: node for node in self.module.graph.nodes}
        self._converted = {node.name: node for node in converted.graph.nodes}

    def find(self, site: Site) -> Place | None:
        """Return the site's place; None where it is only a part of an op."""
        first, last = self._origin(site.input) or self._entry(site), self._origin(site.output)
        place = None if first is None or last is None else _between(first, last)
        return place if place is not None and self._agrees(place, site) else None

    def _origin(self, name: str) -> fx.Node | None:
        """Return the node of the module's graph that a converted node comes from. ONNX values have the names of those nodes."""
        node = self._converted.get(name)
        history = [] if node is None else node.meta.get("from_node", [])
        while history:
            name, history = history[-1].name, history[-1].from_node
        return None if node is None else self._nodes.get(name)

    def _entry(self, site: Site) -> fx.Node | None:
        """Return the one input of the site's ops, where its value has another name, as a part of a split has."""
        producers = (node for node in self.model.graph if node.outputs[0].name in site.values)
        texts = (node.metadata_props.get(_SOURCE, "") for node in producers)
        inside = {self._origin(text.partition(" ")[0].removeprefix("%")) for text in texts}
        inputs = {source for node in inside if node is not None for source in node.all_input_nodes} - inside
        outside = [node for node in inputs if node.op != "get_attr"]
        return outside[0] if len(outside) == 1 else None

    def _agrees(self, place: Place, site: Site) -> bool:
        """Tell whether the ops compute the site's function."""
        example = place.input.meta["val"]
        shape = [1] * example.dim()
        if site.axis is not None:
            assert isinstance(site.function, ScalarFunction)
            shape[site.axis] = site.function.channels or 1
        body = place.body()
        parameters = [_attribute(self.module, str(node.target)) for node in place.parameters]
        tolerance = torch.finfo(example.dtype).eps ** 0.5
        for probe in _PROBES:
            expected = site.evaluate(np.full(shape, probe))
            with torch.no_grad():
                try:
                    got = body(torch.full(shape, probe, dtype=example.dtype, device=example.device), *parameters)
                except RuntimeError:  # an op that is bound to the shape of the input
                    return False
            if got.shape != torch.Size(shape) or not np.allclose(
                got.double().cpu().numpy(), expected, rtol=tolerance, atol=tolerance
            ):
                return False
        return True


def _exported(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    named = dict(kwargs or {})
    shapes = _batches(module, args, named) if dynamic_shapes is None else dynamic_shapes
    try:
        with torch.enable_grad(), _WrittenOut():  # without gradients torch fuses whole layers into one op
            return torch.export.export(module, args, named, dynamic_shapes=shapes)
    except Exception as error:
        what = "torch.export cannot turn the module into a graph"
        raise ActxError(what, note=f"{type(error).__name__}: {error}", remedy="Change what the note names.") from error


def _batches(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let the first size of every tensor vary, if the module does."""
    shapes: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Tensor) and value.dim() > 0:
            shapes[value] = {0: Dim.AUTO}
    return shapes.dynamic_shapes(module, args, kwargs)


class _WrittenOut(TorchFunctionMode):
    """Write the one op out that has a site inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_glu if func is functional.glu else func)(*args, **(kwargs or {}))


def _glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002 - torch's name
    value, gate = input.chunk(2, dim)
    return value * gate.sigmoid()


def _converted(exported: ExportedProgram) -> tuple[ir.Model, ExportedProgram]:
    """Return the ONNX graph and the program of ONNX-like ops between it and the exported one."""
    try:
        result = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, verbose=False, optimize=False)
    except Exception as error:
        what = "torch cannot convert the module to ONNX"
        raise ActxError(what, note=f"{type(error).__name__}: {error}", remedy="Rewrite what the note names.") from error
    assert result is not None
    assert result.exported_program is not None
    model: ir.Model = result.model
    simplify(model)
    name_batch(model)
    prepare(model)
    return model, result.exported_program


def _between(first: fx.Node, last: fx.Node) -> Place | None:
    """Walk from `last` back to `first`; None where that leads to another input."""
    order: dict[fx.Node, None] = {}
    parameters: dict[fx.Node, None] = {}
    stack = [(last, False)]
    while stack:
        node, done = stack.pop()
        if node is first or node in order:
            continue
        if node.op == "placeholder":
            return None
        if node.op == "get_attr":
            parameters[node] = None
        elif done:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.all_input_nodes))
    return Place(first, last, tuple(order), tuple(parameters)) if order else None


def _attribute(module: nn.Module, target: str) -> Any:
    found: Any = module
    for name in target.split("."):
        found = getattr(found, name)
    return found
