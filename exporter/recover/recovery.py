"""Recover site by site, in the order of the graph.

1. One sample in four is held out. What follows is fitted on the others, and kept where it helps on these.
2. Where the site stands directly between two layers, its form is moved and stretched channel by channel (`alignment`), under
   the inputs that the site has in the original.
3. Every layer that reads the site's output, or the product of a gated site, is fitted anew (`refit`), so that it gives what it
   gives in the original for the same sample, although it reads what the rewritten graph has there by now. Where a residual is
   added to that, the sum is what has to agree: what earlier sites changed is made good as well. Where a slope was folded into
   the layer because it leads to another site, it has to give so many times as much.
4. A weight that other nodes read too stays theirs; the layer gets its own.
5. At the end the drift on the held-out samples decides about the whole: it is never worse than without.

Both models are run part by part (`walk`). Where no layer can be fitted, nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.data import hold_out
from actx.exporter.drift import check
from actx.exporter.lift import ScalarFunction
from actx.exporter.lift.ops import LAYOUT, SUMS, op_of, tensor_of
from actx.exporter.linear import ADD, GEMM, Layer, Refusal, layer_before, layers_behind
from actx.exporter.lower.fold import replace_constant
from actx.exporter.metrics import check_metric
from actx.exporter.recover.alignment import Histogram, align
from actx.exporter.recover.refit import Moments, refit
from actx.exporter.recover.walk import Walk
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.save import save
from actx.exporter.scratch import scratch
from actx.exporter.workspace import ORIGINAL

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from actx.exporter.choose import Choice
    from actx.exporter.data import Data
    from actx.exporter.lower import Lowered, Placement
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

Progress: TypeAlias = Callable[[int, int], None]

_FITTED, _HELD = 0, 1


@dataclass(frozen=True)
class SiteRecovery:
    """What became of one rewritten site.

    Attributes:
        site: its name.
        layers: names of the values that the layers behind it give whose constants were changed; none where nothing was kept.
        moved: channels whose form was moved.
        reason: what was done, or why nothing was.
        strength: of the ridge of the first layer; None where none was refitted.
        before: root mean square of what the layers lacked on held-out samples, relative to what they are to give, once the form
            was moved; None where that was not measured.
        after: the same with the refitted layers.
    """

    site: str
    layers: tuple[str, ...]
    moved: int
    reason: str
    strength: float | None = None
    before: float | None = None
    after: float | None = None


@dataclass(frozen=True)
class Recovered:
    """What came of it.

    Attributes:
        lowered: the graphs, with the layers that were kept.
        sites: one entry per rewritten site, in the order of the graph.
        drift_before: of the portable graph on the held-out samples, without any recovery; None where nothing was changed, and
            so nothing measured.
        drift: the same with what was kept.
    """

    lowered: Lowered
    sites: tuple[SiteRecovery, ...]
    drift_before: float | None
    drift: float | None


def recover(
    lowered: Lowered,
    choices: Sequence[Choice],
    model: ir.Model,
    data: Data,
    *,
    metric: str = "l2",
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Recovered:
    """Fit the layers around the rewritten sites of a model anew. Neither the model nor the graphs are changed.

    Args:
        lowered: both graphs; the portable one is run.
        choices: what they were lowered from.
        model: the original, with standard ops only.
        data: samples to fit on; a quarter is held out.
        metric: of the drift that decides at the end (see `check`).
        options: how parts of the models are run.
        progress: called with the number of sites done and to do.

    Raises:
        UsageError: the metric is unknown, or applies to no output.
        ActxError: a part of a model cannot be run on the data, or there is only one sample, or only one batch of a model that
            fixes its size.
    """
    check_metric(metric)
    places = {placement.site: placement for placement in lowered.placements}
    graphs = [graph.clone() for graph in (lowered.portable, lowered.native) if graph is not None]
    tasks = [_task(model, graphs[0], choice, places[choice.site.name]) for choice in choices if choice.rewritten]
    if not any(task.layers for task in tasks):
        return Recovered(lowered, tuple(task.entry() for task in tasks), None, None)
    parts = hold_out(data)
    with scratch() as folder:
        in_turns = replace(options, spin_between_runs=False)  # spinning threads take the cores from the algebra
        original = Walk(model, parts, in_turns, folder / "original")
        rewritten = Walk(graphs[0], parts, in_turns, folder / "rewritten")
        scales = {placement.input: placement.scale for placement in lowered.placements}
        entries = _Work(model, graphs, scales, original, rewritten).recover(tasks, progress)
        if not any(entry.layers or entry.moved for entry in entries):
            return Recovered(lowered, tuple(entries), None, None)
        for graph in graphs:
            RemoveUnusedNodesPass()(graph)
        before, after = _drifts(model, (lowered.portable, graphs[0]), parts[_HELD], metric, options, folder)
    if not after <= before:
        reason = f"not kept: the drift on held-out samples would be {after:.3g} and not {before:.3g}"
        return Recovered(lowered, tuple(_undone(entry, reason) for entry in entries), before, before)
    native = graphs[1] if lowered.native is not None else None
    return Recovered(replace(lowered, portable=graphs[0], native=native), tuple(entries), before, after)


def _undone(entry: SiteRecovery, reason: str) -> SiteRecovery:
    """Return what became of a site whose layers are what they were."""
    if not entry.layers and not entry.moved:
        return entry
    return SiteRecovery(entry.site, (), 0, reason)


def _drifts(
    model: ir.Model, graphs: Sequence[ir.Model], held: Data, metric: str, options: RuntimeOptions, folder: Path
) -> list[float]:
    """5."""
    files = {f"{index}.onnx": graph for index, graph in enumerate(graphs)}
    save({ORIGINAL: model, **files}, folder)
    reports = (
        check(folder / ORIGINAL, folder / file, held, metric=metric, runtime=options, original_runtime=options)
        for file in files
    )
    return [report.drift for report in reports]


@dataclass(frozen=True)
class _Task:
    """What is to be done at a site.

    Attributes:
        choice: its form.
        place: where it is.
        layers: names of what the layers behind it give; none where none can be refitted.
        changed: names of what the nodes give whose constants may change: the first values that may differ afterwards.
        movable: whether the form may be moved.
        reason: why nothing is done.
    """

    choice: Choice
    place: Placement
    layers: tuple[str, ...] = ()
    changed: frozenset[str] = frozenset()
    movable: bool = False
    reason: str = ""

    def entry(self) -> SiteRecovery:
        """Return what becomes of a site at which nothing is done."""
        return SiteRecovery(self.choice.site.name, (), 0, self.reason)


def _task(model: ir.Model, portable: ir.Model, choice: Choice, place: Placement) -> _Task:
    """Look at the layers around a site, in both models."""
    if place.own or choice.fit is None:
        return _Task(choice, place, reason="nothing to recover: the form is as close as its source's own mathematics")
    gate = choice.site.gate
    read = choice.site.output if gate is None else gate.product
    try:
        behind = layers_behind(_values(portable)[read], "its output" if gate is None else "its product")
        _check_behind(behind, _values(model))
    except Refusal as refusal:
        return _Task(choice, place, reason=f"no layer is refitted: {refusal.reason}")
    changed = {layer.node for layer in behind}
    before = _layer_moved(model, portable, choice, behind)
    if before is not None:
        changed.add(before.node)
    return _Task(
        choice,
        place,
        layers=tuple(str(layer.output.name) for layer in behind),
        changed=frozenset(str(node.outputs[0].name) for node in changed),
        movable=before is not None,
    )


def _check_behind(layers: Sequence[Layer], known: Mapping[str, ir.Value]) -> None:
    for layer in layers:
        if not layer.pointwise:
            raise Refusal(f"{layer.node.op_type} reads more than one place")
        if str(layer.output.name) not in known:
            raise Refusal("the original has no such layer")


def _layer_moved(model: ir.Model, portable: ir.Model, choice: Choice, behind: Sequence[Layer]) -> Layer | None:
    """2: return the layer that takes the moves of a form's inputs; None where the form is not moved.

    A form with one table for all channels can be, whose input nothing else reads.
    """
    site, fit = choice.site, choice.fit
    whole = site.axis is None and isinstance(site.function, ScalarFunction) and fit is not None and not fit.entries
    value = _values(model).get(site.input)
    if not whole or value is None or value.is_graph_output():
        return None
    if any(str(node.outputs[0].name) not in site.values for node in value.consumers()):
        return None
    try:
        layer_before(value, "its input", own=False)
        before = layer_before(_values(portable)[site.input], "its input", own=False)
    except (Refusal, KeyError):  # what is packed differs between the two
        return None
    if before.bias is None or (op_of(before.node) == GEMM and not before.pointwise):
        return None
    fits = all(layer.axis == before.axis and len(layer.matrix()) == before.width for layer in behind)
    return before if fits else None


@dataclass(frozen=True)
class _Work:
    """The graphs, and where both models are run.

    Attributes:
        model: the original.
        graphs: those that are changed, the portable one first.
        scales: how many times the original's the inputs of sites are, by name of the value.
        original: the original on both parts of the data.
        rewritten: the portable graph on them.
    """

    model: ir.Model
    graphs: Sequence[ir.Model]
    scales: Mapping[str, float]
    original: Walk
    rewritten: Walk

    def recover(self, tasks: Sequence[_Task], progress: Progress | None) -> list[SiteRecovery]:
        """2 and 3."""
        entries: list[SiteRecovery] = []
        for index, task in enumerate(tasks):
            if task.layers:
                still = frozenset().union(*(following.changed for following in tasks[index:]))
                self.original.advance(still)
                self.rewritten.advance(still)
            entries.append(self._recover_site(task) if task.layers else task.entry())
            if progress is not None:
                progress(len(entries), len(tasks))
        return entries

    def _recover_site(self, task: _Task) -> SiteRecovery:
        moved = self._move(task) if task.movable else 0
        refits = [self._refit_layer(self._layer(name)) for name in task.layers]
        kept = tuple(name for name, found in zip(task.layers, refits, strict=True) if found.kept)
        lacked, lacking, given = (
            sum(getattr(found, part) for found in refits) for part in ("before", "after", "power")
        )
        return SiteRecovery(
            task.choice.site.name,
            task.layers if moved else kept,
            moved,
            "refitted" if kept else "not refitted: held-out samples lack no less with it",
            next((found.strength for found in refits if found.kept), None),
            math.sqrt(lacked / given) if given else None,
            math.sqrt(lacking / given) if given else None,
        )

    def _layer(self, name: str) -> Layer:
        """Return the layer of the portable graph that gives a value, as it is by now."""
        return layer_before(_values(self.graphs[0])[name], "a layer", own=False)

    def _move(self, task: _Task) -> int:
        """2. Return how many channels are moved. What the graph has as the site's input is `scale` times what f takes."""
        site, fit, scale = task.choice.site, task.choice.fit, task.place.scale
        assert fit is not None
        assert isinstance(site.function, ScalarFunction)
        before, behind = self._layer(site.input), [self._layer(name) for name in task.layers]
        seen = Histogram(before.width), Histogram(before.width)
        for part, values in self.original.values([site.input]):
            seen[part].update(before.rows(values[site.input]))
        offset = site.gate is None and all(layer.bias is not None for layer in behind)
        found = align(site.function, fit.spline, seen[_FITTED], seen[_HELD], offset=offset)
        if not found.moved:
            return 0
        offsets = before.offsets() * found.slope + scale * found.shift
        changes = _changes(before, before.scaled(found.slope), offsets)
        for layer in behind:
            matrix = layer.matrix()
            offsets = layer.offsets() + (scale * found.offset) @ matrix
            changes += _changes(layer, layer.tensor(matrix * found.gain[:, None]), offsets)
        return found.moved if _apply(changes, self.graphs) else 0

    def _refit_layer(self, layer: Layer) -> _Refitted:
        """3."""
        fitted, held, power = self._moments(layer)
        kept = _Refitted(held.power, held.power, power)
        change = refit(fitted, held, bias=layer.bias is not None)
        if change is None:
            return kept
        weight = layer.tensor(layer.matrix() + change.weight)
        with np.errstate(invalid="ignore"):
            after = held.error(layer.read(weight) - layer.matrix(), change.bias)  # its type may take back what was won
        changes = _changes(layer, weight, layer.offsets() + change.bias)
        if not after < held.power or not _apply(changes, self.graphs):
            return kept
        return _Refitted(held.power, after, power, change.strength, kept=True)

    def _moments(self, layer: Layer) -> tuple[Moments, Moments, float]:
        """Return what a layer reads and lacks on both parts of the data, and the power of what it is to give where held out."""
        inputs, outputs = layer.matrix().shape
        moments = Moments(inputs, outputs), Moments(inputs, outputs)
        read, given = str(layer.input.name), str(layer.output.name)
        power, scale = 0.0, _scale_of(layer.output, self.scales)
        summed = [given, *self._residual(layer)]
        pairs = zip(self.original.values(summed), self.rewritten.values([read, *summed]), strict=True)
        for (part, wanted), (_, found) in pairs:
            with np.errstate(invalid="ignore"):  # what is not finite is left out
                lacking = sum(scale * wanted[name].astype(np.float64) - found[name] for name in summed)
            moments[part].update(layer.rows(found[read]), layer.rows(np.asarray(lacking)))
            if part == _HELD:
                target = scale * wanted[given].astype(np.float64)
                power += float(np.square(target, where=np.isfinite(target), out=np.zeros_like(target)).sum())
        return *moments, power

    def _residual(self, layer: Layer) -> list[str]:
        """Return the name of what is added to a layer's output, where it is a value of the original too, of one shape."""
        readers = layer.output.consumers()
        if layer.output.is_graph_output() or len(readers) != 1 or op_of(readers[0]) != ADD:
            return []
        others = [v for v in readers[0].inputs if v is not None and v is not layer.output and tensor_of(v) is None]
        known = _values(self.model)
        return [str(v.name) for v in others if str(v.name) in known and _is_of_one_shape(v, layer.output)]


@dataclass(frozen=True)
class _Refitted:
    """What became of a layer: squares that held-out samples lacked before and after, and of what they are to give."""

    before: float
    after: float
    power: float
    strength: float = 0.0
    kept: bool = False


# The node that reads a constant, which of its inputs that is, and what it is to read.
_Change: TypeAlias = tuple[ir.Node, int, ir.Tensor[Any]]


def _changes(layer: Layer, weight: ir.Tensor[Any], offsets: NDArray[np.float64]) -> list[_Change]:
    """Return what gives a layer another weight, and where it has a bias other offsets, float64 [outputs]."""
    changes = [(layer.node, list(layer.node.inputs).index(layer.weight), weight)]
    if layer.bias is not None:
        changes.append((layer.adder, list(layer.adder.inputs).index(layer.bias), layer.bias_tensor(offsets)))
    return changes


def _apply(changes: Sequence[_Change], graphs: Sequence[ir.Model]) -> bool:
    """Make changes in all graphs, to one tensor each, unless a number would leave the range of its type; tell whether."""
    if not all(np.isfinite(tensor.numpy().astype(np.float64)).all() for _, _, tensor in changes):
        return False
    for model in graphs:
        values = _values(model)
        for node, index, tensor in changes:
            _replace(model.graph, values[str(node.outputs[0].name)].producer(), index, tensor)
    return True


def _replace(graph: ir.Graph, node: ir.Node | None, index: int, tensor: ir.Tensor[Any]) -> None:
    """4. Replace a constant of a node, and forget the old one if nothing else reads it."""
    assert node is not None
    old = node.inputs[index]
    assert old is not None
    if len(list(old.uses())) == 1 and old.is_initializer() and not old.is_graph_output():
        graph.initializers.pop(str(old.name))
    replace_constant(graph, node, index, tensor)


def _scale_of(value: ir.Value, scales: Mapping[str, float]) -> float:
    """3: return how many times the original's a value is: the ways that a slope is folded backward, taken forward."""
    while True:
        if str(value.name) in scales:
            return scales[str(value.name)]
        readers = value.consumers()
        if len(readers) != 1 or value.is_graph_output():
            return 1.0
        (node,) = readers
        shifted = op_of(node) in SUMS and any(tensor_of(v) is not None for v in node.inputs)
        if not shifted and not (op_of(node) in LAYOUT and node.inputs[0] is value):
            return 1.0
        value = node.outputs[0]


def _is_of_one_shape(a: ir.Value, b: ir.Value) -> bool:
    """Tell whether two values surely have the same sizes: sizes without a name may differ."""
    if a.shape is None or b.shape is None or a.shape != b.shape:
        return False
    return all(isinstance(dim, int) or dim.value is not None for dim in a.shape)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for node in model.graph for value in node.outputs}
