"""`actx compare`, on what the other verbs wrote and printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actx.exporter import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Actx


def test_compare(actx: Actx, model: Path, tmp_path: Path) -> None:
    for name, form in (("coarse", "pwl:4"), ("fine", "pwl:16")):
        exported = actx("export", model, "-o", tmp_path / name, "--form", form, "--runs", 2, "--json")
        assert exported.code == 0
    printed = {
        "export": exported.out,
        "check": actx("check", model, tmp_path / "fine", "--json").out,
        "profile": actx("profile", model, tmp_path / "fine", "--runs", 2, "--json").out,
        "report": report(tmp_path / "fine", format="json"),
    }
    for verb, text in printed.items():
        (tmp_path / f"fine.{verb}.json").write_text(text)

    # Of all kinds, with all others.
    kinds = ("", ".export.json", ".check.json", ".profile.json", ".report.json", "/manifest.json")
    sides = [f"{tmp_path / 'fine'}{kind}" for kind in kinds]
    result = actx("compare", tmp_path / "coarse", *sides, "--json")
    assert (result.code, result.err) == (0, "")
    rows = {row["quantity"]: row for row in json.loads(result.out)["rows"]}
    changes = [change["status"] for change in rows["drift.l2"]["changes"]]
    assert changes == ["better", "better", "better", "not judged", "better", "better"]
    assert [value is not None for value in rows["latency.p50"]["values"]] == [True, True, True, False, True, True, True]
    assert [value is not None for value in rows["size"]["values"]] == [True, True, *[False] * 5]
    assert actx("compare", tmp_path / "coarse", *sides, "--format", "json").out == result.out

    # As a table, and as a comment.
    result = actx("compare", tmp_path / "fine", tmp_path / "coarse")
    assert (result.code, result.err) == (0, "")
    assert "coarse against fine" in result.out
    assert "pwl:16  pwl:4" in result.out
    assert result.out.index("worse") < result.out.index("latency.ratio")
    comment = actx("compare", tmp_path / "fine", tmp_path / "coarse", "--format", "md")
    assert comment.out.startswith("### `coarse` against `fine`\n")

    # In CI.
    arguments = ("compare", tmp_path / "fine", tmp_path / "coarse", "--fail-if", "drift.l2 > 1.5 * base")
    result = actx(*arguments, "--fail-if", "size > 2 * base")
    assert result.code == 3
    assert "drift.l2 > 1.5 * base holds for coarse: " in result.out
    assert "size > 2 * base does not hold for coarse: " in result.out
    assert result.err.startswith("Error: 1 of 2 conditions of --fail-if holds\nNote: drift.l2 > 1.5 * base: ")
    for flags in (("--json",), ("--format", "md")):
        result = actx(*arguments, *flags)
        assert (result.code, len(result.err.splitlines())) == (3, 3)
        assert "drift.l2 > 1.5 * base" in result.out
    assert actx("compare", tmp_path / "coarse", tmp_path / "fine", "--fail-if", "drift.l2 > 1.5 * base").code == 0


def test_errors(actx: Actx, tmp_path: Path) -> None:
    for arguments, code in (
        ((tmp_path,), 2),
        ((tmp_path, tmp_path), 1),
        ((tmp_path, tmp_path, "--format", "html"), 2),
        ((tmp_path, tmp_path, "--fail-if", "latency.p50"), 2),
    ):
        result = actx("compare", *arguments)
        assert (result.code, result.out) == (code, "")
        assert result.err.startswith("Error: ")
        assert len(result.err.splitlines()) <= 3
