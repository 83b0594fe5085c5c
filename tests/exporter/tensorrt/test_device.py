from __future__ import annotations

import numpy as np
import pytest

from actx.exporter.errors import TargetUnavailable
from actx.exporter.tensorrt import device

GPU, REASON = device.find_gpu()
needs_gpu = pytest.mark.skipif(GPU is None, reason=f"no GPU here: {REASON}")


@pytest.mark.skipif(GPU is not None, reason="there is a GPU")
def test_no_gpu_is_a_plain_case() -> None:
    assert REASON
    with pytest.raises(TargetUnavailable, match="an engine cannot be run without a GPU") as error:
        device.require_gpu("an engine cannot be run")
    assert error.value.note == REASON


@needs_gpu
@pytest.mark.parametrize("spin", [False, True])
def test_bytes_go_there_and_back(spin: bool) -> None:
    with (
        device.stream(spin=spin) as stream,
        device.device_memory(1000) as there,
        device.pinned_memory(1000) as source,
        device.pinned_memory(1000) as result,
    ):
        source[:] = np.arange(1000) % 251
        result[:] = 0
        stream.to_device(there, int(source.ctypes.data), 1000)
        with device.captured(stream, lambda: stream.to_host(int(result.ctypes.data), there, 1000)) as launch:
            launch()
            stream.wait()
        assert np.array_equal(source, result)
