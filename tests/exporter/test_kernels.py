"""The kernels of this machine under a bundle: that they run, and what is said where they cannot."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from actx.custom_ops import cpu
from actx.custom_ops.cpu.elf import ARCHITECTURES
from actx.exporter import Form, check, export, profile, session
from actx.exporter.bundle import digest, library_name
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.kernels import find_kernels
from actx.exporter.manifest import MANIFEST
from actx.exporter.opening import best_graph
from actx.exporter.pipeline import DriftExceeded
from actx.models.demo import CALIBRATION, EVALUATION, demo_path
from tests.networks import SPELLINGS, feeds, many_sites

if TYPE_CHECKING:
    from collections.abc import Callable

    from actx.exporter.pipeline import Exported

Broken: TypeAlias = "Callable[[Path, Path], Path]"

HERE = platform.machine()
NATIVE, PORTABLE = "model.ort-cpu.onnx", "model.onnx"
PWL = Form.parse("pwl:8")
# Both graphs compute the same spline in float32, in another order: a few roundings of each layer.
BETWEEN_GRAPHS = 1e-5
GATES = ("matmul", "split", "split_gate_second", "interleaved")


@pytest.fixture
def library() -> Path:
    """The library that was installed."""
    found = cpu.find()
    if found is None and os.environ.get("CI"):
        pytest.fail("the kernels were not built")
    if found is None:
        pytest.skip("actx was installed without its kernels: no C++ compiler was found")
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    onnx.save(many_sites(3), file)
    return file


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    return quick(model, tmp_path / "out").path


def quick(model: Path, out: Path, **options: object) -> Exported:
    return export(model, out, **{"form": PWL, "measure_latency": False, **options})  # type: ignore[arg-type]


def apart(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Largest difference, relative to the largest value of each output."""
    return max(float(np.abs(first[name] - second[name]).max() / np.abs(first[name]).max()) for name in first)


# --- they run ---


def test_a_session_takes_the_graph_of_actx_nodes(bundle: Path, library: Path) -> None:
    for opened in (session(bundle), session(bundle, kernels=True)):
        assert (opened.graph, opened.reason) == (NATIVE, "with the installed kernels")
    portable = session(bundle, kernels=False)
    assert portable.graph == PORTABLE
    values = feeds(many_sites(3))
    assert apart(portable.run(values), session(bundle).run(values)) <= BETWEEN_GRAPHS


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["gelu_legacy", "mish_decomposed", "prelu_per_channel", "dyt"])
def test_both_graphs_agree(name: str, dtype: type, tmp_path: Path, library: Path) -> None:
    proto = SPELLINGS[name].model(18, dtype)
    onnx.save(proto, tmp_path / "model.onnx")
    out = quick(tmp_path / "model.onnx", tmp_path / "out").path
    native, portable = (session(out, kernels=kernels).run(feeds(proto)) for kernels in (True, False))
    assert apart(portable, native) <= (BETWEEN_GRAPHS if dtype is np.float32 else 1e-2)


def test_the_demo_gives_the_same_through_both_graphs(demo_onnx: Path, tmp_path: Path, library: Path) -> None:
    out = quick(demo_onnx, tmp_path / "out", data=str(demo_path(CALIBRATION)), form=Form.parse("pwl:16")).path
    with np.load(demo_path(EVALUATION)) as data:
        values = {"image": data["image"]}
    native, portable = (session(out, kernels=kernels).run(values) for kernels in (True, False))
    assert apart(portable, native) <= BETWEEN_GRAPHS


def test_the_profile_of_the_runtime_names_our_op(bundle: Path, library: Path, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.register_custom_ops_library(str(library))
    opened = ort.InferenceSession(bundle / NATIVE, options, providers=["CPUExecutionProvider"])
    opened.run(None, feeds(many_sites(3)))
    events = json.loads(Path(opened.end_profiling()).read_text())
    ran = {event["args"].get("node_index") for event in events
           if event["cat"] == "Node" and event["args"].get("op_name") == "Spline"}  # fmt: skip
    assert len(ran) == 3


def test_our_profile_attributes_our_op_to_the_sites(model: Path, bundle: Path, library: Path) -> None:
    report = profile(model, bundle, runs=2)
    assert report.graph == NATIVE
    ours = {node.site for node in report.artifact_nodes.nodes if node.op_type == "Spline"}
    assert ours == set(report.artifact_nodes.sites)
    assert None not in ours
    assert profile(model, bundle, runs=2, kernels=False).graph == PORTABLE


def test_a_kept_site_of_the_native_graph_is_attributed(model: Path, tmp_path: Path, library: Path) -> None:
    exported = quick(model, tmp_path / "out", sites={"layers.0*": Form.parse("keep")})
    report = profile(model, exported.path, runs=2)
    kept = next(site.name for site in exported.manifest.sites if site.form == "keep")
    assert any(node.site == kept and node.op_type != "Spline" for node in report.artifact_nodes.nodes)


# --- drift of the graph that runs ---


def test_the_figures_are_of_the_graph_that_runs(model: Path, tmp_path: Path, library: Path) -> None:
    exported = export(model, tmp_path / "out", form=PWL, runs=2)
    written = json.loads((exported.path / MANIFEST).read_text())
    assert [report["graph"] for report in written["drift"]] == [NATIVE, PORTABLE]
    assert written["latency"]["graph"] == NATIVE
    native, portable = (report["drift"] for report in written["drift"])
    assert portable == pytest.approx(native, rel=1e-3)
    assert not any("are those of" in note for note in exported.manifest.notes)
    again = check(model, exported.path)
    assert (again.graph, again.drift) == (NATIVE, pytest.approx(native, rel=1e-3))


def test_without_kernels_the_figures_are_of_the_portable_graph(model: Path, tmp_path: Path) -> None:
    exported = export(model, tmp_path / "out", form=PWL, runs=2, kernels=False)
    written = json.loads((exported.path / MANIFEST).read_text())
    assert [report["graph"] for report in written["drift"]] == [written["latency"]["graph"]] == [PORTABLE]
    said = "drift and latency are those of model.onnx, not model.ort-cpu.onnx: the kernels were not to be used"
    assert said in exported.manifest.notes
    assert "model.onnx was run, not model.ort-cpu.onnx: the kernels were not to be used" in check(
        model, exported.path, kernels=False
    ).notes  # fmt: skip


@pytest.mark.parametrize("gated", GATES)
def test_a_gated_site_is_looked_at_behind_the_product(gated: str, tmp_path: Path, library: Path) -> None:
    """One node computes both there; what it adds is the same as in the graph where a node of its own multiplies."""
    onnx.save(SPELLINGS["silu"].model(18, gated=gated), tmp_path / "model.onnx")  # type: ignore[arg-type]
    exported = quick(tmp_path / "model.onnx", tmp_path / "out")
    (site,) = exported.manifest.sites
    assert site.gated
    assert exported.drift is not None
    (measured,) = exported.drift.sites
    assert measured.added_db is not None
    assert measured.added_db == pytest.approx(measured.accumulated_db, abs=1)
    (portable,) = check(tmp_path / "model.onnx", exported.path, kernels=False).sites
    assert portable.added_db == pytest.approx(measured.added_db, abs=12)


def test_slopes_are_accounted_for(model: Path, tmp_path: Path, library: Path) -> None:
    exported = quick(model, tmp_path / "out", form=Form.parse("hardswish"))
    assert any(site.scale != 1 for site in exported.manifest.sites)
    first, second = exported.drifts
    assert (first.graph, second.graph) == (NATIVE, PORTABLE)
    for site in first.sites:
        assert site.added_db is not None
        assert site.added_db > 10


def test_a_budget_holds_for_both_graphs(tmp_path: Path, library: Path) -> None:
    """A spline this close is, in the portable graph, the source's own op: only the native graph drifts."""
    onnx.save(SPELLINGS["gelu_op"].model(20), tmp_path / "model.onnx")
    with pytest.raises(DriftExceeded) as caught:
        quick(tmp_path / "model.onnx", tmp_path / "out", form=Form.parse("spline:16x3"), max_drift=3e-7)
    exported = caught.value.exported
    native, portable = exported.drifts
    assert not native
    assert portable
    assert NATIVE in caught.value.note


# --- libraries that cannot be used ---


def _missing(library: Path, folder: Path) -> Path:
    return folder / "absent.so"


def _directory(library: Path, folder: Path) -> Path:
    return folder


def _empty(library: Path, folder: Path) -> Path:
    return _written(folder, b"")


def _text(library: Path, folder: Path) -> Path:
    return _written(folder, b"no library\n" * 100)


def _cut_in_half(library: Path, folder: Path) -> Path:
    content = library.read_bytes()
    return _written(folder, content[: len(content) // 2])


def _cut_in_the_header(library: Path, folder: Path) -> Path:
    return _written(folder, library.read_bytes()[:40])


def _for_another_machine(library: Path, folder: Path) -> Path:
    content = bytearray(library.read_bytes())
    content[18] = next(number for number, name in ARCHITECTURES.items() if name != HERE)  # e_machine
    return _written(folder, bytes(content))


def _of_another_interface(library: Path, folder: Path) -> Path:
    return _compiled(folder, "int actx_abi_version(void) { return 99; }")


def _of_something_else(library: Path, folder: Path) -> Path:
    return _compiled(folder, "int answer(void) { return 42; }")


def _unknown_to_the_runtime(library: Path, folder: Path) -> Path:
    functions = [f"void {name}(void) {{}}" for name in FUNCTIONS]
    interface = ["int actx_abi_version(void) { return 1; }", 'const char* actx_isas(void) { return ""; }']
    return _compiled(folder, "\n".join([*interface, *functions]))


FUNCTIONS = ("actx_kernels", "actx_op_create", "actx_op_destroy", "actx_op_kernel", "actx_op_infer", "actx_op_run")
BROKEN: dict[str, tuple[Broken, str]] = {
    "missing": (_missing, "No such file"),
    "a directory": (_directory, "directory"),
    "empty": (_empty, "not a shared library"),
    "text": (_text, "not a shared library"),
    "cut in half": (_cut_in_half, "cut short"),
    "cut in the header": (_cut_in_the_header, "cut short"),
    "for another machine": (_for_another_machine, f"this is {HERE}"),
    "of another interface": (_of_another_interface, "its interface is number 99"),
    "of something else": (_of_something_else, "not a library of actx kernels"),
    "unknown to the runtime": (_unknown_to_the_runtime, "RegisterCustomOps"),
}


def _written(folder: Path, content: bytes) -> Path:
    file = folder / "libactx_ops.so"
    file.write_bytes(content)
    return file


def _compiled(folder: Path, source: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make such a library with")
    file = folder / "libactx_ops.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(file)]
    subprocess.run(command, input=source.encode(), check=True)
    return file


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, library: Path, tmp_path: Path) -> tuple[Path, str]:
    """A library that cannot be used, and a part of the reason."""
    make, reason = BROKEN[request.param]
    folder = tmp_path / "libraries"
    folder.mkdir()
    return make(library, folder), reason


def test_one_that_is_named_must_be_it(
    broken: tuple[Path, str], bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reason = broken
    monkeypatch.setenv("ACTX_LIBRARY", str(path))
    for use in (
        lambda: session(bundle),
        lambda: session(bundle, kernels=True),
        lambda: check(model, bundle),
        lambda: profile(model, bundle, runs=1),
        lambda: quick(model, bundle, force=True),
    ):
        with pytest.raises(TargetUnavailable, match="the kernels that ACTX_LIBRARY names cannot be used") as caught:
            use()
        assert reason in caught.value.note
        assert "ACTX_LIBRARY" in caught.value.remedy
    assert session(bundle, kernels=False).graph == PORTABLE


def test_an_instruction_set_that_is_named_must_be_it(
    bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTX_ISA", "AVX1024")
    for use in (lambda: session(bundle), lambda: check(model, bundle)):
        with pytest.raises(TargetUnavailable, match="the installed kernels cannot be used") as caught:
            use()
        assert "ACTX_ISA is 'AVX1024'; available here: " in caught.value.note
        assert "ACTX_ISA" in caught.value.remedy
    assert session(bundle, kernels=False).graph == PORTABLE


def test_a_file_with_actx_nodes_cannot_do_without_kernels(bundle: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="has actx nodes") as caught:
        check(model, bundle / NATIVE, kernels=False)
    assert "--no-kernels" in caught.value.remedy


def test_by_default_the_portable_graph_runs_instead(
    broken: tuple[Path, str], bundle: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reason = broken
    monkeypatch.setattr(cpu, "find", lambda: path)  # as if it had been installed so
    opened = session(bundle)
    assert opened.graph == PORTABLE
    assert opened.reason.startswith("not model.ort-cpu.onnx: the installed kernels cannot be used: ")
    assert reason in opened.reason
    report = check(model, bundle)
    assert report.graph == PORTABLE
    assert any(reason in note for note in report.notes)
    with pytest.raises(TargetUnavailable, match="the installed kernels cannot be used"):
        session(bundle, kernels=True)
    with pytest.raises(TargetUnavailable, match="the installed kernels cannot be used"):
        quick(model, tmp_path / "other", kernels=True)
    assert not (tmp_path / "other").exists()


def test_without_any(bundle: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find", lambda: None)
    assert session(bundle).reason.startswith("not model.ort-cpu.onnx: there are no kernels for this machine")
    with pytest.raises(TargetUnavailable, match="there are no kernels for this machine"):
        session(bundle, kernels=True)
    exported = quick(model, tmp_path / "other")
    assert exported.drift is not None
    assert exported.drift.graph == PORTABLE
    assert any(note.startswith("drift and latency are those of model.onnx") for note in exported.manifest.notes)


def test_a_bundle_without_a_graph_for_them(model: Path, tmp_path: Path, library: Path) -> None:
    out = quick(model, tmp_path / "out", target="onnx").path
    assert session(out).reason == "the bundle holds this graph only"
    with pytest.raises(UsageError, match="has no graph of actx nodes"):
        session(out, kernels=True)
    for asked in ({"kernels": True}, {"with_kernels": (HERE,)}):
        with pytest.raises(UsageError, match="target onnx has no kernels"):
            quick(model, tmp_path / "other", target="onnx", **asked)


def test_a_graph_of_actx_nodes_is_opened_as_a_file_too(model: Path, bundle: Path, library: Path) -> None:
    report = check(model, bundle / NATIVE)
    assert report.graph == NATIVE
    assert report.drift > 0


# --- libraries in the bundle ---


@pytest.fixture
def carrying(model: Path, tmp_path: Path, library: Path) -> Path:
    return quick(model, tmp_path / "carrying", with_kernels=(HERE,), measure_drift=False).path


def test_a_bundle_carries_what_it_lists(carrying: Path, library: Path) -> None:
    written = json.loads((carrying / MANIFEST).read_text())
    name = library_name(HERE)
    assert written["files"][name] == digest(carrying / name) == digest(library)
    assert set(written["files"]) == {PORTABLE, NATIVE, "weights.data", name}


def test_the_installed_kernels_come_first(carrying: Path) -> None:
    assert session(carrying, trust=True).reason == "with the installed kernels"


def test_those_of_a_bundle_run_only_where_it_is_trusted(carrying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find", lambda: None)
    assert session(carrying).graph == PORTABLE
    assert "those of the bundle are not trusted" in session(carrying).reason
    with pytest.raises(TargetUnavailable, match="not trusted") as caught:
        session(carrying, kernels=True)
    assert "--trust" in caught.value.remedy
    opened = session(carrying, trust=True)
    assert (opened.graph, opened.reason) == (NATIVE, "with the bundle's own kernels")
    values = feeds(many_sites(3))
    assert apart(session(carrying).run(values), opened.run(values)) <= BETWEEN_GRAPHS


def test_a_library_that_is_not_needed_may_be_deleted(carrying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (carrying / library_name(HERE)).unlink()
    assert session(carrying).graph == NATIVE
    monkeypatch.setattr(cpu, "find", lambda: None)
    opened = session(carrying, trust=True)
    assert opened.graph == PORTABLE
    assert "actx was installed without them" in opened.reason


def test_a_library_that_the_manifest_does_not_list_is_not_loaded(
    carrying: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = json.loads((carrying / MANIFEST).read_text())
    del written["files"][library_name(HERE)]
    (carrying / MANIFEST).write_text(json.dumps(written))
    monkeypatch.setattr(cpu, "find", lambda: None)
    assert session(carrying, trust=True).graph == PORTABLE


def test_a_library_that_was_changed_is_not_loaded(carrying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find", lambda: None)
    with (carrying / library_name(HERE)).open("ab") as file:
        file.write(b"\0")
    for trust in (True, False):
        with pytest.raises(ActxError, match="not the file that the export wrote"):
            session(carrying, trust=trust)


def test_a_broken_library_that_the_manifest_lists(carrying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find", lambda: None)
    file = carrying / library_name(HERE)
    file.write_bytes(file.read_bytes()[:1000])
    written = json.loads((carrying / MANIFEST).read_text())
    written["files"][library_name(HERE)] = digest(file)
    (carrying / MANIFEST).write_text(json.dumps(written))
    assert "cut short" in session(carrying, trust=True).reason
    with pytest.raises(TargetUnavailable, match="the bundle's own kernels cannot be used"):
        session(carrying, trust=True, kernels=True)


def test_a_bundle_with_libraries_is_replaced_whole_and_only_if_nothing_else_is_in_it(
    carrying: Path, model: Path, library: Path
) -> None:
    stranger = carrying / "kernels" / "mine.so"
    stranger.write_bytes(b"mine")
    with pytest.raises(UsageError, match="which no export wrote"):
        quick(model, carrying, force=True)
    stranger.unlink()
    quick(model, carrying, force=True)
    assert not (carrying / "kernels").exists()


def test_architectures_that_are_not_known(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no kernels for architecture 'mips'") as caught:
        quick(model, tmp_path / "out", with_kernels=("mips",))
    assert all(name in caught.value.note for name in ARCHITECTURES.values())


def test_without_a_compiler(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    other = next(name for name in ARCHITECTURES.values() if name != HERE)
    with pytest.raises(ActxError, match=f"the kernels for {other} cannot be built") as caught:
        quick(model, tmp_path / "out", with_kernels=(other,))
    assert "not installed" in caught.value.note
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no compiler for aarch64 is installed")
def test_a_library_for_another_architecture(model: Path, tmp_path: Path) -> None:
    out = quick(model, tmp_path / "out", with_kernels=("aarch64",), measure_drift=False).path
    header = (out / library_name("aarch64")).read_bytes()[:20]
    assert ARCHITECTURES[header[18]] == "aarch64"


# --- where they are found ---


def test_the_order(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_kernels().origin == "the installed kernels"
    copy = Path(shutil.copy(library, tmp_path / "copy.so"))
    monkeypatch.setenv("ACTX_LIBRARY", str(copy))
    found = find_kernels()
    assert (found.library, found.origin) == (copy, "the kernels that ACTX_LIBRARY names")
    monkeypatch.setenv("ACTX_LIBRARY", "")
    assert find_kernels().origin == "the installed kernels"


def test_a_file_without_actx_nodes_needs_none(model: Path) -> None:
    graph = best_graph(model, kernels=True)
    assert not graph.kernels
