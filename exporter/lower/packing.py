"""Write one layer for two, and in a native graph one `actx::GatedSpline` for what is behind it.

1. The packed layer gives both halves one after the other, the gate first; a Split gives them the names that they had. So the
   graph is what the source would be had it been packed, whatever the function of the gate, and both graphs of a bundle read
   one weight. It is put together only when it is written: the tensors of a memory-mapped source stay where they are.
2. Where the gate has a table, and h is the identity or has one, a GatedSpline reads the value that holds both halves. An h that
   is a site of its own then has no node: the one that stands for both says so in its metadata.
3. Everywhere else the nodes behind the Split stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.custom_ops.ops import DOMAIN, OPSET
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.exporter.ffn.halves import Halves
from actx.exporter.ffn.layers import Pair, packed_bias, packed_weight
from actx.exporter.ffn.product import Product, Products, values_of
from actx.exporter.fitting import Form, exact_table
from actx.exporter.lift.ops import op_of
from actx.exporter.linear import MATMUL
from actx.exporter.lower.emitter import Constants, Emitter, substitute

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from actx.custom_ops import Spline
    from actx.exporter.lift import Site

# The name of the site that is h, on a node that stands for two.
OTHER_SITE_METADATA = "actx.other_site"
_ANY_TABLE = Form("spline", (32, 3))


def pack(model: ir.Model, sites: Sequence[Site], names: Collection[str]) -> tuple[Product, ...]:
    """Write one layer for two, in place, and return the products whose factors are the halves of one value.

    Args:
        model: what the sites were lifted from.
        sites: all of them.
        names: of the gates whose product is to be packed, where their source is not.

    Raises:
        Refusal: one cannot be packed.
    """
    if not names:
        return ()
    products = Products(model.graph, sites)
    found = [products.find(site) for site in sites if site.name in names]
    constants = Constants(model.graph)
    return tuple(_packed(model.graph, constants, product) for product in found)


def _packed(graph: ir.Graph, constants: Constants, product: Product) -> Product:
    """1. Return the product as it is now."""
    if isinstance(product.source, Halves):
        return product
    pair = product.source
    axis, width = pair.gate.axis, pair.gate.width
    name = f"{product.site}/actx/packed"
    whole = _write_layer(graph, pair, name)
    sizes = constants.get(np.array([width, width], np.int64), ir.DataType.INT64)
    split = ir.Node("", "Split", [whole, sizes], [ir.AttrInt64("axis", axis)], num_outputs=2, name=f"{name}/Split")
    graph.insert_after(_present(whole.producer()), split)
    for layer, half in zip((pair.gate, pair.other), split.outputs, strict=True):
        half.type = layer.output.type
        substitute(layer.output, half)
        graph.remove(dict.fromkeys([_present(layer.output.producer()), layer.node]), safe=True)
        for value in (layer.weight, layer.bias):
            if value is not None:
                graph.initializers.pop(str(value.name), None)
    return replace(product, source=Halves(whole, axis, "split", 0))


def _write_layer(graph: ir.Graph, pair: Pair, name: str) -> ir.Value:
    """Insert the packed layer right behind what it reads, before all that may read it, and return what it gives."""
    gate, bias = pair.gate, packed_bias(pair)
    operands = [gate.input, _initializer(graph, f"{name}/weight", packed_weight(pair))]
    if bias is not None:
        operands.append(_initializer(graph, f"{name}/bias", bias))
    added = operands.pop() if bias is not None and op_of(gate.node) == MATMUL else None
    layer = _node(gate.node.op_type, operands, name, pair)
    layer.attributes.update(gate.node.attributes)
    before = gate.input.producer()
    if before is None:
        graph.insert_before(graph[0], layer)
    else:
        graph.insert_after(before, layer)
    if added is None:
        return layer.outputs[0]
    add = _node("Add", [layer.outputs[0], added], name, pair)
    graph.insert_after(layer, add)
    return add.outputs[0]


def _node(op_type: str, inputs: Sequence[ir.Value], name: str, pair: Pair) -> ir.Node:
    """Return a node whose output holds both halves, with the metadata of the gate's layer."""
    half, axis = pair.gate.output, pair.gate.axis
    node = ir.Node("", op_type, inputs, name=f"{name}/{op_type}", metadata_props=dict(pair.gate.node.metadata_props))
    (output,) = node.outputs
    output.name, output.type = f"{node.name}_output", half.type
    if half.shape is not None:
        dims = list(half.shape)
        dims[axis] = 2 * pair.gate.width
        output.shape = ir.Shape(dims)
    return node


def _present(node: ir.Node | None) -> ir.Node:
    assert node is not None
    return node


def _initializer(graph: ir.Graph, name: str, tensor: ir.LazyTensor | ir.Tensor[Any]) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor.name = name
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
    graph.register_initializer(value)
    return value


def write_gated(
    model: ir.Model, products: Sequence[Product], sites: Mapping[str, Site], tables: Mapping[str, Spline]
) -> frozenset[str]:
    """Write one node per product that has tables, in place (2), and return the names of the sites that it stands for.

    Args:
        model: a graph in which the factors of these products are halves.
        products: from `pack`.
        sites: all sites by name.
        tables: by the name of the site that is written as one.
    """
    written: set[str] = set()
    values = values_of(model.graph)
    constants = Constants(model.graph)
    for product in products:
        op = gated_op(product, tables)
        if op is None:
            continue
        site = sites[product.site]
        assert site.gate is not None
        assert isinstance(product.source, Halves)
        old, whole = values[site.gate.product], values[str(product.source.packed.name)]
        last = old.producer()
        assert last is not None
        emit = Emitter(model.graph, constants, last, site.name, site.dtype)
        new = emit.op(op.NAME, whole, domain=DOMAIN, **op.attributes())
        node = new.producer()
        if product.other_site is not None and node is not None:
            node.metadata_props[OTHER_SITE_METADATA] = product.other_site
        substitute(old, new)
        values[str(new.name)] = new
        written |= {name for name in (product.site, product.other_site) if name is not None}
        model.graph.opset_imports[DOMAIN] = OPSET
    return frozenset(written)


def gated_op(product: Product, tables: Mapping[str, Spline]) -> GatedSplineOp | None:
    """Return the node of a product whose factors are halves, None where it would need a table that there is not."""
    halves, gate = product.source, tables.get(product.site)
    if gate is None or isinstance(halves, Pair):
        return None
    other, first = None, halves.gate
    if product.function is not None:
        other = tables.get(product.other_site or "")
        if other is None and product.function.channels is None:
            other = exact_table(product.function, _ANY_TABLE)
        if other is None:
            return None
        if other.axis is not None:  # only the gate may have a table per channel: either factor can be called that
            gate, other, first = other, gate, 1 - first
    if gate.axis not in {None, halves.axis} or (other is not None and other.axis is not None):
        return None
    return GatedSplineOp(gate, other, halves.axis, halves.layout, first)
