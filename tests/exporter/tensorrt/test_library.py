from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from actx.exporter.errors import TargetUnavailable
from actx.exporter.tensorrt.library import describe, find, logger

if TYPE_CHECKING:
    from pathlib import Path


def test_the_library_and_what_it_builds_for() -> None:
    library = find("trt-rtx")
    assert library.title == "TensorRT-RTX"
    assert str(library) == f"TensorRT-RTX {library.version}"
    assert {"7.5", "8.6", "8.9", "12.0"} <= set(library.compute_capabilities)


def test_a_library_that_is_not_there() -> None:
    with pytest.raises(TargetUnavailable, match="TensorRT is not installed") as error:
        find("trt")
    assert "JetPack" in error.value.remedy
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    "content", ["import no_such_part", "raise OSError('libnvinfer.so.10: cannot open')", "__version__ = '10.13'", ""]
)
def test_a_library_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(TargetUnavailable, match="TensorRT cannot be loaded") as error:
            find("trt")
        assert error.value.note
    finally:
        sys.modules.pop("tensorrt", None)


def test_what_is_said_of_a_target_is_json() -> None:
    said = describe("trt-rtx")
    assert json.loads(json.dumps(said)) == said
    assert said["library"] == "tensorrt_rtx"
    assert (said["gpu"] is None) == bool(said["no_gpu"])


def test_errors_are_kept_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    log = logger(find("trt-rtx"))
    log.log(log.ERROR, "bad\nthing")
    log.log(log.WARNING, "said")
    assert log.errors == ["bad thing"]
    assert capfd.readouterr() == ("", "")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """The modules can be used where neither library nor CUDA is."""
    code = textwrap.dedent("""
        import sys
        sys.modules.update({name: None for name in ("tensorrt", "tensorrt_rtx", "cuda", "cuda.bindings")})
        from actx.exporter.tensorrt import build, command, device, engine, inspector, options, shapes
        from actx.exporter.tensorrt.library import find
        from actx.exporter.errors import TargetUnavailable
        print(device.find_gpu())
        for target in ("trt", "trt-rtx"):
            try:
                find(target)
            except TargetUnavailable as error:
                print(error.what)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, *missing = done.stdout.splitlines()
    assert first.startswith("(None, 'cuda-bindings is not installed")
    assert missing == ["TensorRT is not installed", "TensorRT-RTX is not installed"]
