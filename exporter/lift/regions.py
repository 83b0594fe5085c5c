"""Grow the connected regions of elementwise ops that have one non-constant input.

1. Every value knows its *dominators*, the values it is a function of: an elementwise node adds itself to what its
   non-constant operands have in common; any other node starts anew, and so does one that gives integers.
2. A *barrier* ends a region: a per-channel constant on the only way from the input (a bias, or the scale of a
   normalisation: it belongs to the layer before). A per-channel constant beside that way (a PReLU's slope, a Swish's
   beta) stays inside.
3. A value inside a region that is also read outside it, or by two regions, is a *cut*: regions end and begin there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from actx.exporter.lift.elementwise import CONSTANT_LAYOUT, ELEMENTWISE, MAX_CONSTANT, SPLINE
from actx.exporter.lift.function import Constant, ScalarFunction, SiteFunction, Step
from actx.exporter.lift.ops import AFFINE, op_of, tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """Connected nodes that compute `output` from `root`: a region of elementwise nodes if `function` is a scalar one.

    Attributes:
        root: the one non-constant input, but for the gates of a mixture.
        output: the one value that leaves the region.
        nodes: in topological order.
        function: f, the region's own mathematics.
        axis: the channel axis, counted from the end, where f differs per channel.
        constants: the shape that the constant operands broadcast to.
        columns: of a mixture, per entry the value that its gate is in, [..., E], and which column it is.
    """

    root: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    function: SiteFunction
    axis: int | None = None
    constants: tuple[int, ...] = ()
    columns: tuple[tuple[ir.Value, int], ...] = ()


@dataclass(frozen=True)
class Unmatched:
    """Nodes that look like a site of more than one op, and are none.

    Attributes:
        nodes: in topological order.
        reason: why not, in words.
    """

    nodes: tuple[ir.Node, ...]
    reason: str


class Dominator:
    """A value in the tree of dominators, whose depth may be that of the graph.

    `jump` leads to some ancestor, so chosen that any one is reached in logarithmically many steps (Myers, An applicative
    random-access stack, 1983).
    """

    __slots__ = ("depth", "jump", "parent", "root", "value")

    def __init__(self, value: ir.Value, parent: Dominator | None) -> None:
        self.value = value
        self.parent: Dominator = self if parent is None else parent
        self.root: Dominator = self if parent is None else parent.root
        self.depth: int = 0 if parent is None else parent.depth + 1
        near = self.parent
        even = near.depth - near.jump.depth == near.jump.depth - near.jump.jump.depth if parent else False
        self.jump: Dominator = near.jump.jump if even else near

    def ancestor(self, depth: int) -> Dominator:
        """Return the dominator of that depth, the value itself where it is not as deep."""
        node = self
        while node.depth > depth:
            node = node.jump if node.jump.depth >= depth else node.parent
        return node

    def common(self, other: Dominator) -> Dominator | None:
        """Return the nearest value that dominates both, either of them included; None where nothing does."""
        if self.root is not other.root:
            return None
        depth = min(self.depth, other.depth)
        a, b = self.ancestor(depth), other.ancestor(depth)
        while a is not b:
            a, b = (a.jump, b.jump) if a.jump is not b.jump else (a.parent, b.parent)
        return a

    def path(self) -> Iterator[ir.Value]:
        """Yield the value and its dominators, nearest first."""
        node = self
        while node.depth > 0:
            yield node.value
            node = node.parent
        yield node.value


@dataclass
class Growth:
    """Working state of one graph.

    Attributes:
        also: the nodes that a region may hold beside the elementwise ones.
        constants: the values that are known to be constant, or not.
        dominators: of the results of these nodes, and of no other value.
        starts: the roots of regions.
        barriers: see 2.
        cuts: see 3.
    """

    also: Callable[[ir.Node], bool] = lambda _: False
    constants: dict[ir.Value, NDArray[Any] | None] = field(default_factory=dict)
    dominators: dict[ir.Value, Dominator] = field(default_factory=dict)
    starts: dict[ir.Value, Dominator] = field(default_factory=dict)
    barriers: set[ir.Value] = field(default_factory=set)
    cuts: set[ir.Value] = field(default_factory=set)


def grow(graph: ir.Graph) -> list[Region]:
    """Return every maximal region, in graph order. Affine ones are among them."""
    nodes = list(graph)
    growth = Growth()
    while True:
        dominate(nodes, growth)
        cuts = _find_cuts(nodes, growth)
        if cuts <= growth.cuts:
            break
        growth.cuts |= cuts
    found = [region for value in _outputs(nodes, growth) for region in _split(value, growth)]
    place = {node: i for i, node in enumerate(nodes)}
    return sorted(found, key=lambda region: place[region.nodes[-1]])


def constant_of(value: ir.Value, known: dict[ir.Value, NDArray[Any] | None]) -> NDArray[Any] | None:
    """Return the value's constant array, following small ops on constants; None where it is not constant."""
    if value in known:
        return known[value]
    known[value] = None  # also ends a cycle of an invalid graph
    tensor = tensor_of(value)
    if tensor is not None:
        known[value] = tensor.numpy() if tensor.size <= MAX_CONSTANT else None
    elif (node := value.producer()) is not None:
        known[value] = _computed(node, known)
    return known[value]


def _computed(node: ir.Node, known: dict[ir.Value, NDArray[Any] | None]) -> NDArray[Any] | None:
    evaluate = ELEMENTWISE.get(op_of(node)) or CONSTANT_LAYOUT.get(op_of(node))
    operands = [None if v is None else constant_of(v, known) for v in node.inputs]
    if (
        evaluate is None
        or not operands
        or any(o is None and v is not None for o, v in zip(operands, node.inputs, strict=True))
    ):
        return None
    dtype = node.outputs[0].dtype
    try:
        if (
            op_of(node) in ELEMENTWISE
            and math.prod(np.broadcast_shapes(*(o.shape for o in operands if o is not None))) > MAX_CONSTANT
        ):
            return None
        with np.errstate(all="ignore"):
            result = np.asarray(evaluate(attributes_of(node), *operands))
            result = result if dtype is None else result.astype(dtype.numpy())  # rounded, or truncated, as the op does
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        MemoryError,
    ):  # they do not fit: the runtime will say so
        return None
    return result if result.size <= MAX_CONSTANT else None


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """Return the node's attributes as plain Python values."""
    return {
        name: attribute.as_string() if attribute.type == ir.AttributeType.STRING else attribute.value
        for name, attribute in node.attributes.items()
        if not attribute.is_ref()
    }


def _belongs(node: ir.Node, growth: Growth) -> bool:
    return bool(node.inputs and node.outputs) and (op_of(node) in ELEMENTWISE or growth.also(node))


def _operands(node: ir.Node, growth: Growth) -> list[ir.Value]:
    """Return the distinct non-constant inputs."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None and constant_of(v, growth.constants) is None))


def dominate(nodes: Sequence[ir.Node], growth: Growth) -> None:
    """Find the dominators of every value, see 1 and 2."""
    growth.dominators.clear()
    for node in nodes:
        operands = _operands(node, growth)
        wide = channels_of(node, growth.constants)
        if not _belongs(node, growth) or not operands or wide is None or _is_integer(node.outputs[0]):
            continue
        output = node.outputs[0]
        growth.dominators[output] = Dominator(output, _common([_before(v, growth) for v in operands]))
        if len(operands) == 1 and op_of(node) in AFFINE and wide:
            growth.barriers.add(output)


def _is_integer(value: ir.Value) -> bool:
    """Tell whether the value is known to be of a type whose arithmetic is neither real nor logical."""
    dtype = value.dtype
    return dtype is not None and dtype is not ir.DataType.BOOL and not dtype.is_floating_point()


def _before(value: ir.Value, growth: Growth) -> Dominator:
    """Return the operand's place; a value that is not in a region, or a cut, is the root of what follows."""
    if value in growth.dominators and value not in growth.cuts:
        return growth.dominators[value]
    return growth.starts.setdefault(value, Dominator(value, None))


def _common(places: Sequence[Dominator]) -> Dominator | None:
    found: Dominator | None = places[0]
    for place in places[1:]:
        found = None if found is None else found.common(place)
    return found


def channels_of(node: ir.Node, known: dict[ir.Value, NDArray[Any] | None]) -> tuple[int, ...] | None:
    """Return () where all constants are scalar, (axis, C) where they run along one axis, None where neither."""
    found: set[tuple[int, ...]] = set()
    if op_of(node) == SPLINE and "axis" in node.attributes:
        axis, x = node.attributes.get_int("axis"), node.inputs[0]
        rank = None if x is None or x.shape is None else len(x.shape)
        if axis >= 0 and rank is None:
            return None
        found.add((axis if axis < 0 else axis - (rank or 0), node.attributes.get_int("channels")))
    for value in node.inputs:
        array = None if value is None else constant_of(value, known)
        if array is None or array.size == 1:
            continue
        wide = [(axis - array.ndim, size) for axis, size in enumerate(array.shape) if size != 1]
        if len(wide) != 1:
            return None
        found.add(wide[0])
    if len(found) > 1:
        return None
    return found.pop() if found else ()


def _root(value: ir.Value, growth: Growth) -> ir.Value:
    """Return the furthest dominator; the value itself where it starts anew."""
    place = growth.dominators.get(value)
    return value if place is None else place.root.value


def _continues(value: ir.Value, consumer: ir.Node, growth: Growth) -> bool:
    """Tell whether the consumer goes on with the value's region."""
    output = consumer.outputs[0] if consumer.outputs else None
    if output is None or output not in growth.dominators or value in growth.cuts:
        return False
    return _root(output, growth) is _root(value, growth)


def _find_cuts(nodes: Sequence[ir.Node], growth: Growth) -> set[ir.Value]:
    """Return the values inside a region that leave it, or that two regions would share."""
    sink: dict[ir.Value, ir.Value] = {}
    cuts: set[ir.Value] = set()
    for node in reversed(nodes):
        value = node.outputs[0] if node.outputs else None
        if value is None or value not in growth.dominators:
            continue
        inside = [consumer for consumer in value.consumers() if _continues(value, consumer, growth)]
        leaves = value.is_graph_output() or len(inside) < len(value.consumers())
        sinks = {sink[consumer.outputs[0]] for consumer in inside if consumer.outputs[0] in sink}
        sink[value] = value if leaves or len(sinks) != 1 else next(iter(sinks))
        if inside and sink[value] is value and _root(value, growth) is not value:
            cuts.add(value)
    return cuts


def _outputs(nodes: Sequence[ir.Node], growth: Growth) -> Iterator[ir.Value]:
    for node in nodes:
        for value in node.outputs[:1]:
            consumers = value.consumers()
            ends = value.is_graph_output() or not all(_continues(value, c, growth) for c in consumers)
            if value in growth.dominators and (value.is_graph_output() or consumers) and ends:
                yield value


def _split(output: ir.Value, growth: Growth) -> Iterator[Region]:
    """Yield the regions on the way from `output` back to its root, which barriers divide."""
    run: list[ir.Value] = []
    for value in growth.dominators[output].path():
        if run and run[-1] in growth.barriers:
            yield from _largest(run, growth)
            run = []
        run.append(value)
    yield from _largest(run, growth)


def _largest(run: Sequence[ir.Value], growth: Growth) -> Iterator[Region]:
    """Yield the largest region of the run, nearest value first, that begins with the type it ends with."""
    for end, last in enumerate(run[:-1]):
        for first in reversed(run[end + 1 :]):
            if first.dtype == last.dtype or first.dtype is None or last.dtype is None:
                region = between(first, last, growth)
                if region is not None:
                    yield region
                return


def nodes_between(roots: Collection[ir.Value], output: ir.Value, growth: Growth) -> tuple[ir.Node, ...]:
    """Return the nodes that compute a value from others, in topological order; constants are not computed."""
    order: dict[ir.Node, None] = {}

    def visit(start: ir.Value) -> None:
        stack = [(start, False)]
        while stack:
            value, done = stack.pop()
            node = value.producer()
            if value in roots or node is None or node in order or constant_of(value, growth.constants) is not None:
                continue
            if done:
                order[node] = None
                continue
            stack.append((value, True))
            stack.extend((v, False) for v in reversed(node.inputs) if v is not None)

    visit(output)
    return tuple(order)


def between(root: ir.Value, output: ir.Value, growth: Growth) -> Region | None:
    """Return the region of elementwise nodes from one value to another, None where it is no function of one channel."""
    nodes = nodes_between({root}, output, growth)
    wide = {c for node in nodes if (c := channels_of(node, growth.constants))}
    if len(wide) > 1:  # parameters along two axes
        return None
    axis, channels = wide.pop() if wide else (None, None)
    return Region(root, output, nodes, _program(root, nodes, channels, growth), axis, _breadth(nodes, growth))


def _breadth(nodes: Sequence[ir.Node], growth: Growth) -> tuple[int, ...]:
    """Return the shape that all constant operands broadcast to; they are scalars, or run along one axis."""
    arrays = (constant_of(v, growth.constants) for node in nodes for v in node.inputs if v is not None)
    return np.broadcast_shapes(*{array.shape for array in arrays if array is not None})


def _program(root: ir.Value, nodes: Sequence[ir.Node], channels: int | None, growth: Growth) -> ScalarFunction:
    index = {root: 0}
    steps: list[Step] = []

    def operand(value: ir.Value | None) -> int | Constant | None:
        if value is None:
            return None
        if value in index:
            return index[value]
        array = constant_of(value, growth.constants)
        assert array is not None, value.name
        values = array.astype(np.float64) if array.dtype != bool else array
        return Constant(values.reshape(()) if values.size == 1 else values.reshape(-1))

    for node in nodes:
        attributes = attributes_of(node)
        if "axis" in attributes:  # a function of one channel has the channels first
            attributes["axis"] = 0
        steps.append(Step(op_of(node), attributes, tuple(map(operand, node.inputs))))
        index[node.outputs[0]] = len(steps)
    return ScalarFunction(tuple(steps), channels)
