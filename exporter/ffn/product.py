"""Find where the two factors of a gated product come from.

1. The gate is the input of the site; nothing but the site reads it.
2. The other factor is a value u, or h(u) for an elementwise h: that of the region it ends, which may be a site of its own. Only
   then may it differ per channel.
3. Gate and u are the halves of one value, or come from two layers that can be packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actx.exporter.ffn.halves import Halves, find_halves
from actx.exporter.ffn.layers import Pair, find_pair
from actx.exporter.lift.function import ScalarFunction
from actx.exporter.lift.ops import MUL, op_of, tensor_of
from actx.exporter.lift.regions import grow
from actx.exporter.linear import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx_ir as ir

    from actx.exporter.lift import Site

__all__ = ["Product", "Products", "Refusal"]


@dataclass(frozen=True)
class Product:
    """A gated product whose factors come from one value, or could.

    Attributes:
        site: name of the site that is the gate.
        source: what gate and u are: halves of one value, or outputs of two layers.
        other: name of u.
        function: h, None for the identity.
        other_site: the name of the site that h is, None where it is none.
    """

    site: str
    source: Halves | Pair
    other: str
    function: ScalarFunction | None = None
    other_site: str | None = None


class Products:
    """The products of one graph, whose regions are grown at most once."""

    def __init__(self, graph: ir.Graph, sites: Sequence[Site]) -> None:
        self._graph = graph
        self._values = values_of(graph)
        self._sites = {site.output: site for site in sites}
        self._regions: dict[str, tuple[ir.Value, ScalarFunction, frozenset[str]]] | None = None

    def find(self, site: Site) -> Product:
        """Return the product that a site is the gate of.

        Raises:
            Refusal: it is none, or its factors do not come from one value and cannot.
        """
        if site.gate is None:
            raise Refusal(self._without_gate(site))
        gate, multiplier = self._values[site.input], self._values[site.gate.multiplier]
        _check_readers(gate, site.values, "the gate")
        try:
            return Product(site.name, self._source(gate, multiplier, {site.gate.product}), site.gate.multiplier)
        except Refusal:
            behind = self._behind(site.gate.multiplier)
            if behind is None:
                raise
        root, function, values = behind
        _check_readers(multiplier, {site.gate.product}, "the other factor")
        other_site = self._sites.get(site.gate.multiplier)
        name = None if other_site is None else other_site.name
        return Product(site.name, self._source(gate, root, values), str(root.name), function, name)

    def _source(self, gate: ir.Value, other: ir.Value, readers: Collection[str]) -> Halves | Pair:
        """3."""
        _check_readers(other, readers, "the other factor")
        return find_halves(gate, other) or find_pair(gate, other)

    def _behind(self, name: str) -> tuple[ir.Value, ScalarFunction, frozenset[str]] | None:
        """2: what the region that ends in a value is a function of, that function, and what the region computes."""
        if self._regions is None:
            self._regions = {
                str(region.output.name): (
                    region.root,
                    region.function,
                    frozenset(str(node.outputs[0].name) for node in region.nodes),
                )
                for region in grow(self._graph)
                if isinstance(region.function, ScalarFunction)
                and (region.axis is None or region.output.name in self._sites)  # a bias is for its layer
            }
        return self._regions.get(name)

    def _without_gate(self, site: Site) -> str:
        """Say why a site is no gate."""
        consumers = self._values[site.output].consumers()
        if (
            len(consumers) == 1
            and op_of(consumers[0]) == MUL
            and all(tensor_of(v) is None for v in consumers[0].inputs)
        ):
            return "the other factor is the gate of this product, or not surely of the site's shape"
        return NO_GATE


NO_GATE = "its output is not the factor of one product"


def _check_readers(value: ir.Value, readers: Collection[str], role: str) -> None:
    """Refuse a value that is read by other nodes than those that give one of `readers`."""
    if value.is_graph_output() or any(node.outputs[0].name not in readers for node in value.consumers()):
        raise Refusal(f"{role} is read elsewhere too")


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values of a graph by name."""
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    return found | {str(value.name): value for node in graph for value in node.outputs}
