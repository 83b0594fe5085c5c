"""Take out of a model what a site is measured in, because a runtime may compute it within the linear layer beside it.

1. The part reaches from the nearest linear layer before the site to the nearest one after it, both included. Of a gated site it
   has the product and the way from the nearest linear layer to the other factor too.
2. Nearest is what the fewest nodes lead to; at `MAX_STEPS` the way ends, and the part begins or ends at the site.
3. What the part reads of values that depend on the model's inputs, it has for inputs; what others read of it, for outputs, so
   that no runtime fuses there what it could not fuse in the whole.
"""

from __future__ import annotations

from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.lift.rule import is_linear
from actx.exporter.part import take_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from actx.exporter.lift import Site

MAX_STEPS = 16


class Contexts:
    """The contexts of one model's sites."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    def part(self, site: Site) -> ir.Model:
        """Return the part of the model that a site is measured in, as a model of its own; its values keep their names.

        Raises:
            ActxError: it cannot be taken out.
        """
        nodes = self._nodes(site)
        outside = (value for node in nodes for value in self._sources(node))
        gates = (self._values[name] for name in site.operands)
        inputs = dict.fromkeys(value for value in (*outside, *gates) if value.producer() not in nodes)
        outputs = [
            value for node in self._model.graph if node in nodes for value in node.outputs if _is_read(value, nodes)
        ]
        return take_part(self._model, [str(value.name) for value in inputs], [str(value.name) for value in outputs])

    def _nodes(self, site: Site) -> dict[ir.Node, None]:
        """1."""
        values = self._values
        found = [*_way(values[site.input], self._before), *(values[name].producer() for name in site.values)]
        end = values[site.output]
        if site.gate is not None:
            end = values[site.gate.product]
            found += [end.producer(), *_way(values[site.gate.multiplier], self._before)]
        found += _way(end, self._after)
        return dict.fromkeys(node for node in found if node is not None)

    def _before(self, value: ir.Value) -> Iterable[tuple[ir.Node, Iterable[ir.Value]]]:
        node = value.producer()
        if node is not None:
            yield node, self._sources(node)

    def _sources(self, node: ir.Node) -> list[ir.Value]:
        return [value for value in node.inputs if value is not None and value in self._computed]

    def _after(self, value: ir.Value) -> Iterable[tuple[ir.Node, Iterable[ir.Value]]]:
        for node in value.consumers():
            if node.graph is self._model.graph:
                yield node, node.outputs

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return ir.convenience.create_value_mapping(self._model.graph, include_subgraphs=False)

    @cached_property
    def _computed(self) -> set[ir.Value]:
        """3. Return the values that depend on the model's inputs."""
        graph = self._model.graph
        found: set[ir.Value] = set(graph.inputs)
        for node in graph:
            if any(value is not None and value in found for value in node.inputs):
                found.update(node.outputs)
        return found


def _way(
    start: ir.Value, steps: Callable[[ir.Value], Iterable[tuple[ir.Node, Iterable[ir.Value]]]]
) -> tuple[ir.Node, ...]:
    """2. Return the nodes that lead to the nearest linear layer, that one included; none where it is too far."""
    ways: deque[tuple[ir.Value, tuple[ir.Node, ...]]] = deque([(start, ())])
    seen = {start}
    while ways:
        value, way = ways.popleft()
        for node, further in steps(value):
            if is_linear(node):
                return (*way, node)
            for following in further:
                if following not in seen and len(way) + 1 < MAX_STEPS:
                    seen.add(following)
                    ways.append((following, (*way, node)))
    return ()


def _is_read(value: ir.Value, nodes: dict[ir.Node, None]) -> bool:
    """Tell whether what is not in the part reads the value, or it is what the part is for."""
    consumers = value.consumers()
    return value.is_graph_output() or any(node not in nodes for node in consumers)
