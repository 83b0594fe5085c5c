"""The sensitivity of a site to a form: the drift of the model's outputs with that one change.

1. The driver writes a bench: the model, the batches and the original's outputs on them, once. It is all that a trial needs, so
   that trials run in any process.
2. A trial fits the form, lowers the one site to standard ops, every form as itself, and runs the result in ONNX Runtime. So
   it does not depend on the target, and not on its kernels.
3. It runs in one thread, as the original did: what it gives does not depend on how many trials run at once.
4. A form that the site cannot have is a result too, with the reason.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from actx.exporter.choose import choose
from actx.exporter.data import Batch, Data, digest
from actx.exporter.drift import Comparison
from actx.exporter.errors import ActxError
from actx.exporter.lower import lower
from actx.exporter.metrics import METRICS, json_values
from actx.exporter.recover import recover
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.save import save
from actx.exporter.scratch import scratch
from actx.exporter.search.log import measurement_key
from actx.exporter.targets import find_target
from actx.exporter.workspace import ORIGINAL, portable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.choose import Choice
    from actx.exporter.data import Arrays
    from actx.exporter.fitting import Form
    from actx.exporter.lift import Site
    from actx.exporter.load import LoadedModel
    from actx.exporter.lower import Lowered

    Progress: TypeAlias = Callable[[int, int], None]

MODEL = "model.onnx"
TRIAL = "trial.onnx"
# Of a batch file: arrays are named "PART/NAME".
_FEED, _EXTRA, _OUTPUT = "feed", "extra", "output"


@dataclass(frozen=True)
class TrialResult:
    """What a trial gave.

    Attributes:
        drift: the drift, infinite where the outputs are; None where the site cannot have the form.
        reason: why it cannot; else empty.
    """

    drift: float | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: "inf" for an infinite drift."""
        return json_values({"drift": self.drift, "reason": self.reason})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialResult:
        """Read what `to_dict` returned."""
        drift = values["drift"]
        return cls(None if drift is None else float(drift), values["reason"])


@dataclass(frozen=True, eq=False)
class Bench:
    """What trials are made on. It can be pickled, and is small: what is large lies in the folder.

    Attributes:
        folder: the model, as it was lifted and of standard ops only, its weights, and one file per batch.
        model: a digest that tells the model from others.
        data: a digest of the batches.
        source: where they came from.
        samples: how many there are.
        sites: what lift found.
        statistics: what was observed, by site name.
        metric: of the drift.
        fold: whether hardswish may have a slope.
        weighted: whether forms are fitted closer where the data is.
        recover: whether the layer behind the site is refitted on the batches.
        runtime: what models are run in.
    """

    folder: Path
    model: str
    data: str
    source: str
    samples: int
    sites: tuple[Site, ...]
    statistics: Mapping[str, SiteStatistics]
    metric: str
    fold: bool
    weighted: bool
    recover: bool
    runtime: RuntimeOptions

    @property
    def id(self) -> str:
        """A digest of what lies in the folder."""
        return measurement_key("bench", self.model, self.data)

    def site(self, name: str) -> Site:
        """Return the site of a name."""
        return next(site for site in self.sites if site.name == name)

    def only(self, name: str) -> Bench:
        """Return the bench of one site: what one trial needs."""
        observed = {name: self.statistics[name]} if name in self.statistics else {}
        return replace(self, sites=(self.site(name),), statistics=observed)

    def batches(self) -> Iterator[tuple[Batch, Arrays]]:
        """Yield every batch and the original's outputs on it; extras are there for a metric of the user's own."""
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file, allow_pickle=False) as archive:
                arrays = dict(archive)
            feeds, extras, outputs = (_part(arrays, part) for part in (_FEED, _EXTRA, _OUTPUT))
            yield Batch(feeds, extras, int(arrays["samples"])), outputs

    def as_data(self) -> Data:
        """Return the batches as data."""
        return Data(self.source, self.samples, False, (), lambda: (batch for batch, _ in self.batches()))


def write_bench(
    folder: Path,
    loaded: LoadedModel,
    sites: Sequence[Site],
    statistics: Mapping[str, SiteStatistics],
    data: Data,
    *,
    metric: str,
    fold: bool = True,
    weighted: bool = True,
    recover: bool = False,
    options: RuntimeOptions = DEFAULT,
    progress: Progress | None = None,
) -> Bench:
    """Write all that trials need, and run the original on the data, in one thread (see 3).

    Args:
        folder: an empty folder, which has to stay as long as there are trials.
        loaded: the model.
        sites: what lift found in it.
        statistics: what was observed, by site name.
        data: what drift is measured on. It is stored with the outputs.
        metric: one of `METRICS`, or ``pkg.mod:callable``. Results in a log are found by its name alone.
        fold: whether hardswish may have a slope.
        weighted: whether forms are fitted closer where the data is.
        recover: whether the layer behind a site is refitted.
        options: how models are run, but for the number of threads.
        progress: called with the number of samples done and to do.

    Raises:
        ActxError: the model cannot be run on the data, the folder not be written, or an extra that a metric of the user's own
            may need holds Python objects.
    """
    save({MODEL: loaded.model, ORIGINAL: portable(loaded.model)}, folder)
    runtime = replace(options, threads=1)
    session = runtime.open(folder / ORIGINAL)
    seen, done = [], 0
    for index, batch in enumerate(data.batches()):
        extras = {} if metric in METRICS else batch.extras
        _check_storable(extras)
        parts = {_FEED: batch.feeds, _EXTRA: extras, _OUTPUT: session.run(batch.feeds)}
        arrays = {f"{part}/{name}": array for part, found in parts.items() for name, array in found.items()}
        _write(folder / f"{index:08}.npz", arrays, batch.samples)
        seen += [digest(batch.feeds), digest(extras)]
        done += batch.samples
        if progress is not None:
            progress(done, data.samples)
    return Bench(
        folder=folder,
        model=measurement_key("model", loaded.sha256, loaded.opset, [str(spec) for spec in loaded.inputs]),
        data=measurement_key("data", *seen),
        source=data.source,
        samples=data.samples,
        sites=tuple(sites),
        statistics=dict(statistics),
        metric=metric,
        fold=fold,
        weighted=weighted,
        recover=recover,
        runtime=runtime,
    )


def trial_key(bench: Bench, name: str, form: Form) -> str:
    """Return what a trial is found by in a log: a digest of all that its result depends on, known without the fit."""
    site, observed = bench.site(name), bench.statistics.get(name)
    fitted: list[Any] = []
    if observed is not None:
        fitted = [observed.low, observed.high]
        if bench.weighted and observed.density is not None:
            fitted.append(hashlib.sha256(observed.density.key).hexdigest())
    return measurement_key(
        "sensitivity",
        [bench.model, bench.data, bench.metric, bench.fold, bench.weighted, bench.recover, bench.runtime.to_dict()],
        [site.name, site.function.key, site.axis, str(form), fitted],
        [version("actx"), version("onnxruntime")],
    )


def run_trial(bench: Bench, name: str, form: Form) -> TrialResult:
    """Measure the drift with one site in one form (see 2, 3 and 4).

    Args:
        bench: what it is made on.
        name: of the site.
        form: any but ``keep``.

    Raises:
        ActxError: the metric fails or does not apply, or the model cannot be run.
    """
    try:
        (choice,) = choose(
            [bench.site(name)],
            find_target("onnx"),  # of a pinned form nothing depends on it
            pins={name: form},
            statistics=bench.statistics,
            fold=bench.fold,
            weighted=bench.weighted,
        )
    except ActxError as error:
        return TrialResult(None, error.note or error.what)
    lowered = lower(_model(bench.folder, bench.id), [choice], fold=bench.fold, native="standard")
    if bench.recover:
        lowered = _recovered(bench, lowered, choice)
    assert lowered.native is not None
    return TrialResult(_drift(bench, lowered.native))


@lru_cache(maxsize=1)
def _model(folder: Path, identity: str) -> ir.Model:  # noqa: ARG001 - another model may have come to lie in a folder
    """Return the model of a bench; a process reads it once."""
    return ir.load(folder / MODEL)


def _recovered(bench: Bench, lowered: Lowered, choice: Choice) -> Lowered:
    original = portable(_model(bench.folder, bench.id))
    with threadpool_limits(1):  # 3: BLAS adds up in another order where it has more
        found = recover(lowered, [choice], original, bench.as_data(), metric=bench.metric, options=bench.runtime)
    return found.lowered


def _drift(bench: Bench, model: ir.Model) -> float:
    with scratch() as folder:
        save({TRIAL: model}, folder)
        session = bench.runtime.open(folder / TRIAL)
        comparison = Comparison(session.outputs, bench.metric)
        for batch, outputs in bench.batches():
            comparison.update(outputs, session.run(batch.feeds), batch)
    comparison.require_numbers()
    return comparison.drift()[1]


def _part(arrays: Arrays, part: str) -> Arrays:
    return {name.removeprefix(f"{part}/"): array for name, array in arrays.items() if name.startswith(f"{part}/")}


def _check_storable(extras: Arrays) -> None:
    for name, array in extras.items():
        if array.dtype.hasobject:
            what = f"'{name}' in the data holds Python objects, which are not stored for trials"
            raise ActxError(what, remedy="Give it as an array of numbers or text.")


def _write(file: Path, arrays: Arrays, samples: int) -> None:
    try:
        np.savez(file, allow_pickle=False, samples=np.array(samples), **arrays)
    except OSError as error:
        raise ActxError(
            f"cannot write to {file.parent}", note=str(error), remedy="Check the free space and permissions."
        ) from error
