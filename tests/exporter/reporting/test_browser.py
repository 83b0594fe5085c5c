"""The page in a browser: charts are drawn, tables sort, names do nothing, in light and dark and on a narrow screen."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver

from actx.exporter import Form, export, report
from tests.exporter.reporting.conftest import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver.chrome.webdriver import WebDriver

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
QUIET = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
)
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="needs Debian's packages chromium and chromium-driver"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*QUIET, f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def show(browser: WebDriver, bundle: Path, place: Path, *, width: int = 1200, scheme: str = "light") -> None:
    """Open a bundle's report at a width, in a colour scheme."""
    report(bundle, place)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(place.as_uri())


def ask(browser: WebDriver, script: str) -> Any:
    return browser.execute_script(f"return {script}")  # type: ignore[no-untyped-call]


def test_in_a_browser(
    browser: WebDriver, quantized: Path, searched: Path, hostile: Path, crowded: Path, tmp_path: Path
) -> None:
    names = "[...document.querySelectorAll('#operations tbody th')].map(th => th.textContent)"
    show(browser, quantized, tmp_path / "report.html")
    unsorted = ask(browser, names)

    # A press of a heading's button sorts, a second one the other way round, and the reader of a screen is told.
    for direction, shares in (("ascending", sorted), ("descending", lambda values: sorted(values, reverse=True))):
        browser.find_element("css selector", "#operations thead th:nth-child(2) button").click()
        found = ask(browser, "[...document.querySelectorAll('#operations tbody tr')].map(tr => +tr.cells[1].dataset.v)")
        assert found == shares(found)
        assert ask(browser, "document.querySelector('#operations th:nth-child(2)').ariaSort") == direction
    assert sorted(ask(browser, names)) == sorted(unsorted)
    # By keyboard alone.
    browser.find_element("css selector", "#operations thead th button").send_keys("\ue007")
    assert ask(browser, names) == sorted(unsorted, key=str.lower)

    # What is drawn has a size, and its colours are those of the scheme.
    drawn = "[...document.querySelectorAll('details[open] path.form')].map(path => path.getBoundingClientRect().width)"
    assert min(ask(browser, drawn)) > 300
    ground = "getComputedStyle(document.body).backgroundColor"
    assert ask(browser, ground) == "rgb(255, 255, 255)"
    show(browser, searched, tmp_path / "searched.html", scheme="dark")
    assert ask(browser, ground) == "rgb(20, 24, 28)"
    assert ask(browser, "document.querySelector('path.front').getBoundingClientRect().width") > 100
    # A link to a closed site opens it.
    browser.find_element("css selector", "a[href='#site-3']").click()
    assert ask(browser, "document.getElementById('site-3').parentElement.open")

    # Hostile names are there, do nothing, and leave the page as wide as the screen.
    for width in (1200, 375):
        show(browser, hostile, tmp_path / "hostile.html", width=width)
        assert browser.title != "owned"
        assert ask(browser, "document.scripts.length") == 1
        assert HOSTILE["script"] in ask(browser, "document.querySelector('#every-site').textContent")
        assert ask(browser, "document.documentElement.scrollWidth") <= width

    # Of 2,000 sites one is drawn, the others wait until they are opened.
    show(browser, crowded, tmp_path / "crowded.html", width=375)
    assert ask(browser, "document.querySelectorAll('details').length") >= 2000
    visible = "[...document.querySelectorAll('path.form')].filter(path => path.checkVisibility()).length"
    assert ask(browser, visible) == 1
    assert ask(browser, "document.documentElement.scrollWidth") <= 375

    # On paper all of them are.
    show(browser, quantized, tmp_path / "printed.html")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert ask(browser, visible) == 2
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


@pytest.mark.real
def test_the_real_encoder(browser: WebDriver, encoder_dynamo_onnx: Path, tmp_path: Path) -> None:
    export(encoder_dynamo_onnx, tmp_path / "out", form=Form.parse("pwl:16"), measure_latency=False)
    show(browser, tmp_path / "out", tmp_path / "encoder.html")
    sites = "[...document.querySelectorAll('details')]"
    ask(browser, f"{sites}.map(site => site.open = true)")
    widths = ask(browser, "[...document.querySelectorAll('path.form')].map(path => path.getBoundingClientRect().width)")
    assert len(widths) == 7  # a gelu per layer, and the pooler's tanh
    assert min(widths) > 300
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]
