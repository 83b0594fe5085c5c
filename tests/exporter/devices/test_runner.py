"""What is sent to a device: the syntax of Python 3.8, and messages that are checked."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import subprocess
import sys

import numpy as np
import pytest

from actx.exporter.devices import frames, link
from actx.exporter.devices.replies import Hello
from actx.exporter.turns import take_round, take_turns

ALLOWED = {"numpy", "onnxruntime", "actx"}


@pytest.mark.parametrize("name", link.MODULES)
def test_a_module_that_is_sent_needs_python_3_8_numpy_and_onnxruntime_alone(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(name)), feature_version=(3, 8))
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    imports = [node for node in ast.walk(tree) if node not in guarded]
    roots = {alias.name.split(".")[0] for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules = [node.module or "" for node in imports if isinstance(node, ast.ImportFrom)]
    roots |= {module.split(".")[0] for module in modules}
    assert roots <= ALLOWED | set(sys.stdlib_module_names)
    ours = {
        f"{node.module}.{alias.name}"
        for node in imports
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("actx")
        for alias in node.names
    }
    assert all(
        any(one in {sent, one.rpartition(".")[0]} for sent in link.MODULES) or one.rpartition(".")[0] in link.MODULES
        for one in ours
    )


def test_the_runner_starts_where_nothing_of_actx_is() -> None:
    """-I -S: neither the folder nor the site packages of the tests."""
    command = [sys.executable, "-I", "-S", "-c", link.BOOTSTRAP]
    text = link.program()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"%d\n%s" % (len(text), text))
        process.stdin.flush()
        assert process.stdout.read(len(frames.GREETING)) == frames.GREETING
        assert frames.read(process.stdout)[0]["missing"] == "numpy"


def test_arrays_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((2, 3)).astype(np.float32),
        "half": rng.standard_normal((3, 2)).astype(np.float16).T,
        "none": np.zeros((0, 4), np.int64),
        "one": np.array(True),
        "": np.arange(5, dtype=np.uint8)[::-1],
    }
    stream = io.BytesIO()
    described, parts = frames.describe(given)
    frames.write(stream, {"arrays": described}, parts)
    stream.seek(0)
    message, size = frames.read(stream)
    found = frames.arrays(message["arrays"], frames.take(stream, size))
    assert list(found) == list(given)
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("described", "payload"),
    [
        ([["x", "<f4", [2]]], b"1234"),
        ([["x", "<f4", [1]]], b"12345678"),
        ([["x", "O", [1]]], b"12345678"),
        ([["x", "<f4", [-1]]], b"1234"),
        ([["x", "<f4", [1 << 62]]], b"1234"),
        ([["x", "<f4", "1"]], b"1234"),
        ([["x"]], b""),
        (["x"], b""),
    ],
)
def test_arrays_that_are_not_there(described: list[list[object]], payload: bytes) -> None:
    with pytest.raises(frames.MalformedError):
        frames.arrays(described, payload)


@pytest.mark.parametrize("content", [b"\xff" * 12, b"\0\0\0\2" + bytes(8) + b"[]", b"\0\0\0\1" + bytes(8) + b"{"])
def test_what_is_no_message(content: bytes) -> None:
    with pytest.raises(frames.MalformedError):
        frames.read(io.BytesIO(content))


def test_a_message_that_claims_more_than_comes_takes_no_memory_for_it() -> None:
    with pytest.raises(EOFError):
        frames.take(io.BytesIO(b"few"), 1 << 60)


def test_a_device_cannot_name_itself_what_it_likes() -> None:
    found = {
        "model": None, "architecture": "x86_64", "libc": None, "cores": [0], "versions": {"onnxruntime": "1", "numpy": "2"},
        "machine": {"python": "3", "system": "Linux", "cpu": "c", "cores": 1, "governors": []},
    }  # fmt: skip
    assert Hello.model_validate(found).cores == [0]
    for wrong in ({"cores": [-1]}, {"cores": "all"}, {"further": 1}, {"versions": {}}):
        with pytest.raises(ValueError, match="validation error"):
            Hello.model_validate(found | wrong)


def test_sessions_are_opened_and_run_in_the_orders_that_are_given() -> None:
    log: list[str] = []

    def start(which: int) -> tuple[object, object]:
        log.append(f"open {which}")

        def timer() -> object:
            def run() -> int:
                log.append(str(which))
                return 100 + which

            return run

        return (lambda: log.append(f"first {which}")), timer

    orders = [[1, 0], [0, 1], [1, 0], [0, 1], [0, 1], [1, 0]]
    started, turns = take_round(start, iter(orders), 10**9)  # type: ignore[arg-type]
    assert log == ["open 1", "first 1", "open 0", "first 0", *"01", *"10", *"01", *"01"]
    assert turns == [[100, 101]] * 3, "the first turn is for warm-up, and three that agree are enough"
    assert np.shape(started) == (2, 2)


def test_turns_end_for_lack_of_time() -> None:
    times = iter([10, *range(1000, 100, -100)])
    assert take_turns(lambda _: next(times), iter([[0]] * 10), most=1500) == [[1000], [900], [800]]
