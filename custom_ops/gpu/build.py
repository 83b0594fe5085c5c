"""Compile the GPU kernels ahead of time: a cubin and its description for each, which a launcher needs no Python for.

    python -m actx.custom_ops.gpu.build --arch 87 -o kernels

1. `compile_kernel` compiles one kernel for element types and a compute capability; no GPU is needed. The assembler spills some
   registers where that lets more programs share a multiprocessor: such a kernel is allowed more of them until none spills.
2. `variants` lists the nodes whose kernels the command compiles: every op and element type, with the tables that fits end in.
   What a kernel is specialised by does not depend on the numbers of a table.
3. A file `NAME.json` says of `NAME.cubin` what cuLaunchKernel needs: the symbol, bytes of shared memory, threads, and the
   parameters in order; and a thread's registers and bytes of local memory, 0 where no register spills. The grid is
   one-dimensional, by the rule of `launch.grid`. Pointers are multiples of 16; the two at the end are Triton's own, null.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actx.custom_ops.gpu import GpuUnavailable, require_triton
from actx.custom_ops.gpu.launch import ALIGNMENT, EXACT, Kernel, Launch, compilation, exact, grid, plan
from actx.custom_ops.ops import Op, TensorType
from actx.custom_ops.ops.gated_lut import GatedLutOp
from actx.custom_ops.ops.gated_spline import GatedSplineOp
from actx.custom_ops.ops.lut import LutOp
from actx.custom_ops.ops.op import CODES, FLOATS
from actx.custom_ops.ops.polynorm import PolyNormOp
from actx.custom_ops.ops.spline import SplineOp
from actx.custom_ops.ops.spline_mix import SplineMixOp
from actx.custom_ops.spline import Spline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Compute capabilities times 10: Turing to Blackwell, with Jetson Orin (87) and Thor (110).
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
# The oldest PTX that will do, so that older drivers take it: 8.0 is that of CUDA 12.0, 8.6 of 12.7, 8.7 of 12.8, 9.0 of 13.0.
_PTX = {100: 86, 110: 90, 120: 87}
_OLDEST_PTX = 80
_POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int8": "*i8", "uint8": "*u8"}
_INTEGER = "i32"
_SCRATCH = ("global_scratch", "profile_scratch")
_PARAMETER = re.compile(r"^\s*\.param ", re.MULTILINE)
_USAGE = re.compile(r"(\w+):(\d+)")
# Registers of a multiprocessor, the most of a thread, and how many at a time a thread is given.
_REGISTERS, _MOST_REGISTERS, _REGISTER_STEP = 2**16, 255, 8


@dataclass(frozen=True)
class Binary:
    """A compiled kernel.

    Attributes:
        cubin: the machine code.
        ptx: what it was assembled from.
        description: what `NAME.json` holds.
    """

    cubin: bytes
    ptx: str
    description: dict[str, Any]


def compile_kernel(kernel: Kernel, pointers: Sequence[np.dtype[Any]], architecture: int, *, aligned: bool) -> Binary:
    """Compile a kernel.

    Args:
        kernel: what to compile.
        pointers: element types of the inputs it takes, the result and the table, in order.
        architecture: one of `ARCHITECTURES`.
        aligned: whether the number of columns, and the inner size of products, is a multiple of 16, for access by 16 bytes.

    Raises:
        GpuUnavailable: Triton is not installed.
        ValueError: there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        msg = f"no kernels for compute capability {architecture}; available: {', '.join(map(str, ARCHITECTURES))}"
        raise ValueError(msg)
    require_triton()
    from triton import knobs  # noqa: PLC0415 - optional, and slow to import
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource, compile  # noqa: A004, PLC0415

    from actx.custom_ops.gpu import kernels  # noqa: PLC0415

    function = getattr(kernels, kernel.name)
    types = dict(zip(function.arg_names, [_POINTERS[dtype.name] for dtype in pointers], strict=False))
    types |= dict.fromkeys(kernel.integers, _INTEGER)
    known = [name for name in types if (name in {"cols", "inner"} and aligned) or types[name].startswith("*")]
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in function.arg_names},
        dict(kernel.constexprs),
        {(function.arg_names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in known},
    )
    # Fused products and sums, as in `run.launch`.
    ptx_version = _PTX.get(architecture, _OLDEST_PTX)
    options = {"num_warps": kernel.warps, "enable_fp_fusion": True, "ptx_version": ptx_version}
    target, most = GPUTarget("cuda", architecture, 32), min(_REGISTERS // (32 * kernel.warps), _MOST_REGISTERS)
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = True  # it names files of this machine
        compiled = compile(source, target=target, options=options)
        used = resources(compiled.asm["cubin"])
        for allowed in range(used["registers"] + _REGISTER_STEP, most + _REGISTER_STEP, _REGISTER_STEP):
            if not used["local_bytes"]:
                break
            compiled = compile(source, target=target, options={**options, "maxnreg": min(allowed, most)})
            used = resources(compiled.asm["cubin"])
    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    parameters = [*types.items(), *((name, "*i8") for name in _SCRATCH)]
    assert len(_PARAMETER.findall(ptx)) == len(parameters), "Triton passes other parameters"
    description = {
        "symbol": compiled.metadata.name, "architecture": architecture, "shared_bytes": compiled.metadata.shared,
        **used, "threads": 32 * kernel.warps, "tile": list(kernel.tile),
        "aligned": aligned, "kernel": kernel.name,
        "constexprs": dict(kernel.constexprs), "parameters": parameters,
    }  # fmt: skip
    return Binary(cubin, ptx, description)


def resources(cubin: bytes) -> dict[str, int]:
    """Return a thread's registers and bytes of local memory, where registers spill to: 0 where none do."""
    from triton import knobs  # noqa: PLC0415

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own arguments
    usage = dict(_USAGE.findall(done.stdout))
    return {"registers": int(usage["REG"]), "local_bytes": int(usage["STACK"]) + int(usage["LOCAL"])}


# --- 2. ---

_ROWS, _COLUMNS = 4096, 4096


def variants() -> Iterator[tuple[str, Launch, list[np.dtype[Any]]]]:
    """Yield a name, a launch and the element types of its pointers; for rows of a multiple of 16 columns."""
    for name, op, inputs in _nodes():
        yield name, plan(op, inputs), list(compilation(op, inputs).pointers)
    for dtype, function, layout in product(FLOATS, EXACT, ("alone", "apart", "halves")):
        kernel = exact(function, layout, cols=_COLUMNS)
        launch = Launch(
            kernel, np.zeros(1, np.float32), (_ROWS, _COLUMNS, 1), grid(kernel, _ROWS, _COLUMNS), aligned=True
        )
        yield f"{function}-{layout}-{dtype}", launch, [dtype, dtype, dtype, np.dtype(np.float32)]


def _table(segments: int, degree: int, *, origins: bool = True, spread: float = 1.0) -> Spline:
    """Any table of this size, with linear tails; a large spread of its knots leaves no buckets."""
    knots = np.linspace(-1, 1, segments - 1) ** 5 * spread if spread > 1 else np.linspace(-1, 1, segments - 1)
    coefficients = np.ones((segments, degree + 1))
    coefficients[[0, -1], 2:] = 0
    return Spline.of(knots, coefficients, np.full(segments, float(origins)))


def _tables() -> dict[str, Spline]:
    relu2 = Spline.of([0], [[0, 0, 0], [0, 0, 1]])
    named = {"relu": _table(2, 1, origins=False), "hardswish": _table(3, 2, origins=False), "relu2": relu2}
    named |= {f"pwl{n}": _table(n, 1) for n in (8, 16, 32)}
    named |= {f"spline{n}x{d}": _table(n, d) for n, d in ((16, 2), (16, 3), (32, 3))}
    return named | {"poly8": _table(4, 8), "poly16": _table(4, 16), "uneven16x3": _table(16, 3, spread=1e4)}


def _nodes() -> Iterator[tuple[str, Op, list[TensorType | None]]]:
    wide = (_ROWS, _COLUMNS)
    for dtype in FLOATS:
        x = TensorType(dtype, wide)
        halves = TensorType(dtype, (_ROWS, 2 * _COLUMNS))
        for name, table in _tables().items():
            yield f"spline-{name}-{dtype}", SplineOp(table), [x, None]
            yield f"spline-{name}-u-{dtype}", SplineOp(table), [x, x]
            for layout, gate in product(("split", "interleaved"), (0, 1)):
                op = GatedSplineOp(table, None, -1, layout, gate)
                yield f"gated-{name}-{layout}-{gate}-{dtype}", op, [halves]
        channels = _table(5, 3).per_channel(_COLUMNS, -1)
        yield f"channels-{dtype}", SplineOp(channels), [x, None]
        for entries in (2, 4, 7):
            mix, g = SplineMixOp((_table(16, 3),) * entries), TensorType(dtype, (_ROWS, entries))
            yield f"mix-{entries}-{dtype}", mix, [x, g, None]
            yield f"mix-{entries}-u-{dtype}", mix, [x, g, x]
        for cols, order in product((*(2**n for n in range(6, 16)), 2**16), (1, 2, 3, 4)):
            row = TensorType(dtype, (_ROWS, cols))
            w, b = TensorType(dtype, (order,)), TensorType(dtype, (1,))
            yield f"polynorm-{order}-{cols}-{dtype}", PolyNormOp(), [row, w, b, None]
            yield f"polynorm-{order}-{cols}-u-{dtype}", PolyNormOp(), [row, w, b, row]
    for source, target in product(CODES, CODES):
        x, u = TensorType(source, wide), TensorType(target, wide)
        yield f"lut-{source}-{target}", LutOp((0,) * 256, 2 if target == np.uint8 else 3), [x]
        yield f"gated_lut-{source}-{target}", GatedLutOp((0.0,) * 256), [x, u]


# --- 3. ---


def build(architecture: int, folder: Path | str, names: Sequence[str] = ()) -> list[Path]:
    """Compile variants and write them; return the cubins.

    Args:
        architecture: one of `ARCHITECTURES`.
        folder: where to write; made if it is not there.
        names: the variants, none for all.

    Raises:
        GpuUnavailable: Triton is not installed.
        ValueError: there is no such architecture or variant.
    """
    chosen = [variant for variant in variants() if not names or variant[0] in names]
    unknown = set(names) - {name for name, *_ in chosen}
    if unknown:
        msg = f"no variant is called {min(unknown)}"
        raise ValueError(msg)
    target, written = Path(folder), []
    for name, launch, pointers in chosen:
        binary = compile_kernel(launch.kernel, pointers, architecture, aligned=launch.aligned)
        target.mkdir(parents=True, exist_ok=True)
        file = target / f"{name}.sm_{architecture}.cubin"
        file.write_bytes(binary.cubin)
        file.with_suffix(".json").write_text(json.dumps(binary.description, indent=1) + "\n")
        written.append(file)
    return written


def main() -> int:
    """Build from the command line."""
    parser = argparse.ArgumentParser(prog="python -m actx.custom_ops.gpu.build", description="Compile the GPU kernels.")
    text = "compute capability times 10: 87 for Orin; may be given more than once"
    parser.add_argument("--arch", type=int, required=True, action="append", metavar="NN", help=text)
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="where to put the kernels")
    parser.add_argument("variants", nargs="*", help="names of variants, all without one")
    arguments = parser.parse_args()
    try:
        written = [path for one in arguments.arch for path in build(one, arguments.output, arguments.variants)]
    except (GpuUnavailable, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{path}\n" for path in written))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
