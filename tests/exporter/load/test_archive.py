"""An archive that would run code is refused before torch loads it. Every attack here is a real archive, edited."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir
import pytest
import torch

from actx.exporter.errors import ActxError
from actx.exporter.load import load
from actx.exporter.load.archive import dangers

if TYPE_CHECKING:
    from collections.abc import Callable

Edited: TypeAlias = "Callable[..., Path]"

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def pickled(marker: Path) -> bytes:
    content = io.BytesIO()
    torch.save((Touch(marker),), content)
    return content.getvalue()


def json_edit(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        tree = json.loads(content)
        change(tree)
        return json.dumps(tree).encode()

    return edit


def refused(file: Path, marker: Path, *words: str) -> None:
    with pytest.raises(ActxError) as caught:
        load(file)
    assert not marker.exists()
    assert caught.value.what == f"{file} would run code when loaded, and was not"
    assert "--trust" in caught.value.remedy
    for word in words:
        assert word in caught.value.note


def test_a_good_archive_has_no_dangers(archive: Path) -> None:
    assert dangers(archive) == []


@pytest.mark.real
def test_archives_that_return_classes_of_transformers_load(encoder_archive: Path, llama_archive: Path) -> None:
    assert dangers(encoder_archive) == []  # it is loaded where its sites are looked at
    assert dangers(llama_archive) == []
    loaded = load(llama_archive)
    assert loaded.inputs[0].name == "input_ids"
    assert loaded.inputs[0].dims[0] == "batch"
    graph = ir.to_proto(loaded.model.graph)  # the notes on its nodes tell nothing of the machine
    del graph.initializer[:]
    for word in (b"site-packages", b'File "', b".py"):
        assert word not in graph.SerializeToString()


def test_pickled_sample_inputs(edited: Edited, pickled: bytes, marker: Path) -> None:
    file = edited({SAMPLES: pickled})
    refused(file, marker, "sample inputs")
    # The attack is real: with trust torch unpickles it.
    with pytest.raises(ActxError):
        load(file, trust=True)
    assert marker.exists()


@pytest.mark.parametrize("prefix", ["data/weights", "Data/weights"])
def test_pickled_weights(edited: Edited, pickled: bytes, marker: Path, archive: Path, prefix: str) -> None:
    """torch's reader finds `Data/weights` too when it looks for `data/weights`."""

    def change(tree: Any) -> None:
        entry = next(iter(tree["config"].values()))
        entry.update(use_pickle=True, path_name="weight_99")

    with zipfile.ZipFile(archive) as source:
        config = json_edit(change)(source.read(f"model/{WEIGHTS}"))
    file = edited({f"{prefix}/model_weights_config.json": config, "data/weights/weight_99": pickled})
    refused(file, marker, "pickle")


def test_a_benign_pickled_weight_loads_with_trust(edited: Edited, archive: Path) -> None:
    saved = io.BytesIO()
    torch.save(torch.nn.Parameter(torch.full((5,), 2.0)), saved)

    def change(tree: Any) -> None:
        tree["config"]["0.bias"].update(use_pickle=True, path_name="weight_99")

    file = edited({WEIGHTS: json_edit(change), "data/weights/weight_99": saved.getvalue()})
    with pytest.raises(ActxError, match="would run code"):
        load(file)
    bias = load(file, trust=True).model.graph.initializers["0.bias"].const_value
    assert bias is not None
    assert (bias.numpy() == 2).all()


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
def test_objects_among_the_constants(edited: Edited, pickled: bytes, marker: Path, name: str) -> None:
    config = {"config": {"thing": {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    refused(edited({CONSTANTS: json.dumps(config), f"data/constants/{name}": pickled}), marker, name)
    config["config"]["thing"]["use_pickle"] = False
    refused(edited({CONSTANTS: json.dumps(config), "data/constants/TENSOR_0": pickled}), marker, name)


@pytest.mark.parametrize(
    "name",
    [
        "data/weights/model.pt",
        "data/weights/weight_1.pt",
        "data/constants/tensor_x.pt",
        "data/aotinductor/model/model.so",
        "Data/sample_inputs/model.pt",
        "data/executorch/program",
        "data/weights/../weights/weight_0",
    ],
)
def test_records_that_a_program_of_tensors_does_not_have(
    edited: Edited, pickled: bytes, marker: Path, name: str
) -> None:
    refused(edited({name: pickled}), marker)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.load_library",
        "torch.ops.__class__.load_library",
        "torch.ops.import_module.__call__",
        "torch.ops.aten.__class__",
        "torch.ops.aten.from_file.default",
        "torch.hub.load",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "os.system",
        "#extension:thing",
    ],
)
@pytest.mark.parametrize("key", ["target", "as_operator"])
def test_node_targets(edited: Edited, marker: Path, target: str, key: str) -> None:
    def change(tree: Any) -> None:
        node = tree["graph_module"]["graph"]["nodes"][1]
        if key == "target":
            node["target"] = target
        else:
            node["inputs"][0]["arg"] = {"as_operator": target}

    refused(edited({MODEL: json_edit(change)}), marker, target)


EXPRESSIONS = (
    "__import__('os').system('touch {marker}')",
    "Symbol('s0').__class__",
    "Symbol('__import__(chr(111))')",
    "(lambda: 1)()",
    "[x for x in (1,)]",
    "open('{marker}', 'w')",
    "Integer(open)('{marker}')",
    "lambdify(1, 'x')",
    "(s0 := 1)",
    "s0!",
    "f'{{s0}}'",
    "L['x'].size.__globals__['os']",
    "print(1).size()",
    "(" * 5000 + ")" * 5000,
)


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("key", ["expr_str", "guards_code"])
def test_expressions(edited: Edited, marker: Path, expression: str, key: str) -> None:
    text = expression.format(marker=marker)

    def change(tree: Any) -> None:
        if key == "guards_code":
            tree["guards_code"] = [text]
        else:
            sizes = tree["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
            sizes[0]["as_expr"]["expr_str"] = text

    refused(edited({MODEL: json_edit(change)}), marker, "expression")


def test_a_name_that_is_written_into_source(edited: Edited, marker: Path) -> None:
    """torch.fx writes the name of an input into the source of its forward, where a default value would be evaluated."""
    name = f"input=__import__('pathlib').Path('{marker}').touch()"
    refused(edited({MODEL: lambda content: content.replace(b'"input"', json.dumps(name).encode())}), marker, "name")


@pytest.mark.parametrize("escaped", [False, True])
def test_a_module_to_import(edited: Edited, marker: Path, tmp_path: Path, escaped: bool) -> None:
    (tmp_path / "hostile.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    context = json.dumps({"__enum__": True, "fqn": "hostile:E", "name": "A"})
    spec = json.dumps([1, {"type": "builtins.tuple", "context": context, "children_spec": []}])
    text = spec.replace("_", r"\u005f") if escaped else spec

    def change(tree: Any) -> None:
        tree["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = text

    refused(edited({MODEL: json_edit(change)}), marker, "import")


def test_two_directories_in_one_file(edited: Edited, archive: Path, pickled: bytes, marker: Path) -> None:
    """Python's reader takes the directory that lies before the end record, torch's the one that the end record points to."""
    with zipfile.ZipFile(archive) as source:
        samples = source.read(f"model/{SAMPLES}")
    length = len(pickled) + len(samples)  # both archives are of one length, so that the offsets fit both readings
    hostile = edited({SAMPLES: pickled, "extra/padding": bytes(length - len(pickled))}).read_bytes()
    plain = edited({SAMPLES: samples, "extra/padding": bytes(length - len(samples))}).read_bytes()
    end_record = 22
    file = edited({})
    file.write_bytes(hostile[:-end_record] + plain)
    with zipfile.ZipFile(file) as seen:
        assert seen.read(f"model/{SAMPLES}") == samples
    refused(file, marker, "sample inputs")


def test_an_old_layout_inside_a_new_one(edited: Edited, pickled: bytes, marker: Path, archive: Path) -> None:
    """torch.export.load falls back to it, and unpickles it, when it fails to load the new one."""
    file = edited({CONSTANTS: '{"config": {"x": {"path_name": "other", "use_pickle": false, "tensor_meta": {}}}}'})
    with zipfile.ZipFile(file, "a") as target:
        target.writestr("version", "8.1")
        target.writestr("serialized_exported_program.json", "{}")
        for name in ("state_dict", "constants", "example_inputs"):
            target.writestr(f"serialized_{name}.pt", pickled)
    with pytest.raises(ActxError):
        load(file)
    with pytest.raises(ActxError):
        load(file, trust=True)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [(MODEL, "{"), (MODEL, "[" * 100_000), (MODEL, b"\xff\xfe"), (WEIGHTS, "[]"), (WEIGHTS, '{"config": {"x": 1}}')],
)
def test_damaged_descriptions(edited: Edited, name: str, content: bytes) -> None:
    with pytest.raises(ActxError, match="is a damaged"):
        load(edited({name: content}))


def test_a_changed_byte(archive: Path, tmp_path: Path) -> None:
    """In any record: torch looks at no checksum."""
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as source:
        records = [info for info in source.infolist() if info.file_size]
    assert any("data/weights/weight_" in info.filename for info in records)
    file = tmp_path / "model.pt2"
    for info in records:
        name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
        changed = bytearray(content)
        changed[info.header_offset + 30 + name + extra + info.file_size // 2] ^= 0x10
        file.write_bytes(changed)
        for trust in (False, True):
            with pytest.raises(ActxError, match="is a damaged archive") as caught:
                load(file, trust=trust)
            assert info.filename in caught.value.note


def test_a_small_file_that_claims_terabytes(edited: Edited) -> None:
    def change(tree: Any) -> None:
        tree["config"]["0.weight"]["tensor_meta"].update(
            sizes=[{"as_int": 1 << 20}, {"as_int": 1 << 20}], strides=[{"as_int": 0}, {"as_int": 0}]
        )

    file = edited({WEIGHTS: json_edit(change)})
    with pytest.raises(ActxError, match="damaged") as caught:
        load(file)
    assert "claims 1099511627776 elements" in caught.value.note


def test_a_record_that_claims_terabytes(edited: Edited) -> None:
    file = edited({})
    content = bytearray(file.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # of the last record: the samples are an archive too
    struct.pack_into("<II", content, place + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    file.write_bytes(content)
    with pytest.raises(ActxError, match="damaged"):
        load(file)
