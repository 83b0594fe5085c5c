"""Fuzz the readers and the C++ operators.

    python -m tests.fuzz [TARGET...] --runs N --seconds S

A reader's input is one of its seeds or a changed one, and depends on its number alone: `--first N --runs 1` repeats it. They
are read in a process of its own, with 1 GiB of memory beside what it has when it starts and a limit of time for each; what it
dies of is a finding too. `--guided` lets atheris choose the inputs by the branches that they take; then only the first finding
of a target is told.

The operators (`op:Spline` and so on) run in a build with AddressSanitizer and UndefinedBehaviorSanitizer; `--library` names one
that is built already.
"""

from __future__ import annotations

import argparse
import mmap
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy start theirs
os.environ["HF_HUB_OFFLINE"] = "1"

from actx.custom_ops.ops import OPS
from tests.fuzz.targets import TARGETS, Target

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPERATORS = tuple(f"op:{name}" for name in OPS)
MEMORY = 1 << 30
_PROGRESS = struct.Struct(
    "<QQQd"
)  # the number of the input, how many were read, how many of these were taken, when it started


@dataclass
class Result:
    """What a campaign came to.

    Attributes:
        executions: inputs that were read.
        taken: of these, those that were read without an error; of an operator, those that it ran on.
        findings: the number of an input by what it showed, the first of each kind.
    """

    executions: int = 0
    taken: int = 0
    findings: dict[str, int] = field(default_factory=dict)


def fuzz(target: Target, first: int, runs: int, seconds: float) -> Result:
    """Read so many inputs, or for so long, in processes that may die of one."""
    target.run(target.input(0))  # what is imported is shared by all processes
    result, end = Result(), time.monotonic() + seconds
    while result.executions < runs and time.monotonic() < end:
        _one_process(target, first + result.executions, runs - result.executions, end, result)
    return result


def _one_process(target: Target, first: int, runs: int, end: float, result: Result) -> None:
    shared = mmap.mmap(-1, _PROGRESS.size)
    shared[:] = _PROGRESS.pack(first, 0, 0, time.monotonic())
    found, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(found)
        _read_inputs(target, first, runs, end, shared, told)
    os.close(told)
    status, hung = None, False
    while status is None:
        time.sleep(0.05)
        ended, code = os.waitpid(child, os.WNOHANG)
        status = code if ended else None
        if status is None and time.monotonic() - _PROGRESS.unpack(shared[:])[3] > target.seconds:
            hung = True
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
    number, executions, taken, _ = _PROGRESS.unpack(shared[:])
    with open(found, encoding="utf-8") as lines:  # noqa: PTH123 - a descriptor
        for line in lines:
            at, _, text = line.rstrip("\n").partition(" ")
            result.findings.setdefault(text, int(at))
    if status:
        reason = (
            f"more than {target.seconds} s" if hung else f"the process ended with {os.waitstatus_to_exitcode(status)}"
        )
        result.findings.setdefault(reason, number)
        executions += 1
    result.executions += executions
    result.taken += taken


def _read_inputs(target: Target, first: int, runs: int, end: float, shared: mmap.mmap, told: int) -> None:
    """Read inputs, and end the process."""
    limit_memory()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    if not os.environ.get("ACTX_DEBUG"):
        os.dup2(devnull, 2)  # libraries write to them past Python
    taken = 0
    for number in range(first, first + runs):
        shared[:] = _PROGRESS.pack(number, number - first, taken, time.monotonic())
        if time.monotonic() > end:
            break
        data = target.input(number)
        shared[:] = _PROGRESS.pack(number, number - first, taken, time.monotonic())
        try:
            taken += target.run(data)
        except BaseException as error:  # noqa: BLE001 - whatever comes is a finding
            os.write(told, f"{number} {_kind(error)}\n".encode(errors="replace"))
    else:
        shared[:] = _PROGRESS.pack(first + runs, runs, taken, time.monotonic())
    os._exit(0)


def limit_memory() -> None:
    """Let this process take no more than `MEMORY` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _kind(error: BaseException) -> str:
    """Say what a finding is, alike for all inputs that show it: the exception and where it left the code of actx."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if {"exporter", "cli", "custom_ops"} & {*Path(frame.filename).parts}]
    place = f"at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else repr(str(error)[:100])
    return f"{type(error).__name__} {place}"


_GUIDED = """
import atheris, random, sys
with atheris.instrument_imports(include=["actx.exporter", "actx.cli", "zipfile", "numpy.lib", "tomllib", "onnx_ir"]):
    from tests.fuzz.targets import TARGETS
    target = TARGETS[sys.argv.pop(1)]
    target.run(target.input(0))
from tests.fuzz.__main__ import limit_memory
limit_memory()

def mutate(data, size, seed):
    return target.mutate(bytes(data), random.Random(seed))[:size]

atheris.Setup(sys.argv, target.run, custom_mutator=mutate)
atheris.Fuzz()
"""


def guided(name: str, runs: int, seconds: float, corpus: Path) -> Result:
    """Have atheris choose the inputs, in a process of its own that ends at the first finding, and keep them in the folder."""
    target = TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.valid):
        (corpus / f"seed{i}").write_bytes(seed)
    limits = [f"-runs={runs}", f"-max_total_time={int(seconds)}", f"-timeout={int(target.seconds)}", "-max_len=1048576"]
    options = ["-rss_limit_mb=0", "-print_final_stats=1", f"-artifact_prefix={corpus}/"]
    command = [sys.executable, "-c", _GUIDED, name, *limits, *options, str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    made = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    findings = {} if done.returncode == 0 else {"\n".join(done.stderr.splitlines()[-40:]): -1}
    return Result(int(made[1]) if made else 0, 0, findings)


def build_operators(folder: Path) -> Path:
    """Build the operators with sanitizers and some optimization, for speed, and return the library."""
    source, scratch = ROOT / "custom_ops/cpu", folder / "build"
    options = ["-DACTX_SANITIZE=ON", "-DACTX_SANITIZE_OPTIMIZATION=-O1"]
    for command in (["cmake", "-S", source, "-B", scratch, *options], ["cmake", "--build", scratch, "--parallel"]):
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return scratch / "libactx_ops.so"


def build_harness(folder: Path) -> Path:
    """Build `ops.cc` and return the program."""
    options = ["-std=c++17", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    program = folder / "ops"
    command = ["c++", *options, f"-I{ROOT}/custom_ops/cpu/include", str(HERE / "ops.cc"), "-ldl", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def fuzz_operator(program: Path, library: Path, name: str, first: int, runs: int, seconds: float) -> Result:
    """Have the harness make so many executions."""
    command = [str(program), str(library), name, str(first), str(runs), str(seconds)]
    options = {
        "ASAN_OPTIONS": "max_allocation_size_mb=1024:malloc_context_size=0:quarantine_size_mb=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(command, env={**os.environ, **options}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.splitlines()
        number = next((line.removeprefix("node ") for line in lines if line.startswith("node ")), "-1")
        return Result(
            0, 0, {next((line for line in lines if "rror" in line), f"exit code {done.returncode}"): int(number)}
        )
    _, executions, taken = map(int, done.stdout.split())
    return Result(executions, taken)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers and the C++ operators.")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join((*TARGETS, *OPERATORS))}; default all"
    )
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="executions of each target")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="at most so long for each")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input, or node")
    parser.add_argument(
        "--guided", type=Path, metavar="FOLDER", help="let atheris choose the inputs, and keep them there"
    )
    parser.add_argument("--library", type=Path, metavar="FILE", help="operators that `build_operators` built")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="where to put the inputs of the findings")
    arguments = parser.parse_args()
    names = arguments.targets or [*TARGETS, *OPERATORS]
    if unknown := [name for name in names if name not in {*TARGETS, *OPERATORS}]:
        parser.error(f"there is no target {unknown[0]}")
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        run = _runner(arguments, names, Path(scratch))
        for name in names:
            started = time.monotonic()
            result = run(name)
            counts = f"{result.executions} executions, {result.taken} taken, {len(result.findings)} findings"
            print(f"{name}: {counts}, {time.monotonic() - started:.0f} s", flush=True)
            for text, number in result.findings.items():
                print(f"  {number}: {text}", flush=True)
                if arguments.output is not None and name in TARGETS:
                    arguments.output.mkdir(parents=True, exist_ok=True)
                    (arguments.output / f"{name}-{number}").write_bytes(TARGETS[name].input(number))
            found += len(result.findings)
    return 1 if found else 0


def _runner(arguments: argparse.Namespace, names: list[str], scratch: Path) -> Callable[[str], Result]:
    """Return what fuzzes a target, by its name."""
    limits = arguments.first, arguments.runs, arguments.seconds
    harness = build_harness(scratch) if {*names} & {*OPERATORS} else scratch
    library = arguments.library or (build_operators(scratch) if harness != scratch else scratch)

    def run(name: str) -> Result:
        if name in OPERATORS:
            return fuzz_operator(harness, library, name.removeprefix("op:"), *limits)
        if arguments.guided is not None:
            return guided(name, arguments.runs, arguments.seconds, arguments.guided / name)
        return fuzz(TARGETS[name], *limits)

    return run


if __name__ == "__main__":
    raise SystemExit(main())
