"""`actx report`, as a user runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from actx.exporter import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Actx


def test_report(actx: Actx, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert actx("export", model, "-o", out, "--form", "pwl:8", "--no-profile").code == 0
    assert (out / "report.html").read_text(encoding="utf-8") == report(out)
    before = sorted(file.name for file in out.iterdir())

    result = actx("report", out)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"report: {tmp_path / 'out.report.html'}\n"
    assert (tmp_path / "out.report.html").read_text(encoding="utf-8") == report(out)
    assert sorted(file.name for file in out.iterdir()) == before

    result = actx("report", out, "--format", "md")
    assert (result.code, result.err, result.out) == (0, "", report(out, format="md"))
    assert json.loads(actx("report", out, "--format", "json").out)["sites"] == 3
    assert actx("report", out, "--format", "md", "-o", tmp_path / "comment.md").code == 0
    assert (tmp_path / "comment.md").exists()

    printed = json.loads(actx("report", out, "-o", tmp_path / "page.html", "--json").out)
    assert printed["file"] == str(tmp_path / "page.html")
    assert printed["drift"]["synthetic"] is True


def test_errors(actx: Actx, tmp_path: Path) -> None:
    for arguments, code in ((("report", tmp_path), 1), (("report", tmp_path, "--format", "pdf"), 2)):
        result = actx(*arguments)
        assert (result.code, result.out) == (code, "")
        assert result.err.startswith("Error: ")
        assert len(result.err.splitlines()) <= 3
