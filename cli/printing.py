"""What the verbs print: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

from actx.exporter.reporting.words import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from actx.exporter.attribution import Attribution
    from actx.exporter.devices.sweep import Outcome, R
    from actx.exporter.drift import DriftReport
    from actx.exporter.latency import LatencyReport
    from actx.exporter.manifest import EngineEntry, FitEntry
    from actx.exporter.runtimes.base import Breakdown

_NUMBER = re.compile(r"[+-]?(\d[\d.]*(e[+-]?\d+)?|inf|nan)( ?(%|dB|ms|KiB|MiB))?")
_NO_NUMBER = ("", "-", "not measured", "no noise")
_GAP = "  "
_RUNTIMES = {"openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
DRIFT_COLUMNS = ("device", "graph", "drift", "rel. l2", "max abs", "noisiest site", "budget")
LATENCY_COLUMNS = ("device", "graph", "original ms", "artifact ms", "ratio", "95% interval", "verdict", "throttled")
_TAILS = ("constant", "linear", "quadratic", "cubic")


def print_json(value: Mapping[str, Any]) -> None:
    """Print the one machine-readable object."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def print_line(text: str) -> None:
    """Print one line of a result."""
    sys.stdout.write(_printable(text) + "\n")


def _printable(text: str) -> str:
    from actx.exporter.errors import printable  # noqa: PLC0415 - the help needs nothing of the library

    return printable(text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a title and a table.

    Numbers are set right, and columns without any content are left out. Where the terminal is too narrow, each row's first
    cell, its name, gets a line of its own, so that names are never broken. A pipe or a file is as wide as it need be.
    """
    print_line(title)
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    cells = [[_printable(line[i]) for i in used] for line in (columns, *rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(used))]
    right = [i > 0 and _is_numeric([line[i] for line in cells[1:]]) for i in range(len(used))]
    total = sum(widths) + len(_GAP) * (len(widths) - 1)
    stacked = len(used) > 1 and sys.stdout.isatty() and total > shutil.get_terminal_size().columns
    for line in cells:
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        if stacked:
            print_line(line[0])
            padded[0] = ""
        print_line(_GAP.join(padded).rstrip())


def _is_numeric(cells: Sequence[str]) -> bool:
    return all(cell in _NO_NUMBER or _NUMBER.fullmatch(cell) for cell in cells)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function to report steps with: a bar on stderr where that is a terminal, nothing elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and of use on a terminal only
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report


def count(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def share(value: float | None) -> str:
    """Return a share as percent; `not measured` where there is none."""
    return "not measured" if value is None else f"{100 * value:.1f}%"


def tails(degrees: Sequence[int | None]) -> str:
    """Return what a function does at the ends of the line, left and right; nothing where it is not known."""
    return "" if None in degrees else " and ".join(_TAILS[degree] for degree in degrees if degree is not None)


def proved(fit: FitEntry | None) -> str:
    """Return the proved bound of a site's error, or what was sampled."""
    if fit is None:
        return "-"
    return f"~{fit.max_error:.4g}" if fit.certificate is None else bound(fit.certificate.error)


def interval(fit: FitEntry | None) -> str:
    """Return where a fit holds, nothing where that is everywhere."""
    return "" if fit is None or fit.interval is None else "[{:.4g}, {:.4g}]".format(*fit.interval)


def number(value: float | None) -> str:
    """Return a number in four digits."""
    return "-" if value is None else f"{value:.4g}"


def mebibytes(size: int | None) -> str:
    """Return a size in memory; `not measured` where there is none."""
    return "not measured" if size is None else f"{size / 2**20:.1f}"


def decibels(value: float | None) -> str:
    """Return a signal-to-noise ratio."""
    if value is None:
        return "-"
    return "no noise" if value == float("inf") else f"{value:.1f} dB"


def print_drift(report: DriftReport) -> None:
    """Print what `check` measured."""
    rows = [
        [
            out.name, number(out.max_abs), number(out.mean_abs), number(out.l2), number(out.cosine), decibels(out.sqnr_db),
            "-" if out.top1 is None else share(1 - out.top1), number(out.kl),
        ]
        for out in report.outputs
    ]  # fmt: skip
    columns = ("output", "max abs", "mean abs", "rel. l2", "1 - cosine", "SQNR", "top-1 agreement", "KL")
    print_device(report.runtime)
    print_line("")
    print_table(f"Drift of {report.graph}{_in(report.runtime)} over {_samples(report)}", columns, rows)
    if report.sites:
        print_line("")
        rows = [[site.name, decibels(site.added_db), decibels(site.accumulated_db)] for site in report.sites]
        print_table(
            "SQNR per site: of what it adds itself, and of all up to it", ("site", "added", "accumulated"), rows
        )
        if any(site.added_db is None for site in report.sites):
            print_line("-: the site is seen behind the layer that reads it, which adds noise of its own")
    if report.accuracy is not None:
        before, after = report.accuracy.original, report.accuracy.artifact
        print_line(f"accuracy on the labels: {share(before)} before, {share(after)} after")
    if report.worst_site is not None:
        print_line(f"of the sites, {report.worst_site} adds the most noise")
    print_drift_line(report)


def print_drift_line(report: DriftReport) -> None:
    """Print the drift, and what a budget says of it."""
    mark = ", synthetic input" if report.synthetic else ""
    budget = "" if report.max_drift is None else f", budget {report.max_drift:g}: {'met' if report else 'MISSED'}"
    print_line(f"drift ({report.metric}{mark}) of {report.graph}{_in(report.runtime)}: {report.drift:.6g}{budget}")


def print_attribution(found: Attribution) -> None:
    """Print which stages the drift comes from, and what to do about the places that add most noise."""
    print_line("")
    rows = [[stage.name, f"{stage.drift:.3g}", f"{stage.added:+.3g}"] for stage in found.stages]
    print_table(f"Drift ({found.metric}) after each stage, and what the stage adds", ("stage", "drift", "added"), rows)
    if found.verdict is not None:
        print_line(f"of the stages, {found.verdict} costs the most")
    if found.worst:
        print_line("")
        rows = [[place.name, decibels(place.added_db), place.stage, place.remedy] for place in found.worst]
        print_table("Where most noise is added", ("site or layer", "SQNR", "stage", "what to do"), rows)


def print_engine(entry: EngineEntry) -> None:
    """Print what an engine is, and the library's own command that builds the same."""
    facts = entry.facts
    ranges = ", ".join(f"{dim} {sizes}" for dim, sizes in facts["ranges"].items())
    gpus = ", ".join(facts["compute_capabilities"])
    parts = [
        f"{facts['bytes'] / 2**20:.1f} MiB by {facts['library']} {facts['version']}",
        f"for {ranges}" if ranges else "",
        f"for compute capability {gpus}" if gpus else "",
    ]
    print_line(f"engine {entry.file}: {'; '.join(part for part in parts if part)}")
    print_line(f"the same by its own tool, in that folder: {facts['command']}")


def _in(runtime: Mapping[str, Any]) -> str:
    """Say what ran a model, and in which types it was asked to compute, where that was not ONNX Runtime."""
    name = _RUNTIMES.get(runtime["runtime"])
    precision = runtime.get("precision_used")
    return "" if name is None else f" in {name}{f' ({precision})' if precision else ''}"


def print_notes(notes: Sequence[str]) -> None:
    """Print what a user should know of a result."""
    for note in notes:
        print_line(f"Note: {note}")


def _samples(report: DriftReport) -> str:
    where = "synthetic input" if report.synthetic else report.source
    return f"{count(report.samples, 'sample')} of {where}"


def print_latency(report: LatencyReport) -> None:
    """Print what `profile` measured."""
    rows = [
        [name, *(f"{value:.3f}" for value in (row.min, row.p50, row.p90, row.p95, row.p99)), f"{row.throughput:.1f}"]
        for name, row in (
            ("original", report.original), ("artifact", report.artifact), ("original again", report.original_again)
        )
    ]  # fmt: skip
    columns = ("ms per run", "min", "p50", "p90", "p95", "p99", "samples/s")
    where = "synthetic input" if report.synthetic else report.source
    turns = f"{report.original.runs} runs in {report.runs} interleaved rounds"
    print_line("")
    print_table(f"Latency of {report.graph}{_in(report.runtime)} over {turns} on {where}", columns, rows)
    rows = [
        [name, f"{row.load:.2f}", f"{row.first_run:.2f}", mebibytes(row.peak_memory)]
        for name, row in (("original", report.original_startup), ("artifact", report.artifact_startup))
    ]
    print_line("")
    print_table("Start and memory", ("", "ms to load", "ms of the first run", "peak MiB"), rows)
    sites = dict.fromkeys([*report.original_nodes.sites, *report.artifact_nodes.sites])
    if sites:
        before, after = report.original_nodes, report.artifact_nodes
        rows = [
            [
                site,
                share(before.sites.get(site)),
                share(after.sites.get(site)),
                ops_of(before, site),
                ops_of(after, site),
            ]
            for site in sites
        ]
        rows.append(["all sites", share(before.activation_share), share(after.activation_share), "", ""])
        print_line("")
        print_table(
            "Share of latency", ("site", "original", "artifact", "ran in the original", "in the artifact"), rows
        )
    print_device(report.runtime)
    print_line(_verdict(report))


def print_outcomes(
    outcomes: Sequence[Outcome[R]], columns: Sequence[str], row: Callable[[R], list[str]], *, json: bool
) -> None:
    """Print what came of several devices: a table of those that were measured, and why the others were not."""
    if json:
        print_json({"devices": [outcome.to_dict() for outcome in outcomes]})
        return
    rows, notes = [], []
    for outcome in outcomes:
        if outcome.report is not None:
            rows.append([outcome.device.name, *row(outcome.report)])
            notes += [f"{outcome.device.name}: {note}" for note in outcome.report.notes]
    if rows:
        print_table(f"{len(rows)} of {count(len(outcomes), 'device')}", columns, rows)
    print_notes(notes)
    for outcome in outcomes:
        if outcome.error is not None:
            note = f" ({outcome.error.note})" if outcome.error.note else ""
            print_line(f"{outcome.device.name} failed: {outcome.error.what}{note}")


def drift_row(report: DriftReport) -> list[str]:
    """Return the row of a device that was checked."""
    l2 = max((out.l2 for out in report.outputs if out.l2 is not None), default=None)
    max_abs = max((out.max_abs for out in report.outputs if out.max_abs is not None), default=None)
    budget = "" if report.max_drift is None else "met" if report else "MISSED"
    return [report.graph, f"{report.drift:.6g}", number(l2), number(max_abs), report.worst_site or "", budget]


def latency_row(report: LatencyReport) -> list[str]:
    """Return the row of a device that was profiled."""
    found = report.comparison
    low, high = found.interval
    interval = "-" if math.isinf(high) else f"{low:.3f} to {high:.3f}"
    throttled = _yes_or_no(report.runtime["throttled"])
    times = [f"{times.p50:.3f}" for times in (report.original, report.artifact)]
    return [report.graph, *times, f"{found.paired_ratio:.3f}", interval, found.verdict, throttled]


def print_device(runtime: Mapping[str, Any]) -> None:
    """Print what a device is, and how it or this machine fared during a measurement, as far as that is told."""
    device = runtime.get("device")
    if device is not None:
        parts = (
            device["model"] or "model not known",
            runtime["cpu"],
            count(runtime["cores"], "core"),
            runtime["system"],
            f"ONNX Runtime {runtime['onnxruntime']}",
        )
        print_line("")
        print_line(f"{device['name']}: {', '.join(parts)}")
    if "conditions" in runtime:
        _print_conditions(runtime, "this machine" if device is None else device["name"], everything=device is not None)


def _print_conditions(runtime: Mapping[str, Any], name: str, *, everything: bool) -> None:
    """Print how a machine fared, and the energy of a run: what is told, or everything."""
    fared = runtime["conditions"]
    stages = [[fared["before"]], fared["during"], [fared["after"]]]
    gpus = [[one["gpu"] for one in stage if one.get("gpu")] for stage in stages]
    rows = [
        ["governor", *(_names(stage) for stage in stages)],
        ["clock in MHz", *(_span([c for one in stage for c in one["clocks_mhz"] or ()]) for stage in stages)],
        ["highest temperature in °C", *(_highest(stage) for stage in stages)],
        ["clock held down", *(_yes_or_no(_any([one["throttled"] for one in stage])) for stage in stages)],
    ]
    of_gpu = [
        ["GPU clock in MHz", *(_span(_known(stage, "clock_mhz")) for stage in gpus)],
        ["GPU temperature in °C", *(_span(_known(stage, "temperature")) for stage in gpus)],
        ["GPU power in W", *(_span(_known(stage, "watts")) for stage in gpus)],
        ["GPU clock held down", *(_yes_or_no(_any([one["throttled"] for one in stage])) for stage in gpus)],
    ]
    told = [row for row in (*rows, *of_gpu) if set(row[1:]) != {share(None)}]
    if everything or told:
        print_table(f"{name} meanwhile", ("", "before", "during", "after"), rows if everything else told)
    energy = runtime["energy_per_run"]
    joules = [energy["original_joules"], energy["artifact_joules"]]
    if None not in joules:
        figures = "original {:.4g} J, artifact {:.4g} J".format(*joules)
        print_line(f"energy per run, of {energy['of']} with all that ran meanwhile: {figures}")
    elif everything:
        print_line(f"energy per run: not measured ({energy['missing']})")


def _known(stage: Sequence[Mapping[str, Any]], field: str) -> list[float]:
    return [one[field] for one in stage if one[field] is not None]


def _span(values: Sequence[float]) -> str:
    if not values:
        return share(None)
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _names(stage: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(name for one in stage for name in one["governors"] or ())) or share(None)


def _highest(stage: Sequence[Mapping[str, Any]]) -> str:
    values = [value for one in stage for value in (one["temperatures"] or {}).values()]
    return f"{max(values):.1f}" if values else share(None)


def _any(values: Sequence[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return any(known) if known else None


def _yes_or_no(value: bool | None) -> str:
    return share(None) if value is None else "yes" if value else "no"


def ops_of(nodes: Breakdown, site: str) -> str:
    """Return the types of the nodes that ran for a site."""
    return "+".join(dict.fromkeys(node.op_type for node in nodes.nodes if node.site == site)) or "-"


def _verdict(report: LatencyReport) -> str:
    found = report.comparison
    low, high = found.interval
    interval = "too few rounds for an interval" if math.isinf(high) else f"95% interval {low:.3f} to {high:.3f}"
    measured = f"ratio {found.paired_ratio:.3f} ({interval}; the original against itself {found.aa_ratio:.3f})"
    if found.verdict == "no difference":
        return f"latency: no difference beyond noise, {measured}"
    return f"latency: the artifact is {found.verdict}, {measured}"
