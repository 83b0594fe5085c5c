from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from actx.exporter.errors import ActxError
from actx.exporter.tensorrt.plan import Plan, read_plan

if TYPE_CHECKING:
    from pathlib import Path

HEADER = struct.pack("<4s12xQ4B", b"vtrt", 100, 1, 7, 1, 116)


def test_headers(tmp_path: Path) -> None:
    (tmp_path / "rtx").write_bytes(HEADER.ljust(100, b"\0"))
    assert read_plan(tmp_path / "rtx") == Plan(b"vtrt", 100, "1.7.1.116")
    (tmp_path / "trt").write_bytes(b"ftrt".ljust(100, b"\0"))
    assert read_plan(tmp_path / "trt") == Plan(b"ftrt", None, None)


@pytest.mark.parametrize("content", [b"", b"vtrt", b"\x08\x0a\x12\x07pytorch".ljust(100)])
def test_what_is_no_engine(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engine").write_bytes(content)
    with pytest.raises(ActxError, match="is no TensorRT engine"):
        read_plan(tmp_path / "engine")


def test_a_truncated_engine(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(HEADER.ljust(99, b"\0"))
    with pytest.raises(ActxError, match="is truncated") as error:
        read_plan(tmp_path / "engine")
    assert error.value.note == "99 bytes of 100"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="cannot read"):
        read_plan(tmp_path / "engine")
