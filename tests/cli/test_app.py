"""What all verbs have in common: help, errors, exit codes, JSON."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import onnx
import pytest
import typer.main

from actx.cli.main import app
from tests.cli.conftest import process
from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Actx

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
HEAVY = ("torch", "openvino", "tensorrt_rtx", "onnxruntime", "onnx", "scipy", "numpy", "matplotlib", "rich")


# --- help ---


def test_the_verbs() -> None:
    assert list(COMMANDS) == [
        "inspect",
        "export",
        "build",
        "check",
        "profile",
        "compare",
        "report",
        "fit",
        "targets",
        "demo",
    ]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_help_and_an_example(actx: Actx, verb: str) -> None:
    for flag in ("--help", "-h"):
        result = actx(verb, flag)
        assert (result.code, result.err) == (0, "")
    text = " ".join(result.out.split())
    assert f"Example: actx {verb}" in text
    assert all(parameter.help for parameter in COMMANDS[verb].params)
    assert "--json" in text
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_example_of_every_verb_parses(verb: str) -> None:
    example = " ".join(COMMANDS[verb].epilog.split()).removeprefix("Example: ")
    program, name, *arguments = shlex.split(example)
    assert (program, name) == ("actx", verb)
    COMMANDS[verb].make_context(verb, arguments)


def test_the_list_of_verbs_is_not_cut_off(actx: Actx) -> None:
    result = actx("--help")
    assert result.code == 0
    assert "..." not in result.out.partition("Commands:")[2]


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from actx.cli.main import run
for arguments in ([], ["--help"], *([verb, "--help"] for verb in {list(COMMANDS)!r}), ["nothing"]):
    sys.argv = ["actx", *arguments]
    run()
sys.exit(f"imported {{set({HEAVY!r}) & set(sys.modules)}}" if set({HEAVY!r}) & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command() -> None:
    result = process("--version")
    assert result.code == 0
    assert result.out.startswith("actx ")


def test_the_version_says_whether_there_are_kernels(
    actx: Actx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert actx("--version").out.splitlines()[1].startswith(("CPU kernels: ", "no CPU kernels: "))
    monkeypatch.setenv("ACTX_LIBRARY", str(tmp_path / "absent.so"))
    assert "absent.so cannot be loaded" in actx("--version").out.splitlines()[1]


def test_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(words: str) -> list[str]:
        variables = {
            "_ACTX_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        actx = [sys.executable, "-c", "import sys; sys.argv[0] = 'actx'; from actx.cli.main import main; main()"]
        done = subprocess.run(actx, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert complete("actx ins") == ["inspect"]
    assert complete("actx fit gelu --form pwl") == ["pwl:8", "pwl:16", "pwl:32"]
    assert complete("actx export m --target o") == ["ort-cpu", "openvino", "ort-cuda", "onnx"]


def test_a_completion_script() -> None:
    result = process("--show-completion", "bash")
    assert "complete" in result.out + result.err
    assert "Traceback" not in result.err


# --- errors ---

ERRORS: dict[str, tuple[int, tuple[str, ...]]] = {
    "no such verb": (2, ("nothing",)),
    "no argument": (2, ("inspect",)),
    "unknown option": (2, ("fit", "gelu", "--bogus")),
    "option without a value": (2, ("fit", "gelu", "--form")),
    "surplus argument": (2, ("fit", "gelu", "relu")),
    "number that is none": (2, ("export", "MODEL", "--runs", "many")),
    "number out of range": (2, ("export", "MODEL", "--runs", "0")),
    "negative budget": (2, ("export", "MODEL", "--max-drift", "-1")),
    "nan budget": (2, ("export", "MODEL", "--max-drift", "nan")),
    "unknown form": (2, ("export", "MODEL", "--form", "magic:3")),
    "form out of range": (2, ("export", "MODEL", "--form", "pwl:99")),
    "unknown target": (2, ("export", "MODEL", "--target", "tpu")),
    "unknown scheme": (2, ("export", "MODEL", "--target", "trt-rtx", "--quant", "fp4")),
    "scheme of another target": (2, ("export", "MODEL", "--quant", "fp16")),
    "scheme that needs data": (2, ("export", "MODEL", "--target", "trt-rtx", "--quant", "int8")),
    "malformed shape": (2, ("export", "MODEL", "--target", "trt-rtx", "--shape", "batch")),
    "shape without an engine": (2, ("export", "MODEL", "--shape", "batch=1:2:3")),
    "malformed size": (2, ("export", "MODEL", "--target", "trt-rtx", "--workspace", "much")),
    "option of another library": (2, ("export", "MODEL", "--target", "trt-rtx", "--dla", "0")),
    "build of what is no bundle": (1, ("build", "missing")),
    "engine by itself": (1, ("check", "MODEL", "ENGINE")),
    "unknown metric": (2, ("export", "MODEL", "--metric", "accuracy")),
    "metric that does not import": (1, ("check", "MODEL", "MODEL", "--metric", "no.such:thing")),
    "unknown activation": (2, ("fit", "magic")),
    "site without a form": (2, ("export", "MODEL", "--site", "abc")),
    "site with an unknown form": (2, ("export", "MODEL", "--site", "abc=magic")),
    "site that is not there": (2, ("export", "MODEL", "--site", "abc=pwl:8")),
    "malformed input": (2, ("inspect", "MODEL", "--input", "x")),
    "input that is not there": (2, ("inspect", "MODEL", "--input", "z:float32[2]")),
    "missing model": (1, ("inspect", "missing.onnx")),
    "folder for a model": (1, ("inspect", ".")),
    "missing data": (1, ("inspect", "MODEL", "--data", "missing.npz")),
    "missing artifact": (1, ("check", "MODEL", "missing")),
    "plot of another kind": (2, ("fit", "relu", "--plot", "plot.pdf")),
    "plot to nowhere": (1, ("fit", "relu", "--plot", "missing/plot.png")),
    "interval that is none": (2, ("fit", "gelu", "--range", "1")),
    "interval upside down": (2, ("fit", "gelu", "--range", "2,1")),
    "logits that are not there": (2, ("check", "MODEL", "MODEL", "--logits", "nothing")),
    "missed budget": (3, ("export", "MODEL", "--form", "relu", "--max-drift", "0", "--no-profile")),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("json_flag", [False, True])
def test_errors(actx: Actx, model: Path, case: str, json_flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what failed, then the facts, then the remedy, all on stderr."""
    monkeypatch.chdir(model.parent)
    code, arguments = ERRORS[case]
    engine = model.with_name("model.engine")
    engine.write_bytes(b"vtrt")
    flags = ("--json",) if json_flag and case not in {"no such verb", "option without a value"} else ()
    result = actx(*({"MODEL": str(model), "ENGINE": str(engine)}.get(a, a) for a in arguments), *flags)
    assert result.code == code
    if case != "missed budget":
        assert result.out == ""
    elif json_flag:  # the bundle was made all the same, and is reported
        assert json.loads(result.out)["bundle"].endswith(".rejected")
    lines = result.err.splitlines()
    assert lines[0].startswith("Error: ")
    assert 1 <= len(lines) <= 3
    assert not any(line.startswith("Error") for line in lines[1:])
    assert all(line.strip() for line in lines)
    assert "Traceback" not in result.err
    assert "not an error that actx expects" not in result.err


@pytest.mark.parametrize("verb", ["inspect", "check", "export", "report"])
def test_a_name_that_no_file_has(actx: Actx, verb: str) -> None:
    result = actx(verb, *(["model.onnx"] if verb == "check" else []), "a" * 300)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith("Error: File name too long: a")


def test_the_traceback_on_demand(actx: Actx, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in actx("inspect", "missing.onnx").err
    monkeypatch.setenv("ACTX_DEBUG", "1")
    result = actx("inspect", "missing.onnx")
    assert "Traceback" in result.err
    assert "\nError: cannot read missing.onnx\n" in result.err
    assert result.code == 1


def test_no_arguments_give_the_help(actx: Actx) -> None:
    result = actx()
    assert result.code == 2
    assert "Commands:" in result.err
    assert result.out == ""


# --- JSON ---


def object_of(text: str) -> Any:
    """Parse stdout, which must be one object and nothing else."""

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    tree = json.loads(text, parse_constant=refuse)
    assert isinstance(tree, dict)
    return tree


def test_json_of_every_verb(actx: Actx, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases: dict[str, tuple[object, ...]] = {
        "inspect": (model, "--explain"),
        "targets": (),
        "export": (model, "-o", out, "--form", "pwl:8", "--runs", 2),
        "check": (model, out),
        "profile": (model, out, "--runs", 2),
        "fit": ("gelu",),
    }
    found = {}
    for verb, arguments in cases.items():
        result = actx(verb, *arguments, "--json")
        assert (result.code, result.err) == (0, ""), verb
        found[verb] = object_of(result.out)
    assert len(found["inspect"]["sites"]) == 3
    assert found["export"]["bundle"] == str(out)
    assert found["export"]["drift"][0]["synthetic"] is True
    assert found["targets"]["targets"]["trt-rtx"]["build"] == ""
    assert found["check"]["within_budget"] is True
    assert found["profile"]["runs"] == 2
    assert found["fit"]["form"] == "pwl:16"


def test_a_missed_budget_of_check_prints_its_report_and_exits_with_3(actx: Actx, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert actx("export", model, "-o", out, "--form", "relu", "--no-check", "--no-profile").code == 0
    result = actx("check", model, out, "--max-drift", 1e-9, "--json")
    assert result.code == 3
    assert result.err.startswith("Error: the drift is over the budget of 1e-09\nNote: ")
    assert object_of(result.out)["within_budget"] is False
    result = actx("check", model, out, "--max-drift", 1e-9)
    assert result.code == 3
    assert "MISSED" in result.out
    assert result.err.startswith("Error: the drift is over the budget of 1e-09\n")


# --- terminals, pipes and signals ---


def on_terminal(columns: int, *arguments: object) -> str:
    """Run `actx` with stdout on a terminal of this width."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    command = [sys.executable, "-m", "actx.cli.main", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, env=environment) as child:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            pieces.append(piece)
        os.close(leader)
        assert child.wait() == 0
    return b"".join(pieces).decode().replace("\r\n", "\n")


def test_tables_at_80_columns_keep_names_whole(tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    long = "encoder.layers.11.feed_forward.intermediate_activation_function.with_a_long_name"
    for node in proto.graph.node:
        node.name = f"/{long.replace('.', '/')}/{node.name}"
    onnx.save(proto, tmp_path / "model.onnx")
    narrow = on_terminal(80, "inspect", tmp_path / "model.onnx")
    wide = on_terminal(200, "inspect", tmp_path / "model.onnx")
    assert f"\n{long}\n" in narrow
    assert f"\n{long}  gelu" in wide
    assert "\x1b" not in narrow + wide
    assert max(len(line) for line in narrow.splitlines()) <= len(long)


def test_brackets_are_printed_as_they_are(actx: Actx, tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    for node in proto.graph.node:
        node.name = f"blocks[0]/[bold]act/{node.name}"
    onnx.save(proto, tmp_path / "model.onnx")
    result = actx("inspect", tmp_path / "model.onnx")
    assert "[synthetic input: no ranges]" in result.out
    assert "[bold]" in result.out
    assert result.out.count("not measured") >= 1


def test_a_terminal_without_the_letters_of_a_name(tmp_path: Path) -> None:
    proto = SPELLINGS["gelu_op"].model(20)
    for node in proto.graph.node:
        node.name = f"schicht_β/{node.name}"
    onnx.save(proto, tmp_path / "model.onnx")
    command = [sys.executable, "-m", "actx.cli.main", "inspect", str(tmp_path / "model.onnx")]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\u03b2" in done.stdout


@pytest.mark.parametrize("arguments", [("fit", "gelu"), ("fit", "gelu", "--json"), ("--help",)])
def test_a_broken_pipe(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "actx.cli.main", *arguments]
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as child:
        os.close(write)
        assert child.stderr is not None
        assert child.stderr.read() == b""
        assert child.wait() == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_export_leaves_nothing_behind(number: int, code: int, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actx.cli.main", "export", str(model), "-o", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--form", "relu", "--runs", "1000000"], stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.partial/**/weights.data")) and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(number)
        assert child.stderr is not None
        error = child.stderr.read()
        assert child.wait(60) == code
    assert error.splitlines() == ([b"Interrupted: no bundle is left half written."] if code == 130 else [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
