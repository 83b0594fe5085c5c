"""The plan of a launch: sizes, symbols, and how few kernels there are."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sympy
import torch

from actx.custom_ops import gpu, torch_ops
from actx.custom_ops.gpu.launch import compilation
from actx.custom_ops.ops import OPS, TensorType
from tests.op_cases import GPU_OPS, cases, channel_table, gelu_table

if TYPE_CHECKING:
    from actx.custom_ops.ops import Op

HALF = np.dtype(np.float16)


def types(*shapes: tuple[Any, ...] | None) -> list[TensorType | None]:
    return [None if shape is None else TensorType(HALF, shape) for shape in shapes]


@pytest.mark.parametrize("op_type", GPU_OPS)
def test_programs_cover_the_output(op_type: str) -> None:
    for case in list(cases(op_type))[::3]:
        inputs = [None if given is None else TensorType.of(given) for given in case.inputs]
        shape = case.op.output(inputs).shape
        assert shape is not None
        launch = gpu.plan(case.op, inputs)
        rows, cols, *_ = launch.integers
        assert rows * cols == math.prod(shape), str(case)
        tall, wide = launch.kernel.tile
        assert launch.grid == -(-rows // tall) * (1 if wide is None else -(-cols // wide)), str(case)


NODES: dict[str, tuple[Op, list[tuple[Any, ...] | None]]] = {
    "spline": (OPS["Spline"](gelu_table(16, 3)), [(None, 48), None]),
    "channels": (OPS["Spline"](channel_table(1, 48, 1)), [(None, 48), None]),
    "planes": (OPS["Spline"](channel_table(1, 6, 1)), [(None, 6, 8), None]),
    "gated": (OPS["GatedSpline"](gelu_table(16, 3)), [(None, 96)]),
    "pairs": (OPS["GatedSpline"](gelu_table(16, 3), None, -1, "interleaved"), [(None, 96)]),
    "mix": (OPS["SplineMix"]((gelu_table(16, 3),) * 3), [(None, 48), (None, 3), None]),
    "polynorm": (OPS["PolyNorm"](), [(None, 48), (3,), (1,), None]),
}


def sized(shapes: list[tuple[Any, ...] | None], rows: Any) -> list[TensorType | None]:
    return types(*(shape and tuple(rows if size is None else size for size in shape) for shape in shapes))


@pytest.mark.parametrize("name", NODES)
def test_sizes_may_be_symbols(name: str) -> None:
    """What a plugin compiles once, for any number of rows, is what is launched for a number of them."""
    op, shapes = NODES[name]
    rows = sympy.Symbol("rows", integer=True, positive=True)
    symbolic = sized(shapes, rows)
    sizes = gpu.view(op, symbolic)
    fixed = sizes[1] if isinstance(sizes[1], int) else None
    kernel, table = gpu.specialise(op, symbolic, fixed)
    programs = gpu.grid(kernel, *sizes[:2])
    for count in (1, 7, 4096):
        launch = gpu.plan(op, sized(shapes, count))
        values = [int(sympy.sympify(size).subs(rows, count)) for size in (*sizes[: len(launch.integers)], programs)]
        assert launch.table.tobytes() == table.tobytes()
        if fixed is not None:
            assert (launch.kernel, [*launch.integers, launch.grid]) == (kernel, values)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("rows", [1, 7, 16])
def test_what_is_compiled_is_right_for_every_number_of_rows(name: str, rows: int) -> None:
    op, shapes = NODES[name]
    open_, launch = compilation(op, sized(shapes, None)), gpu.plan(op, sized(shapes, rows))
    assert open_.aligned in {launch.aligned, None}
    assert open_.table.tobytes() == launch.table.tobytes()
    assert (open_.kernel.inputs, open_.kernel.integers) == (launch.kernel.inputs, launch.kernel.integers)
    assert compilation(op, sized(shapes, rows)).kernel == launch.kernel


def test_ranks_and_numbers_of_weights_must_be_known() -> None:
    with pytest.raises(ValueError, match="the rank of its input X is not known"):
        compilation(OPS["Spline"](gelu_table(4, 3)), [TensorType(HALF, None), None])
    for weights in ((None,), None):
        given = [TensorType(HALF, (2, 8)), TensorType(HALF, weights), TensorType(HALF, (1,)), None]
        with pytest.raises(ValueError, match="the number of its weights is not known"):
            compilation(OPS["PolyNorm"](), given)


@pytest.mark.parametrize(("name", "most"), {"channels": 4, "mix": 5, "polynorm": 10, "gated": 4}.items())
def test_sizes_choose_among_few_kernels(name: str, most: int) -> None:
    op, shapes = NODES[name]
    found = {str(gpu.specialise(op, sized(shapes, 8), cols)[0]) for cols in range(1, 40000, 97)}
    assert len(found) <= most


# --- in torch ---


@pytest.mark.parametrize("op_type", GPU_OPS)
def test_torch_has_a_kernel_for_cuda_tensors(op_type: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"actx::{OPS[op_type].TORCH_NAME}", "CUDA")


def test_without_triton_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = torch_ops._gpu_kernel(OPS["Spline"])
    with pytest.raises(gpu.GpuUnavailable, match=r"need Triton.*pip install 'actx\[gpu\]'"):
        run(torch.zeros(3), **gelu_table(16, 3).attributes())
