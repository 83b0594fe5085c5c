"""Check and time the GPU kernels on this machine: see run.sh.

A time is the median of CUDA events around one launch, the L2 cache overwritten before each; contenders of a row take turns. A
share is of the bandwidth of a device-to-device copy of 1 GiB measured in the same process, bytes read plus bytes written.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
from torch.nn import functional

from actx.custom_ops.cpu.build import BuildError, build
from actx.custom_ops.gpu.launch import activation, exact, gate_up, grid
from actx.custom_ops.gpu.run import launch, run
from actx.custom_ops.gpu.tables import pack
from actx.custom_ops.ops import OPS, TensorType
from actx.custom_ops.torch_ops import _DTYPES
from tests.gpu import contract, onnxruntime_cuda
from tests.op_cases import GPU_OPS, gelu_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from actx.custom_ops.gpu.launch import Kernel
    from actx.custom_ops.ops import Op

ROWS = 8192
COLUMNS = (3072, 4096, 8192, 11008, 14336)
LONG = (8192, 16384, 24576, 32768, 40960, 65536)
LAYERS, INNER = (3072, 8192, 14336), 4096
REPEATS = 60
FLUSHED = 2**29  # bytes: several times any L2 cache
BF16 = torch.bfloat16


def medians(contenders: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median time of each in seconds."""
    scratch = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for function in contenders.values():
        for _ in range(3):
            function()
    for _ in range(REPEATS):
        for name, function in contenders.items():
            scratch.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3)
    return {name: statistics.median(one) for name, one in times.items()}


def copy_bandwidth() -> float:
    """Return bytes read plus bytes written per second."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda").random_(-128, 127)
    target = torch.empty_like(source)
    return 2 * source.numel() / medians({"copy": lambda: target.copy_(source)})["copy"]


def caller(op: Op, *tensors: torch.Tensor | None) -> Callable[[], torch.Tensor]:
    """Return a launch of a node, without the cost of torch's dispatch."""
    types = [None if t is None else TensorType(_DTYPES[t.dtype], tuple(t.shape)) for t in tensors]
    result = op.output(types)
    assert tensors[0] is not None
    assert result.shape is not None
    dtype = next(one for one, known in _DTYPES.items() if known == result.dtype)
    output = tensors[0].new_empty(result.shape, dtype=dtype)
    return partial(run, op, types, tensors, output)


def searching(search: Any, x: torch.Tensor) -> Callable[[], None]:
    """Return a launch of a table of 16 segments of degree 3 by one way to find segments."""
    table = pack(gelu_table(16, 3), np.dtype(_DTYPES[x.dtype]), search)
    kernel, numbers = activation(table.constexprs(), cols=x.numel()), torch.from_numpy(table.numbers).cuda()
    return partial(launch, kernel, grid(kernel, 1, x.numel()), [x, x, torch.empty_like(x), numbers, 1, x.numel(), 1])


def own(function: str, x: torch.Tensor, u: torch.Tensor | None = None) -> Callable[[], None]:
    """Return a launch of one of the GPU's own functions."""
    kernel, nothing = exact(function, "alone" if u is None else "apart", cols=x.numel()), torch.zeros(1, device="cuda")
    arguments = [x, x if u is None else u, torch.empty_like(x), nothing, 1, x.numel(), 1]
    return partial(launch, kernel, grid(kernel, 1, x.numel()), arguments)


def liger() -> Callable[..., torch.Tensor] | None:
    """Return Liger's silu(a) * b, None where it is not installed."""
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction  # noqa: PLC0415
    except ImportError:
        return None
    apply: Callable[..., torch.Tensor] = LigerSiLUMulFunction.apply
    return apply


def elementwise(cols: int) -> dict[str, Callable[[], Any]]:
    """gelu of [ROWS, cols]: 4 bytes per element."""
    x = torch.randn(ROWS, cols, dtype=BF16, device="cuda")
    compiled = torch.compile(functional.gelu, dynamic=False)
    return {
        "eager gelu": lambda: functional.gelu(x), "compiled gelu": lambda: compiled(x),
        "Spline 16x3 buckets": searching("buckets", x), "Spline 16x3 count": searching("count", x),
        "Spline 16x3 select": searching("select", x), "Spline 32x3": caller(OPS["Spline"](gelu_table(32, 3)), x, None),
        "Spline 16x1": caller(OPS["Spline"](gelu_table(16, 1)), x, None),
        "Spline 3x2": caller(OPS["Spline"](gelu_table(3, 2)), x, None), "own gelu": own("gelu", x), "own mish": own("mish", x),
    }  # fmt: skip


def gated(cols: int) -> dict[str, Callable[[], Any]]:
    """Act(a) * b of [ROWS, cols]: 6 bytes per element."""
    both = torch.randn(ROWS, 2 * cols, dtype=BF16, device="cuda")
    a, b = both[:, :cols].contiguous(), both[:, cols:].contiguous()
    weights = torch.rand(ROWS, 7, dtype=BF16, device="cuda")
    table = gelu_table(16, 3)

    def swiglu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.silu(x) * y

    compiled, apart = torch.compile(swiglu, dynamic=False), liger()
    found: dict[str, Callable[[], Any]] = {
        "eager silu * u": lambda: swiglu(a, b), "compiled silu * u": lambda: compiled(a, b),
        "Spline 16x3 * U": caller(OPS["Spline"](table), a, b), "GatedSpline split": caller(OPS["GatedSpline"](table), both),
        "GatedSpline pairs": caller(OPS["GatedSpline"](table, None, -1, "interleaved"), both),
        "SplineMix 7 * U": caller(OPS["SplineMix"]((table,) * 7), a, weights, b), "own silu * u": own("silu", a, b),
    }  # fmt: skip
    return found if apart is None else {**found, "Liger silu * u": lambda: apart(a, b)}


def layers(cols: int) -> dict[str, Callable[[], Any]]:
    """Both products of a gated layer and act(gate) * up: [ROWS, INNER] by [INNER, 2 cols]; the product alone comes first."""
    x = torch.randn(ROWS, INNER, dtype=BF16, device="cuda")
    w = torch.randn(INNER, 2 * cols, dtype=BF16, device="cuda") / INNER**0.5
    table, y = gelu_table(16, 3), x.new_empty(ROWS, cols)
    op, after = OPS["GatedSpline"](table), liger()

    def swiglu(z: torch.Tensor) -> torch.Tensor:
        gate, up = (z @ w).chunk(2, -1)
        return functional.silu(gate) * up

    def packed() -> torch.Tensor:
        return torch.ops.actx.gated_spline(x @ w, **op.attributes())

    def fused(kernel: Kernel, numbers: np.ndarray) -> Callable[[], None]:
        arguments = [x, w, y, torch.from_numpy(numbers).cuda(), ROWS, cols, INNER]
        return partial(launch, kernel, grid(kernel, ROWS, cols), arguments)

    compiled, wide = (
        torch.compile(swiglu, dynamic=False, mode="max-autotune-no-cudagraphs"),
        pack(table, np.dtype(np.float32)),
    )
    found: dict[str, Callable[[], Any]] = {
        "the product alone": lambda: x @ w, "eager": lambda: swiglu(x), "compiled, autotuned": lambda: compiled(x),
        "product, GatedSpline": packed, "gate_up with a table": fused(gate_up(wide.constexprs()), wide.numbers),
        "gate_up with silu": fused(gate_up({}, function="silu"), np.zeros(1, np.float32)),
    }  # fmt: skip
    return found if after is None else {**found, "product, Liger": lambda: after(*(x @ w).chunk(2, -1))}


def layers_table() -> str:
    """Measure layers; a share is of the speed of the product alone."""
    times = []
    for cols in LAYERS:
        sys.stderr.write(f"gated layers: {cols}\n")
        times.append(medians(layers(cols)))
        torch.compiler.reset()
    alone = [round(1e12 * one["the product alone"]) for one in times]
    title = f"gated layers, bfloat16, {ROWS} rows of {INNER}; share of the speed of the product alone"
    return table_of(title, list(LAYERS), 1e12, times, alone)


def codes(cols: int) -> dict[str, Callable[[], Any]]:
    """Table of 8-bit codes: 2 bytes per element."""
    x = torch.randint(-128, 128, (ROWS, cols), dtype=torch.int8, device="cuda")
    return {"Lut": caller(OPS["Lut"](tuple(range(-128, 128))), x)}


def polynorms(cols: int) -> dict[str, Callable[[], Any]]:
    """PolyNorm of order 3 of rows of that length: 4 bytes per element."""
    x = torch.randn(2**26 // cols, cols, dtype=BF16, device="cuda")
    w, b = torch.full((3,), 1 / 3, dtype=BF16, device="cuda"), torch.zeros(1, dtype=BF16, device="cuda")

    def normalised(z: torch.Tensor) -> torch.Tensor:
        return z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6)

    def eager(z: torch.Tensor) -> torch.Tensor:
        wide = z.float()
        terms = w[0] * normalised(wide**3) + w[1] * normalised(wide**2) + w[2] * normalised(wide)
        return (terms + b).to(z.dtype)

    compiled = torch.compile(eager, dynamic=False)
    return {
        "eager PolyNorm": lambda: eager(x), "compiled PolyNorm": lambda: compiled(x),
        "PolyNorm": caller(OPS["PolyNorm"](), x, w, b, None),
    }  # fmt: skip


def table_of(title: str, columns: list[int], bandwidth: float, times: list[dict[str, float]], sizes: list[int]) -> str:
    """Return a Markdown table of microseconds and shares of the copy's bandwidth."""
    lines = [f"\n## {title}\n", f"| | {' | '.join(map(str, columns))} |", f"|---{'|---' * len(columns)}|"]
    for name in times[0]:
        cells = [
            f"{1e6 * one[name]:.1f} us, {size / one[name] / bandwidth:.0%}"
            for one, size in zip(times, sizes, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def timed(
    title: str, make: Callable[[int], Any], columns: tuple[int, ...], bandwidth: float, width: int, total: int = 0
) -> str:
    """Measure and return a table; `width` is the bytes moved per element, of `total` elements or ROWS rows."""
    times = []
    for cols in columns:
        sys.stderr.write(f"{title}: {cols}\n")
        times.append(medians(make(cols)))
        torch.compiler.reset()
    return table_of(title, list(columns), bandwidth, times, [width * (total or ROWS * cols) for cols in columns])


def in_onnxruntime() -> int:
    """Print the rows of ONNX Runtime's CUDA provider, or why there are none; return how many cases are broken."""
    if reason := onnxruntime_cuda.obstacle():
        print(f"| in ONNX Runtime | 0 | not run: {reason} |")
        return 0
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            library = build(platform.machine(), folder)
        except BuildError as error:
            print(f"| in ONNX Runtime | 0 | not run: {str(error).splitlines()[0]} |")
            return 0
        for op_type in GPU_OPS:
            sys.stderr.write(f"in ONNX Runtime: {op_type}\n")
            count, names = onnxruntime_cuda.check(op_type, library)
            broken += len(names)
            print(f"| {op_type} in ONNX Runtime | {count} | {len(names)} {' '.join(names[:5])} |")
    return broken


def in_tensorrt() -> bool:
    """Print the rows of TensorRT's plugins, or why there are none; tell whether one is broken."""
    sys.stdout.flush()
    if importlib.util.find_spec("onnx_ir") is None:
        print("| plugins in TensorRT | 0 | not run: actx is not installed |")
        return False
    return subprocess.run([sys.executable, "-m", "tests.gpu.tensorrt_plugins"], check=False).returncode != 0


def main() -> int:
    """Print the page; 1 where a contract is broken."""
    device, bandwidth = torch.cuda.get_device_properties(0), copy_bandwidth()
    print(f"# The GPU kernels on {device.name}\n")
    print(
        f"torch {torch.__version__}, Triton {triton.__version__}, compute capability {device.major}.{device.minor}; ",
        end="",
    )
    print(f"a copy moves {bandwidth / 1e12:.2f} TB/s; Liger {'not ' if liger() is None else ''}installed\n")
    print("| contract | cases | broken |\n|---|---|---|")
    broken = 0
    for op_type in GPU_OPS:
        sys.stderr.write(f"contract: {op_type}\n")
        count, names = contract.check(op_type)
        broken += len(names)
        print(f"| {op_type} | {count} | {len(names)} {' '.join(names[:5])} |")
    once = (
        contract.more_than_2_to_the_31_elements,
        contract.replays_as_a_graph,
        contract.gate_up_is_right,
        contract.compiles,
    )
    for check in once:
        holds = check()
        broken += not holds
        print(f"| {check.__name__} | 1 | {int(not holds)} |")
    broken += in_onnxruntime() + in_tensorrt()
    print(timed(f"gelu, bfloat16, {ROWS} rows", elementwise, COLUMNS, bandwidth, 4))
    print(timed(f"gated, bfloat16, {ROWS} rows", gated, COLUMNS, bandwidth, 6))
    print(layers_table())
    print(timed(f"codes, int8, {ROWS} rows", codes, COLUMNS, bandwidth, 2))
    print(timed("PolyNorm, bfloat16, 2^26 elements", polynorms, LONG, bandwidth, 4, 2**26))
    return broken > 0


if __name__ == "__main__":
    raise SystemExit(main())
