"""Sites are measured in context, once per structure, and what was measured is not measured again.

No test asserts on time, but for mish: ONNX Runtime runs it as a chain of scalar loops, 20 times slower than a table.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from actx.exporter.choose import choose
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Form
from actx.exporter.inspection import open_data
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.part import read_values, write_part
from actx.exporter.runtimes.onnxruntime import DEFAULT, RuntimeOptions
from actx.exporter.save import save
from actx.exporter.search.context import Contexts
from actx.exporter.search.log import Log
from actx.exporter.search.site_latency import Bench, candidates, measure_model, measure_site
from actx.exporter.targets import TARGETS
from actx.models.demo import CALIBRATION, demo_path
from tests.exporter.ffn.graphs import NETWORKS
from tests.exporter.lift import test_mixture as mixture
from tests.exporter.lift import test_polynorm as polynorm
from tests.networks import SPELLINGS, SURROUNDINGS, Graph, feeds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from actx.exporter.choose import Choice
    from actx.exporter.lift import Site

ONE_THREAD = RuntimeOptions(threads=1)


def forms(*names: str) -> list[Form]:
    return [Form.parse(name) for name in names]


class Counted:
    """Fits forms and counts them."""

    def __init__(self) -> None:
        self.fits: list[tuple[str, str]] = []

    def __call__(self, site: Site, form: Form) -> Choice:
        self.fits.append((site.name, str(form)))
        return choose([site], TARGETS["ort-cpu"], pins={site.name: form})[0]


def bench_of(
    model: onnx.ModelProto, folder: Path, target: str = "ort-cpu", seconds: float = 2.0, **sizes: int
) -> Bench:
    onnx.save(model, folder / "model.onnx")
    loaded = load(folder / "model.onnx")
    return Bench(
        loaded.model, folder / "model.onnx", lift(loaded.model).sites, TARGETS[target], feeds(model, **sizes),
        Log(folder / "log.jsonl"), options=ONE_THREAD, seconds=seconds,
    )  # fmt: skip


def lines(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def networks() -> Iterator[tuple[str, onnx.ModelProto]]:
    for name, surroundings in SURROUNDINGS.items():
        yield name, surroundings.build(20)
    for name, network in NETWORKS.items():
        yield f"gated {name}", network.model(SPELLINGS["silu"].write)
    for name in ("mish_op", "prelu_per_channel", "gelu_legacy"):
        yield name, SPELLINGS[name].model(20)
    for gate in ("Sigmoid", "Softmax"):
        yield f"mixture by {gate}", mixture.network(partial(_mixture, gate))
    yield "polynorm", polynorm.network(polynorm.polynorm)


def _mixture(gate: str, g: Graph, x: str) -> str:
    return mixture.by_loop(g, x, mixture.projected(g, gate))


CASES = dict(networks())


# --- the part ---


@pytest.mark.parametrize("name", CASES)
def test_a_part_gives_what_the_whole_gives(name: str, tmp_path: Path) -> None:
    onnx.save(CASES[name], tmp_path / "model.onnx")
    loaded = load(tmp_path / "model.onnx")
    save({"whole.onnx": loaded.model}, tmp_path)
    batch = feeds(CASES[name])
    contexts = Contexts(loaded.model)
    sites = lift(loaded.model).sites
    assert sites
    for site in sites:
        part = contexts.part(site)
        save({"part.onnx": part}, tmp_path, "part.data")
        read, given = ([str(v.name) for v in values] for values in (part.graph.inputs, part.graph.outputs))
        found = DEFAULT.open(tmp_path / "part.onnx").run(read_values(tmp_path / "whole.onnx", batch, read, DEFAULT))
        for output, expected in read_values(tmp_path / "whole.onnx", batch, given, DEFAULT).items():
            np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
@pytest.mark.parametrize("name", CASES)
def test_a_form_is_written_into_a_part(name: str, target: str, tmp_path: Path) -> None:
    bench = bench_of(CASES[name], tmp_path, target)
    for site in bench.sites:
        part, goal = bench.contexts.part(site), TARGETS[target]
        form = Form("polynorm") if site.kind == "polynorm" else Form.parse("spline:16x3")
        (choice,) = choose([site], goal, pins={site.name: form})
        graph = write_part(part, [choice], goal, tmp_path / site.name.replace("/", "_"), options=ONE_THREAD)
        read, given = ([str(v.name) for v in values] for values in (part.graph.inputs, part.graph.outputs))
        found = graph.runtime.open(graph.path).run(read_values(bench.original, bench.batch, read, DEFAULT))
        for output, expected in read_values(bench.original, bench.batch, given, DEFAULT).items():
            np.testing.assert_allclose(found[output], expected, atol=2e-2 * max(1.0, float(np.abs(expected).max())))


def ops_around(model: onnx.ModelProto, folder: Path) -> list[list[str]]:
    """The ops of the part of every site."""
    bench = bench_of(model, folder)
    return [[node.op_type for node in bench.contexts.part(site).graph] for site in bench.sites]


def test_both_layers_are_in_the_part(tmp_path: Path) -> None:
    (ops,) = ops_around(SPELLINGS["gelu_op"].model(20), tmp_path)
    assert ops == ["MatMul", "Add", "Gelu", "MatMul"]


def test_of_a_gated_site_all_three_are(tmp_path: Path) -> None:
    (ops,) = ops_around(NETWORKS["matmuls"].model(SPELLINGS["mish_op"].write), tmp_path)
    assert ops.count("MatMul") == 3
    assert {"Mish", "Mul"} <= set(ops)


def blocks(count: int, activation: str = "Mish", width: int = 8, hidden: int = 12) -> onnx.ModelProto:
    """Layers with a residual sum each."""
    g, rng = Graph(20), np.random.default_rng(0)
    x = g.input("x", ["batch", "tokens", width])
    for i in range(count):
        up = rng.standard_normal((width, hidden)) / width**0.5
        down = rng.standard_normal((hidden, width)) / hidden**0.5
        inner = g.op(activation, g.linear(x, f"up.{i}", up, np.zeros(hidden)))
        x = g.op("Add", x, g.linear(inner, f"down.{i}", down))
    g.output(x, "y", 3)
    return g.model()


def test_a_part_does_not_reach_into_the_next_block(tmp_path: Path) -> None:
    assert ops_around(blocks(3), tmp_path) == [["MatMul", "Add", "Mish", "MatMul"]] * 3


def test_what_is_read_elsewhere_is_an_output_of_the_part(tmp_path: Path) -> None:
    bench = bench_of(SURROUNDINGS["output_used_twice"].build(20), tmp_path)
    (site,) = bench.sites
    outputs = [value.name for value in bench.contexts.part(site).graph.outputs]
    assert site.output in outputs
    assert len(outputs) == 2


# --- what is measured ---


def test_tables_are_faster_than_mish_and_each_structure_is_measured_once(tmp_path: Path) -> None:
    bench, fit = bench_of(blocks(3, width=64, hidden=256), tmp_path, batch=4, tokens=64), Counted()
    wanted = forms("spline:8x3", "spline:16x3")
    found = [measure_site(bench, site, wanted, fit) for site in bench.sites]
    assert [one.form for one in found[0]] == wanted
    for one in found[0]:
        assert one.comparison is not None
        assert one.comparison.verdict == "faster"
        assert one.saved_ms is not None
        assert one.saved_ms > 0
    assert found[1:] == [found[0]] * 2
    assert fit.fits == [(bench.sites[0].name, "spline:8x3"), (bench.sites[0].name, "spline:16x3")]
    assert len(lines(tmp_path)) == 2


def test_what_is_in_the_log_is_neither_fitted_nor_measured_again(tmp_path: Path) -> None:
    model, fit = blocks(1), Counted()
    first = bench_of(model, tmp_path)
    measured = measure_site(first, first.sites[0], forms("relu"), fit)
    before = lines(tmp_path)
    second = bench_of(model, tmp_path)
    assert measure_site(second, second.sites[0], forms("relu"), fit) == measured
    assert lines(tmp_path) == before
    assert len(fit.fits) == 1
    more = measure_site(second, second.sites[0], forms("hardswish", "relu"), fit)
    assert more[1] == measured[0]
    assert [form for _, form in fit.fits] == ["relu", "hardswish"]
    assert len(lines(tmp_path)) == len(before) + 1


def test_other_shapes_functions_and_threads_are_measured_anew(tmp_path: Path) -> None:
    variants = [
        (blocks(1), 5, 1),
        (blocks(1), 7, 1),
        (blocks(1, "Softplus"), 5, 1),
        (blocks(1, hidden=16), 5, 1),
        (blocks(1), 5, 2),
    ]
    for count, (model, tokens, threads) in enumerate(variants, 1):
        bench = bench_of(model, tmp_path, seconds=0.5, tokens=tokens)
        bench = replace(bench, options=RuntimeOptions(threads=threads))
        measure_site(bench, bench.sites[0], forms("pwl:8"), Counted())
        assert len(lines(tmp_path)) == count


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_the_digits_network(demo_onnx: Path, target: str, tmp_path: Path) -> None:
    data = demo_path(CALIBRATION)
    loaded = load(demo_onnx)
    save({"original.onnx": loaded.model}, tmp_path)
    batch = next(iter(open_data(loaded, str(data), 16)))
    sites = lift(loaded.model).sites
    log = Log(tmp_path / "log.jsonl")
    bench = Bench(
        loaded.model, tmp_path / "original.onnx", sites, TARGETS[target], batch, log, options=ONE_THREAD, seconds=0.7
    )
    wanted = candidates(TARGETS[target], sites[0])
    found = [measure_site(bench, site, wanted, Counted()) for site in sites]
    assert len({str(one) for one in found}) == 1
    assert [one.form for one in found[0]] == list(wanted)
    for one in found[0]:
        if one.comparison is None:  # a machine with no time to spare
            assert (one.saved_ms, "too short" in one.reason) == (None, True)
            continue
        sign = {"faster": 1, "slower": -1, "no difference": 0}[one.comparison.verdict]
        assert np.sign(one.saved_ms or 0) == sign
    whole = measure_model(bench)
    assert whole.milliseconds is not None
    assert whole.milliseconds > 0
    assert measure_model(bench) == whole
    assert len(lines(tmp_path)) == len(wanted) + 1


def test_without_time_for_a_verdict_nothing_is_said(tmp_path: Path) -> None:
    bench = bench_of(blocks(1), tmp_path, seconds=1e-6)
    (found,) = measure_site(bench, bench.sites[0], forms("relu"), Counted())
    assert (found.saved_ms, found.comparison) == (None, None)
    assert found.reason.endswith("seconds are too short for a verdict")


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_no_engine_is_built_of_a_part(target: str, tmp_path: Path) -> None:
    bench = bench_of(blocks(1), tmp_path, target)
    (found,) = measure_site(bench, bench.sites[0], forms("relu"), Counted())
    assert found.saved_ms is None
    assert "runs engines" in found.reason
    assert measure_model(bench).reason == found.reason
    assert lines(tmp_path) == []


def test_a_form_that_cannot_be_had_has_a_reason_and_is_not_in_the_log(tmp_path: Path) -> None:
    def fit(site: Site, form: Form) -> Choice:
        if form.name == "relu":
            raise ActxError("no such luck")
        return Counted()(site, form)

    bench = bench_of(blocks(1), tmp_path)
    first, second = measure_site(bench, bench.sites[0], forms("relu", "pwl:8"), fit)
    assert (first.saved_ms, first.reason) == (None, "no such luck")
    assert second.reason != "no such luck"
    assert len(lines(tmp_path)) == 1


def test_every_target_names_its_candidates(tmp_path: Path) -> None:
    (site,) = bench_of(blocks(1), tmp_path).sites
    for name, target in TARGETS.items():
        found = candidates(target, site)
        assert bool(found) == (name != "onnx")
        assert len(set(found)) == len(found)
    (relu,) = bench_of(blocks(1, "Relu"), tmp_path).sites
    assert Form("relu") not in candidates(TARGETS["ort-cpu"], relu)
