"""The `actx` command and the one place where errors become messages and exit codes.

Exit codes: 0 ok, 1 error, 2 usage, 3 a stated requirement missed, 4 target not available here.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from actx.cli import check, demo, export, fit, inspect, profile

INTERRUPTED = 130

app = typer.Typer(
    name="actx",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rewrite a trained model's activations into forms the device runs fast, export it, and prove the result.",
)
for verb in (inspect, export, check, profile, fit, demo):
    app.command(verb.__name__.rpartition(".")[2], epilog=verb.EXAMPLE)(verb.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"actx {importlib.metadata.version('actx')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run())


def run() -> int:
    """Run the command line and return the exit code; every error is at most three lines on stderr."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing was replaced.", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the one funnel
        return _report(error)
    return 0


def _report(error: Exception) -> int:
    from actx.exporter.errors import ActxError, one_line  # noqa: PLC0415 - the help needs nothing of the library

    if os.environ.get("ACTX_DEBUG") == "1":
        import traceback  # noqa: PLC0415

        traceback.print_exception(error)
    if isinstance(error, ActxError):
        typer.echo(f"Error: {error}", err=True)
        return error.exit_code
    typer.echo(f"Error: {type(error).__name__}: {one_line(str(error))}", err=True)
    typer.echo(
        "Note: this is not an error that actx expects.\nRun again with ACTX_DEBUG=1 for the traceback.", err=True
    )
    return 1


if __name__ == "__main__":
    main()
