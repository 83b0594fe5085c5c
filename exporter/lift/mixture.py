"""Recognise mixtures of activations: sums over entries of a gate per token times a scalar function of the same input.

``y = sum_e g_e f_e(x)`` with x of shape [..., H] and gates of shape [..., 1]. What the gates are computed from makes no
difference: a projection of the layer's input (MoA, arXiv 2605.26647), an embedding of the token's type or place, or
what attention gave for the token.

1. From y the graph is followed back through elementwise nodes, and through what stacks values along a new axis and sums
   them up again, to one *wide* value x, which has the shape of y, and to *narrow* ones, of another last dimension, of
   which columns are taken.
2. These nodes are run on one token and one channel, with symbols in place of numbers: every element is then a scalar function
   of x, or a sum of such functions times gates. So it makes no difference whether a loop, a stack or a product of matrices
   sums up.
3. Where all gates are numbers y is one scalar function, without any mixture.
4. The graph's own nodes and the sum of the entries are then compared on random inputs of more tokens and channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from actx.exporter.lift.dims import equal_dims
from actx.exporter.lift.elementwise import CONSTANT_LAYOUT, ELEMENTWISE
from actx.exporter.lift.function import Constant, Mixture, ScalarFunction, Step
from actx.exporter.lift.ops import AFFINE, SPLIT, op_of, tensor_of
from actx.exporter.lift.regions import Region, Unmatched, attributes_of, channels_of, constant_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from actx.exporter.lift.ops import Op

Array: TypeAlias = "NDArray[Any]"
_Gate: TypeAlias = "tuple[ir.Value, int]"  # a narrow value, and which column of it

_MAX_NODES = 1024  # of a mixture
_MAX_SELECTIONS = 8  # one after another
_TOKENS, _CHANNELS = 3, 5  # of the random inputs
_AGREEMENT = 1e-9


def find_mixtures(graph: ir.Graph, taken: Collection[ir.Node] = ()) -> list[Region | Unmatched]:
    """Return the mixtures of the graph, and what only looks like one; no two share a node.

    Args:
        graph: types and shapes inferred.
        taken: nodes that belong to something else.
    """
    nodes = list(graph)
    place = {node: i for i, node in enumerate(nodes)}
    constants: dict[ir.Value, Array | None] = {}
    for node in nodes:  # from the first node on, so that no constant is followed back far
        for value in node.inputs:
            if value is not None:
                constant_of(value, constants)
    found: list[Region | Unmatched] = []
    used: set[ir.Node] = set(taken)
    plain: set[ir.Node] = set()
    for node in reversed(nodes):
        if node in used or node in plain or op_of(node) not in _SUMS:
            continue
        cone = _Cone(node.outputs[0], constants, place)
        if not cone.is_followed():
            plain.update(cone.without_gates())
            continue
        region = cone.region()
        if region is not None and used.isdisjoint(region.nodes):
            found.append(region)
            used.update(region.nodes)
    return found


# --- 2: symbols ---


class _NotLinearError(Exception):
    """What is computed is no sum of gates times functions of x."""


class _Symbol:
    """What numpy's sums and products of matrices need of an element."""

    def __add__(self, other: Any) -> _Element:
        return _added(self, other)

    def __radd__(self, other: Any) -> _Element:
        return _added(other, self)

    def __mul__(self, other: Any) -> _Element:
        return _product(self, other)

    def __rmul__(self, other: Any) -> _Element:
        return _product(other, self)


@dataclass(frozen=True, eq=False)
class _Function(_Symbol):
    """A scalar function of x: an op and its operands; x itself has none."""

    op: Op | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[_Function | float | None, ...] = ()


@dataclass(frozen=True, eq=False)
class _Sum(_Symbol):
    """sum_g terms[g] g over gates g; each term is a function of x, or a number."""

    terms: Mapping[_Gate, _Function | float]


_Element: TypeAlias = "_Function | _Sum | float | None"


def _apply(op: Op, attributes: Mapping[str, Any], operands: Sequence[_Element]) -> _Element:
    """Apply an elementwise op to symbols."""
    if any(isinstance(o, _Sum) for o in operands):
        rule = _OF_SUMS.get(op)
        if rule is None:
            raise _NotLinearError
        return rule(*operands)
    given = tuple(o for o in operands if not isinstance(o, _Sum))
    if any(isinstance(o, _Function) for o in given):
        return _Function(op, attributes, given)
    numbers = [None if o is None or isinstance(o, _Function) else np.float64(o) for o in given]
    with np.errstate(all="ignore"):
        return float(ELEMENTWISE[op](attributes, *numbers))


def _added(a: Any, b: Any) -> _Element:
    if _is_number(a, 0) or _is_number(b, 0):  # what Python's sum begins with
        rest: _Element = b if _is_number(a, 0) else a
        return rest
    if not isinstance(a, _Sum) and not isinstance(b, _Sum):
        return _apply(("", "Add"), {}, (a, b))
    if not isinstance(a, _Sum) or not isinstance(b, _Sum):  # an entry without a gate
        raise _NotLinearError
    terms = dict(a.terms)
    for gate, term in b.terms.items():
        both = _apply(("", "Add"), {}, (terms[gate], term)) if gate in terms else term
        assert not isinstance(both, _Sum)
        assert both is not None
        terms[gate] = both
    return _Sum(terms)


def _is_number(element: Any, number: float) -> bool:
    return not isinstance(element, _Symbol) and element is not None and bool(element == number)


def _product(a: Any, b: Any) -> _Element:
    if isinstance(b, _Sum):
        a, b = b, a
    if isinstance(b, _Sum):
        raise _NotLinearError
    if not isinstance(a, _Sum):
        return _apply(("", "Mul"), {}, (a, b))
    terms = {}
    for gate, term in a.terms.items():
        product = b if _is_number(term, 1) else _apply(("", "Mul"), {}, (term, b))
        assert not isinstance(product, _Sum)
        assert product is not None
        terms[gate] = product
    return _Sum(terms)


def _quotient(a: Any, b: Any) -> _Element:
    return _product(a, _apply(("", "Reciprocal"), {}, (b,)))


def _first(a: Any, *_: Any) -> _Element:
    found: _Element = a
    return found


# What an op makes of operands of which one at least is a sum.
_OF_SUMS: Mapping[Op, Callable[..., _Element]] = {
    ("", "Add"): _added,
    ("", "Sum"): lambda *terms: reduce(_added, terms),
    ("", "Sub"): lambda a, b: _added(a, _product(b, -1.0)),
    ("", "Neg"): lambda a: _product(a, -1.0),
    ("", "Mul"): _product,
    ("", "Div"): _quotient,
    **dict.fromkeys([("", "Identity"), ("", "Cast"), ("", "CastLike")], _first),
}


def _scalar_function(function: _Function | float) -> ScalarFunction:
    """Write a function of x as a program."""
    index: dict[int, int] = {}
    steps: list[Step] = []

    def place(of: _Function | float | None) -> int | Constant | None:
        if of is None or isinstance(of, float):
            return None if of is None else Constant(np.array(of))
        if of.op is None:
            return 0
        if id(of) not in index:
            operands = tuple(map(place, of.operands))
            steps.append(Step(of.op, of.attributes, operands))
            index[id(of)] = len(steps)
        return index[id(of)]

    if isinstance(function, float):  # a gate by itself
        steps.append(Step(("", "Mul"), {}, (0, Constant(np.array(0.0)))))
        steps.append(Step(("", "Add"), {}, (1, Constant(np.array(function)))))
    elif function.op is None:
        steps.append(Step(("", "Identity"), {}, (0,)))
    else:
        place(function)
    return ScalarFunction(tuple(steps))


# --- 2: ops on arrays of symbols, and of numbers ---


def _elementwise(node: ir.Node, *operands: Array | None) -> Array:
    op, attributes = op_of(node), attributes_of(node)
    present = [o for o in operands if o is not None]
    if all(o.dtype != object for o in present):
        with np.errstate(all="ignore"):
            return np.asarray(ELEMENTWISE[op](attributes, *operands))
    shape = np.broadcast_shapes(*(o.shape for o in present))
    columns = [
        [None] * int(np.prod(shape)) if o is None else np.broadcast_to(o, shape).ravel().tolist() for o in operands
    ]
    result = np.empty(len(columns[0]), object)
    for i, elements in enumerate(zip(*columns, strict=True)):
        result[i] = _apply(op, attributes, [float(e) if isinstance(e, (bool, int)) else e for e in elements])
    return result.reshape(shape)


def _reduce_sum(node: ir.Node, x: Array, axes: Array | None = None) -> Array:
    given = node.attributes.get_ints("axes", ()) if axes is None else axes.reshape(-1).tolist()
    return np.asarray(np.sum(x, axis=tuple(given), keepdims=bool(node.attributes.get_int("keepdims", 1))))


def _matmul(_: ir.Node, a: Array, b: Array) -> Array:
    return np.asarray(a @ b)


def _einsum(node: ir.Node, *operands: Array) -> Array:
    return np.asarray(np.einsum(node.attributes["equation"].as_string(), *operands))


def _layout(node: ir.Node, *operands: Array | None) -> Array:
    return np.asarray(CONSTANT_LAYOUT[op_of(node)](attributes_of(node), *operands))


def _split(node: ir.Node, x: Array, sizes: Array | None = None) -> list[Array]:
    axis = node.attributes.get_int("axis", 0)
    parts = len(node.outputs) if sizes is None else np.cumsum(sizes.reshape(-1))[:-1]
    return np.split(x, parts, axis)


def _transpose(node: ir.Node, x: Array) -> Array:
    return np.transpose(x, node.attributes.get_ints("perm", tuple(range(x.ndim))[::-1]))


_OPS: Mapping[Op, Callable[..., Any]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **{op: _layout for op in CONSTANT_LAYOUT if op != ("", "Expand")},
    ("", "ReduceSum"): _reduce_sum,
    ("", "MatMul"): _matmul,
    ("", "Einsum"): _einsum,
    ("", "Split"): _split,
    ("", "Transpose"): _transpose,
}
# What takes columns out of a narrow value.
_SELECTING = {("", "Slice"), ("", "Gather"), ("", "Unsqueeze"), ("", "Squeeze"), ("", "Identity"), ("", "Cast"), SPLIT}
# What may end a mixture.
_SUMS = {
    ("", name)
    for name in ("Add", "Sub", "Sum", "ReduceSum", "MatMul", "Einsum", "Squeeze", "Reshape", "Cast", "Mul", "Div")
}


class _Cone:
    """The nodes that a value is followed back through."""

    def __init__(self, output: ir.Value, constants: dict[ir.Value, Array | None], place: Mapping[ir.Node, int]) -> None:
        self._output = output
        self._constants = constants
        self._place = place
        self._nodes: dict[ir.Node, None] = {}
        self._wide: dict[ir.Value, None] = {}
        self._narrow: dict[ir.Value, None] = {}
        self._other = False

    # --- 1. ---

    def is_followed(self) -> bool:
        """Follow the output back and tell whether it has one wide root and may be a mixture."""
        shape = self._output.shape
        if shape is None or not len(shape) or shape[-1] == 1 or self._output.dtype is None:
            return False
        queue, seen = [self._output], {self._output}
        while queue:
            value = queue.pop()
            node = value.producer()
            if node is None or not self._goes_on(value, node):
                self._other |= not self._is_leaf(value)
                continue
            self._nodes[node] = None
            if len(self._nodes) > _MAX_NODES:
                return False
            for v in node.inputs:
                if v is not None and v not in seen and constant_of(v, self._constants) is None:
                    seen.add(v)
                    queue.append(v)
        root = next(iter(self._wide), None)
        one = root is not None and len(self._wide) == 1 and root.dtype == self._output.dtype and not self._other
        one = one and root is not None and equal_dims(root, self._output)  # gates must not make x wider
        return one and (bool(self._narrow) or self._stacks())

    def _rank(self, value: ir.Value) -> int:
        return -1 if value.shape is None else len(value.shape)

    def _is_narrow(self, value: ir.Value) -> bool:
        """Tell whether the value has few columns in place of the channels."""
        assert self._output.shape is not None
        shape, wide = value.shape, self._output.shape
        return (
            shape is not None and 0 < len(shape) <= len(wide) and isinstance(shape[-1], int) and shape[-1] != wide[-1]
        )

    def _is_leaf(self, value: ir.Value) -> bool:
        assert self._output.shape is not None
        if self._is_narrow(value):
            self._narrow[value] = None
            return True
        if (
            value.shape is not None
            and len(value.shape) == len(self._output.shape)
            and value.shape[-1] == self._output.shape[-1]
        ):
            self._wide[value] = None
            return True
        return False

    def _goes_on(self, value: ir.Value, node: ir.Node) -> bool:
        assert self._output.shape is not None
        op, rank = op_of(node), len(self._output.shape)
        data = node.inputs[0] if node.inputs else None
        if op not in _OPS or data is None or node.graph is not self._output.producer().graph:  # type: ignore[union-attr]
            return False
        if self._rank(value) > rank:
            return True
        if self._is_narrow(value) or self._rank(value) < rank:
            return self._is_selected(value)
        if op in ELEMENTWISE:
            wide = channels_of(node, self._constants)
            operands = [v for v in node.inputs if v is not None and constant_of(v, self._constants) is None]
            return wide is not None and not (wide and op in AFFINE and len(operands) == 1)
        return any(v is not None and self._rank(v) > rank for v in node.inputs)

    def without_gates(self) -> Collection[ir.Node]:
        """Return the nodes, if none of them is near a gate or a stack: then none of them ends a mixture."""
        return () if self._narrow or self._stacks() else self._nodes

    def _stacks(self) -> bool:
        rank = self._rank(self._output)
        return any(self._rank(v) > rank for node in self._nodes for v in node.outputs)

    def _is_selected(self, value: ir.Value) -> bool:
        """Tell whether the value holds columns of a narrow value that is no constant."""
        current: ir.Value | None = value
        for _ in range(_MAX_SELECTIONS):
            node = None if current is None else current.producer()
            if node is None or op_of(node) not in _SELECTING or tensor_of(node.inputs[0]) is not None:
                return False
            current = node.inputs[0]
            if current is not None and self._is_narrow(current):
                return constant_of(current, self._constants) is None
        return False

    # --- 2 to 4. ---

    def region(self) -> Region | Unmatched | None:
        """Return the mixture, or what only looks like one; None where nothing mixes."""
        (root,) = self._wide
        nodes = tuple(sorted(self._nodes, key=self._place.__getitem__))
        try:
            (element,) = self._run(nodes, self._symbols(root)).ravel()
        except (
            _NotLinearError,
            ValueError,
            TypeError,
            IndexError,
        ):  # or shapes that do not fit one token and one channel
            return None
        if isinstance(element, _Function):
            function: Mixture | ScalarFunction = _scalar_function(element)
            columns: tuple[_Gate, ...] = ()
        elif isinstance(element, _Sum) and len(element.terms) > 1:
            function, columns = Mixture(tuple(map(_scalar_function, element.terms.values()))), tuple(element.terms)
        else:
            return None
        if not self._agrees(nodes, root, function, columns):
            return None
        own = self._of_root(root, nodes)
        if self._is_read_elsewhere(nodes, own):
            return Unmatched(own, "a part of the mixture is read elsewhere")
        return Region(root, self._output, own, function, columns=columns)

    def _of_root(self, root: ir.Value, nodes: Sequence[ir.Node]) -> tuple[ir.Node, ...]:
        """Return the nodes that depend on x: what picks out the gates may serve other mixtures too."""
        reached, own = {root}, []
        for node in nodes:
            if not reached.isdisjoint(node.inputs):
                reached.update(node.outputs)
                own.append(node)
        return tuple(own)

    def _is_read_elsewhere(self, nodes: Sequence[ir.Node], own: Sequence[ir.Node]) -> bool:
        """Tell whether a part of the sum, which is lost where the sum becomes one node, is read outside."""
        members, mixed = set(nodes), set(self._narrow)
        for node in nodes:
            if not mixed.isdisjoint(node.inputs):
                mixed.update(node.outputs)
        parts = [v for node in own for v in node.outputs if v in mixed and v is not self._output]
        return any(v.is_graph_output() or not members.issuperset(v.consumers()) for v in parts)

    def _symbols(self, root: ir.Value) -> dict[ir.Value, Array]:
        """Return the values of the leaves for one token and one channel."""
        symbols = {root: np.full((1,) * self._rank(root), None, object)}
        symbols[root].flat[0] = _Function()
        for value in self._narrow:
            assert value.shape is not None
            columns = [_Sum({(value, i): 1.0}) for i in range(_columns(value))]
            symbols[value] = np.array(columns, dtype=object).reshape(*[1] * (len(value.shape) - 1), -1)
        return symbols

    def _run(self, nodes: Sequence[ir.Node], known: dict[ir.Value, Array]) -> Array:
        def operand(value: ir.Value | None) -> Array | None:
            return None if value is None else known[value] if value in known else constant_of(value, self._constants)

        for node in nodes:
            result = _OPS[op_of(node)](node, *map(operand, node.inputs))
            known.update(zip(node.outputs, result if isinstance(result, list) else [result], strict=False))
        return known[self._output]

    def _agrees(
        self, nodes: Sequence[ir.Node], root: ir.Value, function: Mixture | ScalarFunction, columns: Sequence[_Gate]
    ) -> bool:
        """4."""
        rng = np.random.default_rng(0)
        rank = self._rank(root)
        lead = (2, *[1] * (rank - 2))[: max(rank - 2, 0)] + ((_TOKENS,) if rank > 1 else ())
        known: dict[ir.Value, Array] = {root: 2 * rng.standard_normal((*lead, _CHANNELS))}
        for value in self._narrow:
            assert value.shape is not None
            sizes = lead[len(lead) - len(value.shape) + 1 :] if len(value.shape) > 1 else ()
            ones = [1 if dim == 1 else size for dim, size in zip(value.shape[:-1], sizes, strict=True)]
            known[value] = rng.standard_normal((*ones, _columns(value)))
        gates = [known[value][..., i : i + 1] for value, i in columns]
        expected = function(known[root], *gates)
        try:
            got = np.asarray(self._run(nodes, known), dtype=np.float64)
        except (ValueError, TypeError, IndexError):
            return False
        return got.shape == expected.shape and bool(
            (np.abs(got - expected) <= _AGREEMENT * (1 + np.abs(expected).max())).all()
        )


def _columns(value: ir.Value) -> int:
    assert value.shape is not None
    size = value.shape[-1]
    assert isinstance(size, int)
    return size
