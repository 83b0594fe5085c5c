"""Every case of every op on a GPU, against the float64 reference."""

from __future__ import annotations

import numpy as np
import torch

from actx.custom_ops import torch_ops
from actx.custom_ops.gpu.launch import gate_up, grid
from actx.custom_ops.gpu.run import launch
from actx.custom_ops.gpu.tables import pack
from actx.custom_ops.ops import OPS
from tests.custom_ops.gpu.interpreter import array, tensor
from tests.op_cases import Case, cases, gelu_table, numbers

assert torch_ops.onnx_translations  # registers torch.ops.actx


def check(op_type: str) -> tuple[int, list[str]]:
    """Return how many cases of the op were run, and those that break the contract."""
    found = list(cases(op_type))
    return len(found), [str(case) for case in found if not keeps_contract(case)]


def keeps_contract(case: Case) -> bool:
    """Tell whether the GPU's result is of the right type and shape and within what the op allows, NaN and infinities too."""
    given = [None if one is None else tensor(one).cuda() for one in case.inputs]
    result = array(getattr(torch.ops.actx, case.op.TORCH_NAME)(*given, **case.op.attributes()).cpu())
    expected = case.op.reference(case.inputs)
    right = (result.dtype, result.shape) == (expected.dtype, expected.shape)
    return right and bool(case.op.agrees(result, case.inputs).all())


def more_than_2_to_the_31_elements() -> bool:
    """Tell whether the last elements of a tensor too large for 32-bit offsets are right."""
    op, count = OPS["Spline"](gelu_table(16, 3)), 2**31 + 70_001
    x = torch.zeros(count, dtype=torch.bfloat16, device="cuda")
    tail = torch.linspace(-4, 4, 4096, dtype=torch.bfloat16, device="cuda")
    x[-4096:] = tail
    y = torch.ops.actx.spline(x, **op.attributes())
    return (
        bool(op.agrees(array(y[-4096:].cpu()), [array(tail.cpu()), None]).all()) and not y[: count - 4096].any().item()
    )


def replays_as_a_graph() -> bool:
    """Tell whether a captured CUDA graph computes what the calls do, on new data."""
    attributes = OPS["Spline"](gelu_table(16, 3)).attributes()
    x = torch.from_numpy(numbers(1, (64, 128), np.float32)).cuda()
    torch.ops.actx.spline(x, **attributes)  # compiles, and uploads the table
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = torch.ops.actx.spline(x, **attributes)
    x.copy_(torch.from_numpy(numbers(2, (64, 128), np.float32)))
    graph.replay()
    return torch.equal(y, torch.ops.actx.spline(x, **attributes))


def gate_up_is_right() -> bool:
    """Tell whether `gate_up` of whole numbers, whose sums bfloat16 holds, is within GatedSpline's contract of the product."""
    table, (rows, inner, cols) = gelu_table(16, 3), (300, 96, 200)
    x = torch.randint(-1, 2, (rows, inner)).to(torch.bfloat16)
    w = torch.randint(-1, 2, (inner, 2 * cols)).to(torch.bfloat16) / 8
    packed = pack(table, np.dtype(np.float32))
    kernel, y = gate_up(packed.constexprs()), torch.empty(rows, cols, dtype=torch.bfloat16, device="cuda")
    arguments = [x.cuda(), w.cuda(), y, torch.from_numpy(packed.numbers).cuda(), rows, cols, inner]
    launch(kernel, grid(kernel, rows, cols), arguments)
    product = array((x.double() @ w.double()).to(torch.bfloat16))
    return bool(OPS["GatedSpline"](table).agrees(array(y.cpu()), [product]).all())


def compiles() -> bool:
    """Tell whether torch.compile takes a call whole, for any number of rows."""
    attributes = OPS["GatedSpline"](gelu_table(16, 3)).attributes()

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.actx.gated_spline(x * 2, **attributes) + 1

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    inputs = [torch.randn(rows, 256, device="cuda") for rows in (2, 5, 64)]
    return all(torch.equal(compiled(x), function(x)) for x in inputs)
