"""`actx export`."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actx.cli import engine, options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actx.exporter.fitting import Form
    from actx.exporter.manifest import QuantizationEntry, SearchEntry, SiteEntry
    from actx.exporter.pipeline import Exported
    from actx.exporter.search.search import Plan

EXAMPLE = "Example: actx export model.pt2 --form pwl:16 --data calib.npz --max-drift 0.01 --metric cosine -o out"


def command(
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The bundle's folder.")] = Path("out"),
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="NAME",
            autocompletion=options.complete_target,
            help="ort-cpu, openvino, ort-cuda, trt, trt-rtx or onnx.",
        ),
    ] = "ort-cpu",
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            metavar="SCHEME",
            autocompletion=options.complete_scheme,
            help="fp16, bf16, int8, int8-dynamic, int8-fp16, int8-bf16, int4, fp8 or fp8-fp16, where the target has it "
            "(actx targets). Default: as the model is.",
        ),
    ] = None,
    calibrator: options.Calibrator = None,
    exclude: options.Exclude = None,
    require_int8_sites: options.RequireInt8Sites = False,
    form: options.ExportForm = None,
    site: Annotated[
        list[str] | None,
        typer.Option(
            "--site", metavar="NAME=FORM", help="A form for single sites: 'layers.*.act=pwl:16'. May be repeated."
        ),
    ] = None,
    ffn: options.Ffn = None,
    recover: options.Recover = False,
    data: options.DataSource = None,
    held_out: options.HeldOut = None,
    inputs: options.Inputs = None,
    factory: options.Factory = None,
    activations: options.Activations = None,
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", min=13, max=25, help="Of the output; the source's without it.")
    ] = None,
    batch_size: options.BatchSize = None,
    metric: options.Metric = "l2",
    max_drift: options.MaxDrift = None,
    log: options.Log = None,
    jobs: options.Jobs = 0,
    executor: options.ExecutorName = "local",
    max_time: options.MaxTime = None,
    search_samples: options.SearchSamples = 128,
    dry_run: options.DryRun = False,
    fold: Annotated[
        bool, typer.Option("--fold/--no-fold", help="Fold the slope of hardswish into the layers around it.")
    ] = True,
    weighted: Annotated[
        bool, typer.Option("--weighted/--even", help="Fit closer where the data is, or evenly.")
    ] = True,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Measure the drift.")] = True,
    profile: Annotated[bool, typer.Option("--profile/--no-profile", help="Measure the latency.")] = True,
    attribute: Annotated[
        bool | None,
        typer.Option(
            "--attribute/--no-attribute",
            help="Say which stage the drift comes from. Without it: where there are several, or the budget is missed.",
        ),
    ] = None,
    with_kernels: Annotated[
        str | None,
        typer.Option(
            "--with-kernels",
            metavar="ARCH,...",
            help="Put libraries into the bundle: x86_64,aarch64; for ort-cuda code: sm_87.",
        ),
    ] = None,
    shape: engine.Shapes = None,
    compute_capability: engine.ComputeCapabilities = None,
    timing_cache: engine.TimingCache = None,
    workspace: engine.Workspace = None,
    version_compatible: engine.VersionCompatible = None,
    strip_weights: engine.StripWeights = None,
    refit: engine.Refit = None,
    dla: engine.Dla = None,
    hardware_compatibility: engine.HardwareCompatibility = None,
    tf32: engine.Tf32 = None,
    builder_level: engine.BuilderLevel = None,
    runs: options.Runs = None,
    kernels: options.Kernels = None,
    threads: options.Threads = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the bundle at OUT.")] = False,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Rewrite a model into a bundle, check it and profile it.

    With --data and --max-drift the forms are searched for: the fastest on the target within the budget.
    A bundle whose drift exceeds --max-drift goes to OUT.rejected, the exit code is then 3 and OUT is left as it was. Where this
    machine lacks what the target needs, the exit code is 4 and OUT holds all the same what actx build finishes on the device.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter.pipeline import export, plan  # noqa: PLC0415
    from actx.exporter.tensorrt.options import BuildOptions  # noqa: PLC0415

    options.register_activations(activations)
    search = options.search_options(log, jobs, executor, max_time, search_samples)
    shared: dict[str, Any] = {
        "target": target, "quant": quant, "sites": _pins(site), "data": data, "held_out": held_out,
        "inputs": options.parse_inputs(inputs), "batch_size": batch_size, "metric": metric, "max_drift": max_drift,
        "fold": fold, "weighted": weighted, "recover": recover, "search": search, "trust": trust, "factory": factory,
        "opset": opset, "kernels": kernels, "options": options.runtime_options(threads),
    }  # fmt: skip
    if dry_run:
        _check_dry_run(form)
        with printing.progress_bar() as progress:
            planned = plan(model, out, **shared, progress=progress)
        print_plan(planned, json=json)
        return
    with reported(json=json) as done, printing.progress_bar() as progress:
        done.exported = export(
            model, out, **shared, form="auto" if form == options.AUTO else options.parse_form(form), **_ffn(ffn),
            measure_drift=check, measure_latency=profile, attribute=attribute, with_kernels=_names(with_kernels),
            shapes=engine.parse_shapes(shape),
            build=BuildOptions(**engine.parse_build(
                compute_capabilities=compute_capability, timing_cache=timing_cache, workspace=workspace,
                version_compatible=version_compatible, strip_weights=strip_weights, refit=refit, dla_core=dla,
                hardware_compatibility=hardware_compatibility, tf32=tf32, optimization_level=builder_level,
            )),
            runs=runs, force=force, progress=progress, calibrator=calibrator, exclude=exclude or (),
            require_int8_sites=require_int8_sites,
        )  # fmt: skip


def _check_dry_run(form: str | None) -> None:
    from actx.exporter.errors import UsageError  # noqa: PLC0415

    if form not in {None, options.AUTO}:
        raise UsageError(
            f"--dry-run is for a search, and --form {form} names a form", remedy="Leave --form out, or --dry-run."
        )


def print_plan(plan: Plan, *, json: bool) -> None:
    """Print what a search would measure."""
    from actx.cli import printing  # noqa: PLC0415

    if json:
        printing.print_json(asdict(plan))
        return
    rows = [
        ["to do: latency of a form, for all sites of one structure", str(plan.latencies)],
        ["to do: drift of a form at a site, at most", str(plan.trials)],
        ["of both in the log already", str(plan.known)],
    ]
    title = f"about {plan.seconds:.0f} s at most, and then the choices that are built and verified"
    printing.print_table(title, ("measurement", "number"), rows)


def _names(text: str | None) -> list[str]:
    """Read a list with commas."""
    return [name for part in (text or "").split(",") if (name := part.strip())]


@dataclass
class Done:
    """What an export made, once it has."""

    exported: Exported | None = None


@contextlib.contextmanager
def reported(*, json: bool) -> Iterator[Done]:
    """Print what the export made, one that missed its budget too."""
    from actx.cli import printing  # noqa: PLC0415
    from actx.exporter.pipeline import DriftExceeded, NotBuilt  # noqa: PLC0415

    done = Done()
    try:
        yield done
    except (DriftExceeded, NotBuilt) as error:
        done.exported = error.exported
        raise
    finally:
        if done.exported is not None and json:
            manifest = done.exported.manifest.model_dump(mode="json")
            printing.print_json({"bundle": str(done.exported.path), **manifest})
        elif done.exported is not None:
            print_exported(done.exported)


def _pins(texts: list[str] | None) -> dict[str, Form]:
    """Read the values of --site: NAME=FORM."""
    from actx.exporter.errors import UsageError  # noqa: PLC0415

    pins = {}
    for text in texts or ():
        name, separator, form = text.rpartition("=")
        if form == options.AUTO:
            raise UsageError(f"--site {text!r} pins no form", remedy="Leave it out: sites without a pin are searched.")
        parsed = options.parse_form(form) if separator and name else None
        if parsed is None:
            raise UsageError(
                f"--site {text!r} is not NAME=FORM", remedy="Write for example --site 'layers.*.act=pwl:16'."
            )
        pins[name] = parsed
    return pins


def _ffn(texts: list[str] | None) -> dict[str, Any]:
    """Read the values of --ffn, MODE or NAME=MODE; of several modes for the whole model, the last one counts."""
    named = [text.rpartition("=") for text in texts or ()]
    whole = [mode for _, separator, mode in named if not separator]
    return {
        "ffn": whole[-1] if whole else "auto",
        "ffn_sites": {name: mode for name, separator, mode in named if separator},
    }


def _remark(site: SiteEntry) -> str:
    if site.own_mathematics:
        return " (the source's own)"
    if site.recovery is not None and site.recovery.layers:
        return " (layers refitted)"
    return f" (slope {site.scale:.4g} folded)" if site.scale != 1 else ""


def _print_search(search: SearchEntry) -> None:
    """Print what can be had under other budgets, and what was built."""
    from actx.cli import printing  # noqa: PLC0415

    rows = [
        [f"{search.original_ms - point.saved_ms:.2f}", f"{point.drift:.3g}", _summary(point.forms)]
        for point in search.front
    ]
    printing.print_table("what can be had, as predicted", ("ms", f"drift ({search.metric})", "forms"), rows)
    built = [
        [
            f"{found.predicted_drift:.3g}", f"{float(found.drift):.3g}", found.verdict or "-",
            "-" if found.ratio is None else f"{found.ratio:.3f}", "taken" if found.taken else "", _summary(found.forms),
        ]
        for found in search.verified
    ]  # fmt: skip
    if built:
        columns = ("predicted drift", "measured", "latency", "ratio", "", "forms")
        printing.print_table(f"built and verified; the budget is {search.budget:g}", columns, built)


def _print_quantization(found: QuantizationEntry) -> None:
    """Print which layers compute in int8, and what became of the sites between them."""
    from actx.cli import printing  # noqa: PLC0415
    from actx.exporter.quantize.fused import SiteFusion  # noqa: PLC0415

    left = {name: reason for name, reason in found.layers.items() if reason}
    layers = f"{len(found.layers) - len(left)} of {printing.count(len(found.layers), 'layer')}"
    moved = f", magnitude moved at {printing.count(len(found.migrated), 'value')}" if found.migrated else ""
    printing.print_line("")
    printing.print_line(
        f"{layers} in int8, ranges by {found.calibrator}{moved}{', biases corrected' if found.corrected else ''}"
    )
    if left:
        names = "|".join(re.escape(name) for name in left)
        printing.print_table("layers in floating point", ("layer", "why"), list(left.items()))
        printing.print_line(f"as one expression, for --exclude and ModelOpt's nodes_to_exclude: {names}")
    rows = [
        [str(site["site"]), str(SiteFusion.from_dict(site)), "yes" if site["whole"] else "NO"] for site in found.fusion
    ]
    rows += [[name, reason, "NO"] for name, reason in found.open.items()]
    if rows:
        printing.print_table("sites that an int8 layer reads, as ONNX Runtime runs them", ("site", "as", "whole"), rows)


def _summary(forms: list[str]) -> str:
    """Say how many sites have each form, the most frequent first."""
    return ", ".join(f"{number} {form}" for form, number in Counter(forms).most_common())


def _packed(site: SiteEntry) -> str:
    """Say what became of the gated FFN that the site is a part of."""
    if site.ffn is None:
        return ""
    ratio = "" if site.ffn.latency is None else f" ({site.ffn.latency.ratio:.3f})"
    return f"{'packed' if site.ffn.packed else 'kept'}{ratio}"


def print_exported(exported: Exported) -> None:
    """Print what an export made."""
    from actx.cli import printing  # noqa: PLC0415

    manifest = exported.manifest
    rows = [
        [
            site.name, site.kind, site.form, printing.proved(site.fit), printing.interval(site.fit),
            site.lowering + _remark(site), _packed(site), site.reason,
        ]
        for site in manifest.sites
    ]  # fmt: skip
    columns = ("site", "kind", "form", "error at most", "on", "in model.onnx", "ffn", "why")
    printing.print_table(
        f"{printing.count(len(rows), 'site')} of {manifest.source.file} for {manifest.request.target}", columns, rows
    )
    if manifest.search is not None:
        _print_search(manifest.search)
    if manifest.quantization is not None and manifest.quantization.layers:
        _print_quantization(manifest.quantization)
    if exported.drift is not None:
        printing.print_drift(exported.drift)
    for report in exported.drifts[1:]:
        printing.print_drift_line(report)
    if exported.attribution is not None:
        printing.print_attribution(exported.attribution)
    for entry in manifest.engines.values():
        printing.print_engine(entry)
    notes = manifest.notes
    if exported.latency is not None:
        printing.print_latency(exported.latency)
        notes = [*notes, *(note for note in exported.latency.notes if note not in notes)]
    printing.print_notes(notes)
    printing.print_line(f"bundle: {exported.path}")
