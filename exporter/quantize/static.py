"""Static int8 for runtimes on a CPU: what multiplies computes on 8-bit codes, and sites between layers become tables.

1. Layers are every MatMul, Gemm and Conv of a constant weight, and products every MatMul of two activations. Activations
   become asymmetric uint8 codes, weights symmetric int8 ones with a scale per output.
   QuantizeLinear and DequantizeLinear (Q/DQ) stand in front of what multiplies alone: what else reads a value, such as a
   residual sum, reads it as it was.
2. Where the runtime has kernels for it, a layer in front of a table is a Gemm over rows with an int32 bias, so that the bias is
   added before anything is rounded, and any other MatMul or Gemm is a `com.microsoft::MatMulIntegerToFloat`, which scales the
   integer sums and adds the bias in floating point, in one pass. Where our own kernels are faster, a layer is one
   `actx::QLinear` or `actx::QLinearToFloat`, with the table behind it in the same node.
3. A site whose input only a layer gives, and whose output only layers read, becomes one `actx::Lut` between codes, a gated one
   with its product `actx::GatedLut`, where the target has the kernels. Its function is read at all 256 codes: the scale of
   what it gives is folded in, and no number is rounded that is not a code. Such an input is calibrated on what the table gives,
   and no code stands for what the table cannot give, such as a silu below -0.278.
4. Magnitude is moved from channels of a layer's input into its weight where that takes noise away (`migration`), and the mean
   error of the rounded weights goes into the bias, where that is asked for. Channels are divided by a Mul or, at no cost, in
   the weight of the layer that they come from (`origin`).
5. Values keep their names, but those of sites that became tables.
6. Where the runtime multiplies codes of activations without zero points alone, both factors of a product are symmetric, and
   their Q/DQ stand in front of the Transposes and Reshapes behind a layer, which then gives codes. What a softmax gives stays
   as it is: on OpenVINO its codes save no time, and on a sentence encoder they were a tenth of the drift. Of our own layers
   those give codes themselves from which a factor is only moved.
7. Sums are exact on every CPU: see `params` for weights. Both factors of a product are uint8, which no kernel saturates.
8. Tables that rows are gathered from have 8 bits (`lookups`).
9. What is left of an attention between our own layers becomes one op (`attention`); for that a layer that gives queries, keys
   and values together is taken apart (`packed`).
10. A constant factor behind a product, such as that of attention, goes into the scale of its first factor.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.custom_ops.ops import DOMAIN, OPSET
from actx.custom_ops.ops.qlinear import QLinearOp, QLinearToFloatOp, pack
from actx.exporter.errors import UsageError
from actx.exporter.lift.ops import MICROSOFT, MUL, op_of, tensor_of
from actx.exporter.linear import ADD, CONV, GEMM, MATMUL
from actx.exporter.lower.emitter import Constants, Emitter, substitute
from actx.exporter.quantize.attention import SOFTMAX, add_masks, fuse_attention
from actx.exporter.quantize.lookups import Lookups, find_lookups
from actx.exporter.quantize.migration import migration
from actx.exporter.quantize.origin import MOVES, origin
from actx.exporter.quantize.packed import unpack
from actx.exporter.quantize.params import QuantParams, WeightCodes
from actx.exporter.quantize.products import name_of
from actx.exporter.quantize.ranges import (
    DEFAULT_CALIBRATOR,
    find_range,
    observe_channels,
    observe_histograms,
    params_of,
)
from actx.exporter.quantize.source import Quantized, TableSite
from actx.exporter.quantize.tables import gated_table, output_range, site_table
from actx.exporter.runtimes.onnxruntime import DEFAULT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from actx.custom_ops.ops import Op
    from actx.exporter.data import Data
    from actx.exporter.quantize.ranges import Channels, Histogram
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

Progress: TypeAlias = Callable[[int, int], None]

Q_DQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
EXCLUDED = "it is excluded"
_LARGEST_BIAS = 2**30  # of int32 codes; what is left holds the products
_FIRST_OPSET = 13
CODES, WEIGHTS, SUMS = ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.INT32


@dataclass(frozen=True)
class Style:
    """What a runtime has kernels for.

    Attributes:
        rows: the ops of codes of (2), and a Conv whose output is quantized.
        tables: the actx ops of codes (3).
        symmetric_products: products of two activations without zero points alone (6).
        own_layers: the actx ops of layers (2), with `rows` and `tables`.
    """

    rows: bool
    tables: bool
    symmetric_products: bool = False
    own_layers: bool = False


@dataclass(frozen=True)
class Settings:
    """How it is done.

    Attributes:
        style: what the runtime has kernels for.
        calibrator: a name from `CALIBRATORS`.
        migrate: whether magnitude is moved (4).
        correct: whether the bias takes the mean error of the weights (4), where layers are rows.
        exclude: regular expressions of names of nodes that stay in floating point; one must match the whole name.
    """

    style: Style
    calibrator: str = DEFAULT_CALIBRATOR
    migrate: bool = False
    correct: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """A model that was looked at on data, ready to be written with any calibrator.

    Attributes:
        model: the target's graph, with magnitudes moved; not to be changed.
        reasons: of every node that multiplies or looks rows up, why it stays in floating point; empty where it need not.
        sites: those that may become tables.
        histograms: of the values that become codes, by name.
        means: of the channels of what layers read, float64 (C,), by name; none where biases are not to be corrected.
        migrated: names of the values whose magnitude was moved.
        style: what the runtime has kernels for.
    """

    model: ir.Model
    reasons: Mapping[str, str]
    sites: tuple[TableSite, ...]
    histograms: Mapping[str, Histogram]
    means: Mapping[str, NDArray[np.float64]]
    migrated: tuple[str, ...]
    style: Style


def observe(
    model: ir.Model,
    sites: Sequence[TableSite],
    data: Data,
    settings: Settings,
    *,
    observed: ir.Model | None = None,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Observed:
    """Look at a model on data. It is not changed.

    Args:
        model: the target's graph, in float32, with types and shapes.
        sites: those that may become tables.
        data: samples to calibrate on.
        settings: how it is done; the calibrator does not count yet.
        observed: the same graph for ONNX Runtime without custom ops, with the same names; None where it is `model`.
        options: how that is run.
        progress: called with the number of samples done and to do.

    Raises:
        UsageError: the model is quantized already, has nothing to quantize, is of an opset before 13, or there is no data; an
            expression is none or matches nothing.
        ActxError: the model cannot be run on the data, or a value becomes infinite.
    """
    own = model.clone()
    seen = own if observed is None else observed.clone()
    if settings.style.own_layers:
        names = [step.name for step in _find(own)]
        whole = {name for pattern in settings.exclude for name in _matching(pattern, names)}
        for graph in dict.fromkeys((own, seen)):
            unpack(graph, whole)
            add_masks(graph)
    steps = _find(own)
    reasons = {step.name: step.reason or _cost(step, settings.style) for step in steps}
    reasons |= {name_of(node): "" for node in find_lookups(own.graph)}
    reasons |= excluded(list(reasons), settings.exclude)
    steps = [step for step in steps if not reasons[step.name]]
    if not steps:
        raise _nothing(reasons)
    axes = {str(step.x.name): step.channel_axis for step in steps if step.weight is not None and not step.is_conv}
    channels = observe_channels(seen, axes, data, options) if settings.migrate or settings.correct else {}
    factors = _factors(steps, channels, settings.style, sites) if settings.migrate else {}
    for graph in dict.fromkeys((own, seen)):
        _migrate(graph, {step.name for step in steps}, factors)
    means = {_migrated_name(n) if n in factors else n: c.mean / factors.get(n, 1.0) for n, c in channels.items()}
    steps = _chosen(own, reasons)
    tables = _tables(own.graph, steps, sites) if settings.style.tables else []
    histograms = observe_histograms(seen, _looked_at(steps, tables, settings.style), data, options, progress)
    return Observed(own, reasons, tuple(sites), histograms, means, tuple(factors), settings.style)


def write(observed: Observed, settings: Settings, leave: Collection[str] = ()) -> Quantized:
    """Return what was observed as a graph with int8 layers.

    Args:
        observed: see `observe`.
        settings: the calibrator, and whether the mean error goes into the bias.
        leave: names of further nodes that stay in floating point.

    Raises:
        UsageError: the calibrator is unknown.
        ActxError: a site has no value at a code that its input can take.
    """
    model = observed.model.clone()
    reasons = {name: reason or (EXCLUDED if name in leave else "") for name, reason in observed.reasons.items()}
    steps, style = _chosen(model, reasons), observed.style
    tables = _tables(model.graph, steps, observed.sites) if style.tables else []
    params = _params(steps, tables, observed, settings.calibrator)
    means = observed.means if settings.correct and style.rows else {}
    writer = _Writer(model, style, params, means)
    left = _open(steps, tables, observed.sites, style)
    writer.write(steps, tables, find_lookups(model.graph, {name for name, reason in reasons.items() if reason}))
    if style.own_layers:
        fuse_attention(model, writer.constants)
    return Quantized(model, reasons, writer.behind, left, observed.migrated, settings.calibrator, bool(writer.means))


def _chosen(model: ir.Model, reasons: Mapping[str, str]) -> list[_Step]:
    return [step for step in _find(model) if not reasons[step.name]]


@dataclass(frozen=True)
class _Step:
    """A node that multiplies.

    Attributes:
        node: the MatMul, Gemm or Conv.
        weight: its constant as stored; None of a product of two activations.
        bias: a number for each output; None without one.
        output: what it gives, bias included.
        reason: why it stays in floating point; empty where it need not.
    """

    node: ir.Node
    weight: ir.TensorProtocol | None
    bias: ir.TensorProtocol | None
    output: ir.Value
    reason: str = ""

    @property
    def name(self) -> str:
        return self.node.name or str(self.node.outputs[0].name)

    @property
    def x(self) -> ir.Value:
        (x, *_) = self.node.inputs
        assert x is not None
        return x

    @property
    def other(self) -> ir.Value:
        other = self.node.inputs[1]
        assert other is not None
        return other

    @property
    def is_conv(self) -> bool:
        return op_of(self.node) == CONV

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that runs over the outputs."""
        transposed = bool(self.node.attributes.get_int("transB", default=0))
        return 0 if self.is_conv or transposed else 1

    @property
    def channel_axis(self) -> int:
        """The axis of the input that the sums run over."""
        assert self.x.shape is not None
        return 1 if self.is_conv else len(self.x.shape) - 1

    def matrix(self) -> NDArray[np.float64]:
        """Return the weight of a MatMul or Gemm as [inputs, outputs]."""
        assert self.weight is not None
        weight = self.weight.numpy().astype(np.float64)
        return weight.T if self.weight_axis == 0 else weight


def _find(model: ir.Model) -> list[_Step]:
    """1. Return what multiplies, in the order of the graph."""
    if any(node.op_type in Q_DQ for node in model.graph):
        raise UsageError(
            "the model is quantized already",
            note="it has QuantizeLinear or DequantizeLinear nodes",
            remedy="Leave the scheme out, or give the model in floating point.",
        )
    if model.graph.opset_imports[""] < _FIRST_OPSET:
        what = f"a model of opset {model.graph.opset_imports['']} cannot be quantized"
        raise UsageError(what, note="Q/DQ of channels came with 13", remedy="Export with --opset 17 or newer.")
    return [_step(node) for node in model.graph if op_of(node) in {MATMUL, GEMM, CONV}]


def _step(node: ir.Node) -> _Step:
    weight = tensor_of(node.inputs[1])
    output, bias = node.outputs[0], None
    if op_of(node) != MATMUL and len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = tensor_of(node.inputs[2])
        if bias is None:
            return _Step(node, weight, None, output, "its bias is no constant")
    elif op_of(node) == MATMUL and weight is not None:
        output, bias = _with_bias(node, weight)
    return _Step(node, weight, bias, output, _obstacle(node, weight, bias))


def _with_bias(node: ir.Node, weight: ir.TensorProtocol) -> tuple[ir.Value, ir.TensorProtocol | None]:
    """Return what a MatMul gives, with the bias that an Add behind it adds."""
    output = node.outputs[0]
    readers = output.consumers()
    if len(readers) == 1 and op_of(readers[0]) == ADD and not output.is_graph_output():
        (other,) = [v for v in readers[0].inputs if v is not output] or [None]
        bias = tensor_of(other)
        if bias is not None and len(weight.shape) == 2 and bias.shape.numpy() == (weight.shape.numpy()[1],):
            return readers[0].outputs[0], bias
    return output, None


def _obstacle(node: ir.Node, weight: ir.TensorProtocol | None, bias: ir.TensorProtocol | None) -> str:
    """Return why a node cannot compute in int8; empty where it can."""
    op, settings = op_of(node), node.attributes
    scales = op == GEMM and any(settings.get_float(name, 1.0) != 1 for name in ("alpha", "beta"))
    factors = [value for value in node.inputs[:2] if value is not None]
    faults = {
        "it is not of float32": any(value.dtype is not ir.DataType.FLOAT for value in factors),
        "the rank of its input is not known": any(value.shape is None for value in factors),
        "its input is constant": tensor_of(node.inputs[0]) is not None,
        "its weight is no constant": weight is None and op != MATMUL,
        "its weight is no matrix": weight is not None and op == MATMUL and len(weight.shape) != 2,
        "it scales or transposes its input": scales or bool(settings.get_int("transA", default=0)),
        "its bias is no row": op == GEMM and bias is not None and bias.shape.numpy() != (_outputs(node, weight),),
    }
    return next((reason for reason, found in faults.items() if found), "")


def _cost(step: _Step, style: Style) -> str:
    """6. Return why a product is worth no codes; empty where it is."""
    producer = step.x.producer() if style.symmetric_products and step.weight is None else None
    return "it multiplies what a softmax gives" if producer is not None and op_of(producer) == SOFTMAX else ""


def _outputs(node: ir.Node, weight: ir.TensorProtocol | None) -> int:
    if weight is None:
        return 0
    return int(weight.shape.numpy()[0 if node.attributes.get_int("transB", default=0) else 1])


def excluded(names: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """Return the names that a regular expression matches as a whole, with the reason why they stay.

    Raises:
        UsageError: an expression is none, or matches nothing.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matching = _matching(pattern, names)
        if not matching:
            near = difflib.get_close_matches(pattern, names, 5, 0.0)
            note = f"there are {', '.join(near)}{' ...' if len(names) > len(near) else ''}"
            remedy = "Take a name of a node from the graph; the expression must match the whole of it."
            raise UsageError(f"no layer is named {pattern!r}", note=note, remedy=remedy)
        found |= dict.fromkeys(matching, EXCLUDED)
    return found


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    try:
        return [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        what = f"{pattern!r} is no regular expression"
        raise UsageError(what, note=str(error), remedy="Mask special characters with a backslash.") from error


def _nothing(reasons: Mapping[str, str]) -> UsageError:
    why = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
    return UsageError(
        "there is nothing to quantize",
        note=why or "the model has no MatMul, Gemm or Conv",
        remedy="Leave --quant out.",
    )


def _factors(
    steps: Sequence[_Step], channels: Mapping[str, Channels], style: Style, sites: Sequence[TableSite]
) -> dict[str, NDArray[np.float64]]:
    """4. Return the factors by the name of the value; what a table gives is left as it is."""
    from_tables = {site.output for site in sites} if style.tables else set()
    readers: dict[str, list[_Step]] = {}
    for step in steps:
        if step.weight is not None and not step.is_conv:
            readers.setdefault(str(step.x.name), []).append(step)
    found = {
        name: migration(channels[name], [step.matrix() for step in reading], symmetric=False)
        for name, reading in readers.items()
        if name not in from_tables
    }
    return {name: moved.factors for name, moved in found.items() if moved is not None}


def _migrate(model: ir.Model, names: Collection[str], factors: Mapping[str, NDArray[np.float64]]) -> None:
    """4, in place: exact but for rounding."""
    constants = Constants(model.graph)
    readers: dict[ir.Value, list[_Step]] = {}
    for step in _find(model):
        if step.name in names and str(step.x.name) in factors and step.weight is not None:
            readers.setdefault(step.x, []).append(step)
    for x, steps in readers.items():
        s = factors[str(x.name)]
        divided = _divided(model.graph, x, s, steps, constants)
        divided.name = _migrated_name(str(x.name))
        for step in steps:
            step.node.replace_input_with(0, divided)
            _store(step, _step(step.node).matrix() * s[:, None], constants)


def _divided(
    graph: ir.Graph, x: ir.Value, s: NDArray[np.float64], steps: Sequence[_Step], constants: Constants
) -> ir.Value:
    """Return x / s: x itself where nobody else reads it and the layer that it comes from can give it so."""
    found = None if x.is_graph_output() or set(x.consumers()) != {step.node for step in steps} else origin(x)
    layer = None if found is None else _layer_of(found[0])
    if found is None or layer is None:
        emit = Emitter(graph, constants, steps[0].node, str(x.name), ir.DataType.FLOAT, marked=False)
        return emit.op("Mul", x, constants.get((1 / s).astype(np.float32), ir.DataType.FLOAT))
    inverse = np.empty_like(s)
    inverse[found[1]] = 1 / s
    _store(layer, layer.matrix() * inverse, constants)
    if layer.bias is not None:
        adding = layer.output.producer()
        assert adding is not None
        (place,) = [i for i, value in enumerate(adding.inputs) if tensor_of(value) is layer.bias]
        bias = (layer.bias.numpy() * inverse).astype(np.float32)
        adding.replace_input_with(place, constants.get(bias, ir.DataType.FLOAT))
    return x


def _layer_of(value: ir.Value) -> _Step | None:
    """Return the MatMul or Gemm of a constant weight that gives a value, with its bias; None where something else does."""
    node = value.producer()
    if node is not None and op_of(node) == ADD:
        node = next((found for v in node.inputs if v is not None and (found := v.producer()) is not None), None)
    if node is None or op_of(node) not in {MATMUL, GEMM}:
        return None
    step = _step(node)
    return step if step.output is value and step.weight is not None and not step.reason else None


def _store(step: _Step, matrix: NDArray[np.float64], constants: Constants) -> None:
    """Give a MatMul or Gemm another weight, [inputs, outputs]."""
    stored = (matrix.T if step.weight_axis == 0 else matrix).astype(np.float32, order="C")
    step.node.replace_input_with(1, constants.get(stored, ir.DataType.FLOAT))


def _migrated_name(name: str) -> str:
    """Return the name of a value whose magnitude was moved."""
    return f"{name}/actx/migrated"


def _tables(graph: ir.Graph, steps: Sequence[_Step], sites: Sequence[TableSite]) -> list[TableSite]:
    """3."""
    values = {str(value.name): value for node in graph for value in node.outputs}
    given = {str(step.output.name): step for step in steps if step.weight is not None}
    reads: dict[ir.Value, set[ir.Node]] = {}
    for step in steps:
        if step.weight is not None:
            reads.setdefault(step.x, set()).add(step.node)

    def fits(site: TableSite) -> bool:
        if any(name not in values for name in (site.input, site.output)):
            return False
        output = values[site.output]
        if site.axis is not None and site.multiplier is not None:
            return False  # no gate has a table per channel
        inner = _inside(values[site.output], {site.input, site.multiplier})
        ends = [name for name in (site.input, site.multiplier) if name is not None]
        return (
            all(name in given and set(values[name].consumers()) <= inner for name in ends)
            and all(not values[name].is_graph_output() for name in ends)
            and not output.is_graph_output()
            and bool(output.consumers())
            and set(output.consumers()) <= reads.get(output, set())
            and len({given[name].is_conv for name in ends} | {_by_conv(output)}) == 1
        )

    return [site for site in sites if fits(site)]


def _open(
    steps: Sequence[_Step], tables: Sequence[TableSite], sites: Sequence[TableSite], style: Style
) -> dict[str, str]:
    """Return the sites that a layer in int8 reads and that are no tables, and why not."""
    read = {str(step.x.name) for step in steps if step.weight is not None}
    given = {str(step.output.name) for step in steps if step.weight is not None}
    found = {}
    for site in sites:
        if site in tables or site.output not in read:
            continue
        ends = [name for name in (site.input, site.multiplier) if name is not None]
        if not style.tables:
            found[site.name] = "the target has no tables of codes"
        elif all(name in given for name in ends):
            found[site.name] = "something else reads what goes in or comes out"
        else:
            found[site.name] = "what it reads does not come straight from a layer in int8"
    return found


def _by_conv(output: ir.Value) -> bool:
    return any(op_of(node) == CONV for node in output.consumers())


def _inside(output: ir.Value, ends: Collection[str | None]) -> set[ir.Node]:
    """Return the nodes between some values and what they lead to."""
    found: set[ir.Node] = set()
    queue = [output]
    while queue:
        node = queue.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            queue += [value for value in node.inputs if value is not None and value.name not in ends]
    return found


def _looked_at(steps: Sequence[_Step], tables: Sequence[TableSite], style: Style) -> list[str]:
    """Return the names of the values that become codes."""
    names = [str(step.x.name) for step in steps]
    names += [str(step.other.name) for step in steps if step.weight is None]
    names += [name for table in tables for name in (table.input, table.multiplier) if name is not None]
    names += [str(step.output.name) for step in steps if step.is_conv and style.rows]
    return list(dict.fromkeys(names))


def _params(
    steps: Sequence[_Step], tables: Sequence[TableSite], observed: Observed, calibrator: str
) -> dict[tuple[str, ir.DataType], QuantParams]:
    """Return the parameters by name and type of codes."""
    # A histogram mixes channels, so that a function per channel cannot be asked about it.
    functions = {table.input: table.function for table in tables if table.axis is None}
    wanted = {(str(step.x.name), _codes_of(step, observed.style)) for step in steps}
    wanted |= {(name, CODES) for table in tables for name in (table.input, table.multiplier) if name is not None}
    wanted |= {(str(step.output.name), CODES) for step in steps if step.is_conv and observed.style.rows}
    wanted |= {(str(step.other.name), _codes_of(step, observed.style)) for step in steps if step.weight is None}
    ranges = {
        (name, dtype): find_range(observed.histograms[name], calibrator, dtype, functions.get(name))
        for name, dtype in wanted
    }
    for table in tables:
        if table.multiplier is None and (table.output, CODES) in ranges:
            (low, high), x = ranges[table.output, CODES], params_of(ranges[table.input, CODES], CODES)
            least, greatest = output_range(table.function, x)
            ranges[table.output, CODES] = max(low, least), min(high, greatest)
    return {key: params_of(bounds, key[1]) for key, bounds in ranges.items()}


def _codes_of(step: _Step, style: Style) -> ir.DataType:
    """1, 6. Return the type of the codes of activations that a node multiplies."""
    return WEIGHTS if style.symmetric_products and step.weight is None else CODES


@dataclass
class _Writer:
    """Writes the nodes into a graph."""

    model: ir.Model
    style: Style
    params: Mapping[tuple[str, ir.DataType], QuantParams]
    means: Mapping[str, NDArray[np.float64]]
    codes: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    floats: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    # What has the dimensions of a value before the last one, where the value itself may go.
    leads: dict[str, ir.Value] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.model.graph
        self.constants = Constants(self.graph)

    def write(self, steps: Sequence[_Step], tables: Sequence[TableSite], lookups: Sequence[ir.Node]) -> None:
        """Write all of it, in the order of the graph."""
        tables_of_rows = Lookups(self.graph, "blocks" if self.style.rows else "dequantize")
        for lookup in lookups:
            tables_of_rows.write(lookup)
        waiting = list(tables)
        ends = {name for table in tables for name in (table.input, table.multiplier)}
        for step in steps:
            for table in [table for table in waiting if table.output == step.x.name]:
                waiting.remove(table)
                self._table(table, step)
            if step.weight is None:
                self._product(step)
            elif step.is_conv and self.style.rows:
                self._conv(step, str(step.output.name) in ends)
            elif self.style.own_layers and not step.is_conv:
                self._own(step, str(step.output.name) in ends)
            elif self.style.rows and str(step.output.name) in ends:
                self._rows(step)
            elif self.style.rows:
                self._to_float(step)
            else:
                self._in_place(step)
        if tables:
            self.graph.opset_imports[DOMAIN] = OPSET
        RemoveUnusedNodesPass()(self.model)

    def _emitter(self, step: _Step) -> Emitter:
        return Emitter(self.graph, self.constants, step.node, f"{step.name}/actx/int8", ir.DataType.FLOAT, marked=False)

    def _pair(self, params: QuantParams) -> list[ir.Value]:
        scale, zero_point = params.constants()
        return [self.constants.get(scale, ir.DataType.FLOAT), self.constants.get(zero_point, params.dtype)]

    def _quantized(self, emit: Emitter, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the codes of a value, in its shape."""
        key = value, dtype
        if key not in self.codes:
            params = self.params[str(value.name), dtype]
            self.codes[key] = emit.op("QuantizeLinear", value, *self._pair(params), dtype=dtype)
        return self.codes[key]

    def _dequantized(self, emit: Emitter, value: ir.Value, dtype: ir.DataType, width: int | None = None) -> ir.Value:
        """Return a value that was rounded to its codes; with a width as rows of it."""
        key = value, dtype
        if key not in self.floats:
            codes = self._quantized(emit, value, dtype)
            if width is not None:
                codes = _as_rows(emit, codes, width)
            pair = self._pair(self.params[str(value.name), dtype])
            self.floats[key] = emit.op("DequantizeLinear", codes, *pair, dtype=ir.DataType.FLOAT)
        return self.floats[key]

    def _product(self, step: _Step) -> None:
        if self.style.symmetric_products:
            self._at_origin(step, 0)
            self._at_origin(step, 1)
            return
        for value in (step.x, step.other):
            self._from_layer(value)
        emit = self._emitter(step)
        step.node.replace_input_with(1, self._dequantized(emit, step.other, CODES))
        factor, scaled = _factor_behind(step.output)
        if scaled is step.output:
            step.node.replace_input_with(0, self._dequantized(emit, step.x, CODES))
            return
        params = self.params[str(step.x.name), CODES]
        pair = self._pair(replace(params, scale=float(np.float32(params.scale * factor))))
        codes = self._quantized(emit, step.x, CODES)
        step.node.replace_input_with(0, emit.op("DequantizeLinear", codes, *pair, dtype=ir.DataType.FLOAT))
        substitute(scaled, step.output)

    def _from_layer(self, value: ir.Value) -> None:
        """6. Let a layer of ours that gives a value give its codes, and move these."""
        origin, movers = value, []
        while (maker := _mover(origin)) is not None:
            movers.append(maker)
            (moved, *_) = maker.inputs
            assert moved is not None
            origin = moved
        layer = origin.producer()
        alone = len(origin.uses()) == 1 and not origin.is_graph_output()
        if layer is None or layer.op_type != QLinearToFloatOp.NAME or not alone or not movers:
            return
        params, (*given, scales) = self.params[str(value.name), CODES], layer.inputs
        steps = tensor_of(scales)
        assert steps is not None
        emit = Emitter(self.graph, self.constants, layer, f"{layer.name}/codes", ir.DataType.FLOAT, marked=False)
        factors = self.constants.get((steps.numpy() / params.scale).astype(np.float32), ir.DataType.FLOAT)
        op = QLinearOp(params.zero_point)
        codes = emit.op(op.NAME, *given, factors, domain=DOMAIN, dtype=CODES, **op.attributes())
        codes.shape = origin.shape
        movers[-1].replace_input_with(0, codes)
        for mover in movers:
            mover.outputs[0].type = ir.TensorType(CODES)
        self.codes[value, CODES] = value

    def _at_origin(self, step: _Step, place: int) -> None:
        """6. Round a factor where it comes from."""
        reader, value = step.node, step.other if place else step.x
        pair, name = self._pair(self.params[str(value.name), WEIGHTS]), f"{step.name}/{place}/actx/int8"
        while (maker := _mover(value)) is not None:
            (moved, *_) = maker.inputs
            assert moved is not None
            reader, value, place = maker, moved, 0
        emit = Emitter(self.graph, self.constants, reader, name, ir.DataType.FLOAT, marked=False)
        codes = emit.op("QuantizeLinear", value, *pair, dtype=WEIGHTS)
        reader.replace_input_with(place, emit.op("DequantizeLinear", codes, *pair, dtype=ir.DataType.FLOAT))

    def _least(self, step: _Step) -> NDArray[np.float64] | float:
        """Return the scales of the weight below which the bias would have no int32 code."""
        if step.bias is None:
            return 0.0
        sizes = np.abs(step.bias.numpy().astype(np.float64).reshape(-1))
        return sizes / (_LARGEST_BIAS * self.params[str(step.x.name), CODES].scale)

    def _weight(
        self, emit: Emitter, weight: NDArray[np.float64], axis: int, least: NDArray[np.float64] | float = 0.0
    ) -> tuple[ir.Value, WeightCodes]:
        """1. Return the weight behind its DequantizeLinear, and as codes."""
        found = WeightCodes.of(weight, axis, least=least)
        stored = self.constants.get(found.codes, WEIGHTS)
        scale = self.constants.get(found.scales, ir.DataType.FLOAT)
        return emit.op(
            "DequantizeLinear", stored, scale, self._origin(found), dtype=ir.DataType.FLOAT, axis=axis
        ), found

    def _origin(self, weight: WeightCodes) -> ir.Value:
        """Return the zero points of a weight."""
        return self.constants.get(np.zeros(weight.scales.shape, np.int8), WEIGHTS)

    def _bias(self, step: _Step, weight: WeightCodes) -> NDArray[np.float64] | None:
        """4. Return the bias, with the mean of what the rounded weight loses."""
        bias = None if step.bias is None else step.bias.numpy().astype(np.float64).reshape(-1)
        mean = self.means.get(str(step.x.name))
        if mean is None or step.is_conv:
            return bias
        lost: NDArray[np.float64] = mean @ (step.matrix() - weight.numbers)
        return lost if bias is None else bias + lost

    def _sums(self, emit: Emitter, step: _Step, weight: WeightCodes) -> list[ir.Value]:
        """2. Return the bias, if there is one, as int32 behind its DequantizeLinear, in steps of the products'."""
        bias = self._bias(step, weight)
        if bias is None:
            return []
        params = self.params[str(step.x.name), CODES]
        steps = (weight.scales.astype(np.float64) * params.scale).astype(np.float32)
        codes = np.rint(bias / np.maximum(steps.astype(np.float64), np.finfo(np.float32).smallest_normal))
        whole = np.iinfo(np.int32)
        stored = self.constants.get(np.clip(codes, whole.min, whole.max).astype(np.int32), SUMS)
        zeros = self.constants.get(np.zeros(steps.shape, np.int32), SUMS)
        scale = self.constants.get(steps, ir.DataType.FLOAT)
        return [emit.op("DequantizeLinear", stored, scale, zeros, dtype=ir.DataType.FLOAT, axis=0)]

    def _own(self, step: _Step, into_table: bool) -> None:
        """2, by our own kernels: the zero point of the input is in the bias, and the scale of what is given in the factors."""
        emit = self._emitter(step)
        x = self.params[str(step.x.name), CODES]
        weight = WeightCodes.of(step.matrix(), 1, narrow=True, least=self._least(step))
        steps, bias = weight.scales.astype(np.float64) * x.scale, self._bias(step, weight)
        origin = x.zero_point * weight.codes.sum(0, dtype=np.int64)
        whole = (0 if bias is None else np.rint(bias / steps).astype(np.int64)) - origin
        y = self.params[str(step.output.name), CODES] if into_table else None
        op: Op = QLinearToFloatOp() if y is None else QLinearOp(y.zero_point)
        found = emit.op(
            op.NAME,
            self._quantized(emit, step.x, CODES),
            self.constants.get(pack(weight.codes), WEIGHTS),
            self.constants.get(whole.astype(np.int32), SUMS),
            self.constants.get((steps / (1.0 if y is None else y.scale)).astype(np.float32), ir.DataType.FLOAT),
            domain=DOMAIN,
            dtype=ir.DataType.FLOAT if y is None else CODES,
            **op.attributes(),
        )
        self.graph.opset_imports[DOMAIN] = OPSET
        found.shape = step.output.shape
        if y is None:
            substitute(step.output, found)
        else:
            self.codes[step.output, CODES] = found

    def _rows(self, step: _Step) -> None:
        """2, in front of a table."""
        emit = self._emitter(step)
        matrix = step.matrix()
        x = self._dequantized(emit, step.x, CODES, len(matrix))
        weight, codes = self._weight(emit, matrix, 1, self._least(step))
        rows = emit.op("Gemm", x, weight, *self._sums(emit, step, codes))
        rows.shape = ir.Shape([None, matrix.shape[1]])
        self.leads[str(step.output.name)] = self.leads.get(str(step.x.name), step.x)
        self._keep_codes(emit, step.output, rows)

    def _to_float(self, step: _Step) -> None:
        """2, elsewhere (ONNX Runtime, contrib operators: A, B, their scales, their zero points, bias)."""
        emit = self._emitter(step)
        weight = WeightCodes.of(step.matrix(), 1)
        bias, (scale, zero_point) = self._bias(step, weight), self._pair(self.params[str(step.x.name), CODES])
        found = emit.op(
            "MatMulIntegerToFloat",
            self._quantized(emit, step.x, CODES),
            self.constants.get(weight.codes, WEIGHTS),
            scale,
            self.constants.get(weight.scales, ir.DataType.FLOAT),
            zero_point,
            self._origin(weight),
            None if bias is None else self.constants.get(bias.astype(np.float32), ir.DataType.FLOAT),
            domain=MICROSOFT,
            dtype=ir.DataType.FLOAT,
        )
        self.graph.opset_imports[MICROSOFT] = 1
        lead = self.leads.get(str(step.x.name))  # where the codes come from a table, they are rows
        if lead is None:
            found.shape = step.output.shape
            substitute(step.output, found)
            return
        found.shape = ir.Shape([None, len(weight.scales)])
        substitute(step.output, self._unrolled(emit, found, lead, len(weight.scales)))

    def _keep_codes(self, emit: Emitter, output: ir.Value, found: ir.Value) -> None:
        params = self.params[str(output.name), CODES]
        self.codes[output, CODES] = emit.op("QuantizeLinear", found, *self._pair(params), dtype=CODES)

    def _unrolled(self, emit: Emitter, rows: ir.Value, lead: ir.Value, width: int) -> ir.Value:
        """Return rows in the shape of what they were made of."""
        assert lead.shape is not None
        dims = [dim if isinstance(dim, int) else None for dim in list(lead.shape.dims)[:-1]]
        if len(dims) == 1:
            return rows
        if dims.count(None) <= 1:
            return emit.op("Reshape", rows, emit.integers(*(-1 if dim is None else dim for dim in dims), width))
        shape = emit.op("Shape", lead, dtype=ir.DataType.INT64)
        shape.shape = ir.Shape([len(dims) + 1])
        front = emit.op("Slice", shape, emit.integers(0), emit.integers(-1), emit.integers(0))
        front.shape = ir.Shape([len(dims)])
        whole = emit.op("Concat", front, emit.integers(width), axis=0)
        whole.shape = ir.Shape([len(dims) + 1])
        return emit.op("Reshape", rows, whole)

    def _conv(self, step: _Step, into_table: bool) -> None:
        """2: an integer Conv gives codes."""
        emit = self._emitter(step)
        x = self._dequantized(emit, step.x, CODES)
        assert step.weight is not None
        weight, codes = self._weight(emit, step.weight.numpy().astype(np.float64), 0, self._least(step))
        found = emit.op("Conv", x, weight, *self._sums(emit, step, codes))
        producer = found.producer()
        assert producer is not None
        for attribute in step.node.attributes.values():
            producer.attributes.add(attribute)
        found.shape = step.output.shape
        self._keep_codes(emit, step.output, found)
        if not into_table:
            pair = self._pair(self.params[str(step.output.name), CODES])
            substitute(
                step.output, emit.op("DequantizeLinear", self.codes[step.output, CODES], *pair, dtype=ir.DataType.FLOAT)
            )

    def _in_place(self, step: _Step) -> None:
        """1, where the runtime fuses Q/DQ around any op."""
        emit = self._emitter(step)
        assert step.weight is not None
        step.node.replace_input_with(0, self._dequantized(emit, step.x, CODES))
        weight, _ = self._weight(emit, step.weight.numpy().astype(np.float64), step.weight_axis)
        step.node.replace_input_with(1, weight)

    def _table(self, table: TableSite, reader: _Step) -> None:
        """3."""
        values = {str(value.name): value for value in self.codes_of_floats()}
        emit = Emitter(self.graph, self.constants, reader.node, table.name, ir.DataType.FLOAT)
        x = values[table.input]
        self.behind[table.name] = str(reader.output.name)
        x_params, y_params = self.params[table.input, CODES], self.params[table.output, CODES]
        op: Op
        given = [self.codes[x, CODES]]
        layer = given[0].producer()
        if table.multiplier is not None:
            u = values[table.multiplier]
            op = gated_table(table.function, x_params, self.params[table.multiplier, CODES], y_params)
            given.append(self.codes[u, CODES])
        else:
            op = site_table(table.function, x_params, y_params, table.axis)
            if table.axis is None and layer is not None and layer.op_type == QLinearOp.NAME:
                op, given = QLinearOp(x_params.zero_point, op.table), [v for v in layer.inputs if v is not None]
        found = emit.op(op.NAME, *given, domain=DOMAIN, dtype=CODES, **op.attributes())
        found.shape = self.codes[x, CODES].shape
        self.codes[reader.x, CODES] = found
        if table.input in self.leads:
            self.leads[table.output] = self.leads[table.input]

    def codes_of_floats(self) -> Iterator[ir.Value]:
        """Yield the values that there are codes of."""
        return (value for value, _ in self.codes)


def _factor_behind(value: ir.Value) -> tuple[float, ir.Value]:
    """10. Return the positive number that the one reader of a value multiplies it by, and the product; 1 and itself without."""
    readers = value.consumers()
    if len(readers) == 1 and op_of(readers[0]) == MUL and not value.is_graph_output():
        (other,) = [operand for operand in readers[0].inputs if operand is not value] or [None]
        factor = tensor_of(other)
        if (
            factor is not None
            and factor.shape.numpy() in {(), (1,)}
            and 0 < (number := float(factor.numpy().item())) < np.inf
        ):
            return number, readers[0].outputs[0]
    return 1.0, value


def _mover(value: ir.Value) -> ir.Node | None:
    """Return what gives a value to one reader by moving numbers; None where it is something else."""
    node = value.producer()
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    return node if node is not None and op_of(node) in MOVES and alone else None


def _as_rows(emit: Emitter, codes: ir.Value, width: int) -> ir.Value:
    if codes.shape is not None and len(codes.shape) == 2:
        return codes
    rows = emit.op("Reshape", codes, emit.integers(-1, width))
    rows.shape = ir.Shape([None, width])
    return rows
