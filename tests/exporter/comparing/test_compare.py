"""What became worse is said, and nothing else is called so."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

from actx.exporter import compare
from actx.exporter.errors import ActxError, UsageError
from tests.exporter.comparing.sides import RUNTIME, drift, latency, manifest, site, written
from tests.exporter.reporting.conftest import HOSTILE
from tests.exporter.reporting.page import parse

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.comparing import Compared
    from actx.exporter.comparing.rows import Row


@pytest.fixture
def against(tmp_path: Path) -> Any:
    """Compare contents, as files, with a base."""

    def call(*contents: object, fail_if: tuple[str, ...] = ()) -> Compared:
        files = [written(content, tmp_path / f"{'abcdef'[i]}.json") for i, content in enumerate(contents)]
        return compare(*files, fail_if=fail_if)

    return call


def row(compared: Compared, quantity: str) -> Row:
    (found,) = (row for row in compared.rows if row.quantity == quantity)
    return found


def status(compared: Compared, quantity: str) -> str:
    return row(compared, quantity).changes[0].status


# --- what is judged ---


def test_regressions_stand_first(against: Any) -> None:
    compared = against(latency(2.0), latency(3.0, interval=(1.2, 1.3), verdict="faster"))
    statuses = [row.changes[0].status for row in compared.rows]
    assert statuses == sorted(statuses, key=["worse", "better", "same", "not judged"].index)
    for name in ("p50", "p90", "p99", "min", "throughput"):
        assert status(compared, f"latency.{name}") == "worse"
    assert status(compared, "latency.ratio") == "better"  # the intervals do not meet
    assert status(compared, "latency.load") == status(compared, "latency.peak_memory") == "same"
    assert status(compared, "original.p50") == "not judged"
    assert row(compared, "latency.p50").changes[0].ratio == pytest.approx(1.5)
    assert compared.facts["verdict on its own original"] == ("no difference", "faster")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (latency(2.02, noise=1.0), "same"),  # 1 %
        (latency(2.1), "worse"),
        (latency(1.9), "better"),
        (latency(2.1, noise=1.1), "same"),  # of the rounds
        (latency(2.1, again={"p50": 2.2}), "same"),  # of that percentile
        (latency(2.1, again={"p99": 9.0}), "worse"),  # of another one
        (latency(2.1, original=2.09), "same"),  # the machine was slower
        (latency(2.1, original=1.9), "worse"),
        (latency(2.1, noise="inf"), "same"),  # type: ignore[arg-type]
        (latency(math.nan), "not judged"),
    ],
)
def test_a_change_is_one_beyond_noise(against: Any, other: dict[str, Any], expected: str) -> None:
    assert status(against(latency(2.0), other), "latency.p50") == expected


def test_another_original_says_nothing_of_the_machine(tmp_path: Path) -> None:
    base = written(manifest(latency=latency(2.0)), tmp_path / "base")
    other = manifest(latency=latency(2.1, original=2.09), request={"quant": "int8"})
    assert status(compare(base, written(other, tmp_path / "other")), "latency.p50") == "worse"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"runtime": RUNTIME | {"cpu": "Atom"}}, "other machine"),
        ({"runtime": RUNTIME | {"gpu": {"name": "Orin"}}}, "other machine"),
        ({"shapes": [{"x": [8, 4]}]}, "other input shapes"),
        ({"runtime": RUNTIME | {"threads_used": 4}}, ""),
    ],
)
def test_what_does_not_stand_beside_each_other(against: Any, changed: dict[str, Any], reason: str) -> None:
    compared = against(latency(2.0), latency(9.0, **changed))
    assert row(compared, "latency.p50").changes[0].reason == reason
    assert status(compared, "latency.p50") == ("not judged" if reason else "worse")
    assert any("different machines" in note for note in compared.notes) == (reason == "other machine")
    assert (f"+350.0 % ({reason})" in compared.to_markdown()) == bool(reason)


def test_drift_of_metrics_and_outputs(against: Any) -> None:
    compared = against(drift({"a": 0.1, "b": 0.2}), drift({"a": 0.1, "b": 0.1, "c": 0.3}))
    assert row(compared, "drift.l2").values == (0.2, 0.3)
    assert status(compared, "drift.l2") == "worse"
    assert status(compared, 'drift.l2["a"]') == "same"
    assert status(compared, 'drift.l2["b"]') == "better"
    assert row(compared, 'drift.l2["c"]').values == (None, 0.3)
    assert all(row.quantity != "drift.kl" for row in compared.rows)  # no output has it


def test_drift_on_other_data_is_not_judged(against: Any) -> None:
    for other in ({"samples": 15}, {"source": "data/test.npz"}):
        compared = against(drift({"a": 0.1}), drift({"a": 0.2}, **other))
        assert row(compared, "drift.l2").changes[0].reason == "other data"
    assert status(against(drift({"a": 0.1}), drift({"a": 0.2}, source="elsewhere/eval.npz")), "drift.l2") == "worse"


def test_infinite_drift_and_a_metric_of_the_users(against: Any) -> None:
    base = drift({"a": 0.0}, metric="pkg.mod:error", drift=0.5)
    other = drift({"a": 0.0}, metric="pkg.mod:error", drift="inf")
    compared = against(base, other, fail_if=('drift["pkg.mod:error"] > base',))
    assert status(compared, 'drift["pkg.mod:error"]') == "worse"
    assert status(compared, "drift.l2") == "same"
    assert not compared
    assert json.loads(json.dumps(compared.to_dict(), allow_nan=False))["outcomes"][0]["value"] == "inf"


def test_more_accuracy_is_better(against: Any) -> None:
    accuracies = ({"output": "a", "labels": 9, "original": 1, "artifact": share} for share in (0.8, 0.9))
    compared = against(*(drift({"a": 0.1}, accuracy=accuracy) for accuracy in accuracies))
    assert status(compared, "accuracy") == "better"


def test_synthetic_input_is_said(against: Any) -> None:
    compared = against(latency(2.0), latency(2.0, synthetic=True))
    assert compared.notes == ("the latency was measured on random input (synthetic) (b.json)",)


# --- bundles ---


def test_forms_facts_and_sizes(tmp_path: Path) -> None:
    files = [{"weights.data": b"0" * 900, "model.onnx": b"0" * size} for size in (100, 200, 100)]
    names = [
        {name: hashlib.sha256(content).hexdigest() for name, content in one.items()}
        | {"kernels/linux-aarch64/libactx_ops.so": "0" * 64}
        for one in files
    ]
    contents = [
        manifest({"a": "keep", "b": "keep"}, files=names[0]),
        manifest({"a": "keep", "b": "relu"}, files=names[1], request={"target": "openvino", "quant": "int8"}),
        manifest({"a": "keep", "c": "relu"}, files=names[2], source=manifest()["source"] | {"sha256": "1" * 64}),
    ]
    folders = [written(content, tmp_path / name) for name, content in zip("xyz", contents, strict=True)]
    for folder, one in zip(folders, files, strict=True):
        for name, content in one.items():
            (folder / name).write_bytes(content)
    compared = compare(*folders)
    assert compared.names == ("x", "y", "z")
    assert compared.facts["target"] == ("ort-cpu", "openvino", "ort-cpu")
    assert compared.facts["scheme"] == ("none", "int8", "none")
    assert compared.forms == {"b": ("keep", "relu", None), "c": (None, None, "relu")}
    assert row(compared, "size").values == (1000, 1100, 1000)
    assert [change.status for change in row(compared, 'size["model.onnx"]').changes] == ["worse", "same"]
    assert all("aarch64" not in row.quantity for row in compared.rows)
    assert compared.notes[0].startswith("they are of different models: model.onnx (sha256 000000000000) (x); ")


@pytest.mark.parametrize("damaged", [None, b"", b"0" * 99 + b"1"], ids=["missing", "cut short", "changed"])
def test_a_bundle_that_is_not_what_was_exported_is_refused(damaged: bytes | None, tmp_path: Path) -> None:
    names = {"model.onnx": hashlib.sha256(b"0" * 100).hexdigest()}
    folders = [written(manifest({"a": "keep"}, files=names), tmp_path / name) for name in "xy"]
    for folder, content in zip(folders, (b"0" * 100, damaged), strict=True):
        if content is not None:
            (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ActxError, match=re.escape("model.onnx")):
        compare(*folders)


def test_equal_names_are_given_as_paths(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    files = [written(latency(2.0), tmp_path / name / "out.json") for name in ("old", "new")]
    assert compare(*files).names == tuple(map(str, files))


# --- conditions ---


def test_conditions_are_judged_on_every_side_but_the_base(against: Any) -> None:
    conditions = ("latency.p50 > 1.05 * base", "drift.l2 > 1")
    parts = [manifest(latency=latency(p50), drift=[drift({"a": 0.1})]) for p50 in (2.0, 2.05, 2.5)]
    compared = against(*parts, fail_if=conditions)
    assert [(one.side, one.holds) for one in compared.outcomes] == [
        *(("b.json", False), ("c.json", True), ("b.json", False), ("c.json", False)),
    ]
    assert [(one.condition, one.side) for one in compared.held] == [(conditions[0], "c.json")]
    assert not compared
    assert compared.to_dict()["passed"] is False
    assert "**fails**" in compared.to_markdown()
    assert against(*parts[:2], fail_if=conditions)


def test_a_condition_on_what_was_not_measured_is_an_error(against: Any) -> None:
    for contents in ((latency(2.0), drift({"a": 0.1})), (drift({"a": 0.1}), latency(2.0))):
        with pytest.raises(ActxError, match="cannot be judged"):
            against(*contents, fail_if=("latency.p50 > 1.05 * base",))
    with pytest.raises(ActxError, match="cannot be judged"):
        against(latency(2.0), latency(math.nan), fail_if=("latency.p50 > 1",))
    with pytest.raises(UsageError, match=r"unknown quantity latency\.p51"):
        against(latency(2.0), latency(2.0), fail_if=("latency.p51 > 1",))


# --- text ---


def rendered(text: str) -> Any:
    return parse(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = [*HOSTILE.values(), "a|b`c``d\ne", "\\", '"] > 0 or base["', ""]
    outputs = {name: 0.1 * i for i, name in enumerate(names)}
    files = [
        written(
            manifest(dict.fromkeys(names, form), drift=[drift(outputs)], latency=latency(2.0, notes=names)),
            tmp_path / f"{form}<script>|`.json",
        )
        for form in ("keep", "relu")
    ]
    text = compare(*files, fail_if=("latency.p50 > 9",)).to_markdown()
    page = rendered(text)
    tags = set(re.findall(r"<(\w+)", MarkdownIt("commonmark", {"html": True}).enable("table").render(text)))
    assert tags <= {"h3", "code", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    for table, columns in zip(page.all("table"), (3, 4, 3), strict=True):
        assert {len([*line.all("td"), *line.all("th")]) for line in table.all("tr")} == {columns}
    assert len(page.all("table")[2].all("tr")) == 1 + len(names)
    assert "\u202e" not in text
    assert len(text) < 30_000


def test_many_sites_are_cut_in_a_comment(against: Any) -> None:
    sites = [f"layers.{i}" for i in range(2000)]
    compared = against(*(manifest(dict.fromkeys(sites, form)) for form in ("keep", "relu")))
    assert len(compared.forms) == 2000
    assert "1950 more sites" in compared.to_markdown()
    assert len(compared.to_markdown()) < 10_000


def test_the_object_is_json(against: Any) -> None:
    compared = against(latency(2.0), latency(3.0, noise=math.inf))
    found = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert found["names"] == ["a.json", "b.json"]
    assert found["passed"] is True
    assert {"quantity", "unit", "values", "changes"} == found["rows"][0].keys()


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "holds no object"),
        ({}, "none of their fields"),
        ({"comparison": 1}, "graph: Field required"),
        (latency(2.0) | {"surplus": 1}, "surplus"),
        (drift({"a": 0.1}) | {"drift": "many"}, "drift"),
        ({"rewritten": 1}, "bundle"),
        (manifest() | {"latency": {}}, "latency"),
        (manifest() | {"version": 1}, "reads 2"),
        (manifest() | {"sites": [site("a", "keep") | {"form": 3}]}, "sites.0.form"),
    ],
)
def test_other_objects(against: Any, content: object, words: str) -> None:
    with pytest.raises(ActxError) as error:
        against(latency(2.0), content)
    assert words in error.value.note
    assert error.value.remedy


def test_other_files(tmp_path: Path) -> None:
    good = written(latency(2.0), tmp_path / "good.json")
    (tmp_path / "binary.onnx").write_bytes(b"\x80\xff")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder").mkdir()
    for name in ("missing", "binary.onnx", "deep.json", "folder", "n" * 300, "null\0"):
        with pytest.raises(ActxError, match=name[:4]) as error:
            compare(good, tmp_path / name)
        assert error.value.exit_code == 1
        assert error.value.remedy
    with pytest.raises(UsageError, match="one thing alone"):
        compare(good)


def test_it_loads_no_runtime(tmp_path: Path) -> None:
    files = [str(written(latency(2.0), tmp_path / f"{name}.json")) for name in "ab"]
    code = f"""
import sys
from actx.exporter import compare
compare(*{files!r})
sys.exit(f"imported {{loaded}}" if (loaded := {{"torch", "onnxruntime", "matplotlib"}} & set(sys.modules)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
