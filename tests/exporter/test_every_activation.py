"""Every activation goes the whole way, from our modules and from plain code in either of torch's exporters.

One model holds a branch per activation, each between two layers of weight one, so that what a branch gives is the activation
itself. Its sites are found and named, each is one node of the exported graph, and no output is further from the original's than
the certificate of its site allows.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from actx.exporter import Form, export, session
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import SITE_METADATA
from actx.models.activations import ACTIVATIONS, MixtureOfActivations
from tests.eager import EAGER, moa

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actx.exporter.pipeline import Exported

FEATURES, TOKENS = 6, 3
FORM = Form.parse("spline:16x3")
# Of 1 + |y|: the kernel's own roundings and those of the graph around it.
ROUNDING = 2e-6
Source = Literal["module", "dynamo", "legacy"]
SOURCES: tuple[Source, ...] = ("module", "dynamo", "legacy")
# The catalogue's name where it is not ours; parameters are drawn at random, so that none has the values of a special case.
KINDS = {
    "prelu": "leaky_relu",
    "prelu_per_channel": "prelu",
    "swish_per_channel": "swish",
    **{f"rational_{version}": "rational" for version in "abcd"},
    "polynorm_bounded": "polynorm",
}
# What multiplies the site's output behind it, at most: a scale per channel that is no part of the site.
SCALED = {"dyt": 2.0, "derf": 2.0}
MIXTURES = ("moa",)
NAMES = (*EAGER, *MIXTURES)


class Branch(nn.Module):
    """Layer, activation, and where it is gated the product with another layer; layer."""

    def __init__(self, name: str, *, eager: bool, gated: bool) -> None:
        super().__init__()
        self.up, self.other, self.down = (_one() for _ in range(3))
        self.activation = MixtureOfActivations(FEATURES) if name in MIXTURES else ACTIVATIONS[name](FEATURES)
        self.code = _code(name) if eager else None
        self.gated = gated

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        h = self.up(x)
        source = (u,) if isinstance(self.activation, MixtureOfActivations) else ()
        y = self.activation(h, *source) if self.code is None else self.code(self.activation, h, *source)
        result: Tensor = self.down(y * self.other(u) if self.gated else y)
        return result


def _code(name: str) -> Callable[..., Tensor]:
    return moa if name in MIXTURES else EAGER[name]


def _one() -> nn.Linear:
    layer = nn.Linear(FEATURES, FEATURES, bias=False)
    nn.init.eye_(layer.weight)
    return layer


class Everything(nn.Module):
    """All branches side by side."""

    def __init__(self, *, eager: bool, gated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleDict({name: Branch(name, eager=eager, gated=gated) for name in NAMES})
        for branch in self.layers.values():
            for parameter in branch.activation.parameters():
                parameter.data += 0.2 * torch.rand_like(parameter)

    def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x, u) for branch in self.layers.values())


@dataclass(frozen=True)
class Case:
    """The model in a file, what it was exported to, and inputs."""

    source: Source
    gated: bool
    model: Path
    exported: Exported
    feeds: dict[str, np.ndarray[Any, Any]]


def write(source: Source, file: Path, *, gated: bool) -> Path:
    """Write the model: an archive of our modules, or ONNX of plain code."""
    model = Everything(eager=source != "module", gated=gated).eval()
    example = (torch.zeros(2, TOKENS, FEATURES), torch.zeros(2, TOKENS, FEATURES))
    batch = ({0: torch.export.Dim("batch")},) * 2
    if source == "module":
        torch.export.save(torch.export.export(model, example, dynamic_shapes=batch), file.with_suffix(".pt2"))
        return file.with_suffix(".pt2")
    file = file.with_suffix(".onnx")
    options: dict[str, Any] = {"dynamic_shapes": batch, "dynamo": True, "optimize": True}
    if source == "legacy":
        options = {"dynamic_axes": {"x": {0: "batch"}, "u": {0: "batch"}}, "dynamo": False, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, str(file), input_names=["x", "u"], output_names=[f"{name}_out" for name in NAMES], **options)
    return file


@pytest.fixture(scope="module", params=[(s, g) for s in SOURCES for g in (False, True)], ids=str)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    source, gated = request.param
    folder = tmp_path_factory.mktemp("everything")
    model = write(source, folder / "model", gated=gated)
    rng = np.random.default_rng(1)
    shape = (64, TOKENS, FEATURES)
    feeds = {"x": rng.uniform(-8, 8, shape).astype(np.float32), "u": rng.uniform(-2, 2, shape).astype(np.float32)}
    np.savez(folder / "data.npz", **feeds)
    exported = export(
        model, folder / "out", form=FORM, data=str(folder / "data.npz"), weighted=False, measure_latency=False
    )  # fmt: skip
    return Case(source, gated, model, exported, feeds)


def branch_of(site: str) -> str:
    return site.removeprefix("layers.").partition(".")[0].partition(":")[0]


def test_every_site_is_found_and_named(case: Case) -> None:
    sites = lift(load(case.model).model).sites
    kinds = {branch_of(site.name): site.kind for site in sites if not (site.kind == "sigmoid" and _gates(site.name))}
    assert kinds == {name: KINDS.get(name, name) for name in NAMES}
    gated = {branch_of(site.name) for site in sites if site.gate is not None}
    assert gated == (set(NAMES) - set(SCALED) if case.gated else set())


def _gates(name: str) -> bool:
    """Tell whether a site is the function of a mixture's gates, which is one of its own."""
    return branch_of(name) in MIXTURES


def test_each_site_is_one_node(case: Case) -> None:
    manifest = case.exported.manifest
    graph = onnx.load(case.exported.path / manifest.graphs["ort-cpu"], load_external_data=False).graph
    owners = [p.value for node in graph.node for p in node.metadata_props if p.key == SITE_METADATA]
    assert Counter(owners) == dict.fromkeys((site.name for site in manifest.sites), 1)
    assert {site.form for site in manifest.sites} == {"spline:16x3", "polynorm"}
    assert len([node for node in graph.node if node.op_type == "MatMul"]) == len(NAMES) * (3 if case.gated else 2) + 1


def test_no_output_is_further_away_than_its_certificate(case: Case) -> None:
    before = Everything(eager=False, gated=case.gated).eval()
    with torch.no_grad():
        expected = before(*(torch.from_numpy(case.feeds[name]) for name in ("x", "u")))
    after = session(case.exported.path).run(case.feeds, None)
    factor = np.abs(case.feeds["u"]) if case.gated else 1.0
    proved = {
        site.name: site.fit.certificate.error
        for site in case.exported.manifest.sites
        if site.fit and site.fit.certificate
    }
    for name, exact, y in zip(NAMES, expected, after.values() if isinstance(after, dict) else after, strict=True):
        allowed = max((error for site, error in proved.items() if branch_of(site) == name), default=0.0)
        if name in MIXTURES:  # seven entries, and gates that are a form themselves
            allowed = 7 * allowed + 7 * 70 * 2e-5
        bound = allowed * factor * SCALED.get(name, 1.0) + ROUNDING * (1 + np.abs(exact.numpy()))
        assert (np.abs(y - exact.numpy()) <= bound).all(), name
