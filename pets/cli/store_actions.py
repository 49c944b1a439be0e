"""Arguments of the commands that read a store."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

__all__ = ["add_store", "default_store", "store_actions"]


def default_store() -> str:
    """Return the store of the environment, or the default of the setting."""
    from pets_core.config.pipeline import PipelineConfig

    return os.environ.get("PETS_STORE", PipelineConfig().store)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add --store to a command."""
    store = default_store()
    parser.add_argument("--store", default=store, help=f"path or URL (default: {store})")


def store_actions(parser: argparse.ArgumentParser) -> Callable[[str, str], argparse.ArgumentParser]:
    """Return `add(name, summary)`, which adds a subcommand with --store and returns its parser."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=summary, description=summary)
        add_store(own)
        return own

    return add
