"""`pets gc`: list or remove what a store no longer needs."""

from __future__ import annotations

import argparse

from pets.cli.store_actions import add_store
from pets.cli.tables import add_json, print_json, print_table
from pets_core.errors import PetsError
from pets_core.maintenance.retention import (
    collect_garbage,
    data_sets_needed,
    find_old,
    remove_old,
)

__all__ = ["add_arguments", "run_command"]

_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets gc` to its parser."""
    add_store(parser)
    parser.add_argument(
        "--keep-days", type=float, default=90.0, metavar="N",
        help="keep runs whose folder changed within the last N days (default: 90)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-versions", type=int, metavar="N",
        help="number of newest versions to keep per data set (default: all)",
    )  # fmt: skip
    parser.add_argument("--delete", action="store_true", help="remove instead of listing")
    add_json(parser)


def run_command(arguments: argparse.Namespace) -> None:
    """List or remove old runs, unneeded checkpoints and unreferenced data files.

    Raises:
        PetsError: An argument is out of range.
    """
    store, days, versions = arguments.store, arguments.keep_days, arguments.keep_versions
    if not days >= 1:
        raise PetsError(f"--keep-days = {days:g}: must be at least 1")
    if versions is not None and versions < 1:
        raise PetsError(f"--keep-versions = {versions}: must be at least 1. Omit it to keep all")
    found = find_old(store, days)
    if arguments.delete:
        found = remove_old(store, found)
    run_ids = {item.run_id for item in found if item.run_id}
    in_use = data_sets_needed(store, without=run_ids)
    found += collect_garbage(store, keep=versions or 0, delete=arguments.delete, in_use=in_use)
    if arguments.json:
        print_json([item._asdict() for item in found])
        return
    if found:
        rows = ([f"{item.num_bytes / _MIB:.1f}", item.url, item.reason] for item in found)
        print_table(["MiB", "item", "reason"], rows)
    size = sum(item.num_bytes for item in found) / _MIB
    done = "removed" if arguments.delete else "to remove (use --delete)"
    print(f"{len(found)} items, {size:.1f} MiB {done}")
