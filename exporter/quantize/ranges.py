"""Ranges of activations, observed on data: what 8-bit codes are spread over.

1. One pass gives, of what a layer reads, the smallest and largest number and the mean and mean square of every channel, which
   the graph itself computes. A second pass gives histograms, which `onnxruntime.quantization` collects, one batch at a time.
2. A calibrator makes a range of a histogram: ``minmax`` takes all of it, ``percentile`` leaves the outermost 1e-5 away,
   ``entropy`` is TensorRT's (S. Migacz, 8-bit Inference with TensorRT, GTC 2017) as ONNX Runtime has it, and ``mse`` takes
   the range with the least mean square error.
3. Where a table follows, the error that counts is that of what the table gives: gelu does not care where below -4 an input is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lower.emitter import Constants
from actx.exporter.quantize.params import QuantParams
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.save import save
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from actx.exporter.data import Data
    from actx.exporter.runtimes.base import Session
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

Function: TypeAlias = Callable[..., Any]
Progress: TypeAlias = Callable[[int, int], None]

BINS = 2048
_ENTROPY_BINS = 128
_TAIL = 1e-5
# Parts of a range that the search for the least error tries at each end.
_PARTS = np.linspace(0.3, 1.0, 29)
_OBSERVED = "observed.onnx"


@dataclass(frozen=True)
class Channels:
    """What was observed of the channels of a value, float64 (C,) each.

    Attributes:
        low, high: smallest and largest number.
        mean: of all numbers.
        power: mean of their squares.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    power: NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """How often numbers were where.

    Attributes:
        counts: int64 (N,), per bin.
        edges: float64 (N + 1,), ascending.
        low, high: smallest and largest number.
        entropy: the range that the calibrator of that name gives.
    """

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    low: float
    high: float
    entropy: Callable[[], tuple[float, float]]

    @property
    def middles(self) -> NDArray[np.float64]:
        """Of the bins that hold a number, within the range."""
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        return np.clip(middles[self.counts > 0], self.low, self.high)

    @property
    def mass(self) -> NDArray[np.int64]:
        """How many numbers are at each of `middles`."""
        return self.counts[self.counts > 0]

    def quantile(self, share: float) -> float:
        """Return the number below which a share of all numbers is."""
        shares = np.cumsum(self.counts) / self.counts.sum()
        return float(np.clip(np.interp(share, shares, self.edges[1:]), self.low, self.high))


def _minmax(histogram: Histogram, _: Function | None, __: ir.DataType) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, _: Function | None, __: ir.DataType) -> tuple[float, float]:
    return histogram.quantile(_TAIL), histogram.quantile(1 - _TAIL)


def _entropy(histogram: Histogram, _: Function | None, __: ir.DataType) -> tuple[float, float]:
    low, high = histogram.entropy()
    return max(low, histogram.low), min(high, histogram.high)


def _least_error(histogram: Histogram, function: Function | None, dtype: ir.DataType) -> tuple[float, float]:
    """2, 3: both ends in turn, until neither moves."""
    x, mass = histogram.middles, histogram.mass
    wanted = x if function is None else function(x)

    def error(low: float, high: float) -> float:
        params = params_of((low, high), dtype)
        given = params.numbers if function is None else function(params.numbers)
        found = given[params.quantize(x) - params.codes[0]]
        difference = np.where(np.isfinite(wanted) & np.isfinite(found), wanted - found, 0.0)
        return float(np.dot(mass, np.square(difference)))

    low, high = histogram.low, histogram.high
    for _ in range(2):
        high = min((histogram.high * part for part in _PARTS[::-1]), key=lambda end: error(low, end))
        low = min((histogram.low * part for part in _PARTS[::-1]), key=lambda end: error(end, high))
    return low, high


CALIBRATORS: Mapping[str, Callable[[Histogram, Function | None, ir.DataType], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _least_error,
}

# On trained networks it is the best of them as often as not, and never far from it.
DEFAULT_CALIBRATOR = "percentile"


def find_range(
    histogram: Histogram, calibrator: str, dtype: ir.DataType, function: Function | None = None
) -> tuple[float, float]:
    """Return the range that a calibrator takes.

    Args:
        histogram: of the numbers.
        calibrator: a name from `CALIBRATORS`.
        dtype: of the codes.
        function: what a table computes of the numbers, of float64 arrays; None where they are read as they are.

    Raises:
        UsageError: there is no such calibrator.
    """
    check_calibrator(calibrator)
    return CALIBRATORS[calibrator](histogram, function, dtype)


def check_calibrator(name: str | None) -> None:
    """Check a name, before any work is done; None is fine.

    Raises:
        UsageError: there is no such calibrator.
    """
    if name is not None and name not in CALIBRATORS:
        what = f"unknown calibrator {name!r}"
        raise UsageError(what, note=f"available: {', '.join(CALIBRATORS)}", remedy="Choose one of these.")


def params_of(bounds: tuple[float, float], dtype: ir.DataType) -> QuantParams:
    """Return the parameters for a range: asymmetric of UINT8, symmetric of INT8."""
    low, high = bounds
    return QuantParams.symmetric(max(-low, high)) if dtype is ir.DataType.INT8 else QuantParams.asymmetric(low, high)


def observe_channels(
    model: ir.Model,
    axes: Mapping[str, int],
    data: Data,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Channels]:
    """Return what is observed of the channels of values (1).

    Args:
        model: a graph that runs in ONNX Runtime; it is not changed.
        axes: the channel axis of every value, by its name, from 0. The rank of the values must be known.
        data: samples for it.
        options: how it is run.
        progress: called with the number of samples done and to do.

    Raises:
        UsageError: there is no data.
        ActxError: the model cannot be run on it, or a value becomes infinite or NaN.
    """
    sums: dict[str, list[NDArray[np.float64]]] = {}
    places: dict[str, float] = {}
    for found in _passes(_with_sums(model, axes), data, options, progress):
        for name in axes:
            low, high, total, power, size = (found[f"{name}/actx/{what}"].astype(np.float64) for what in _SUMS)
            if name not in sums:
                sums[name] = [low, high, total, power]
            else:
                old = sums[name]
                sums[name] = [np.minimum(old[0], low), np.maximum(old[1], high), old[2] + total, old[3] + power]
            places[name] = places.get(name, 0.0) + float(size) / low.size
    if axes and not sums:
        raise UsageError("there is no data to calibrate on", remedy="Give --data with at least one sample.")
    _require_finite({name: np.array([low.min(), high.max()]) for name, (low, high, *_) in sums.items()})
    return {
        name: Channels(low, high, total / places[name], power / places[name])
        for name, (low, high, total, power) in sums.items()
    }


def observe_histograms(
    model: ir.Model,
    names: Sequence[str],
    data: Data,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> dict[str, Histogram]:
    """Return how often numbers are where in the named values (1).

    Raises:
        UsageError, ActxError: as `observe_channels`.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: PLC0415 - imports for half a second

    collector = HistogramCollector("entropy", False, BINS, _ENTROPY_BINS, 0.0, "same")
    observed = model.clone()
    values = {str(v.name): v for v in (*observed.graph.inputs, *(v for node in observed.graph for v in node.outputs))}
    observed.graph.outputs.clear()
    observed.graph.outputs.extend(values[name] for name in names)
    for found in _passes(observed, data, options, progress):
        arrays = {name: array.astype(np.float32, copy=False) for name, array in found.items() if array.size}
        _require_finite(arrays)
        collector.collect_value(arrays)
    if names and not collector.histogram_dict:
        raise UsageError("there is no data to calibrate on", remedy="Give --data with at least one sample.")
    return {name: _histogram(collector, found) for name, found in collector.histogram_dict.items()}


def _histogram(collector: Any, found: tuple[Any, ...]) -> Histogram:
    counts, edges, low, high, _ = found

    def entropy() -> tuple[float, float]:
        least, most = collector.get_entropy_threshold(found, _ENTROPY_BINS)
        return float(least), float(most)

    return Histogram(counts.astype(np.int64), edges.astype(np.float64), float(low), float(high), entropy)


def _passes(model: ir.Model, data: Data, options: RuntimeOptions, progress: Progress | None) -> Any:
    """Run a model on all the data, and give its outputs by name."""
    with scratch() as folder:
        save({_OBSERVED: model}, folder)
        session: Session = options.open(folder / _OBSERVED)
        done = 0
        for batch in data.batches():
            yield session.run({spec.name: batch.feeds[spec.name] for spec in session.inputs})
            done += batch.samples
            if progress is not None:
                progress(done, data.samples)


def _require_finite(found: Mapping[str, NDArray[Any]]) -> None:
    lost = [name for name, array in found.items() if not np.isfinite(array).all()]
    if lost:
        raise ActxError(
            f"{lost[0]} is not finite on the calibration data",
            note=f"so are {len(lost)} of {len(found)} values that were looked at",
            remedy="Check the data with actx inspect.",
        )


_SUMS = ("low", "high", "total", "power", "size")


def _with_sums(model: ir.Model, axes: Mapping[str, int]) -> ir.Model:
    """Return the model with sums over all but the channels for its outputs."""
    observed = model.clone()
    graph = observed.graph
    known = {str(v.name): v for v in (*graph.inputs, *(v for node in graph for v in node.outputs))}
    constants = Constants(graph)
    graph.outputs.clear()
    for name, axis in axes.items():
        value = known[name]
        assert value.shape is not None
        others = [i for i in range(len(value.shape)) if i != axis]
        for what, op in zip(_SUMS, ("ReduceMin", "ReduceMax", "ReduceSum", "ReduceSumSquare", "Size"), strict=True):
            output = _reduced(graph, constants, value, op, others)
            output.name = f"{name}/actx/{what}"
            graph.outputs.append(output)
    return observed


def _reduced(graph: ir.Graph, constants: Constants, value: ir.Value, op: str, axes: list[int]) -> ir.Value:
    opset = graph.opset_imports[""]
    inputs: list[ir.Value] = [value]
    attributes: list[ir.Attr] = []
    if op != "Size":
        attributes.append(ir.AttrInt64("keepdims", 0))
        if opset >= (13 if op == "ReduceSum" else 18):
            inputs.append(constants.get(np.array(axes, np.int64), ir.DataType.INT64))
            attributes.append(ir.AttrInt64("noop_with_empty_axes", 1))
        elif axes:
            attributes.append(ir.AttrInt64s("axes", axes))
        else:
            op = "Identity"
            attributes = []
    node = ir.Node("", op, inputs, attributes)
    graph.append(node)
    output = node.outputs[0]
    output.type = ir.TensorType(ir.DataType.INT64) if op == "Size" else value.type
    return output
