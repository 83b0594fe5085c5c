"""ONNX Runtime's C interface as this library declares it, against a real header."""

from __future__ import annotations

from pathlib import Path

from tests.custom_ops.cpu.conftest import compiles

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "custom_ops/cpu/src"


def test_has_the_layout_of_a_real_header(onnxruntime_headers: str) -> None:
    compiles(f"-I{onnxruntime_headers}", f"-I{SOURCES}", str(HERE / "abi_test.cc"))
