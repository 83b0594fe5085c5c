"""`actx targets`."""

from __future__ import annotations

from actx.cli import options

EXAMPLE = "Example: actx targets"


def command(json: options.Json = False) -> None:
    """List the targets and what this machine can do with each.

    What can be built, run and profiled here, with versions, and what to install for the rest.
    """
    from dataclasses import asdict  # noqa: PLC0415

    from actx.cli import printing  # noqa: PLC0415 - the help must answer without the library
    from actx.exporter.targets import TARGETS  # noqa: PLC0415

    found = {name: target.abilities() for name, target in TARGETS.items()}
    if json:
        listed = {
            name: {"summary": TARGETS[name].summary, "quant": list(TARGETS[name].schemes), **asdict(can)}
            for name, can in found.items()
        }
        printing.print_json({"targets": listed})
        return
    rows = [
        [
            name, TARGETS[name].summary, *("no" if why else "yes" for why in (can.build, can.run, can.profile)),
            ", ".join(TARGETS[name].schemes), ", ".join(f"{what} {version}" for what, version in can.versions.items()),
        ]
        for name, can in found.items()
    ]  # fmt: skip
    columns = ("target", "what it is", "build", "run", "profile", "--quant", "versions")
    printing.print_table("Targets, and what this machine does for them", columns, rows)
    for name, can in found.items():
        reasons = dict.fromkeys(why for why in (can.build, can.run, can.profile) if why)
        lines = [*reasons, *([can.install] if can.install else [])]
        if lines:
            printing.print_line(f"{name}: {'. '.join(line.rstrip('.') for line in lines)}.")
