"""Decide which sites an engine computes by an actx plugin, and not by the layers of its library.

1. A plugin is an actx node with its code (see `custom_ops.tensorrt`), so a site can have one that is rewritten, or is such a
   node in the source.
2. A plugin blocks the fusion of what is before and behind it. So the part around the site (see `search.context`) is built both
   ways, with the site's form and in the types of the scheme, and the two engines take turns (see `latency`).
3. That is done in a process of its own: a kernel that fails on a GPU leaves its process without one.
4. Parts of one structure, form and inputs' shapes are measured once.
5. A plugin is taken only where it is measured to be faster.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from actx.exporter.building import engine_of
from actx.exporter.bundle import graph_name
from actx.exporter.errors import ActxError, TargetUnavailable
from actx.exporter.ffn.modes import Measured
from actx.exporter.kernels import choose_kernels
from actx.exporter.latency import Comparison, compare
from actx.exporter.linear import Refusal
from actx.exporter.load.inputs import input_specs
from actx.exporter.lower import lower
from actx.exporter.part import read_values, state_inputs, structure_of
from actx.exporter.quantize import quantize
from actx.exporter.save import save
from actx.exporter.scratch import scratch
from actx.exporter.search.context import Contexts
from actx.exporter.targets import BuildRequest, find_target
from actx.exporter.tensorrt.shapes import resolve, sizes_seen

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays
    from actx.exporter.making import Job
    from actx.exporter.runtimes.onnxruntime import RuntimeOptions

SECONDS = 8.0  # a bound, as for an FFN
LAYERS, PLUGIN, RESULT = "layers", "plugin", "result"


@dataclass(frozen=True)
class Plugin:
    """What computes one site in an engine.

    Attributes:
        site: its name.
        taken: whether a plugin does.
        reason: why, or why not.
        measured: the plugin against the library's layers; None where it was not measured.
    """

    site: str
    taken: bool
    reason: str
    measured: Comparison | None = None


@dataclass(frozen=True)
class Task:
    """Two engines to compare.

    Attributes:
        folder: it has a folder for each graph, `LAYERS` and `PLUGIN`, and gets the result.
        target: what they are built for.
        request: the shapes and the options.
        feeds: what they run on.
        options: how.
        seconds: that the rounds may take.
    """

    folder: Path
    target: str
    request: BuildRequest
    feeds: Arrays
    options: RuntimeOptions
    seconds: float


# Called with a choice that a plugin can compute.
Measure: TypeAlias = "Callable[[Choice], Measured]"


def decide(choices: Sequence[Choice], measure: Measure) -> tuple[Plugin, ...]:
    """Return one decision per site that can have a plugin, in their order.

    Args:
        choices: the form of every site.
        measure: what a plugin is worth at a site.
    """
    candidates = [choice for choice in choices if choice.rewritten or choice.site.spline is not None]
    return tuple(_decided(choice.site.name, measure(choice)) for choice in candidates)


def _decided(site: str, measured: Measured) -> Plugin:
    """5."""
    found = measured.comparison
    if found is None:
        return Plugin(site, taken=False, reason=f"not measured: {measured.reason}")
    faster = found.verdict == "faster"
    verdict = found.verdict if found.verdict == "no difference" else f"to be {found.verdict}"
    return Plugin(site, taken=faster, reason=f"a plugin is measured {verdict}", measured=found)


@dataclass
class Meter:
    """Measures the plugins of one export.

    Attributes:
        job: the export.
        packed: names of the gated sites that are packed (see `lower`).
    """

    job: Job
    packed: Collection[str] = ()
    _known: dict[str, Measured] = field(default_factory=dict)

    def __call__(self, choice: Choice) -> Measured:
        """Return what a plugin is worth at a site."""
        if self.obstacle:
            return Measured(None, self.obstacle)
        try:
            return self._measured(choice)
        except ActxError as error:  # a part need not be an engine by itself
            return Measured(None, _said(error))
        except Refusal as refusal:
            return Measured(None, refusal.reason)

    @cached_property
    def obstacle(self) -> str:
        """Say why nothing can be measured; empty where it can."""
        if self.job.kernels is False:
            return "no kernels were to be used"
        if not self.job.measure_latency:
            return "latency was not to be measured"
        try:
            self.job.target.require_plugins()
        except TargetUnavailable as error:
            return error.what
        return ""

    @cached_property
    def _contexts(self) -> Contexts:
        return Contexts(self.job.loaded.model)

    def _measured(self, choice: Choice) -> Measured:
        job, part = self.job, self._contexts.part(choice.site)
        names = [str(value.name) for value in part.graph.inputs]
        feeds = read_values(job.original, next(iter(job.timed)), names, job.options)
        state_inputs(job.loaded.model, part, feeds)
        shapes = [array.shape for array in feeds.values()]
        key = str((structure_of(part), shapes, choice.site.kind, str(choice.form)))
        if key not in self._known:
            self._known[key] = self._compared(part, choice, feeds)
        return self._known[key]

    def _compared(self, part: ir.Model, choice: Choice, feeds: Arrays) -> Measured:
        job, site = self.job, choice.site.name
        packed = {site} & set(self.packed)
        lowered = lower(part, [choice], fold=job.fold, native=None, packed=packed, plugins=[site])
        assert lowered.native is not None
        with scratch() as folder:
            for name, graph in ((LAYERS, lowered.portable), (PLUGIN, lowered.native)):
                typed = self._typed(graph, feeds)
                (folder / name).mkdir()
                save({graph_name(job.target.name): job.target.compile(typed, ())}, folder / name)
            found = compare_apart(
                Task(folder, job.target.name, self._request(part, feeds), feeds, job.options, SECONDS)
            )
        if math.isinf(found.noise):
            return Measured(None, f"{SECONDS:g} seconds are too short for a verdict")
        return Measured(found)

    def _typed(self, graph: ir.Model, feeds: Arrays) -> ir.Model:
        if self.job.quant is None:
            return graph
        return quantize(graph, self.job.quant, batches=[feeds], options=with_kernels(self.job.options))

    def _request(self, part: ir.Model, feeds: Arrays) -> BuildRequest:
        """Return the ranges of the whole model where the part's dimensions have names of it, and the sizes of its feeds."""
        assert self.job.request is not None
        inputs = input_specs(part)
        dims = {dim for spec in inputs for dim in spec.dims}
        stated = {dim: sizes for dim, sizes in self.job.request.profile.ranges.items() if dim in dims}
        return BuildRequest(resolve(inputs, stated, sizes_seen(inputs, [feeds])), self.job.request.options)


def with_kernels(options: RuntimeOptions) -> RuntimeOptions:
    """Return options of sessions that run actx nodes too, where this machine has the kernels: a scheme calibrates on them."""
    kernels, _ = choose_kernels(None)
    return options if kernels is None else kernels.register(options)


def compare_apart(task: Task) -> Comparison:
    """Compare two engines in a process of its own (see 3).

    Raises:
        ActxError: that process failed.
    """
    # -P: a file of the current folder must not stand in for a module.
    command = [sys.executable, "-P", "-m", "actx.exporter.plugins"]
    done = subprocess.run(command, input=pickle.dumps(task), capture_output=True, check=False)  # noqa: S603 - our own
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        note = lines[-1] if lines else f"its exit status is {done.returncode}"
        raise ActxError("a plugin cannot be measured in a process of its own", note=note, remedy="Add --no-kernels.")
    found: Comparison = pickle.loads((task.folder / RESULT).read_bytes())  # noqa: S301 - the child wrote it
    return found


def _said(error: ActxError) -> str:
    return f"{error.what}: {error.note}" if error.note else error.what


def _main() -> int:
    """Build both engines, compare them and leave the result; what fails is one line on stderr."""
    task: Task = pickle.load(sys.stdin.buffer)  # noqa: S301 - the parent wrote it
    target = find_target(task.target)
    try:
        layers, plugin = (
            engine_of(target, task.folder / name, task.request, task.options) for name in (LAYERS, PLUGIN)
        )
        if not plugin.on_target:
            raise TargetUnavailable(plugin.reason)
        pair = layers.path, plugin.path
        found = compare(
            *pair, task.feeds, runtime=plugin.runtime, original_runtime=layers.runtime, seconds=task.seconds
        )
    except ActxError as error:
        sys.stderr.write(f"{_said(error)}\n")
        return 1
    (task.folder / RESULT).write_bytes(pickle.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
