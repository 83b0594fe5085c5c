"""Peak memory of a process that opens a model and runs it once.

A fresh process imports what it needs and receives the feeds; then its high-water mark is set back, the model is opened and
run. What is reported is the new mark less the memory held before: the session, its weights, and all that one run needs.
The mark is VmHWM of /proc/self/status. `getrusage` does not do: its ru_maxrss begins with the parent's (execve keeps it).
"""

from __future__ import annotations

import contextlib
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from actx.exporter.data import Arrays
    from actx.exporter.runtimes.base import Runtime

_STATUS = Path("/proc/self/status")


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
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): sets the mark back to what is held
    before = _status("VmRSS")
    runtime.open(model).run(feeds)
    peak = _status("VmHWM")
    if before is not None and peak is not None:
        sys.stdout.write(str(peak - before))


def _status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1])


if __name__ == "__main__":
    _main()
