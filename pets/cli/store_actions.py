"""Arguments that several commands have: MODEL, --store, actions on a store."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pets.store import resolve_store

__all__ = ["MODEL_HELP", "add_store", "store_actions"]

MODEL_HELP = "model folder, DATASET@ALIAS, data set (its champion), run, or hf://org/name"


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --store to a command."""
    store = resolve_store(None)
    parser.add_argument("--store", default=store, help=f"path or URL (default: {store})")


def store_actions(parser: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """Return `add(name, summary)`, which adds a subcommand with --store and returns its parser."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=summary, description=summary)
        add_store(own)
        return own

    return add
