"""Time of lift, fit and lower: `python -m tests.benchmarks.pipeline [MODEL ...]`, or on graphs of 2,000 and 4,000 sites."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import onnx_ir as ir

from actx.exporter import Form
from actx.exporter.choose import choose
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.prepare import prepare
from actx.exporter.lower import lower
from actx.exporter.targets import find_target
from tests.networks import many_sites

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def measure(model: ir.Model, form: Form) -> tuple[int, list[float]]:
    """Return the number of sites and the seconds of lift, fit and lower."""
    seconds = []

    def timed(step: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = step()
        seconds.append(time.perf_counter() - start)
        return result

    lifted = timed(lambda: lift(model))
    choices = timed(lambda: choose(lifted.sites, find_target("ort-cpu"), form=form))
    timed(lambda: lower(model, choices))
    return len(lifted.sites), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--form", default="pwl:16", type=Form.parse)
    arguments = parser.parse_args()
    print("| model | sites | lift s | fit s | lower s | sum s |\n|---|---|---|---|---|---|")
    for path in arguments.models:
        _report(path.name, load(path).model, arguments.form)
    for sites in () if arguments.models else (2000, 4000):
        model = ir.from_proto(many_sites(sites))
        prepare(model)
        _report("synthetic", model, arguments.form)


def _report(name: str, model: ir.Model, form: Form) -> None:
    sites, seconds = measure(model, form)
    print(f"| {name} | {sites} | {' | '.join(f'{s:.2f}' for s in seconds)} | {sum(seconds):.2f} |")


if __name__ == "__main__":
    main()
