"""Which gated FFNs are packed: for the model, for single sites, and by what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from actx.exporter.errors import ActxError, UsageError
from actx.exporter.ffn.modes import Measured, decide, explanations, parse_mode
from actx.exporter.latency import Comparison
from actx.exporter.lift import lift
from tests.exporter.ffn.graphs import NETWORKS
from tests.exporter.ffn.test_product import gate_is_read_elsewhere, model_of
from tests.exporter.lower.running import prepared
from tests.networks import SPELLINGS, Graph, many_sites

if TYPE_CHECKING:
    import onnx_ir as ir

    from actx.exporter.ffn.product import Product

FASTER = Comparison("faster", 1.2, 1.2, (1.1, 1.3), 1.0, 1.01)
SAME = Comparison("no difference", 1.0, 1.0, (0.9, 1.1), 1.0, 1.01)
SLOWER = Comparison("slower", 0.8, 0.8, (0.7, 0.9), 1.0, 1.01)


def two_layers() -> ir.Model:
    return prepared(NETWORKS["matmuls"].model(SPELLINGS["silu"].write))


def never(_: Product) -> Measured:
    raise AssertionError


@pytest.mark.parametrize("comparison", [FASTER, SAME, SLOWER])
def test_auto_packs_what_measures_faster(comparison: Comparison) -> None:
    model = two_layers()
    (decision,) = decide(model, lift(model).sites, "auto", {}, lambda _: Measured(comparison))
    assert decision.packed == (comparison is FASTER)
    assert decision.measured is comparison
    assert comparison.verdict in decision.reason


def test_auto_keeps_what_is_not_measured() -> None:
    model = two_layers()
    (decision,) = decide(model, lift(model).sites, "auto", {}, lambda _: Measured(None, "for a reason"))
    assert (decision.packed, decision.reason) == (False, "not measured: for a reason")


@pytest.mark.parametrize(("mode", "packed"), [("auto", True), ("pack", True), ("keep", False)])
def test_halves_of_one_value_need_no_measurement(mode: str, packed: bool) -> None:
    model = prepared(NETWORKS["in turn"].model(SPELLINGS["silu"].write))
    (decision,) = decide(model, lift(model).sites, parse_mode(mode), {}, never)
    assert decision.packed == packed


def test_the_last_pattern_counts() -> None:
    model = prepared(many_sites(16))
    sites = lift(model).sites
    gated = [site.name for site in sites if site.gate is not None]
    assert len(gated) == 4
    decisions = decide(model, sites, "keep", {"*": "pack", gated[1]: "keep"}, never)
    assert [decision.sites[0] for decision in decisions] == gated
    assert [decision.reason for decision in decisions] == ["pinned"] * 4
    assert [decision.mode for decision in decisions] == ["pack", "keep", "pack", "pack"]
    assert [decision.packed for decision in decisions] == [True, False, True, True]


def test_what_was_named_and_cannot_be_packed_fails() -> None:
    model = model_of(gate_is_read_elsewhere)
    sites = lift(model).sites
    name = next(site.name for site in sites if site.gate is not None)
    with pytest.raises(ActxError, match="cannot be packed") as caught:
        decide(model, sites, "auto", {name: "pack"}, never)
    assert "read elsewhere" in caught.value.note
    assert name in caught.value.what
    assert explanations(decide(model, sites, "pack", {}, never)) == [
        f"the gated FFN of {name} is not packed: the gate is read elsewhere too"
    ]


def test_a_name_of_no_gated_ffn() -> None:
    model = prepared(SPELLINGS["silu"].model())
    sites = lift(model).sites
    with pytest.raises(ActxError, match="not part of a gated FFN"):
        decide(model, sites, "auto", {sites[0].name: "pack"}, never)
    assert decide(model, sites, "auto", {sites[0].name: "keep"}, never) == ()
    with pytest.raises(UsageError, match="no site is named"):
        decide(model, sites, "auto", {"nothing": "keep"}, never)


def test_an_ffn_has_the_names_of_both_its_factors() -> None:
    def clamped(g: Graph, u: str) -> str:
        return g.op("Add", g.op("Clip", u, -2.0, 2.0), 1.0)

    model = prepared(NETWORKS["matmuls"].model(SPELLINGS["silu"].write, clamped))
    sites = lift(model).sites
    assert len(sites) == 2
    for site in sites:
        (decision,) = decide(model, sites, "keep", {site.name: "pack"}, never)
        assert decision.packed
        assert set(decision.sites) == {site.name for site in sites}


def test_other_words_are_no_mode() -> None:
    with pytest.raises(UsageError, match="'fuse'") as caught:
        parse_mode("fuse")
    assert caught.value.note == "there are auto, pack, keep"
