"""ONNX Runtime on a CPU: whose layers multiply codes."""

from __future__ import annotations

import pytest

from actx.custom_ops import cpu
from actx.custom_ops.cpu.library import ISA_VARIABLE
from actx.exporter.kernels import Kernels
from actx.exporter.targets import ort_cpu


@pytest.mark.parametrize(
    ("isa", "flags", "expected"),
    [
        ("avx2", {"avx2"}, True),
        ("avx2", {"avx2", "avx_vnni"}, False),
        ("avx512vbmi", {"avx2", "avx_vnni", "avx512_vnni"}, True),
        ("avx512", {"avx2"}, False),
        ("neon", {"asimd"}, False),
        ("portable", set(), False),
    ],
)
def test_layers_are_ours_where_they_are_faster(
    isa: str, flags: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    monkeypatch.setattr(ort_cpu, "cpu_flags", lambda: frozenset(flags))
    assert ort_cpu._has_faster_layers(Kernels(cpu.load().path, "the library")) == expected
    assert not ort_cpu._has_faster_layers(None)
