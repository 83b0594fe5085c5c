"""Time and memory of the verbs on large models: `python -m tests.benchmarks.scale --parameters 0.1 0.5 1.5`.

1. Each decoder (llama: gated SiLU FFN) has random float16 weights and is saved as a Hugging Face folder. Every verb runs as a
   process of its own, through the command line.
2. Memory is that of the verb's process and all it starts, read from /proc/PID/status every tenth of a second. `anonymous` is
   what cannot be dropped: what the processes allocated (RssAnon). `resident` has the pages of mapped files too (RssAnon,
   RssFile and RssShmem), although the system drops those when it needs the memory.
3. `s of CPU` is of all threads: on a machine that does other work too, wall time says little.
4. `--nodes` does the same with ONNX graphs of so many nodes, a SiLU in five.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEAD = 64
EXPORT = ("--form", "spline:16x3", "--ffn", "pack", "--quant", "int4", "--no-profile")
PACKAGES = ("transformers", "torch", "onnx-ir", "onnxruntime")
INTERVAL = 0.1  # seconds
GIB = 2**30
NODES_PER_SITE = 5
# A prime, so that rows are not periodic.
POOL = 4194301


@dataclass(frozen=True)
class Row:
    """What one verb took.

    Attributes:
        model: in words.
        weights: bytes of the source's weights; None where they do not matter.
        verb: its name.
        seconds: wall time.
        cpu: seconds of CPU time, of all threads.
        anonymous, resident: peak bytes (2.).
        error: the last line of an error, empty where there was none.
    """

    model: str
    weights: int | None
    verb: str
    seconds: float
    cpu: float
    anonymous: int
    resident: int
    error: str = ""


def sizes(billions: float) -> dict[str, int]:
    """Return the settings of a llama with about so many parameters; from a billion on with as many tokens as llama 3."""
    vocabulary = 128256 if billions >= 1 else 32000
    width = 128 * round(16 * (billions / 1.5) ** (1 / 3))
    ffn = 4 * width
    layer = 3 * width * width + 3 * width * ffn  # half as many heads for keys and values
    layers = max(1, round((billions * 1e9 - 2 * vocabulary * width) / layer))
    heads = width // HEAD
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2,
    }  # fmt: skip


def make_decoder(folder: Path, billions: float) -> None:
    """Save one with random weights in float16: slices of one table of normal numbers, which take next to no time to draw."""
    import torch  # noqa: PLC0415 - in a process of its own: the one that measures stays small
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    config = LlamaConfig(**sizes(billions), dtype="float16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    normal = (config.initializer_range * torch.randn(POOL, generator=generator)).half()

    def draw(name: str, shape: torch.Size) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(shape, dtype=torch.float16)
        begin = int(torch.randint(POOL, (), generator=generator))
        rolled = normal.roll(begin)
        return rolled.repeat(-(-shape.numel() // POOL))[: shape.numel()].view(shape)

    config.save_pretrained(folder)
    save_file(
        {name: draw(name, shape) for name, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def make_graph(file: Path, nodes: int) -> None:
    """Save a chain of layers with that many nodes: MatMul, Sigmoid, Mul, MatMul and Add."""
    import numpy as np  # noqa: PLC0415 - as above
    import onnx  # noqa: PLC0415
    from onnx import helper, numpy_helper  # noqa: PLC0415

    rng, width, chain, weights, x = np.random.default_rng(0), 16, [], [], "x"
    for i in range(nodes // NODES_PER_SITE):
        for name in ("up", "down"):
            array = (rng.standard_normal((width, width)) / width).astype(np.float32)
            weights.append(numpy_helper.from_array(array, f"l{i}.{name}"))
        steps = (
            ("MatMul", [x, f"l{i}.up"]), ("Sigmoid", [f"l{i}.0"]), ("Mul", [f"l{i}.0", f"l{i}.1"]),
            ("MatMul", [f"l{i}.2", f"l{i}.down"]), ("Add", [x, f"l{i}.3"]),
        )  # fmt: skip
        chain += [helper.make_node(op, inputs, [f"l{i}.{j}"], f"l{i}/{op}_{j}") for j, (op, inputs) in enumerate(steps)]
        x = f"l{i}.4"
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width]) for name in ("x", x)]
    graph = helper.make_graph(chain, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


def measure(model: str, weights: int | None, arguments: Sequence[str]) -> Row:
    """Run a verb and watch it."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    anonymous = resident = 0
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen([sys.executable, "-m", "actx.cli.main", *arguments], stdout=log, stderr=log) as process:
            while process.poll() is None:
                found = [memory(pid) for pid in family(process.pid)]
                anonymous = max(anonymous, sum(one for one, _ in found))
                resident = max(resident, sum(all_ for _, all_ in found))
                time.sleep(INTERVAL)
        seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    if os.environ.get("SCALE_SHOW"):
        print("\n".join(lines), file=sys.stderr)
    error = next((line for line in lines if line.startswith("Error")), "") if process.returncode else ""
    if process.returncode and not error:
        error = f"exit status {process.returncode}"
    return Row(model, weights, arguments[0], seconds, cpu, anonymous, resident, error)


def family(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return
    for child in children:
        yield from family(int(child))


def memory(pid: int) -> tuple[int, int]:
    """Return the anonymous and all resident bytes of a process; none of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    parts = {name: int(size) << 10 for name, size in re.findall(r"Rss(Anon|File|Shmem):\s+(\d+) kB", status)}
    return parts.get("Anon", 0), sum(parts.values())


def verbs(model: Path, out: Path, wanted: Sequence[str], export: Sequence[str]) -> Iterator[list[str]]:
    """Yield the command lines."""
    commands = {
        "inspect": ["inspect", str(model)],
        "export": ["export", str(model), *export, "-o", str(out), "--force"],
        "check": ["check", str(model), str(out)],
        "profile": ["profile", str(model), str(out)],
    }
    yield from (commands[verb] for verb in wanted)


def rows_of(
    name: str, make: Sequence[str], model: Path, out: Path, wanted: Sequence[str], export: Sequence[str]
) -> Iterator[Row]:
    """Make a model in a process of its own, and measure every verb on it."""
    subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", *make, str(model)], check=True)
    files = model.glob("*.safetensors") if model.is_dir() else ()
    weights = sum(file.stat().st_size for file in files) or None
    for arguments in verbs(model, out, wanted, export):
        yield measure(name, weights, arguments)


def table(rows: Sequence[Row]) -> str:
    """Write the rows in Markdown."""
    lines = [
        "| model | weights GiB | verb | s | s of CPU | anonymous GiB | of the weights | resident GiB | of the weights |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = [row.anonymous, row.resident]
        shares = ["-" if row.weights is None else f"{size / row.weights:.2f}" for size in sizes]
        weights = "-" if row.weights is None else f"{row.weights / GIB:.2f}"
        cells = [row.model, weights, row.verb, f"{row.seconds:.0f}", f"{row.cpu:.0f}"]
        cells += [cell for size, share in zip(sizes, shares, strict=True) for cell in (f"{size / GIB:.2f}", share)]
        lines.append(f"| {' | '.join(cells)} |{f' {row.error}' if row.error else ''}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", nargs="*", type=float, default=[], metavar="N", help="billions")
    parser.add_argument("--nodes", nargs="*", type=int, default=[], metavar="N", help="of ONNX graphs")
    parser.add_argument("--verbs", nargs="+", default=["inspect", "export", "check"])
    parser.add_argument(
        "--folder", type=Path, help="where models and bundles are put, and left; a temporary one without it"
    )
    parser.add_argument("--make-decoder", nargs=2, metavar=("N", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--make-graph", nargs=2, metavar=("N", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make_decoder:
        make_decoder(Path(arguments.make_decoder[1]), float(arguments.make_decoder[0]))
        return
    if arguments.make_graph:
        make_graph(Path(arguments.make_graph[1]), int(arguments.make_graph[0]))
        return
    place = arguments.folder or Path(tempfile.mkdtemp(prefix="scale-"))
    rows: list[Row] = []
    try:
        for count in arguments.parameters:
            make = ("--make-decoder", str(count))
            folder = place / f"decoder-{count:g}"
            for row in rows_of(f"{count:g} B", make, folder, place / f"out-{count:g}", arguments.verbs, EXPORT):
                rows.append(row)
                print(row, flush=True)
            if arguments.folder is None:
                shutil.rmtree(folder)
        for count in arguments.nodes:
            make = ("--make-graph", str(count))
            file = place / f"nodes-{count}.onnx"
            plain = ("--form", "spline:16x3", "--no-profile")
            for row in rows_of(f"{count} nodes", make, file, place / f"out-{count}", arguments.verbs, plain):
                rows.append(row)
                print(row, flush=True)
    finally:
        if arguments.folder is None:
            shutil.rmtree(place)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    print(f"\n{dt.date.today()}, {versions}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
