"""The report of a bundle: everything that its manifest says, as one page, a comment or an object.

1. Only the manifest is read: no model is run, and nothing is measured or estimated.
2. The page is one file. Its charts are SVG that the template writes and its tables are HTML, so that all but sorting works
   without scripts, on paper and offline; a policy in the page forbids every other script, style and address.
3. Names from the model are text. They are escaped, isolated from the direction of what stands around them, and cut in tables.
4. A bundle holds its page as it was when the manifest was written. It is made of the manifest, which does not list it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from jinja2 import Environment, FunctionLoader, StrictUndefined, UndefinedError, select_autoescape

from actx.exporter.bundle import REPORT, read_bundle
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.manifest import MANIFEST
from actx.exporter.reporting import charts, words
from actx.exporter.reporting.command import commands
from actx.exporter.reporting.summary import Summary, operations, summarize

if TYPE_CHECKING:
    from actx.exporter.manifest import Manifest

ReportFormat: TypeAlias = Literal["html", "md", "json"]
FORMATS: tuple[str, ...] = get_args(ReportFormat)


def report(bundle: Path | str, out: Path | str | None = None, *, format: ReportFormat = "html") -> str:  # noqa: A002
    """Return the report of a bundle, and write it where that is wanted.

    Args:
        bundle: its folder.
        out: the file to write; None for none. What is there is replaced.
        format: ``html`` for a page that opens offline, ``md`` for a comment, ``json`` for an object (`Summary.to_dict`).

    Raises:
        UsageError: there is no such format, or the file would be in the bundle and is not its own `report.html`.
        ActxError: it is no bundle, its manifest is damaged, or the file cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(
            f"no report has the format {format!r}",
            note=f"there are {', '.join(FORMATS)}",
            remedy="Choose one of these.",
        )
    folder, manifest = read_bundle(Path(bundle))
    if out is not None:
        _check_place(Path(out), folder)
    try:
        text = _render(folder.resolve().name, manifest, format)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, UndefinedError, UsageError) as error:
        # The schema leaves open what is inside of a runtime's description and of the engines' facts.
        note = f"{type(error).__name__}: {error}"
        raise ActxError(
            f"{folder / MANIFEST} cannot be reported", note=note, remedy="Export the model again."
        ) from error
    if out is not None:
        _write(Path(out), text)
    return text


def write_page(folder: Path, name: str, manifest: Manifest) -> None:
    """Write a bundle's own page into a folder; `name` is that of the bundle.

    Raises:
        ActxError: it cannot be written.
    """
    _write(folder / REPORT, _render(name, manifest, "html"))


def _check_place(out: Path, folder: Path) -> None:
    place = out.resolve()
    if folder.resolve() in place.parents and place != folder.resolve() / REPORT:
        raise UsageError(
            f"{out} is in the bundle",
            note="a bundle holds what its manifest lists, and no export replaces one that holds more",
            remedy="Choose a place outside it.",
        )


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ActxError(f"cannot write {out}", note=str(error), remedy="Choose another place with -o.") from error


def _render(name: str, manifest: Manifest, kind: ReportFormat) -> str:
    summary = summarize(name, manifest)
    if kind == "json":
        return json.dumps(summary.to_dict(), indent=1, allow_nan=False) + "\n"
    return _environment().get_template(f"report.{kind}.jinja").render(_values(manifest, summary))


def _values(manifest: Manifest, summary: Summary) -> dict[str, Any]:
    style, script = _source("report.css"), _source("report.js")
    return {
        "manifest": manifest,
        "summary": summary,
        "operations": operations(manifest),
        "commands": commands(summary.bundle, manifest),
        "style": style,
        "style_digest": _csp_digest(style),
        "script": script,
        "script_digest": _csp_digest(script),
    }


def _csp_digest(text: str) -> str:
    """Return what Content Security Policy level 3 calls the hash source of an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _source(name: str) -> str:
    return (files(__name__) / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Return the templates, each compiled when a process first needs it: that takes longer than a small export."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(words.FILTERS)
    environment.globals.update(charts.CHARTS)
    return environment
