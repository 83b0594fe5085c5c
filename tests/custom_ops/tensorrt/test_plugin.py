"""The plugins: what TensorRT's own Python layer is told, and what is said where there is none."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from actx.custom_ops import gpu
from actx.custom_ops.tensorrt import PluginsUnavailable, kernel_node, register
from tests.custom_ops.tensorrt.layer import run
from tests.custom_ops.tensorrt.nodes import nodes, sized

TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8"}
ROWS = (1, 7, 4096)


@pytest.mark.skipif(find_spec("tensorrt_bindings") is None, reason="tensorrt_cu13_bindings is not installed")
def test_tensorrt_is_told_what_is_planned(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its layer checks signatures and types when the plugins are registered, and computes the sizes."""
    pytest.importorskip("triton", reason="actx was installed without the extra gpu")
    requests, expected = [], []
    for op, open_inputs in nodes().values():
        node, table = kernel_node(op, open_inputs, 87)
        for rows in ROWS:
            inputs = sized(open_inputs, rows)
            given = [(TYPES[one.dtype.name], one.shape) for one in inputs if one is not None]
            requests.append((node.text(), [*given, (TYPES[table.dtype.name], table.shape)]))
            expected.append((node, op.output(inputs), gpu.view(op, inputs)))
    answers = run(requests, tmp_path_factory.mktemp("libraries"))
    for (node, output, sizes), answer in zip(expected, answers, strict=True):
        assert answer["fields"] == [("launch", "PluginFieldType.CHAR")]
        assert answer["type"] == TYPES[output.dtype.name]
        assert answer["output"] == (TYPES[output.dtype.name], output.shape)
        assert (answer["symbol"], answer["ptx"]) == (node.kernel.name, node.ptx)
        assert answer["launch"] == {
            "grid_x": gpu.grid(node.kernel, *sizes[:2]), "grid_y": 1, "grid_z": 1,
            "block_x": 32 * node.kernel.warps, "block_y": 1, "block_z": 1, "shared_mem": node.shared_bytes,
        }  # fmt: skip
        assert answer["integers"] == [("SymInt32", size) for size in sizes[: len(node.integers)]]


def test_without_tensorrt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        PluginsUnavailable, match=r"not installed: install TensorRT 10\.12 or newer; TensorRT-RTX has no"
    ):
        register()


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(PluginsUnavailable, match=r"need TensorRT 10\.12, found 10\.9\.0\.34: install"):
        register()
