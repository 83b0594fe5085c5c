"""Decide the form of every site, and fit it.

1. A form pinned to a site is taken, or the error says why it cannot be.
2. A form for the whole model is taken wherever it can follow the site's function; a site that it would diverge from, or that
   has no asymptotes and no observed range, is kept, with the reason.
3. A row-wise site has one form, exact: `polynorm`. A mixture takes forms whose knots its entries can share.
4. Without a form, what the target runs as one fast op, or what is an `actx::Spline` already, is kept; every other site takes
   the first of the target's own forms that is within `DEFAULT_ERROR`.

A form that was asked for is fitted closer where the data is, but for those of mixtures and of single channels, and those
that are within `DEFAULT_ERROR` everywhere; rule 4 bounds the largest error, wherever it is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from actx.custom_ops import Spline
from actx.exporter.diagnosis import require_bounded
from actx.exporter.errors import ActxError, UsageError
from actx.exporter.fitting import Fit, Form, Proof, fit, fit_together
from actx.exporter.lift import Mixture, PolyNorm, ScalarFunction

if TYPE_CHECKING:
    from actx.exporter.calibrate import SiteStatistics
    from actx.exporter.certificate import Certificate
    from actx.exporter.fitting import Density
    from actx.exporter.lift import Site
    from actx.exporter.targets import Target

Progress: TypeAlias = Callable[[int, int], None]

KEEP = Form("keep")
POLYNORM = Form("polynorm")
DEFAULT_ERROR = 1e-5
# A fit on all of R that is off by more than this gives way to one on the observed range that is so many times finer.
COARSE, MUCH_FINER = 1e-2, 8
# A table of fewer is coarse because it is small, and its outer segments lead far astray beyond the range.
MANY_SEGMENTS = 8
# A per-channel site has one table per distinct channel function, and each is a fit of its own.
MAX_CHANNEL_FITS = 64
# Fits that a process remembers: more than the distinct functions of a model, in a few forms.
MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class Choice:
    """The form of one site.

    Attributes:
        site: the site.
        form: the chosen form; ``keep`` where the site stays as it is.
        fit: the fitted form, None where nothing is fitted: the site is kept, or row-wise.
        reason: why it is kept, or how the form came about.
    """

    site: Site
    form: Form
    fit: Fit | None
    reason: str

    @property
    def rewritten(self) -> bool:
        """Whether the site does not stay as it is."""
        return self.form != KEEP

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the form was fitted; None where it holds everywhere, or nothing was fitted."""
        return None if self.fit is None else self.fit.bounds


def choose(
    sites: Sequence[Site],
    target: Target,
    *,
    form: Form | None = None,
    pins: Mapping[str, Form] | None = None,
    statistics: Mapping[str, SiteStatistics] | None = None,
    fold: bool = True,
    weighted: bool = True,
    progress: Progress | None = None,
) -> tuple[Choice, ...]:
    """Return one choice per site, in order. Equal functions are fitted once.

    Args:
        sites: what lift found.
        target: what it is for.
        form: for the whole model; None leaves it to rule 4.
        pins: forms by site name or pattern (``layers.*.ffn``); of several that match, the last one counts.
        statistics: what was observed by site name, where there is data.
        fold: whether hardswish may have a slope.
        weighted: whether forms are fitted closer where the data is.
        progress: called with the number of sites done and to do.

    Raises:
        UsageError: a pin matches no site.
        ActxError: a pinned form cannot be had.
    """
    for pattern in pins or {}:
        if not any(matches(site, pattern) for site in sites):
            raise UsageError(
                f"no site is named {pattern!r}",
                note=f"the model has {listed(sites)}",
                remedy="Take a name or pattern from actx inspect.",
            )
    fitter = _Fitter(fold=fold, weighted=weighted)
    choices = []
    for site in sites:
        observed = (statistics or {}).get(site.name)
        pinned = [f for pattern, f in (pins or {}).items() if matches(site, pattern)]
        if pinned:
            choices.append(_pinned(fitter, site, pinned[-1], observed))
        elif form is not None:
            choices.append(_uniform(fitter, site, form, observed))
        else:
            choices.append(_default(fitter, site, target, observed))
        if progress is not None:
            progress(len(choices), len(sites))
    return tuple(choices)


def matches(site: Site, pattern: str) -> bool:
    """Tell whether a name or pattern means a site."""
    return site.name == pattern or fnmatchcase(site.name, pattern)


def listed(sites: Sequence[Site]) -> str:
    """Name some sites, for an error."""
    names = [site.name for site in sites[:5]]
    return ", ".join(names) + (f" and {len(sites) - 5} more" if len(sites) > 5 else "") if names else "no sites"


def _pinned(fitter: _Fitter, site: Site, form: Form, observed: SiteStatistics | None) -> Choice:
    """1."""
    if form == KEEP:
        return Choice(site, KEEP, None, "pinned")
    if form == POLYNORM and isinstance(site.function, PolyNorm):
        return Choice(site, POLYNORM, None, "pinned")
    try:
        return Choice(site, form, fitter.fit(site, form, observed), "pinned")
    except ActxError as error:
        raise ActxError(
            f"site {site.name} cannot take the form {form}", note=error.what, remedy=error.remedy
        ) from error


def _uniform(fitter: _Fitter, site: Site, form: Form, observed: SiteStatistics | None) -> Choice:
    """2."""
    if form == KEEP:
        return Choice(site, KEEP, None, "as asked")
    if isinstance(site.function, PolyNorm):
        return Choice(site, POLYNORM, None, "as asked" if form == POLYNORM else _ROWWISE)
    try:
        return Choice(site, form, fitter.fit(site, form, observed), "as asked")
    except ActxError as error:
        return Choice(site, KEEP, None, f"kept: {error.what}")


_ROWWISE = "row-wise: one op, without any error"


def _default(fitter: _Fitter, site: Site, target: Target, observed: SiteStatistics | None) -> Choice:
    """4."""
    if site.spline is not None:
        return Choice(site, KEEP, None, "the source has it as one actx::Spline")
    if site.kind in target.fast:
        return Choice(site, KEEP, None, f"{target.name} runs {site.kind} as one fast op")
    if not target.forms:
        return Choice(site, KEEP, None, f"kept: no form is known to be faster on {target.name}; --form chooses one")
    if isinstance(site.function, PolyNorm):
        return Choice(site, POLYNORM, None, _ROWWISE)
    reason = ""
    for form in target.forms:
        try:
            found = fitter.fit(site, form, observed, evenly=True)
        except ActxError as error:  # a larger table may have the segments that this one lacks
            reason = error.what
            continue
        if found.core_error <= DEFAULT_ERROR:
            return Choice(site, form, found, f"smallest {form.name} within {DEFAULT_ERROR:g}")
        reason = f"{form} is not within {DEFAULT_ERROR:g}"
    return Choice(site, KEEP, None, f"kept: {reason}")


_Key: TypeAlias = "tuple[str, Form, tuple[float, float] | None, bytes, bool]"


class _Fitter:
    """Fits each distinct function once per form and interval, for all exports of a process."""

    _known: ClassVar[OrderedDict[_Key, Fit | ActxError]] = OrderedDict()

    def __init__(self, *, fold: bool, weighted: bool) -> None:
        self._fold, self._weighted = fold, weighted

    def fit(self, site: Site, form: Form, observed: SiteStatistics | None, *, evenly: bool = False) -> Fit:
        """Fit on all of R, or where the tails do not allow that on the observed range; closer where inputs are, or evenly.

        What is coarse on all of R, as of a rational that was trained on a few units around zero, and fine where inputs are, is
        fitted there.

        Raises:
            ActxError: the form cannot be had, or its tails leave the function's.
        """
        density = observed.density if observed is not None and self._weighted and not evenly else None
        try:
            found = self._fit_site(site, form, None, density)
        except ActxError:
            if observed is None:
                raise
            if observed.low == observed.high:
                raise ActxError(
                    f"{site.kind} is fitted where its inputs are, and every input observed is {observed.low:g}",
                    remedy="Give data with inputs that differ.",
                ) from None
            found = self._fit_site(site, form, observed.interval, density)
        if math.isinf(found.max_error):
            raise ActxError(f"{form} diverges from {site.kind}", remedy="Choose another form.")
        if observed is None or found.bounds is not None or found.core_error <= COARSE:
            return found
        if form.segments < MANY_SEGMENTS or observed.low == observed.high:
            return found
        near = self._fit_site(site, form, observed.interval, density)
        return near if near.core_error * MUCH_FINER < found.core_error else found

    def _fit_site(self, site: Site, form: Form, interval: tuple[float, float] | None, density: Density | None) -> Fit:
        function = site.function
        if isinstance(function, PolyNorm):
            raise ActxError(
                f"{form} is no form of a row-wise site",
                note="what it gives depends on the whole row",
                remedy="Choose polynorm or keep.",
            )
        if form == POLYNORM:
            raise ActxError(
                f"{site.kind} is not row-wise", note="polynorm is for sites of that kind", remedy="Choose another form."
            )
        if isinstance(function, Mixture):
            return self._together(function, form, interval)
        if site.axis is None:
            return self._once(function, form, interval, density)
        return self._per_channel(function, site.axis, form, interval)

    def _together(self, mixture: Mixture, form: Form, interval: tuple[float, float] | None) -> Fit:
        """Fit the entries with the same knots."""
        key = (mixture.key, form, interval, b"", False)
        return self._found(key, lambda: _of_entries(fit_together(mixture.entries, form, interval=interval)))

    def _per_channel(
        self, function: ScalarFunction, axis: int, form: Form, interval: tuple[float, float] | None
    ) -> Fit:
        """Fit every distinct channel, evenly: the density is of all channels together. Slopes per channel are not folded."""
        channels = [function.channel(i) for i in range(function.channels or 0)]
        distinct = {channel.key: channel for channel in channels}
        if len(distinct) > MAX_CHANNEL_FITS:
            raise ActxError(
                f"{len(distinct)} channels differ",
                note=f"at most {MAX_CHANNEL_FITS} distinct channels are fitted one by one",
                remedy="Keep the site: --site NAME=keep.",
            )
        fits = {key: self._once(channel, form, interval, None) for key, channel in distinct.items()}
        worst = max(fits.values(), key=lambda found: found.max_error)
        return replace(
            worst,
            spline=_stack([fits[channel.key].spline for channel in channels], axis),
            core_error=max(found.core_error for found in fits.values()),
            exact=all(found.exact for found in fits.values()),
            proof=_proof_of_all(fits.values()),
            slope=None,
        )

    def _once(
        self, function: ScalarFunction, form: Form, interval: tuple[float, float] | None, density: Density | None
    ) -> Fit:
        """Fit one function. What is within `DEFAULT_ERROR` everywhere needs no density: one fit is for all sites of it."""
        if density is not None:
            even = self._once(function, form, interval, None)
            if even.core_error <= DEFAULT_ERROR and math.isfinite(even.max_error):
                return replace(even, rms=density.rms(even.spline(density.places) - function(density.places)))

        def fitted() -> Fit:
            require_bounded(function, interval)
            return fit(function, form, interval=interval, fold=self._fold, density=density)

        return self._found((function.key, form, interval, b"" if density is None else density.key, self._fold), fitted)

    def _found(self, key: _Key, fitted: Callable[[], Fit]) -> Fit:
        if key not in self._known:
            try:
                self._known[key] = fitted()
            except ActxError as error:
                self._known[key] = _alone(error)
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        found = self._known[key]
        if isinstance(found, ActxError):
            raise _alone(found)
        return found


def _alone(error: ActxError) -> ActxError:
    """Return an error without the frames that it was raised in."""
    return type(error)(error.what, note=error.note, remedy=error.remedy)


def _of_entries(fits: Sequence[Fit]) -> Fit:
    """Return the fit of a mixture, which is as good as its worst entry's."""
    worst = max(fits, key=lambda found: found.max_error)
    return replace(
        worst,
        core_error=max(found.core_error for found in fits),
        exact=all(found.exact for found in fits),
        proof=_proof_of_all(fits),
        entries=tuple(found.spline for found in fits),
    )


def _proof_of_all(fits: Iterable[Fit]) -> Proof:
    """Return what is proved of all of them."""
    return Proof(partial(_worst, [found.proof for found in fits]))


def _worst(proofs: Sequence[Proof]) -> Certificate | None:
    proved = [proof.certificate for proof in proofs if proof.certificate is not None]
    return max(proved, key=lambda certificate: certificate.error) if len(proved) == len(proofs) else None


def _stack(splines: Sequence[Spline], axis: int | None) -> Spline:
    """Put one table per channel into one spline: shorter tables are filled with empty segments beyond their last knot."""
    segments, degree = max(s.segments for s in splines), max(s.degree for s in splines)
    padded = [_pad(spline, segments, degree) for spline in splines]
    return Spline(
        np.stack([p[0] for p in padded]), np.stack([p[1] for p in padded]), np.stack([p[2] for p in padded]), axis=axis
    )


def _pad(spline: Spline, segments: int, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    extra = segments - spline.segments
    last = float(spline.knots[-1]) if spline.segments > 1 else 0.0
    beyond = last + (abs(last) + 1) * np.arange(1, extra + 1)
    coefficients = np.pad(spline.coefficients, ((0, 0), (0, degree - spline.degree)))
    return (
        np.concatenate([spline.knots, beyond.astype(np.float32)]),
        np.concatenate([coefficients, np.repeat(coefficients[-1:], extra, axis=0)]),
        np.concatenate([spline.origins, np.repeat(spline.origins[-1:], extra)]),
    )
