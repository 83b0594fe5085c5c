"""Behaviour of `exporter.footprint` on real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.exporter.errors import ActxError
from actx.exporter.runtimes.onnxruntime import DEFAULT

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 64


def model(folder: Path, rows: int) -> Path:
    """A product with a weight of 256 * `rows` bytes."""
    weight = numpy_helper.from_array(np.ones((WIDTH, rows), np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", rows])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    file = folder / f"{rows}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def test_weights_and_values_count_and_this_process_and_the_feeds_do_not(tmp_path: Path) -> None:
    held = np.ones(2**28, np.uint8)  # 256 MiB of this process
    one = {"x": np.ones((1, WIDTH), np.float32)}
    small = DEFAULT.peak_memory(model(tmp_path, 16), one)
    large = DEFAULT.peak_memory(model(tmp_path, 2**16), one)
    assert small is not None
    assert large is not None
    assert small < 2**26
    assert large - small > 2**24  # the weight
    many = DEFAULT.peak_memory(model(tmp_path, 16), {"x": np.ones((2**18, WIDTH), np.float32)})
    assert many is not None
    assert 2**23 < many - small < 2**25  # 16 MiB of values, of which the runtime may hold two, and not 64 of feeds
    assert held.all()


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ActxError, match=r"junk\.onnx") as caught:
        DEFAULT.peak_memory(tmp_path / "junk.onnx", {})
    assert caught.value.note == "4 bytes, which do not parse"
