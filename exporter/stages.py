"""The stages of one export as models to run, and what to do about the places where they cost most.

The models between the original and what runs here are written beside the bundle's graphs for that time, over the weights there.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from actx.exporter.attribution import (
    ENGINE,
    QUANTIZE,
    RECOVERY,
    REWRITE,
    SOURCE,
    Attribution,
    StageModel,
    attribute,
)
from actx.exporter.bundle import PORTABLE
from actx.exporter.errors import ActxError
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.runtimes.program import Program
from actx.exporter.save import save, stored_in
from actx.exporter.segments import Changed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from actx.exporter.attribution import Culprit
    from actx.exporter.choose import Choice
    from actx.exporter.lower import Lowered
    from actx.exporter.making import Job, Made

ORIGINAL, PROGRAM = "original", "program"
_WEIGHTS = ".stages.data"


def stages_of(job: Job, made: Made) -> tuple[str, ...]:
    """Return the stages that changed the loaded graph, in their order."""
    quantized = job.quant is not None and (made.graph.path.name != PORTABLE or _is_engine(made))
    found = (
        (REWRITE, REWRITE in made.lowered),
        (RECOVERY, RECOVERY in made.lowered),
        (QUANTIZE, quantized),
        (ENGINE, _is_engine(made) and (job.target.has_engine or not quantized)),
    )
    return tuple(name for name, there in found if there)


def attribute_drift(job: Job, made: Made) -> Attribution | None:
    """Attribute the drift of what runs here to the stages and the places in them; None where nothing was changed.

    Raises:
        UsageError, ActxError: as `attribute`.
    """
    names = stages_of(job, made)
    if not names:
        return None
    sites = [
        Changed(choice.site, place.scale, refitted=_is_refitted(made, choice))
        for choice, place in zip(made.choices, made.placements, strict=True)
    ]
    source, notes = _source(job)
    original = StageModel(SOURCE if source else ORIGINAL, job.original, job.reference)
    with _models(job, made, names) as stages:
        found = attribute(
            [*source, original, *stages], job.measured, metric=job.metric, sites=sites, options=_in_turns(job.options),
            progress=job.steps("attribute"),
        )  # fmt: skip
    worst = tuple(replace(culprit, remedy=_REMEDIES[culprit.stage](job, made, culprit)) for culprit in found.worst)
    return replace(found, worst=worst, notes=notes)


def _is_engine(made: Made) -> bool:
    """Tell whether something else than ONNX Runtime runs what was made."""
    return not isinstance(made.graph.runtime, RuntimeOptions)


def _in_turns(options: RuntimeOptions) -> RuntimeOptions:
    """Return the options without idle threads that keep the cores from the session whose turn it is."""
    return replace(options, spin_between_runs=False)


def _is_refitted(made: Made, choice: Choice) -> bool:
    entry = made.recovery.get(choice.site.name)
    return entry is not None and bool(entry.layers or entry.moved)


def _source(job: Job) -> tuple[list[StageModel], tuple[str, ...]]:
    """Return the program that the graph was converted from, where there is one and it runs on the first batch."""
    loaded = job.loaded
    if loaded.program is None:
        return [], ()
    outputs = tuple(str(value.name) for value in loaded.model.graph.outputs)
    program = Program(loaded.program, loaded.inputs, outputs, loaded.weights)
    try:
        program.open(loaded.source).run(next(iter(job.measured)))
    except ActxError as error:
        return [], (f"the conversion to ONNX was not measured: {error.what}: {error.note}",)
    return [StageModel(PROGRAM, loaded.source, program)], ()


@contextlib.contextmanager
def _models(job: Job, made: Made, names: Sequence[str]) -> Iterator[list[StageModel]]:
    """Give the model of every stage. The last one is what runs here, the others run in ONNX Runtime."""
    own = made.graph.onnx
    assert own is not None
    between = {name: made.folder / f".{name}.onnx" for name in names[:-1] if name in made.lowered}
    runtime = made.graph.runtime
    plain = _in_turns(runtime if isinstance(runtime, RuntimeOptions) else replace(job.options, fuse_qdq=False))
    last = StageModel(names[-1], made.graph.path, runtime if _is_engine(made) else plain, made.graph.source)
    weights = made.folder / _WEIGHTS
    try:
        if between:
            graphs = {path.name: _graph(job, made, made.lowered[name]) for name, path in between.items()}
            *_, written = made.lowered.values()
            save(graphs, made.folder, weights.name, stored_in(made.folder / PORTABLE, written.portable))
        yield [*(StageModel(name, between.get(name, own), plain) for name in names[:-1]), last]
    finally:
        for path in (weights, *between.values()):
            path.unlink(missing_ok=True)


def _graph(job: Job, made: Made, lowered: Lowered) -> ir.Model:
    """Return the graph of floats that leads to what runs here."""
    if lowered.native is None or job.target.has_engine or made.graph.path.name == PORTABLE:
        return lowered.portable
    return lowered.native


def _finer(job: Job, made: Made, culprit: Culprit) -> str:
    choice = next((choice for choice in made.choices if choice.site.name == culprit.name), None)
    if choice is None or not choice.rewritten:
        return "choose a finer form for the site next to it"
    tried = list(job.target.candidates)
    finer = tried[tried.index(choice.form) + 1 :] if choice.form in tried else []
    form = finer[0] if finer else "keep"
    others = "" if job.recover or job.samples.synthetic else ", or --recover"
    return f"choose a finer form: --site '{culprit.name}={form}'{others}"


def _less_recovery(_: Job, __: Made, culprit: Culprit) -> str:
    return f"give more samples with --data, or keep the site: --site '{culprit.name}=keep'"


def _finer_scheme(job: Job, made: Made, culprit: Culprit) -> str:
    layers = {} if made.quantized is None else made.quantized.layers
    parts = re.compile(rf"{re.escape(culprit.node)}(/\d+)?")  # see `unpack`
    if any(parts.fullmatch(name) and not reason for name, reason in layers.items()):
        return f"leave it in floating point: --exclude '{re.escape(culprit.node)}'"
    others = [scheme for scheme in job.target.schemes if scheme in {"fp16", "bf16"} and scheme != job.quant]
    scheme = f"--quant {others[0]}" if others else "no --quant"
    return f"give more samples with --data, or take a finer scheme: {scheme}"


def _other_runtime(job: Job, _: Made, __: Culprit) -> str:
    tf32 = job.request is not None and job.request.options.tf32
    return "build with --no-tf32" if tf32 else "compare the types that the runtime computes in: actx check"


# What to do about a place, by the stage that costs most there. Of the conversion to ONNX no places are known.
_REMEDIES: Mapping[str, Callable[[Job, Made, Culprit], str]] = {
    REWRITE: _finer,
    RECOVERY: _less_recovery,
    QUANTIZE: _finer_scheme,
    ENGINE: _other_runtime,
}
