"""A long run: `python -m tests.benchmarks.long_run`, a million inferences of one session from four threads.

The digits network is exported with every site as an actx node, in another process. Each thread sends single images, in an order
of its own, and compares the bits of every answer with those that the same session gave before the run, to one thread. Memory is
what the process holds (VmRSS) after each tenth of the inferences. The exit code is 1 where an answer differs, a thread fails or
memory grows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from actx.exporter import RuntimeOptions, session
from actx.exporter.machine import cpu_name, memory
from actx.models.demo import ARCHIVE, EVALUATION, demo_path

if TYPE_CHECKING:
    from actx.exporter.opening import Session

POINTS = 10
# Of what is held after the first tenth: beyond that, memory counts as growing.
GROWTH = 1.01


@dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        held: bytes after each tenth of the inferences.
        differing: answers that were not the bits of the reference.
        failed: what threads ended with.
        seconds: of all inferences.
    """

    held: tuple[int, ...]
    differing: int
    failed: tuple[str, ...]
    seconds: float

    @property
    def flat(self) -> bool:
        """Whether no tenth ended with more memory than the first, within `GROWTH`."""
        return max(self.held) <= GROWTH * self.held[0]


def serve(opened: Session, images: np.ndarray, inferences: int, threads: int) -> Run:
    """Run single images from several threads at once.

    Args:
        opened: one session, which all share.
        images: float32 [images, 1, 8, 8].
        inferences: in all, a multiple of `POINTS` times the threads.
        threads: how many.
    """
    feeds = [{"image": image[None]} for image in images]
    expected = [_bits(opened, feed) for feed in feeds]
    differing, failed = [0] * threads, list[str]()
    each = inferences // (POINTS * threads)

    def send(thread: int, point: int) -> None:
        rng = np.random.default_rng([thread, point])
        try:
            for index in rng.integers(len(feeds), size=each).tolist():
                differing[thread] += _bits(opened, feeds[index]) != expected[index]
        except Exception as error:  # noqa: BLE001 - it is told at the end
            failed.append(f"{type(error).__name__}: {error}")

    held = []
    begin = time.monotonic()
    for point in range(POINTS):
        senders = [threading.Thread(target=send, args=(thread, point)) for thread in range(threads)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        held.append(memory("VmRSS") or 0)
        print(f"{(point + 1) * each * threads:>9} inferences  {held[-1] / 2**20:7.1f} MiB", flush=True)
    return Run(tuple(held), sum(differing), tuple(failed), time.monotonic() - begin)


def _bits(opened: Session, feed: dict[str, np.ndarray]) -> bytes:
    (logits,) = opened.run(feed).values()
    return logits.tobytes()


def main() -> int:
    """Print memory at ten points, the answers that differ and the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inferences", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    images = np.load(demo_path(EVALUATION))["image"]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "out"
        export = [
            "export",
            str(demo_path(ARCHIVE)),
            "--form",
            "spline:16x3",
            "--no-check",
            "--no-profile",
            "-o",
            str(bundle),
        ]
        subprocess.run([sys.executable, "-m", "actx.cli.main", *export], check=True, stdout=subprocess.DEVNULL)
        opened = session(bundle, RuntimeOptions(threads=1), kernels=True)
        print(f"{opened.graph} {opened.reason}; ONNX Runtime {ort.__version__}, {cpu_name()}", flush=True)
        run = serve(opened, images, options.inferences, options.threads)
    print(
        f"{options.threads} threads: {run.differing} answers differ, {len(run.failed)} threads failed, memory "
        f"{'is flat' if run.flat else 'grows'}, {options.inferences / run.seconds:.0f} inferences/s, {run.seconds:.0f} s"
    )
    for failure in run.failed:
        print(failure, file=sys.stderr)
    return int(bool(run.differing or run.failed or not run.flat))


if __name__ == "__main__":
    raise SystemExit(main())
