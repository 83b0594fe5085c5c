"""Whole exports of gated FFNs as torch writes them: what the bundle holds, what its manifest says, and what is measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from actx.cli.main import app
from actx.exporter import Form, check, export, inspect, profile
from actx.exporter.errors import UsageError
from actx.exporter.ffn.measurement import Meter
from actx.exporter.ffn.modes import decide
from actx.exporter.inspection import open_data
from actx.exporter.kernels import choose_kernels
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import SITE_METADATA
from actx.exporter.runtimes.onnxruntime import DEFAULT
from actx.exporter.targets import TARGETS
from actx.exporter.workspace import workspace
from tests.exporter.ffn.graphs import NETWORKS
from tests.exporter.lower.running import chosen
from tests.networks import SPELLINGS

if TYPE_CHECKING:
    from pathlib import Path

    from actx.exporter.pipeline import Exported

WIDTH, HIDDEN = 16, 24
SPLINE = Form.parse("spline:8x3")
Exporter = Literal["dynamo", "legacy"]
# Of float32 outputs of order 1 behind a form within 5e-4.
CLOSE = 1e-3


class TwoLayers(nn.Module):
    """SwiGLU as Llama has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return result


class Packed(nn.Module):
    """One layer for both, of which `cut` makes the halves and their product."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(WIDTH, 2 * HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(self.cut(self.both(x)))
        return result

    def cut(self, both: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Glu(Packed):
    """The gate second."""

    def cut(self, both: torch.Tensor) -> torch.Tensor:
        return functional.glu(both)


class Chunks(Packed):
    """Halves by chunk."""

    def cut(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return functional.silu(gate) * up


class Pairs(Packed):
    """Halves by unflatten."""

    def cut(self, both: torch.Tensor) -> torch.Tensor:
        pairs = both.unflatten(-1, (HIDDEN, 2))
        return functional.silu(pairs[..., 0]) * pairs[..., 1]


class Clamped(Packed):
    """As gpt-oss has it: in turn, both clamped."""

    def cut(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both[..., ::2].clamp(max=0.5), both[..., 1::2].clamp(-0.5, 0.5)
        return (up + 1) * (gate * torch.sigmoid(1.702 * gate))


def written(module: nn.Module, exporter: Exporter, folder: Path) -> Path:
    """Write a module as one of torch's exporters does."""
    module.eval()
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    if exporter == "dynamo":
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / "model.pt2")
        return folder / "model.pt2"
    torch.onnx.export(
        module, (x,), str(folder / "model.onnx"), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
    )
    return folder / "model.onnx"


def by_hand(folder: Path) -> Path:
    """Write an FFN of two layers."""
    onnx.save(NETWORKS["matmuls"].model(SPELLINGS["silu"].write), folder / "model.onnx")
    return folder / "model.onnx"


def exported(source: Path, ffn: str = "pack", **settings: object) -> Exported:
    return export(
        source,
        source.parent / "out",
        form=SPLINE,
        ffn=ffn,
        measure_latency=False,
        force=True,
        **settings,  # type: ignore[arg-type]
    )


def ops_of(bundle: Path, name: str) -> list[str]:
    return [node.op_type for node in onnx.load(bundle / name, load_external_data=False).graph.node]


@pytest.mark.parametrize("module", [TwoLayers, Glu, Clamped, Chunks, Pairs])
def test_what_torch_writes(module: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = written(module(), "dynamo", tmp_path)
    done = exported(source)
    native = ops_of(done.path, "model.ort-cpu.onnx")
    assert native == ["MatMul", "Add", "GatedSpline", "MatMul", "Add"]
    assert done.drift is not None
    assert done.drift.outputs[0].max_abs <= CLOSE
    assert done.drifts[-1].outputs[0].max_abs <= CLOSE
    entries = [site.ffn for site in done.manifest.sites]
    assert all(entry is not None and entry.packed for entry in entries)
    weights = onnx.load(done.path / "model.onnx", load_external_data=False).graph.initializer
    stored = {tuple(t.dims) for t in weights if t.data_location == onnx.TensorProto.EXTERNAL}
    assert stored == {(WIDTH, 2 * HIDDEN), (HIDDEN, WIDTH)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", [TwoLayers, Glu, Clamped, Chunks, Pairs])
def test_what_torch_wrote_before(module: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = exported(written(module(), "legacy", tmp_path))
    assert ops_of(done.path, "model.ort-cpu.onnx") == ["MatMul", "Add", "GatedSpline", "MatMul", "Add"]
    assert all(report.outputs[0].max_abs <= CLOSE for report in done.drifts)


def test_two_sites_in_one_node_are_looked_at_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = written(Clamped(), "dynamo", tmp_path)
    done = exported(source, kernels=choose_kernels(None)[0] is not None)
    sites = done.manifest.sites
    assert len(sites) == 2
    (node,) = (n for n in onnx.load(done.path / "model.ort-cpu.onnx").graph.node if n.op_type == "GatedSpline")
    assert {p.value for p in node.metadata_props if p.key == SITE_METADATA} < {site.name for site in sites}
    assert done.drift is not None
    again = check(source, done.path)
    for report in (done.drift, again):
        assert [site.name for site in report.sites] == [site.name for site in sites]
        added = {site.name: site.added_db for site in report.sites}
        for site in sites:
            assert site.fit is not None
            least = 100.0 if site.fit.max_error == 0 or site.fit.ratio_to_law == "exact" else 40.0
            assert (added[site.name] or 0) >= least


def test_the_manifest_says_what_was_asked_and_done(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    name = exported(source, ffn="keep").manifest.sites[0].name
    done = exported(source, ffn="keep", ffn_sites={name: "pack"})
    content = json.loads((done.path / "manifest.json").read_text())
    assert (content["request"]["ffn"], content["request"]["ffn_sites"]) == ("keep", {name: "pack"})
    (site,) = content["sites"]
    assert site["ffn"] == {"mode": "pack", "packed": True, "reason": "pinned", "latency": None}
    auto = exported(source, ffn="auto").manifest.sites[0].ffn
    assert auto is not None
    assert (auto.packed, auto.reason) == (False, "not measured: latency was not to be measured")


def test_a_mode_that_there_is_not(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    with pytest.raises(UsageError, match="'fuse'"):
        exported(source, ffn="fuse")


def test_the_verdict_of_auto_is_measured_on_the_ffn_alone(tmp_path: Path) -> None:
    loaded = load(by_hand(tmp_path))
    (site,) = lift(loaded.model).sites
    data = open_data(loaded, None, 2)
    with workspace(loaded) as original:
        meter = Meter(
            loaded.model, original, [chosen(site, "spline:8x3")], TARGETS["ort-cpu"], None, data, True, None, DEFAULT,
            wanted=True, seconds=1.0,
        )  # fmt: skip
        (decision,) = decide(loaded.model, [site], "auto", {}, meter)
    if decision.measured is None:  # a machine with no time to spare
        assert decision.reason.startswith("not measured: ")
        assert not decision.packed
        return
    low, high = decision.measured.interval
    assert 0 < low <= decision.measured.paired_ratio <= high
    assert decision.packed == (decision.measured.verdict == "faster")


def test_on_the_command_line(tmp_path: Path) -> None:
    source = by_hand(tmp_path)
    arguments = [
        "export",
        str(source),
        "--form",
        "spline:8x3",
        "--no-check",
        "--no-profile",
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--ffn", "keep", "--ffn", "*=pack"])
    assert result.exit_code == 0, result.output
    assert "  packed  " in result.output
    result = CliRunner().invoke(app, [*arguments, "--force", "--ffn", "nothing=pack"])
    assert result.exit_code != 0


class ReadElsewhere(TwoLayers):
    """The gate is read by another op too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x)
        return self.down(functional.silu(gate) * self.up(x) + functional.softmax(gate, -1))


def test_inspect_explains_what_cannot_be_packed(tmp_path: Path) -> None:
    source = written(nn.Sequential(ReadElsewhere(), TwoLayers()), "dynamo", tmp_path)
    found = inspect(source)
    (refused,) = found.ffn_rejections
    assert refused in {site.name for site in found.sites}
    assert found.ffn_rejections[refused] == "the gate is read elsewhere too"
    printed = CliRunner().invoke(app, ["inspect", str(source), "--explain"]).output
    assert "Gated FFNs that --ffn pack leaves" in printed
    assert "the gate is read elsewhere too" in printed
    printed = CliRunner().invoke(app, ["inspect", str(source), "--explain", "--json"]).output
    assert json.loads(printed)["ffn_rejections"] == [{"name": refused, "reason": "the gate is read elsewhere too"}]


def test_the_product_is_in_the_share_of_its_site(tmp_path: Path) -> None:
    """On both sides, whether it is an op of its own or one with the site."""
    source = written(TwoLayers(), "dynamo", tmp_path)
    bundle = exported(source, "keep").path
    for kernels in (True, False):
        report = profile(source, bundle, runs=2, kernels=kernels)
        for nodes in (report.original_nodes.nodes, report.artifact_nodes.nodes):
            assert [node.op_type for node in nodes if node.site is None and node.op_type in {"Mul", "QuickGelu"}] == []
            assert any(node.site is not None for node in nodes)
