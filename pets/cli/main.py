"""Command-line interface, `pets`: choose the command, print its errors."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from pets.cli.commands import COMMANDS
from pets.cli.exit_codes import FAILED, INTERRUPTED, INVALID, TERMINATED, print_error
from pets.cli.flow_start import set_prefect_defaults
from pets.cli.parser import Parser, command_parser
from pets_core.errors import PetsError, TransferError

__all__ = ["main"]

_EPILOG = """pets COMMAND --help (or pets help COMMAND) shows examples and settings.

exit codes:
  0    done
  1    failed
  2    an argument, a setting or the input is invalid
  3    the model did not pass the gate (run, evaluate and collab with --gate.promote)
  130  stopped by Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exits with a code of `pets.cli.exit_codes` unless it succeeds."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As on Ctrl-C, exit handlers stop the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    set_prefect_defaults()
    try:
        _run_command(arguments)
    except PetsError as error:
        code = FAILED if isinstance(error, TransferError) else INVALID
        sys.exit(print_error(str(error), code))
    except BrokenPipeError:
        # The reader, such as head, has what it needs. Python would write at exit again.
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _run_command(arguments: list[str]) -> None:
    if arguments[:1] == ["help"]:
        # "pets help run" is the same as "pets run --help".
        arguments = [*arguments[1:2], "--help"]
    name = _main_parser().parse_args(arguments[:1]).command
    parser = command_parser(name)
    if COMMANDS[name].flow:
        from pets.cli.flow_command import run_flow

        run_flow(name, parser, arguments[1:])
        return
    if name == "join":
        from pets.cli.join import run_join

        run_join(parser, arguments[1:])
        return
    module = import_module(f"pets.cli.{name}")
    module.add_arguments(parser)
    module.run_command(parser.parse_args(arguments[1:]))


def _main_parser() -> Parser:
    parser = Parser(
        prog="pets",
        description="Fine-tune image models with Prefect flows.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("pets-pipeline"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, description=command.summary, add_help=False)
    return parser


if __name__ == "__main__":
    main()
