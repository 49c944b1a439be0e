"""Subcommands with a --store argument."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["store_actions"]


def store_actions(
    parser: argparse.ArgumentParser, store: str
) -> Callable[[str, str], argparse.ArgumentParser]:
    """Return `add(name, summary)`, which adds a subcommand with --store and returns its parser.

    Args:
        parser: Parser of the command.
        store: Default of --store.
    """
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=summary, description=summary)
        own.add_argument("--store", default=store, help=f"path or URL (default: {store})")
        return own

    return add
