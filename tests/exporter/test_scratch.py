"""Temporary folders and locks: what a killed process leaves is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from actx.exporter import scratch as module
from actx.exporter.errors import ActxError
from actx.exporter.scratch import TakenError, exclusive, scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLDS = """
import sys
from actx.exporter.scratch import scratch
with scratch() as folder:
    (folder / "weights").write_bytes(b"0")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(temporary: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a folder, which it has until its stdin ends."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_a_folder_is_there_for_as_long_as_it_is_used(temporary: Path) -> None:
    with scratch() as one, scratch() as other:
        assert one.parent == other.parent == temporary
        assert one != other
        assert list(one.iterdir()) == []
        (one / "file").touch()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(
    holder: tuple[subprocess.Popen[str], Path],
) -> None:
    process, folder = holder
    with scratch():
        assert (folder / "weights").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "weights").exists()
    with scratch() as own:
        assert list(folder.parent.iterdir()) == [own]


def test_what_only_looks_like_one_stays(temporary: Path) -> None:
    for name in ("actx-", "actx-model", "actx-abcdefgh", "actx-abcdefgh.scratch.d", "actx-ABCDEFGH.scratch", "mine"):
        (temporary / name).mkdir()
    (temporary / "actx-filefile.scratch").write_text("mine")
    (temporary / "actx-linklink.scratch").symlink_to(temporary / "mine")
    before = sorted(temporary.iterdir())
    with scratch():
        pass
    assert sorted(temporary.iterdir()) == before


def test_the_folder_of_another_user_stays(temporary: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a folder for another user")
    theirs = temporary / "actx-abcdefgh.scratch"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with scratch():
        assert theirs.exists()


def test_without_locks_nothing_of_others_goes(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_lock", lambda descriptor: False)  # as on a file system that has none
    abandoned = temporary / "actx-abcdefgh.scratch"
    abandoned.mkdir()
    with scratch(), exclusive(temporary / "file") as (_, locked):
        assert not locked
    assert list(temporary.iterdir()) == [abandoned]


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ActxError, match="cannot make a temporary folder") as caught, scratch():
        pass
    assert "TMPDIR" in caught.value.remedy


def test_a_file_that_one_at_a_time_has(tmp_path: Path) -> None:
    path, final = tmp_path / "part", tmp_path / "final"
    path.write_text("left by a killed process")
    with exclusive(path) as (file, locked):
        assert locked
        assert file.read() == b""
        with pytest.raises(TakenError), exclusive(path):
            pass
        file.write(b"new")
        file.flush()
        path.replace(final)
        with exclusive(path):  # the name is free again
            pass
    assert final.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [final]
