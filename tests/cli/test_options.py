"""The names that the options know without the library are those of the library."""

from __future__ import annotations

import re
from typing import Any

import typer.main

from actx.cli import options
from actx.cli.main import app
from actx.exporter.fitting.form import Form
from actx.exporter.fitting.registry import FAMILIES
from actx.exporter.metrics import METRICS
from actx.exporter.targets import TARGETS

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def help_of(option: str) -> list[str]:
    """Return the help of an option in every verb that has it."""
    return [p.help for verb in COMMANDS.values() for p in verb.params if option in p.opts]


def test_metrics() -> None:
    assert sorted(options.METRICS) == sorted(METRICS)
    assert help_of("--metric")
    for text in help_of("--metric"):
        listed = re.search(r"(\w+(?:, \w+)+) or pkg\.mod:callable", text)
        assert listed is not None
        assert sorted(listed[1].split(", ")) == sorted(METRICS)


def test_targets() -> None:
    assert tuple(TARGETS) == options.TARGETS
    listed = f"{', '.join(list(TARGETS)[:-1])} or {list(TARGETS)[-1]}."
    assert help_of("--target") == [listed, "What to build for; the bundle's own target without it."]


def test_schemes() -> None:
    assert set(options.SCHEMES) == {scheme for target in TARGETS.values() for scheme in target.schemes}
    (text,) = help_of("--quant")
    assert all(scheme in text for scheme in options.SCHEMES)


def test_forms() -> None:
    forms = [Form.parse(text) for text in options.FORMS]
    assert tuple(map(str, forms)) == options.FORMS
    assert list(dict.fromkeys(form.name for form in forms)) == list(FAMILIES)
    listed = [family.syntax.split()[0] for family in FAMILIES.values()]
    rewriting = ", ".join(form for form in listed if form not in {"keep", "polynorm"})  # what `fit` can fit
    assert all(rewriting in text for text in help_of("--form"))
    assert f"Of every site: {', '.join(listed)}." in help_of("--form")[0]
