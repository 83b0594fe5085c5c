"""Every activation goes the whole way, from our modules and from plain code in either of torch's exporters.

One model holds a branch per activation, each between two layers that only permute, so that what a branch gives is the
activation itself. Its sites are found and named, each is one node of the exported graph, and no output is further from the
original's than the certificate of its site allows.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from itertools import islice, permutations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from actx.exporter import Form, export, session
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.lower import SITE_METADATA
from actx.models.activations import ACTIVATIONS, DICTIONARY, MixtureOfActivations
from actx.models.demo import CALIBRATION, EVALUATION, demo_path
from actx.models.trained import TRAINED, load_trained
from tests.eager import EAGER, moa

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actx.exporter.manifest import FitEntry
    from actx.exporter.pipeline import Exported

FEATURES, TOKENS = 6, 3
LARGEST_FACTOR = 2.0  # of the gated product
SQUARE = 64.0  # the largest entry of a mixture: relu2 of 8
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
    "rational_d": "rational_b",
    "polynorm_bounded": "polynorm",
}
# What multiplies the site's output behind it, at most: a scale per channel that is no part of the site.
SCALED = {"dyt": 2.0, "derf": 2.0}
MIXTURES = ("moa",)
NAMES = (*EAGER, *MIXTURES)


class Branch(nn.Module):
    """Layer, activation, layer; and once more with the product with another layer behind the activation."""

    def __init__(self, name: str, *, eager: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_permutation(5 * NAMES.index(name) + i) for i in range(5))
        self.activation = MixtureOfActivations(FEATURES) if name in MIXTURES else ACTIVATIONS[name](FEATURES)
        self.code = _code(name) if eager else None

    def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        up, down, gate, other, last = self.layers
        return down(self.act(up(x), u)), last(self.act(gate(x), u) * other(u))

    def act(self, h: Tensor, u: Tensor) -> Tensor:
        source = (u,) if isinstance(self.activation, MixtureOfActivations) else ()
        result: Tensor = self.activation(h, *source) if self.code is None else self.code(self.activation, h, *source)
        return result


def _code(name: str) -> Callable[..., Tensor]:
    return moa if name in MIXTURES else EAGER[name]


def _permutation(index: int) -> nn.Linear:
    """Make a layer that only moves its inputs: all in another way, or exporters would compute equal branches once."""
    layer = nn.Linear(FEATURES, FEATURES, bias=False)
    order = next(islice(permutations(range(FEATURES)), index, None))
    layer.weight.data = torch.eye(FEATURES)[list(order)]
    return layer


class Everything(nn.Module):
    """All branches side by side."""

    def __init__(self, *, eager: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleDict({name: Branch(name, eager=eager) for name in NAMES})
        for branch in self.branches.values():
            for parameter in branch.activation.parameters():
                parameter.data += 0.2 * torch.rand_like(parameter)
                if parameter.shape[-1] == FEATURES:  # two kinds of channels: each is a fit of its own
                    parameter.data[..., 2:] = parameter.data[..., :1]

    def forward(self, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return tuple(y for branch in self.branches.values() for y in branch(x, u))


@dataclass(frozen=True)
class Case:
    """The model in a file, what it was exported to, and inputs."""

    model: Path
    exported: Exported
    feeds: dict[str, np.ndarray[Any, Any]]


def write(source: Source, file: Path) -> Path:
    """Write the model as ONNX: what an archive of our modules is loaded as, or plain code by one of torch's exporters."""
    model = Everything(eager=source != "module").eval()
    example = (torch.zeros(2, TOKENS, FEATURES), torch.zeros(2, TOKENS, FEATURES))
    batch = ({0: torch.export.Dim("batch")},) * 2
    if source == "module":
        torch.export.save(torch.export.export(model, example, dynamic_shapes=batch), file.with_suffix(".pt2"))
        ir.save(load(file.with_suffix(".pt2")).model, file)
        return file
    options: dict[str, Any] = {"dynamic_shapes": batch, "dynamo": True, "optimize": True}
    if source == "legacy":
        options = {"dynamic_axes": {"x": {0: "batch"}, "u": {0: "batch"}}, "dynamo": False, "opset_version": 17}
    outputs = [f"{name}_{kind}" for name in NAMES for kind in ("plain_out", "gated_out")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, str(file), input_names=["x", "u"], output_names=outputs, **options)
    return file


@pytest.fixture(scope="module", params=["module", pytest.param("dynamo", marks=pytest.mark.slow), "legacy"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("everything")
    model = write(request.param, folder / "model.onnx")
    rng = np.random.default_rng(1)
    shape = (32, TOKENS, FEATURES)
    feeds = {"x": rng.uniform(-8, 8, shape), "u": rng.uniform(-LARGEST_FACTOR, LARGEST_FACTOR, shape)}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    np.savez(folder / "data.npz", **feeds)
    exported = export(
        model, folder / "out", form=FORM, data=str(folder / "data.npz"), weighted=False, measure_latency=False, ffn="keep"
    )  # fmt: skip
    return Case(model, exported, feeds)


def branch_of(site: str) -> str:
    return site.removeprefix("branches.").partition(".")[0].partition(":")[0]


def test_every_site_is_found_and_named(case: Case) -> None:
    """Twice each; the function of a mixture's gates is a site too."""
    sites = [site for site in lift(load(case.model).model).sites if site.shape != ("batch", TOKENS, len(DICTIONARY))]
    found = Counter((branch_of(site.name), site.kind, site.gate is not None) for site in sites)
    expected = Counter(
        (name, KINDS.get(name, name), gated and name not in SCALED) for name in NAMES for gated in (False, True)
    )
    assert found == expected


def test_each_site_is_one_node(case: Case) -> None:
    manifest = case.exported.manifest
    graph = onnx.load(case.exported.path / manifest.graphs["ort-cpu"], load_external_data=False).graph
    owners = [p.value for node in graph.node for p in node.metadata_props if p.key == SITE_METADATA]
    assert Counter(owners) == dict.fromkeys((site.name for site in manifest.sites), 1)
    assert {site.form for site in manifest.sites} == {str(FORM), "polynorm"}
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["SplineMix"], kinds["PolyNorm"]) == (2, 4)
    # Beside the nodes of the sites there is what multiplies and adds per channel behind DyT and Derf.
    assert kinds.keys() <= {"MatMul", "Spline", "SplineMix", "PolyNorm", "Mul", "Add"}
    assert (kinds["MatMul"], kinds["Mul"], kinds["Add"]) == (5 * len(NAMES) + 1, 3 * len(SCALED), 2 * len(SCALED))


def test_no_output_is_further_away_than_its_certificate(case: Case) -> None:
    with torch.no_grad():
        expected = Everything(eager=False).eval()(*map(torch.from_numpy, case.feeds.values()))
    found = session(case.exported.path).run(case.feeds).values()
    sites = case.exported.manifest.sites
    proved = {
        branch_of(site.name): 0.0 if site.fit is None else _proved(site.fit) for site in sites if site.kind != "sigmoid"
    }
    proved["sigmoid"] = next(_proved(site.fit) for site in sites if branch_of(site.name) == "sigmoid" and site.fit)
    for i, (exact, y) in enumerate(zip(expected, found, strict=True)):
        name = NAMES[i // 2]
        allowed = proved[name] * SCALED.get(name, 1.0)
        if name in MIXTURES:  # one entry each, times gates below 1 that are off by what a sigmoid is
            allowed = len(DICTIONARY) * (proved[name] + SQUARE * proved["sigmoid"])
        bound = allowed * (LARGEST_FACTOR if i % 2 else 1.0) + ROUNDING * (1 + np.abs(exact.numpy()))
        assert (np.abs(y - exact.numpy()) <= bound).all(), (name, i % 2)


def _proved(fit: FitEntry) -> float:
    assert fit.certificate is not None
    return fit.certificate.error


# --- other ways to write the same ---


def _in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.neg_().exp_().add_(1).reciprocal_()
    return y.mul_(x)


def _in_half_precision(x: Tensor) -> Tensor:
    wide = x.half().float()
    return (wide * torch.sigmoid(wide)).half().float()


def _by_where(x: Tensor) -> Tensor:
    tail = torch.exp(-x.abs())
    return x * torch.where(x >= 0, 1 / (1 + tail), tail / (1 + tail))


WAYS: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": {
        "module": nn.SiLU(),
        "functional": nn.functional.silu,
        "product": lambda x: x * torch.sigmoid(x),
        "in place": _in_place,
        "half": _in_half_precision,
        "where": _by_where,
    },
    "relu2": {
        "square": lambda x: torch.relu(x).square(),
        "power": lambda x: nn.functional.relu(x) ** 2,
        "in place": lambda x: x.clone().clamp_(min=0).pow_(2),
        "where": lambda x: torch.where(x > 0, x * x, torch.zeros_like(x)),
    },
    "hardswish": {
        "module": nn.Hardswish(),
        "relu6": lambda x: x * nn.functional.relu6(x + 3) / 6,
        "in place": lambda x: x.clone().add_(3).clamp_(0, 6).div_(6).mul_(x),
        "where": lambda x: torch.where(x <= -3, 0 * x, torch.where(x >= 3, x, x * (x + 3) / 6)),
    },
}


class Ways(nn.Module):
    """Every way between two layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = [way for ways in WAYS.values() for way in ways.values()]
        self.layers = nn.ModuleList(_permutation(i) for i in range(2 * len(self.ways)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            self.layers[2 * i + 1](way(self.layers[2 * i](x))) for i, way in enumerate(self.ways)
        )  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_code_in_other_ways_gives_the_same_sites(source: Source, tmp_path: Path) -> None:
    example = (torch.zeros(2, TOKENS, FEATURES),)
    file = tmp_path / ("model.pt2" if source == "module" else "model.onnx")
    if source == "module":
        torch.export.save(torch.export.export(Ways().eval(), example), file)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Ways().eval(), example, str(file), dynamo=source == "dynamo", opset_version=18)
    kinds = [site.kind for site in lift(load(file).model).sites]
    assert kinds == [kind for kind, ways in WAYS.items() for _ in ways]


# --- where the parameters depend on the input ---


# DY-ReLU has 2 sigmoid(x) - 1, which is tanh(x / 2).
@pytest.mark.parametrize(("name", "kinds"), [("dy_relu", ["relu", "dyt"]), ("meta_acon", ["sigmoid", "sigmoid"])])
def test_what_depends_on_the_input_keeps_its_graph(name: str, kinds: list[str], tmp_path: Path) -> None:
    """The scalar functions inside are sites, and the rest stays."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(FEATURES, FEATURES), ACTIVATIONS[name](FEATURES), nn.Linear(FEATURES, FEATURES)
    ).eval()
    example = torch.randn(4, TOKENS, FEATURES)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    sites = lift(load(tmp_path / "model.pt2").model).sites
    assert [site.kind for site in sites] == kinds
    exported = export(tmp_path / "model.pt2", tmp_path / "out", form=FORM, measure_latency=False)
    assert exported.drift is not None
    assert exported.drift.drift <= 1e-4


# --- trained networks ---


DIGITS = [name for name in TRAINED if name != "decoder"]


# The legacy exporter is the faster one, and lacks ops of these.
ARCHIVED = ("digits_xielu", "digits_polynorm")


def write_trained(name: str, folder: Path) -> Path:
    network, image = load_trained(name), torch.zeros(2, 1, 8, 8)
    if name in ARCHIVED:
        program = torch.export.export(network, (image,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / "model.pt2")
        return folder / "model.pt2"
    options: dict[str, Any] = {"dynamic_axes": {"image": {0: "batch"}}, "dynamo": False, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), folder / "model.onnx", input_names=["image"], **options)
    return folder / "model.onnx"


@pytest.mark.parametrize("name", DIGITS)
def test_no_digit_is_told_otherwise(name: str, tmp_path: Path) -> None:
    """450 images that the network was not trained on."""
    exported = export(
        write_trained(name, tmp_path), tmp_path / "out", form=FORM, data=str(demo_path(CALIBRATION)),
        held_out=str(demo_path(EVALUATION)), weighted=False, measure_latency=False, metric="top1", max_drift=0.001,
    )  # fmt: skip
    assert exported.manifest.sites
    assert all(site.form != "keep" for site in exported.manifest.sites)
