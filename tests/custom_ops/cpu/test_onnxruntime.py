"""The library in ONNX Runtime: every op and type, errors, threads, shapes, and the versions that it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from actx.custom_ops.ops import DOMAIN, OPS, OPSET, TensorType
from tests.custom_ops.cpu.conftest import need
from tests.custom_ops.cpu.nodes import KINDS, is_inferred, model
from tests.op_cases import REFUSED, Case, cases, gelu_table, linear_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from actx.custom_ops import cpu


def open_session(library: cpu.Library, content: bytes, threads: int = 1, **options: Any) -> ort.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads
    for name, value in options.items():
        setattr(settings, name, value)
    settings.register_custom_ops_library(str(library.path))
    return ort.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def run_case(library: cpu.Library, case: Case, threads: int = 1, more: Mapping[str, Any] | None = None) -> NDArray[Any]:
    """Through tensors of ONNX Runtime, which know bfloat16; with more attributes than the op's."""
    types = [None if array is None else TensorType.of(array) for array in case.inputs]
    content = model(case.op.NAME, {**case.op.attributes(), **(more or {})}, types, case.op.output(types))
    session = open_session(library, content, threads)
    binding = session.io_binding()
    for i, array in enumerate(case.inputs):
        if array is not None:
            kind, dense = KINDS[array.dtype], np.ascontiguousarray(array).reshape(array.shape)
            binding.bind_input(f"x{i}", "cpu", 0, kind, dense.shape, dense.ctypes.data)
    output = case.op.output(types)
    result = np.empty(output.shape, output.dtype)  # type: ignore[arg-type]
    binding.bind_output("y", "cpu", 0, KINDS[result.dtype], result.shape, result.ctypes.data)
    session.run_with_iobinding(binding)
    return result


@pytest.mark.parametrize("op_type", OPS)
def test_gives_the_bits_that_numpy_gets(library: cpu.Library, op_type: str) -> None:
    for case in list(filter(is_inferred, cases(op_type)))[::5]:
        here = library.run(op_type, case.op.attributes(), case.inputs)
        assert run_case(library, case).tobytes() == here.tobytes(), str(case)


@pytest.mark.parametrize("op_type", OPS)
def test_refuses_what_the_op_refuses(library: cpu.Library, op_type: str) -> None:
    op = OPS[op_type]
    inputs = [None if p.optional else TensorType(op.TYPES[p.type_name][0], (2, 4)) for p in op.INPUTS]
    output = TensorType(op.TYPES[op.OUTPUT.type_name][0], None)
    for attributes in REFUSED[op_type]:
        with pytest.raises(Exception, match=f"actx::{op_type}: .*"):
            open_session(library, model(op_type, dict(attributes), inputs, output))


def test_refuses_another_output_type_than_it_infers(library: cpu.Library) -> None:
    x = TensorType(np.dtype(np.int8), (4,))
    content = model("Lut", {"table": [0] * 256, "to": 2}, [x], x)
    with pytest.raises(Exception, match=r"actx::Lut: .*the attribute 'to'"):
        open_session(library, content)


def test_shapes_that_do_not_fit_are_an_error_of_the_run(library: cpu.Library) -> None:
    x = TensorType(np.dtype(np.float32), ("n",))
    session = open_session(library, model("Spline", gelu_table(8, 3).attributes(), [x, x], x))
    with pytest.raises(Exception, match="actx::Spline: U must have the shape of X"):
        session.run(None, {"x0": np.zeros(3, np.float32), "x1": np.zeros(4, np.float32)})
    result = session.run(None, {"x0": np.ones(3, np.float32), "x1": np.zeros(3, np.float32)})[0]
    np.testing.assert_array_equal(result, 0)


@pytest.mark.parametrize("shape", [None, ("n", "m"), (), (2, "m"), ("n",) * 12])
def test_any_rank_known_or_not(library: cpu.Library, shape: tuple[int | str, ...] | None) -> None:
    x = TensorType(np.dtype(np.float32), shape)
    session = open_session(library, model("Spline", gelu_table(8, 3).attributes(), [x], x))
    sizes = (2, 3) if shape is None else tuple(2 if size != 1 else 1 for size in shape)
    value = np.ones(sizes, np.float32)
    assert session.run(None, {"x0": value})[0].shape == sizes


def test_infers_the_shape_for_the_nodes_behind(library: cpu.Library, tmp_path: Path) -> None:
    """A Reshape by the inferred Shape is folded away only where the shape of the op's output is known."""
    nodes = [
        helper.make_node("Spline", ["x"], ["s"], domain=DOMAIN, **gelu_table(8, 3).attributes()),
        helper.make_node("Shape", ["s"], ["y"]),
    ]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 5])]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.INT64, [2])])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    optimized = tmp_path / "optimized.onnx"
    open_session(library, content, optimized_model_filepath=str(optimized))
    assert b"Shape" not in optimized.read_bytes()


def test_an_unknown_size_without_a_name_stays_unknown(library: cpu.Library) -> None:
    """ONNX Runtime reads the size of a value that leaves it out as -1, and would go on with that."""
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"]),
        helper.make_node("Spline", ["r"], ["s"], domain=DOMAIN, **gelu_table(8, 3).attributes()),
        helper.make_node("Reshape", ["s", "back"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4]) for name in ("x", "y"))
    sizes = {"rows": [-1, 4], "back": [-1, 3, 4]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(dims)], dims) for name, dims in sizes.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    content = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    value = np.ones((2, 3, 4), np.float32)
    assert open_session(library, content).run(None, {"x": value})[0].shape == value.shape


@pytest.mark.parametrize("weights", ["narrow", "largest"])
def test_constant_weights_give_the_same_bits(library: cpu.Library, weights: str) -> None:
    """They are looked at once, when the node is made: which kernel adds up products without an overflow depends on them."""
    inputs = linear_inputs(1, (9,), 130, 40, weights)
    names = ["x", "w", "b", "s"]
    node = helper.make_node("QLinearToFloat", names, ["y"], domain=DOMAIN)
    x, y = (helper.make_tensor_value_info(*value) for value in (("x", 2, [9, 130]), ("y", 1, [9, 40])))
    constants = [numpy_helper.from_array(array, name) for name, array in zip(names[1:], inputs[1:], strict=True)]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET)]
    graph = helper.make_graph([node], "g", [x], [y], constants)
    session = open_session(library, helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())
    expected = OPS["QLinearToFloat"]().reference(inputs)
    np.testing.assert_array_equal(session.run(None, {"x": inputs[0]})[0], expected)


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_threads_give_the_same_layer(library: cpu.Library, rows: int) -> None:
    case = Case("large", OPS["QLinear"](3), linear_inputs(2, (rows,), 512, 333, "narrow"))
    assert run_case(library, case, threads=4).tobytes() == run_case(library, case).tobytes()


@pytest.mark.parametrize("op_type", ["Spline", "GatedSpline"])
def test_threads_give_the_same_bits(library: cpu.Library, op_type: str) -> None:
    x = np.random.default_rng(0).normal(0, 3, (1000, 1026)).astype(np.float32)
    op = OPS[op_type](gelu_table(16, 3))  # type: ignore[call-arg]
    case = Case("large", op, (x, None)[: len(op.INPUTS)])
    assert run_case(library, case, threads=4).tobytes() == run_case(library, case).tobytes()


def test_the_profile_names_the_op(library: cpu.Library, tmp_path: Path) -> None:
    x = TensorType(np.dtype(np.float32), ("n",))
    options = {"enable_profiling": True, "profile_file_prefix": str(tmp_path / "profile")}
    session = open_session(library, model("Spline", gelu_table(8, 3).attributes(), [x], x), **options)
    session.run(None, {"x0": np.zeros(3, np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["args"].get("op_name") for event in events if event.get("cat") == "Node"}
    assert "Spline" in ran


def test_sessions_come_and_go(library: cpu.Library) -> None:
    x = TensorType(np.dtype(np.float32), ("n",))
    content = model("Spline", gelu_table(8, 3).attributes(), [x], x)
    kept = open_session(library, content)
    for _ in range(20):
        open_session(library, content).run(None, {"x0": np.zeros(3, np.float32)})
    kept.run(None, {"x0": np.zeros(3, np.float32)})


def test_an_instruction_set_that_is_not_here_is_an_error_of_the_registration(
    library: cpu.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is read by the library, so the process sets it as C sees it."""
    monkeypatch.setenv("ACTX_ISA", "vax")
    with pytest.raises(Exception, match="the instruction set 'vax' is not available here"):
        ort.SessionOptions().register_custom_ops_library(str(library.path))


def test_refuses_an_older_runtime(library: cpu.Library, tmp_path: Path) -> None:
    """A runtime that has API 1 only: its status must be an error, because null would mean success."""
    need("cc")
    program = tmp_path / "old"
    source = Path(__file__).parent / "old_runtime.c"
    subprocess.run(["cc", source, "-ldl", "-o", program], check=True)
    done = subprocess.run([program, library.path], capture_output=True, text=True, check=True)
    assert done.stdout == "actx needs ONNX Runtime 1.18 or newer, this is 1.16.3\n"
