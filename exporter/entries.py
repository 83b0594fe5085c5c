"""Entries of the manifest, from what the steps of the pipeline give."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from actx.exporter.curve import curve_entry, histogram
from actx.exporter.manifest import (
    AttributionEntry,
    CandidateEntry,
    CertificateEntry,
    DriftEntry,
    FfnEntry,
    FitEntry,
    LatencyEntry,
    PluginEntry,
    PointEntry,
    QuantizationEntry,
    RatioEntry,
    RecoveryEntry,
    SearchEntry,
    SiteEntry,
    StatisticsEntry,
    VerifiedEntry,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actx.exporter.attribution import Attribution
    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.choose import Choice
    from actx.exporter.drift import DriftReport
    from actx.exporter.ffn.modes import Decision
    from actx.exporter.fitting import Fit
    from actx.exporter.latency import Comparison, LatencyReport
    from actx.exporter.lower import Placement
    from actx.exporter.making import Job
    from actx.exporter.plugins import Plugin
    from actx.exporter.quantize.fused import SiteFusion
    from actx.exporter.quantize.source import Quantized
    from actx.exporter.recover import SiteRecovery
    from actx.exporter.search.search import Found


def site_entry(
    choice: Choice,
    place: Placement,
    observed: SiteStatistics | None,
    ffns: Sequence[Decision],
    plugins: Sequence[Plugin],
    recovery: SiteRecovery | None,
) -> SiteEntry:
    """Return the entry of one site."""
    site = choice.site
    plugin = next((decision for decision in plugins if decision.site == site.name), None)
    ffn = next((decision for decision in ffns if site.name in decision.sites), None)
    return SiteEntry(
        name=site.name,
        kind=site.kind,
        entries=list(site.entries),
        parameters={name: value.tolist() for name, value in site.parameters.items()},
        function=site.function.key,
        gated=site.gate is not None,
        shape=None if site.shape is None else list(site.shape),
        dtype=site.dtype.numpy().name,
        form=str(choice.form),
        reason=choice.reason,
        lowering=place.lowering,
        own_mathematics=place.own,
        input=place.input,
        output=place.output,
        scale=place.scale,
        fit=None if choice.fit is None else _fit_entry(choice.fit),
        statistics=None if observed is None else _statistics_entry(observed),
        curve=curve_entry(choice, observed),
        ffn=None if ffn is None else _ffn_entry(ffn),
        plugin=None if plugin is None else _plugin_entry(plugin),
        recovery=None if recovery is None else _recovery_entry(recovery),
    )


def _ffn_entry(decision: Decision) -> FfnEntry:
    return FfnEntry(
        mode=decision.mode,
        packed=decision.packed,
        reason=decision.reason,
        latency=_ratio_entry(decision.measured),
    )


def _plugin_entry(plugin: Plugin) -> PluginEntry:
    return PluginEntry(taken=plugin.taken, reason=plugin.reason, latency=_ratio_entry(plugin.measured))


def _ratio_entry(found: Comparison | None) -> RatioEntry | None:
    if found is None:
        return None
    return RatioEntry(verdict=found.verdict, ratio=found.paired_ratio, interval=found.interval)


def _statistics_entry(observed: SiteStatistics) -> StatisticsEntry:
    return StatisticsEntry(
        low=observed.low,
        high=observed.high,
        elements_per_sample=observed.elements,
        zeros=observed.zeros,
        histogram=histogram(observed),
    )


def _fit_entry(fit: Fit) -> FitEntry:
    ratio, proved = fit.ratio, fit.certificate
    return FitEntry(
        max_error=fit.max_error if math.isfinite(fit.max_error) else "inf",
        interval=fit.bounds,
        ratio_to_law=None if isinstance(ratio, float) and math.isinf(ratio) else ratio,
        slope=fit.slope,
        segments=fit.spline.segments,
        degree=fit.spline.degree,
        tails=fit.tail_degrees,
        rms_error=fit.rms,
        certificate=None if proved is None else CertificateEntry(error=proved.error, interval=proved.interval),
    )


def _recovery_entry(recovery: SiteRecovery) -> RecoveryEntry:
    return RecoveryEntry(
        layers=list(recovery.layers),
        moved=recovery.moved,
        reason=recovery.reason,
        strength=recovery.strength,
        before=recovery.before,
        after=recovery.after,
    )


def quantization_entry(quantized: Quantized, fusion: Sequence[SiteFusion]) -> QuantizationEntry:
    """Return what a scheme made of the graph, and ONNX Runtime of its tables."""
    return QuantizationEntry(
        calibrator=quantized.calibrator,
        corrected=quantized.corrected,
        migrated=list(quantized.migrated),
        layers=dict(quantized.layers),
        tables=dict(quantized.tables),
        open=dict(quantized.open),
        fusion=[site.to_dict() for site in fusion],
    )


def search_entry(found: Found, job: Job) -> SearchEntry:
    """Return what a search came to."""
    assert job.max_drift is not None
    return SearchEntry(
        budget=job.max_drift,
        metric=job.metric,
        samples=found.samples,
        original_ms=found.original_ms,
        share=found.share,
        candidates=[
            CandidateEntry(
                site=known.site,
                form=str(known.form),
                saved_ms=known.latency.saved_ms,
                drift=None if known.trial is None else _drift(known.trial.drift),
                reason=known.reason,
            )
            for known in found.candidates
        ],
        front=[
            PointEntry(forms=list(forms), saved_ms=point.saved_ms, drift=point.drift) for point, forms in found.points()
        ],
        verified=[
            VerifiedEntry(
                forms=[str(choice.form) for choice in built.choices],
                predicted_saved_ms=built.saved_ms,
                predicted_drift=built.drift,
                drift=_infinite(built.outcome.drift),
                verdict=built.outcome.verdict,
                ratio=built.outcome.ratio,
                taken=built is found.taken,
            )
            for built in found.verified
        ],
        reason=found.reason,
    )


def attribution_entry(found: Attribution) -> AttributionEntry:
    """Return where the drift comes from; its notes are the manifest's."""
    return AttributionEntry.model_validate({name: part for name, part in found.to_dict().items() if name != "notes"})


def _drift(drift: float | None) -> float | Literal["inf"] | None:
    return None if drift is None else _infinite(drift)


def _infinite(drift: float) -> float | Literal["inf"]:
    return drift if math.isfinite(drift) else "inf"


def drift_entry(report: DriftReport) -> DriftEntry:
    """Return the entry of one graph's drift."""
    return DriftEntry.model_validate(report.to_dict())


def latency_entry(report: LatencyReport) -> LatencyEntry:
    """Return the entry of the latency."""
    return LatencyEntry.model_validate(report.to_dict())
