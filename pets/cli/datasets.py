"""`pets datasets`: the versions in a store, listed, shown, compared, verified and swept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from pets.cli.tables import print_table
from pets_core.data.versions import (
    diff,
    find_version,
    list_versions,
    verify,
)
from pets_core.errors import PetsError
from pets_core.maintenance.retention import collect_garbage, data_sets_needed
from pets_core.records.dataset import DatasetManifest

__all__ = ["add_commands", "run_command", "show_manifest"]

_MIB = 1 << 20
_SHOWN_IDS = 10
_WHICH = "data set (its newest version), or the first digits of a version's fingerprint"


def add_commands(parser: argparse.ArgumentParser, store: str) -> None:
    """Add the subcommands to the parser of `pets datasets`.

    Args:
        parser: Of `pets datasets`.
        store: Default of --store.
    """
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=summary, description=summary)
        own.add_argument("--store", default=store, help=f"path or URL (default: {store})")
        return own

    listing = add("list", "all versions, newest first")
    listing.add_argument("--json", action="store_true", help="one JSON array")
    show = add("show", "one version: its splits, what was left out, its files")
    show.add_argument("version", metavar="VERSION", help=_WHICH)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the manifest")
    form.add_argument(
        "--files", metavar="SPLIT", help="only the URLs of this split's Parquet files, a line each"
    )
    compare = add("diff", "what changed from one version to another")
    compare.add_argument("old", metavar="A", help=_WHICH)
    compare.add_argument("new", metavar="B", help=_WHICH)
    compare.add_argument("--json", action="store_true", help="all ids")
    check = add("verify", "read every photo of a version again; exits 1 on a fault")
    check.add_argument("version", metavar="VERSION", help=_WHICH)
    sweep = add("gc", "find files of no version, and old versions; remove them with --delete")
    sweep.add_argument(
        "--keep", type=int, metavar="N", help="newest versions to keep (default: all)"
    )
    sweep.add_argument(
        "--grace-hours", type=float, default=24.0, metavar="H",
        help="leave younger files, which an ingest may be writing (default: 24)",
    )  # fmt: skip
    sweep.add_argument("--delete", action="store_true", help="remove, not only list")


def run_command(arguments: argparse.Namespace) -> None:
    """Run a parsed subcommand.

    Raises:
        PetsError: There is no such version, or an argument is out of its bounds.
    """
    action: Callable[[argparse.Namespace], None] = {
        "list": _list,
        "show": _show,
        "diff": _diff,
        "verify": _verify,
        "gc": _sweep,
    }[arguments.action]
    action(arguments)


def _list(arguments: argparse.Namespace) -> None:
    versions = list_versions(arguments.store)[::-1]
    if arguments.json:
        print(json.dumps([m.model_dump(mode="json") for m in versions], indent=2))
    elif not versions:
        print(f"no data set in {arguments.store}")
    else:
        print_table(
            ["data set", "version", "made (UTC)", "photos", "classes", "MiB", "left out"],
            (
                [m.name, m.fingerprint, m.created_at[:19].replace("T", " "), m.num_rows,
                 len(m.classes), _num_bytes(m) // _MIB, m.num_quarantined]
                for m in versions
            ),
        )  # fmt: skip


def _show(arguments: argparse.Namespace) -> None:
    manifest = find_version(arguments.store, arguments.version)
    if arguments.json:
        print(manifest.model_dump_json(indent=2))
        return
    if arguments.files:
        files = {str(split): info.shards for split, info in manifest.splits.items()}
        if arguments.files not in files:
            raise PetsError(f"--files {arguments.files}: there are {', '.join(files)}")
        print("\n".join(manifest.shard_url(shard) for shard in files[arguments.files]))
        return
    show_manifest(manifest)


def show_manifest(manifest: DatasetManifest) -> None:
    """Print what there is to say of a version."""
    print(f"{manifest.name} {manifest.fingerprint}, made {manifest.created_at[:19]} UTC")
    print(f"from     {manifest.source_url}\nat       {manifest.url}")
    print(f"parent   {manifest.parent or 'none'}\ncontract {manifest.contract_version}\n")
    print_table(
        ["split", "photos", "shards", "MiB", "fewest of a class", "most of a class"],
        (
            [split, info.num_rows, len(info.shards), sum(s.num_bytes for s in info.shards) // _MIB,
             *info.class_range]
            for split, info in manifest.splits.items()
        ),
    )  # fmt: skip
    for title, counts in (
        ("left out", manifest.quarantine_reasons), ("alike", manifest.duplicates),
    ):  # fmt: skip
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        print(f"{title:8} {said or 'none'}")


def _diff(arguments: argparse.Namespace) -> None:
    difference = diff(
        find_version(arguments.store, arguments.old), find_version(arguments.store, arguments.new)
    )
    if arguments.json:
        print(json.dumps(difference._asdict(), indent=2))
        return
    for what, ids in difference._asdict().items():
        more = f", and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        print(f"{what:10} {len(ids):8}  {', '.join(ids[:_SHOWN_IDS])}{more}".rstrip())


def _verify(arguments: argparse.Namespace) -> None:
    manifest = find_version(arguments.store, arguments.version)
    faults = []
    for shard, fault in verify(manifest):
        print(f"{'damaged' if fault else 'good':8} {shard.path}", flush=True)
        if fault:
            faults.append(fault)
            print(f"         {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"{manifest.num_rows} photos are what the manifest says")


def _sweep(arguments: argparse.Namespace) -> None:
    if arguments.keep is not None and arguments.keep < 1:
        raise PetsError(f"--keep = {arguments.keep}: must be at least 1; leave it out to keep all")
    if arguments.grace_hours < 0:
        raise PetsError(f"--grace-hours = {arguments.grace_hours:g}: must be at least 0")
    grace_seconds = arguments.grace_hours * 3600
    found = collect_garbage(
        arguments.store,
        keep=arguments.keep or 0,
        delete=arguments.delete,
        grace_seconds=grace_seconds,
        in_use=data_sets_needed(arguments.store, grace_seconds),
    )
    for item in found:
        print(item.url)
    size = sum(item.num_bytes for item in found) / _MIB
    done = "removed" if arguments.delete else "to remove, with --delete"
    print(f"{len(found)} files of {size:.1f} MiB {done}")


def _num_bytes(manifest: DatasetManifest) -> int:
    return sum(s.num_bytes for info in manifest.splits.values() for s in info.shards)
