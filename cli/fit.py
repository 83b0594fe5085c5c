"""`actx fit`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actx.cli import options

if TYPE_CHECKING:
    from actx.custom_ops import Activation
    from actx.exporter.fitting import Fit

EXAMPLE = "Example: actx fit gelu --form pwl:16 --plot gelu.svg"


def command(
    activation: Annotated[
        str, typer.Argument(metavar="ACTIVATION", help="A name of the catalogue, such as gelu or mish.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--form",
            metavar="FORM",
            autocompletion=options.complete_form,
            help="relu, hardswish, pwl:K, poly:N, spline:KxD.",
        ),
    ] = "pwl:16",
    interval: Annotated[
        str | None, typer.Option("--range", metavar="LOW,HIGH", help="Where it must hold. Without it: everywhere.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw both curves and the error: .png or .svg.")
    ] = None,
    activations: options.Activations = None,
    json: options.Json = False,
) -> None:
    """Fit a form to an activation and print it with its error."""
    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter import fit  # noqa: PLC0415
    from actx.exporter.errors import ActxError  # noqa: PLC0415

    options.register_activations(activations)
    function = _find(activation)
    parsed = options.parse_form(form)
    assert parsed is not None
    found = fit(function, parsed, interval=_interval(interval))
    if plot is not None:
        from actx.exporter.fitting.plot import draw  # noqa: PLC0415

        try:
            draw(found, function, activation, plot)
        except OSError as error:
            raise ActxError(f"cannot write {plot}", note=str(error), remedy="Check the path.") from error
    if json:
        printing.print_json(_to_dict(activation, found, plot))
    else:
        _print(activation, found, plot)


def _find(name: str) -> Activation:
    from actx.custom_ops import ACTIVATIONS, REGISTERED  # noqa: PLC0415
    from actx.exporter.errors import UsageError  # noqa: PLC0415

    known = ACTIVATIONS | REGISTERED
    if name not in known:
        raise UsageError(
            f"no activation is named {name!r}",
            note=f"the catalogue has {', '.join(known)}",
            remedy="Choose one of these.",
        )
    return known[name]


def _interval(text: str | None) -> tuple[float, float] | None:
    from actx.exporter.errors import UsageError  # noqa: PLC0415

    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--range {text!r} is not LOW,HIGH", remedy="Write for example --range=-8,8.") from error
    return low, high


def _to_dict(name: str, found: Fit, plot: Path | None) -> dict[str, Any]:
    ratio = found.ratio
    return {
        "activation": name,
        "form": str(found.form),
        "max_error": _finite(found.max_error),
        "at": _finite(found.at),
        "interval": None if math.isinf(found.interval[0]) else list(found.interval),
        "proved": None
        if found.certificate is None
        else {"error": found.certificate.error, "interval": list(found.certificate.interval)},
        "tails": list(found.tail_degrees),
        "law": found.law,
        "ratio_to_law": _finite(ratio) if isinstance(ratio, float) else ratio,
        "slope": found.slope,
        "knots": found.spline.knots.tolist(),
        "coefficients": found.spline.coefficients.tolist(),
        "origins": found.spline.origins.tolist(),
        "plot": None if plot is None else str(plot),
    }


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _print(name: str, found: Fit, plot: Path | None) -> None:
    from actx.cli import printing  # noqa: PLC0415

    where = "everywhere" if math.isinf(found.interval[0]) else f"on [{found.interval[0]:g}, {found.interval[1]:g}]"
    ratio = found.ratio
    law = (
        ""
        if ratio is None
        else f", {ratio} "
        if isinstance(ratio, str)
        else f", {ratio:.3f} of the free-knot law {found.law:.3g}"
    )
    slope = "" if found.slope is None else f", slope {found.slope:.6g}"
    spline = found.spline
    title = f"{name} as {found.form}: {spline.segments} segments of degree {spline.degree}{slope}"
    ends = ["-inf", *(f"{knot:.7g}" for knot in spline.knots), "inf"]
    rows = [
        [
            f"{ends[i]} .. {ends[i + 1]}",
            f"{spline.origins[i] + 0.0:.7g}",
            "  ".join(f"{c + 0.0:.7g}" for c in spline.coefficients[i]),
        ]
        for i in range(spline.segments)
    ]
    printing.print_table(title, ("segment", "origin", "coefficients, ascending powers of x - origin"), rows)
    printing.print_line(f"max error {where}: {found.max_error:.4g} at x = {found.at:.4g}{law}")
    printing.print_line(_proof(found))
    if plot is not None:
        printing.print_line(f"plot: {plot}")


def _proof(found: Fit) -> str:
    from actx.cli import printing  # noqa: PLC0415
    from actx.exporter.reporting.words import bound  # noqa: PLC0415

    if found.certificate is None:
        return "proved: nothing, no bound on the error was found"
    low, high = found.certificate.interval
    tails, error = printing.tails(found.tail_degrees), bound(found.certificate.error)
    beyond = f"tails: {tails}" if tails else "nothing is known beyond it"
    return f"proved: at most {error} for every float32 in [{low:.9g}, {high:.9g}]; {beyond}"
