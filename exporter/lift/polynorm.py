"""Recognise PolyNorm (PolyCom, arXiv 2411.03884) in whatever way it was written.

1. A *row region* is made of elementwise nodes and of reductions over the last axis that keep it: what it computes of a value
   depends on nothing but the row of that value.
2. It is PolyNorm if it computes ``sum_i w_i N(x^i) + b`` with ``N(z) = z / sqrt(mean(z^2) + epsilon)``: the region's own
   nodes are evaluated in float64 on random rows of very different size, the weights found by least squares for every
   epsilon that the region's constants offer, and the result is compared on other rows.
3. A polynomial of degree 1 is a normalisation, and no site.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.ops.polynorm import MAX_ORDER, PolyNormOp
from actx.exporter.lift.elementwise import ELEMENTWISE
from actx.exporter.lift.function import PolyNorm
from actx.exporter.lift.ops import op_of, standard
from actx.exporter.lift.regions import Growth, Region, Unmatched, attributes_of, constant_of, dominate, nodes_between
from actx.exporter.lift.rule import broadcasts_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from actx.exporter.lift.ops import Op

POLYNORM: Op = ("actx", "PolyNorm")
_ROOTS = standard("Sqrt", "Pow") | {("", "RMSNormalization"), ("", "SimplifiedLayerNormalization")}

# Rows are tried at these sizes: small ones tell epsilon, large ones that nothing is clamped.
_SIZES = np.array([1e-3, 3e-2, 0.3, 1.0, 3.0, 30.0])
_ROWS = 4  # of each size
_WIDTHS = (12, 19)  # where the row's length is not known
_MAX_WIDTH = 1 << 16
_LARGEST_EPSILON = 0.1
# Largest difference, relative to the largest of its row: a rounding of a float32 constant, such as one over the row's length.
_AGREEMENT = 2.0**-23
_NEGLIGIBLE = 2.0**-23  # of a weight, relative to the largest
_MAX_DEPTH = 24  # of the chain of dominators, from the exit


def find_polynorms(graph: ir.Graph) -> list[Region | Unmatched]:
    """Return the row regions that are PolyNorm, and those that only look like it; no two share a node."""
    nodes = list(graph)
    growth = Growth(_reduces_rows)
    dominate(nodes, growth)
    found = [_of_node(node, growth) for node in nodes if op_of(node) == POLYNORM]
    taken: set[ir.Node] = set()
    for node in reversed(nodes):
        output = node.outputs[0] if node.outputs else None
        if output is None or output not in growth.dominators or node in taken or not _leaves(output, growth):
            continue
        region = _largest(output, growth)
        if region is not None and taken.isdisjoint(region.nodes):
            found.append(region)
            taken.update(region.nodes)
    return found


def _reduces_rows(node: ir.Node) -> bool:
    """Tell whether the node reduces the last axis and keeps it, or divides by a reduction of it."""
    if op_of(node) not in _REDUCTIONS or not node.inputs or node.inputs[0] is None:
        return False
    shape = node.inputs[0].shape
    last = {-1} if shape is None else {-1, len(shape) - 1}
    return bool(node.attributes.get_int("keepdims", 1)) and _axes(node) in [(axis,) for axis in last]


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    if "axis" in node.attributes or op_of(node) in _NORMS:
        return (node.attributes.get_int("axis", -1),)
    if "axes" in node.attributes:
        return tuple(node.attributes.get_ints("axes"))
    array = constant_of(node.inputs[1], {}) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return None if array is None else tuple(array.reshape(-1).tolist())


def _mean_square(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.mean(x * x, axis=-1, keepdims=True))


def _rms(a: Mapping[str, Any], x: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x / np.sqrt(_mean_square(x) + a.get("epsilon", 1e-5)) * scale)


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _a, x, *_axes: function(x)


_NORMS: Mapping[Op, Callable[..., Any]] = {
    ("", "RMSNormalization"): _rms,
    ("", "SimplifiedLayerNormalization"): _rms,
}
_REDUCTIONS: Mapping[Op, Callable[..., Any]] = {
    ("", "ReduceMean"): _reduction(lambda x: np.mean(x, axis=-1, keepdims=True)),
    ("", "ReduceSum"): _reduction(lambda x: np.sum(x, axis=-1, keepdims=True)),
    ("", "ReduceSumSquare"): _reduction(lambda x: np.sum(x * x, axis=-1, keepdims=True)),
    ("", "ReduceL2"): _reduction(lambda x: np.sqrt(np.sum(x * x, axis=-1, keepdims=True))),
    **_NORMS,
}


def _leaves(value: ir.Value, growth: Growth) -> bool:
    """Tell whether the value is read by a node of another kind, by one with another root, or from outside."""
    mine = growth.dominators[value].root
    outputs = [node.outputs[0] for node in value.consumers() if node.outputs]
    inside = [o for o in outputs if o in growth.dominators and growth.dominators[o].root is mine]
    return value.is_graph_output() or len(inside) < len(outputs) or not outputs


def _largest(exit_: ir.Value, growth: Growth) -> Region | Unmatched | None:
    """Return the PolyNorm that the exit's chain of dominators holds, nearest to the exit; or what only looks like one."""
    path = list(islice(growth.dominators[exit_].path(), _MAX_DEPTH))
    alike: Region | Unmatched | None = None
    for end, output in enumerate(path[:-1]):
        for root in path[end + 1 :]:
            nodes = nodes_between({root}, output, growth)
            if not any(op_of(node) in _REDUCTIONS for node in nodes):
                continue
            if root.dtype != output.dtype or root.dtype is None or not _is_closed(nodes, output, growth):
                continue
            constants = _breadth(nodes, growth)
            if not broadcasts_to(constants, root.shape):
                continue
            function = _recognise(root, nodes, growth)
            if function is not None and len(function.weights) > 1:
                return Region(root, output, nodes, function, constants=constants)
            if alike is None and function is None and sum(op_of(node) in _ROOTS for node in nodes) > 1:
                alike = Unmatched(nodes, "it normalises more than one power of its row, but is no PolyNorm")
    return alike


def _is_closed(nodes: Sequence[ir.Node], output: ir.Value, growth: Growth) -> bool:
    """Tell whether nothing but the output is read outside, and every constant is one number."""
    members = set(nodes)
    inner = [value for node in nodes for value in node.outputs if value is not output]
    if any(value.is_graph_output() or not members.issuperset(value.consumers()) for value in inner):
        return False
    constants = _constants(nodes, growth)
    return all(bool((array == array.reshape(-1)[:1]).all()) for array in constants)


def _breadth(nodes: Sequence[ir.Node], growth: Growth) -> tuple[int, ...]:
    """Return the shape that the constants of elementwise ops broadcast to: numbers all, but of any rank."""
    elementwise = [node for node in nodes if op_of(node) in ELEMENTWISE]
    return np.broadcast_shapes(*(array.shape for array in _constants(elementwise, growth)))


def _constants(nodes: Sequence[ir.Node], growth: Growth) -> list[NDArray[Any]]:
    arrays = (constant_of(value, growth.constants) for node in nodes for value in node.inputs if value is not None)
    return [array for array in arrays if array is not None]


def _recognise(root: ir.Value, nodes: Sequence[ir.Node], growth: Growth) -> PolyNorm | None:
    """2. Where the length of a row is not known, what is found for two lengths must be the same."""
    size = root.shape[-1] if root.shape is not None and len(root.shape) else None
    widths = (size,) if isinstance(size, int) else _WIDTHS
    first, *others = [_of_width(width, root, nodes, growth) for width in widths]
    return first if all(_are_alike(first, other) for other in others) else None


def _are_alike(first: PolyNorm | None, second: PolyNorm | None) -> bool:
    if first is None or second is None or len(first.weights) != len(second.weights):
        return first is second
    numbers = [np.array([*found.weights, found.bias]) for found in (first, second)]
    return first.epsilon == second.epsilon and bool(
        (np.abs(numbers[0] - numbers[1]) <= 4 * _NEGLIGIBLE * np.abs(numbers[0]).max()).all()
    )


def _of_width(width: int, root: ir.Value, nodes: Sequence[ir.Node], growth: Growth) -> PolyNorm | None:
    rng = np.random.default_rng(0)
    if not 1 < width <= _MAX_WIDTH:
        return None
    draw = rng.standard_normal((2, _SIZES.size * _ROWS, width)) * np.repeat(_SIZES, _ROWS)[:, None]
    values = [_evaluate(root, rows, nodes, growth) for rows in draw]
    if any(y.shape != draw[0].shape or not np.isfinite(y).all() for y in values):
        return None
    for epsilon in _epsilons(nodes, growth):
        found = _solve(draw[0], values[0], epsilon)
        if found is not None and _agrees(found, draw[1], values[1]):
            return found
    return None


def _evaluate(
    root: ir.Value, rows: NDArray[np.float64], nodes: Sequence[ir.Node], growth: Growth
) -> NDArray[np.float64]:
    known: dict[ir.Value, Any] = {root: rows}

    def operand(value: ir.Value | None) -> Any:
        if value is None or value in known:
            return None if value is None else known[value]
        array = constant_of(value, growth.constants)
        assert array is not None
        number = array.reshape(-1)[0]
        return number if array.dtype == bool else float(number)

    with np.errstate(all="ignore"):
        for node in nodes:
            evaluate = _REDUCTIONS.get(op_of(node)) or ELEMENTWISE[op_of(node)]
            known[node.outputs[0]] = evaluate(attributes_of(node), *map(operand, node.inputs))
    return np.asarray(known[nodes[-1].outputs[0]], dtype=np.float64)


def _epsilons(nodes: Sequence[ir.Node], growth: Growth) -> Iterator[float]:
    """Yield the small positive numbers of the region."""
    numbers = [float(array.reshape(-1)[0]) for array in _constants(nodes, growth) if array.dtype != bool]
    numbers += [node.attributes.get_float("epsilon", 1e-5) for node in nodes if op_of(node) in _NORMS]
    yield from dict.fromkeys(number for number in numbers if 0 < number <= _LARGEST_EPSILON)


def _solve(x: NDArray[np.float64], y: NDArray[np.float64], epsilon: float) -> PolyNorm | None:
    powers = [x**order for order in range(MAX_ORDER, 0, -1)]
    columns = [power / np.sqrt(_mean_square(power) + epsilon) for power in powers] + [np.ones_like(x)]
    sizes = _sizes(y)
    matrix = np.stack([(column / sizes).ravel() for column in columns], axis=1)
    solution, *_ = np.linalg.lstsq(matrix, (y / sizes).ravel(), rcond=None)
    *weights, bias = np.where(np.abs(solution) > _NEGLIGIBLE * np.abs(solution).max(), solution, 0.0).tolist()
    trimmed = np.trim_zeros(np.array(weights), "f")
    return PolyNorm(trimmed, bias, epsilon) if trimmed.size else None


def _agrees(found: PolyNorm, x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    return bool((np.abs(found(x) - y) <= _AGREEMENT * _sizes(y)).all())


def _sizes(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest number of every row."""
    sizes: NDArray[np.float64] = np.maximum(np.abs(y).max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return sizes


def _of_node(node: ir.Node, growth: Growth) -> Region | Unmatched:
    """Return what a node of `actx::PolyNorm` is."""
    root = node.inputs[0]
    assert root is not None
    weights, bias = (None if value is None else constant_of(value, growth.constants) for value in node.inputs[1:3])
    if weights is None or bias is None:
        return Unmatched((node,), "its weights are no constants")
    epsilon = PolyNormOp.from_attributes(attributes_of(node)).epsilon
    function = PolyNorm(weights.astype(np.float64), float(bias.reshape(())), epsilon)
    return Region(root, node.outputs[0], (node,), function)
