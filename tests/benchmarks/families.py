"""What becomes of Hugging Face model families: `python -m tests.benchmarks.families [--only NAME ...] [-o docs/families.md]`.

Each family of `tests.families` is saved as a folder and exported from it at spline:16x3, in a process of its own with a limit
of time. With `-o` the table is put into the page, in place of the one that is there, with the date and the versions.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime as dt
import importlib.metadata
import multiprocessing
import re
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actx.exporter import Form, export
from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError
from actx.exporter.machine import cpu_name
from tests.families import FAMILIES, draw, drift

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

FORM = "spline:16x3"
LIMIT = 600  # seconds
PACKAGES = ("transformers", "torch", "onnxruntime")
# Every process is forked from one that has imported what is slow to import, and has not computed anything.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.families", "actx.exporter.pipeline"])
TABLE = re.compile(r"^<!-- table -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """What came of a family.

    Attributes:
        family: its name.
        model: its class.
        inputs: whether the inputs had to be stated.
        found: the sites, by kind.
        expected: those that the configuration has.
        drift: 1 - mean cosine of the bundle's outputs against the torch module's, of the worst output.
        ratio: how many times faster than the original.
        error: the line that an export ended with.
    """

    family: str
    model: str = ""
    inputs: bool = False
    found: dict[str, int] = dataclasses.field(default_factory=dict)
    expected: dict[str, int] = dataclasses.field(default_factory=dict)
    drift: float | None = None
    ratio: float | None = None
    error: str = ""


def measure(name: str, runs: int | None) -> Row:
    """Export the family of that name."""
    family = FAMILIES[name]
    row = Row(name, family.model, bool(family.inputs), expected=dict(family.sites))
    with tempfile.TemporaryDirectory() as scratch:
        folder, data, out = Path(scratch) / name, Path(scratch) / "data.npz", Path(scratch) / "out"
        family.save(folder)
        try:
            specs = [InputSpec.parse(text) for text in family.inputs]
            feeds = draw(folder, specs)
            np.savez(data, **feeds)
            done = export(
                folder, out, form=Form.parse(FORM), data=str(data), inputs=specs, metric="cosine",
                measure_latency=runs != 0, runs=runs,
            )  # fmt: skip
        except ActxError as error:
            return dataclasses.replace(row, error=str(error).replace("\n", " "))
        latency = done.latency
        return dataclasses.replace(
            row,
            found=dict(Counter(site.kind for site in done.manifest.sites)),
            drift=drift(folder, out, feeds),
            ratio=None if latency is None else latency.comparison.paired_ratio,
        )


def run_alone(name: str, runs: int | None) -> Row:
    """Export a family in a process of its own."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_send, args=(sender, name, runs), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(LIMIT):
            return receiver.recv()  # type: ignore[no-any-return]
        row = Row(name, FAMILIES[name].model, error=f"not ready after {LIMIT} s")
    except EOFError:
        process.join()
        row = Row(name, FAMILIES[name].model, error=f"its process ended with {process.exitcode}")
    process.kill()
    return row


def _send(sender: Connection, name: str, runs: int | None) -> None:
    warnings.simplefilter("ignore")
    try:
        row = measure(name, runs)
    except Exception as error:  # noqa: BLE001 - a row of the table
        row = Row(name, FAMILIES[name].model, error=f"{type(error).__name__}: {error}")
    sender.send(row)


def table(rows: Sequence[Row]) -> str:
    """Write the rows in Markdown."""
    lines = [
        "| family | what it is | model | inputs | sites / activations | kinds | drift | latency ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if not row.error):
        counts = f"{sum(row.found.values())} / {sum(row.expected.values())}"
        inputs = "stated" if row.inputs else "of the folder"
        cells = [row.family, FAMILIES[row.family].kind, row.model, inputs, counts, _kinds(row.found)]
        lines.append(_line(*cells, _number(row.drift, ".1e"), _number(row.ratio, ".2f")))
    failed = [row for row in rows if row.error]
    if failed:
        lines += ["", "| family | model | what it ends with |", "|---|---|---|"]
        lines += [_line(row.family, row.model, row.error.replace("|", "\\|")) for row in failed]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _kinds(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())) or "none"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these families")
    parser.add_argument("--runs", type=int, help="rounds of the profile; 0 for none")
    parser.add_argument("--jobs", type=int, default=1, help="families at a time; with more than one, ratios mean less")
    parser.add_argument("-o", "--out", type=Path, help="the page to put the table into")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(lambda name: run_alone(name, arguments.runs), arguments.only or FAMILIES):
            rows.append(row)
            print(row, flush=True)
            if arguments.out:
                put_into(arguments.out, rows)
    print(table(rows))


def put_into(page: Path, rows: Sequence[Row]) -> None:
    """Put the table into a page, in place of the one that is there."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    block = f"<!-- table -->\n{dt.date.today()}, {versions}, {cpu_name()}.\n\n{table(rows)}\n<!-- end -->"
    page.write_text(TABLE.sub(lambda _: block, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
