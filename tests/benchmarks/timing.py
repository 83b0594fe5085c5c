"""Take times of things that are to be compared: in turns, in one process, as medians."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from actx.exporter.machine import cpu_name
from actx.exporter.runtimes.onnxruntime import RuntimeOptions, inference_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray


def medians(
    runs: Mapping[str, Callable[[], object]], *, rounds: int = 25, calls: int = 1, seed: int = 0
) -> dict[str, float]:
    """Return the median of each in milliseconds per call.

    Args:
        runs: what to call, by name.
        rounds: in each, every one of them has its turn, in an order drawn anew; two go before that do not count.
        calls: made in a turn and timed together, where one is too short for the clock.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 2):
        for which in rng.permutation(len(names)):
            call = runs[names[which]]
            begin = time.perf_counter_ns()
            for _ in range(calls):
                call()
            times[names[which]].append((time.perf_counter_ns() - begin) / calls / 1e6)
    return {name: float(np.median(row[2:])) for name, row in times.items()}


class Memory:
    """The inputs and the output of what takes turns: all work on the same memory, aligned as ONNX Runtime's own is."""

    def __init__(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        self.inputs = {name: _value(array) for name, array in feeds.items()}
        self._outputs: dict[tuple[object, ...], ort.OrtValue] = {}

    def output(self, like: NDArray[Any]) -> ort.OrtValue:
        """Return the memory for outputs of this type and shape."""
        key = (like.dtype, like.shape)
        if key not in self._outputs:
            self._outputs[key] = _value(like)
        return self._outputs[key]


def _value(array: NDArray[Any]) -> ort.OrtValue:
    value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype)
    value.update_inplace(np.ascontiguousarray(array))
    return value


class Bound:
    """A session bound to memory, so that no call copies or allocates."""

    def __init__(
        self, model: onnx.ModelProto, memory: Memory, library: Path | None, threads: int, folder: Path
    ) -> None:
        file = folder / "model.onnx"
        file.write_bytes(model.SerializeToString())
        libraries = () if library is None else (library,)
        self._session = inference_session(
            file, RuntimeOptions(threads=threads, libraries=libraries, spin_between_runs=False)
        )
        self._binding = self._session.io_binding()
        for name, value in memory.inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        (output,) = self._session.get_outputs()
        (found,) = self._session.run(None, {name: value.numpy() for name, value in memory.inputs.items()})
        self._output = memory.output(found)
        self._binding.bind_ortvalue_output(output.name, self._output)

    def __call__(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def result(self) -> NDArray[Any]:
        """Run once and return a copy of the output."""
        self()
        array: NDArray[Any] = self._output.numpy().copy()
        return array


def machine() -> str:
    """Return what the times were taken on."""
    return f"{cpu_name()}, ONNX Runtime {ort.__version__}, numpy {np.__version__}"
