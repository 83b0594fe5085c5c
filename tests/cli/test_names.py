"""Names that no one would give: the terminal is not obeyed, files keep their names, and the model is exported."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Actx

NAMES = {
    "line break": "a\nb\r\nc",
    "quotes": "a'\"`$(b)",
    "long": "n" * 10_000,
    "path": "../../../etc/passwd",
    "absolute path": "/etc/passwd",
    "escape sequence": "\x1b[2J\x1b]0;title\x07x",
    "null": "a\0b",
    "blank": " ",
    "right to left": "a\u202eb",
    "dots": "..",
}
PLACES = ("graph", "node", "value", "initializer", "input", "output", "dimension")


def renamed(place: str, name: str) -> onnx.ModelProto:
    proto = SPELLINGS["gelu_op"].model(20)
    graph = proto.graph
    values = {"value": graph.node[1].output[0], "initializer": "up.weight", "input": "x", "output": "y"}
    if place == "graph":
        graph.name = name
    elif place == "node":
        for i, node in enumerate(graph.node):
            node.name = f"{name}{i}"
    elif place == "dimension":
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    else:
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [name if value == values[place] else value for value in names]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = name if value.name == values[place] else value.name
    return proto


# Every name in one place, and in every place one that is bad everywhere.
@pytest.mark.parametrize(
    ("place", "case"), sorted({*(("node", case) for case in NAMES), *((place, "escape sequence") for place in PLACES)})
)
def test_odd_names(actx: Actx, tmp_path: Path, place: str, case: str) -> None:
    file, out = tmp_path / "model.onnx", tmp_path / "out"
    onnx.save(renamed(place, NAMES[case]), file)
    inspected = actx("inspect", file, "--explain")
    exported = actx("export", file, "-o", out, "--form", "pwl:8", "--runs", 2)
    assert (inspected.code, exported.code) == (0, 0)
    assert inspected.err == exported.err == ""
    assert "gelu" in inspected.out
    for line in (inspected.out + exported.out).splitlines():
        assert line.isprintable()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "out"]
    assert len(list(out.iterdir())) == 5
    assert json.loads((out / "manifest.json").read_text())["sites"][0]["kind"] == "gelu"


@pytest.mark.parametrize("place", ["input", "output"])
def test_an_input_or_output_without_a_name(actx: Actx, tmp_path: Path, place: str) -> None:
    onnx.save(renamed(place, ""), tmp_path / "model.onnx")
    result = actx("export", tmp_path / "model.onnx", "-o", tmp_path / "out")
    assert result.code == 1
    assert "has no name" in result.err
    assert len(result.err.splitlines()) == 3


def test_odd_names_in_errors(actx: Actx, tmp_path: Path) -> None:
    onnx.save(renamed("input", NAMES["escape sequence"]), tmp_path / "model.onnx")
    result = actx("inspect", tmp_path / "model.onnx", "--input", "z:float32[2]")
    assert result.code == 2
    assert all(line.isprintable() for line in result.err.splitlines())
