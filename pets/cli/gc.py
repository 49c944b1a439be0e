"""`pets gc`: what a store no longer needs, told first, and removed when asked."""

from __future__ import annotations

import argparse

from pets.cli.tables import print_table
from pets_core.errors import PetsError
from pets_core.maintenance.retention import (
    collect_garbage,
    data_sets_needed,
    find_old,
    remove_old,
)

__all__ = ["add_commands", "run_command"]

_MIB = 1 << 20


def add_commands(parser: argparse.ArgumentParser, store: str) -> None:
    """Add the arguments of `pets gc` to its parser.

    Args:
        parser: Of `pets gc`.
        store: Default of --store.
    """
    parser.add_argument("--store", default=store, help=f"path or URL (default: {store})")
    parser.add_argument(
        "--keep-days", type=float, default=90.0, metavar="N",
        help="keep runs in whose folder something changed since (default: 90)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-versions", type=int, metavar="N",
        help="newest versions to keep of each data set (default: all)",
    )  # fmt: skip
    parser.add_argument("--delete", action="store_true", help="remove, not only list")


def run_command(arguments: argparse.Namespace) -> None:
    """List or remove old runs, checkpoints that nobody needs, and files of no data set.

    Raises:
        PetsError: An argument is out of its bounds.
    """
    store, days, versions = arguments.store, arguments.keep_days, arguments.keep_versions
    if not days >= 1:
        raise PetsError(f"--keep-days = {days:g}: must be at least 1")
    if versions is not None and versions < 1:
        raise PetsError(f"--keep-versions = {versions}: must be at least 1; leave it out for all")
    found = find_old(store, days)
    if arguments.delete:
        found = remove_old(store, found)
    gone = {item.run_id for item in found if item.run_id}
    in_use = data_sets_needed(store, without=gone)
    found += collect_garbage(store, keep=versions or 0, delete=arguments.delete, in_use=in_use)
    if found:
        rows = ([f"{item.num_bytes / _MIB:.1f}", item.url, item.why] for item in found)
        print_table(["MiB", "what", "why"], rows)
    size = sum(item.num_bytes for item in found) / _MIB
    done = "removed" if arguments.delete else "to remove, with --delete"
    print(f"{len(found)} items of {size:.1f} MiB {done}")
