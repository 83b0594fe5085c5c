"""Peak memory of a process that opens a model and runs it once.

A fresh process imports what it needs and receives the feeds; then its high-water mark is set back, the model is opened and
run. What is reported is the new mark less the memory held before: the session, its weights, and all that one run needs.
The mark is VmHWM of /proc/self/status. `getrusage` does not do: its ru_maxrss begins with the parent's (execve keeps it).
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

from actx.exporter import machine
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.data import Arrays
    from actx.exporter.runtimes.base import Runtime


def peak_memory(runtime: Runtime, model: Path, feeds: Arrays) -> int | None:
    """Return the bytes that a fresh process needs to open a model and run it once.

    Args:
        runtime: how to run it.
        model: the file.
        feeds: one array per input; not counted.

    Returns:
        The bytes, or None where the system does not tell.

    Raises:
        ActxError: that process failed.
    """
    # -P: a file of the current folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "actx.exporter.footprint"]
    done = subprocess.run(command, input=pickle.dumps((runtime, model, feeds)), capture_output=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        notes = [line.removeprefix("Note: ") for line in lines if line.startswith("Note: ")]
        note = next(reversed([*lines[-1:], *notes]), f"its exit status is {done.returncode}")
        what = f"the memory of '{model}' cannot be measured in a process of its own"
        raise ActxError(what, note=note, remedy="Check it with onnx.checker.check_model.")
    text = done.stdout.decode()
    return int(text) if text else None


def _main() -> None:
    runtime, model, feeds = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent wrote it
    runtime.describe()  # the library is loaded for it, and not counted
    machine.lower_high_water_mark()
    before = machine.memory("VmRSS")
    runtime.open(model).run(feeds)
    peak = machine.memory("VmHWM")
    if before is not None and peak is not None:
        sys.stdout.write(str(peak - before))


if __name__ == "__main__":
    _main()
