"""Codes of weights: close, and with sums that are exact on every CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from actx.custom_ops.ops.qlinear import largest_fours
from actx.exporter.quantize.params import LEVELS, WeightCodes
from actx.exporter.runtimes.onnxruntime import RuntimeOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Two products of uint8 and int8 that are added in 16 bits: 255 * 128 is the most that fits.
MOST_OF_A_PAIR = 128
WEIGHTS = hnp.arrays(
    np.float32,
    st.one_of(
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), hnp.array_shapes(min_dims=4, max_dims=4, max_side=3)
    ),
    elements=st.floats(-1e3, 1e3, width=32),
)


@given(weight=WEIGHTS, axis=st.sampled_from([0, 1]))
def test_codes_are_within_half_a_step_and_pairs_fit(weight: NDArray[np.float32], axis: int) -> None:
    axis = axis if weight.ndim == 2 else 0
    found = WeightCodes.of(weight, axis)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.expand_dims(found.scales.astype(np.float64), others)
    assert (np.abs(found.numbers - weight) <= steps / 2 * (1 + 1e-6)).all()
    codes = np.moveaxis(found.codes, axis, 0).reshape(weight.shape[axis], -1).astype(int)
    assert np.abs(codes).max(initial=0) <= LEVELS
    pairs = codes[:, 0 : codes.shape[1] - 1 : 2] + codes[:, 1::2] if weight.ndim == 2 else 2 * codes
    assert np.abs(pairs).max(initial=0) <= MOST_OF_A_PAIR


@given(weight=WEIGHTS.filter(lambda weight: weight.ndim == 2), axis=st.sampled_from([0, 1]))
def test_narrow_codes_are_within_half_a_step_and_fours_fit(weight: NDArray[np.float32], axis: int) -> None:
    found = WeightCodes.of(weight, axis, narrow=True)
    steps = np.expand_dims(found.scales.astype(np.float64), 1 - axis)
    assert (np.abs(found.numbers - weight) <= steps / 2 * (1 + 1e-6)).all()
    assert np.abs(found.codes).max(initial=0) <= LEVELS
    assert largest_fours((found.codes if axis == 1 else found.codes.T).astype(int)).max(initial=0) <= MOST_OF_A_PAIR


def test_a_least_scale_is_kept() -> None:
    weight = np.array([[1e-9, 0.0, 1.0]])
    found = WeightCodes.of(weight, 1, least=np.array([1.0, 2.0, 1e-3]))
    assert found.scales.tolist() == [1.0, 2.0, np.float32(1 / LEVELS)]
    assert found.codes.tolist() == [[0, 0, 127]]


def test_an_output_whose_weights_have_both_signs_uses_all_codes() -> None:
    weight = np.array([[1, -1, 0.5, -0.25], [0, 0, 0, 0]], np.float32)
    found = WeightCodes.of(weight, 0)
    assert found.codes[0].tolist() == [127, -127, 64, -32]
    assert not found.codes[1].any()


def session(folder: Path, op: str, weight: NDArray[np.int8], shape: list[Any], **attributes: Any) -> Any:
    out = [None] * len(shape)
    values = [helper.make_tensor_value_info(*value) for value in (("x", TensorProto.UINT8, shape), ("y", 6, out))]
    node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "product.onnx")
    return RuntimeOptions(threads=1).open(folder / "product.onnx")


def adversary(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Weights of which most are near the largest: as many pairs as can be are at the limit."""
    weight = rng.choice([1, 1, 1, 0.99, 0.5, -1], shape)
    weight[0] = 1
    return weight.astype(np.float32)


@pytest.mark.parametrize("inputs", [1, 2, 3, 7, 8, 33, 64, 130])
@pytest.mark.parametrize("outputs", [1, 4, 16, 33])
def test_products_are_exact_on_this_machine(inputs: int, outputs: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(inputs * outputs)
    codes = WeightCodes.of(adversary(rng, outputs, inputs), 0).codes.T
    opened = session(tmp_path, "MatMulInteger", np.ascontiguousarray(codes), ["rows", inputs])
    for rows in (1, 2, 6, 33):
        x = rng.choice(np.array([255, 255, 255, 254, 128, 0], np.uint8), (rows, inputs))
        assert np.array_equal(opened.run({"x": x})["y"], x.astype(np.int64) @ codes.astype(np.int64))


@pytest.mark.parametrize(("channels", "group", "kernel"), [(1, 1, 3), (8, 1, 1), (8, 1, 3), (6, 2, 3), (16, 16, 3)])
def test_convolutions_are_exact_on_this_machine(channels: int, group: int, kernel: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(channels * kernel)
    codes = WeightCodes.of(adversary(rng, 16, channels // group, kernel, kernel), 0).codes
    opened = session(tmp_path, "ConvInteger", codes, ["batch", channels, 8, 8], group=group)
    x = rng.choice(np.array([255, 255, 255, 254, 0], np.uint8), (2, channels, 8, 8))
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.int64), (kernel, kernel), axis=(2, 3))
    grouped = windows.reshape(2, group, channels // group, *windows.shape[2:])
    own = codes.astype(np.int64).reshape(group, 16 // group, channels // group, kernel, kernel)
    expected = np.einsum("bgchwij,gocij->bgohw", grouped, own).reshape(2, 16, *windows.shape[2:4])
    assert np.array_equal(opened.run({"x": x})["y"], expected)
