"""What `load` makes of good, odd and broken model files."""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, external_data_helper, helper

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.load.formats import Format, detect
from tests.networks import SPELLINGS, Graph

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """x float32 [batch, tokens, 8] -> linear, gelu, linear -> y."""
    file = tmp_path / "model.onnx"
    onnx.save(SPELLINGS["gelu_op"].model(20), file)
    return file


# --- formats ---


def test_onnx_under_any_name(model: Path, tmp_path: Path) -> None:
    other = model.rename(tmp_path / "weights.bin")
    loaded = load(other)
    assert loaded.format == "an ONNX model"
    assert [str(spec) for spec in loaded.inputs] == ["x:float32[batch,tokens,8]"]
    assert loaded.opset == 20
    assert len(loaded.sha256) == 64


def test_an_archive_named_pt(archive: Path, tmp_path: Path) -> None:
    loaded = load(Path(shutil.copy(archive, tmp_path / "model.pt")))
    assert loaded.format == "a torch.export archive"
    assert [(spec.dtype, spec.dims) for spec in loaded.inputs] == [("float32", ("batch", 4))]


def test_a_dynamic_axis_of_an_archive_takes_the_users_name(archive: Path) -> None:
    spec = load(archive).inputs[0]
    loaded = load(archive, inputs=[InputSpec(spec.name, "float32", ("rows", 4))])
    assert loaded.inputs[0].dims == ("rows", 4)
    assert "rows" in str(loaded.model.graph.outputs[0].shape)


def test_the_graph_of_an_archive_tells_nothing_of_the_machine(archive: Path) -> None:
    content = ir.to_proto(load(archive).model).SerializeToString()
    for word in (str(Path.home()), "site-packages", "/usr/", 'File "', str(Path(__file__).parents[3])):
        assert word.encode() not in content


def _savez(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def _torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/code/__torch__.py", "")
        archive.writestr("m/data.pkl", b"")


def _old_pt2(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.1")
        archive.writestr("serialized_exported_program.json", "{}")


REFUSED: dict[Format, Callable[[Path], Any]] = {
    Format.DATA: _savez,
    Format.TORCHSCRIPT: _torchscript,
    Format.OLD_ARCHIVE: _old_pt2,
}


@pytest.mark.parametrize("found", REFUSED, ids=lambda found: found.name)
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_formats_that_hold_no_graph_are_named(tmp_path: Path, found: Format, name: str) -> None:
    file = tmp_path / name
    REFUSED[found](file)
    assert detect(file) is found
    with pytest.raises(ActxError) as caught:
        load(file, trust=True)
    assert caught.value.what == f"{file} is {found.value}"
    assert caught.value.note
    assert caught.value.remedy


def test_a_scripted_module_is_torchscript(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), buffer)
    file = tmp_path / "model.pt"
    file.write_bytes(buffer.getvalue())
    with pytest.raises(ActxError, match="is a TorchScript archive"):
        load(file)


@pytest.mark.parametrize(
    "content", [b"x", b"PK", b"PK\x03\x04", b"not a model at all\n" * 99, bytes(99), b"\x08\x0a", b"{}", b"\xff" * 64]
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(ActxError) as caught:
        load(file)
    assert str(file) in caught.value.what
    assert caught.value.remedy


def test_empty_missing_and_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ActxError, match="is empty"):
        load(tmp_path / "empty")
    with pytest.raises(ActxError, match="cannot read"):
        load(tmp_path / "missing")
    with pytest.raises(ActxError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ActxError, match="cannot read"):
        load(tmp_path / "empty" / "below")


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("kind", ["onnx", "archive"])
def test_truncated_files(model: Path, archive: Path, tmp_path: Path, share: float, kind: str) -> None:
    content = (model if kind == "onnx" else archive).read_bytes()
    file = tmp_path / "cut"
    file.write_bytes(content[: max(1, int(len(content) * share))])
    with pytest.raises(ActxError) as caught:
        load(file)
    assert str(file) in caught.value.what


def test_an_initializer_that_claims_terabytes(tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    proto.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    file = tmp_path / "model.onnx"
    onnx.save(proto, file)
    with pytest.raises(ActxError) as caught:
        load(file)
    assert "up.weight claims to be FLOAT [1048576,1048576]" in caught.value.note


def test_a_constant_that_claims_terabytes(tmp_path: Path) -> None:
    graph = Graph(18)
    x = graph.input("x", ["batch", 4])
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20], raw_data=bytes(16))
    graph.output(graph.op("Add", x, graph.op("Constant", value=tensor)), "y", 2)
    file = tmp_path / "model.onnx"
    onnx.save(graph.model(), file)
    with pytest.raises(ActxError, match="is damaged"):
        load(file)


# --- ONNX: external data, opsets, graphs ---


def _external(model: Path, location: str, *, size: int | None = None) -> Path:
    """Move the weights of a model to a file beside it, and let the model say that they are at `location`."""
    proto = onnx.load(model)
    external_data_helper.convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    file = model.with_name("external.onnx")
    onnx.save(proto, file)
    data = model.with_name("weights.bin")
    if size is not None:
        data.write_bytes(data.read_bytes()[:size])
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    file.write_bytes(proto.SerializeToString())
    return file


def test_external_data(model: Path) -> None:
    loaded = load(_external(model, "weights.bin"))
    expected = load(model).model.graph.initializers["up.weight"].const_value
    found = loaded.model.graph.initializers["up.weight"].const_value
    assert expected is not None
    assert found is not None
    assert (expected.numpy() == found.numpy()).all()


@pytest.mark.parametrize("size", [0, 1, 100])
def test_external_data_truncated(model: Path, size: int) -> None:
    with pytest.raises(ActxError, match="missing or truncated"):
        load(_external(model, "weights.bin", size=size))


@pytest.mark.parametrize("location", ["elsewhere.bin", "."])
def test_external_data_missing(model: Path, location: str) -> None:
    with pytest.raises(ActxError, match="missing or truncated"):
        load(_external(model, location))


def test_external_data_outside(model: Path, tmp_path: Path) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(bytes(10_000))
    for location in (str(secret), f"../{secret.name}", f"a/../../{secret.name}"):
        with pytest.raises(ActxError, match="outside its own folder"):
            load(_external(model, location))


def test_external_data_of_a_function(tmp_path: Path) -> None:
    """It is looked for beside the model too, and nowhere else."""
    np.arange(4, dtype=np.float32).tofile(tmp_path / "weights.bin")
    for location in ("weights.bin", str(tmp_path / "weights.bin"), "../weights.bin"):
        bias = TensorProto(data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        bias.external_data.add(key="location", value=location)
        constant, add = helper.make_node("Constant", [], ["b"], value=bias), helper.make_node("Add", ["x", "b"], ["y"])
        function = helper.make_function("own", "Bias", ["x"], ["y"], [constant, add], [helper.make_opsetid("", 18)])
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Bias", ["x"], ["y"], domain="own")], "g", [x], [y])
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        proto = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)
        (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
        if location == "weights.bin":
            (bias_value,) = load(tmp_path / "model.onnx").model.graph.initializers.values()
            assert bias_value.const_value is not None
            assert bias_value.const_value.numpy().tolist() == [0, 1, 2, 3]
        else:
            with pytest.raises(ActxError, match="outside its own folder"):
                load(tmp_path / "model.onnx")


def test_the_digest_is_of_the_model_and_its_external_data(model: Path, tmp_path: Path) -> None:
    assert load(model).sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    proto = onnx.load(_external(model, "weights.bin"), load_external_data=False)
    other = proto.graph.initializer[0]
    for entry in other.external_data:
        if entry.key == "location":
            entry.value = "a/other.bin"
    model.write_bytes(proto.SerializeToString())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.bin").write_bytes((tmp_path / "weights.bin").read_bytes())

    def expected() -> str:
        files = (model, tmp_path / "a" / "other.bin", tmp_path / "weights.bin")
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    before = expected()
    assert load(model).sha256 == before
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert load(model).sha256 == expected() != before


def test_external_data_by_a_link_outside(model: Path, tmp_path: Path) -> None:
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(bytes(10_000))
    (tmp_path / "link").symlink_to(secret)
    (tmp_path / "folder").symlink_to(tmp_path.parent)
    for location in ("link", f"folder/{secret.name}"):
        with pytest.raises(ActxError, match="outside its own folder"):
            load(_external(model, location))


def test_external_data_by_a_link_inside(model: Path, tmp_path: Path) -> None:
    """ONNX Runtime would refuse it, but the pipeline writes the weights anew."""
    file = _external(model, "link")
    (tmp_path / "link").symlink_to("weights.bin")
    assert load(file).inputs


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "99999999999999", "x", ""])
def test_external_data_at_odd_places(model: Path, field: str, value: str) -> None:
    file = _external(model, "weights.bin")
    proto = onnx.load(file, load_external_data=False)
    tensor = proto.graph.initializer[0]
    kept = [entry for entry in tensor.external_data if entry.key != field]
    del tensor.external_data[:]
    tensor.external_data.extend([*kept, onnx.StringStringEntryProto(key=field, value=value)])
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(ActxError) as caught:
        load(file)
    assert str(file) in caught.value.what


@pytest.mark.parametrize("opset", [1, 12, 26])
def test_opsets_out_of_range(model: Path, opset: int) -> None:
    proto = onnx.load(model)
    proto.opset_import[0].version = opset
    onnx.save(proto, model)
    with pytest.raises(UsageError, match=f"has opset {opset}"):
        load(model)


@pytest.mark.parametrize("opset", [13, 25])
def test_opsets_at_the_ends_of_the_range(tmp_path: Path, opset: int) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(SPELLINGS["gelu_legacy"].model(opset), file)
    assert load(file).opset == opset


def test_an_old_ir_version_is_raised_to_the_first_without_initializers_among_the_inputs(model: Path) -> None:
    proto = onnx.load(model)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, model)
    onnx.checker.check_model(ir.to_proto(load(model).model))


@pytest.mark.parametrize("where", ["imports", "nodes", "both"])
def test_the_default_domain_by_its_other_name(model: Path, where: str) -> None:
    proto = onnx.load(model)
    if where != "nodes":
        proto.opset_import[0].domain = "ai.onnx"
    if where != "imports":
        for node in proto.graph.node:
            node.domain = "ai.onnx"
    onnx.save(proto, model)
    loaded = load(model)
    assert loaded.opset == 20
    assert dict(loaded.model.opset_imports) == {"": 20}
    assert [site.kind for site in lift(loaded.model).sites] == ["gelu"]
    onnx.checker.check_model(ir.to_proto(loaded.model))


@pytest.mark.parametrize("kind", ["initializer", "constant", "in a branch"])
def test_sparse_tensors_are_refused(model: Path, kind: str) -> None:
    proto = onnx.load(model)
    weight = next(t for t in proto.graph.initializer if t.name == "up.weight")
    proto.graph.initializer.remove(weight)
    values = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).ravel(), "up.weight")
    places = onnx.numpy_helper.from_array(np.arange(np.prod(weight.dims)), "places")
    sparse = helper.make_sparse_tensor(values, places, weight.dims)
    if kind == "initializer":
        proto.graph.sparse_initializer.append(sparse)
    else:
        constant = helper.make_node("Constant", [], ["up.weight"], name="up.weight", sparse_value=sparse)
        proto.graph.node.insert(0, constant)
    if kind == "in a branch":
        branch = helper.make_graph([proto.graph.node[0]], "b", [], [onnx.ValueInfoProto(name="up.weight")])
        proto.graph.node[0].CopyFrom(
            helper.make_node("If", ["which"], ["up.weight"], then_branch=branch, else_branch=branch)
        )
        proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    onnx.save(proto, model)
    with pytest.raises(ActxError, match="holds sparse tensors, which actx does not read") as caught:
        load(model)
    assert "up.weight" in caught.value.note


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_same_sites_are_found_where_constants_are_nodes(tmp_path: Path, name: str) -> None:
    found = []
    for as_nodes in (False, True):
        proto = SPELLINGS[name].model(20)
        if as_nodes:
            constants = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
            nodes = [*constants, *proto.graph.node]
            del proto.graph.initializer[:], proto.graph.node[:]
            proto.graph.node.extend(nodes)
        onnx.save(proto, tmp_path / "model.onnx")
        graph = load(tmp_path / "model.onnx").model
        assert not [node for node in graph.graph if node.op_type == "Constant"]
        found.append([(site.name, site.kind, site.output, site.function.key) for site in lift(graph).sites])
    assert found[0] == found[1]


def test_no_default_opset_and_no_graph(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    del proto.opset_import[:]
    file = tmp_path / "none.onnx"
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(ActxError):
        load(file)
    empty = helper.make_model(helper.make_graph([], "empty", [], []))
    onnx.save(empty, file)
    with pytest.raises(ActxError, match="not a model that actx can read"):
        load(file)


def test_a_graph_that_is_no_graph(model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[0].input[0] = "nowhere"
    onnx.save(proto, model)
    with pytest.raises(ActxError, match="invalid") as caught:
        load(model)
    assert "nowhere" in caught.value.note


def test_a_graph_of_shapes_that_do_not_fit_says_nothing_on_the_terminal(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The runtime will say what is wrong with them."""
    proto = onnx.load(model)
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9
    onnx.save(proto, model)
    load(model)
    assert capfd.readouterr() == ("", "")


def test_a_cycle(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    x, b = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xb")
    file = tmp_path / "model.onnx"
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [b]), opset_imports=[helper.make_opsetid("", 18)])
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ActxError, match="invalid"):
        load(file)


def test_a_hostile_dimension_name_is_only_a_name(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    marker = tmp_path / "marker"
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = f"__import__('pathlib').Path('{marker}').touch()"
    onnx.save(proto, model)
    load(model)
    assert not marker.exists()


# --- inputs ---


def _typed(tmp_path: Path, shape: list[int | str] | None, dtype: int = TensorProto.FLOAT) -> Path:
    info = helper.make_tensor_value_info("x", dtype, shape)
    out = helper.make_tensor_value_info("y", dtype, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info], [out])
    file = tmp_path / "typed.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), file)
    return file


def spec(text: str) -> list[InputSpec]:
    return [InputSpec.parse(text)]


def test_axes_without_a_name_get_one(tmp_path: Path) -> None:
    file = _typed(tmp_path, [None, 4, None])  # type: ignore[list-item]
    assert str(load(file).inputs[0]) == "x:float32[x_0,4,x_2]"


def test_the_user_names_and_fixes_axes(tmp_path: Path) -> None:
    file = _typed(tmp_path, ["a", "b"])
    assert str(load(file, inputs=spec("x:float32[batch,16]")).inputs[0]) == "x:float32[batch,16]"


def test_a_rank_that_the_model_does_not_say(tmp_path: Path) -> None:
    file = _typed(tmp_path, None)
    with pytest.raises(ActxError, match="type or rank") as caught:
        load(file)
    assert "--input" in caught.value.remedy
    assert str(load(file, inputs=spec("x:float32[batch,3]")).inputs[0]) == "x:float32[batch,3]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("z:float32[a,b]", "no input 'z'"),
        ("x:int64[a,b]", "is float32, not int64"),
        ("x:float32[a]", "has the shape"),
        ("x:float32[a,5]", "has the shape"),
        ("x:float32[a,b,c]", "has the shape"),
        ("x:float32[]", "has the shape"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(_typed(tmp_path, ["a", 4]), inputs=spec(text))
    assert words in caught.value.what


def test_an_input_with_a_default_is_none(tmp_path: Path) -> None:
    graph = Graph(18)
    x = graph.input("x", ["batch", 4])
    graph.output(graph.op("Add", x, graph.constant(1.0, "one")), "y", 2)
    proto = graph.model()
    proto.graph.input.append(helper.make_tensor_value_info("one", TensorProto.FLOAT, []))
    file = tmp_path / "model.onnx"
    onnx.save(proto, file)
    assert [spec.name for spec in load(file).inputs] == ["x"]
    with pytest.raises(UsageError, match="no input 'one'"):
        load(file, inputs=spec("one:float32[]"))


def test_inputs_of_a_type_that_cannot_be_fed(tmp_path: Path) -> None:
    with pytest.raises(ActxError):
        load(_typed(tmp_path, [2], TensorProto.STRING))
    with pytest.raises(ActxError):
        load(_typed(tmp_path, [2], TensorProto.BFLOAT16))


def test_sequence_inputs_are_refused(tmp_path: Path) -> None:
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g", [info], [out])
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), file)
    with pytest.raises(ActxError):
        load(file)


def test_loading_twice_gives_the_same(model: Path) -> None:
    first, second = load(model), load(model)
    assert first.sha256 == second.sha256
    assert [str(node) for node in first.model.graph] == [str(node) for node in second.model.graph]


def test_an_operator_without_a_translation_is_named(tmp_path: Path) -> None:
    class Bessel(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.special.bessel_j0(x)
            return result

    file = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        torch.export.save(torch.export.export(Bessel(), (torch.zeros(2, 3),)), file)
    with pytest.raises(ActxError, match="cannot convert") as caught:
        load(file)
    assert "bessel_j0" in caught.value.note
    assert "\x1b" not in str(caught.value)
