"""Every case of every op in ONNX Runtime's CUDA provider, compiled as `ort-cuda` compiles it, against the float64 reference."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import numpy_helper

from actx.custom_ops.gpu.node import compile_node
from actx.custom_ops.ops import TensorType
from tests.custom_ops.cpu.nodes import KINDS, is_inferred, model
from tests.op_cases import Case, cases

if TYPE_CHECKING:
    from pathlib import Path

PROVIDER = "CUDAExecutionProvider"
EVERY = 5  # of the cases: each is a session of its own


@cache
def obstacle() -> str:
    """Say why nothing can be run; empty where it can."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime-gpu is not installed"
    import onnxruntime as ort  # noqa: PLC0415

    return "" if PROVIDER in ort.get_available_providers() else f"ONNX Runtime {ort.__version__} has no {PROVIDER}"


def check(op_type: str, library: Path) -> tuple[int, list[str]]:
    """Return how many cases of the op were run, and those that break the contract; half of them with machine code."""
    found = list(filter(is_inferred, cases(op_type)))[::EVERY]
    return len(found), [
        str(case) for i, case in enumerate(found) if not keeps_contract(case, library, native=i % 2 == 0)
    ]


def keeps_contract(case: Case, library: Path, *, native: bool) -> bool:
    """Tell whether the result is within what the op allows, NaN and infinities too; by PTX or by machine code."""
    major, minor = torch.cuda.get_device_capability()
    types = [None if one is None else TensorType.of(one) for one in case.inputs]
    compiled = compile_node(case.op, types, [10 * major + minor] if native else [])
    result = run(case, {name: _attribute(value) for name, value in compiled.items()}, library)
    return bool(case.op.agrees(result, case.inputs).all())


def run(case: Case, attributes: dict[str, Any], library: Path) -> Any:
    """Run one node on tensors of the GPU."""
    import onnxruntime as ort  # noqa: PLC0415

    types = [None if one is None else TensorType.of(one) for one in case.inputs]
    output = case.op.output(types)
    assert output.shape is not None
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    content = model(case.op.NAME, {**case.op.attributes(), **attributes}, types, output)
    session = ort.InferenceSession(content, options, providers=[PROVIDER, "CPUExecutionProvider"])
    assert PROVIDER in session.get_providers()
    binding, kept = session.io_binding(), []
    for i, one in enumerate(case.inputs):
        if one is not None:
            kept.append(_on_gpu(one))
            binding.bind_input(f"x{i}", "cuda", 0, KINDS[one.dtype], one.shape, kept[-1].data_ptr())
    result = _on_gpu(np.zeros(output.shape, output.dtype))
    binding.bind_output("y", "cuda", 0, KINDS[output.dtype], output.shape, result.data_ptr())
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return (
        result.cpu()
        .numpy()[: int(np.prod(output.shape)) * output.dtype.itemsize]
        .view(output.dtype)
        .reshape(output.shape)
    )


def _on_gpu(given: Any) -> torch.Tensor:
    """Its bytes, and at least one: an empty tensor has no address."""
    data = np.frombuffer(np.ascontiguousarray(given).tobytes() or b"\0", np.uint8).copy()
    return torch.from_numpy(data).cuda()


def _attribute(value: Any) -> Any:
    return numpy_helper.from_array(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
