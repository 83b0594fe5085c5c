"""List the sites of a model, what is observed there, and what share of latency they have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actx.exporter.calibrate import SiteStatistics, calibrate
from actx.exporter.data import Data, load_data, synthetic_data
from actx.exporter.diagnosis import diagnose
from actx.exporter.ffn.modes import refusals
from actx.exporter.lift import Rejection, Site, lift
from actx.exporter.load import LoadedModel, load
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.workspace import workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actx.exporter.data import InputSpec
    from actx.exporter.tensorrt.shapes import ShapeRange

# Sizes of dynamic axes where no data tells them. At least 2, because some exporters specialise 1.
SYNTHETIC_BATCH = 2
SYNTHETIC_SIZE = 16


@dataclass(frozen=True)
class Inspection:
    """What a model's nonlinearities are.

    Attributes:
        model: the loaded model.
        sites: its sites, in graph order.
        rejections: what is nonlinear and no site, with the reason.
        ffn_rejections: why a gated FFN cannot be packed (``--ffn pack``), by the name of its site.
        statistics: what was observed on the data, by site name. Ranges of synthetic data say nothing about real ones.
        shares: share of latency by site name; None where its nodes were merged into a linear op by the runtime.
        activation_share: of all sites together; None where none was measured.
        synthetic: whether statistics and shares were taken on random input.
        notes: what was done to the data, and what is wrong with a site.
    """

    model: LoadedModel
    sites: tuple[Site, ...]
    rejections: tuple[Rejection, ...]
    ffn_rejections: Mapping[str, str]
    statistics: Mapping[str, SiteStatistics]
    shares: Mapping[str, float | None]
    activation_share: float | None
    synthetic: bool
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "format": self.model.format,
            "opset": self.model.opset,
            "inputs": [str(spec) for spec in self.model.inputs],
            "synthetic": self.synthetic,
            "activation_share": self.activation_share,
            "sites": [self._site(site) for site in self.sites],
            "rejections": [{"name": r.name, "ops": r.ops, "reason": r.reason} for r in self.rejections],
            "ffn_rejections": [{"name": name, "reason": reason} for name, reason in self.ffn_rejections.items()],
            "notes": list(self.notes),
        }

    def _site(self, site: Site) -> dict[str, Any]:
        observed = self.statistics.get(site.name)
        return {
            "name": site.name,
            "kind": site.kind,
            "entries": list(site.entries),
            "parameters": {name: value.tolist() for name, value in site.parameters.items()},
            "gated": site.gate is not None,
            "shape": None if site.shape is None else list(site.shape),
            "dtype": site.dtype.numpy().name,
            "elements_per_sample": None if observed is None else observed.elements,
            "range": None if observed is None or self.synthetic or observed.empty else [observed.low, observed.high],
            "zeros": None if observed is None else observed.zeros,
            "latency_share": self.shares.get(site.name),
        }


def inspect(
    model: Path | str,
    *,
    data: str | None = None,
    inputs: Sequence[InputSpec] = (),
    batch_size: int | None = None,
    trust: bool = False,
    factory: str | None = None,
    options: RuntimeOptions = DEFAULT,
) -> Inspection:
    """Load a model, find its sites, and measure them under ONNX Runtime.

    Args:
        model: the model (see `load`).
        data: samples (see `load_data`); without it random input, marked as synthetic.
        inputs: types and dimensions that the user states.
        batch_size: samples per run.
        trust: whether an archive or pickle may run the code it carries.
        factory: what makes the module for weights (see `load`).
        options: how to run it.

    Raises:
        ActxError: the model or the data cannot be read, or the model cannot be run.
    """
    loaded = load(Path(model), inputs=inputs, trust=trust, factory=factory)
    lifted = lift(loaded.model)
    samples = open_data(loaded, data, batch_size)
    with workspace(loaded) as original:
        statistics = calibrate(original, lifted.sites, samples, options)
        breakdown = options.node_times(original, next(iter(samples)), owners(lifted.sites))
    return Inspection(
        model=loaded,
        sites=lifted.sites,
        rejections=lifted.rejections,
        ffn_rejections=refusals(loaded.model, lifted.sites),
        statistics=statistics,
        shares=breakdown.sites,
        activation_share=breakdown.activation_share,
        synthetic=samples.synthetic,
        notes=(*samples.notes, *diagnose(lifted.sites, None if samples.synthetic else statistics)),
    )


def open_data(
    loaded: LoadedModel, source: str | None, batch_size: int | None, shapes: Mapping[str, ShapeRange] | None = None
) -> Data:
    """Open the user's data, or make random input of small sizes, within the shapes that are allowed, marked as synthetic."""
    if source is not None:
        return load_data(source, loaded.inputs, batch_size)
    sizes = {dim: SYNTHETIC_SIZE for spec in loaded.inputs for dim in spec.dims if isinstance(dim, str)}
    sizes |= {
        dim: batch_size or SYNTHETIC_BATCH for spec in loaded.inputs for dim in spec.dims[:1] if isinstance(dim, str)
    }
    for dim, allowed in (shapes or {}).items():
        if dim in sizes:
            sizes[dim] = min(max(sizes[dim], allowed.minimum), allowed.maximum)
    return synthetic_data(loaded.inputs, sizes)


def owners(sites: Sequence[Site]) -> dict[str, str]:
    """Return the site of every value that a site computes, the product of a gated one included: a form is one op with it."""
    return products(sites) | {value: site.name for site in sites for value in site.values}


def products(sites: Sequence[Site]) -> dict[str, str]:
    """Return the site of every gated product."""
    return {site.gate.product: site.name for site in sites if site.gate is not None}
