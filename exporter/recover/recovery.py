"""Recover site by site, in the order of the graph.

1. One sample in four is held out. What follows is fitted on the others, and kept where it helps on these.
2. Where the site stands directly between two layers, its form is moved and stretched channel by channel (`alignment`), under
   the inputs that the site has in the original.
3. Every layer that reads the site's output, or the product of a gated site, is fitted anew (`refit`), so that it gives what it
   gives in the original for the same sample, although it reads what the rewritten graph has there by now. Where a residual is
   added to that, the sum is what has to agree: what earlier sites changed is made good as well.
4. A weight that other nodes read too stays theirs; the layer gets its own.
5. At the end the drift on the held-out samples decides about the whole: it is never worse than without.

Only what a layer's fit needs is run, from the model's inputs to the layer, batch by batch.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from actx.exporter.data import hold_out
from actx.exporter.drift import check
from actx.exporter.lift import ScalarFunction
from actx.exporter.lift.ops import op_of, tensor_of
from actx.exporter.linear import ADD, Layer, Refusal, layer_before, layers_behind
from actx.exporter.lower.fold import replace_constant
from actx.exporter.recover.alignment import Histogram, align
from actx.exporter.recover.refit import Moments, refit
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.save import save

if TYPE_CHECKING:
    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays, Data
    from actx.exporter.lower import Lowered, Placement
    from actx.exporter.runtimes.base import Session
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

Progress: TypeAlias = Callable[[int, int], None]

_PART = "part.onnx"


@dataclass(frozen=True)
class SiteRecovery:
    """What became of one rewritten site.

    Attributes:
        site: its name.
        layers: names of the values that the refitted layers give; none where nothing was kept.
        moved: channels whose form was moved.
        reason: what was done, or why nothing was.
        strength: of the ridge of the first layer; None where none was refitted.
        before: root mean square of what the layers lacked on held-out samples, relative to what they are to give; None where
            that was not measured.
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
        drift_before: of the portable graph on the held-out samples, without any recovery.
        drift: the same with what was kept.
    """

    lowered: Lowered
    sites: tuple[SiteRecovery, ...]
    drift_before: float
    drift: float


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
        ActxError: a part of a model cannot be run on the data, or there is only one sample.
    """
    places = {placement.site: placement for placement in lowered.placements}
    todo = [choice for choice in choices if choice.rewritten]
    fitted, held = hold_out(data)
    graphs = [graph.clone() for graph in (lowered.portable, lowered.native) if graph is not None]
    with tempfile.TemporaryDirectory(prefix="actx-") as folder:
        work = _Work(model, graphs, fitted, held, options, Path(folder))
        seen = work.observe(todo, places)
        entries = []
        for choice in todo:
            entries.append(_recover_site(work, choice, places[choice.site.name], seen.get(choice.site.name)))
            if progress is not None:
                progress(len(entries), len(todo))
        for graph in graphs:
            RemoveUnusedNodesPass()(graph)
        before, after = (work.drift(graph, metric) for graph in (lowered.portable, graphs[0]))
    if not after < before:
        reason = f"not kept: the drift on held-out samples would be {after:.3g} and not {before:.3g}"
        undone = [replace(e, layers=(), moved=0, reason=reason if e.layers or e.moved else e.reason) for e in entries]
        return Recovered(lowered, tuple(undone), before, before)
    native = graphs[1] if lowered.native is not None else None
    return Recovered(replace(lowered, portable=graphs[0], native=native), tuple(entries), before, after)


@dataclass(frozen=True)
class _Work:
    """The graphs, the data and where parts of them are run.

    Attributes:
        model: the original.
        graphs: those that are changed, the portable one first.
        fitted, held: the data.
        options: how parts are run.
        folder: for files.
    """

    model: ir.Model
    graphs: Sequence[ir.Model]
    fitted: Data
    held: Data
    options: RuntimeOptions
    folder: Path

    @property
    def portable(self) -> ir.Model:
        return self.graphs[0]

    @contextlib.contextmanager
    def part(self, model: ir.Model, outputs: Sequence[str]) -> Iterator[Session]:
        """Open what a model needs for some of its values, as a model that gives these."""
        inputs = [str(value.name) for value in model.graph.inputs]
        wanted = list(dict.fromkeys(outputs))
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            graph = ir.convenience.extract(model.graph, inputs, wanted)
            save({_PART: ir.Model(graph, ir_version=model.ir_version)}, Path(place))
            yield self.options.open(Path(place) / _PART)

    def observe(
        self, choices: Sequence[Choice], places: Mapping[str, Placement]
    ) -> dict[str, tuple[Histogram, Histogram]]:
        """2: count the inputs of sites in the original, by site; of the samples to fit on and of those held out."""
        found = {choice.site.name: _movable(self.model, choice, places[choice.site.name]) for choice in choices}
        layers = {name: layer for name, layer in found.items() if layer is not None}
        if not layers:
            return {}
        inputs = {name: str(layer.output.name) for name, layer in layers.items()}
        seen = {name: (Histogram(layer.width), Histogram(layer.width)) for name, layer in layers.items()}
        with self.part(self.model, list(inputs.values())) as session:
            for which, data in enumerate((self.fitted, self.held)):
                for feeds in data:
                    values = session.run(_known(feeds, session))
                    for name, layer in layers.items():
                        seen[name][which].update(layer.rows(values[inputs[name]]))
        return seen

    def drift(self, graph: ir.Model, metric: str) -> float:
        """5."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            save({"original.onnx": self.model, _PART: graph}, Path(place))
            report = check(
                Path(place) / "original.onnx", Path(place) / _PART, self.held, metric=metric,
                runtime=self.options, original_runtime=self.options,
            )  # fmt: skip
        return report.drift

    def value(self, name: str) -> ir.Value:
        """Return a value of the portable graph."""
        return _values(self.portable)[name]

    def set(self, value: ir.Value, node: ir.Node, tensor: ir.Tensor[Any]) -> None:
        """Give a node of the portable graph another constant in the place of a value, and the same node of the others."""
        index = list(node.inputs).index(value)
        output = str(node.outputs[0].name)
        for model in self.graphs:
            found = _values(model)[output].producer()
            assert found is not None
            replace_constant(model.graph, found, index, tensor)


def _values(model: ir.Model) -> dict[str, ir.Value]:
    return {str(value.name): value for node in model.graph for value in node.outputs}


def _known(feeds: Arrays, session: Session) -> Arrays:
    """Return the feeds that a part reads."""
    return {spec.name: feeds[spec.name] for spec in session.inputs}


def _recover_site(
    work: _Work, choice: Choice, place: Placement, seen: tuple[Histogram, Histogram] | None
) -> SiteRecovery:
    name, gate = choice.site.name, choice.site.gate
    if place.own or choice.fit is None:
        return SiteRecovery(name, (), 0, "nothing to recover: the form is as close as its source's own mathematics")
    try:
        read = work.value(choice.site.output if gate is None else gate.product)
        layers = layers_behind(read, "its output" if gate is None else "its product")
        _check_pointwise(layers)
    except Refusal as refusal:
        return SiteRecovery(name, (), 0, f"no layer is refitted: {refusal.reason}")
    moved = 0 if seen is None else _move(work, choice, place.scale, layers, seen)
    names = [str(layer.output.name) for layer in layers]
    refits = [_refit_layer(work, layer_before(work.value(name), "a layer", own=False)) for name in names]
    kept = tuple(name for name, found in zip(names, refits, strict=True) if found.kept)
    reason = "refitted" if kept else "not kept: held-out samples lack no less with it"
    lacked, lacking, given = (sum(getattr(found, part) for found in refits) for part in ("before", "after", "power"))
    return SiteRecovery(
        name, kept, moved, reason, next((found.strength for found in refits if found.kept), None),
        math.sqrt(lacked / given) if given else None, math.sqrt(lacking / given) if given else None,
    )  # fmt: skip


def _check_pointwise(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if not layer.pointwise:
            raise Refusal(f"{layer.node.op_type} reads more than one place")


def _movable(model: ir.Model, choice: Choice, place: Placement) -> Layer | None:
    """2: return the layer that gives a site its input, where the form has one table and nothing else reads the input."""
    site, fit = choice.site, choice.fit
    if (
        place.own
        or fit is None
        or fit.entries
        or site.axis is not None
        or not isinstance(site.function, ScalarFunction)
    ):
        return None
    value = _values(model)[site.input]
    if value.is_graph_output() or any(str(node.outputs[0].name) not in site.values for node in value.consumers()):
        return None
    try:
        layer = layer_before(value, "its input", own=False)
    except Refusal:
        return None
    return None if layer.bias is None else layer


def _move(work: _Work, choice: Choice, scale: float, behind: Sequence[Layer], seen: tuple[Histogram, Histogram]) -> int:
    """2. Return how many channels are moved. What the graph has as the site's input is `scale` times what f takes."""
    site, fit = choice.site, choice.fit
    assert fit is not None
    offset = site.gate is None and all(layer.bias is not None for layer in behind)
    found = align(site.function, fit.spline, *seen, offset=offset)
    before = layer_before(work.value(site.input), "its input", own=False)
    if not found.moved or any(layer.axis != before.axis for layer in behind):
        return 0
    assert before.bias is not None
    changes: list[tuple[ir.Value, ir.Node, ir.Tensor[Any]]] = [
        (before.weight, before.node, before.scaled(found.slope)),
        (before.bias, before.adder, before.bias_tensor(before.offsets() * found.slope + scale * found.shift)),
    ]
    for layer in behind:
        matrix = layer.matrix()
        changes.append((layer.weight, layer.node, layer.tensor(matrix * found.gain[:, None])))
        if layer.bias is not None:
            biases = layer.offsets() + (scale * found.offset) @ matrix
            changes.append((layer.bias, layer.adder, layer.bias_tensor(biases)))
    if not all(_is_finite(tensor) for *_, tensor in changes):
        return 0
    for change in changes:
        work.set(*change)
    return found.moved


@dataclass(frozen=True)
class _Refitted:
    """What became of a layer: squares that held-out samples lacked before and after, and of what they are to give."""

    before: float
    after: float
    power: float
    strength: float = 0.0
    kept: bool = False


def _refit_layer(work: _Work, layer: Layer) -> _Refitted:
    """3."""
    fitted, held, power = _moments(work, layer)
    change = refit(fitted, held, bias=layer.bias is not None)
    lacked = held.power
    if change is None:
        return _Refitted(lacked, lacked, power)
    weight = layer.tensor(layer.matrix() + change.weight)
    bias = None if layer.bias is None else layer.bias_tensor(layer.offsets() + change.bias)
    if not all(_is_finite(tensor) for tensor in (weight, bias) if tensor is not None):
        return _Refitted(lacked, lacked, power)
    work.set(layer.weight, layer.node, weight)
    if layer.bias is not None and bias is not None:
        work.set(layer.bias, layer.adder, bias)
    return _Refitted(lacked, change.after, power, change.strength, kept=True)


def _is_finite(tensor: ir.Tensor[Any]) -> bool:
    return bool(np.isfinite(tensor.numpy().astype(np.float64)).all())


def _moments(work: _Work, layer: Layer) -> tuple[Moments, Moments, float]:
    """Return what the layer reads and lacks on both parts of the data, and the squares of what it is to give where held out."""
    inputs, outputs = layer.matrix().shape
    fitted, held = Moments(inputs, outputs), Moments(inputs, outputs)
    power = 0.0
    read, given = str(layer.input.name), str(layer.output.name)
    summed = [given, *_residual(work, layer)]
    with work.part(work.model, summed) as original, work.part(work.portable, [read, *summed]) as rewritten:
        for moments, data in ((fitted, work.fitted), (held, work.held)):
            for feeds in data:
                wanted = original.run(_known(feeds, original))
                found = rewritten.run(_known(feeds, rewritten))
                lacking = sum(wanted[name].astype(np.float64) - found[name] for name in summed)
                moments.update(layer.rows(found[read]), layer.rows(np.asarray(lacking)))
                if moments is held:
                    power += float(np.square(wanted[given].astype(np.float64)).sum())
    return fitted, held, power


def _residual(work: _Work, layer: Layer) -> list[str]:
    """Return the name of what is added to a layer's output, where it is a value of the original too."""
    readers = layer.output.consumers()
    if layer.output.is_graph_output() or len(readers) != 1 or op_of(readers[0]) != ADD:
        return []
    others = [v for v in readers[0].inputs if v is not None and v is not layer.output and tensor_of(v) is None]
    known = _values(work.model)
    same = [v for v in others if str(v.name) in known and v.shape == layer.output.shape and v.shape is not None]
    return [str(v.name) for v in same]
