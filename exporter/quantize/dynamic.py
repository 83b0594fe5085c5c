"""int8 with scales that are found at run time: no data is needed to calibrate.

1. The layers are every MatMul, and Gemm without factors, of a constant float32 matrix. Weights become symmetric int8 with
   one scale per output channel (see `params`). Of asymmetric uint8 is the input, by DynamicQuantizeLinear (ONNX operators,
   opset 11), once per value however many layers read it.
2. MatMulInteger, Cast and Mul are standard ops, in the order that ONNX Runtime turns into one node: DynamicQuantizeMatMul, or
   MatMulIntegerToFloat where several layers read one input, a bias that is added behind included.
3. A value keeps its name, and what the layers do not read stays as it is, but for tables that rows are gathered from, which
   have 8 bits (`lookups`).

`onnxruntime.quantization.quantize_dynamic` is not used: it holds the model with all weights in one message, infers shapes
over nodes that it does not know, and gives weights other names, so that graphs no longer share what neither quantizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.quantize.lookups import Lookups, find_lookups, table_of
from actx.exporter.quantize.params import WeightCodes
from actx.exporter.quantize.placement import add_initializer
from actx.exporter.quantize.products import nothing_to_quantize, products, remove_unused

if TYPE_CHECKING:
    from collections.abc import Collection

    from actx.exporter.quantize.products import Product


def to_dynamic_int8(model: ir.Model, *, exclude: Collection[str] = ()) -> ir.Model:
    """Return the model with its linear layers in int8. The given one is not changed.

    Args:
        model: the graph, in float32.
        exclude: names of nodes that stay as they are; a node without one has that of its output.

    Raises:
        UsageError: the model is quantized already, or has no layer to quantize.
    """
    quantized = model.clone()
    layers = products(quantized, exclude)
    if not layers:
        raise nothing_to_quantize("MatMul or Gemm")
    writer = _Writer(quantized.graph)
    for layer in layers:
        writer.write(layer)
    found = find_lookups(quantized.graph, exclude)
    read = [*(layer.weight for layer in layers), *(table_of(node) for node in found)]
    lookups = Lookups(quantized.graph, "blocks")
    for node in found:
        lookups.write(node)
    remove_unused(quantized.graph, read)
    return quantized


class _Writer:
    """Writes layers into one graph; inputs and weights that several of them read are quantized once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        self.weights: dict[tuple[ir.Value, bool], tuple[ir.Value, ir.Value]] = {}

    def write(self, layer: Product) -> None:
        """2."""
        codes, scale, zero_point = self._input(layer.input)
        weight, scales = self._weight(layer)
        name = str(layer.node.outputs[0].name)
        product = ir.node("MatMulInteger", [codes, weight, zero_point], name=f"{name}/actx/integer")
        wide = ir.node("Cast", product.outputs, {"to": int(ir.DataType.FLOAT)}, name=f"{name}/actx/float32")
        both = ir.node("Mul", [scale, scales], name=f"{name}/actx/product/scale")
        result = ir.node("Mul", [wide.outputs[0], both.outputs[0]], name=layer.name)
        types = (product, ir.DataType.INT32), (wide, ir.DataType.FLOAT), (both, ir.DataType.FLOAT)
        for node, dtype in types:
            node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(dtype)
        layer.replace([product, wide, both, result])

    def _input(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        if value not in self.inputs:
            node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{value.name}/actx/dynamic")
            words = ("codes", ir.DataType.UINT8), ("scale", ir.DataType.FLOAT), ("zero_point", ir.DataType.UINT8)
            for output, (word, dtype) in zip(node.outputs, words, strict=True):
                output.name, output.type = f"{value.name}/actx/{word}", ir.TensorType(dtype)
                output.shape = value.shape if word == "codes" else ir.Shape([])
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            codes, scale, zero_point = node.outputs
            self.inputs[value] = codes, scale, zero_point
        return self.inputs[value]

    def _weight(self, layer: Product) -> tuple[ir.Value, ir.Value]:
        key = layer.weight, layer.transposed
        if key not in self.weights:
            name = f"{layer.weight.name}/actx/{'rows' if layer.transposed else 'columns'}"
            weight = WeightCodes.of(layer.rows(), 0)
            tensors = (
                ir.tensor(np.ascontiguousarray(weight.codes.T), name=f"{name}/codes"),
                ir.tensor(weight.scales, name=f"{name}/scales"),
            )
            codes, scales = (add_initializer(self.graph, tensor) for tensor in tensors)
            self.weights[key] = codes, scales
        return self.weights[key]
