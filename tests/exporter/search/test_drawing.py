from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from actx.exporter.errors import UsageError
from actx.exporter.search.drawing import Verified, draw
from actx.exporter.search.solve import Point

if TYPE_CHECKING:
    from pathlib import Path

KEPT = Point(0.0, 0.0, (0, 0))
FRONT = (KEPT, Point(1.0, 1e-5, (1, 0)), Point(1.5, 3e-2, (1, 1)))
VERIFIED = (Verified(1.5, 2e-2), Verified(1.0, 2e-5, "pwl:8"))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("front", [FRONT, (KEPT,)], ids=["front", "nothing is faster"])
@pytest.mark.parametrize("budget", [1e-3, 0.0])
def test_pictures_are_the_same_every_time(tmp_path: Path, front: tuple[Point, ...], budget: float, suffix: str) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        draw(front, VERIFIED if len(front) > 1 else (), budget, 10.0, path)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert b"dc:date" not in first.read_bytes()


def test_everything_given_is_named(tmp_path: Path) -> None:
    """Text is drawn as outlines, and the SVG says in comments what each says."""
    draw(FRONT, VERIFIED, 1e-3, 10.0, tmp_path / "a.svg", metric="cosine")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert {
        "cosine", "milliseconds per inference", "predicted front", "budget 0.001", "verified", "verified, chosen", "pwl:8",
        "original", "0",
    } <= set(texts)  # fmt: skip


def test_an_original_that_is_kept_is_drawn_once(tmp_path: Path) -> None:
    draw((KEPT,), (Verified(0.0, 0.0, "kept"),), 1e-3, 10.0, tmp_path / "a.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert "kept" in texts
    assert not {"original", "predicted front", "verified"} & set(texts)


def test_drifts_of_all_sizes_are_drawn(tmp_path: Path) -> None:
    front = [KEPT, *(Point(float(i), 10.0 ** (3 * i - 12), ()) for i in range(1, 6))]
    draw(front, [Verified(2.0, 7.0, "x")], 1e3, 10.0, tmp_path / "a.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text(encoding="utf-8"))
    assert 4 <= sum("10^" in text for text in texts) <= 16


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot draw to a\.pdf"):
        draw(FRONT, (), 1e-3, 10.0, tmp_path / "a.pdf")
