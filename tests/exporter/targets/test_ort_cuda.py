"""Bundles for `ort-cuda` on a machine without a GPU: what the graph carries, and that it runs on the CPU and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from actx.custom_ops.gpu.node import compile_node
from actx.custom_ops.ops import DOMAIN, OPS, OPSET, TensorType, register_schemas
from actx.exporter import Form, check, export, profile, session
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.lower.cuda import compile_nodes
from actx.exporter.opening import best_graph
from actx.exporter.runtimes.onnxruntime import CUDA, RuntimeOptions
from actx.exporter.targets import TARGETS, ort_cuda
from actx.models.demo import CALIBRATION, demo_path
from tests.exporter.targets.networks import SMALL, write_small
from tests.op_cases import gelu_table

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported

pytest.importorskip("triton", reason="actx was installed without the extra gpu")

OWN = "model.ort-cuda.onnx"
SPLINE = Form.parse("spline:16x3")
NO_CUDA = f"on the CPU: ONNX Runtime {ort.__version__} here has no CUDAExecutionProvider"


def for_cuda(model: Path, out: Path, data: Path | None = None, **options: Any) -> Exported:
    return export(model, out, target="ort-cuda", data=None if data is None else str(data), **options)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.fixture(scope="module")
def bundle(demo_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    data = demo_path(CALIBRATION)
    return for_cuda(
        demo_onnx, tmp_path_factory.mktemp("cuda") / "out", data, form=SPLINE, with_kernels=("sm_87", "sm_90")
    )


def test_every_node_carries_its_kernel(bundle: Exported) -> None:
    register_schemas()
    onnx.checker.check_model(str(bundle.path / OWN), full_check=True)
    nodes = [node for node in onnx.load(bundle.path / OWN).graph.node if node.domain == DOMAIN]
    assert len(nodes) == len(bundle.manifest.sites)
    for node in nodes:
        found = attributes_of(node)
        assert OPS[node.op_type].from_attributes(found).attributes().items() <= found.items()
        assert found["cuda_symbol"] == b"activation"
        code, places = onnx.numpy_helper.to_array(found["cuda_code"]).tobytes(), np.cumsum(found["cuda_code_sizes"])
        assert places[-1] == len(code)
        images = [code[start:end] for start, end in zip([0, *places[:-1]], places, strict=True)]
        assert found["cuda_architectures"] == [75, 87, 90] * (len(images) // 3)
        for image, architecture in zip(images, found["cuda_architectures"], strict=True):
            if architecture == 75:
                assert b".target sm_75" in image
                assert image.endswith(b"\0")
            else:
                assert image.startswith(b"\x7fELF")


def test_a_layer_of_codes_stays_without_a_kernel() -> None:
    given = [
        helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 8]),
        helper.make_tensor_value_info("w", TensorProto.INT8, [1, 1, 128]),
        helper.make_tensor_value_info("b", TensorProto.INT32, [4]),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, [4]),
    ]
    node = helper.make_node("QLinearToFloat", ["x", "w", "b", "s"], ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    compiled = compile_nodes(ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=9)), [])
    assert not compiled.graph[0].attributes


def test_the_nodes_run_on_the_cpu_without_a_gpu_and_it_is_said(demo_onnx: Path, bundle: Exported) -> None:
    data = demo_path(CALIBRATION)
    assert bundle.drifts[0].graph == OWN
    assert bundle.drifts[0].drift <= 1e-4
    assert bundle.drifts[-1].graph == "model.onnx"
    assert bundle.latency is None
    assert any(note.endswith("latency on ort-cuda was not measured") for note in bundle.manifest.notes)
    opened = session(bundle.path)
    assert (opened.graph, opened.reason) == (OWN, f"with the installed kernels {NO_CUDA}")
    portable = session(bundle.path, kernels=False)
    assert portable.graph == "model.onnx"
    assert portable.reason.endswith(NO_CUDA)
    assert check(demo_onnx, bundle.path, data=str(data)).drift == pytest.approx(
        bundle.drifts[0].drift, rel=1e-3, abs=1e-7
    )


def test_unasked_nothing_is_rewritten(tmp_path: Path) -> None:
    model, data = write_small(SMALL["mish"], tmp_path)
    found = for_cuda(model, tmp_path / "out", data)
    assert {site.form for site in found.manifest.sites} == {"keep"}
    assert OWN not in found.manifest.files


def test_architectures_that_there_are_not(tmp_path: Path) -> None:
    model, _ = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(UsageError, match="no kernels for architecture 'sm_61'") as caught:
        for_cuda(model, tmp_path / "out", with_kernels=("sm_61",))
    assert "sm_87" in caught.value.note
    with pytest.raises(UsageError, match="no kernels for architecture 'sm_87'"):
        export(model, tmp_path / "out", target="ort-cpu", with_kernels=("sm_87",))


def test_without_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    abilities = TARGETS["ort-cuda"].abilities()
    assert "need Triton" in abilities.build
    model, data = write_small(SMALL["mish"], tmp_path)
    with pytest.raises(TargetUnavailable, match="the kernels cannot be compiled here") as caught:
        for_cuda(model, tmp_path / "out", data, form=SPLINE)
    assert "pip install 'actx[gpu]'" in caught.value.note


def test_where_the_provider_is_there_it_is_taken(bundle: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_cuda, "_no_cuda", lambda: "")
    graph = best_graph(bundle.path)
    assert isinstance(graph.runtime, RuntimeOptions)
    assert (graph.path.name, graph.on_target, graph.runtime.provider) == (OWN, True, CUDA)
    assert TARGETS["ort-cuda"].abilities().run == ""


def test_a_provider_that_is_not_there_is_an_error(bundle: Exported) -> None:
    """ONNX Runtime by itself takes the CPU, and only warns."""
    with pytest.raises(ActxError, match="cannot start CUDAExecutionProvider here"):
        RuntimeOptions(provider=CUDA).open(bundle.path / "model.onnx")


def test_latency_is_not_that_of_the_cpu(demo_onnx: Path, bundle: Exported) -> None:
    data = demo_path(CALIBRATION)
    with pytest.raises(TargetUnavailable, match="ort-cuda"):
        profile(demo_onnx, bundle.path, data=str(data), runs=2)


@pytest.mark.parametrize(
    ("shape", "aligned"),
    [
        ((2, 48), [True]),
        ((2, 3), [False]),
        ((None, 48), [True]),
        ((None, 3), [True, False]),
        ((None, None), [True, False]),
    ],
)
def test_as_many_kernels_as_the_known_sizes_leave_open(shape: tuple[int | None, ...], aligned: list[bool]) -> None:
    found = compile_node(OPS["Spline"](gelu_table(16, 3)), [TensorType(np.dtype(np.float16), shape), None])  # type: ignore[call-arg]
    assert found["cuda_aligned"] == [int(one) for one in aligned]
