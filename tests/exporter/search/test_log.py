"""The log of measurements: what a crash, another process or another version leaves in it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.search.log import Log, measurement_key

if TYPE_CHECKING:
    from pathlib import Path


def same(value: Any) -> Any:
    return value


def test_values_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = Log(file)
    log.put("a", "sensitivity", {"site": "ffn"}, {"drift": 0.1, "reason": ""})
    log.put("b", "latency", {}, [1, 2.5])
    log.put("a", "sensitivity", {"site": "ffn"}, {"drift": 1e-300, "reason": "\n"})
    for found in (log, Log(file)):
        assert found.get("a", same) == {"drift": 1e-300, "reason": "\n"}
        assert found.get("b", same) == [1, 2.5]
        assert found.get("c", same) is None
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["sensitivity", "latency", "sensitivity"]
    assert lines[0]["about"] == {"site": "ffn"}


def test_without_a_file_values_are_kept_in_memory() -> None:
    log = Log()
    log.put("a", "latency", {}, 1)
    assert log.get("a", same) == 1
    assert Log().get("a", same) is None


@pytest.mark.parametrize("cut", [1, 2, 20, 10_000])
def test_a_line_that_was_cut_short_is_removed(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "log.jsonl"
    for key in "abc":
        Log(file).put(key, "latency", {}, key)
    whole = file.read_bytes()
    file.write_bytes(whole[: -min(cut, len(whole) // 3)])
    log = Log(file)
    assert [log.get(key, same) for key in "abc"] == ["a", "b", None]
    log.put("d", "latency", {}, "d")
    log.put("c", "latency", {}, "c")
    assert [Log(file).get(key, same) for key in "abcd"] == list("abcd")
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_file_of_nothing_whole(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"key": "a", "kind"')
    Log(file).put("b", "latency", {}, 1)
    assert Log(file).get("b", same) == 1
    assert len(file.read_text().splitlines()) == 1


def test_lines_of_another_version_are_not_read_and_stay(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    foreign = [
        '{"key": "a", "kind": "latency", "about": {}, "value": 1, "version": 2}',
        '{"key": "a", "value": 1}',
        '{"key": 5, "kind": "latency", "about": {}, "value": 1}',
        "[1, 2]",
        "no JSON",
        "",
    ]
    file.write_bytes("\n".join(foreign).encode() + b"\0\0\xff\n")
    log = Log(file)
    assert log.get("a", same) is None
    log.put("b", "latency", {}, 2)
    assert Log(file).get("b", same) == 2
    assert file.read_bytes().startswith("\n".join(foreign).encode())


def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    code = (
        "import sys; from pathlib import Path; from actx.exporter.search.log import Log\n"
        "log = Log(Path(sys.argv[1]))\n"
        "for i in range(100): log.put(f'{sys.argv[2]}-{i}', 'latency', {}, 'x' * 5000)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(file), str(i)]) for i in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    log = Log(file)
    assert all(log.get(f"{process}-{i}", same) == "x" * 5000 for process in range(3) for i in range(100))


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ActxError, match="cannot read"):
        Log(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ActxError, match="does not exist"):
        Log(tmp_path / "file" / "log.jsonl")
    log = Log(tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ActxError, match="cannot write"):
        log.put("a", "latency", {}, 1)
    assert log.get("a", same) is None


def test_keys_tell_what_is_measured_apart() -> None:
    assert measurement_key("a", {"x": 1, "y": [2.5]}) == measurement_key("a", {"y": (2.5,), "x": 1})
    keys = {measurement_key(*parts) for parts in (("a",), ("b",), ("a", 1), ("a", 1.5), ("a", [1]), ("a", 1, 1))}
    assert len(keys) == 6
    with pytest.raises(ValueError, match="not JSON compliant"):
        measurement_key("a", float("inf"))


def test_a_value_that_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = Log(file)
    for key, value in {"a": {"ms": "soon"}, "b": [], "c": None, "d": {"ms": 2}}.items():
        log.put(key, "test", {}, value)
    assert [Log(file).get(key, lambda value: float(value["ms"])) for key in "abcd"] == [None, None, None, 2.0]


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x08\x08\x12\x04\n")
    with pytest.raises(UsageError, match="is no log of a search"):
        Log(file)
    with pytest.raises(ActxError, match="does not exist"):
        Log(tmp_path / "nowhere" / "log.jsonl")
    assert file.read_bytes() == b"\x08\x08\x12\x04\n"
