"""The segments of a graph: what they are called, and that fed with the original's values they give the original's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from actx.exporter.choose import choose
from actx.exporter.fitting import Form
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import lower
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.save import save
from actx.exporter.segments import Changed, Segment, feed, segments
from actx.exporter.targets import find_target
from tests.networks import SPELLINGS, SURROUNDINGS, Graph, feeds, onnx_mlp

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

GELU = SPELLINGS["gelu_op"].write


def opened(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    onnx.save(proto, folder / "source.onnx")
    return load(folder / "source.onnx").model


def names(model: ir.Model) -> set[str]:
    return {str(value.name) for node in model.graph for value in node.outputs}


def parts_of(model: ir.Model, **changes: Any) -> tuple[Segment, ...]:
    return segments(model, [Changed(site, **changes) for site in lift(model).sites], names(model))


@pytest.mark.parametrize("network", SURROUNDINGS)
def test_a_segment_fed_with_the_originals_values_gives_the_originals(network: str, tmp_path: Path) -> None:
    proto = SURROUNDINGS[network].build(20)
    model = opened(proto, tmp_path)
    parts = parts_of(model)
    assert parts
    save({"whole.onnx": model, "parts.onnx": feed(model, parts)}, tmp_path)
    ends = {str(value.name) for value in model.graph.outputs}
    outputs = [part.output for part in parts]
    whole = DEFAULT.open(tmp_path / "whole.onnx", [name for name in outputs if name not in ends])
    given = feeds(proto)
    expected = whole.run(given, outputs)
    found = DEFAULT.open(tmp_path / "parts.onnx").run(given | {part.fed: expected[part.output] for part in parts})
    for name in outputs:  # the same nodes on the same numbers: what differs is how the runtime fused them
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_layers_have_the_names_of_their_modules_unless_these_are_shared(tmp_path: Path) -> None:
    def network(*scopes: str) -> ir.Model:
        g = Graph(20)
        x = g.input("x", ["batch", 4])
        for i, scope in enumerate(scopes):
            g.scope = scope
            x = g.linear(x, f"{i}", np.eye(4), np.ones(4))
        g.output(x, "y", 2)
        return opened(g.model(), tmp_path)

    assert [part.name for part in parts_of(network("/a/up/", "/a/down/"))][:2] == ["a.up", "a.down"]
    assert [part.name for part in parts_of(network("/a/b/", "/a/b/"))][:2] == ["/a/b/MatMul_0", "/a/b/MatMul_2"]


def test_a_refitted_site_is_one_segment_with_the_layers_around_it(tmp_path: Path) -> None:
    model = opened(onnx_mlp(GELU, 20), tmp_path)
    (site,) = lift(model).sites
    apart, joined = parts_of(model), parts_of(model, refitted=True)
    assert [part.kind for part in apart][:3] == ["layer", "site", "layer"]
    assert [(part.kind, part.name) for part in joined][:1] == [("site", site.name)]
    assert not {site.input, site.output} & {part.output for part in joined}


def test_values_between_layers_that_a_slope_was_folded_into_are_so_many_times_the_originals(tmp_path: Path) -> None:
    proto = onnx_mlp(GELU, 20)
    model = opened(proto, tmp_path)
    sites = lift(model).sites
    lowered = lower(model, choose(sites, find_target("onnx"), form=Form("hardswish")), native=None)
    scale = lowered.placements[0].scale
    assert scale != 1
    parts = segments(model, [Changed(sites[0], scale)], names(model) & names(lowered.portable))
    assert [part.scale for part in parts][:3] == [scale, scale, 1]
    save({"original.onnx": model, "rewritten.onnx": lowered.portable}, tmp_path)
    layer = parts[0].output
    before, after = (
        DEFAULT.open(tmp_path / f"{name}.onnx", [layer]).run(feeds(proto), [layer])[layer]
        for name in ("original", "rewritten")
    )
    np.testing.assert_allclose(after, before * scale, rtol=1e-5, atol=1e-5)


def test_what_another_model_does_not_have_belongs_to_the_segment_behind_it(tmp_path: Path) -> None:
    model = opened(onnx_mlp(SPELLINGS["silu"].write, 20, gated="matmul"), tmp_path)
    (site,) = lift(model).sites
    assert site.gate is not None
    packed = lower(
        model, choose([site], find_target("ort-cpu"), form=Form("pwl", (8,))), native="actx", packed={site.name}
    )
    assert packed.native is not None
    parts = segments(model, [Changed(site)], names(packed.native))
    assert (parts[0].name, parts[0].kind, parts[0].output) == (site.name, "site", site.gate.product)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model = opened(onnx_mlp(GELU, 20), tmp_path)
    before = [[str(value.name) for value in node.inputs if value] for node in model.graph]
    feed(model, parts_of(model))
    assert [[str(value.name) for value in node.inputs if value] for node in model.graph] == before
    assert [value.name for value in model.graph.inputs] == ["x"]
