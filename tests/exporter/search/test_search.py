"""The search for the forms on small networks of mish: what it takes, that it goes on where it stopped, and what it refuses.

Sites of mish are slow in ONNX Runtime and fast in our kernel, by structure. What the forms save is measured once and then set
to what a test needs, so that no test depends on the noise of a machine; choices are built and measured as they are.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import pytest

from actx.exporter import bundle
from actx.exporter.data import hold_out, load_data
from actx.exporter.errors import ActxError, TargetUnavailable, UsageError
from actx.exporter.fitting import Form
from actx.exporter.load import load
from actx.exporter.measuring import check, profile
from actx.exporter.pipeline import DriftExceeded, Exported, NotBuilt, export, plan
from actx.exporter.runtimes.onnxruntime import RuntimeOptions
from actx.exporter.search.search import Plan, SearchOptions
from tests.networks import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from actx.exporter.manifest import Manifest

Entry: TypeAlias = "dict[str, Any]"

INPUT, HIDDEN, OUTPUT, SAMPLES, BATCH = 32, 256, 16, 64, 16
FORMS = ("relu", "hardswish", "pwl:8", "pwl:16", "spline:8x3", "spline:16x3", "spline:32x3")
COARSE_TO_FINE = {form: rank for rank, form in enumerate(FORMS)}
ONE_THREAD = RuntimeOptions(threads=1)


def network(*scales: float, activation: str = "Mish") -> onnx.ModelProto:
    """Branches side by side, each scaled by its number: an error in one is felt in the output by as much."""
    rng = np.random.default_rng(0)
    graph = Graph(18)
    x = graph.input("x", ["batch", INPUT])
    total = ""
    for i, scale in enumerate(scales):
        graph.scope = f"/branch.{i}/"
        up = rng.standard_normal((INPUT, HIDDEN)) / np.sqrt(INPUT)
        down = scale * rng.standard_normal((HIDDEN, OUTPUT)) / np.sqrt(HIDDEN)
        hidden = graph.op(activation, graph.linear(x, f"up.{i}", up, rng.standard_normal(HIDDEN)))
        branch = graph.linear(hidden, f"down.{i}", down)
        total = graph.op("Add", total, branch) if total else branch
    graph.output(total, "y", 2)
    return graph.model()


def samples(seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((SAMPLES, INPUT)).astype(np.float32),
        "label": rng.integers(0, OUTPUT, SAMPLES),
    }


@dataclass(frozen=True)
class Case:
    """A folder with a model, data and a log."""

    folder: Path
    jobs: int = 1

    @classmethod
    def make(cls, folder: Path, *scales: float, activation: str = "Mish") -> Case:
        folder.mkdir(exist_ok=True)
        onnx.save(network(*scales, activation=activation), folder / "model.onnx")
        np.savez(folder / "data.npz", **samples())
        return cls(folder)

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def asked(self, **changed: Any) -> dict[str, Any]:
        """The arguments of a plan; those of an export need two more."""
        options = {"jobs": self.jobs, "log": self.log} | changed.pop("search", {})
        given = {
            "data": str(self.folder / "data.npz"), "batch_size": BATCH, "weighted": False, "options": ONE_THREAD,
            "search": SearchOptions(**options),
        }  # fmt: skip
        return given | changed

    def export(self, max_drift: float | None, **changed: Any) -> Exported:
        rest = {"runs": 8, "force": True, "form": "auto"} | changed
        return export(self.folder / "model.onnx", self.out, max_drift=max_drift, **self.asked(**rest))

    def plan(self, max_drift: float = 1.0, **changed: Any) -> Plan:
        return plan(self.folder / "model.onnx", self.out, max_drift=max_drift, **self.asked(**changed))

    def entries(self) -> list[Entry]:
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def write(self, entries: Sequence[Entry]) -> None:
        self.log.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")

    def edit(self, edit: Callable[[Entry], None], kind: str) -> None:
        """Change the values of one kind."""
        entries = self.entries()
        for entry in entries:
            if entry["kind"] == kind:
                edit(entry)
        self.write(entries)


Setting: TypeAlias = "Callable[..., Case]"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A search of which nothing but the latencies is used elsewhere: they hold for every network of such branches."""
    case = Case.make(tmp_path_factory.mktemp("measured"), 1, 1)
    case.export(1e-2, search={"max_time": None})
    return case


@pytest.fixture
def setting(measured: Case, tmp_path: Path) -> Setting:
    """Return the function that makes a case where it is known how many milliseconds the forms save: far more than they do."""

    def make(*scales: float, saves: Mapping[str, float] | None = None, name: str = "case") -> Case:
        case = Case.make(tmp_path / name, *scales)
        known = [entry for entry in measured.entries() if entry["kind"] == "site latency"]
        parts = saves or dict(zip(FORMS, (20.0, 18.0, 16.0, 14.0, 12.0, 10.0, 8.0), strict=True))
        for entry in known:
            entry["value"] = fixed_latency(parts.get(entry["about"]["form"], 0.0))
        case.write(known)
        return case

    return make


def fixed_latency(saved: float) -> Entry:
    comparison = {
        "verdict": "faster" if saved > 0 else "no difference", "ratio": 2.0, "paired_ratio": 2.0, "interval": [1.9, 2.1],
        "aa_ratio": 1.0, "noise": 1.01,
    }  # fmt: skip
    return {"saved_ms": saved, "original_ms": 1.0, "artifact_ms": 0.5, "comparison": comparison}


def forms_of(exported: Exported) -> list[str]:
    return [site.form for site in exported.manifest.sites]


def searched(exported: Exported) -> dict[str, Any]:
    """What a search came to, without what the machine's noise is in."""
    assert exported.manifest.search is not None
    found = exported.manifest.search
    verified = [entry.model_dump(exclude={"ratio"}) for entry in found.verified]
    return {
        "forms": forms_of(exported),
        "front": [point.model_dump() for point in found.front],
        "candidates": [candidate.model_dump() for candidate in found.candidates],
        "verified": verified,
    }


def drift_of(exported: Exported) -> float:
    return max(report.drift for report in exported.drifts)


def saved_by(case: Case, forms: Sequence[str]) -> float:
    known = {e["about"]["form"]: e["value"]["saved_ms"] for e in case.entries() if e["kind"] == "site latency"}
    return sum(known.get(form, 0.0) for form in forms)


# --- the choice ---


def test_a_sensitive_site_gets_a_finer_form_than_the_others(setting: Setting) -> None:
    case = setting(1, 1, 100)
    budget = 4e-3
    exported = case.export(budget)
    *others, last = forms_of(exported)
    assert all(COARSE_TO_FINE[form] < COARSE_TO_FINE[last] for form in others)
    assert drift_of(exported) <= budget
    assert exported.manifest.search is not None
    (taken,) = (entry for entry in exported.manifest.search.verified if entry.taken)
    assert taken.predicted_saved_ms == pytest.approx(saved_by(case, forms_of(exported)))
    for form in FORMS:  # within the same budget, as measured
        try:
            case.export(budget, form=Form.parse(form), measure_latency=False)
        except DriftExceeded:
            continue
        assert saved_by(case, [form] * 3) <= taken.predicted_saved_ms


def test_the_front_is_monotone_and_drawn(setting: Setting) -> None:
    exported = setting(1, 100).export(3e-3)
    found = exported.manifest.search
    assert found is not None
    assert len(found.front) > 3
    for one, other in zip(found.front, found.front[1:], strict=False):
        assert one.saved_ms < other.saved_ms
        assert one.drift < other.drift
    assert found.front[0].forms == ["keep", "keep"]
    assert "front.svg" in exported.manifest.files
    assert (exported.path / "front.svg").read_text(encoding="utf-8").startswith("<?xml")
    bundle.verify(exported.path, exported.manifest)


@pytest.mark.parametrize("factor", [0.1, pytest.param(10.0, marks=pytest.mark.slow)])
def test_a_prediction_that_is_off_is_corrected(setting: Setting, factor: float) -> None:
    case = setting(1, 1, 1)
    budget = 1.2e-3
    right = forms_of(case.export(budget))
    case.write([entry for entry in case.entries() if entry["kind"] != "verified choice"])

    def rescale(entry: Entry) -> None:
        entry["value"]["drift"] *= factor

    case.edit(rescale, "sensitivity")
    exported = case.export(budget)
    assert exported.manifest.search is not None
    verified = exported.manifest.search.verified
    assert 2 <= len(verified) <= 6
    assert drift_of(exported) <= budget
    if factor < 1:  # it was too bold at first
        assert float(verified[0].drift) > budget
    else:  # and here too timid
        assert saved_by(case, forms_of(exported)) > saved_by(case, verified[0].forms)
    assert saved_by(case, forms_of(exported)) <= saved_by(case, right) * 1.2


# --- the same wherever and however often ---


# Ray leaves its own processes and files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_jobs_and_the_executor_change_nothing(setting: Setting) -> None:
    found = []
    for name, options in {
        "one": {"jobs": 1}, "two": {"jobs": 2}, "four": {"jobs": 4}, "ray": {"jobs": 2, "executor": "ray"},
    }.items():  # fmt: skip
        found.append(searched(setting(1, 100, name=name).export(3e-3, search=options)))
    gc.collect()
    assert all(one == found[0] for one in found)


def test_a_second_run_measures_nothing(setting: Setting) -> None:
    case = setting(1, 100)
    first = case.export(3e-3)
    before = case.log.read_bytes()
    second = case.export(3e-3)
    assert case.log.read_bytes() == before
    assert comparable(second.manifest) == comparable(first.manifest)
    assert any("taken from the search's log" in note for note in second.manifest.notes)
    assert case.plan(3e-3) == replace(case.plan(3e-3), latencies=0, trials=0, known=28, seconds=0.0)


def comparable(manifest: Manifest) -> dict[str, Any]:
    return manifest.model_dump(exclude={"created", "notes"})


RUN = """
import sys
from pathlib import Path
from tests.exporter.search.test_search import Case

print(Case(Path(sys.argv[1])).export(3e-3).path)
"""


def test_a_search_that_was_killed_goes_on(setting: Setting, temporary: Path) -> None:
    undisturbed = setting(1, 100, name="undisturbed").export(3e-3)
    case = setting(1, 100, name="killed")
    rng = random.Random(0)
    for _ in range(3):
        begun = len(case.entries())
        search = start(case)
        wait_for_lines(search, case, begun + 1 + rng.randrange(4))
        time.sleep(rng.random() / 5)
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        assert not case.out.exists() or search.returncode == 0
    assert start(case).wait() == 0
    found = Counter(entry["key"] for entry in case.entries())
    assert set(found.values()) == {1}
    manifest = bundle.read_bundle(case.out)[1]
    assert [site.form for site in manifest.sites] == forms_of(undisturbed)
    assert [file.name for file in case.folder.iterdir() if file.name.startswith(".")] == []
    assert list(temporary.glob("actx-*")) == []


def start(case: Case) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(case.folder)], env=os.environ | {"PYTHONPATH": root}, start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def lines(case: Case) -> int:
    return case.log.read_bytes().count(b"\n")


def wait_for_lines(search: subprocess.Popen[bytes], case: Case, number: int) -> None:
    wait_for(lambda: search.poll() is not None or lines(case) >= number)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- budgets that cannot be met, and nothing to gain ---


def test_pins_that_exceed_the_budget(setting: Setting) -> None:
    case = setting(1, 100)
    case.export(None, form=None, measure_drift=False, measure_latency=False)
    before = {file.name: file.read_bytes() for file in case.out.iterdir()}
    with pytest.raises(DriftExceeded, match="the drift is") as caught:
        case.export(1e-9, sites={"*": Form.parse("relu")})
    assert caught.value.exit_code == 3
    assert "in the way are " in caught.value.note
    first, second = caught.value.note.split("in the way are ")[1].split(", ")
    assert "branch.1" in first
    assert "branch.0" in second
    assert "Leave these sites to the search" in caught.value.remedy
    rejected = bundle.rejected_place(case.out)
    bundle.verify(rejected, bundle.read_bundle(rejected)[1])
    assert caught.value.exported.path == rejected
    assert {file.name: file.read_bytes() for file in case.out.iterdir()} == before


def test_pins_are_in_every_choice(setting: Setting) -> None:
    case = setting(1, 1, 1)
    kept, pinned = "*branch.0*", "*branch.1*"
    exported = case.export(1e-2, sites={kept: Form.parse("keep"), pinned: Form.parse("pwl:8")})
    assert exported.manifest.search is not None
    assert exported.manifest.search.verified
    for entry in exported.manifest.search.verified:
        assert entry.forms[:2] == ["keep", "pwl:8"]
    assert forms_of(exported)[2] != "keep"
    assert [site.reason for site in exported.manifest.sites][:2] == ["pinned", "pinned"]
    alone = next(c.drift for c in exported.manifest.search.candidates if c.form == "pwl:8" and "branch.1" in c.site)
    assert exported.manifest.search.front[0].forms == ["keep", "pwl:8", "keep"]
    assert exported.manifest.search.front[0].drift == pytest.approx(alone)


def test_nothing_is_faster(setting: Setting) -> None:
    exported = setting(1, 1, saves={"relu": -0.5}).export(1e-2)
    assert forms_of(exported) == ["keep", "keep"]
    found = exported.manifest.search
    assert found is not None
    assert found.reason.startswith("no form is measured to be faster on ort-cpu: the original stays; its sites take ")
    assert "times as fast" in found.reason
    assert found.share is not None
    assert 0 < found.share < 1
    assert all(candidate.drift is None and candidate.reason == "saves nothing" for candidate in found.candidates)
    assert all("no form is faster" in site.reason for site in exported.manifest.sites)
    assert drift_of(exported) == 0
    bundle.verify(exported.path, exported.manifest)


def test_a_network_of_relus_stays(tmp_path: Path) -> None:
    exported = Case.make(tmp_path / "case", 1, activation="Relu").export(1e-6)
    assert forms_of(exported) == ["keep"]
    assert exported.manifest.search is not None
    assert "the original stays; " in exported.manifest.search.reason
    assert "its latency" in exported.manifest.search.reason


def test_a_budget_that_no_form_is_within(setting: Setting) -> None:
    exported = setting(1).export(1e-12)
    assert forms_of(exported) == ["keep"]
    assert exported.manifest.search is not None
    assert "no form that is faster is within the budget of 1e-12" in exported.manifest.search.reason


def test_no_time_at_all(tmp_path: Path) -> None:
    case = Case.make(tmp_path / "case", 1, 1)
    planned = case.plan()
    assert (planned.latencies, planned.trials, planned.known) == (7, 14, 0)
    assert planned.seconds > 0
    exported = case.export(1e-2, search={"max_time": 0})
    assert forms_of(exported) == ["keep", "keep"]
    assert not [entry for entry in case.entries() if entry["kind"] in {"site latency", "sensitivity"}]
    assert exported.manifest.search is not None
    reasons = {candidate.reason for candidate in exported.manifest.search.candidates}
    assert reasons == {"not measured: the time was over"}
    assert all("the time was over" in site.reason for site in exported.manifest.sites)
    assert "the time was over" in exported.manifest.search.reason


# --- what is asked for ---


def test_what_the_search_lacks(tmp_path: Path) -> None:
    case = Case.make(tmp_path / "case", 1)
    before = sorted(case.folder.iterdir())
    for changed, words in (
        ({"data": None}, "needs --data"),
        ({"max_drift": None}, "needs --max-drift"),
        ({"measure_latency": False}, "goes by latency"),
        ({"measure_drift": False}, "goes by latency"),
    ):
        given: dict[str, Any] = {"max_drift": 1.0} | changed
        with pytest.raises(UsageError, match=words):
            case.export(**given)
    for wrong in ({"jobs": -1}, {"samples": 0}, {"max_time": -1.0}, {"executor": "cloud"}):
        with pytest.raises(UsageError):
            case.export(1.0, search=wrong)
    assert sorted(case.folder.iterdir()) == before


def test_data_and_a_budget_make_it_the_default(setting: Setting) -> None:
    case = setting(1)
    found = case.export(1e-2, form=None).manifest
    assert found.search is not None
    assert found.request.form == "auto"
    for changed in ({"max_drift": None}, {"max_drift": 1e-2, "measure_latency": False}):
        given: dict[str, Any] = {"form": None} | changed
        assert case.export(**given).manifest.search is None


@pytest.mark.parametrize("target", ["trt", "onnx"])
def test_a_target_that_is_not_measured_here(tmp_path: Path, target: str) -> None:
    case = Case.make(tmp_path / "case", 1)
    before = sorted(case.folder.iterdir())
    with pytest.raises(TargetUnavailable, match="forms cannot be chosen here") as caught:
        case.export(1e-2, target=target)
    assert caught.value.exit_code == 4
    assert sorted(case.folder.iterdir()) == before
    try:
        manifest = case.export(1e-2, target=target, form=None).manifest
    except NotBuilt as error:
        manifest = error.exported.manifest
    assert manifest.search is None
    assert any(note.startswith("forms were not searched for: ") for note in manifest.notes)


# --- data ---


def test_calibration_never_sees_what_is_held_out(setting: Setting) -> None:
    case = setting(1)
    loaded = load(case.folder / "model.onnx")
    rows = samples()
    place = np.arange(SAMPLES, dtype=np.int64)
    np.savez(case.folder / "places.npz", x=np.repeat(place[:, None], INPUT, 1).astype(np.float32))
    _, held = hold_out(load_data(str(case.folder / "places.npz"), loaded.inputs, BATCH))
    apart = np.concatenate([batch.feeds["x"][:, 0] for batch in held.batches()]).astype(int)
    assert len(apart) == SAMPLES // 4
    rows["x"][apart] *= 100
    np.savez(case.folder / "data.npz", **rows)
    (site,) = case.export(1e-2).manifest.sites
    assert site.statistics is not None
    assert site.statistics.high < 20


def test_data_that_is_held_out_is_named(setting: Setting) -> None:
    case = setting(1)
    np.savez(case.folder / "other.npz", **samples(2))
    exported = case.export(1e-2, held_out=str(case.folder / "other.npz"))
    assert exported.drift is not None
    assert exported.drift.samples == SAMPLES
    assert exported.manifest.search is not None
    assert exported.manifest.search.samples == SAMPLES
    assert not any("held out" in note for note in exported.manifest.notes)


def test_layers_are_refitted(setting: Setting) -> None:
    case = setting(1, 1)
    budget = 1.5e-3
    plain, recovered = case.export(budget), case.export(budget, recover=True)
    assert drift_of(recovered) <= budget
    assert saved_by(case, forms_of(recovered)) >= saved_by(case, forms_of(plain))
    assert any(site.recovery is not None and site.recovery.layers for site in recovered.manifest.sites)
    data = {"data": str(case.folder / "data.npz"), "batch_size": BATCH, "options": ONE_THREAD}
    report = check(case.folder / "model.onnx", recovered.path, **data)  # type: ignore[arg-type]
    behind = {site.name for site in recovered.manifest.sites if site.recovery is not None and site.recovery.layers}
    assert {site.name for site in report.sites if site.added_db is None} == behind
    assert profile(case.folder / "model.onnx", recovered.path, runs=2, **data).comparison.ratio > 0  # type: ignore[arg-type]


# --- metrics and targets ---

METRIC = """
import numpy as np

def worst_label(original, artifact, batch):
    rows = np.arange(len(batch["label"]))
    return float(np.abs((original["y"] - artifact["y"])[rows, batch["label"]]).max())
"""


@pytest.mark.parametrize(("metric", "budget"), [("top1", 0.1), ("search_metric:worst_label", 0.05)])
def test_other_metrics(setting: Setting, monkeypatch: pytest.MonkeyPatch, metric: str, budget: float) -> None:
    case = setting(1, 1)
    (case.folder / "search_metric.py").write_text(METRIC, encoding="utf-8")
    monkeypatch.syspath_prepend(str(case.folder))
    exported = case.export(budget, metric=metric)
    assert drift_of(exported) <= budget
    assert exported.manifest.search is not None
    assert exported.manifest.search.metric == metric
    assert forms_of(exported) != ["keep", "keep"]


def test_openvino(tmp_path: Path) -> None:
    case = Case.make(tmp_path / "case", 1)
    exported = case.export(1e-2, target="openvino")
    assert drift_of(exported) <= 1e-2
    assert exported.manifest.search is not None
    assert {c.form for c in exported.manifest.search.candidates} >= {"relu", "poly:8"}
    before = case.log.read_bytes()
    assert forms_of(case.export(1e-2, target="openvino")) == forms_of(exported)
    assert case.log.read_bytes() == before


def test_a_log_that_cannot_be_written(setting: Setting) -> None:
    case = setting(1)
    shutil.copy(case.log, case.folder / "taken")
    with pytest.raises(ActxError, match="cannot"):
        case.export(1e-2, search={"log": case.folder / "taken" / "log.jsonl"})
