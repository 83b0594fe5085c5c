"""The binding to numpy: what it takes, what it refuses, and why a library cannot be used."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from actx.custom_ops import cpu
from actx.custom_ops.ops import OPS
from tests.custom_ops.cpu.agreement import check_contract, check_refusals
from tests.custom_ops.cpu.conftest import need

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

RELU: dict[str, Any] = {
    "degree": 1,
    "knots": [0.0],
    "coefficients": [0.0, 0.0, 0.0, 1.0],
    "origins": [0.0, 0.0],
}


def compile_library(source: str, folder: Path) -> Path:
    need("cc")
    library = folder / "libactx_ops.so"
    subprocess.run(["cc", "-shared", "-xc", "-", "-o", library], input=source, text=True, check=True)
    return library


# --- finding and loading ---


def test_finds_the_installed_library(library: cpu.Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACTX_LIBRARY", raising=False)
    assert cpu.find() == library.path
    assert library.isas[-1] == "portable"


def test_the_environment_names_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTX_LIBRARY", str(tmp_path / "mine.so"))
    assert cpu.find() == tmp_path / "mine.so"
    with pytest.raises(cpu.KernelsUnavailable, match=r"mine\.so cannot be loaded: No such file"):
        cpu.load()


def test_without_a_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actx.custom_ops.cpu.library.find", lambda: None)
    with pytest.raises(cpu.KernelsUnavailable, match="installed without its CPU kernels"):
        cpu.load()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a shared library|cut short"),
        (b"not a library", "not a shared library"),
        (b"\x7fELF\x02\x01", "cut short"),
    ],
)
def test_refuses_what_is_no_library(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "libactx_ops.so"
    file.write_bytes(content)
    with pytest.raises(cpu.KernelsUnavailable, match=reason):
        cpu.load(file)


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(cpu.KernelsUnavailable, match="Is a directory"):
        cpu.load(tmp_path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_refuses_a_library_that_was_cut_short(library: cpu.Library, tmp_path: Path, share: float) -> None:
    whole = library.path.read_bytes()
    file = tmp_path / "libactx_ops.so"
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(cpu.KernelsUnavailable, match="cut short"):
        cpu.load(file)


def test_refuses_a_library_for_another_architecture(library: cpu.Library, tmp_path: Path) -> None:
    content = bytearray(library.path.read_bytes())
    machine, other = {"x86_64": (183, "aarch64"), "aarch64": (62, "x86_64")}[platform.machine()]
    content[18:20] = machine.to_bytes(2, "little")  # e_machine
    file = tmp_path / "libactx_ops.so"
    file.write_bytes(content)
    with pytest.raises(cpu.KernelsUnavailable, match=f"it is for {other}, this is {platform.machine()}"):
        cpu.load(file)


def test_refuses_another_library(tmp_path: Path) -> None:
    file = compile_library("int something(void) { return 0; }", tmp_path)
    with pytest.raises(cpu.KernelsUnavailable, match="lacks actx_abi_version"):
        cpu.load(file)


def test_refuses_another_version_of_the_interface(tmp_path: Path) -> None:
    file = compile_library("int actx_abi_version(void) { return 99; }", tmp_path)
    with pytest.raises(cpu.KernelsUnavailable, match="its interface is number 99, this actx has 1"):
        cpu.load(file)


# --- the kernels ---


@pytest.mark.parametrize("op_type", OPS)
def test_every_instruction_set_keeps_the_contract(library: cpu.Library, op_type: str) -> None:
    check_contract(library, op_type)


@pytest.mark.parametrize("op_type", OPS)
def test_refuses_what_the_op_refuses(library: cpu.Library, op_type: str) -> None:
    check_refusals(library, op_type)


def test_lists_the_same_ops_for_every_instruction_set(library: cpu.Library) -> None:
    for isa in library.isas:
        rows = library.kernels(isa)
        assert {row.op_type for row in rows} <= set(OPS)
        assert len(set(rows)) == len(rows)
    with pytest.raises(ValueError, match=r"not available here; available: .*portable"):
        library.kernels("vax")


def test_takes_the_kernel_and_the_instruction_set_that_are_named(library: cpu.Library) -> None:
    operator = library.create("Spline", RELU, isa="portable", kernel="search_32x3")
    assert operator.kernel == "search_32x3"
    np.testing.assert_array_equal(operator.run([np.array([-1.0, 2.0], np.float32)]), [0, 2])
    with pytest.raises(ValueError, match="nothing"):
        library.create("Spline", RELU, kernel="nothing")
    with pytest.raises(ValueError, match="'vax' is not available here"):
        library.create("Spline", RELU, isa="vax")


def test_the_environment_names_the_instruction_set(library: cpu.Library) -> None:
    code = (
        "import numpy as np; from actx.custom_ops import cpu;"
        f"print(cpu.load().run('Spline', {RELU}, [np.ones(1, np.float32)]))"
    )
    for isa, expected in (("portable", "[1.]"), ("vax", "'vax' is not available here")):
        environment = {"ACTX_ISA": isa, "ACTX_LIBRARY": str(library.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert expected in done.stdout + done.stderr


# --- arrays ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_takes_any_view(library: cpu.Library, dtype: DTypeLike) -> None:
    x = np.arange(-60, 60).astype(dtype).reshape(2, 3, 20)
    for view in (x, x[:, ::2], x.T, x[..., ::-1], np.broadcast_to(x[:1], (4, 3, 20)), np.asfortranarray(x)):
        np.testing.assert_array_equal(library.run("Spline", RELU, [view]), np.maximum(view, np.array(0, dtype)))


def test_takes_data_at_any_address(library: cpu.Library) -> None:
    memory = np.arange(4 * 70, dtype=np.uint8)
    for offset in range(1, 8):
        x = np.frombuffer(memory[offset : offset + 260].tobytes(), np.float32, offset=0)
        shifted = np.empty(261, np.uint8)[1:].view(np.float32)
        shifted[...] = x
        results = [library.run("Spline", RELU, [array]) for array in (x, shifted)]
        np.testing.assert_array_equal(*results)


def test_gives_dtype_and_shape_beforehand(library: cpu.Library) -> None:
    operator = library.create("GatedSpline", RELU)
    assert operator.infer([np.zeros((3, 8), np.float16)]) == (np.float16, (3, 4))
    assert library.create("Spline", RELU).infer([np.float32(1)]) == (np.float32, ())  # type: ignore[list-item]


def test_refuses_other_dtypes(library: cpu.Library) -> None:
    for dtype in (np.float64, np.int64, ">f4"):
        with pytest.raises(ValueError, match=r"no op takes .*; allowed: float32"):
            library.run("Spline", RELU, [np.zeros(3, dtype)])


def test_refuses_an_unknown_op(library: cpu.Library) -> None:
    with pytest.raises(ValueError, match="has no op 'Nonsense'"):
        library.create("Nonsense", {})


# --- life and threads ---


@pytest.mark.parametrize(("name", "value"), [("knot", [0.0]), ("axis", 1.0), ("degree2", 3)])
def test_refuses_an_attribute_that_the_op_does_not_have(library: cpu.Library, name: str, value: object) -> None:
    """An optional one that is misspelt, or has another type, would be its default."""
    with pytest.raises(ValueError, match=f"there is no attribute '{name}' of that type"):
        library.create("Spline", {**RELU, name: value})


def test_an_operator_is_freed(library: cpu.Library) -> None:
    operator = library.create("Spline", RELU)
    watched = weakref.ref(operator)
    del operator
    gc.collect()
    assert watched() is None


def test_memory_does_not_grow(library: cpu.Library) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    x = np.zeros(10, np.float32)
    wide = {"table": list(range(-128, 128)) * 64, "axis": 0, "channels": 64}  # 64 KiB of attributes
    codes = np.zeros((64, 2), np.int8)

    def use() -> None:
        for _ in range(500):
            library.run("Lut", wide, [codes])
            library.run("Spline", RELU, [x])
            with pytest.raises(ValueError, match="missing"):
                library.create("Spline", {})

    use()
    before = resident()
    use()
    assert resident() - before < 1000  # pages of 4 KiB; a leak of the tables would be 8000


def test_several_threads_share_an_operator(library: cpu.Library) -> None:
    operator = library.create("Spline", RELU)
    results: list[bool] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=10_000).astype(np.float32)
        results.extend(np.array_equal(operator.run([x]), np.maximum(x, 0)) for _ in range(50))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(results)
