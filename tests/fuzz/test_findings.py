"""What fuzzing found, each as small as it can be: one error, in no time and memory to speak of."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from actx.custom_ops import cpu
from actx.exporter.bundle import verify
from actx.exporter.data import InputSpec, load_data
from actx.exporter.devices import frames, replies
from actx.exporter.devices.config import find_devices
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.archive import dangers
from actx.exporter.manifest import Manifest
from actx.exporter.search.log import Log
from actx.exporter.search.trials import TrialResult
from actx.exporter.tensorrt.inspector import parse_layers
from actx.exporter.tensorrt.options import parse_size
from actx.exporter.tensorrt.shapes import parse_range
from tests.custom_ops.cpu.conftest import need
from tests.fuzz import seeds
from tests.fuzz.targets import unpack
from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable

DEEP = "[" * 100_000
LONG = "9" * 5000


# --- ONNX ---


def refused(model: onnx.ModelProto, folder: Path, match: str) -> None:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ActxError, match=match):
        load(folder / "model.onnx")


def gelu() -> onnx.ModelProto:
    return SPELLINGS["gelu_op"].model(20)


def test_tensor_of_no_type(tmp_path: Path) -> None:
    model = gelu()
    model.graph.initializer[0].data_type = TensorProto.UNDEFINED
    refused(model, tmp_path, "is damaged")


def test_input_of_no_type(tmp_path: Path) -> None:
    model = gelu()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    model.graph.node.insert(0, helper.make_node("Identity", ["x"], ["alias"]))
    refused(model, tmp_path, "does not say the type or rank of its input")


def test_attribute_tensor_of_no_type(tmp_path: Path) -> None:
    model = gelu()
    tensor = helper.make_tensor("value", TensorProto.FLOAT, [1], [0])
    tensor.data_type = TensorProto.UNDEFINED
    model.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    refused(model, tmp_path, "not a model that actx can read")


def test_tensor_larger_than_a_float(tmp_path: Path) -> None:
    model = gelu()
    model.graph.initializer[0].dims[:] = [1 << 40] * 30
    refused(model, tmp_path, "is damaged")


def test_body_that_is_not_there(tmp_path: Path) -> None:
    model = gelu()
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH, ref_attr_name="body")
    refused(model, tmp_path, "not a model that actx can read")


def test_name_of_no_letters(tmp_path: Path) -> None:
    data = gelu().SerializeToString().replace(b"up.weight", b"up\xc2weight").replace(b"network", b"net\xc2ork")
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ActxError, match="not a model that actx can read"):
        load(tmp_path / "model.onnx")


def test_node_without_its_inputs(tmp_path: Path) -> None:
    model = SPELLINGS["gelu_legacy"].model(20)
    node = next(node for node in model.graph.node if node.op_type == "Mul")
    del node.input[1:]
    refused(model, tmp_path, "the model's graph is invalid")


def test_outputs_that_are_not_counted(tmp_path: Path) -> None:
    """onnx ends the process where it infers their shapes."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Split", ["x"], ["a", "b", "y"], axis=1, num_outputs=2)],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    refused(model, tmp_path, "has 3 outputs and another number in its attribute num_outputs")


def test_constant_of_no_number(tmp_path: Path) -> None:
    model = gelu()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], "c"))
    model.graph.node.append(helper.make_node("Add", ["c", model.graph.input[0].name], ["unread"], "last"))
    refused(model, tmp_path, "is a Constant with 0 attributes")


def test_text_that_is_not_there(tmp_path: Path) -> None:
    model = gelu()
    model.graph.initializer.append(TensorProto(name="text", data_type=TensorProto.STRING, int32_data=[1]))
    refused(model, tmp_path, "is damaged")


def test_body_of_what_has_none(tmp_path: Path) -> None:
    """Nodes with bodies are not checked as others are."""
    model = gelu()
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.input.extend(["x", "x"])
    node.attribute.append(helper.make_attribute("body", helper.make_graph([], "body", [], [])))
    refused(model, tmp_path, "has an attribute body, which Gelu has not")


def test_attribute_of_another_type(tmp_path: Path) -> None:
    models = (onnx.load_from_string(seed) for seed in seeds.onnx_models())
    model = next(model for model in models if model.graph.node and model.graph.node[0].op_type == "GatedLut")
    attributes = model.graph.node[0].attribute
    del attributes[:]
    attributes.append(helper.make_attribute("table", [0.0] * 256))
    attributes.append(helper.make_attribute("y_zero_point", [1, 2]))
    refused(model, tmp_path, "is not as actx::GatedLut is defined")


def test_functions_that_double(tmp_path: Path) -> None:
    """Each of 40 functions calls the one before it twice: a kilobyte that comes to 2 ** 40 nodes."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "f0", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], imports)]
    for i in range(1, 41):
        calls = [helper.make_node(f"f{i - 1}", [a], [b], domain="f") for a, b in (("x", "z"), ("z", "y"))]
        functions.append(helper.make_function("f", f"f{i}", ["x"], ["y"], calls, imports))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("f40", ["x"], ["y"], domain="f")], "g", [x], [y])
    refused(
        helper.make_model(graph, opset_imports=imports, functions=functions), tmp_path, "the model's graph is invalid"
    )


@pytest.mark.parametrize("op_type", ["Add", "Expand", "Gather"])
def test_constants_that_come_to_more(tmp_path: Path, op_type: str) -> None:
    """Two constants of 2 ** 16 elements whose result has 2 ** 32: 32 GiB in the float64 of the evaluation."""
    side = 1 << 16
    others = {
        "Add": np.zeros((1, side), np.float32),
        "Expand": np.array([side, side]),
        "Gather": np.zeros(side, np.int64),
    }
    first = np.zeros((1, side) if op_type == "Gather" else (side, 1), np.float32)
    constants = [onnx.numpy_helper.from_array(first, "a"), onnx.numpy_helper.from_array(others[op_type], "b")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "xy")
    nodes = [helper.make_node(op_type, ["a", "b"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", 20)]
    )
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    lift(load(tmp_path / "model.onnx").model)


@pytest.mark.parametrize(
    "place",
    [
        {"offset": "-8"},
        {"length": "4"},
        {"offset": str(1 << 70)},
        {"location": "x" * 300},
        {"location": "a\0b"},
        {"location": ""},
    ],
)
def test_external_data_that_is_not_there(tmp_path: Path, place: dict[str, str]) -> None:
    unpack(seeds.onnx_folders()[0], tmp_path)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (tmp_path / "weights.data").write_bytes((tmp_path / "weights.data").read_bytes()[:8])
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = place.get(entry.key, entry.value)
    refused(model, tmp_path, "damaged|truncated")


# --- other models ---


@pytest.mark.parametrize(
    "expression", ["9**9**9", "Pow(Integer(9), Integer(10**9))", "Pow(s0, s0)", "1 << 10**9", "Pow(Pow(s0, 99), 99)"]
)
def test_powers_in_archives(tmp_path: Path, expression: str) -> None:
    file = tmp_path / "model.pt2"
    with zipfile.ZipFile(io.BytesIO(seeds.archives()[0])) as source, zipfile.ZipFile(file, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith("models/model.json"):
                tree = json.loads(content)
                tree["guards_code"] = [expression]
                content = json.dumps(tree).encode()
            target.writestr(info.filename, content)
    assert any("it evaluates the expression" in danger for danger in dangers(file))


def hugging_face(
    folder: Path, change: Callable[[dict[str, Any]], None], name: str = "config.json", shards: int = 0
) -> Path:
    unpack(seeds.hugging_face_folders()[shards], folder)
    tree = json.loads((folder / name).read_bytes())
    change(tree)
    (folder / name).write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize("size", [{"num_hidden_layers": 1 << 32}, {"vocab_size": 1 << 40}, {"hidden_size": 1 << 20}])
def test_configuration_that_asks_for_more_than_there_is(tmp_path: Path, size: dict[str, int]) -> None:
    with pytest.raises(ActxError, match="more weights than its files can hold"):
        load(hugging_face(tmp_path, lambda tree: tree.update(size)))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b"])
def test_weights_from_elsewhere(tmp_path: Path, name: str) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["weight_map"] = dict.fromkeys(tree["weight_map"], name)

    with pytest.raises(ActxError, match="takes weights from elsewhere"):
        load(hugging_face(tmp_path, change, "model.safetensors.index.json", shards=1))


def test_configuration_nested_too_deep(tmp_path: Path) -> None:
    unpack(seeds.hugging_face_folders()[0], tmp_path)
    (tmp_path / "config.json").write_text(DEEP)
    with pytest.raises(ActxError, match="cannot read"):
        load(tmp_path)


# --- bundles ---


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "a/../../b", "", ".", "a\0b"])
def test_files_outside_of_the_bundle(name: str) -> None:
    for place in ("files", "graphs"):
        tree = json.loads(seeds.manifests()[0])
        tree[place] |= {name: "0" * 64} if place == "files" else {"portable": name}
        with pytest.raises(ActxError, match="is not a valid manifest"):
            Manifest.parse(tree, Path("manifest.json"))


def test_a_pipe_in_the_bundle(tmp_path: Path) -> None:
    import os  # noqa: PLC0415

    tree = json.loads(seeds.manifests()[0])
    os.mkfifo(tmp_path / "model.onnx")
    tree["files"] = {"model.onnx": "0" * 64}
    with pytest.raises(ActxError, match="cannot read"):
        verify(tmp_path, Manifest.parse(tree, tmp_path / "manifest.json"))


def test_a_file_of_the_bundle_with_a_name_that_no_file_has() -> None:
    tree = json.loads(seeds.manifests()[0])
    for name in ("a" * 256, "/".join(["a" * 200] * 6)):
        with pytest.raises(ActxError, match="longer than the name of a file"):
            Manifest.parse({**tree, "files": {name: "0" * 64}}, Path("manifest.json"))


@pytest.mark.parametrize("number", ["Infinity", "1e999", "NaN"])
def test_a_number_that_json_has_not(number: str, tmp_path: Path) -> None:
    """What is read can be written."""
    tree = json.loads(seeds.manifests()[0])
    places: dict[str, dict[str, Any]] = {
        "request.max_drift": {"max_drift": "HERE"},
        "request.build.a.0": {"build": {"a": ["HERE"]}},
    }
    for name, place in places.items():
        changed = {**tree, "request": {**tree["request"], **place}}
        (tmp_path / "manifest.json").write_text(json.dumps(changed).replace('"HERE"', number))
        with pytest.raises(ActxError, match=f"{name} is no finite number"):
            Manifest.read(tmp_path / "manifest.json")


def test_an_infinity_in_the_place_of_a_number() -> None:
    """Text that Python takes for a number is none that can be written."""
    tree = json.loads(seeds.manifests()[0])
    tree["latency"]["original"]["mean"] = "inf"
    with pytest.raises(ActxError, match=r"latency\.original\.mean"):
        Manifest.parse(tree, Path("manifest.json"))


# --- data and text ---


def npz(file: Path, member: bytes, names: int = 1) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    if names > 1:  # as many entries of the one member
        data = file.read_bytes()
        start = data.rindex(b"PK\x01\x02")
        end = data.rindex(b"PK\x05\x06")
        entry = data[start:end]
        tail = bytearray(data[end:])
        tail[8:12] = 2 * names.to_bytes(2, "little")
        tail[12:16] = (names * len(entry)).to_bytes(4, "little")
        file.write_bytes(data[:start] + entry * names + tail)
    return file


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (((" + "x" * 3000,
        "{'descr': '<f4', 'shape': (2L,)}",
        "{'descr': '<f4', 'shape': ('a',)}",
        "{'descr': garbage}",
        "(" * 3000,
    ],
)
def test_headers_of_arrays(tmp_path: Path, text: str) -> None:
    with pytest.raises(ActxError, match=r"cannot be read|memory"):
        load_data(str(npz(tmp_path / "x.npz", header(text))), [InputSpec.parse("x:float32[n]")])


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros((100, 100), np.float32))
    with pytest.raises(ActxError, match="not a complete"):
        load_data(str(npz(tmp_path / "x.npz", content.getvalue(), 1000)), [InputSpec.parse("x:float32[n,100]")])


@pytest.mark.parametrize("content", [f"a = {DEEP}", f"a = {LONG}", "a." * 200_000 + "a = 1"])
def test_devices_that_are_too_much(tmp_path: Path, content: str) -> None:
    (tmp_path / "devices.toml").write_text(content)
    with pytest.raises(ActxError, match="is no TOML file"):
        find_devices("a", tmp_path / "devices.toml")


def test_a_line_of_the_log_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f'{{"key": {DEEP}\n')
    assert Log(tmp_path / "log").get("a", float) is None


def test_a_drift_in_the_log_that_no_float_holds(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        f'{{"key": "a", "kind": "trial", "about": {{}}, "value": {{"drift": {"9" * 400}, "reason": ""}}}}\n'
    )
    assert Log(tmp_path / "log").get("a", TrialResult.from_dict) is None


def test_layers_nested_too_deep() -> None:
    with pytest.raises(ActxError, match="cannot be read"):
        parse_layers(DEEP)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (InputSpec.parse, f"x:float32[{LONG}]"),
        (parse_size, f"{LONG}GiB"),
        (parse_range, f"batch={LONG}"),
    ],
)
def test_numbers_of_thousands_of_digits(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


# --- devices ---


def test_a_message_nested_too_deep() -> None:
    text = DEEP.encode()
    with pytest.raises(frames.MalformedError):
        frames.read(io.BytesIO(len(text).to_bytes(4, "big") + bytes(8) + text))


@pytest.mark.parametrize(
    "described",
    [["y", "<f4(", [1]], ["y", "<f4", [1 << 70]], ["y", "|O", [1]], ["y", 3, [1]], ["y", "<f4", [1 << 62, 0]]],
)
def test_arrays_that_are_none(described: list[Any]) -> None:
    with pytest.raises(frames.MalformedError):
        frames.arrays([described], b"abcd")


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"runs": [1, 2]},
        {"runs": [1, 2], "missing": "?"},
        {"runs": [1]},
        {"runs": [1, 2, 3], "microjoules": [1, 2, 3]},
        {"runs": [1, 2], "microjoules": [1, 10**400], "of": "?"},
    ],
)
def test_energy_that_is_none(counts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        replies.Energy.model_validate(counts)


# --- C++ operators ---


def kernels() -> cpu.Library:
    """Give the installed library, which is there wherever there is a compiler."""
    need("c++")
    return cpu.load()


def test_rows_without_elements() -> None:
    """There may be 2 ** 40 of them."""
    table = {"degree": 1, "knots": [], "coefficients": [0.0, 1.0] * 3, "origins": [0.0] * 3, "axis": 1, "channels": 3}
    x = np.zeros((1 << 40, 3, 0), np.float32)
    assert kernels().run("Spline", table, [x]).shape == x.shape


def test_more_entries_than_numbers() -> None:
    table = {"degree": 1, "knots": [0.0], "coefficients": [0.0] * 4, "origins": [0.0, 0.0], "entries": 1 << 62}
    with pytest.raises(ValueError, match="entries"):
        kernels().run("SplineMix", table, [np.zeros((1, 2), np.float32), np.zeros((1, 1), np.float32)])
