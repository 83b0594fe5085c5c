"""What a node for TensorRT holds: the launch as data, for any size, and code whose parameters are TensorRT's."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actx.custom_ops import gpu
from actx.custom_ops.gpu import GpuUnavailable
from actx.custom_ops.ops import OPS, TensorType
from actx.custom_ops.tensorrt import KernelNode, kernel_node
from actx.custom_ops.tensorrt.kernel_node import INPUT_COUNTS, SHARED_BYTES, axes
from actx.custom_ops.tensorrt.ptx import with_parameters
from tests.custom_ops.tensorrt.nodes import nodes, sized
from tests.op_strategies import any_case

if TYPE_CHECKING:
    from pathlib import Path

ARCHITECTURES = (75, 87, 90)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_integers_are_products_of_the_sizes_of_the_output(data: st.DataObject) -> None:
    case = data.draw(any_case(data.draw(st.sampled_from(list(OPS)))))
    inputs = [None if array is None else TensorType.of(array) for array in case.inputs]
    shape = case.op.output(inputs).shape
    assert shape is not None
    found = tuple(math.prod(shape[axis] for axis in of) for of in axes(case.op, inputs))
    assert found == gpu.view(case.op, inputs)


@pytest.fixture(scope="module", params=nodes())
def compiled(request: pytest.FixtureRequest) -> tuple[str, KernelNode]:
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    op, inputs = nodes()[request.param]
    return request.param, kernel_node(op, inputs, 87)[0]


def test_text_says_all_of_a_node(compiled: tuple[str, KernelNode]) -> None:
    _, node = compiled
    assert KernelNode.parse(node.text()) == node
    assert KernelNode.parse(node.text() + "\0") == node


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_a_node_launches_what_is_planned_for_its_sizes(compiled: tuple[str, KernelNode], rows: int) -> None:
    name, node = compiled
    op, open_inputs = nodes()[name]
    inputs = sized(open_inputs, rows)
    shape, planned = op.output(inputs).shape, gpu.plan(op, inputs)
    assert shape is not None
    integers = tuple(math.prod(shape[axis] for axis in of) for of in node.integers)
    assert integers == planned.integers
    if node.kernel == planned.kernel:  # that of a width which is not known is another one
        assert gpu.grid(node.kernel, *integers[:2]) == planned.grid
    else:
        assert name in {"spline", "unknown-width", "product", "pairs", "lut", "gated-lut"}


def test_table_is_the_planned_one() -> None:
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    for name in ("channels", "mix", "lut"):
        op, inputs = nodes()[name]
        table = kernel_node(op, inputs, 87)[1]
        planned = gpu.plan(op, sized(inputs, 5)).table
        assert (table.dtype, table.tobytes()) == (planned.dtype, planned.tobytes())


def parameters(ptx: str) -> list[str]:
    entry = re.search(r"\.entry (\w+)\(([^)]*)\)", ptx)
    assert entry is not None
    return [line.split()[1] for line in entry[2].split(",")]


def test_parameters_are_the_inputs_then_the_integers_then_the_output(compiled: tuple[str, KernelNode]) -> None:
    name, node = compiled
    given_inputs = sum(one is not None for one in nodes()[name][1])
    assert given_inputs + 1 in INPUT_COUNTS
    expected = [*[".u64"] * (given_inputs + 1), *[".u32"] * len(node.integers), ".u64"]
    assert parameters(node.ptx) == expected
    assert node.shared_bytes <= SHARED_BYTES


# The kernels' own parameters are the inputs with their stand-ins, the output, the table, the integers.
ORDERS = {
    "lut": (0, 2, 3, 4, 5, 1),
    "spline": (0, 3, 4, 5, 6, 2),
    "product": (0, 1, 3, 4, 5, 6, 2),
    "mix-product": (0, 1, 2, 4, 5, 6, 3),
    "polynorm": (0, 1, 2, 5, 6, 7, 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_parameters_keep_their_names(name: str) -> None:
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    op, inputs = nodes()[name]
    ptx = kernel_node(op, inputs, 87)[0].ptx
    entry = re.search(r"\.entry (\w+)\(([^)]*)\)", ptx)
    assert entry is not None
    assert [line.split()[-1] for line in entry[2].split(",")] == [f"{entry[1]}_param_{place}" for place in ORDERS[name]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_code_is_assembled(architecture: int, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    from triton import knobs  # noqa: PLC0415 - Triton may be absent

    for name in ("product", "mix", "polynorm-product"):
        op, inputs = nodes()[name]
        ptx = kernel_node(op, inputs, architecture)[0].ptx
        assert ".file" not in ptx  # no paths of this machine
        source = tmp_path / "kernel.ptx"
        source.write_text(ptx)
        target = re.search(r"\.target (\w+)", ptx)
        assert target is not None
        command = [
            knobs.nvidia.ptxas.path,
            f"--gpu-name={target[1]}",
            str(source),
            "-o",
            str(tmp_path / "kernel.cubin"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


SMALL = """
.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u32 f_param_1,
	.param .u64 f_param_2
)
{
	ld.param.b64 	%rd1, [f_param_0];
	ld.param.b32 	%r1, [f_param_1];
}
"""


def test_parameters_are_permuted_and_left_out() -> None:
    permuted = with_parameters(SMALL, "f", [1, 0])
    assert permuted.split("{")[1] == SMALL.split("{")[1]
    assert "f(\n\t.param .u32 f_param_1,\n\t.param .u64 .ptr .global .align 1 f_param_0\n)" in permuted


def test_a_parameter_that_is_used_is_not_left_out() -> None:
    with pytest.raises(ValueError, match="uses f_param_1"):
        with_parameters(SMALL, "f", [0, 2])


# --- what is refused ---


def test_unknown_architecture() -> None:
    op, inputs = nodes()["spline"]
    with pytest.raises(ValueError, match="no kernels for compute capability 70; available: 75, 80"):
        kernel_node(op, inputs, 70)


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    op, inputs = nodes()["spline"]
    with pytest.raises(GpuUnavailable, match=r"pip install 'actx\[gpu\]'"):
        kernel_node(op, inputs, 87)
