"""A bundle is written whole or not at all, and replaces nothing but a bundle."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest

from actx.exporter import Form, bundle, export
from actx.exporter.bundle import check_destination, commit, read_bundle, staging
from actx.exporter.errors import ActxError, RequirementError, UsageError
from tests.networks import SPELLINGS, many_sites

if TYPE_CHECKING:
    from collections.abc import Iterator

PWL = Form.parse("pwl:8")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    onnx.save(SPELLINGS["gelu_op"].model(20), file)
    return file


@pytest.fixture
def out(model: Path, tmp_path: Path) -> Path:
    """A good bundle."""
    return export(model, tmp_path / "out", form=PWL, measure_latency=False).path


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


# --- what a bundle holds ---


def test_files_and_their_hashes(out: Path) -> None:
    _, manifest = read_bundle(out)
    assert sorted(content(out)) == ["manifest.json", "model.onnx", "model.ort-cpu.onnx", "report.html", "weights.data"]
    assert set(manifest.files) == set(content(out)) - {"manifest.json", "report.html"}
    for name, digest in manifest.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert manifest.graphs == {"portable": "model.onnx", "ort-cpu": "model.ort-cpu.onnx"}


def test_both_graphs_share_one_weights_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(many_sites(8), file)
    out = export(file, tmp_path / "out", form=PWL, measure_drift=False, measure_latency=False).path
    places = []
    for name in ("model.onnx", "model.ort-cpu.onnx"):
        proto = onnx.load(out / name, load_external_data=False)
        external = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places.append({t.name: sorted((e.key, e.value) for e in t.external_data) for t in external})
        assert {dict(p)["location"] for p in places[-1].values()} <= {"weights.data"}
        assert (out / name).stat().st_size < 100_000
    assert places[0] == places[1]


def test_a_bundle_has_the_permissions_of_a_folder_of_the_users(out: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert out.stat().st_mode == (tmp_path / "folder").stat().st_mode
    (tmp_path / "file").touch()
    assert {file.stat().st_mode for file in out.iterdir()} == {(tmp_path / "file").stat().st_mode}


# --- the destination ---


def test_a_bundle_is_replaced_only_with_force(model: Path, out: Path) -> None:
    before = content(out)
    with pytest.raises(UsageError, match="exists") as caught:
        export(model, out, form=Form.parse("relu"), measure_latency=False)
    assert "--force" in caught.value.remedy
    assert content(out) == before
    export(model, out, form=Form.parse("relu"), measure_latency=False, force=True)
    assert content(out)["model.onnx"] != before["model.onnx"]
    assert hidden(out.parent) == []


def test_an_empty_folder_is_filled(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    export(model, tmp_path / "made", form=Form.parse("relu"), measure_latency=False)
    assert (tmp_path / "made" / "manifest.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # whoever stands in it would be left in a removed one
    with pytest.raises(UsageError, match="exists"):
        export(model, tmp_path / "here", form=Form.parse("relu"), measure_latency=False)


def test_what_is_no_bundle_is_never_replaced(model: Path, tmp_path: Path, out: Path) -> None:
    file, folder, link, broken = (tmp_path / name for name in ("file", "folder", "link", "broken"))
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    link.symlink_to(out)
    broken.symlink_to(tmp_path / "nowhere")
    for place in (file, folder, link, broken):
        with pytest.raises(UsageError, match="is no bundle"):
            export(model, place, form=PWL, force=True)
    assert file.read_text() == "mine"
    assert (folder / "mine").read_text() == "mine"
    assert read_bundle(out)


@pytest.mark.parametrize("manifest", ["{}", "[]", "not json", '{"name": "My extension", "manifest_version": 3}'])
def test_anothers_manifest_makes_no_bundle(model: Path, tmp_path: Path, manifest: str) -> None:
    """Browser extensions and web applications have a manifest.json too."""
    out = tmp_path / "extension"
    out.mkdir()
    (out / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="not that of a bundle"):
        export(model, out, form=PWL, force=True)
    assert (out / "manifest.json").read_text() == manifest


def test_a_bundle_with_the_users_own_files_is_not_replaced(model: Path, out: Path) -> None:
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        export(model, out, form=PWL, force=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_bundle_of_another_version_is_replaced(model: Path, out: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({"version": 99, "files": manifest["files"]}))
    export(model, out, form=PWL, measure_latency=False, force=True)
    assert read_bundle(out)


def test_the_parent_must_be_a_folder(model: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "missing" / "out", model / "out"):
        with pytest.raises(ActxError, match="does not exist"):
            export(model, place, form=PWL)


def test_odd_names(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("out with spaces", "-o", "ünï", "a" * 200):
        exported = export(model, Path(place), form=PWL, measure_latency=False)
        assert read_bundle(exported.path)
    for place in (".", "..", "/"):
        with pytest.raises(ActxError):
            export(model, Path(place), form=PWL, force=True)
    with pytest.raises(ActxError):
        export(model, Path("a" * 300), form=PWL)


def test_a_read_only_parent(model: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o555)
    with nobody(), pytest.raises(ActxError, match=r"cannot write|is read-only"):
        export(model, parent / "out", form=PWL)
    assert list(parent.iterdir()) == []


class nobody:  # noqa: N801 - reads as a context
    """Give up the superuser's rights, which know no read-only folders."""

    def __enter__(self) -> None:
        if os.getuid() == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)


def test_what_appears_at_the_destination_meanwhile_stays(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def progress(step: str, done: int, total: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "mine").write_text("mine")

    with pytest.raises(UsageError, match="is no bundle"):
        export(model, out, form=PWL, measure_latency=False, progress=progress, force=True)
    assert content(out) == {"mine": b"mine"}
    assert hidden(tmp_path) == []


# --- a missed budget ---


def test_a_missed_budget_leaves_out_as_it_was(model: Path, out: Path) -> None:
    before = content(out)
    for _ in range(2):  # the second replaces the rejected bundle of the first
        with pytest.raises(RequirementError) as caught:
            export(model, out, form=Form.parse("relu"), max_drift=1e-6, measure_latency=False, force=True)
        assert caught.value.exit_code == 3
        assert str(out.with_name("out.rejected")) in caught.value.remedy
        assert content(out) == before
    _, manifest = read_bundle(out.with_name("out.rejected"))
    assert manifest.drift[0].within_budget is False
    assert hidden(out.parent) == []


def test_a_missed_budget_makes_no_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementError):
        export(model, tmp_path / "out", form=Form.parse("relu"), max_drift=0, measure_latency=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.onnx", "out.rejected"]


def test_something_at_the_place_of_the_rejected_is_seen_before_any_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.rejected").write_text("mine")
    steps: list[str] = []
    with pytest.raises(UsageError, match="is no bundle"):
        export(model, tmp_path / "out", form=PWL, max_drift=0, progress=lambda step, done, total: steps.append(step))
    assert steps == []


# --- interruptions ---


class Stop(BaseException):
    """As KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("step", ["calibrate", "fit", "check", "profile"])
@pytest.mark.parametrize("kind", [Stop, ValueError])
def test_an_interruption_leaves_the_old_bundle(
    model: Path, out: Path, step: str, kind: type[BaseException], calibration: str
) -> None:
    before = content(out)

    def progress(name: str, done: int, total: int) -> None:
        if name == step:
            raise kind

    with pytest.raises(kind):
        export(model, out, form=Form.parse("relu"), data=calibration, force=True, runs=3, progress=progress)
    assert content(out) == before
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["calibration.npz", "model.onnx", "out"]


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    import numpy as np  # noqa: PLC0415

    np.savez(tmp_path / "calibration.npz", x=np.random.default_rng(0).uniform(-1, 1, (4, 3, 8)).astype(np.float32))
    return str(tmp_path / "calibration.npz")


SCRIPT = """
import sys
import time
from pathlib import Path
from actx.exporter import Form, bundle, export
model, out, data, step = sys.argv[1:]
def progress(name, done, total):
    if name == step:
        print(name, flush=True)
        for _ in range(10_000):  # a signal right before a read would not end it
            time.sleep(0.01)
export(Path(model), Path(out), form=Form.parse("relu"), data=data, force=True, runs=3, progress=progress)
"""


@pytest.mark.parametrize(
    ("kind", "step"), [(signal.SIGINT, "check"), (signal.SIGKILL, "check"), (signal.SIGKILL, "profile")]
)
def test_a_killed_process_leaves_the_old_bundle(
    model: Path, out: Path, calibration: str, temporary: Path, kind: signal.Signals, step: str
) -> None:
    before = content(out)
    command = [sys.executable, "-c", SCRIPT, str(model), str(out), calibration, step]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{step}\n".encode()
        process.send_signal(kind)
        assert process.wait(60) == -kind
    assert content(out) == before
    left = sorted(Path(name).suffix for name in hidden(out.parent))
    assert left == ([".lock", ".partial"] if kind == signal.SIGKILL else [])
    assert len(list(temporary.glob("actx-*"))) == len(left) // 2
    export(model, out, form=PWL, measure_latency=False, force=True)  # what was left is in nobody's way, and goes
    assert hidden(out.parent) == list(temporary.glob("actx-*")) == []


def test_of_two_exports_to_one_place_one_says_so_before_any_work(model: Path, tmp_path: Path) -> None:
    out, steps, refused = tmp_path / "out", list[str](), list[str]()

    def second(name: str, done: int, total: int) -> None:
        try:
            export(model, out, form=PWL, force=True, progress=lambda step, *_: steps.append(step))
        except ActxError as error:
            refused.append(error.what)

    export(model, out, form=Form.parse("relu"), measure_latency=False, force=True, progress=second)
    assert set(refused) == {f"another process is writing {out}"}
    assert steps == []
    assert read_bundle(out)[1].request.form == "relu"
    export(model, out, form=PWL, measure_latency=False, force=True)
    assert hidden(tmp_path) == []


def test_an_interruption_between_the_renames_puts_the_old_bundle_back(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system that cannot exchange two folders in one step."""
    before = content(out)
    rename = Path.rename
    monkeypatch.setattr(bundle, "_exchange", lambda first, second: False)

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise Stop
        return rename(self, target)

    with staging(out) as folder:
        (folder / "manifest.json").write_text("{}")
        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(Stop):
            commit(folder, out, force=True)
    assert content(out) == before
    assert hidden(tmp_path) == []


EVERY_STEP = """
import json, os, shutil, signal, sys
from pathlib import Path
from actx.exporter import Form, export
from actx.cli.main import run
from actx.exporter.bundle import read_bundle, verify

model, out, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.truncate", "ctypes.dlsym", "shutil.rmtree"}

def export_to(form, last):
    \"\"\"In a process of its own that gets the signal right before its last change to the file system.\"\"\"
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or writes) and (event == "ctypes.dlsym" or str(out.parent) in str(arguments[0])):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), number)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        sys.addaudithook(hook)
        sys.argv = ["actx", "export", str(model), "-o", str(out), "--form", form, "--force", "--no-check", "--no-profile"]
        os._exit(run())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for form in ("pwl:8", "relu"):  # fitted once, for all that are forked
    export(model, out.parent / form, form=Form.parse(form), measure_drift=False, measure_latency=False)
    shutil.rmtree(out.parent / form)
code, last, codes, forms = None, 0, [], []
while code != 0:
    last += 1
    code = export_to(("pwl:8", "relu")[last % 2], last)
    folder, manifest = read_bundle(out)
    verify(folder, manifest)
    codes.append(code)
    forms.append(manifest.request.form)
print(json.dumps({"codes": codes, "forms": forms, "left": [f.name for f in out.parent.iterdir() if f.name[0] == "."]}))
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_signal_at_any_change_leaves_a_whole_bundle(
    model: Path, out: Path, temporary: Path, kind: signal.Signals
) -> None:
    """The old one before the swap, the new one after it; what a run leaves behind is removed by the next."""
    command = [sys.executable, "-c", EVERY_STEP, str(model), str(out), str(int(kind))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ended = -signal.SIGKILL if kind == signal.SIGKILL else 130
    assert set(found["codes"][:-1]) == {ended}
    assert len(found["codes"]) > 8  # files are made and the folders swapped
    assert found["forms"][0] == "pwl:8"  # of `out`
    assert found["forms"][-1] == ("pwl:8", "relu")[len(found["codes"]) % 2]
    assert found["left"] == []
    assert list(temporary.glob("actx-*")) == []  # ONNX Runtime leaves a file of its own


def test_a_clock_that_is_set_back_all_the_time(
    model: Path, tmp_path: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    exported = export(model, tmp_path / "out", form=PWL, data=calibration, runs=3)
    bundle.verify(*read_bundle(exported.path))
    assert exported.latency is not None
    assert exported.latency.original.min > 0


# --- a full disk ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.xfail("this machine does not let the test mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_old_bundle(model: Path, small_disk: Path, tmp_path: Path) -> None:
    out = export(model, small_disk / "out", form=PWL, measure_latency=False).path
    before = content(out)
    larger = tmp_path / "larger.onnx"
    onnx.save(many_sites(40), larger)
    with pytest.raises(ActxError, match="cannot write") as caught:
        export(larger, out, form=PWL, measure_latency=False, force=True)
    assert "free space" in caught.value.remedy
    assert content(out) == before
    assert hidden(small_disk) == []


@pytest.mark.parametrize("limit", [0, 1, 500, 3000])
def test_files_that_cannot_grow(model: Path, tmp_path: Path, limit: int) -> None:
    """As a full disk, without rights to make one: no file may exceed so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(ActxError) as caught:
            export(model, tmp_path / "out", form=PWL, measure_drift=False, measure_latency=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.strerror(errno.EFBIG) in caught.value.note
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


# --- reading ---


def test_what_is_no_bundle_cannot_be_read(tmp_path: Path, model: Path) -> None:
    for place in (tmp_path, model, tmp_path / "missing"):
        with pytest.raises(ActxError, match="is no bundle"):
            read_bundle(place)


def test_check_destination_says_nothing_of_a_free_place(tmp_path: Path) -> None:
    check_destination(tmp_path / "new", force=False)
