"""The commands that make a bundle again and measure it again, from what was asked for."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from actx.exporter.tensorrt.options import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actx.exporter.manifest import Manifest, RequestEntry


def commands(bundle: str, manifest: Manifest) -> list[str]:
    """Return the command of the export, then those that measure drift and latency; the model is in the current folder.

    What the manifest does not hold is left out: `--input`, `--batch-size`, `--trust`, and rounds.
    """
    request, model = manifest.request, manifest.source.file
    threads = _threads(manifest)
    data = request.held_out or request.data
    common = [model, bundle, *(["--data", data] if data else []), *threads]
    budget = [] if request.max_drift is None else ["--max-drift", f"{request.max_drift:g}"]
    return [
        shlex.join(["actx", "export", model, *_export(request), *threads, "-o", bundle]),
        shlex.join(["actx", "check", *common, "--metric", request.metric, *budget]),
        shlex.join(["actx", "profile", *common]),
    ]


def _threads(manifest: Manifest) -> list[str]:
    """Return the option that was given, where what was measured says which."""
    runtimes = [report.runtime for report in (manifest.latency, *manifest.drift) if report is not None]
    threads = runtimes[0].get("options", {}).get("threads") if runtimes else None
    return ["--threads", str(threads)] if threads else []


def _export(request: RequestEntry) -> list[str]:
    return [word for option, value in _options(request) for word in (option, *([value] if value is not None else []))]


def _options(request: RequestEntry) -> Iterator[tuple[str, str | None]]:
    """Give every option of the export that is not as by default, and its value."""
    texts = {
        "--target": request.target,
        "--quant": request.quant,
        "--calibrator": request.calibrator,
        "--form": request.form,
        "--data": request.data,
        "--held-out": request.held_out,
        "--metric": request.metric,
        "--max-drift": None if request.max_drift is None else f"{request.max_drift:g}",
        "--ffn": None if request.ffn == "auto" else request.ffn,
    }
    yield from ((option, text) for option, text in texts.items() if text is not None)
    yield from (("--site", f"{name}={form}") for name, form in request.sites.items())
    yield from (("--ffn", f"{name}={mode}") for name, mode in request.ffn_sites.items())
    yield from (("--exclude", pattern) for pattern in request.exclude)
    yield from (("--shape", f"{dim}={sizes}") for dim, sizes in request.shapes.items())
    flags = {
        "--no-fold": not request.fold,
        "--even": not request.weighted,
        "--recover": request.recover,
        "--require-int8-sites": request.require_int8_sites,
    }
    yield from ((flag, None) for flag, given in flags.items() if given)
    if request.build:
        yield from BuildOptions.from_dict(request.build).arguments()
