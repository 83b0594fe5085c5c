"""The launcher of ONNX Runtime's CUDA provider, without a GPU: launches against the plan, and every failure. See session.py."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actx.custom_ops.ops import OPS
from tests.custom_ops.cpu.conftest import need, sanitized_library
from tests.custom_ops.cpu.nodes import is_inferred
from tests.custom_ops.gpu import session
from tests.custom_ops.gpu.session import build_driver, start
from tests.op_cases import GPU_OPS, Case, cases, gelu_table, numbers
from tests.op_strategies import any_case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.custom_ops.gpu.worker import Worker


def preloaded(*libraries: str) -> str:
    """What a process needs that loads a library with sanitizers, and did not itself begin with them."""
    ask = [["c++", f"-print-file-name={name}"] for name in libraries]
    return " ".join(subprocess.run(one, capture_output=True, text=True, check=True).stdout.strip() for one in ask)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("c++", "cmake")
    return tmp_path_factory.mktemp("launcher")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized_library(tmp_path_factory)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Leaks are counted by the driver: Python itself and ONNX Runtime keep memory until they end."""
    sanitizers = preloaded("libasan.so", "libubsan.so", "libstdc++.so.6")
    return {**os.environ, "LD_PRELOAD": sanitizers, "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture(scope="module")
def worker(folder: Path, library: Path, environment: dict[str, str]) -> Iterator[Worker]:
    found = start(library, build_driver(folder), environment)
    yield found
    found.close()


@pytest.fixture(scope="module")
def without_driver(library: Path, environment: dict[str, str]) -> Iterator[Worker]:
    found = start(library, None, environment)
    yield found
    found.close()


def case(shape: tuple[int, ...] = (5, 48)) -> Case:
    return Case("one", OPS["Spline"](gelu_table(16, 3)), (numbers(1, shape, np.float32), None))  # type: ignore[call-arg]


@pytest.mark.parametrize("op_type", GPU_OPS)
def test_launches_what_is_planned(worker: Worker, op_type: str) -> None:
    for one in list(filter(is_inferred, cases(op_type)))[::7]:
        worker.call(session.launches_as_planned, one, (), [87], 87)


@pytest.mark.parametrize("op_type", GPU_OPS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_launches_what_is_planned_for_any_sizes(worker: Worker, op_type: str, data: st.DataObject) -> None:
    """Whatever sizes were not known when it was compiled, and whatever it was compiled for."""
    one = data.draw(any_case(op_type).filter(is_inferred))
    assert one.inputs[0] is not None
    axes = range(one.inputs[0].ndim)
    unknown = data.draw(st.lists(st.sampled_from(axes), unique=True).map(tuple)) if axes else ()
    architectures = data.draw(st.sampled_from([[], [75], [80, 87], [90]]))
    worker.call(session.launches_as_planned, one, unknown, architectures, data.draw(st.sampled_from([75, 87, 90, 120])))


def test_an_empty_output_needs_no_launch(worker: Worker) -> None:
    assert worker.call(session.runs, case((0, 48))) == 0
    assert worker.call(session.runs, case()) == 1


def test_a_session_loads_once_and_frees_what_it_took(worker: Worker) -> None:
    assert worker.call(session.loads_once, case(), 3) == (1, 1, 3, 0)


def test_asks_for_more_shared_memory_than_is_given_unasked(worker: Worker) -> None:
    assert worker.call(session.shares_large_memory, case()) == 1


def test_without_a_driver_the_error_says_so(without_driver: Worker) -> None:
    message = "actx::Spline: the NVIDIA driver is not installed: libcuda.so.1: "
    with pytest.raises(RuntimeError, match=re.escape(message)):
        without_driver.call(session.runs, case())


@pytest.mark.parametrize(
    ("call", "result", "message"),
    [
        ("cuStreamGetCtx", 1, "cannot tell the context: the CUDA driver gives error 1 (an error of the test)"),
        ("cuCtxPushCurrent_v2", 1, "cannot make the context current: "),
        ("cuCtxGetDevice", 1, "cannot tell the device: "),
        ("cuDeviceGetAttribute", 1, "cannot tell the compute capability of the device: "),
        ("cuMemAlloc_v2", 2, "cannot allocate the table: "),
        ("cuMemcpyHtoD_v2", 1, "cannot copy the table to the device: "),
        (
            "cuModuleLoadData",
            209,
            "cannot load the code (PTX of 75): the CUDA driver gives error 209 (no kernel image is",
        ),
        ("cuModuleGetFunction", 500, "cannot find the kernel in its code: "),
        ("cuLaunchKernel", 701, "cannot launch the kernel: "),
    ],
)
def test_a_call_that_fails_is_an_error_of_the_run(worker: Worker, call: str, result: int, message: str) -> None:
    worker.call(session.fails, call, result)
    try:
        with pytest.raises(RuntimeError, match=re.escape(f"actx::Spline: {message}")):
            worker.call(session.runs, case())
    finally:
        worker.call(session.fails, call, 0)
    assert worker.call(session.held) == 0
    assert worker.call(session.runs, case()) == 1


def test_another_device_than_it_was_compiled_for(worker: Worker) -> None:
    message = (
        "actx::Spline: the device has compute capability 72, the kernel was compiled for PTX of 75, 87: "
        "export the model with --with-kernels sm_72"
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        worker.call(session.runs, case(), [87], 72)
    assert worker.call(session.held) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        *(({name: None}, f"the node has no attribute '{name}', which") for name in (
            "cuda_code", "cuda_code_sizes", "cuda_architectures", "cuda_aligned", "cuda_shared_bytes", "cuda_symbol",
            "cuda_threads", "cuda_table", "cuda_inputs", "cuda_rows", "cuda_integers", "cuda_tile",
        )),
        ({"cuda_code_sizes": [10**6]}, "the compiled kernel is damaged: cuda_code_sizes do not fit"),
        ({"cuda_code_sizes": [-1]}, "the compiled kernel is damaged: cuda_code_sizes do not fit"),
        ({"cuda_code_sizes": [4]}, "the compiled kernel is damaged: PTX does not end with a null"),
        ({"cuda_aligned": [1, 0]}, "the compiled kernel is damaged: its lists differ in length"),
        ({"cuda_shared_bytes": [-1]}, "the compiled kernel is damaged: cuda_shared_bytes"),
        ({"cuda_table": np.zeros(0, np.float32)}, "the compiled kernel is damaged: the table is empty"),
        ({"cuda_threads": 2048}, "the compiled kernel is damaged: cuda_threads"),
        ({"cuda_tile": [0, 16]}, "the compiled kernel is damaged: cuda_tile"),
        ({"cuda_tile": [16]}, "the compiled kernel is damaged: cuda_tile"),
        ({"cuda_integers": 4}, "the compiled kernel is damaged: cuda_integers"),
        ({"cuda_inputs": [5]}, "the compiled kernel is damaged: cuda_inputs has no such input"),
        ({"cuda_inputs": [1]}, "input 1 is missing"),
        ({"cuda_rows": 3}, "the compiled kernel is damaged: cuda_rows does not fit the rank"),
        ({"cuda_rows": -3}, "the compiled kernel is damaged: cuda_rows does not fit the rank"),
        ({"cuda_channel_axis": 2}, "axis 2"),
    ],
)  # fmt: skip
def test_refuses_what_is_missing_or_damaged(worker: Worker, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"actx::Spline: .*{re.escape(message)}"):
        worker.call(session.runs, case(), (), 87, changed)
    assert worker.call(session.held) == 0
