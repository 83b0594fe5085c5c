from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actx.exporter.errors import UsageError
from actx.exporter.tensorrt.options import BuildOptions, parse_capabilities, parse_size

FULL = BuildOptions(
    timing_cache=Path("a.cache"),
    workspace=2**31,
    version_compatible=True,
    strip_weights=True,
    refit=True,
    dla_core=1,
    hardware_compatibility="ampere+",
    tf32=False,
    optimization_level=5,
    compute_capabilities=("8.6",),
)


@pytest.mark.parametrize("options", [BuildOptions(), FULL])
def test_options_survive_json(options: BuildOptions) -> None:
    assert BuildOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown build option 'fp16'"):
        BuildOptions.from_dict({"fp16": True})


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("512 MiB", 2**29), ("1.5GB", 1_500_000_000), ("100", 100), ("1kib", 1024)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2 TiB", "0", "2GiB!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)


def test_capabilities() -> None:
    assert parse_capabilities("8.6, 12.0,8.6") == ("8.6", "12.0")
    with pytest.raises(UsageError, match="--compute-capability cannot be 'sm_86'"):
        parse_capabilities("sm_86")


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"hardware_compatibility": "all"}, "--hardware-compatibility"),
        ({"optimization_level": 6}, "--builder-level"),
        ({"workspace": 0}, "--workspace"),
        ({"dla_core": -1}, "--dla"),
        ({"compute_capabilities": ("86",)}, "--compute-capability"),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        BuildOptions(**values)


@pytest.mark.parametrize(
    ("target", "values", "flag"),
    [
        ("trt-rtx", {"timing_cache": Path("a")}, "--timing-cache"),
        ("trt-rtx", {"version_compatible": True}, "--version-compatible"),
        ("trt-rtx", {"dla_core": 0}, "--dla"),
        ("trt-rtx", {"hardware_compatibility": "ampere+"}, "--hardware-compatibility"),
        ("trt-rtx", {"optimization_level": 3}, "--builder-level"),
        ("trt", {"compute_capabilities": ("8.6",)}, "--compute-capability"),
    ],
)
def test_an_option_that_the_library_does_not_have_is_named(target: str, values: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"target {target} has no {flag}") as error:
        BuildOptions(**values).check(target)
    assert ("trt-rtx" if target == "trt" else "trt") in error.value.note


def test_the_other_options_are_both_libraries() -> None:
    options = BuildOptions(workspace=1, strip_weights=True, refit=True, tf32=False)
    options.check("trt")
    options.check("trt-rtx")
    assert set(options.changed()) == {"workspace", "strip_weights", "refit", "tf32"}


def test_a_stripped_engine_is_for_one_compute_capability() -> None:
    with pytest.raises(UsageError, match="one compute capability"):
        BuildOptions(strip_weights=True, compute_capabilities=("8.6", "8.9")).check("trt-rtx")


def test_arguments_are_what_is_not_by_default() -> None:
    assert BuildOptions().arguments() == []
    changed = BuildOptions(workspace=1024, refit=True, tf32=False, compute_capabilities=("8.6", "12.0"))
    assert changed.arguments() == [
        ("--workspace", "1024"),
        ("--refit", None),
        ("--no-tf32", None),
        ("--compute-capability", "8.6,12.0"),
    ]
