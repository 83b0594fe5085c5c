"""The `actx` command and the one place where errors become messages and exit codes.

Exit codes: 0 ok, 1 error, 2 usage, 3 a stated requirement missed, 4 target not available here.
"""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

from actx.cli import build, check, compare, demo, export, fit, inspect, profile, report, targets

# What only the machine, or who names a file, can mend.
OF_THE_MACHINE = frozenset(
    {errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE}
)
INTERRUPTED = 130  # as typer ends where the user presses Ctrl-C

app = typer.Typer(
    name="actx",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Rewrite a trained model's activations into forms the device runs fast, export it, and prove the result.",
)
for verb in (inspect, export, build, check, profile, compare, report, fit, targets, demo):
    app.command(verb.__name__.rpartition(".")[2], epilog=verb.EXAMPLE)(verb.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"actx {importlib.metadata.version('actx')}\n{_kernels()}")
        raise typer.Exit


def _kernels() -> str:
    """Say whether the CPU kernels were built, and for what."""
    from actx.custom_ops import cpu  # noqa: PLC0415 - the other commands, --help among them, start without numpy

    try:
        library = cpu.load()
    except cpu.KernelsUnavailable as error:
        return f"no CPU kernels: {error}"
    return f"CPU kernels: {', '.join(library.isas)} ({library.path})"


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is cleaned up
    sys.exit(run())


def run() -> int:
    """Run the command line and return the exit code; every error is at most three lines on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in a model may have letters that a terminal lacks
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the one funnel
        return _print_error(error)
    if code == INTERRUPTED:
        typer.echo("Interrupted: no bundle is left half written.", err=True)
    return code if isinstance(code, int) else 0


def _print_error(error: Exception) -> int:
    from actx.exporter.errors import ActxError, one_line  # noqa: PLC0415 - the help needs nothing of the library

    if os.environ.get("ACTX_DEBUG") == "1":
        import traceback  # noqa: PLC0415

        traceback.print_exception(error)
    if isinstance(error, ActxError):
        typer.echo(f"Error: {error}", err=True)
        return error.exit_code
    if isinstance(error, MemoryError):
        typer.echo(
            f"Error: out of memory\nNote: {one_line(str(error))}\nTry a smaller --batch-size.",
            err=True,
        )
        return 1
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        typer.echo(f"Error: {one_line(f'{error.strerror}: {error.filename}')}", err=True)
        return 1
    if hasattr(error, "format_message"):  # of the command line itself: typer has no public name for all of these
        return _print_usage(error)
    typer.echo(f"Error: {type(error).__name__}: {one_line(str(error))}", err=True)
    typer.echo(
        "Note: this is not an error that actx expects.\nRun again with ACTX_DEBUG=1 for the traceback.", err=True
    )
    return 1


def _print_usage(error: Any) -> int:
    """Say what is wrong with the command line; without any arguments, the message is the help itself."""
    message = error.format_message().rstrip()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "actx"
    if "\n" in message:
        typer.echo(message, err=True)
    else:
        typer.echo(f"Error: {message[:1].lower()}{message[1:].rstrip('.')}\nSee {command} --help.", err=True)
    return int(error.exit_code)


if __name__ == "__main__":
    main()
