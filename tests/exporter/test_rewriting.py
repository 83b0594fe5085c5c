"""Rewritten modules: the same sites by name, the same weights, the forms' values and gradients, and both modes."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from actx.custom_ops import ACTIVATIONS
from actx.exporter import Form, fit, rewrite
from actx.exporter.choose import choose
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.lift import lift
from actx.exporter.load import load
from actx.exporter.rewriting.activation import Kept, PiecewisePolynomial
from actx.exporter.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from actx.exporter.lift import Site

PWL = Form.parse("pwl:16")
FORMS = ("relu", "hardswish", "pwl:7", "pwl:16", "poly:8", "spline:8x2", "spline:16x3")


class Shared(nn.Module):
    """Its activation may be that of other layers too."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.activation, self.dropout = activation, nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.dropout(self.down(self.activation(self.up(x))))
        return result


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return result


class Functional(nn.Module):
    """Two sites in one scope, and a dropout that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.middle(functional.gelu(self.up(x))))
        return x + functional.dropout(self.down(hidden), 0.3, self.training)


class Transformer(nn.Module):
    """Layers of a language model: tied weights, an unused weight, inputs by name, outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        activation = nn.GELU()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList([Shared(activation), Shared(activation), Gated(), Functional()])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.ones(2))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x if mask is None else x * mask[..., None])
        return {"logits": self.head(self.norm(x))}


SITES = ["layers.0.activation", "layers.1.activation", "layers.2", "layers.3", "layers.3:1"]


class Convolutional(nn.Module):
    """Ops in place, batch norms of both kinds, and a slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.mean = nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)
        self.relu, self.prelu, self.head = nn.ReLU(inplace=True), nn.PReLU(4), nn.Linear(4, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(image)))
        y = self.mean(self.second(x))
        y += x
        functional.silu(y, inplace=True)
        result: Tensor = self.head(self.prelu(self.second(y)).mean((2, 3)))
        return result


def exported_sites(
    module: nn.Module, path: Path, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[Site, ...]:
    """Return the sites that the next export finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        torch.export.save(torch.export.export(copy.deepcopy(module).eval(), args, kwargs), path)
    return lift(load(path).model).sites


def new_parts(module: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in module.named_modules() if isinstance(part, (PiecewisePolynomial, Kept))}


def tokens(batch: int = 2) -> dict[str, Tensor]:
    ids = torch.arange(5 * batch).reshape(batch, 5) % 11
    return {"ids": ids, "mask": (ids != 3).float()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# --- the forms ---


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_table(form: str) -> None:
    found = fit(ACTIVATIONS["gelu"], Form.parse(form))
    part = PiecewisePolynomial(found.form, found.spline)
    x = torch.cat([torch.linspace(-9, 9, 4001), torch.tensor([0.0, 1e4, -1e4])])
    expected = found.spline(x.numpy())
    assert np.abs(part(x).numpy() - expected).max() <= 1e-6 * (1 + np.abs(expected).max())
    assert part(torch.tensor(float("nan"))).isnan()
    for dtype in (torch.float16, torch.bfloat16):
        narrow = x[:-2].to(dtype)
        assert part(narrow).dtype == dtype
        assert torch.equal(part(narrow), part(narrow.float()).to(dtype))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_finite_differences_away_from_knots(form: str) -> None:
    found = fit(ACTIVATIONS["gelu"], Form.parse(form))
    part = PiecewisePolynomial(found.form, found.spline)
    x = torch.linspace(-5, 5, 301, dtype=torch.float64)
    distance = np.abs(x.numpy()[:, None] - found.spline.knots).min(axis=1)
    x = x[torch.from_numpy(distance > 1e-3)].requires_grad_()
    assert torch.autograd.gradcheck(part, (x,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_gradient_at_zero_is_one_sided_and_not_lost(form: str) -> None:
    """A layer whose weights begin at zero must learn."""
    found = fit(ACTIVATIONS["gelu"], Form.parse(form))
    x = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(PiecewisePolynomial(found.form, found.spline)(x), x)
    values = found.spline(np.array([-1e-4, 0.0, 1e-4]))
    left, right = np.diff(values) / 1e-4
    assert min(abs(gradient.item() - left), abs(gradient.item() - right)) <= 1e-3
    assert gradient.item() > 0.3


@pytest.mark.parametrize(
    ("form", "activation"), [*((form, nn.GELU()) for form in FORMS), ("poly:16", nn.Tanh())], ids=str
)
def test_the_next_export_recovers_the_function(form: str, activation: nn.Module, tmp_path: Path) -> None:
    """The form fits what the rewritten module exports to, with the rounding of float32."""
    module, x = nn.Sequential(nn.Linear(4, 8), activation, nn.Linear(8, 4)), torch.randn(3, 4)
    rewritten = rewrite(module, (x,), Form.parse(form))
    (site,) = exported_sites(rewritten, tmp_path / "tuned.pt2", (x,))
    (choice,) = choose([site], find_target("onnx"), form=Form.parse(form))
    assert site.name == "1"
    assert site.kind == ("relu" if form == "relu" else "scalar")
    assert choice.fit is not None
    part = rewritten.get_submodule("1")
    assert isinstance(part, PiecewisePolynomial)
    grid = np.linspace(-9, 9, 4001)
    # spline:16x3 joins its pieces closer than a jump can be seen, and is fitted anew.
    bound = 4e-5 if form == "spline:16x3" else 2e-6
    assert np.abs(choice.fit.spline(grid) - part.spline(grid)).max() <= bound


# --- whole modules ---


def test_the_module_is_left_as_it_was_and_the_weights_keep_their_names() -> None:
    module = Transformer().train()
    before = copy.deepcopy(module.state_dict())
    rewritten = rewrite(module, (), PWL, kwargs=tokens())
    assert rewritten.training
    assert rewritten.state_dict().keys() == before.keys()
    rewritten.load_state_dict(before)
    for parameter in rewritten.parameters():
        torch.nn.init.zeros_(parameter)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert isinstance(module.layers[0].get_submodule("activation"), nn.GELU)
    assert dict(rewritten.named_parameters(remove_duplicate=False))["head.weight"] is rewritten.embedding.weight


def test_the_sites_of_a_transformer_have_the_same_names_in_the_next_export(tmp_path: Path) -> None:
    module = Transformer().eval()
    rewritten = rewrite(module, (), PWL, kwargs=tokens())
    assert [site.name for site in exported_sites(module, tmp_path / "model.pt2", (), tokens())] == SITES
    assert sorted(new_parts(rewritten)) == SITES
    sites = exported_sites(rewritten, tmp_path / "tuned.pt2", (), tokens())
    assert [site.name for site in sites] == SITES
    assert sites[2].gate is not None


def test_forms_by_site_and_pattern(tmp_path: Path) -> None:
    forms: Mapping[str, Form] = {"layers.*": PWL, "layers.[13]*": Form.parse("hardswish"), "layers.3:1": Form("keep")}
    rewritten = rewrite(Transformer(), (), forms, kwargs=tokens())
    parts = new_parts(rewritten)
    shown = [str(part.form) if isinstance(part, PiecewisePolynomial) else part.reason for part in parts.values()]
    assert dict(zip(parts, shown, strict=True)) == dict(
        zip(SITES, ("pwl:16", "hardswish", "pwl:16", "hardswish", "pinned"), strict=True)
    )
    sites = exported_sites(rewritten, tmp_path / "tuned.pt2", (), tokens())
    assert [site.name for site in sites] == SITES
    assert [site.kind for site in sites] == ["scalar"] * 4 + ["gelu"]
    with pytest.raises(UsageError, match=r"no site is named 'encoder\.\*'"):
        rewrite(Transformer(), (), {"encoder.*": PWL}, kwargs=tokens())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size(batch: int) -> None:
    module = Transformer().eval()
    rewritten = rewrite(module, (), Form.parse("pwl:32"), kwargs=tokens())
    with torch.no_grad():
        difference = rewritten(**tokens(batch))["logits"] - module(**tokens(batch))["logits"]
    assert difference.abs().max() <= 0.02  # a pwl:32 is within 1e-3 of its source


def test_dropout_acts_in_training_only() -> None:
    rewritten = rewrite(Transformer().eval(), (), PWL, kwargs=tokens())
    assert not any(part.training for part in rewritten.modules())
    rewritten.train()
    assert not torch.equal(rewritten(**tokens())["logits"], rewritten(**tokens())["logits"])
    rewritten.eval()
    assert torch.equal(rewritten(**tokens())["logits"], rewritten(**tokens())["logits"])


def test_dropout_that_is_no_module_and_dropout_inside_an_op() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)
            self.feedforward = Functional()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.feedforward(self.cells(x)[0])
            return result

    x = torch.randn(2, 5, 8)
    rewritten = rewrite(Recurrent().train(), (x,), PWL)
    torch.manual_seed(1)
    rewritten.feedforward.eval()  # the op is told by its own module
    first, second = rewritten(x), rewritten(x)
    assert not torch.equal(first, second)
    rewritten.eval()
    assert torch.equal(rewritten(x), rewritten(x))


def test_batch_norm_and_ops_in_place(tmp_path: Path) -> None:
    module, image = Convolutional().train(), torch.randn(4, 3, 6, 6)
    rewritten = rewrite(module, (image,), Form.parse("pwl:32"))
    for _ in range(2):  # in training the statistics move
        assert (rewritten(image) - module(image)).abs().max() <= 0.02
    statistics = {name: value for name, value in module.state_dict().items() if "running" in name or "num" in name}
    assert len(statistics) == 6
    for name, value in statistics.items():
        assert (rewritten.state_dict()[name] - value).abs().max() <= 0.02, name
    assert rewritten.norm.num_batches_tracked == 2
    assert (rewritten.eval()(image) - module.eval()(image)).abs().max() <= 0.02
    sites = exported_sites(rewritten, tmp_path / "tuned.pt2", (image,))
    names = [site.name for site in exported_sites(module, tmp_path / "model.pt2", (image,))]
    assert [site.name for site in sites] == names
    assert [site.kind for site in sites] == ["relu", "scalar", "prelu"]
    assert sites[2].axis == -3


def test_kept_sites_change_nothing() -> None:
    module, image = Convolutional().train(), torch.randn(4, 3, 6, 6)
    rewritten = rewrite(module, (image,), Form("keep"))
    assert torch.equal(rewritten(image), module(image))
    assert all(isinstance(part, Kept) and part.reason == "as asked" for part in new_parts(rewritten).values())
    rewritten(image).sum().backward()
    assert rewritten.prelu.weight.grad.abs().min() > 0


def test_half_precision_keeps_the_tables() -> None:
    module, image = Convolutional().eval(), torch.randn(4, 3, 6, 6)
    before = rewrite(copy.deepcopy(module).half(), (image.half(),), Form.parse("pwl:32"))
    after = rewrite(module, (image,), Form.parse("pwl:32")).half()
    assert torch.equal(before(image.half()), after(image.half()))
    assert (after(image.half()) - module.half()(image.half())).abs().max() <= 0.02


def test_a_glu_is_written_out(tmp_path: Path) -> None:
    module, x = nn.Sequential(nn.Linear(8, 16), nn.GLU(), nn.Linear(8, 8)), torch.randn(2, 8)
    rewritten = rewrite(module, (x,), Form.parse("pwl:32"))
    assert list(new_parts(rewritten)) == ["1"]
    (site,) = exported_sites(rewritten, tmp_path / "tuned.pt2", (x,))
    assert site.name == "1"
    assert (rewritten(x) - module(x)).abs().max() <= 0.01


def test_layers_that_torch_would_fuse() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        rewritten = rewrite(layer, (x,), Form.parse("pwl:32"))
        assert (rewritten(x) - layer(x)).abs().max() <= 0.01
    assert [str(part) for part in new_parts(rewritten).values()] == [
        "PiecewisePolynomial(pwl:32: 32 segments of degree 1)"
    ]


def test_a_copy_is_a_module_of_its_own() -> None:
    rewritten = rewrite(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), (torch.zeros(2, 4),), PWL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says about its own code
        other = copy.deepcopy(rewritten).train()
    x = torch.randn(3, 4)
    assert torch.equal(other(x), rewritten(x))
    nn.init.zeros_(other.get_parameter("2.bias"))
    assert not torch.equal(other(x), rewritten(x))


# --- errors ---


def test_a_form_that_cannot_be_had() -> None:
    module, x = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 4)), torch.zeros(2, 4)
    with pytest.raises(ActxError, match="site 1 cannot take the form hardswish"):
        rewrite(module, (x,), {"1": Form.parse("hardswish")})
    (part,) = new_parts(rewrite(module, (x,), Form.parse("hardswish"))).values()
    assert isinstance(part, Kept)
    assert part.reason.startswith("kept: hardswish diverges from sigmoid")


def test_a_module_that_torch_cannot_export() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() if x.sum() > 0 else x

    with pytest.raises(ActxError, match=r"torch.export cannot turn the module into a graph"):
        rewrite(Branching(), (torch.ones(2, 4),), PWL)
