"""Find every nonlinearity of a model by its mathematics, whatever it is called and however it was written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from actx.custom_ops import REGISTERED, Activation, Spline
from actx.exporter.lift.elementwise import SPLINE
from actx.exporter.lift.function import Mixture, PolyNorm, ScalarFunction, SiteFunction, is_affine
from actx.exporter.lift.gating import find_gate
from actx.exporter.lift.mixture import find_mixtures
from actx.exporter.lift.naming import site_names
from actx.exporter.lift.ops import NORMALISATIONS, ROWWISE, op_of
from actx.exporter.lift.polynorm import find_polynorms
from actx.exporter.lift.recognise import recognise
from actx.exporter.lift.regions import Region, Unmatched, grow
from actx.exporter.lift.rule import objection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Column", "Gate", "Lifted", "Mixture", "PolyNorm", "Rejection", "ScalarFunction", "Site", "lift"]

POLYNORM, MIXTURE = "polynorm", "moa"
# Programs whose names a process remembers: more than the distinct functions of a model.
MAX_REMEMBERED = 256
# Of a mixture's entry.
IDENTITY = "identity"


@dataclass(frozen=True)
class Gate:
    """The product f(g) * u that a site is part of.

    Attributes:
        multiplier: name of the value u, of the shape of the site's output.
        product: name of the value f(g) * u.
    """

    multiplier: str
    product: str


@dataclass(frozen=True)
class Column:
    """The gate of one entry of a mixture.

    Attributes:
        value: name of a value [..., E], whose leading dimensions are those of the site's input, or broadcast to them.
        index: which column of it is the gate.
    """

    value: str
    index: int


@dataclass(frozen=True)
class Site:
    """A place in the graph where a nonlinearity acts. Values are named as in the graph.

    Attributes:
        name: the scope name of the region, unique in the model and stable across runs.
        kind: the catalogue's name of the function, or ``scalar``; ``polynorm``; ``moa`` for any mixture.
        parameters: the function's parameters by name; float64, shape ``()`` or, where they differ per channel, ``(C,)``.
        function: f, evaluated by the region's own graph.
        input: the value f is applied to.
        output: the value f gives.
        values: every value that the region's nodes compute, in topological order; the last one is `output`.
        dtype: the type of input and output.
        shape: of input and output as far as it is known: sizes, names, or None per dimension; None without a rank.
        axis: the channel axis, counted from the end, where f differs per channel.
        gate: the product that the output enters, if it is gated.
        columns: the gates of a mixture, one per entry.
        entries: the catalogue's names of a mixture's entries.
    """

    name: str
    kind: str
    parameters: dict[str, NDArray[np.float64]]
    function: SiteFunction
    input: str
    output: str
    values: tuple[str, ...]
    dtype: ir.DataType
    shape: tuple[int | str | None, ...] | None
    axis: int | None
    gate: Gate | None
    columns: tuple[Column, ...] = ()
    entries: tuple[str, ...] = ()

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of the values that a mixture's gates are in."""
        return tuple(dict.fromkeys(column.value for column in self.columns))

    @property
    def spline(self) -> Spline | None:
        """The table, where the source has the site as one node of `actx::Spline`; along `axis` where it differs per channel."""
        if not isinstance(self.function, ScalarFunction):
            return None
        steps = self.function.steps
        if len(steps) != 1 or steps[0].op != SPLINE:
            return None
        return replace(Spline.from_attributes(steps[0].attributes), axis=self.axis)

    def evaluate(self, x: NDArray[np.float64], *operands: NDArray[np.float64]) -> NDArray[np.float64]:
        """Evaluate f in float64 on a tensor of the site's shape, and on the values of `operands`."""
        if isinstance(self.function, Mixture):
            given = dict(zip(self.operands, operands, strict=True))
            return self.function(x, *(given[c.value][..., c.index, None] for c in self.columns))
        if self.axis is None:
            return self.function(x)
        rows = np.moveaxis(x, self.axis, 0)
        return np.moveaxis(self.function(rows), 0, self.axis)


@dataclass(frozen=True)
class Rejection:
    """A nonlinear node, or region, that is no site, and why."""

    name: str
    ops: str
    reason: str


@dataclass(frozen=True)
class Lifted:
    """What was found: the sites in graph order, and what is nonlinear but no site."""

    sites: tuple[Site, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True)
class _Identity:
    """What a region's function was found to be; an affine one has no name."""

    affine: bool
    kind: str = ""
    parameters: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Verdict:
    """A region, what it computes, and why it is no site, or None."""

    region: Region
    identity: _Identity
    reason: str | None


def lift(model: ir.Model) -> Lifted:
    """Find the sites of a model whose types and shapes have been inferred. The model is not changed."""
    regions, unmatched = _regions(model.graph)
    verdicts = [_judge(region) for region in regions]
    accepted = [verdict for verdict in verdicts if verdict.reason is None]
    names = site_names([verdict.region.nodes for verdict in accepted])
    taken: set[ir.Value] = set()
    sites = tuple(_site(v.region, v.identity, name, taken) for v, name in zip(accepted, names, strict=True))
    return Lifted(sites, _rejections(model.graph, verdicts, unmatched))


def _regions(graph: ir.Graph) -> tuple[list[Region], list[Unmatched]]:
    """Return what may be sites, in graph order: PolyNorm before mixtures, which it looks like, and both before their parts."""
    found: list[Region | Unmatched] = list(find_polynorms(graph))
    whole = {node for region in found if isinstance(region, Region) for node in region.nodes}
    found += find_mixtures(graph, whole)
    whole |= {node for region in found if isinstance(region, Region) for node in region.nodes}
    found += [region for region in grow(graph) if whole.isdisjoint(region.nodes)]
    place = {node: i for i, node in enumerate(graph)}
    found.sort(key=lambda region: place[region.nodes[-1]])
    return [f for f in found if isinstance(f, Region)], [f for f in found if isinstance(f, Unmatched)]


def _judge(region: Region) -> _Verdict:
    identity = _identify_once(_Program(region.function), _rounding_unit(region), tuple(REGISTERED.values()))
    return _Verdict(region, identity, objection(region, identity.affine))


@dataclass(frozen=True)
class _Program:
    """A function that equals every other of the same program."""

    function: SiteFunction = field(compare=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.function.key)


@lru_cache(maxsize=MAX_REMEMBERED)
def _identify_once(program: _Program, unit: float, _registered: tuple[Activation, ...]) -> _Identity:
    """Identify each distinct program once per precision, for all models that a process lifts."""
    return _identify(program.function, unit)


def _identify(function: SiteFunction, unit: float) -> _Identity:
    if isinstance(function, PolyNorm):
        return _Identity(affine=False, kind=POLYNORM, parameters=function.parameters)
    if isinstance(function, Mixture):
        entries = [_identify(entry, unit) for entry in function.entries]
        names = (e.kind or _of_line(f) for e, f in zip(entries, function.entries, strict=True))
        return _Identity(all(e.affine for e in entries), MIXTURE, entries=tuple(names))
    affine = is_affine(function)
    return _Identity(affine) if affine else _Identity(affine, *recognise(function, unit))


def _rounding_unit(region: Region) -> float:
    """Return the rounding unit of the coarsest type in the region."""
    units = {ir.DataType.BFLOAT16: 2.0**-8, ir.DataType.FLOAT16: 2.0**-11}
    values = (region.root, *(v for node in region.nodes for v in node.outputs))
    return max(2.0**-24 if v.dtype is None else units.get(v.dtype, 2.0**-24) for v in values)


def _of_line(function: ScalarFunction) -> str:
    """Return what a mixture's entry that is affine is called."""
    at = function(np.array([0.0, 1.0]))
    return IDENTITY if at.tolist() == [0.0, 1.0] else "constant" if at[0] == at[1] else "affine"


def _site(region: Region, identity: _Identity, name: str, taken: set[ir.Value]) -> Site:
    kind = identity.kind
    dtype = region.output.dtype or region.root.dtype
    assert dtype is not None
    gate = find_gate(region)
    if gate is not None and gate[1] in taken:  # the product has one gate: the site that came first
        gate = None
    if gate is not None:
        taken.add(gate[1])
    return Site(
        name=name,
        kind="prelu" if kind == "leaky_relu" and region.axis is not None else kind,
        parameters=identity.parameters,
        function=region.function,
        input=_name(region.root),
        output=_name(region.output),
        values=tuple(_name(node.outputs[0]) for node in region.nodes),
        dtype=dtype,
        shape=_dims(region.output if region.output.shape is not None else region.root),
        axis=region.axis,
        gate=None if gate is None else Gate(_name(gate[0]), _name(gate[1])),
        columns=tuple(Column(_name(value), index) for value, index in region.columns),
        entries=identity.entries,
    )


def _name(value: ir.Value) -> str:
    assert value.name
    return value.name


def _dims(value: ir.Value) -> tuple[int | str | None, ...] | None:
    return None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _rejections(graph: ir.Graph, verdicts: Sequence[_Verdict], unmatched: Sequence[Unmatched]) -> tuple[Rejection, ...]:
    """Describe what is nonlinear and no site. Affine regions are not nonlinear, and not worth a line."""
    refused = [
        (v.region.nodes, v.reason) for v in verdicts if v.reason and not v.identity.affine and _is_float(v.region)
    ]
    refused += [(part.nodes, part.reason) for part in unmatched]
    names = site_names([nodes for nodes, _ in refused])
    rows = [
        Rejection(name, "+".join(dict.fromkeys(node.op_type for node in nodes)), reason)
        for name, (nodes, reason) in zip(names, refused, strict=True)
    ]
    rowwise = NORMALISATIONS | ROWWISE
    whole = Counter(node.op_type for node in graph if op_of(node) in rowwise)
    rows += [
        Rejection(f"{count} nodes", op, "acts on whole rows, not elementwise") for op, count in sorted(whole.items())
    ]
    rows += [
        Rejection(str(node.name), node.op_type, "what is in its bodies is not looked at")
        for node in graph
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
    ]
    return tuple(rows)


def _is_float(region: Region) -> bool:
    return region.output.dtype is None or region.output.dtype.is_floating_point()
