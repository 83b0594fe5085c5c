"""Verdicts on a machine with one core kept busy: `python -m tests.benchmarks.verdicts`.

Twenty equal matrix products are compared with themselves, where any difference is a false one, and with twenty-two, which is
10 % more of the same work. Each verdict is that of a fresh process, at the settings of `actx profile`.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import itertools
import math
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from actx.exporter import machine, profile

PRODUCTS = 20
MORE = 22
ROWS, WIDTH = 64, 256


def chain(products: int) -> onnx.ModelProto:
    """A row of products with one orthogonal matrix, so that values neither grow nor vanish."""
    weight, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))
    values = ["x", *(f"v{i}" for i in range(1, products)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b], name=b) for a, b in itertools.pairwise(values)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, WIDTH]) for name in "xy"]
    held = [numpy_helper.from_array(weight.astype(np.float32), "w")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def judge(original: Path, artifact: Path) -> tuple[str, float, float, float]:
    """Return the verdict, the log ratio, the seconds it took, and the cores that others kept busy."""
    begin = time.perf_counter()
    report = profile(original, artifact)
    busy = report.runtime["others_busy_cores"]
    return report.comparison.verdict, math.log(report.comparison.paired_ratio), time.perf_counter() - begin, busy


def measure(title: str, original: Path, artifact: Path, count: int) -> None:
    verdicts: collections.Counter[str] = collections.Counter()
    found = []
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
        for _ in range(count):
            found.append(fresh.submit(judge, original, artifact).result())
            verdicts[found[-1][0]] += 1
            print(f"{title}: {dict(verdicts)} of {len(found)}, ratio {math.exp(found[-1][1]):.3f}", flush=True)
    _, logs, seconds, busy = zip(*found, strict=True)
    names = ("no difference", "slower", "faster")
    low, middle, high = np.exp(np.percentile(logs, (5, 50, 95)))
    counts = " | ".join(str(verdicts[name]) for name in names)
    print("| compared | runs | no difference | slower | faster | median ratio | 5 % to 95 % | s each | others' cores |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {title} | {count} | {counts} | {middle:.3f} | {low:.3f} to {high:.3f} | {np.median(seconds):.1f} | "
        f"{np.median(busy):.1f} |",
        flush=True,
    )


def _keep_busy() -> None:
    parent = os.getppid()
    while os.getppid() == parent:  # no longer than the benchmark, however that ends
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--same", type=int, default=100, help="comparisons of the model with itself")
    parser.add_argument("--slower", type=int, default=10, help="comparisons with the slower model")
    parser.add_argument("--busy", type=int, default=1, help="processes that each keep a core busy")
    arguments = parser.parse_args()
    print(
        f"{machine.cpu_name()}, {os.cpu_count()} cores, onnxruntime {ort.__version__}, busy processes {arguments.busy}"
    )
    others = [multiprocessing.Process(target=_keep_busy, daemon=True) for _ in range(arguments.busy)]
    for other in others:
        other.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            base, slow = Path(folder) / "base.onnx", Path(folder) / "slow.onnx"
            onnx.save(chain(PRODUCTS), base)
            onnx.save(chain(MORE), slow)
            if arguments.slower:
                measure("10 % more work", base, slow, arguments.slower)
            if arguments.same:
                measure("itself", base, base, arguments.same)
    finally:
        for other in others:
            other.kill()


if __name__ == "__main__":
    main()
