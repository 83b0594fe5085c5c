"""What the verbs print: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from actx.exporter.drift import DriftReport
    from actx.exporter.latency import LatencyReport

# Wide enough for the tables where the terminal does not say: a pipe or a log.
PLAIN_WIDTH = 140


def print_json(value: Mapping[str, Any]) -> None:
    """Print the one machine-readable object."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def console() -> Console:
    """Return the console for results."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns other than the first are set right where they hold numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = i > 0 and all(_is_number(row[i]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _is_number(text: str) -> bool:
    return (
        text.strip("+-.%~ <>=x") == ""
        or text.lstrip("+-~<").rstrip("% xdBms").replace(".", "").replace("e-", "").isdigit()
    )


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function to report steps with: a bar on stderr where that is a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    stderr = Console(stderr=True)
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield report


def share(value: float | None) -> str:
    """Return a share as percent; `not measured` where there is none."""
    return "not measured" if value is None else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    """Return a number in four digits."""
    return "-" if value is None else f"{value:.4g}"


def decibels(value: float | None) -> str:
    """Return a signal-to-noise ratio."""
    if value is None:
        return "-"
    return "no noise" if value == float("inf") else f"{value:.1f} dB"


def print_drift(report: DriftReport) -> None:
    """Print what `check` measured."""
    mark = " [synthetic input]" if report.synthetic else ""
    rows = [
        [
            out.name, number(out.max_abs), number(out.mean_abs), number(out.l2), number(out.cosine), decibels(out.sqnr_db),
            share(None if out.top1 is None else 1 - out.top1) if out.top1 is not None else "-", number(out.kl),
        ]
        for out in report.outputs
    ]  # fmt: skip
    columns = ("output", "max abs", "mean abs", "rel. l2", "1 - cosine", "SQNR", "top-1 agreement", "KL")
    print_table(f"Drift over {report.samples} samples of {report.source}{mark}", columns, rows)
    if report.sites:
        rows = [[site.name, decibels(site.added_db), decibels(site.accumulated_db)] for site in report.sites]
        print_table(
            "SQNR per site: of what it adds itself, and of all up to it", ("site", "added", "accumulated"), rows
        )
    out = console()
    if report.accuracy is not None:
        before, after = report.accuracy.original, report.accuracy.artifact
        out.print(f"accuracy on the labels: {share(before)} before, {share(after)} after", markup=False)
    if report.worst_site is not None:
        out.print(f"the most noise arises at {report.worst_site}", markup=False)
    budget = "" if report.max_drift is None else f", budget {report.max_drift:g}: {'met' if report else 'MISSED'}"
    out.print(f"drift ({report.metric}{mark}): {report.drift:.6g}{budget}", markup=False)


def print_latency(report: LatencyReport) -> None:
    """Print what `profile` measured."""
    mark = " [synthetic input]" if report.synthetic else ""
    rows = [
        [name, *(f"{value:.3f}" for value in (row.min, row.p50, row.p90, row.p95, row.p99)), f"{row.throughput:.1f}"]
        for name, row in (
            ("original", report.original), ("artifact", report.artifact), ("original again", report.original_again)
        )
    ]  # fmt: skip
    columns = ("ms per run", "min", "p50", "p90", "p95", "p99", "samples/s")
    print_table(f"Latency over {report.runs} interleaved rounds on {report.source}{mark}", columns, rows)
    sites = sorted({*report.original_nodes.sites, *report.artifact_nodes.sites})
    if sites:
        before, after = report.original_nodes, report.artifact_nodes
        rows = [[site, share(before.sites.get(site)), share(after.sites.get(site))] for site in sites]
        rows.append(["all sites", share(before.activation_share), share(after.activation_share)])
        print_table("Share of latency", ("site", "original", "artifact"), rows)
    console().print(_verdict(report), markup=False)


def _verdict(report: LatencyReport) -> str:
    found = report.comparison
    low, high = found.interval
    interval = f"95% interval {low:.3f} to {high:.3f}"
    measured = f"ratio {found.paired_ratio:.3f} ({interval}; the original against itself {found.aa_ratio:.3f})"
    if found.verdict == "no difference":
        return f"latency: no difference beyond noise, {measured}"
    return f"latency: the artifact is {found.verdict}, {measured}"
