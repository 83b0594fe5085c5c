"""What `load` makes of the files of torch.save and safetensors."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from actx.exporter.data import InputSpec
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.load import LoadedModel, load

INPUTS = [InputSpec.parse("input:float32[n,4]")]
MODULE = """
from torch import nn

def make():
    return nn.Sequential(OrderedDict_([("up", nn.Linear(4, 5)), ("act", nn.GELU()), ("down", nn.Linear(5, 3))]))

def fail():
    raise ValueError("no such size")

def other():
    return nn.Linear(4, 5)

from collections import OrderedDict as OrderedDict_
"""


def network() -> nn.Module:
    return nn.Sequential(OrderedDict([("up", nn.Linear(4, 5)), ("act", nn.GELU()), ("down", nn.Linear(5, 3))]))


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of a user, in the folder that the command runs in."""
    name = f"network_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return f"{name}:make"


def bias(loaded: LoadedModel) -> list[float]:
    value = loaded.model.graph.initializers["down.bias"].const_value
    assert value is not None
    return [float(x) for x in value.numpy()]


# --- pickles ---


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_needs_trust(tmp_path: Path, zipped: bool) -> None:
    marker, module, file = tmp_path / "marker", network(), tmp_path / "model.pt"
    module.extra = Touch(marker)  # type: ignore[assignment]
    torch.save(module, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ActxError, match="holds pickled objects, which run code when loaded") as caught:
        load(file, inputs=INPUTS)
    assert "nn.modules.container.Sequential" in caught.value.note
    assert "torch.export" in caught.value.remedy
    assert "--trust" in caught.value.remedy
    assert not marker.exists()
    loaded = load(file, inputs=INPUTS, trust=True)
    assert marker.exists()
    assert loaded.inputs == tuple(INPUTS)


def test_a_bare_pickle_is_not_loaded(tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pt2"
    file.write_bytes(pickle.dumps(Touch(marker), protocol=2))
    with pytest.raises(ActxError):
        load(file)
    assert not marker.exists()


def test_a_pickled_module_needs_its_inputs(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(network(), file)
    with pytest.raises(UsageError, match="does not say what it takes") as caught:
        load(file, trust=True)
    assert "--input 'input:" in caught.value.remedy
    with pytest.raises(UsageError, match="are not those of its module") as caught:
        load(file, trust=True, inputs=[InputSpec.parse("x:float32[n,4]")])
    assert "it takes input" in caught.value.note
    with pytest.raises(ActxError, match="torch cannot trace") as error:
        load(file, trust=True, inputs=[InputSpec.parse("input:float32[n,5]")])
    assert "\n" not in error.value.note


def test_a_pickled_module_of_code_that_is_not_here(tmp_path: Path, factory: str) -> None:
    name = factory.partition(":")[0]
    (tmp_path / f"{name}.py").write_text("from torch import nn\nclass Net(nn.ReLU): pass\n")
    sys.path.insert(0, str(tmp_path))
    try:
        torch.save(__import__(name).Net(), "model.pt")
    finally:
        sys.path.remove(str(tmp_path))
    load(Path("model.pt"), trust=True, inputs=INPUTS)  # from the current folder
    del sys.modules[name]
    (tmp_path / f"{name}.py").unlink()
    with pytest.raises(ActxError, match="cannot be unpickled") as caught:
        load(Path("model.pt"), trust=True, inputs=INPUTS)
    assert name in caught.value.note


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {}}, [torch.zeros(2)], torch.zeros(2), {}])
def test_files_that_hold_neither_a_module_nor_weights(tmp_path: Path, content: Any, factory: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ActxError, match="holds neither a module nor a state dict"):
        load(tmp_path / "model.pt", inputs=INPUTS, factory=factory)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_weights(tmp_path: Path, share: float, kind: str, factory: str) -> None:
    file = tmp_path / "weights"
    if kind == "safetensors":
        save_file(network().state_dict(), file)
    else:
        torch.save(network().state_dict(), file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ActxError) as caught:
        load(file, inputs=INPUTS, factory=factory)
    assert str(file) in caught.value.what


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_among_the_weights_is_not_loaded(tmp_path: Path, zipped: bool, factory: str) -> None:
    marker, file = tmp_path / "marker", tmp_path / "weights.pt"
    torch.save({**network().state_dict(), "extra": Touch(marker)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ActxError, match="holds pickled objects"):
        load(file, inputs=INPUTS, factory=factory)
    assert not marker.exists()


def test_the_tar_format_of_old_is_not_read(tmp_path: Path) -> None:
    """What it holds is pickles, and torch has no safe reader for it."""
    with tarfile.open(tmp_path / "model.pt", "w:", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ActxError, match="is not a model that actx can read"):
        load(tmp_path / "model.pt", trust=True)


def test_a_changed_byte_of_the_weights(tmp_path: Path, factory: str) -> None:
    """torch looks at no checksum."""
    file = tmp_path / "weights.pt"
    torch.save(network().state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        records = [info for info in archive.infolist() if "/data/" in info.filename]
    content = bytearray(file.read_bytes())
    for info in records:
        changed = bytearray(content)
        name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
        changed[info.header_offset + 30 + name + extra] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ActxError, match="is a damaged archive") as caught:
            load(file, inputs=INPUTS, factory=factory)
        assert info.filename in caught.value.note
        assert caught.value.remedy


# --- weights ---


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "model.module."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model_state_dict"])
def test_names_that_all_weights_share_are_left_out(
    tmp_path: Path, factory: str, prefix: str, nested: str | None
) -> None:
    state = {prefix + name: tensor for name, tensor in network().state_dict().items()}
    file = tmp_path / "weights.ckpt"
    torch.save(state if nested is None else {nested: state, "epoch": 1}, file)
    loaded = load(file, inputs=INPUTS, factory=factory)
    assert bias(loaded) == state[f"{prefix}down.bias"].tolist()


def test_a_shared_name_that_the_module_has_stays(tmp_path: Path) -> None:
    """`weight` and `bias` of the module are below `0`, and so are those of the file."""
    (tmp_path / "one.py").write_text("from torch import nn\nmake = lambda: nn.Sequential(nn.Linear(4, 5))\n")
    sys.path.insert(0, str(tmp_path))
    try:
        torch.save(nn.Sequential(nn.Linear(4, 5)).state_dict(), tmp_path / "weights")
        assert load(tmp_path / "weights", inputs=INPUTS, factory="one:make").inputs
    finally:
        sys.path.remove(str(tmp_path))


def test_weights_of_another_module(tmp_path: Path, factory: str) -> None:
    state = network().state_dict()
    state["up.scale"] = state.pop("up.bias")
    save_file({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "weights")
    with pytest.raises(ActxError, match="are not those of the module of") as caught:
        load(tmp_path / "weights", inputs=INPUTS, factory=factory)
    assert caught.value.note == "1 missing, the first is up.bias; 1 unexpected, the first is up.scale"


def test_weights_of_another_type(tmp_path: Path, factory: str) -> None:
    torch.save({name: value.long() for name, value in network().state_dict().items()}, tmp_path / "m.pt")
    with pytest.raises(ActxError, match="of another type") as caught:
        load(tmp_path / "m.pt", inputs=INPUTS, factory=factory)
    assert caught.value.note == "up.weight is torch.int64, the module's is torch.float32"


def test_weights_of_another_size(tmp_path: Path, factory: str) -> None:
    state = network().state_dict()
    state["up.bias"] = torch.zeros(6)
    save_file(state, tmp_path / "weights")
    with pytest.raises(ActxError, match="do not fit the module") as caught:
        load(tmp_path / "weights", inputs=INPUTS, factory=factory)
    assert "up.bias" in caught.value.note


@pytest.mark.parametrize(
    ("function", "words"),
    [("fail", "failed"), ("nothing", "is not in its module"), ("nn.__name__", "is no callable")],
)
def test_factories_that_do_not_work(tmp_path: Path, factory: str, function: str, words: str) -> None:
    save_file(network().state_dict(), tmp_path / "weights")
    with pytest.raises(ActxError, match=words):
        load(tmp_path / "weights", inputs=INPUTS, factory=factory.replace("make", function))


def test_a_factory_that_gives_no_module(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights")
    with pytest.raises(ActxError, match="gives no torch module"):
        load(tmp_path / "weights", inputs=INPUTS, factory="collections:Counter")


def test_weights_need_a_factory(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights")
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    for name in ("weights", "weights.pt"):
        with pytest.raises(UsageError, match="holds weights without a module") as caught:
            load(tmp_path / name, inputs=INPUTS)
        assert "--model" in caught.value.remedy


def test_a_factory_that_would_not_be_used(archive: Path, tmp_path: Path, factory: str) -> None:
    torch.save(network(), tmp_path / "model.pt")
    for file in (archive, tmp_path / "model.pt"):
        with pytest.raises(UsageError) as caught:
            load(file, inputs=INPUTS, factory=factory, trust=True)
        assert "would not be used" in caught.value.note
