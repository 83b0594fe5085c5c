"""Replace the activations of a torch module by forms that it can be trained with, and that the next export finds again.

1. torch.export turns the module, in evaluation mode, into a graph of torch ops in which the weights keep their names.
2. The graph becomes ONNX as in `load`; lift finds the sites there, and choose fits their forms.
3. Each site is found again in the graph of torch ops, by the record that torch keeps of what an ONNX value came from. What was
   found is run, and must give the values of the site's function.
4. Its ops are replaced by one module that has the site's name.
5. Dropout and batch norm become modules too, so that `train` and `eval` work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actx.exporter.choose import KEEP, choose
from actx.exporter.errors import ActxError
from actx.exporter.fitting import Form
from actx.exporter.lift import ScalarFunction, lift
from actx.exporter.rewriting.activation import Kept, PiecewisePolynomial
from actx.exporter.rewriting.calls import call_instead
from actx.exporter.rewriting.modes import restore_modes
from actx.exporter.rewriting.program import Program
from actx.exporter.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import fx, nn

    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.choose import Choice
    from actx.exporter.rewriting.program import Place

__all__ = ["rewrite"]


def rewrite(
    module: nn.Module,
    args: tuple[Any, ...],
    forms: Form | Mapping[str, Form],
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    statistics: Mapping[str, SiteStatistics] | None = None,
    fold: bool = True,
) -> nn.Module:
    """Return a copy of the module in which the sites have other forms.

    It is differentiable, has the state dict of the module and its mode, and its sites are the same modules by name: a
    `PiecewisePolynomial` where the form was fitted, a `Kept` with the reason where the site is kept. Exporting it again finds
    the same sites with these functions. It takes its inputs as they are given here, by place or by name.

    Args:
        module: what torch.export can turn into a graph. It is not changed.
        args: its positional inputs, as for torch.export; with a batch of at least 2, because torch takes 1 for fixed.
        forms: for all sites, or by site name or pattern (of several that match, the last one counts; other sites are kept).
        kwargs: its inputs by name.
        dynamic_shapes: sizes that may vary, as for torch.export; None is the first one of every tensor, as far as the module
            allows it. Other sizes are fixed to those of the inputs.
        statistics: observed ranges by site name, as `inspect` gives them, for functions without asymptotes.
        fold: whether hardswish may have a slope.

    Raises:
        ActxError: torch cannot export the module, a form cannot be had, or a site is only a part of a torch op.
        UsageError: a pattern matches no site.
    """
    program = Program(module, args, kwargs, dynamic_shapes)
    form, pins = (forms, None) if isinstance(forms, Form) else (KEEP, forms)
    # PolyNorm and mixtures are torch's own ops already: what a table would replace in training is scalar.
    sites = [site for site in lift(program.model).sites if isinstance(site.function, ScalarFunction)]
    choices = choose(sites, find_target("onnx"), form=form, pins=pins, statistics=statistics, fold=fold)
    places = [(choice, program.find(choice.site)) for choice in choices]
    rewritten = program.module
    for choice, place in reversed(places):  # the output of one may be the input of the next
        _replace_site(rewritten, choice, place)
    restore_modes(rewritten, program.original)
    rewritten.graph.lint()
    rewritten.recompile()
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in rewritten.named_modules():
        part.training = modes.get(name, module.training)
    return rewritten


def _replace_site(root: fx.GraphModule, choice: Choice, place: Place | None) -> None:
    if place is None:
        if choice.fit is None:
            return
        raise ActxError(
            f"site {choice.site.name} is only a part of an op of torch",
            note="a part of an op cannot be replaced",
            remedy="Write the op out in the module, or keep the site.",
        )
    if choice.fit is None:
        kept = Kept(place.body(), choice.reason)
        call_instead(root, place.output, choice.site.name, kept, place.input, *place.parameters)
    else:
        piecewise = PiecewisePolynomial(choice.form, choice.fit.spline)
        call_instead(root, place.output, choice.site.name, piecewise, place.input)
    for node in reversed(place.nodes):
        if not node.users:
            root.graph.erase_node(node)
