"""The search for the forms, as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.exporter.search.test_search import BATCH, Case

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Actx

COMMON = ("--batch-size", BATCH, "--threads", 1, "--even", "--jobs", 1)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a search measured of a site, whatever it then took."""
    case = Case.make(tmp_path_factory.mktemp("measured"), 1)
    case.export(1e-2)
    return case.log


@pytest.fixture
def case(tmp_path: Path, log: Path) -> Case:
    """One site of mish, whose measurements are in the log beside the bundle."""
    made = Case.make(tmp_path / "case", 1)
    shutil.copy(log, made.folder / "out.search.jsonl")
    return made


def arguments(case: Case, *more: object) -> tuple[object, ...]:
    return (case.folder / "model.onnx", "--data", case.folder / "data.npz", "-o", case.out, *COMMON, *more)


def test_a_budget_and_data_are_enough(actx: Actx, case: Case) -> None:
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--runs", 8))
    assert (result.code, result.err) == (0, "")
    assert "what can be had, as predicted" in result.out
    assert "built and verified; the budget is 0.01" in result.out
    assert re.search(r"1 of 1 sites are rewritten: drift \S+, within the budget of 0\.01", result.out)
    assert (case.out / "front.svg").exists()
    result = actx("check", case.folder / "model.onnx", case.out, "--data", case.folder / "data.npz", "--threads", 1)
    assert result.code == 0


def test_json_holds_the_search(actx: Actx, case: Case) -> None:
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--runs", 8, "--form", "auto", "--json"))
    assert (result.code, result.err) == (0, "")
    search = json.loads(result.out)["search"]
    assert search["budget"] == 1e-2
    assert len(search["candidates"]) == 7
    assert [entry["taken"] for entry in search["verified"]].count(True) == 1


def test_a_dry_run_keeps_only_what_it_calibrated(actx: Actx, case: Case) -> None:
    (case.folder / "out.search.jsonl").unlink()
    before = {file.name for file in case.folder.iterdir()}
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--dry-run"))
    assert (result.code, result.err) == (0, "")
    numbers = [line.split()[-1] for line in result.out.splitlines()[2:]]
    assert numbers == ["7", "7", "0"]
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--dry-run", "--json"))
    planned = json.loads(result.out)
    assert (planned["latencies"], planned["trials"], planned["known"]) == (7, 7, 0)
    assert {file.name for file in case.folder.iterdir()} == before | {"out.search.jsonl.npz"}


def test_a_log_elsewhere(actx: Actx, case: Case, log: Path) -> None:
    (case.folder / "out.search.jsonl").unlink()
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--dry-run", "--json", "--log", log))
    assert json.loads(result.out)["latencies"] == 0
    assert json.loads(result.out)["known"] >= 7
    other = case.folder / "other.jsonl"
    shutil.copy(log, other)
    assert actx("export", *arguments(case, "--max-drift", 1e-2, "--runs", 8, "--log", other)).code == 0
    assert not (case.folder / "out.search.jsonl").exists()


def test_no_time(actx: Actx, case: Case) -> None:
    (case.folder / "out.search.jsonl").unlink()
    result = actx("export", *arguments(case, "--max-drift", 1e-2, "--runs", 2, "--max-time", 0, "--json"))
    assert result.code == 0
    assert [site["form"] for site in json.loads(result.out)["sites"]] == ["keep"]
    assert "the time was over" in json.loads(result.out)["sites"][0]["reason"]


def test_pins_in_the_way(actx: Actx, case: Case) -> None:
    result = actx("export", *arguments(case, "--max-drift", 1e-9, "--runs", 2, "--site", "*=relu"))
    assert result.code == 3
    assert "in the way are " in result.err
    assert "branch.0" in result.err
    assert not case.out.exists()
    assert (case.folder / "out.rejected" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--form", "auto"), "needs --max-drift"),
        (("--form", "auto", "--max-drift", 1, "--no-profile"), "goes by latency"),
        (("--max-drift", 1, "--executor", "cloud"), "cloud"),
        (("--max-drift", 1, "--max-time", -1), "max-time"),
    ],
)
def test_requests_that_cannot_be_met(actx: Actx, case: Case, more: tuple[object, ...], words: str) -> None:
    result = actx("export", *arguments(case, *more))
    assert (result.code, result.out) == (2, "")
    assert words in result.err
