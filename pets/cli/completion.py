"""`pets completion`: print a script that completes commands and settings in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module

import shtab

from pets.cli.commands import COMMANDS
from pets.cli.flow_command import add_flow_arguments, settings_class
from pets.cli.groups import choices
from pets.cli.join import add_join_arguments
from pets.cli.parser import Parser

__all__ = ["add_arguments", "full_parser", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets completion` to its parser."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="shell to write it for")


def run_command(arguments: argparse.Namespace) -> None:
    """Print the script."""
    print(shtab.complete(full_parser(), arguments.shell))


def full_parser() -> argparse.ArgumentParser:
    """Return one parser with the arguments of all commands."""
    parser = argparse.ArgumentParser(prog="pets")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", parser_class=Parser)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary)
        if command.flow:
            add_flow_arguments(name, own)
            _complete_choices(own, choices(settings_class(name)))
        elif name == "join":
            add_join_arguments(own)
        else:
            import_module(f"pets.cli.{name}").add_arguments(own)
        _complete_files(own)
    return parser


def _complete_choices(parser: argparse.ArgumentParser, found: Mapping[str, list[str]]) -> None:
    """Let settings with a list of names complete these. The parser of a command has no choices."""
    for action in parser._actions:
        action.choices = found.get(action.dest, action.choices)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Let every argument without choices complete paths."""
    for action in parser._actions:
        if action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
