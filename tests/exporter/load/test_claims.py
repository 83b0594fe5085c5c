"""Small files that claim to be huge: one error, and no memory is taken for what is not there."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save

from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HUGE = 1 << 40
# Imports once, and loads each file that it is given a line for in a process of its own.
LOAD = """
import json, os, resource, sys
from pathlib import Path
import torch, torch.export.pt2_archive, torch.onnx, safetensors.torch, numpy as np
from actx.exporter.data import InputSpec, load_data
from actx.exporter.errors import ActxError
from actx.exporter.load import load

def attempt(kind, file):
    page = resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[0]) * page
    resource.setrlimit(resource.RLIMIT_AS, (before + (1 << 30),) * 2)
    try:
        if kind == "data":
            for _ in load_data(file, [InputSpec.parse("x:float32[n,m]")]): pass
        else:
            load(Path(file), inputs=[InputSpec.parse("input:float32[n,4]")])
    except ActxError as error:
        print("ActxError:", error, flush=True)

for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1)
        os.dup2(write, 2)
        attempt(*json.loads(line))
        os._exit(0)
    os.close(write)
    with open(read) as output:
        text = output.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]), flush=True)
"""


@pytest.fixture(scope="module")
def loader() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


def onnx_initializer() -> bytes:
    proto = SPELLINGS["gelu_op"].model(20)
    proto.graph.initializer[0].dims[:] = [HUGE, HUGE]
    return proto.SerializeToString()


def onnx_negative() -> bytes:
    proto = SPELLINGS["gelu_op"].model(20)
    proto.graph.initializer[0].dims[:] = [-HUGE, -1]
    return proto.SerializeToString()


def onnx_external() -> bytes:
    proto = SPELLINGS["gelu_op"].model(20)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [HUGE]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model"), ("offset", "0"), ("length", str(4 * HUGE))):
        tensor.external_data.add(key=key, value=value)
    return proto.SerializeToString()


def safetensors_offsets() -> bytes:
    header = json.dumps({"up.weight": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def safetensors_header() -> bytes:
    return struct.pack("<Q", HUGE) + b'{"a":' + bytes(1000)


def safetensors_shape() -> bytes:
    return save({"up.weight": torch.zeros(4)}).replace(b"[4]", b"[9]")


def archive_record() -> bytes:
    content = io.BytesIO()
    torch.save({"up.weight": torch.zeros(4)}, content)
    data = bytearray(content.getvalue())
    place = data.rindex(b"PK\x01\x02")
    struct.pack_into("<II", data, place + 20, 0xFFFFFFF0, 0xFFFFFFF0)
    return bytes(data)


def archive_storage() -> bytes:
    """The pickle in the archive says that a storage of 4 elements has 2**31 - 1."""
    content, changed = io.BytesIO(), io.BytesIO()
    torch.save({"up.weight": torch.zeros(77)}, content)
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(changed, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(
                info.filename, data.replace(b"KM", b"J\xff\xff\xff\x7f") if "data.pkl" in info.filename else data
            )
    assert changed.getvalue() != content.getvalue()
    return changed.getvalue().replace(b"KM", b"J\xff\xff\xff\x7f")


def archive_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(1 << 26))
        target.writestr("archive/version", "3")
    return content.getvalue()


def pt2_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("model/archive_format", "pt2")
        target.writestr("model/models/model.json", bytes(1 << 26))
    return content.getvalue()


def legacy_storage() -> bytes:
    content = io.BytesIO()
    torch.save({"up.weight": torch.zeros(77)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue().replace(b"KM", b"J\xff\xff\xff\x7f")


def legacy_string() -> bytes:
    """A pickle with a string of 2 GiB less one byte."""
    return b"\x80\x02X\xff\xff\xff\x7fabc"


MODELS: dict[str, Callable[[], bytes]] = {
    function.__name__: function
    for function in (
        onnx_initializer, onnx_negative, onnx_external, safetensors_offsets, safetensors_header, safetensors_shape,
        archive_record, archive_storage, archive_bomb, pt2_bomb, legacy_storage, legacy_string,
    )
}  # fmt: skip


def npy(shape: str, data: bytes = bytes(64)) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npz(member: bytes, method: int = zipfile.ZIP_STORED, name: str = "x.npy") -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as target:
        target.writestr(name, member)
    return content.getvalue()


def npz_record() -> bytes:
    data = bytearray(npz(npy("(4, 4)"), zipfile.ZIP_DEFLATED))
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, 0xFFFFFFF0)
    return bytes(data)


DATA: dict[str, Callable[[], bytes]] = {
    "shape": lambda: npz(npy(f"({HUGE}, {HUGE})")),
    "shape of memory": lambda: npz(npy("(1073741824, 4)")),
    "negative shape": lambda: npz(npy("(-1, 4)")),
    "header": lambda: npz(b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{" + bytes(100)),
    "record": npz_record,
    "bare array": lambda: npy(f"({HUGE},)"),
}


def outcome(loader: subprocess.Popen[str], kind: str, file: Path) -> str:
    assert loader.stdin is not None
    assert loader.stdout is not None
    loader.stdin.write(json.dumps([kind, str(file)]) + "\n")
    loader.stdin.flush()
    code, text = json.loads(loader.stdout.readline())
    assert code == 0, text
    return str(text)


def check(text: str, file: Path) -> None:
    assert text.startswith("ActxError: "), text
    what, *rest = text.removeprefix("ActxError: ").splitlines()
    assert str(file) in what
    assert rest


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path, loader: subprocess.Popen[str]) -> None:
    file = tmp_path / "model"
    file.write_bytes(MODELS[name]())
    assert file.stat().st_size < 100_000
    check(outcome(loader, "model", file), file)


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, tmp_path: Path, loader: subprocess.Popen[str]) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(DATA[name]())
    check(outcome(loader, "data", file), file)
