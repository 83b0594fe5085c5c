"""What actx needs may be used and passed on by everybody: the licence of every package that it requires, extras included.

A package states its licence as an SPDX expression, by classifiers, or in words. One that states another than those here, or
none, fails the test: look it up, and add it with the reason.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib",
}  # fmt: skip
# What packages write instead of SPDX's identifiers: the beginning of it, in small letters.
WORDS = {
    "apache": "Apache-2.0",
    "osi approved :: apache": "Apache-2.0",
    "osi approved :: bsd": "BSD-3-Clause",
    "osi approved :: isc": "ISC",
    "osi approved :: mit": "MIT",
    "osi approved :: mozilla public license 2.0": "MPL-2.0",
    "osi approved :: python software foundation": "PSF-2.0",
    "other/proprietary": "proprietary",
    "3-clause bsd": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "mit": "MIT",
}
# Packages with other licences, and why they are all right: actx ships none of them.
OTHERS = {
    "python-flint": {"LGPL-3.0-or-later"},  # FLINT, GMP and MPFR, as shared libraries of their own in its wheel
    "certifi": {"MPL-2.0"},  # of extras; MPL binds who changes its files
    "tqdm": {"MPL-2.0"},  # likewise
    "pathspec": {"MPL-2.0"},  # of tools
    "hypothesis": {"MPL-2.0"},  # of tests
    # NVIDIA's, in the extras for TensorRT alone
    "tensorrt-rtx-cu13": {"proprietary"},
    "tensorrt-rtx-cu13-bindings": {"proprietary"},
    "tensorrt-rtx-cu13-libs": {"proprietary"},
    "tensorrt-cu13-bindings": {"proprietary"},
}
RUNTIME: tuple[str, ...] = ()
EXTRAS = ("cluster", "gpu", "hf", "openvino", "trt-rtx", "test")


def installed(extras: tuple[str, ...]) -> set[str]:
    """What actx requires, directly or not, of what is installed here."""
    found: set[str] = set()
    left = [("actx", extra) for extra in (*extras, "")]
    seen = set(left)
    while left:
        package, asked = left.pop()
        try:
            lines = importlib.metadata.requires(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(package)
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": asked}):
                name = canonicalize_name(requirement.name)
                more = [entry for extra in ("", *requirement.extras) if (entry := (name, extra)) not in seen]
                seen.update(more)
                left += more
    return found


def stated(package: str) -> Iterator[str]:
    """What a package says of its licence, from what is most exact."""
    metadata = importlib.metadata.metadata(package)
    classifiers = [
        text.partition(" :: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")
    ]
    yield metadata.get("License-Expression", "")
    yield " AND ".join(classifiers)
    yield (metadata.get("License", "").strip().splitlines() or [""])[0]


def licences(package: str) -> set[str]:
    """The licences that all hold for a package; of those to choose from, one that is permissive."""
    text = next((text for text in stated(package) if text), "")
    choices = [{identifier(part) for part in re.split(r" AND ", choice)} for choice in re.split(r" OR ", text)]
    return min(choices, key=lambda choice: len(choice - PERMISSIVE))


def identifier(text: str) -> str:
    text = text.strip(" ()")
    if text in PERMISSIVE:
        return text
    return next((known for words, known in WORDS.items() if text.lower().startswith(words)), text or "none stated")


@pytest.mark.parametrize("extras", [RUNTIME, EXTRAS])
def test_licences_of_what_is_required(extras: tuple[str, ...]) -> None:
    packages = installed(extras)
    assert {"onnx", "numpy", "torch", "python-flint"} <= packages
    unknown = {
        package: other for package in packages if (other := licences(package) - PERMISSIVE - OTHERS.get(package, set()))
    }
    assert unknown == {}


def test_what_runs_needs_nothing_proprietary() -> None:
    assert not any("proprietary" in licences(package) for package in installed(RUNTIME))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("GPL-3.0-only", "GPL-3.0-only"),
        ("GPLv3", "GPLv3"),
        ("", "none stated"),
        ("MIT License", "MIT"),
        ("Zlib", "Zlib"),
    ],
)
def test_only_what_is_known_is_taken_for_permissive(text: str, found: str) -> None:
    assert identifier(text) == found
