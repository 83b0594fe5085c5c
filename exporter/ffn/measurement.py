"""Measure what packing is worth: the FFN alone, with its own weights and forms, both ways in turn on the target's runtime.

The FFN is what lies between the value that both layers read and the output of the layer behind the product, or the product
where no layer reads it. It runs on what it reads of the first batch of data. FFNs of one shape and form are measured once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from actx.exporter.errors import ActxError
from actx.exporter.ffn.halves import Halves
from actx.exporter.ffn.modes import Measured
from actx.exporter.latency import compare
from actx.exporter.lift.rule import is_linear
from actx.exporter.part import read_values, structure_of, take_part, write_part
from actx.exporter.scratch import scratch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
    _known: dict[str, Measured] = field(default_factory=dict)

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
        batch = next(iter(self.data))
        feeds = read_values(self.original, batch, [str(x.name)], self.options)
        names = {product.site, product.other_site}
        choices = [choice for choice in self.choices if choice.site.name in names]
        forms = [(choice.site.kind, str(choice.form)) for choice in choices]
        key = str((structure_of(part), feeds[str(x.name)].shape, forms))
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
        return take_part(self.model, [str(product.source.gate.input.name)], [str(end.name)])

    def _compared(self, part: ir.Model, choices: Sequence[Choice], site: str, feeds: Arrays) -> Measured:
        with scratch() as folder:
            write = partial(
                write_part, part, choices, self.target,
                options=self.options, quant=self.quant, fold=self.fold, kernels=self.kernels,
            )  # fmt: skip
            kept = write(folder / "kept")
            packed = write(folder / "packed", packed=(site,))
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
