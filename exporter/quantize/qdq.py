"""Put QuantizeLinear and DequantizeLinear (Q/DQ) before the linear layers: static, symmetric int8 or float8.

1. The layers are every MatMul, Gemm and Conv of a constant weight. A product of two activations stays in floating point.
2. The layer's input gets one scale, largest magnitude / largest code over the calibration data, and its weight one per
   output channel; zero points are 0. The largest code of int8 is 127, and of float8 (E4M3FN, of the OCP 8-bit floating point
   specification) 448. What else reads the input, such as a residual sum, reads it as it was, and a bias stays in floating
   point.
3. Q/DQ stand in front of layers alone: none is inside a site, and a value keeps its name. Weights stay in floating point in
   front of their Q/DQ, so graphs that share a weights file still share them; compilers fold them to codes.

`onnxruntime.quantization` is not used: it lets every reader of a layer's input read the quantized one, the residual sums
too, which costs a sixth of the accuracy on a sentence encoder; its graph is not sorted, and it holds all weights in one
message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift.ops import op_of, standard, tensor_of
from actx.exporter.quantize.params import LEVELS
from actx.exporter.quantize.placement import add_initializer, insert_behind
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.save import save
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from actx.exporter.data import Arrays

LAYERS = standard("MatMul", "Gemm", "Conv")
Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# The first opset whose Q/DQ take float16, and give float8.
HALF_OPSET = 19
FLOATS = {ir.DataType.FLOAT: 13, ir.DataType.FLOAT16: HALF_OPSET}
_CALIBRATION = "calibration.onnx"


@dataclass(frozen=True)
class Code:
    """What a number becomes between Q and DQ.

    Attributes:
        dtype: INT8 or FLOAT8E4M3FN.
        largest: the code of the largest magnitude.
        opset: the first one whose Q/DQ have it.
    """

    dtype: ir.DataType
    largest: float
    opset: int


INT8 = Code(ir.DataType.INT8, LEVELS, 13)
FP8 = Code(ir.DataType.FLOAT8E4M3FN, 448, 19)


def to_int8(model: ir.Model, batches: Iterable[Arrays], options: RuntimeOptions = DEFAULT) -> ir.Model:
    """Return the model with int8 Q/DQ before its linear layers, see `to_codes`."""
    return to_codes(model, INT8, batches, options)


def to_fp8(model: ir.Model, batches: Iterable[Arrays], options: RuntimeOptions = DEFAULT) -> ir.Model:
    """Return the model with float8 Q/DQ before its linear layers, see `to_codes`.

    ONNX Runtime computes what stands between the pairs in floating point: it measures the drift, and gains no time.
    """
    return to_codes(model, FP8, batches, options)


def to_codes(model: ir.Model, code: Code, batches: Iterable[Arrays], options: RuntimeOptions = DEFAULT) -> ir.Model:
    """Return the model with Q/DQ before its linear layers. The given one is not changed.

    Args:
        model: the graph, in floating point.
        code: what the layers read.
        batches: feeds to calibrate on, of one shape or several.
        options: how the model is run.

    Raises:
        UsageError: the model is quantized already, has no layer to quantize, is of an opset whose Q/DQ have not its type or
            the code's, or the data is empty.
        ActxError: the model cannot be run on the data, or a layer's input becomes infinite.
    """
    quantized = model.clone()
    graph = quantized.graph
    layers = _layers(quantized, code)
    inputs = list(dict.fromkeys(layer.inputs[0] for layer in layers))
    largest = _observe(quantized, [str(value.name) for value in inputs if value is not None], batches, options)
    pairs: dict[tuple[ir.Value, int | None], ir.Value] = {}
    for layer in layers:
        for i, axis in ((0, None), (1, _channel_axis(layer))):
            value = layer.inputs[i]
            assert value is not None
            if (value, axis) not in pairs:
                peak = np.array(largest[str(value.name)], np.float32) if axis is None else _peaks(value, axis)
                pairs[value, axis] = _insert_pair(graph, value, code, peak, axis)
            layer.replace_input_with(i, pairs[value, axis])
    return quantized


def _layers(model: ir.Model, code: Code) -> list[ir.Node]:
    """1."""
    if any(node.op_type in Q_DQ for node in model.graph):
        raise UsageError(
            "the model is quantized already",
            note="it has QuantizeLinear or DequantizeLinear nodes",
            remedy="Leave the scheme out, or give the model in floating point.",
        )
    layers = [node for node in model.graph if op_of(node) in LAYERS and tensor_of(node.inputs[1]) is not None]
    if not layers:
        raise UsageError(
            "there is nothing to quantize",
            note=f"the model has no {', '.join(sorted(op for _, op in LAYERS))} of a constant weight",
            remedy="Choose the scheme fp16, or none.",
        )
    opset = model.graph.opset_imports[""]
    for dtype in {value.dtype for layer in layers for value in layer.inputs[:2] if value is not None and value.dtype}:
        if opset < max(FLOATS.get(dtype, opset + 1), code.opset):
            since = {**FLOATS, code.dtype: code.opset}
            raise UsageError(
                f"a model of {dtype} and opset {opset} cannot be quantized",
                note=f"Q/DQ have {', '.join(f'{name} from opset {first}' for name, first in since.items())}",
                remedy="Export it in float32, or at that opset.",
            )
    return layers


def _channel_axis(layer: ir.Node) -> int:
    """Return the axis of the weight that runs over the layer's outputs."""
    if op_of(layer) == ("", "MatMul"):
        return len(_weight(layer).shape) - 1
    return 1 if op_of(layer) == ("", "Gemm") and not layer.attributes.get_int("transB", 0) else 0


def _weight(layer: ir.Node) -> ir.TensorProtocol:
    tensor = tensor_of(layer.inputs[1])
    assert tensor is not None
    return tensor


def _peaks(weight: ir.Value, axis: int) -> NDArray[np.float32]:
    """Return the largest magnitude per channel, without a second copy of the weight."""
    tensor = tensor_of(weight)
    assert tensor is not None
    array = tensor.numpy()
    others = tuple(i for i in range(array.ndim) if i != axis)
    peaks: NDArray[np.float32] = np.maximum(array.max(axis=others), -array.min(axis=others)).astype(np.float32)
    return peaks


def _insert_pair(graph: ir.Graph, value: ir.Value, code: Code, peak: NDArray[np.float32], axis: int | None) -> ir.Value:
    """Insert Q and DQ behind a value and return what DQ gives. What is all zero may have any scale."""
    assert value.dtype is not None
    scale = np.where(peak > 0, peak / code.largest, 1).astype(value.dtype.numpy())
    smallest = np.finfo(scale.dtype).smallest_normal
    name = f"{value.name}/actx" if axis is None else f"{value.name}/actx/axis_{axis}"
    numbers = {"scale": np.maximum(scale, smallest), "zero_point": np.zeros(scale.shape, code.dtype.numpy())}
    constants = [add_initializer(graph, ir.tensor(array, name=f"{name}/{word}")) for word, array in numbers.items()]
    along = {} if axis is None else {"axis": axis}
    dtype = value.dtype
    quantized = insert_behind(graph, value, "QuantizeLinear", f"{name}/quantized", code.dtype, constants, **along)
    return insert_behind(graph, quantized, "DequantizeLinear", f"{name}/dequantized", dtype, constants, **along)


def _observe(
    model: ir.Model, names: Sequence[str], batches: Iterable[Arrays], options: RuntimeOptions
) -> Mapping[str, float]:
    """Return the largest magnitude of values over the data. Only that number leaves the session."""
    with scratch() as folder:
        save({_CALIBRATION: _with_peaks(model, names)}, folder)
        session = options.open(folder / _CALIBRATION)
        found: dict[str, float] = {}
        for feeds in batches:
            peaks = session.run(feeds)
            found = {name: max(found.get(name, 0.0), float(peaks[_peak_name(name)])) for name in names}
    if not found:
        raise UsageError("there is no data to calibrate on", remedy="Give --data with at least one sample.")
    lost = [name for name, peak in found.items() if not np.isfinite(peak)]
    if lost:
        raise ActxError(
            f"{lost[0]} is not finite on the calibration data",
            note=f"so are {len(lost)} of {len(names)} inputs of layers",
            remedy="Check the data with actx inspect.",
        )
    return found


def _peak_name(name: str) -> str:
    return f"{name}/actx/peak"


def _with_peaks(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return the model with the largest magnitudes of values for its outputs."""
    observed = model.clone()
    graph = observed.graph
    known = {str(v.name): v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    graph.outputs.clear()
    for name in names:
        value = known[name]
        wide = insert_behind(graph, value, "Cast", f"{name}/actx/wide", ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
        size = insert_behind(graph, wide, "Abs", f"{name}/actx/magnitude", ir.DataType.FLOAT)
        peak = insert_behind(graph, size, "ReduceMax", _peak_name(name), ir.DataType.FLOAT, keepdims=0)
        peak.shape = ir.Shape([])
        graph.outputs.append(peak)
    return observed
