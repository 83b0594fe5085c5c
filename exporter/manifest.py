"""`manifest.json`: what a bundle holds, how it was made and what was measured. Versioned, and validated on read."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from actx.exporter.documents import first_fault, not_finite, parse_json, read_document
from actx.exporter.errors import ActxError

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "manifest.json"
VERSION = 2
# A number, or an infinity, for which JSON has none.
Real: TypeAlias = float | Literal["inf", "-inf"]
# A list of numbers alone. A text holds no line break, so that none is taken for one.
_NUMBERS = re.compile(r'\[\n([^][{}"]*)\]')


# Bytes of a name, and of a path: what file systems take.
_LONGEST_NAME, _LONGEST_PATH = 255, 1024


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        msg = "it is no path of a file in the bundle"
        raise ValueError(msg)
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in path.parts]
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        msg = "it is longer than the name of a file can be"
        raise ValueError(msg)
    return name


# A file of the bundle, by its path there.
FileName: TypeAlias = Annotated[str, AfterValidator(_inside)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceEntry(_Strict):
    """The model it was made from."""

    file: str
    format: str
    sha256: str
    opset: int


class RequestEntry(_Strict):
    """What was asked for."""

    target: str
    form: str | None
    sites: dict[str, str]
    fold: bool
    weighted: bool
    metric: str
    max_drift: float | None
    data: str | None
    held_out: str | None
    quant: str | None
    shapes: dict[str, str]
    build: dict[str, Any]
    ffn: str = "auto"
    ffn_sites: dict[str, str] = {}
    recover: bool = False
    calibrator: str | None = None
    exclude: list[str] = []
    require_int8_sites: bool = False


class EngineEntry(_Strict):
    """An engine: its file, and what the builder says of it, such as the library's version, the profile and the GPUs."""

    file: FileName
    facts: dict[str, Any]


class CertificateEntry(_Strict):
    """A proof: |f - s| <= `error` for every float32 number of the interval."""

    error: float
    interval: tuple[float, float]


class FitEntry(_Strict):
    """How well a form fits its site's function.

    `max_error` was sampled, `certificate` was proved; null where that could not be done. `tails` are the degrees of the
    asymptotes (left, right) that the form follows to infinity; null where nothing is known beyond the interval. `rms_error` is
    the root mean square over what arrived at the site in the calibration data.
    """

    max_error: float | Literal["inf"]
    interval: tuple[float, float] | None
    ratio_to_law: float | Literal["exact"] | None
    slope: float | None
    segments: int
    degree: int
    tails: tuple[int | None, int | None]
    rms_error: float | None
    certificate: CertificateEntry | None


class StatisticsEntry(_Strict):
    """What was observed at a site on the data. `histogram` has the share of the inputs in equal parts of [`low`, `high`]."""

    low: float
    high: float
    elements_per_sample: float
    zeros: float
    histogram: list[float] = []


class CurveEntry(_Strict):
    """Samples of a site's function f and its form s, at evenly spaced points with both ends of `interval` among them.

    `source` is f, `error` is s - f, null where the site is kept. A point where one of them is not finite is null. Of a function
    per channel they are those of the first channel.
    """

    interval: tuple[float, float]
    source: list[float | None]
    error: list[float | None] | None


class RatioEntry(_Strict):
    """What packing or a plugin was measured to be worth: how many times faster (`latency`), between which numbers with 95 %."""

    verdict: str
    ratio: float
    interval: tuple[float, float]


class FfnEntry(_Strict):
    """What became of the gated FFN that a site is the gate, or the other factor, of.

    `mode` was asked for, `packed` says whether both factors are read from one value, `reason` why or why not. `latency` is null
    where nothing was measured.
    """

    mode: str
    packed: bool
    reason: str
    latency: RatioEntry | None


class PluginEntry(_Strict):
    """Whether the engine that the export built computes a site by a plugin (see `plugins`).

    `reason` says why, or why the library's own layers do. `latency` is null where nothing was measured.
    """

    taken: bool
    reason: str
    latency: RatioEntry | None


class RecoveryEntry(_Strict):
    """What became of a site under ``--recover`` (see `recover.SiteRecovery`).

    `layers` are the values that the refitted layers give; where there are any, the site's own numbers in the graphs are no
    longer `scale` times the original's, and sites are compared behind these layers. `before` and `after` are what they
    lacked on held-out samples, relative to what they are to give.
    """

    layers: list[str]
    moved: int
    reason: str
    strength: float | None
    before: float | None
    after: float | None


class CandidateEntry(_Strict):
    """One form that the search looked at, at one site.

    `saved_ms` is what it saves per inference (0 is no difference), null where it was not measured; `drift` what it costs alone,
    null where it was not measured or cannot be had; `reason` says why.
    """

    site: str
    form: str
    saved_ms: float | None
    drift: float | Literal["inf"] | None
    reason: str


class PointEntry(_Strict):
    """One choice: the forms in the order of the sites, and what is predicted of it."""

    forms: list[str]
    saved_ms: float
    drift: float


class VerifiedEntry(_Strict):
    """One choice that was built: what was predicted and what was measured. `ratio` is null where latency was not measured."""

    forms: list[str]
    predicted_saved_ms: float
    predicted_drift: float
    drift: float | Literal["inf"]
    verdict: str | None
    ratio: float | None
    taken: bool


class SearchEntry(_Strict):
    """How the forms were chosen. `original_ms` is one inference of the original on the target; `share` that of all sites."""

    budget: float
    metric: str
    samples: int
    original_ms: float
    share: float | None
    candidates: list[CandidateEntry]
    front: list[PointEntry]
    verified: list[VerifiedEntry]
    reason: str


class QuantizationEntry(_Strict):
    """What a scheme made of the target's graph.

    `layers` are the nodes that multiply or look rows up: an empty text for those in 8 bits, why not for the others. `tables`
    are the sites that became tables, with the name of what a layer behind gives, `open` those that a layer in int8 reads and
    that did not, with the reason. `fusion` says what ONNX Runtime makes of the tables, one entry per site; it is empty where it
    did not run them. `migrated` are the values whose magnitude went into weights.
    """

    calibrator: str | None
    corrected: bool
    migrated: list[str]
    layers: dict[str, str]
    tables: dict[str, str]
    open: dict[str, str]
    fusion: list[dict[str, Any]]


class PlaceEntry(_Strict):
    """The noise at a site, a layer or another node after one stage, in dB: what the model adds there, and all up to there."""

    name: str
    kind: str
    node: str
    added_db: float | Literal["inf", "-inf"]
    accumulated_db: float | Literal["inf", "-inf"]


class StageEntry(_Strict):
    """One stage of the export: the drift after it against the original, and what it adds; below 0 where it gives back."""

    name: str
    drift: float | Literal["inf"]
    added: float | Literal["inf", "-inf"]
    cost: float | Literal["inf"]
    places: list[PlaceEntry]


class CulpritEntry(_Strict):
    """One of the places that add the most noise: the stage that costs most there, and what to do about it."""

    name: str
    kind: str
    node: str
    stage: str
    added_db: float | Literal["inf", "-inf"]
    remedy: str


class AttributionEntry(_Strict):
    """The drift, attributed to the stages of the export (see `attribution`). `verdict` is the stage that costs most."""

    metric: str
    stages: list[StageEntry]
    verdict: str | None
    worst: list[CulpritEntry]


class SiteEntry(_Strict):
    """One site and what became of it.

    In the graphs the value `input` is `scale` times the original's, and so is `output`: a slope that was folded into
    the layers around the site. `lowering` is what stands there in the portable graph. `entries` are the kinds of a mixture's
    entries; its `fit` is that of the worst of them. `curve` is null of a mixture and of a row-wise site. `ffn` is null where no
    product is gated, `plugin` where no plugin comes into question: on most targets, and of a site that is kept.
    """

    name: str
    kind: str
    entries: list[str] = Field(default_factory=list)
    parameters: dict[str, float | list[float]]
    function: str
    gated: bool
    shape: list[int | str | None] | None
    dtype: str
    form: str
    reason: str
    lowering: str
    own_mathematics: bool
    input: str
    output: str
    scale: float
    fit: FitEntry | None
    statistics: StatisticsEntry | None
    curve: CurveEntry | None = None
    ffn: FfnEntry | None = None
    plugin: PluginEntry | None = None
    recovery: RecoveryEntry | None = None


class OutputEntry(_Strict):
    """The drift of one output in every metric, null where one does not apply (see `metrics.OutputDrift`)."""

    name: str
    elements: int
    non_finite: int
    not_compared: int
    max_abs: Real
    mean_abs: Real
    l2: Real | None
    sqnr_db: Real | None
    cosine: Real | None
    top1: Real | None
    kl: Real | None


class SiteDriftEntry(_Strict):
    """The noise at one site in dB, and the share of its inputs outside of its fit (see `drift.SiteDrift`)."""

    name: str
    added_db: Real | None
    accumulated_db: Real
    outside: float


class AccuracyEntry(_Strict):
    """Share of the labels that the top-1 of an output hits."""

    output: str
    labels: int
    original: float
    artifact: float


class DriftEntry(_Strict):
    """How far one graph's outputs are from the original's (see `drift.DriftReport`)."""

    graph: str
    metric: str
    drift: Real
    worst_output: str | None
    samples: int
    synthetic: bool
    source: str
    outputs: list[OutputEntry]
    sites: list[SiteDriftEntry]
    worst_site: str | None
    max_drift: float | None
    accuracy: AccuracyEntry | None
    notes: list[str]
    runtime: dict[str, Any]
    within_budget: bool


class TimesEntry(_Strict):
    """Percentiles of one model's runs in milliseconds, and samples per second."""

    runs: int
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    throughput: Real


class StartupEntry(_Strict):
    """Milliseconds to open a model and to run it first, and the bytes that this needs."""

    load: float
    first_run: float
    peak_memory: int | None


class ComparisonEntry(_Strict):
    """The verdict and its evidence, as ratios original / artifact."""

    verdict: Literal["faster", "slower", "no difference"]
    ratio: float
    paired_ratio: float
    interval: tuple[Real, Real]
    aa_ratio: float
    noise: Real


class NodeEntry(_Strict):
    """Time of one node of the optimized graph; `site` is the one that it computes."""

    name: str
    op_type: str
    microseconds_per_run: float
    share: float | None
    site: str | None


class BreakdownEntry(_Strict):
    """Time per node of one model, and the share of every site."""

    nodes: list[NodeEntry]
    sites: dict[str, float | None]
    activation_share: float | None
    runs: int
    shapes: dict[str, list[int]]


class RoundMinimaEntry(_Strict):
    """The least milliseconds of each model in every round."""

    original: list[float]
    artifact: list[float]
    original_again: list[float]


class LatencyEntry(_Strict):
    """Latency of the artifact against the original's (see `latency.LatencyReport`)."""

    graph: str
    original: TimesEntry
    artifact: TimesEntry
    original_again: TimesEntry
    original_startup: StartupEntry
    artifact_startup: StartupEntry
    comparison: ComparisonEntry
    original_nodes: BreakdownEntry
    artifact_nodes: BreakdownEntry
    runs: int
    round_minima: RoundMinimaEntry | None = None
    shapes: list[dict[str, list[int]]]
    batch_sizes: list[int]
    synthetic: bool
    source: str
    notes: list[str]
    runtime: dict[str, Any]


class Manifest(_Strict):
    """The whole file. `interval` null means all of R; a measurement that was not made is null.

    Attributes:
        files: sha256 of every other file of the bundle but its page, which is made of the manifest, by name.
        graphs: file names by role: ``portable`` and, where there are some, the target's own graph and that with ``plugins``.
        engines: what was built of that, by target.
        disabled_optimizers: of ONNX Runtime, that the target's graph measured faster without: it is opened so.
        drift: reports, first that of what runs on the machine of the export; each compares with the original.
        created: when, in UTC; with `drift` and `latency` the only fields that differ between two equal exports.
    """

    version: Literal[2]
    created: str
    source: SourceEntry
    request: RequestEntry
    versions: dict[str, str]
    files: dict[FileName, str]
    graphs: dict[str, FileName]
    engines: dict[str, EngineEntry]
    disabled_optimizers: list[str] = Field(default_factory=list)
    sites: list[SiteEntry]
    drift: list[DriftEntry]
    latency: LatencyEntry | None
    notes: list[str]
    search: SearchEntry | None = None
    quantization: QuantizationEntry | None = None
    attribution: AttributionEntry | None = None

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            ActxError: it cannot be written.
        """
        try:
            text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)
            lines = _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
            path.write_text(lines + "\n", encoding="utf-8")
        except OSError as error:
            raise ActxError(
                f"cannot write {path}", note=str(error), remedy="Check the free space and permissions."
            ) from error

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and validate the file.

        Raises:
            ActxError: it is missing, no JSON, or not of this version's schema.
        """
        try:
            content = parse_json(read_document(path), finite=True)
        except (OSError, ValueError) as error:
            raise ActxError(
                f"cannot read {path}", note=str(error), remedy="Export the model to another place."
            ) from error
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: object, path: Path) -> Manifest:
        """Validate what a file at `path` holds.

        Raises:
            ActxError: it is not of this version's schema.
        """
        version = content.get("version") if isinstance(content, dict) else None
        if version != VERSION:
            raise ActxError(
                f"{path} has manifest version {version!r}",
                note=f"this actx reads {VERSION}",
                remedy="Export the model again.",
            )
        try:
            found = cls.model_validate(content)
        except ValidationError as error:
            raise ActxError(
                f"{path} is not a valid manifest", note=first_fault(error), remedy="Export the model again."
            ) from error
        if (number := next(not_finite(found.model_dump()), None)) is not None:  # of text that Python takes for a number
            note = f"{number} is no finite number"
            raise ActxError(f"{path} is not a valid manifest", note=note, remedy="Export the model again.")
        return found
