"""Arguments that several commands have: MODEL, --store, actions on a store."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pets.store import resolve_store

__all__ = ["MODEL_HELP", "add_store", "run_command", "store_actions"]

Handler = Callable[[argparse.Namespace], None]

MODEL_HELP = "model folder, DATASET@ALIAS, data set (its champion), run, or hf://org/name"


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --store to a command."""
    store = resolve_store(None)
    parser.add_argument("--store", default=store, help=f"path or URL (default: {store})")


def store_actions(
    parser: argparse.ArgumentParser,
) -> Callable[[str, str, Handler], argparse.ArgumentParser]:
    """Return `add(name, summary, handler)`.

    It adds a subcommand with --store, which `run_command` runs by its handler, and returns the
    parser of the subcommand.
    """
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str, handler: Handler) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=summary, description=summary)
        own.set_defaults(handler=handler)
        add_store(own)
        return own

    return add


def run_command(arguments: argparse.Namespace) -> None:
    """Run a parsed subcommand.

    Raises:
        PetsError: The run, model or data set does not exist, or an argument is invalid.
    """
    arguments.handler(arguments)
