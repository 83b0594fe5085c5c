"""The report says what the manifest says, and nothing that the model says becomes markup."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import typer.main
from markdown_it import MarkdownIt

from actx.cli.main import app
from actx.exporter import report
from actx.exporter.bundle import verify
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.manifest import Manifest
from actx.exporter.reporting import ReportFormat, words
from actx.exporter.reporting.command import commands
from tests.exporter.reporting.conftest import HOSTILE, read, write
from tests.exporter.reporting.page import Node, parse

if TYPE_CHECKING:
    from pathlib import Path


def cells(page: Node, table: str) -> list[list[str]]:
    """The rows of a table's body, by its id."""
    rows = page.one("table", id=table).one("tbody").all("tr")
    return [[cell.text for cell in row.children if isinstance(cell, Node)] for row in rows]


# --- what it says ---


def test_the_verdict_stands_first(quantized: Path) -> None:
    manifest = read(quantized)
    page = parse(report(quantized))
    latency, drift, sites, device = page.one("dl", id="verdict").all("div")
    assert manifest["latency"]["comparison"]["verdict"] in latency.text
    assert f"{manifest['drift'][0]['drift']:.4g}" in drift.text
    assert "within the budget of 0.5" in drift.text
    assert "2 of 3 rewritten" in sites.text
    assert manifest["latency"]["runtime"]["cpu"].split(",")[0] in device.text
    assert "random" not in page.one("main").text


def test_synthetic_input_is_said_plainly(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized)
    for measured in (manifest["latency"], *manifest["drift"]):
        measured["synthetic"] = True
    bundle = write(manifest, tmp_path / "synthetic")
    assert "random input" in parse(report(bundle)).one("p", class_="warning").text
    assert "random input" in report(bundle, format="md")
    assert json.loads(report(bundle, format="json"))["synthetic"] is True


def test_a_missed_budget_is_said_in_every_format(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized)
    manifest["drift"][-1]["within_budget"] = False  # of another graph than the first
    bundle = write(manifest, tmp_path / "over")
    assert "over the budget" in parse(report(bundle)).one("dl", id="verdict").text
    assert "**over** the budget" in report(bundle, format="md")
    assert json.loads(report(bundle, format="json"))["drift"]["within_budget"] is False


def test_nothing_measured(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized) | {"drift": [], "latency": None, "attribution": None, "quantization": None}
    bundle = write(manifest, tmp_path / "unmeasured")
    assert parse(report(bundle)).one("dl", id="verdict").text.count("not measured") == 2
    assert report(bundle, format="md").count("not measured") == 2
    summary = json.loads(report(bundle, format="json"))
    assert (summary["latency"], summary["drift"], summary["worst"]) == (None, None, [])


def test_every_site_has_a_row_and_a_curve(quantized: Path) -> None:
    sites = read(quantized)["sites"]
    page = parse(report(quantized))
    assert [(row[0], row[2]) for row in cells(page, "every-site")] == [(site["name"], site["form"]) for site in sites]
    for i, site in enumerate(sites):
        part = page.one("div", id=f"site-{i + 1}")
        assert page.one("a", href=f"#site-{i + 1}").text == site["name"]
        assert part.one("path", class_="source").attributes["d"].startswith("M0 ")
        assert part.one("path", class_="inputs")
        assert (
            len(part.all("path", class_="form"))
            == len(part.all("path", class_="residual"))
            == (site["fit"] is not None)
        )
        if site["fit"]:
            proved = re.search(r"error at most (\S+) for every", part.text)
            assert proved is not None
            assert 1 <= float(proved[1]) / site["fit"]["certificate"]["error"] < 1.001, "a bound is rounded up"


def test_stages_culprits_and_layers(quantized: Path) -> None:
    manifest = read(quantized)
    page = parse(report(quantized))
    assert [row[0] for row in cells(page, "stages")] == [stage["name"] for stage in manifest["attribution"]["stages"]]
    assert [row[3] for row in cells(page, "worst")] == [one["remedy"] for one in manifest["attribution"]["worst"]]
    assert [row[0] for row in cells(page, "layers")] == list(manifest["quantization"]["layers"])
    assert len(cells(page, "fusion")) == len(manifest["quantization"]["fusion"])


def test_the_shares_of_the_ops_are_all_of_the_latency(quantized: Path) -> None:
    page = parse(report(quantized))
    rows = page.one("table", id="operations").one("tbody").all("tr")
    for column in (0, 2):
        shares = [float(row.all("td")[column].attributes["data-v"]) for row in rows]
        assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_every_round_is_drawn(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized)
    minima, rounds = manifest["latency"]["round_minima"], manifest["latency"]["runs"]
    assert [len(minima[which]) for which in ("original", "artifact", "original_again")] == [rounds] * 3
    figure = parse(report(quantized)).one("figure", id="rounds")
    dots = [path.attributes["d"] for path in figure.all("path") if path.attributes["class"].startswith("round")]
    assert [path.count("h0") for path in dots] == [rounds] * 3
    assert "beyond" not in figure.text

    times = [2.0 + 0.001 * i for i in range(12)]
    minima |= {"original": times, "artifact": [*times, 200.0], "original_again": times}  # one that took far longer
    figure = parse(report(write(manifest, tmp_path / "far"))).one("figure", id="rounds")
    assert "1 beyond the right edge is drawn at it" in figure.text
    places = [int(x) for x in re.findall(r"M(\d+) ", figure.one("path", class_="round of-artifact").attributes["d"])]
    assert sorted(places) == places
    assert places[-1] == 1152
    assert places[-2] - places[0] > 20

    manifest["latency"]["round_minima"] = None
    assert parse(report(write(manifest, tmp_path / "older"))).all("figure", id="rounds") == []


def test_infinite_drift_is_said_in_every_format(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized)
    first = manifest["drift"][0]
    first |= {"drift": "inf", "within_budget": False}
    metrics = ("max_abs", "mean_abs", "l2", "cosine", "top1", "kl")
    first["outputs"][0] |= dict.fromkeys(metrics, "inf") | {"sqnr_db": "-inf"}
    first["sites"] = [
        {"name": "a", "added_db": added, "accumulated_db": "-inf", "outside": 0} for added in (None, "-inf")
    ]
    manifest["attribution"] = None
    bundle = write(manifest, tmp_path / "infinite")
    assert "inf" in parse(report(bundle)).one("table", id="outputs").text
    assert "| drift | inf (l2)" in report(bundle, format="md")
    assert [worst["added_db"] for worst in json.loads(report(bundle, format="json"))["worst"]] == ["-inf"]


def test_the_bundle_holds_its_page(quantized: Path, tmp_path: Path) -> None:
    page = quantized / "report.html"
    assert page.read_text(encoding="utf-8") == report(quantized)
    assert page.name not in Manifest.read(quantized / "manifest.json").files

    # An older bundle has none, and gets one on demand.
    older = write(read(quantized), tmp_path / "older")
    report(older, older / "report.html")
    assert (older / "report.html").read_text(encoding="utf-8") == report(older)


def test_a_search_and_its_front(searched: Path) -> None:
    page = parse(report(searched))
    assert len(cells(page, "front")) == 3
    assert [row[-1] for row in cells(page, "verified")] == ["", "yes"]
    assert len(page.all("path", class_="dot")) == 3
    assert len(page.all("path", class_="dot taken")) == 1
    assert page.one("path", class_="budget")


@pytest.mark.parametrize("kind", get_args(ReportFormat))
def test_every_format_is_the_same_again(quantized: Path, tmp_path: Path, kind: ReportFormat) -> None:
    text = report(quantized, tmp_path / "file", format=kind)
    assert text == report(str(quantized), format=kind)
    assert (tmp_path / "file").read_text(encoding="utf-8") == text
    verify(quantized, Manifest.read(quantized / "manifest.json"))


def test_the_command_makes_the_same_request(quantized: Path) -> None:
    manifest = Manifest.read(quantized / "manifest.json")
    flags = dict.fromkeys(("recover", "require_int8_sites"), True)
    manifest = manifest.model_copy(update={"request": manifest.request.model_copy(update=flags)})
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands("out", manifest):
        program, verb, *arguments = shlex.split(command)
        assert program == "actx"
        given = verbs[verb].make_context(verb, arguments).params
        assert str(given["model"]) == manifest.source.file
        if verb == "export":
            asked = manifest.request
            assert (given["quant"], given["form"], given["max_drift"]) == (asked.quant, asked.form, asked.max_drift)
            assert given["site"] == ["blocks.2.ffn.activation=keep"]
            assert (given["data"], given["held_out"]) == (asked.data, asked.held_out)
            assert all(given[flag] for flag in flags)


# --- the page is one file, and usable ---


def test_it_asks_for_nothing(quantized: Path) -> None:
    text = report(quantized)
    page = parse(text)
    assert not re.search(r"https?:|url\(|@import", text)
    assert [tag for tag in ("link", "img", "iframe", "object") if page.all(tag)] == []
    assert [node.attributes for node in page.all("script")] == [{}]
    assert all(link.attributes["href"].startswith("#") for link in page.all("a"))
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_headings_tables_and_pictures_have_names(quantized: Path) -> None:
    page = parse(report(quantized))
    identifiers = [node.attributes["id"] for tag in ("section", "h2", "div", "table", "main", "dl") for node in page.all(tag)
                   if "id" in node.attributes]  # fmt: skip
    assert len(set(identifiers)) == len(identifiers)
    assert {link.attributes["href"][1:] for link in page.all("a")} <= set(identifiers)
    assert all(table.all("caption") for table in page.all("table"))
    assert all(head.attributes["scope"] in {"col", "row"} for head in page.all("th"))
    assert all(head.text or head.attributes["aria-label"] for head in page.all("th"))
    for picture in page.all("svg"):
        assert picture.attributes.get("aria-label") or picture.attributes.get("aria-hidden") == "true"


def test_2000_sites_stay_small(crowded: Path) -> None:
    text = report(crowded)
    page = parse(text)
    assert len(text.encode()) < 10e6
    assert len(cells(page, "every-site")) == 2000
    assert [("open" in node.attributes) for node in page.all("details")][:2000] == [True, *[False] * 1999]
    assert len(page.all("path", class_="form")) == 2000
    assert len(report(crowded, format="md")) < 5000


# --- hostile names ---


def test_hostile_names_are_text(hostile: Path) -> None:
    text = report(hostile)
    page = parse(text)
    assert [node.attributes for node in page.all("script")] == [{}]
    assert page.all("img") == []
    handlers = [name for node in page.all("bdi") + page.all("td") + page.all("svg") for name in node.attributes
                if name.startswith("on")]  # fmt: skip
    assert handlers == []
    assert "{{ 7*7 }}" in text
    assert "\u202e" not in text
    assert "\u2028" not in text
    assert HOSTILE["script"] in page.one("table", id="every-site").text


def test_long_names_are_cut_where_they_would_break_the_layout(hostile: Path) -> None:
    page = parse(report(hostile))
    assert max(len(head.text) for head in page.all("th")) < 120
    assert any(HOSTILE["long"] == text.text for text in page.all("bdi"))


def test_hostile_names_in_markdown_are_text(hostile: Path) -> None:
    text = report(hostile, format="md")
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    page = parse(rendered)
    tags = set(re.findall(r"<(\w+)", rendered))
    assert tags <= {"h3", "code", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "pre"}
    assert {len(row.children) for row in page.all("table")[1].all("tr")} == {9}  # four cells and the line breaks around
    assert len(text) < 8000


def test_hostile_names_in_json(hostile: Path) -> None:
    assert json.loads(report(hostile, format="json"))["source"] == HOSTILE["script"]


# --- errors ---


@pytest.mark.parametrize(
    "damage",
    [
        {"drift": [{}]},
        {"latency": {}},
        {"latency": {"comparison": 3}},
        {"drift": 3},
        {"version": 1},
    ],
)
def test_a_damaged_manifest_is_one_error(quantized: Path, tmp_path: Path, damage: dict[str, object]) -> None:
    bundle = write(read(quantized) | damage, tmp_path / "damaged")
    for kind in get_args(ReportFormat):
        with pytest.raises(ActxError, match=r"manifest") as error:
            report(bundle, format=kind)
        assert error.value.exit_code == 1
        assert error.value.remedy


def test_places_and_formats_that_cannot_be(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is in the bundle"):
        report(quantized, quantized / "other.html")
    with pytest.raises(UsageError, match="no report has the format 'pdf'"):
        report(quantized, format="pdf")  # type: ignore[arg-type]
    with pytest.raises(ActxError, match="cannot write"):
        report(quantized, tmp_path / "missing" / "report.html")
    with pytest.raises(ActxError, match="is no bundle"):
        report(tmp_path)


def test_it_loads_no_runtime(quantized: Path) -> None:
    code = f"""
import sys
from actx.exporter import report
report({str(quantized)!r})
sys.exit(f"imported {{loaded}}" if (loaded := {{"torch", "onnxruntime", "matplotlib"}} & set(sys.modules)) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what the manifest has for it ---


def test_the_curve_is_that_of_the_site(quantized: Path) -> None:
    from scipy.special import ndtr  # noqa: PLC0415

    site = next(site for site in Manifest.read(quantized / "manifest.json").sites if site.fit)
    assert site.curve is not None
    assert site.curve.error is not None
    assert site.fit is not None
    assert site.fit.certificate is not None
    x = np.linspace(*site.curve.interval, len(site.curve.source))
    np.testing.assert_allclose(np.array(site.curve.source, float), x * ndtr(x), rtol=1e-4, atol=1e-7)
    assert 0 < max(map(abs, np.array(site.curve.error, float))) <= site.fit.certificate.error


def test_the_histogram_is_all_of_the_inputs(quantized: Path) -> None:
    for site in Manifest.read(quantized / "manifest.json").sites:
        assert site.statistics is not None
        assert sum(site.statistics.histogram) == pytest.approx(1, abs=0.02)


def test_bundles_without_samples_are_reported(quantized: Path, tmp_path: Path) -> None:
    manifest = read(quantized)
    for site in manifest["sites"]:
        del site["curve"], site["statistics"]["histogram"]
    assert "No curve" in report(write(manifest, tmp_path / "older"))


def test_how_the_machine_fared_is_one_line_for_each_thing_that_was_told() -> None:
    quiet = {"governors": None, "clocks_mhz": None, "temperatures": None, "throttled": None}
    told = {
        "governors": ["ondemand"],
        "clocks_mhz": [1500.0, 2400.0],
        "temperatures": {"cpu": 61.25},
        "throttled": False,
    }
    hot = told | {"temperatures": {"cpu": 80.0}, "gpu": {"clock_mhz": 1410, "throttled": True}}
    assert words.conditions({"cpu": "x"}) == {"cpu": "x"}
    assert words.conditions({"conditions": {"before": quiet, "during": [quiet] * 50, "after": quiet}}) == {
        "conditions": {}
    }
    found = words.conditions({"conditions": {"before": told, "during": [hot], "after": told}})["conditions"]
    assert found == {
        "governors": "ondemand", "clocks_mhz": "1500 to 2400", "temperatures.cpu": "61.25 to 80", "throttled": "False",
        "gpu.clock_mhz": "1410", "gpu.throttled": "True",
    }  # fmt: skip
