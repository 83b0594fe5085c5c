"""Decide which gated FFNs are packed.

1. A mode is for the whole model, or for single sites by name or pattern; of several that match, the last one counts. An FFN has
   the names of both its factors.
2. ``keep`` leaves the product as it is.
3. Of halves of one value both other modes read the value itself, because that only takes copies out.
4. ``pack`` packs two layers wherever that can be done. What cannot be packed is kept, with the reason; if it was named by a
   pattern, that is an error.
5. ``auto`` packs two layers only where that is measured to be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from actx.exporter.choose import listed, matches
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.ffn.halves import Halves
from actx.exporter.ffn.product import NO_GATE, Product, Products, Refusal

if TYPE_CHECKING:
    import onnx_ir as ir

    from actx.exporter.latency import Comparison
    from actx.exporter.lift import Site

Mode: TypeAlias = Literal["auto", "pack", "keep"]
MODES: tuple[Mode, ...] = get_args(Mode)

_PACKED_ALREADY = "the source has both factors in one value"


@dataclass(frozen=True)
class Measured:
    """What packing is worth.

    Attributes:
        comparison: of the FFN packed with the FFN as it is; None where it was not measured.
        reason: why it was not.
    """

    comparison: Comparison | None
    reason: str = ""


# Called with a product of two layers.
Measure: TypeAlias = Callable[[Product], Measured]


@dataclass(frozen=True)
class Decision:
    """What becomes of one gated FFN.

    Attributes:
        sites: the names of its factors that are sites, the gate first.
        mode: what was asked for.
        packed: whether both factors are read from one value.
        reason: why, or why not.
        measured: what `auto` went by.
    """

    sites: tuple[str, ...]
    mode: Mode
    packed: bool
    reason: str
    measured: Comparison | None = None


def parse_mode(text: str) -> Mode:
    """Read a mode.

    Raises:
        UsageError: it is none.
    """
    for mode in MODES:
        if text == mode:
            return mode
    raise UsageError(
        f"{text!r} is no way to write a gated FFN", note=f"there are {', '.join(MODES)}", remedy="Choose one of these."
    )


def decide(
    model: ir.Model, sites: Sequence[Site], mode: Mode, pins: Mapping[str, Mode], measure: Measure
) -> tuple[Decision, ...]:
    """Return one decision per gated FFN, in the order of their sites.

    Args:
        model: what the sites were lifted from.
        sites: all of them.
        mode: for the whole model.
        pins: modes by site name or pattern.
        measure: what packing is worth, for `auto`.

    Raises:
        UsageError: a pattern matches no site.
        ActxError: an FFN that a pattern names cannot be packed.
    """
    for pattern in pins:
        if not any(matches(site, pattern) for site in sites):
            raise UsageError(
                f"no site is named {pattern!r}",
                note=f"the model has {listed(sites)}",
                remedy="Take a name or pattern from actx inspect.",
            )
    found = _find(model, sites)
    by_name = {site.name: site for site in sites}
    decisions = []
    for names, product in found.items():
        asked = [m for pattern, m in pins.items() if any(matches(by_name[name], pattern) for name in names)]
        decisions.append(_decide(names, product, asked[-1] if asked else mode, measure, pinned=bool(asked)))
    _check_named(sites, pins, decisions)
    return tuple(decisions)


def refusals(model: ir.Model, sites: Sequence[Site]) -> dict[str, str]:
    """Return why a gated FFN cannot be packed, by the name of its first site."""
    found = _find(model, sites)
    return {names[0]: product.reason for names, product in found.items() if isinstance(product, Refusal)}


def _find(model: ir.Model, sites: Sequence[Site]) -> dict[tuple[str, ...], Product | Refusal]:
    """Return the gated products by the names of their sites, each with where its factors come from or why it is not known."""
    products = Products(model.graph, sites)
    others = {site.output: site.name for site in sites}
    found: dict[tuple[str, ...], Product | Refusal] = {}
    for site in sites:
        other = None if site.gate is None else others.get(site.gate.multiplier)
        names = (site.name,) if other is None else (site.name, other)
        try:
            found[names] = products.find(site)
        except Refusal as refusal:
            found[names] = refusal
    second = {name for _, *names in found for name in names}
    return {
        names: product
        for names, product in found.items()
        if names[0] not in second and not (isinstance(product, Refusal) and product.reason == NO_GATE)
    }


def _decide(
    names: tuple[str, ...], product: Product | Refusal, mode: Mode, measure: Measure, *, pinned: bool
) -> Decision:
    why = "pinned" if pinned else "as asked"
    if mode == "keep":  # 2.
        return Decision(names, mode, packed=False, reason=why)
    if isinstance(product, Refusal):
        if pinned and mode == "pack":
            raise ActxError(
                f"the gated FFN of site {names[0]} cannot be packed",
                note=product.reason,
                remedy=f"Leave it as it is: --ffn '{names[0]}=keep'.",
            ) from product
        return Decision(names, mode, packed=False, reason=product.reason)
    if isinstance(product.source, Halves):  # 3.
        return Decision(names, mode, packed=True, reason=_PACKED_ALREADY)
    if mode == "pack":  # 4.
        return Decision(names, mode, packed=True, reason=why)
    measured = measure(product)  # 5.
    if measured.comparison is None:
        return Decision(names, mode, packed=False, reason=f"not measured: {measured.reason}")
    faster = measured.comparison.verdict == "faster"
    verdict = "no difference was measured" if measured.comparison.verdict == "no difference" else ""
    reason = verdict or f"packed it is measured to be {measured.comparison.verdict}"
    return Decision(names, mode, packed=faster, reason=reason, measured=measured.comparison)


def _check_named(sites: Sequence[Site], pins: Mapping[str, Mode], decisions: Sequence[Decision]) -> None:
    """4: raise where all that a pattern names has no gated product."""
    gated = {name for decision in decisions for name in decision.sites}
    for pattern, mode in pins.items():
        named = [site.name for site in sites if matches(site, pattern)]
        if mode == "pack" and not gated.intersection(named):
            raise ActxError(
                f"site {named[0]} is not part of a gated FFN",
                note=NO_GATE,
                remedy="Take a gated site from actx inspect.",
            )


def explanations(decisions: Sequence[Decision]) -> list[str]:
    """Say of what was to be packed, and is not, why; once per reason."""
    reasons: dict[str, list[str]] = {}
    for decision in decisions:
        if decision.mode == "pack" and not decision.packed:
            reasons.setdefault(decision.reason, []).append(decision.sites[0])
    return [
        f"the gated FFN of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} is not packed: {reason}"
        for reason, names in reasons.items()
    ]
