"""`actx inspect`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from actx.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.inspection import Inspection
    from actx.exporter.manifest import Manifest
    from actx.exporter.targets import Graph

EXAMPLE = "Example: actx inspect model.pt2 --data calib.npz --explain"


def command(
    model: options.Model,
    data: options.DataSource = None,
    inputs: options.Inputs = None,
    factory: options.Factory = None,
    activations: options.Activations = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Also say why a nonlinear node is no site, and why a gated FFN cannot be packed."
        ),
    ] = False,
    batch_size: options.BatchSize = None,
    threads: options.Threads = 0,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """List the sites of a model, what they are and what they cost.

    A site is any connected region of elementwise ops that is a nonlinear function of one input, whatever it is called. Of a
    bundle, list what became of its sites and what is proved of their errors.
    """
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import inspect  # noqa: PLC0415
    from actx.exporter.bundle import is_bundle, read_bundle  # noqa: PLC0415
    from actx.exporter.errors import UsageError  # noqa: PLC0415
    from actx.exporter.opening import best_graph  # noqa: PLC0415

    options.register_activations(activations)
    if is_bundle(model):
        if data is not None or explain:
            raise UsageError(
                f"{model} is a bundle, of which the manifest is shown",
                note="--data and --explain look into models",
                remedy="Give the model it was made from, or its model.onnx.",
            )
        graph = best_graph(model, trust=trust)
        _, manifest = read_bundle(model)
        if json:
            from actx.exporter.measuring import site_layers  # noqa: PLC0415

            layers = {name: asdict(found) for name, found in site_layers(graph).items()}
            shown = {"graph": graph.path.name, "reason": graph.reason, "site_layers": layers}
            printing.print_json({**shown, **manifest.model_dump(mode="json")})
        else:
            _print_bundle(model, manifest, graph)
        return
    found = inspect(
        model, data=data, inputs=options.parse_inputs(inputs), batch_size=batch_size, trust=trust,
        factory=factory, options=options.runtime_options(threads),
    )  # fmt: skip
    if json:
        printing.print_json(found.to_dict())
        return
    _print(found, explain=explain)


def _print(found: Inspection, *, explain: bool) -> None:
    from actx.cli import printing  # noqa: PLC0415

    rows = []
    for site in found.to_dict()["sites"]:
        observed = site["range"]
        rows.append(
            [
                site["name"],
                site["kind"] + _parameters(site["entries"], site["parameters"]),
                "gated" if site["gated"] else "",
                _count(site["elements_per_sample"]),
                _range(observed, found.statistics.get(site["name"])),
                printing.share(site["zeros"]),
                printing.share(site["latency_share"]),
            ]
        )
    mark = " [synthetic input: no ranges]" if found.synthetic else ""
    model = found.model
    listed = printing.count(len(rows), "site")
    title = f"{listed} in {model.source.name}: {model.format}, opset {model.opset}{mark}"
    columns = ("site", "kind", "gated", "elements/sample", "observed range", "exact zeros", "share of latency")
    printing.print_table(title, columns, rows)
    if found.activation_share is not None:
        printing.print_line(
            f"all sites together: {printing.share(found.activation_share)} of latency (ONNX Runtime CPU)"
        )
    for note in found.notes:
        printing.print_line(f"Note: {note}")
    if explain:
        if found.rejections:
            printing.print_line("")
            printing.print_table(
                "No sites", ("region", "ops", "because"), _grouped((r.name, r.ops, r.reason) for r in found.rejections)
            )
        if found.ffn_rejections:
            printing.print_line("")
            printing.print_table(
                "Gated FFNs that --ffn pack leaves", ("site", "because"), _grouped(found.ffn_rejections.items())
            )


def _print_bundle(path: Path, manifest: Manifest, graph: Graph) -> None:
    from actx.cli import printing  # noqa: PLC0415
    from actx.exporter.measuring import site_layers  # noqa: PLC0415

    rows = []
    for site in manifest.sites:
        fit = site.fit
        where = "" if fit is None else printing.interval(fit) or "everywhere"
        rows.append(
            [
                site.name,
                site.kind,
                site.form,
                printing.proved(fit),
                where,
                "" if fit is None else printing.tails(fit.tails),
                "" if fit is None or fit.rms_error is None else printing.number(fit.rms_error),
            ]
        )
    source = f"{manifest.source.file} for {manifest.request.target}"
    columns = ("site", "kind", "form", "error at most", "on", "tails", "rms error on data")
    printing.print_table(f"{path.name}: {printing.count(len(rows), 'site')} of {source}", columns, rows)
    printing.print_line(f"graph to run here: {graph.path.name}, {graph.reason}")
    for engine in manifest.engines.values():
        printing.print_engine(engine)
    layers = site_layers(graph)
    if layers:
        printing.print_line("")
        rows = [
            [name, "yes" if found.one else "no", "yes" if found.shared else "", ", ".join(found.inputs),
             ", ".join(found.outputs), " + ".join(found.layers)]
            for name, found in layers.items()
        ]  # fmt: skip
        named = ("site", "one layer", "with others", "types in", "types out", "layers")
        printing.print_table("Sites in the engine", named, rows)
    printing.print_notes(manifest.notes)


def _grouped(rows: Iterable[tuple[str, ...]]) -> list[list[str]]:
    """Put the layers of a model, which have one number in their names, on one line each."""
    groups = Counter((re.sub(r"(?<=\.)\d+(?=\.)", "*", name), *rest) for name, *rest in rows)
    return [[name + (f" ({n} times)" if n > 1 else ""), *rest] for (name, *rest), n in groups.items()]


def _range(observed: list[float] | None, statistics: SiteStatistics | None) -> str:
    if observed is not None:
        return f"{observed[0]:.3g} .. {observed[1]:.3g}"
    return "nothing finite" if statistics is not None and statistics.empty else "not measured"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.10g}"


def _parameters(entries: list[str], parameters: dict[str, float | list[float]]) -> str:
    texts = [f"{name}=per channel" if isinstance(v, list) else f"{name}={v:.4g}" for name, v in parameters.items()]
    texts = [*entries, *texts]
    return f"({', '.join(texts)})" if texts else ""
