"""Numbers and names as the report writes them."""

from __future__ import annotations

import decimal
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from actx.exporter.errors import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from actx.exporter.manifest import EngineEntry

NOT_MEASURED = "not measured"
_LONGEST_NAME = 90  # letters of a name in a table


def number(value: float | str | None, digits: int = 4) -> str:
    """Return a number in four digits; infinities are texts in the manifest."""
    if value is None:
        return NOT_MEASURED
    return value if isinstance(value, str) else f"{value:.{digits}g}"


def bound(value: float) -> str:
    """Return an upper bound in four digits, rounded up."""
    with decimal.localcontext(prec=4, rounding=decimal.ROUND_CEILING):
        return f"{float(+decimal.Decimal(value)):.4g}"


def signed(value: float | str | None) -> str:
    """Return a number in three digits, with its sign."""
    return number(value) if value is None or isinstance(value, str) else f"{value:+.3g}"


def milliseconds(value: float | str | None) -> str:
    """Return milliseconds in microseconds' precision."""
    return number(value) if value is None or isinstance(value, str) else f"{value:.3f}"


def percent(value: float | str | None) -> str:
    """Return a share."""
    return number(value) if value is None or isinstance(value, str) else f"{100 * value:.1f} %"


def decibels(value: float | str | None) -> str:
    """Return a signal-to-noise ratio; infinite is no noise."""
    if value == "inf":
        return "no noise"
    return number(value) if value is None or isinstance(value, str) else f"{value:.1f} dB"


def mebibytes(value: float | None) -> str:
    """Return a size."""
    return NOT_MEASURED if value is None else f"{value / 2**20:.1f} MiB"


def size(value: float | None) -> str:
    """Return the size of a file, in KiB below 1 MiB."""
    return mebibytes(value) if value is None or value >= 2**20 else f"{value / 2**10:.1f} KiB"


def short(name: object) -> str:
    """Return a name on one line, control characters escaped, the middle of a long one left out."""
    return one_line(str(name), _LONGEST_NAME)


def whole(name: object) -> str:
    """Return all of a name, control characters escaped."""
    return printable(str(name))


def code(text: object) -> str:
    """Return a text as a code span of a Markdown table's cell (GitHub Flavored Markdown, 6.1 and 4.10)."""
    flat = short(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def plain(text: object) -> str:
    """Return a text in which Markdown sees no markup: punctuation is escaped (GitHub Flavored Markdown, 6.1)."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&@])", r"\\\1", one_line(str(text)))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested facts as one level, by dotted names; empty ones are left out."""
    return dict(_flat(values, prefix))


def conditions(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a latency was measured in with one line for each thing that was told of the machine in the rounds."""
    fared = runtime.get("conditions")
    if fared is None:
        return dict(runtime)
    told = [_told(stage) for stage in (fared["before"], *fared["during"], fared["after"])]
    spans = {
        name: _span([value for one in told for value in one.get(name, ())]) for name in dict.fromkeys(chain(*told))
    }
    return {**runtime, "conditions": spans}


def _told(stage: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what was told at one moment, as lists by name."""
    found: dict[str, list[Any]] = {}
    for name, value in stage.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": one for inner, one in _told(value).items()}
        elif value is not None:
            found[name] = value if isinstance(value, list) else [value]
    return found


def _span(values: Sequence[Any]) -> str:
    """Return the least and the greatest of numbers, or what other values there are."""
    if any(isinstance(value, str | bool) for value in values):
        return ", ".join(dict.fromkeys(map(str, values)))
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield from ((f"{prefix}{name}", ", ".join(map(_fact, value))) for _ in value[:1])
        elif value is not None:
            yield f"{prefix}{name}", _fact(value)


def _fact(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def engine(entry: EngineEntry) -> dict[str, str]:
    """Return what the builder said of an engine, but for its inputs and the command that have a place of their own."""
    kept = {name: fact for name, fact in entry.facts.items() if name not in {"bytes", "command", "inputs", "shapes"}}
    return {"file": entry.file, "size": size(entry.facts.get("bytes")), **flat(kept)}


FILTERS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        number,
        signed,
        milliseconds,
        percent,
        decibels,
        mebibytes,
        short,
        whole,
        code,
        plain,
        flat,
        conditions,
        engine,
        bound,
    )
}
