"""Milliseconds that each form of a site saves on the target, measured in the part of the model around it (see `context`).

1. The part runs on the values that it reads when the original runs on the batch, in the target's own runtime and graph. The
   forms that are missing, the original and the original again take turns in the same rounds (`latency.compare_all`), serially.
2. Parts of one structure, inputs' shapes and kind of function take the same time, whatever their numbers: a form is measured
   once for all of them. It is fitted only if it must be measured.
3. Every result is put into the log under all that it depends on, and so is why a form cannot run: what is there is not
   measured again.
4. What is saved is ``original * (1 - 1/ratio)`` of the ratio within rounds where the verdict is `faster` or `slower`, else 0.
   With too little time for a verdict nothing is said of the form.
5. On targets that run engines or are no one runtime, and where the target's runtime is not, nothing is measured, and the
   reason says so.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from actx.exporter.bundle import PORTABLE, graph_name
from actx.exporter.choose import KEEP, POLYNORM, Choice
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Form
from actx.exporter.latency import Comparison, compare_all, time_model
from actx.exporter.lift import PolyNorm, Site
from actx.exporter.part import read_values, state_inputs, structure_of, write_part
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.scratch import scratch
from actx.exporter.search.context import Contexts
from actx.exporter.search.log import measurement_key
from actx.exporter.targets import Files, Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from actx.exporter.data import Arrays
    from actx.exporter.latency import Timed
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions
    from actx.exporter.search.log import Log
    from actx.exporter.targets import Target

# Returns a site with a form fitted, or raises ActxError where it cannot be had.
Fitter: TypeAlias = Callable[[Site, Form], Choice]

SECONDS = 5.0  # a bound: rounds end as `latency` says once there are enough of them
KIND, MODEL_KIND = "site latency", "model latency"
_VALUES_AT_ONCE = 32  # all are in memory


@dataclass(frozen=True)
class SiteLatency:
    """What a form saves at a site.

    Attributes:
        form: the form.
        saved_ms: milliseconds per inference, below 0 where it takes more and 0 where there is no difference; None where it was
            not measured.
        comparison: of the part with the form with the part as it is; None where it was not measured.
        reason: why it was not, else empty.
    """

    form: Form
    saved_ms: float | None
    comparison: Comparison | None
    reason: str = ""


@dataclass(frozen=True)
class ModelLatency:
    """What one inference of the original takes on the target.

    Attributes:
        milliseconds: the least of its runs, to which other processes have added least; None where it was not measured.
        reason: why it was not, else empty.
    """

    milliseconds: float | None
    reason: str = ""


@dataclass(frozen=True)
class Bench:
    """What sites are measured on.

    Attributes:
        model: the loaded model.
        original: the same as a file of standard ops.
        sites: those of the model that are to be measured.
        target: what the export is for.
        batch: the first batch of the data.
        log: where results are kept.
        quant: the scheme of the export.
        fold: whether slopes are folded into the layers.
        kernels: as of the export.
        options: how models are run.
        seconds: that each form's rounds may take.
    """

    model: ir.Model
    original: Path
    sites: tuple[Site, ...]
    target: Target
    batch: Arrays
    log: Log
    quant: str | None = None
    fold: bool = True
    kernels: bool | None = None
    options: RuntimeOptions = DEFAULT
    seconds: float = SECONDS

    @cached_property
    def obstacle(self) -> str:
        """5. Say why nothing can be measured here; empty where it can."""
        return obstacle(self.target, self.quant, self.options, self.kernels)

    @cached_property
    def graph(self) -> Graph:
        """What this machine runs of a bundle with a graph of the target's own; there is no file."""
        return _graph(self.target, self.quant, self.options, self.kernels)

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """3. What a result depends on besides the model and the form, as JSON values: versions, machine, threads, options."""
        return {
            "actx": importlib.metadata.version("actx"),
            "target": self.target.name,
            "quant": self.quant,
            "fold": self.fold,
            "kernels": self.graph.kernels,
            "seconds": self.seconds,
            "runtime": self.graph.runtime.in_turns().describe(),
        }

    @cached_property
    def contexts(self) -> Contexts:
        """The parts around sites."""
        return Contexts(self.model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of what the parts around all sites read: arrays of the whole batch are not kept."""
        names: dict[str, None] = {}
        for site in self.sites:
            try:
                names.update(dict.fromkeys(str(value.name) for value in self.contexts.part(site).graph.inputs))
            except ActxError:  # it has a reason of its own when it is measured
                continue
        ordered, found = list(names), {}
        for start in range(0, len(ordered), _VALUES_AT_ONCE):
            some = read_values(self.original, self.batch, ordered[start : start + _VALUES_AT_ONCE], self.options)
            found.update({name: array.shape for name, array in some.items()})
        return found


def obstacle(target: Target, quant: str | None, options: RuntimeOptions, kernels: bool | None) -> str:
    """5. Say why no form of a target can be measured here; empty where it can.

    Args:
        target: what the export is for.
        quant: its scheme.
        options: how models are run.
        kernels: as of the export.

    Raises:
        TargetUnavailable: the kernels were asked for and cannot be had.
    """
    name = target.name
    if target.has_engine:
        return f"{name} runs engines, and none is built of a part: export with --form and profile the bundles on the device"
    if not target.candidates:
        return f"{name} is for any runtime: which form is fast is measured for one, such as ort-cpu or openvino"
    if target.changes_graph(quant):
        return f"forms are measured in floating point, and --quant {quant} makes other graphs"
    graph = _graph(target, quant, options, kernels)
    if not graph.on_target:
        install = target.abilities().install
        return f"{name} does not run here ({graph.reason}): search where it does. {install}".strip()
    return ""


def _graph(target: Target, quant: str | None, options: RuntimeOptions, kernels: bool | None) -> Graph:
    graphs = {"portable": PORTABLE, target.name: graph_name(target.name)}
    return target.graph(Files(Path(), graphs, {}, quant), options, kernels)


def candidates(target: Target, site: Site) -> tuple[Form, ...]:
    """Return the forms that are worth trying at a site beside keeping it."""
    if isinstance(site.function, PolyNorm):
        return (POLYNORM,) if target.candidates else ()
    return tuple(form for form in target.candidates if str(form) != site.kind)


def measure_site(bench: Bench, site: Site, forms: Sequence[Form], fit: Fitter) -> tuple[SiteLatency, ...]:
    """Measure what forms save at one site, or say why that cannot be done.

    Args:
        bench: what it is measured on; the site is one of its sites.
        site: the site.
        forms: other than keep.
        fit: 2.

    Returns:
        One entry per form, in order.

    Raises:
        TargetUnavailable: the kernels were asked for and cannot be had.
        ActxError: the log cannot be written.
    """
    if bench.obstacle:
        return tuple(SiteLatency(form, None, None, bench.obstacle) for form in forms)
    try:
        part = bench.contexts.part(site)
        structure = structure_key(bench, site, part)
    except ActxError as error:
        return tuple(SiteLatency(form, None, None, error.what) for form in forms)
    keys = {form: measurement_key(KIND, structure, str(form), bench.conditions) for form in forms}
    refused = _measure_missing(
        bench, site, part, {f: key for f, key in keys.items() if bench.log.get(key, partial(_of_value, f)) is None}, fit
    )
    known = {form: bench.log.get(key, partial(_of_value, form)) for form, key in keys.items()}
    return tuple(known[form] or SiteLatency(form, None, None, refused.get(form, "not measured")) for form in forms)


def looked_up(bench: Bench, site: Site, forms: Sequence[Form]) -> dict[Form, SiteLatency | str]:
    """Return what the log has of forms at a site; of what would have to be measured its key: equal ones are one measurement."""
    try:
        structure = structure_key(bench, site, bench.contexts.part(site))
    except ActxError as error:
        return {form: SiteLatency(form, None, None, error.what) for form in forms}
    keys = {form: measurement_key(KIND, structure, str(form), bench.conditions) for form in forms}
    return {form: bench.log.get(key, partial(_of_value, form)) or key for form, key in keys.items()}


def measure_model(bench: Bench) -> ModelLatency:
    """Measure the original on the batch, in the target's runtime; from the log where it is there.

    Raises:
        TargetUnavailable: the kernels were asked for and cannot be had.
        ActxError: it cannot be run.
    """
    if bench.obstacle:
        return ModelLatency(None, bench.obstacle)
    shapes = {name: list(array.shape) for name, array in bench.batch.items()}
    key = measurement_key(MODEL_KIND, structure_of(bench.model), shapes, bench.conditions)
    known = bench.log.get(key, lambda value: float(value["ms"]))
    if known is None:
        known = time_model(bench.original, bench.batch, runtime=bench.graph.runtime, seconds=bench.seconds).min
        bench.log.put(key, MODEL_KIND, {"target": bench.target.name, "shapes": shapes}, {"ms": known})
    return ModelLatency(known)


def structure_key(bench: Bench, site: Site, part: ir.Model) -> list[Any]:
    """2. Return what is equal for sites that take the same time, as JSON values."""
    shapes = [bench.shapes[str(value.name)] for value in part.graph.inputs]
    return [structure_of(part), [list(shape) for shape in shapes], site.kind]


def _measure_missing(
    bench: Bench, site: Site, part: ir.Model, keys: Mapping[Form, str], fit: Fitter
) -> dict[Form, str]:
    """Measure forms and put them into the log under their keys; return why those were refused that are not there then."""
    refused: dict[Form, str] = {}
    choices = []
    for form in keys:
        try:
            choices.append(fit(site, form))
        except ActxError as error:  # of this site's numbers, and not of its structure: not for the log
            refused[form] = error.what
    try:
        values = _measured(bench, site, part, choices)
    except ActxError as error:  # a part need not run by itself
        return refused | {choice.form: error.what for choice in choices}
    for form, value in values.items():
        about = {"site": site.name, "kind": site.kind, "form": str(form), "target": bench.target.name}
        bench.log.put(keys[form], KIND, about, value)
    return refused


def _measured(bench: Bench, site: Site, part: ir.Model, choices: Sequence[Choice]) -> dict[Form, dict[str, Any]]:
    """1. Return what is logged of each form."""
    if not choices:
        return {}
    names = [str(value.name) for value in part.graph.inputs]
    feeds = read_values(bench.original, bench.batch, names, bench.options)
    state_inputs(bench.model, part, feeds)
    with scratch() as place:
        write = partial(
            write_part, part, target=bench.target, options=bench.options, quant=bench.quant, fold=bench.fold,
            kernels=bench.kernels,
        )  # fmt: skip
        kept = write([Choice(site, KEEP, None, "")], folder=place / "kept")
        found: dict[Form, dict[str, Any]] = {}
        graphs: dict[Form, Graph] = {}
        for choice in choices:
            try:
                graph = write([choice], folder=place / str(choice.form).replace(":", "-"))
                graph.runtime.open(graph.path).run(feeds)
                graphs[choice.form] = graph
            except ActxError as error:
                found[choice.form] = {"reason": error.what.replace(f"{place}/", "")}
        artifacts = [(graph.path, graph.runtime) for graph in graphs.values()]
        seconds = bench.seconds * len(artifacts)
        timed = compare_all((kept.path, kept.runtime), artifacts, feeds, seconds=seconds) if artifacts else []
    return found | {form: _to_value(one, seconds) for form, one in zip(graphs, timed, strict=True)}


def _to_value(timed: Timed, seconds: float) -> dict[str, Any]:
    """4."""
    comparison = timed.comparison
    if math.isinf(comparison.noise):
        return {"reason": f"{seconds:g} seconds are too short for a verdict"}
    saved = 0.0 if comparison.verdict == "no difference" else timed.original_ms * (1 - 1 / comparison.paired_ratio)
    return {
        "saved_ms": saved,
        "original_ms": timed.original_ms,
        "artifact_ms": timed.artifact_ms,
        "comparison": asdict(comparison),
    }


def _of_value(form: Form, value: Any) -> SiteLatency:
    if "reason" in value:
        return SiteLatency(form, None, None, str(value["reason"]))
    comparison = value["comparison"]
    low, high = comparison["interval"]
    return SiteLatency(form, float(value["saved_ms"]), Comparison(**comparison | {"interval": (low, high)}))
