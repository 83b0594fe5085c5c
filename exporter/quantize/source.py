"""What a scheme is applied to, and what comes of it: the same for every target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from actx.exporter.quantize.tables import site_function

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays, Data
    from actx.exporter.lower import Lowered
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class TableSite:
    """A site that may become a table.

    Attributes:
        name: the site's.
        function: what the graph computes there, of float64 arrays.
        input: name of the value it reads.
        output: name of the value it gives, of a gated site the product.
        multiplier: of a gated site, name of the other factor.
        axis: the channel axis, counted from the end, where the function differs per channel.
    """

    name: str
    function: Callable[..., Any]
    input: str
    output: str
    multiplier: str | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Quantized:
    """What came of it.

    Attributes:
        model: the graph.
        layers: names of the nodes that multiply or look rows up: an empty text for those in 8 bits, why not for the others.
        tables: of the sites that became tables, by name: the name of what a layer behind gives.
        open: of the sites that a layer in int8 reads and that are no tables, by name, why not.
        migrated: names of the values whose magnitude was moved into weights.
        calibrator: what found the ranges; None where there are none.
        corrected: whether biases take the mean error of the weights.
    """

    model: ir.Model
    layers: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    open: Mapping[str, str] = field(default_factory=dict)
    migrated: tuple[str, ...] = ()
    calibrator: str | None = None
    corrected: bool = False


@dataclass(frozen=True)
class Source:
    """What a scheme is applied to.

    Attributes:
        lowered: the graphs in the source's types.
        sites: the sites of single elements that may become tables.
        data: samples to calibrate on; not to be used where they are synthetic.
        original: the model as a file, which drift is measured against.
        metric: of that drift.
        max_drift: the budget; layers that break it stay in a finer precision. None for none.
        recover: whether what compensates for rounding is tried, and kept where the drift on held-out samples is less.
        calibrator: a name from `CALIBRATORS`; None leaves it open.
        exclude: regular expressions of names of nodes that stay in floating point.
        options: how models are run.
        architectures: those whose kernels the bundle carries, beside this machine's.
        progress: called with how much is done and how much there is to do.
    """

    lowered: Lowered
    sites: tuple[TableSite, ...]
    data: Data
    original: Path
    metric: str
    max_drift: float | None
    recover: bool
    calibrator: str | None
    exclude: tuple[str, ...]
    options: RuntimeOptions
    architectures: tuple[str, ...]
    progress: Progress | None = None

    @property
    def own(self) -> ir.Model:
        """The target's own graph, or the portable one where it has none."""
        return self.lowered.native or self.lowered.portable

    def feeds(self) -> Iterator[Arrays]:
        """Yield the samples batch by batch, and tell of it."""
        done = 0
        for batch in self.data.batches():
            yield batch.feeds
            done += batch.samples
            if self.progress is not None:
                self.progress(done, self.data.samples)


def table_sites(choices: Sequence[Choice], lowered: Lowered) -> tuple[TableSite, ...]:
    """Return the sites whose function is one of single elements, as the portable graph has them."""
    found = []
    for choice, place in zip(choices, lowered.placements, strict=True):
        function, gate = site_function(choice, place), choice.site.gate
        if function is not None:
            output, multiplier = (place.output, None) if gate is None else (gate.product, gate.multiplier)
            found.append(TableSite(place.site, function, place.input, output, multiplier, choice.site.axis))
    return tuple(found)
