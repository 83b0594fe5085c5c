"""int4 weights, one scale per block of inputs: weights take an eighth of their size, activations stay in floating point.

1. The layers are every MatMul, and Gemm without factors, of a constant float32 matrix. Each block of `block` consecutive
   weights of an output has a scale s and a zero point z, and code q stands for (q - z) * s.
2. Scales and zero points are those of the least squared error among the range of a block and what a clipped range gives.
   For ``matmul_nbits`` a layer has zero points only where they lessen its error; for ``dequantize`` it has none, because
   TensorRT is symmetric.
3. ``matmul_nbits`` is ``com.microsoft::MatMulNBits`` (ONNX Runtime's contributed operators) at accuracy level 4: ONNX Runtime
   quantizes the activations of each block to int8 as it computes. Inputs that do not fill the last block are padded there.
   ``dequantize`` is DequantizeLinear with `block_size` (ONNX operators, opset 21) in front of the layer; blocks are then of
   the largest size that divides the number of inputs.
4. A table that rows are gathered from has 8 bits: no sum averages its errors, and it costs a lookup. Where its numbers are
   those of a layer too (tied weights), ``matmul_nbits`` stores them once, so that this layer has 8 bits as well.
5. Layers that need it may have 8 bits: `ranked_layers` says which move the outputs most.

`onnxruntime.quantization.matmul_nbits_quantizer` is not used: it takes the range of each block as it is, holds the model with
all weights in one message, leaves out Gemm, stores a weight once per layer that reads it, and configures logging when it
is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx_ir as ir

from actx.exporter.errors import UsageError
from actx.exporter.lift.ops import MICROSOFT, tensor_of
from actx.exporter.quantize.blocks import Blocks, encode
from actx.exporter.quantize.lookups import SETTINGS, Lookups, find_lookups, table_blocks, table_of
from actx.exporter.quantize.placement import add_initializer
from actx.exporter.quantize.products import (
    Product,
    matrix_of,
    name_of,
    nothing_to_quantize,
    products,
    remove_unused,
    replace_node,
)
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.save import save
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays

Style: TypeAlias = Literal["matmul_nbits", "dequantize"]

BITS, WIDE_BITS = 4, 8
# MatMulNBits takes powers of two from here on.
SMALLEST_BLOCK = 16
INT8_COMPUTATION = 4
BLOCKED_OPSET = 21
_SMALLEST = float(np.finfo(np.float32).smallest_normal)


def to_int4(
    model: ir.Model, *, style: Style, block: int = 32, exclude: Collection[str] = (), wide: Collection[str] = ()
) -> ir.Model:
    """Return the model with its weights in blocks of 4 bits. The given one is not changed.

    Args:
        model: the graph, in float32.
        style: ``matmul_nbits`` for ONNX Runtime, ``dequantize`` for TensorRT and OpenVINO.
        block: weights that share a scale, a power of two of at least 16.
        exclude: names of nodes that stay as they are; a node without one has that of its output.
        wide: names of nodes whose weights have 8 bits.

    Raises:
        UsageError: the block is none, the model is quantized already, has no layer to quantize, or an opset without blocks.
        ActxError: a weight is not finite.
    """
    if block < SMALLEST_BLOCK or block & (block - 1):
        what = f"weights cannot share a scale in blocks of {block}"
        raise UsageError(what, remedy=f"Choose a power of two of at least {SMALLEST_BLOCK}.")
    opset = model.opset_imports[""]
    if style == "dequantize" and opset < BLOCKED_OPSET:
        raise UsageError(
            f"the scheme int4 needs opset {BLOCKED_OPSET}",
            note=f"the model's is {opset}, whose DequantizeLinear has no blocks",
            remedy="Export with a newer --opset.",
        )
    quantized = model.clone()
    layers = products(quantized, exclude)
    if not layers:
        raise nothing_to_quantize("MatMul or Gemm")
    tables = find_lookups(quantized.graph, exclude)
    read = [*(layer.weight for layer in layers), *(table_of(node) for node in tables)]
    writer = _NBits(quantized.graph, tables) if style == "matmul_nbits" else _Dequantized(quantized.graph)
    for layer in layers:
        writer.write(layer, block, BITS if layer.name not in wide else WIDE_BITS)
    for node in tables:
        writer.write_lookup(node)
    if style == "matmul_nbits":
        quantized.opset_imports.setdefault(MICROSOFT, 1)
    remove_unused(quantized.graph, read)
    return quantized


def weight_bytes(model: ir.Model) -> int:
    """Return the size of a model's constants, bytes."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def ranked_layers(
    model: ir.Model,
    batches: Sequence[Arrays],
    *,
    style: Style,
    block: int = 32,
    exclude: Collection[str] = (),
    options: RuntimeOptions = DEFAULT,
) -> tuple[str, ...]:
    """Return the layers in the order in which 8 bits are of use to them: a prefix is what `to_int4` takes as `wide`.

    Each layer by itself is written in 4 bits, and the squared relative L2 distance of the outputs taken, per byte that 8 bits
    cost. Layers whose size stays are left out.

    Args:
        model: as for `to_int4`.
        batches: feeds.
        style: as for `to_int4`.
        block: as for `to_int4`.
        exclude: as for `to_int4`.
        options: how the model is run.

    Returns:
        Names of nodes.

    Raises:
        UsageError: see `to_int4`.
        ActxError: the model cannot be run on the data.
    """
    names = {layer.name for layer in products(model, exclude)}
    if not names:
        raise nothing_to_quantize("MatMul or Gemm")
    before = _outputs(model, batches, options)
    gain: dict[str, float] = {}
    for name in sorted(names):
        alone = partial(to_int4, model, style=style, block=block, exclude={*exclude, *names} - {name})
        narrow = alone()
        extra = weight_bytes(alone(wide=[name])) - weight_bytes(narrow)
        if extra > 0:
            gain[name] = _distance(_outputs(narrow, batches, options), before) ** 2 / extra
    return tuple(sorted(gain, key=lambda name: -gain[name]))


@dataclass(frozen=True)
class _Stored:
    """A matrix in the graph.

    Attributes:
        inputs: of MatMulNBits behind the activation: codes, scales and zero points.
        rows, columns: of the matrix.
        block: weights that share a scale.
        bits: of a code.
    """

    inputs: list[ir.Value | None]
    rows: int
    columns: int
    block: int
    bits: int


class _NBits:
    """Writes MatMulNBits and GatherBlockQuantized."""

    def __init__(self, graph: ir.Graph, tables: Sequence[ir.Node]) -> None:
        self.graph = graph
        self.tables = list(dict.fromkeys(table_of(node) for node in tables))
        self.lookups = Lookups(graph, "blocks")
        # The inputs behind the activation of a layer, by weight and layout.
        self.weights: dict[tuple[ir.Value, bool, int], _Stored] = {}
        self.tied: dict[ir.Value, _Stored] = {}

    def write(self, layer: Product, block: int, bits: int) -> None:
        """3."""
        weight = self._weight(layer, block, bits)
        numbers = {"K": weight.columns, "N": weight.rows, "bits": weight.bits, "block_size": weight.block}
        attributes: dict[str, Any] = {**numbers, "accuracy_level": INT8_COMPUTATION}
        inner = [layer.input, *weight.inputs]
        node = ir.node("MatMulNBits", inner, attributes, domain=MICROSOFT, name=layer.name)
        layer.replace([node])

    def write_lookup(self, lookup: ir.Node) -> None:
        """4."""
        table = table_of(lookup)
        if table not in self.tied:
            self.lookups.write(lookup)
            return
        weight = self.tied[table]
        codes, scales, *_ = weight.inputs
        name = lookup.outputs[0].name
        columns = -(-weight.columns // weight.block) * weight.block
        # The same bytes as a matrix.
        shape = self._constant(np.array([weight.rows, columns]), f"{table.name}/actx/shape")
        rows = ir.node("Reshape", [codes, shape], name=f"{name}/actx/table")
        rows.outputs[0].name, rows.outputs[0].type = rows.name, ir.TensorType(ir.DataType.UINT8)
        inner = [rows.outputs[0], lookup.inputs[1], scales]
        gathered = ir.node("GatherBlockQuantized", inner, SETTINGS, domain=MICROSOFT, name=name_of(lookup))
        nodes = [rows, gathered]
        if columns > weight.columns:
            gathered.outputs[0].name = f"{name}/actx/padded"
            nodes.append(self._cut(gathered.outputs[0], weight.columns))
        replace_node(self.graph, lookup, nodes)

    def _weight(self, layer: Product, block: int, bits: int) -> _Stored:
        key = layer.weight, layer.transposed, bits
        if key not in self.weights:
            rows = layer.rows()
            name = f"{layer.weight.name}/actx/{'rows' if layer.transposed else 'columns'}"
            table = next((table for table in self.tables if _same(table, rows)), None)
            if table is None:
                self.weights[key] = self._stored(f"{name}/{bits}", _closest(rows, block, bits))
            else:
                if table not in self.tied:
                    self.tied[table] = self._stored(f"{name}/{WIDE_BITS}", table_blocks(rows))
                self.weights[key] = self.tied[table]
        return self.weights[key]

    def _stored(self, name: str, blocks: Blocks) -> _Stored:
        inputs: list[ir.Value | None] = [
            self._constant(_packed(blocks.codes, blocks.bits), f"{name}/codes"),
            self._constant(blocks.scales, f"{name}/scales"),
        ]
        if not blocks.symmetric:
            inputs.append(self._constant(_packed(blocks.zero_points, blocks.bits), f"{name}/zero_points"))
        rows, _, block = blocks.codes.shape
        return _Stored(inputs, rows, blocks.columns, block, blocks.bits)

    def _cut(self, value: ir.Value, columns: int) -> ir.Node:
        name = f"{value.name}/actx"
        bounds = [
            self._constant(np.array([n]), f"{name}/{w}") for w, n in (("start", 0), ("end", columns), ("axis", -1))
        ]
        return ir.node("Slice", [value, *bounds], name=f"{name}/cut")

    def _constant(self, array: NDArray[Any], name: str) -> ir.Value:
        return add_initializer(self.graph, ir.tensor(np.ascontiguousarray(array), name=name))


class _Dequantized:
    """Writes DequantizeLinear in front of layers and tables."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.lookups = Lookups(graph, "dequantize")
        self.weights: dict[tuple[ir.Value, bool, int], ir.Value] = {}

    def write(self, layer: Product, block: int, bits: int) -> None:
        """3."""
        layer.node.replace_input_with(1, self._weight(layer.weight, block, bits, transposed=layer.transposed))

    def write_lookup(self, lookup: ir.Node) -> None:
        """4."""
        self.lookups.write(lookup)

    def _weight(self, weight: ir.Value, block: int, bits: int, *, transposed: bool) -> ir.Value:
        key = weight, transposed, bits
        if key not in self.weights:
            matrix = matrix_of(weight)
            rows = matrix if transposed else matrix.T
            size = _divisor(rows.shape[1], block) if bits == BITS else rows.shape[1]
            blocks = encode(rows, size, bits=bits, symmetric=True)
            name = f"{weight.name}/actx/{'rows' if transposed else 'columns'}/{bits}"
            self.weights[key] = self._dequantized(weight, blocks, name, transposed=transposed)
        return self.weights[key]

    def _dequantized(self, weight: ir.Value, blocks: Blocks, name: str, *, transposed: bool) -> ir.Value:
        """Blocks of 4 bits, or one scale per output: 8 bits in blocks are what TensorRT does not have."""
        kind, dtype = (ml_dtypes.int4, ir.DataType.INT4) if blocks.bits == BITS else (np.int8, ir.DataType.INT8)
        codes = (blocks.codes.astype(np.int16) - 2 ** (blocks.bits - 1)).astype(np.int8).reshape(len(blocks.codes), -1)
        scales = blocks.scales
        if blocks.bits == BITS:
            settings = {"axis": int(transposed), "block_size": blocks.codes.shape[2]}
        else:
            settings, scales = {"axis": int(not transposed)}, scales[:, 0]
        arrays = (codes, scales) if transposed else (codes.T, scales.T)
        tensors = (
            ir.Tensor(np.ascontiguousarray(arrays[0]).astype(kind), dtype=dtype, name=f"{name}/codes"),
            ir.tensor(np.ascontiguousarray(arrays[1]), name=f"{name}/scales"),
        )
        constants = [add_initializer(self.graph, tensor) for tensor in tensors]
        node = ir.node("DequantizeLinear", constants, settings, name=f"{name}/dequantized")
        value = node.outputs[0]
        value.name, value.type, value.shape = node.name, weight.type, weight.shape
        self.graph.insert_before(self.graph[0], node)
        return value


def _closest(rows: NDArray[np.float32], block: int, bits: int) -> Blocks:
    """Return blocks with zero points where they lessen the error (2)."""
    plain = encode(rows, block, bits=bits, symmetric=True)
    if bits != BITS:
        return plain
    shifted = encode(rows, block, bits=bits)
    return min(plain, shifted, key=lambda blocks: blocks.error)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes of 4 bits along the last axis, the first of a pair in the lower half of a byte."""
    if bits == WIDE_BITS:
        return codes
    even = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
    packed = even[..., 0::2] | (even[..., 1::2] << BITS)
    return packed.astype(np.uint8)


def _divisor(columns: int, block: int) -> int:
    """Return the largest size of a block that divides the columns, or all of them where that is a small one (3)."""
    largest = max(size for size in range(1, min(block, columns) + 1) if columns % size == 0)
    return largest if largest >= min(SMALLEST_BLOCK, columns) else columns


def _same(table: ir.Value, rows: NDArray[np.float32]) -> bool:
    tensor = tensor_of(table)
    assert tensor is not None
    return tuple(tensor.shape.numpy()) == rows.shape and np.array_equal(matrix_of(table), rows)


def _outputs(model: ir.Model, batches: Sequence[Arrays], options: RuntimeOptions) -> list[NDArray[Any]]:
    with scratch() as folder:
        save({"model.onnx": model}, folder)
        session = options.open(folder / "model.onnx")
        runs = (session.run(feeds) for feeds in batches)
        return list(chain.from_iterable(run.values() for run in runs))


def _distance(after: Sequence[NDArray[Any]], before: Sequence[NDArray[Any]]) -> float:
    """Return the relative L2 distance over all outputs."""
    moved = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(after, before, strict=True))
    return float(np.sqrt(moved / max(sum(float((b.astype(np.float64) ** 2).sum()) for b in before), _SMALLEST)))
