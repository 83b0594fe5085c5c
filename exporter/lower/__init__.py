"""Write the chosen forms into the graph: the portable one, and the target's own, of actx nodes or of standard ops.

1. A slope that a form leaves to the layers around its site is folded into their weights, once for both graphs.
2. A kept site stays as it is. Of a source that holds actx nodes the native graph keeps them, and graphs of standard ops
   have those instead.
3. PolyNorm becomes, in a graph of standard ops, the fewest of them: sums of its rows and one polynomial of x. A mixture becomes
   the sum of its entries.
4. A form within `OWN_MATHEMATICS` of its source is, in the portable graph, the source's own mathematics: as one op where the
   opset has it, otherwise the nodes that were there.
5. Other forms become the standard ops of `portable`.
6. In a native graph a form is always written as the form: of ``actx`` nodes, each site is one `actx::Spline`, `actx::PolyNorm`
   or `actx::SplineMix`, the product of a gated site included; of ``standard`` ops, for a runtime that compiles chains of
   elementwise ops into one loop, they are those of `portable` that suit it. There a form can be faster than the op that it
   follows closely.
7. Of a gated site that is to be packed, both layers become one before the two graphs part, and after 1, which scales them one
   by one; in a graph of actx nodes the product is one `actx::GatedSpline` then (see `packing`).
8. For a runtime that takes kernels among its own layers, the native graph is the portable one with actx nodes at some sites.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.custom_ops.ops import DOMAIN, OPSET
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp
from actx.exporter.collection import no_garbage_collection
from actx.exporter.lift import PolyNorm, ScalarFunction
from actx.exporter.lower.decompose import decompose
from actx.exporter.lower.emitter import SITE_METADATA, Constants, Emitter, substitute
from actx.exporter.lower.fold import fold_slope
from actx.exporter.lower.mixture import emit_gates, emit_mixture
from actx.exporter.lower.own import standard_op
from actx.exporter.lower.packing import pack, write_gated
from actx.exporter.lower.polynorm import emit_polynorm
from actx.exporter.lower.portable import emit_spline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import onnx_ir as ir

    from actx.custom_ops import Spline
    from actx.custom_ops.ops import Op
    from actx.exporter.choose import Choice
    from actx.exporter.ffn.product import Product
    from actx.exporter.fitting import Fit

__all__ = ["SITE_METADATA", "Lowered", "Native", "Placement", "lower"]

Native: TypeAlias = Literal["actx", "standard"]

# Closer than this, standard ops that imitate the form would cost more and differ no less than the source itself.
OWN_MATHEMATICS = 1e-4


@dataclass(frozen=True)
class Placement:
    """Where a site is found in the portable graph.

    In the native graph the values have the same names; of actx nodes, a gated site gives the product there and not its own
    output. `lowering` and `own` are of the portable graph alone: a native graph has the form.

    Attributes:
        site: its name.
        lowering: what stands there in the portable graph: the op types.
        own: whether these are the source's own mathematics, exactly, and not the form's.
        input: name of the value it reads, which is `scale` times the original's.
        output: name of the value it gives, which is `scale` times the original's.
        scale: the slope that was folded into the layers around it, 1 where none was.
    """

    site: str
    lowering: str
    input: str
    output: str
    scale: float
    own: bool = False


@dataclass(frozen=True)
class Lowered:
    """The two graphs. They share the names of their weights, and so one weights file.

    Every node that computes a site, also a kept one, has the site's name in its metadata as `SITE_METADATA`.

    Attributes:
        portable: standard ops only.
        native: the target's own graph; None where none was asked for, or it would be the portable one.
        placements: one per site, of the portable graph.
    """

    portable: ir.Model
    native: ir.Model | None
    placements: tuple[Placement, ...]


def lower(
    model: ir.Model,
    choices: Sequence[Choice],
    *,
    fold: bool = True,
    native: Native | None = "actx",
    packed: Collection[str] = (),
    plugins: Collection[str] = (),
) -> Lowered:
    """Lower every site of a model to its chosen form. The model is not changed.

    Args:
        model: the model that the sites were lifted from.
        choices: at most one per site; sites without one are kept.
        fold: whether slopes are folded into the layers around a site.
        native: what the target's own graph is written in (see 6), None for no such graph.
        packed: names of gated sites whose product takes both factors out of one value (see 7).
        plugins: names of the sites that are actx nodes in a native graph of standard ops otherwise (see 8); for `native` None.

    Raises:
        Refusal: one of these cannot be packed.
    """
    with no_garbage_collection():
        return _lower(model, choices, fold=fold, native=native, packed=packed, plugins=plugins)


def _lower(
    model: ir.Model,
    choices: Sequence[Choice],
    *,
    fold: bool,
    native: Native | None,
    packed: Collection[str],
    plugins: Collection[str],
) -> Lowered:
    base = model.clone()
    scales = _fold_slopes(base, choices) if fold else {}
    products = pack(base, [choice.site for choice in choices], packed)
    _mark(base, choices)
    own = None
    if native is not None and (_has_nodes(base) or any(choice.rewritten for choice in choices)):
        own = base.clone()
        if native == "actx":
            _write_nodes(own, choices, scales, products)
        else:
            _write_standard(own, choices, scales, fused=True)
    elif plugins:
        own = base.clone()
        _write_some_nodes(own, choices, scales, products, plugins)
    return Lowered(base, own, _write_standard(base, choices, scales, fused=False))


def _has_nodes(model: ir.Model) -> bool:
    return any(node.domain == DOMAIN for node in model.graph)


def _write_standard(
    model: ir.Model, choices: Sequence[Choice], scales: Mapping[str, float], *, fused: bool
) -> tuple[Placement, ...]:
    """2 to 5, in place; where ops are fused, every form as itself."""
    constants = Constants(model.graph)
    decomposed = decompose(model, constants, fused=fused)
    values = _values(model.graph)
    placements = tuple(
        _place(model.graph, constants, values, decomposed, choice, scales.get(choice.site.name, 1.0), fused=fused)
        for choice in choices
    )
    RemoveUnusedNodesPass()(model)
    return placements


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    found.update((str(value.name), value) for node in graph for value in node.outputs)
    return found


def _fold_slopes(model: ir.Model, choices: Sequence[Choice]) -> dict[str, float]:
    """1. Return the slope of every site where it was folded."""
    values = _values(model.graph)
    scales: dict[str, float] = {}
    for choice in choices:
        slope = None if choice.fit is None else choice.fit.slope
        if slope is None or slope == 1:
            continue
        site = choice.site
        if fold_slope(model.graph, values[site.input], values[site.output], site.values, slope):
            scales[site.name] = slope
    return scales


def _mark(model: ir.Model, choices: Sequence[Choice]) -> None:
    values = _values(model.graph)
    for site in (choice.site for choice in choices):
        for name in site.values:
            node = values[name].producer()
            assert node is not None
            node.metadata_props[SITE_METADATA] = site.name


def _is_own(fit: Fit | None) -> bool:
    """Tell whether the form is as good as the source, apart from the rounding of its float32 tails far out.

    A source that is a hard swish with a slope is better written anew: then its slope can be folded.
    """
    return fit is not None and fit.core_error <= OWN_MATHEMATICS and fit.slope in {None, 1}


def _spline(choice: Choice, scale: float) -> Spline:
    """Return the spline that stands in the graph: g(x) = c s(x / c) where the slope c was folded."""
    found = choice.site.spline if choice.fit is None else choice.fit.spline
    assert found is not None
    spline: Spline = found
    return spline if scale == 1 else spline.scaled(1 / scale, scale)


def _place(
    graph: ir.Graph,
    constants: Constants,
    values: dict[str, ir.Value],
    decomposed: Mapping[str, tuple[str, ...]],
    choice: Choice,
    scale: float,
    *,
    fused: bool,
) -> Placement:
    site, fit = choice.site, choice.fit
    old = values[site.output]
    types = (op for name in site.values for op in decomposed.get(name, _op_types([values[name]])))
    ops = "+".join(dict.fromkeys(types))
    kept = Placement(site.name, ops, site.input, site.output, 1.0)
    if not choice.rewritten:
        return kept  # 2.
    last = old.producer()
    assert last is not None
    emit = Emitter(graph, constants, last, site.name, site.dtype, site.axis, fused=fused)
    own = fit is None or (_is_own(fit) and not fused)
    if isinstance(site.function, PolyNorm):  # 3.
        new = emit_polynorm(emit, values[site.input], site.function)
    elif fit is not None and fit.entries and not own:
        new = emit_mixture(emit, values, site, fit.entries)
    elif own:  # 4.
        op = standard_op(site, emit)
        if op is None or len(site.values) == 1:
            return replace(kept, own=True)
        new = emit.op(op[0], values[site.input], **op[1])
    else:  # 5, 6.
        new = emit_spline(emit, values[site.input], _spline(choice, scale))
    substitute(old, new)
    values[site.output] = new
    return Placement(site.name, "+".join(_op_types(emit.values)), site.input, site.output, scale, own=own)


def _op_types(values: Iterable[ir.Value]) -> list[str]:
    producers = (value.producer() for value in values)
    return list(dict.fromkeys(node.op_type for node in producers if node is not None))


def _write_nodes(
    model: ir.Model, choices: Sequence[Choice], scales: Mapping[str, float], products: Sequence[Product]
) -> None:
    """6 and 7, in place: one actx node per site that is rewritten, or was one in the source."""
    graph = model.graph
    written = _write_gated(model, choices, scales, products)
    choices = [choice for choice in choices if choice.site.name not in written]
    values = _values(graph)
    constants = Constants(graph)
    for choice in choices:
        site = choice.site
        if not choice.rewritten and site.spline is None:
            continue
        replaced = values[site.output if site.gate is None else site.gate.product]
        last = replaced.producer()
        assert last is not None
        emit = Emitter(graph, constants, last, site.name, site.dtype)
        multiplier = [] if site.gate is None else [values[site.gate.multiplier]]
        op, inputs = _node(emit, values, choice, scales.get(site.name, 1.0))
        new = emit.op(op.NAME, *inputs, *multiplier, domain=DOMAIN, **op.attributes())
        substitute(replaced, new)
        values[str(new.name)] = new
    graph.opset_imports[DOMAIN] = OPSET
    RemoveUnusedNodesPass()(model)


def _write_some_nodes(
    model: ir.Model,
    choices: Sequence[Choice],
    scales: Mapping[str, float],
    products: Sequence[Product],
    names: Collection[str],
) -> None:
    """8, in place. What would be one node for two sites is not, as each site is chosen by itself."""
    chosen = [choice for choice in choices if choice.site.name in names]
    _write_standard(model, [choice for choice in choices if choice not in chosen], scales, fused=False)
    _write_nodes(model, chosen, scales, [product for product in products if product.other_site is None])


def _node(emit: Emitter, values: Mapping[str, ir.Value], choice: Choice, scale: float) -> tuple[Op, list[ir.Value]]:
    """Return the op that a site becomes, and its inputs but for the multiplier."""
    site, function = choice.site, choice.site.function
    x = values[site.input]
    if isinstance(function, PolyNorm):
        parameters = (function.weights, np.array([function.bias]))
        constants = [emit.constants.get(p.astype(site.dtype.numpy()), site.dtype) for p in parameters]
        return PolyNormOp(function.epsilon), [x, *constants]
    if choice.fit is not None and choice.fit.entries:
        order, weights = emit_gates(emit, values, site)
        return SplineMixOp(tuple(choice.fit.entries[i] for i in order)), [x, weights]
    spline = _spline(choice, scale)
    if site.axis is not None and spline.axis is None:
        assert isinstance(function, ScalarFunction)
        assert function.channels is not None
        spline = spline.per_channel(function.channels, site.axis)
    return SplineOp(spline), [x]


def _write_gated(
    model: ir.Model, choices: Sequence[Choice], scales: Mapping[str, float], products: Sequence[Product]
) -> frozenset[str]:
    """7. Return the names of the sites that are done."""
    tables = {
        choice.site.name: _spline(choice, scales.get(choice.site.name, 1.0))
        for choice in choices
        if (choice.site.spline if choice.fit is None else not choice.fit.entries)
    }
    return write_gated(model, products, {choice.site.name: choice.site for choice in choices}, tables)
