"""Measure what packing is worth: the FFN alone, with its own weights and forms, both ways in turn on the target's runtime.

The FFN is what lies between the value that both layers read and the output of the layer behind the product, or the product
where no layer reads it. It runs on what it reads of the first batch of data. FFNs of one shape and form are measured once.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter import bundle
from actx.exporter.errors import ActxError
from actx.exporter.ffn.halves import Halves
from actx.exporter.ffn.modes import Measured
from actx.exporter.latency import compare
from actx.exporter.lift.ops import op_of
from actx.exporter.lift.rule import is_linear
from actx.exporter.lower import lower
from actx.exporter.save import save
from actx.exporter.targets import Files, Graph

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays, Data
    from actx.exporter.ffn.product import Product
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.targets import Target

SECONDS = 8.0


@dataclass
class Meter:
    """Measures the FFNs of one export.

    Attributes:
        model: the loaded model.
        original: the same as a file.
        choices: the form of every site.
        target: what the export is for.
        quant: the scheme of the export.
        data: of which the first batch is run.
        fold: whether slopes are folded into the layers.
        kernels: as of the export.
        options: how models are run.
        wanted: whether latency is to be measured at all.
        seconds: that the rounds of one FFN may take.
    """

    model: ir.Model
    original: Path
    choices: Sequence[Choice]
    target: Target
    quant: str | None
    data: Data
    fold: bool
    kernels: bool | None
    options: RuntimeOptions
    wanted: bool
    seconds: float = SECONDS
    _known: dict[tuple[object, ...], Measured] = field(default_factory=dict)

    def __call__(self, product: Product) -> Measured:
        """Return what packing a product of two layers is worth."""
        if not self.wanted:
            return Measured(None, "latency was not to be measured")
        if self.target.has_engine:
            return Measured(None, f"{self.target.name} runs engines, and none is built of a part")
        try:
            return self._measured(product)
        except ActxError as error:  # a part need not run by itself
            return Measured(None, error.what)

    def _measured(self, product: Product) -> Measured:
        part = self._part(product)
        (x,) = part.graph.inputs
        feeds = self._input(str(x.name))
        names = {product.site, product.other_site}
        choices = [choice for choice in self.choices if choice.site.name in names]
        forms = [(choice.site.kind, str(choice.form)) for choice in choices]
        key = (_structure(part), feeds[str(x.name)].shape, str(forms))
        if key not in self._known:
            self._known[key] = self._compared(part, choices, product.site, feeds)
        return self._known[key]

    def _part(self, product: Product) -> ir.Model:
        """Return the FFN as a model of its own."""
        assert not isinstance(product.source, Halves)
        gate = next(choice.site.gate for choice in self.choices if choice.site.name == product.site)
        assert gate is not None
        values = ir.convenience.create_value_mapping(self.model.graph)
        end = values[gate.product]
        readers = end.consumers()
        if len(readers) == 1 and is_linear(readers[0]) and not end.is_graph_output():
            end = readers[0].outputs[0]
        try:
            graph = ir.convenience.extract(self.model.graph, [str(product.source.gate.input.name)], [str(end.name)])
        except ValueError as error:  # the layer behind reads something else too
            raise ActxError("the FFN cannot be taken out of the model", note=str(error)) from error
        return ir.Model(graph, ir_version=self.model.ir_version)

    def _input(self, name: str) -> Arrays:
        """Return what the FFN reads of the first batch."""
        batch = next(iter(self.data))
        if name in batch:
            return {name: batch[name]}
        return self.options.open(self.original, [name]).run(batch, [name])

    def _compared(self, part: ir.Model, choices: Sequence[Choice], site: str, feeds: Arrays) -> Measured:
        with tempfile.TemporaryDirectory(prefix="actx-") as folder:
            kept = self._written(part, choices, (), Path(folder) / "kept")
            packed = self._written(part, choices, (site,), Path(folder) / "packed")
            if not packed.on_target:
                return Measured(None, f"{self.target.name} does not run here")
            found = compare(
                kept.path,
                packed.path,
                feeds,
                runtime=packed.runtime,
                original_runtime=kept.runtime,
                seconds=self.seconds,
            )
        if math.isinf(found.noise):
            return Measured(None, f"{self.seconds:g} seconds are too short for a verdict")
        return Measured(found)

    def _written(self, part: ir.Model, choices: Sequence[Choice], packed: Collection[str], folder: Path) -> Graph:
        """Write the FFN one way and return what the target runs of it."""
        folder.mkdir()
        lowered = lower(part, choices, fold=self.fold, native=self.target.native, packed=packed)
        graphs, models = {"portable": bundle.PORTABLE}, {bundle.PORTABLE: lowered.portable}
        if lowered.native is not None:
            graphs[self.target.name] = bundle.graph_name(self.target.name)
            models[graphs[self.target.name]] = lowered.native
        save(models, folder)
        kernels = self.kernels if self.target.name in graphs else None
        return self.target.graph(Files(folder, graphs, {}, self.quant), self.options, kernels)


def _structure(part: ir.Model) -> tuple[object, ...]:
    """Return what makes two FFNs take the same time: their ops, and the types and shapes of their weights."""
    ops = tuple(op_of(node) for node in part.graph)
    weights = tuple((str(value.dtype), str(value.shape)) for value in part.graph.initializers.values())
    return (*ops, *weights)
