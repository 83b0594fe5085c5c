"""What is fuzzed: every reader of actx, as a function of bytes that lets only the errors of the product pass.

A target raises `Finding`, or anything but an `ActxError`, where the reader does what it must not: an exception that the
command line does not expect, a file opened outside of the input's own folder, a process started, a connection made, something
unpickled.
"""

# ruff: noqa: PLC0415 - a target imports what it reads with
from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from actx.exporter.errors import ActxError
from tests.fuzz import mutate, seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fuzz.mutate import Mutator

OUTSIDE = "outside"  # a folder beside the input's, which nothing may read
_STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)


class Finding(Exception):  # noqa: N818 - it is what the search is for
    """A reader did what it must not, without an exception."""


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: on the command line.
        seeds: valid inputs.
        mutate: makes other inputs of them.
        read: reads an input, given an empty folder of its own.
        seconds: the longest that one input may take.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    mutate: Mutator
    read: Callable[[bytes, Path], object]
    seconds: float = 10

    def input(self, number: int) -> bytes:
        """Return an input, which depends on its number alone; the first are the seeds."""
        if number < len(self.valid):
            return self.valid[number]
        rng = random.Random(f"{self.name} {number}")
        return self.mutate(rng.choice(self.valid), rng)

    @cached_property
    def valid(self) -> list[bytes]:
        """The seeds."""
        return self.seeds()

    def run(self, data: bytes) -> bool:
        """Read an input, and tell whether it was taken.

        Raises:
            Exception: a finding.
        """
        with tempfile.TemporaryDirectory(dir=_FASTEST) as place, _watched(Path(place)) as folder, _quiet():
            try:
                self.read(data, folder)
            except ActxError as error:
                _check_message(error)
                return False
        return True


# Many small files are written: memory takes them faster than a disk.
_FASTEST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_forbidden: list[Path] = []
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _forbidden:
        return
    if event in _STARTS and arguments[0] != "/sbin/ldconfig":  # ctypes looks for libraries with it
        _seen.append(f"{event} {arguments[:1]}")
    elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        file = os.path.realpath(os.fsdecode(arguments[0]))
        if file.startswith(("/etc/passwd", "/dev/zero", str(_forbidden[0]))):
            _seen.append(f"{event} {file}")


@contextlib.contextmanager
def _watched(place: Path) -> Iterator[Path]:
    """Give a folder for an input, and raise where the block reaches out of it."""
    if not _watching:
        sys.addaudithook(_audit)
        _watching.append(True)
    folder, outside = place / "input", place / OUTSIDE
    folder.mkdir()
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(1000))
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    _forbidden.append(outside)
    try:
        yield folder
    finally:
        _forbidden.clear()
        os.chdir(before)
        seen = [*_seen, *(["a command ran"] if (folder / "ran").exists() else [])]
        _seen.clear()
    if seen:
        raise Finding("; ".join(seen))


_watching: list[bool] = []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _check_message(error: ActxError) -> None:
    """An error is a few lines that a terminal takes as text."""
    lines = str(error).splitlines()
    if len(lines) > 3 or any(len(line) > 1000 or not line.isprintable() for line in lines):
        raise Finding(f"an error of {len(lines)} lines: {str(error)[:300]!r}") from error


def unpack(data: bytes, folder: Path) -> None:
    """Write a folder that `seeds.packed` packed; what cannot be a name in it is left out."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                parts = PurePosixPath(info.filename).parts
                if (
                    parts
                    and not ({"..", "/"} & {*parts})
                    and all(len(part) < 200 and "\0" not in part for part in parts)
                ):
                    with contextlib.suppress(OSError):
                        folder.joinpath(*parts).parent.mkdir(parents=True, exist_ok=True)
                        folder.joinpath(*parts).write_bytes(archive.read(info))
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError, NotImplementedError, OSError, zipfile.zlib.error):  # type: ignore[attr-defined]
        return  # no folder


# --- models ---


def _load(data: bytes, folder: Path, name: str = "model", **arguments: Any) -> Any:
    from actx.exporter.load import load

    (folder / name).write_bytes(data)
    return load(folder / name, **arguments)


def read_onnx(data: bytes, folder: Path) -> None:
    """The first part of `load`, without passes over the graph."""
    from actx.exporter.load.onnx_file import read_onnx

    (folder / "model.onnx").write_bytes(data)
    read_onnx(folder / "model.onnx")


def load_onnx(data: bytes, folder: Path) -> None:
    from actx.exporter.lift import lift

    lift(_load(data, folder).model)


def load_external(data: bytes, folder: Path) -> None:
    import onnx_ir as ir

    from actx.exporter.load import load

    unpack(data, folder)
    loaded = load(folder / "model.onnx")
    for value in loaded.model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.numpy()


def look_into_archive(data: bytes, folder: Path) -> None:
    """The checks of a torch.export archive, before torch loads it."""
    from actx.exporter.load.formats import Format, detect
    from actx.exporter.load.torch_archive import refuse_code

    (folder / "model.pt2").write_bytes(data)
    if detect(folder / "model.pt2") is Format.ARCHIVE:
        refuse_code(folder / "model.pt2")


@cache
def _one_registry() -> None:
    """Have torch look up once what it converts with, not for every program: most of the time."""
    import copy

    import torch._export.utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    torch._export.utils._materialize_cpp_cia_ops = cache(torch._export.utils._materialize_cpp_cia_ops)

    read = cache(ONNXRegistry.from_torchlib)

    def shared(**options: Any) -> ONNXRegistry:
        found = copy.copy(read(**options))
        found.functions = {
            target: [*known] for target, known in found.functions.items()
        }  # to which translations are added
        return found

    # A class method there: mypy takes no other function in its place.
    ONNXRegistry.from_torchlib = staticmethod(shared)  # type: ignore[method-assign,assignment]


def load_program(data: bytes, folder: Path) -> None:
    _one_registry()
    _load(data, folder, "model.pt2")


def read_weights(data: bytes, folder: Path) -> None:
    """Files of torch.save and safetensors, up to the module that they fill."""
    from actx.exporter.load.formats import Format, detect
    from actx.exporter.load.weights import read_pickle, read_safetensors

    file = folder / "model.pt"
    file.write_bytes(data)
    found = detect(file)
    if found is Format.PICKLE:
        read_pickle(file, factory="tests.fuzz.seeds:tiny", trust=False)
    elif found is Format.SAFETENSORS:
        read_safetensors(file, factory="tests.fuzz.seeds:tiny")


def load_folder(data: bytes, folder: Path) -> None:
    from actx.exporter.load.hugging_face import default_inputs, read_folder

    unpack(data, folder)
    if (folder / "config.json").is_file():
        default_inputs(folder, read_folder(folder))


# --- bundles ---


def read_bundle(data: bytes, folder: Path) -> None:
    """Open a bundle, up to the session that runs it."""
    from actx.exporter import session

    unpack(data, folder)
    session(folder)


def read_manifest(data: bytes, folder: Path) -> None:
    from actx.exporter.bundle import check_destination
    from actx.exporter.manifest import Manifest

    (folder / "manifest.json").write_bytes(data)
    with contextlib.suppress(ActxError):
        check_destination(folder, force=True)
    found = Manifest.read(folder / "manifest.json")
    found.write(folder / "again.json")


def read_report(data: bytes, folder: Path) -> None:
    from actx.exporter import report

    (folder / "manifest.json").write_bytes(data)
    page = report(folder)
    report(folder, format="md")
    report(folder, format="json")
    for text in re.findall(r'<script>alert|<img src=x|href="(?!#)[^"]*"|src="[^"]*"', page):
        raise Finding(f"the page holds {text}")


def read_side(data: bytes, folder: Path) -> None:
    from actx.exporter.comparing import compare

    (folder / "a.json").write_bytes(data)
    (folder / "b.json").write_bytes(seeds.manifests()[0])
    compare(folder / "b.json", folder / "a.json")


# --- data ---


def read_data(data: bytes, folder: Path, name: str = "data.npz") -> None:
    from actx.exporter.data import InputSpec, load_data

    (folder / name).write_bytes(data)
    for _ in load_data(str(folder / name), [InputSpec.parse("x:float32[n,6]")]):
        pass


def read_polygraphy(data: bytes, folder: Path) -> None:
    read_data(data, folder, "data.json")


# --- text ---


def read_devices(data: bytes, folder: Path) -> None:
    from actx.exporter.devices.config import find_devices

    (folder / "devices.toml").write_bytes(data)
    for device in find_devices("bench", folder / "devices.toml").devices:
        command = [*device.address.arguments(), device.python]
        if any(re.search(r"[\s;&|`$<>(){}\\'\"*?]", part) for part in command) or command[-1].startswith("-"):
            raise Finding(f"ssh is given {command}")


def read_log(data: bytes, folder: Path) -> None:
    from actx.exporter.search.log import Log
    from actx.exporter.search.trials import TrialResult

    (folder / "log").write_bytes(data)
    log = Log(folder / "log")
    for key in "abc":
        log.get(key * 64, TrialResult.from_dict)
    log.put("d" * 64, "sensitivity", {}, {"drift": 1})
    if Log(folder / "log").get("d" * 64, lambda value: value["drift"]) != 1:
        raise Finding("what was put into the log is not found again")


def parse_texts(data: bytes, folder: Path) -> None:
    """Every grammar of the command line, on one text."""
    from actx.exporter.comparing.condition import parse_condition
    from actx.exporter.data import InputSpec
    from actx.exporter.devices.address import Address
    from actx.exporter.ffn.modes import parse_mode
    from actx.exporter.fitting import Form
    from actx.exporter.kernels import check_architectures
    from actx.exporter.metrics import check_metric
    from actx.exporter.search.execute import parse_executor
    from actx.exporter.targets import find_target
    from actx.exporter.tensorrt.options import parse_capabilities, parse_size
    from actx.exporter.tensorrt.shapes import parse_range

    text = data.decode(errors="replace")

    def judged(text: str) -> None:
        names = {"latency.p50": 1.0, "drift.l2": 0.0}
        parse_condition(text).holds(names, names, names)

    parsers: tuple[Callable[[str], object], ...] = (
        Form.parse, InputSpec.parse, judged, Address.parse, parse_mode, parse_executor, parse_size, parse_capabilities,
        parse_range, find_target, lambda text: check_architectures([text]),
        lambda text: None if ":" in text else check_metric(text),
    )  # fmt: skip
    for parse in parsers:
        try:
            parse(text)
        except ActxError as error:
            _check_message(error)


_VERBS = ("inspect", "export", "build", "check", "profile", "compare", "report", "fit")
# Options that run code of the user's choice, or start ssh, and files that the user names wherever they are: by design.
_BY_DESIGN = re.compile(
    r"\w:\w|ssh:|^demo$|^--device$|^-d$|^--(data|held-out|activations|model|metric|trust|executor)|ray|outside|/dev/zero|/etc/"
)


@cache
def _one_command_line() -> None:
    """Have typer make the commands once, not for every input: two thirds of the time."""
    import typer.main

    typer.main.get_command = cache(typer.main.get_command)


def run_command_line(data: bytes, folder: Path) -> None:
    """One command, an argument per line, on what is no model."""
    from actx.cli import main

    words = [word for word in data.decode(errors="replace").split("\n") if not _BY_DESIGN.search(word)][:40]
    if not words or words[0] in {"fit", "targets"}:  # these take their time, by design
        return
    (folder / "model.onnx").write_bytes(b"no model")
    before, sys.argv = sys.argv, ["actx", *(word.replace("\0", "") for word in words)]
    errors = io.StringIO()
    try:
        _one_command_line()
        with contextlib.redirect_stderr(errors):
            code = main.run()
    finally:
        sys.argv = before
    if code not in {0, 1, 2, 3, 4} or "not an error that actx expects" in errors.getvalue():
        raise Finding(f"exit code {code}: {errors.getvalue()[:500]}")


COMMANDS = [
    "inspect\nmodel.onnx\n--json\n--input\nx:float32[batch,4]\n--threads\n1",
    "export\nmodel.onnx\n--form\npwl:8\n--target\nort-cpu\n-o\nout\n--max-drift\n0.1\n--quant\nint8\n--exclude\nfc.*\n--ffn\na=pack",
    "build\nout\n--target\ntrt\n--shape\nbatch=1:8:32\n--workspace\n2GiB\n--compute-capability\n8.6",
    "check\nmodel.onnx\nout\n--max-drift\n0.1\n--batch-size\n2\n--trust",
    "profile\nmodel.onnx\nout\n--runs\n3\n--batch-size\n8\n--json",
    "compare\nout\nother\n--fail-if\nlatency.p50 > 1.05 * base\n--json",
    "report\nout\n-o\npage.html\n--format\nmd",
]

# --- what devices and runtimes answer ---


def read_replies(data: bytes, folder: Path) -> None:
    from pydantic import ValidationError

    from actx.exporter.devices import frames, replies
    from actx.exporter.place import energy_per_run

    stream: IO[bytes] = io.BytesIO(data)
    try:
        message, size = frames.read(stream)
        payload = frames.take(stream, size)
        for kind in replies.Reply.__subclasses__():
            with contextlib.suppress(ValidationError):
                answer = kind.model_validate(message)
                if isinstance(answer, replies.Ran):
                    frames.arrays(answer.arrays, payload)
                if isinstance(answer, replies.Energy):
                    energy_per_run(answer.model_dump(exclude_none=True))
    except (EOFError, frames.MalformedError):
        return


def frame_seeds() -> list[bytes]:
    import numpy as np

    from actx.exporter.devices import frames

    described, payload = frames.describe({"y": np.ones((2, 3), np.float32), "z": np.zeros(4, np.int64)})
    messages = ({"arrays": described}, {"runs": [3, 4], "microjoules": [5, 6]}, {"file": 1, "name": "a"})
    found = []
    for message in messages:
        stream = io.BytesIO()
        frames.write(stream, message, payload if "arrays" in message else [])
        found.append(stream.getvalue())
    return found


def of_frame(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON of a message and keep its lengths right, or change its bytes."""
    if rng.random() < 0.3 or len(data) < 12:
        return mutate.of_bytes(data, rng)
    length = int.from_bytes(data[:4], "big")
    text = mutate.of_json(data[12 : 12 + length], rng)
    return len(text).to_bytes(4, "big") + data[4:12] + text + data[12 + length :]


def read_headers(data: bytes, folder: Path) -> None:
    """Headers of engines and shared libraries, and the description of an engine's layers."""
    from actx.custom_ops.cpu.elf import why_not_for
    from actx.exporter.tensorrt.inspector import parse_layers
    from actx.exporter.tensorrt.plan import read_plan

    file = folder / "file.engine"
    file.write_bytes(data)
    why_not_for(file, "x86_64")
    with contextlib.suppress(ActxError):
        parse_layers(data.decode(errors="replace"))
    read_plan(file)


def header_seeds() -> list[bytes]:
    layer = {"Name": "b", "Metadata": "[ONNX Layer: c]", "Inputs": [{"Format/Datatype": "FP16"}], "Outputs": []}
    layers = {"Layers": ["a", layer]}
    plan = b"vtrt" + bytes(12) + (40).to_bytes(8, "little") + bytes([1, 7, 0, 0]) + bytes(12)
    return [Path(sys.executable).resolve().read_bytes()[:64] + bytes(200), plan, json.dumps(layers).encode()]


def of_header(data: bytes, rng: random.Random) -> bytes:
    return mutate.of_json(data, rng) if data.startswith(b"{") else mutate.of_bytes(data, rng)


_WORDS = (
    "keep", "relu", "pwl:8", "spline:16x3", "poly:4", "float32", "[batch,", "x:int64[]", "latency.p50", "base", " > ", "1.05",
    "drift", "ssh://", "user@", "host", ":22", "[::1]", "GiB", "8.6", "batch=", "1:8:32", "pack", "auto", "local", "--json",
    "--form", "-o", "--help", "--version", *_VERBS,
)  # fmt: skip
_TEXTS = [
    b"pwl:16", b"spline:16x3", b"ids:int64[batch,seq]", b"latency.p50 > 1.05 * base", b"drift.l2 <= (base.drift.l2 + 1) / 2",
    b"ssh://pi@host:22", b"ssh://[fe80::1%eth0]:22", b"layers.0.*=keep", b"2GiB", b"8.6,12.0", b"batch=1:8:32", b"local",
    b"ort-cpu",
]  # fmt: skip

ALL = (
    Target("onnx-parse", seeds.onnx_models, mutate.of_onnx, read_onnx),
    Target("onnx", seeds.onnx_models, mutate.of_onnx, load_onnx, 30),
    Target("onnx-external", seeds.onnx_folders, mutate.of_zip(mutate.of_onnx), load_external, 30),
    Target("archive", seeds.archives, mutate.of_zip(mutate.of_record), look_into_archive),
    Target("program", seeds.archives, mutate.of_zip(mutate.of_record), load_program, 60),
    Target("weights", seeds.weights, mutate.of_zip(mutate.of_bytes), read_weights),
    Target("safetensors", seeds.safetensors, mutate.of_bytes, read_weights),
    Target("hugging-face", seeds.hugging_face_folders, mutate.of_zip(mutate.of_record), load_folder, 60),
    Target("bundle", seeds.bundles, mutate.of_zip(mutate.of_record), read_bundle, 30),
    Target("manifest", seeds.manifests, mutate.of_json, read_manifest),
    Target("report", seeds.manifests, mutate.of_json, read_report),
    Target("compare", seeds.reports, mutate.of_json, read_side),
    Target("npz", seeds.arrays, mutate.of_zip(mutate.of_npy), read_data),
    Target("polygraphy", seeds.polygraphy_inputs, mutate.of_json, read_polygraphy),
    Target("devices", lambda: [seeds.DEVICES], mutate.of_text(*_WORDS, "[devices.", "[[", "= {", "'''"), read_devices),
    Target("log", lambda: [seeds.LOG], mutate.of_text('{"key":', '"value"', "[[[[", "\n"), read_log),
    Target("texts", lambda: _TEXTS, mutate.of_text(*_WORDS), parse_texts),
    Target(
        "command-line",
        lambda: [c.encode() for c in COMMANDS],
        mutate.of_text(*_WORDS, "\n", "\n--"),
        run_command_line,
        30,
    ),
    Target("replies", frame_seeds, of_frame, read_replies),
    Target("headers", header_seeds, of_header, read_headers),
)
TARGETS = {target.name: target for target in ALL}
