"""`pets datasets`: the versions in a store, listed, shown, compared, verified and swept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from pets.cli.store_actions import store_actions
from pets.cli.tables import print_table
from pets_core import storage
from pets_core.data.versions import Difference, choose_version, diff, list_versions, verify
from pets_core.errors import PetsError
from pets_core.maintenance.retention import collect_garbage, data_sets_needed
from pets_core.ratings.records import RatingsManifest
from pets_core.ratings.versions import (
    RatingsDifference,
    diff_ratings,
    list_ratings,
    verify_ratings,
)
from pets_core.records.dataset import DatasetManifest

__all__ = ["add_commands", "run_command", "show_manifest"]

AnyManifest = DatasetManifest | RatingsManifest

_MIB = 1 << 20
_SHOWN_IDS = 10
_WHICH = "data set (its newest version), or the first digits of a version's fingerprint"


def add_commands(parser: argparse.ArgumentParser, store: str) -> None:
    """Add the subcommands to the parser of `pets datasets`.

    Args:
        parser: Of `pets datasets`.
        store: Default of --store.
    """
    add = store_actions(parser, store)
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
    check = add(
        "verify", "read every photo, or file of ratings, of a version again; exits 1 on a fault"
    )
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


def _versions(store: str) -> list[AnyManifest]:
    """Return all versions of photos and of ratings, oldest first."""
    found: list[AnyManifest] = [*list_versions(store), *list_ratings(store)]
    return sorted(found, key=lambda m: (m.created_at, m.fingerprint))


def _find(store: str, wanted: str) -> AnyManifest:
    return choose_version(_versions(store), store, wanted)


def _list(arguments: argparse.Namespace) -> None:
    versions = _versions(arguments.store)[::-1]
    if arguments.json:
        print(json.dumps([m.model_dump(mode="json") for m in versions], indent=2))
    elif not versions:
        print(f"no data set in {arguments.store}")
    else:
        print_table(
            ["data set", "version", "made (UTC)", "samples", "classes", "MiB", "left out"],
            (
                [m.name, m.fingerprint, m.created_at[:19].replace("T", " "), *_contents(m)]
                for m in versions
            ),
        )  # fmt: skip


def _show(arguments: argparse.Namespace) -> None:
    manifest = _find(arguments.store, arguments.version)
    if arguments.json:
        print(manifest.model_dump_json(indent=2))
    elif arguments.files:
        files = _files(manifest)
        if arguments.files not in files:
            raise PetsError(f"--files {arguments.files}: there are {', '.join(files)}")
        print("\n".join(files[arguments.files]))
    elif isinstance(manifest, RatingsManifest):
        _show_ratings(manifest)
    else:
        show_manifest(manifest)


def _files(manifest: AnyManifest) -> dict[str, list[str]]:
    """Return the URLs of the files of each split."""
    if isinstance(manifest, RatingsManifest):
        return {
            split: [storage.join(manifest.url, file.path)]
            for split, file in manifest.splits.items()
        }
    return {
        split: [manifest.shard_url(shard) for shard in info.shards]
        for split, info in manifest.splits.items()
    }


def _show_ratings(manifest: RatingsManifest) -> None:
    low, high = manifest.y_range
    print(f"{manifest.name} {manifest.fingerprint}, made {manifest.created_at[:19]} UTC")
    print(f"from     {manifest.source_url}\nat       {manifest.url}")
    print(
        f"ratings  of {manifest.num_users} users and {manifest.num_items} items, {low:g} to "
        f"{high:g}, mean {manifest.mean:.3f}\n"
    )
    print_table(
        ["split", "ratings", "cold users", "cold items"],
        ([split, file.num_rows, file.num_cold_users, file.num_cold_items]
         for split, file in manifest.splits.items()),
    )  # fmt: skip


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
    old, new = (_find(arguments.store, wanted) for wanted in (arguments.old, arguments.new))
    if isinstance(old, RatingsManifest) and isinstance(new, RatingsManifest):
        difference: Difference | RatingsDifference = diff_ratings(old, new)
    elif isinstance(old, DatasetManifest) and isinstance(new, DatasetManifest):
        difference = diff(old, new)
    else:
        raise PetsError(
            f"{arguments.old} and {arguments.new}: one is of ratings and the other of photos: give "
            "two versions of one data set"
        )
    if arguments.json:
        print(json.dumps(difference._asdict(), indent=2))
        return
    for what, ids in difference._asdict().items():
        more = f", and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        print(f"{what:10} {len(ids):8}  {', '.join(ids[:_SHOWN_IDS])}{more}".rstrip())


def _verify(arguments: argparse.Namespace) -> None:
    manifest = _find(arguments.store, arguments.version)
    faults = []
    checked = (
        verify_ratings(manifest) if isinstance(manifest, RatingsManifest) else verify(manifest)
    )
    for file, fault in checked:
        print(f"{'damaged' if fault else 'good':8} {file.path}", flush=True)
        if fault:
            faults.append(fault)
            print(f"         {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    samples = "ratings" if isinstance(manifest, RatingsManifest) else "photos"
    print(f"{_num_rows(manifest)} {samples} are what the manifest says")


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


def _contents(manifest: AnyManifest) -> list[object]:
    """Return samples, classes, MiB and files left out."""
    if isinstance(manifest, RatingsManifest):
        sizes = (int(info.get("size") or 0) for info in storage.list_folder(manifest.url).values())
        return [_num_rows(manifest), "", sum(sizes) // _MIB, ""]
    num_bytes = sum(s.num_bytes for info in manifest.splits.values() for s in info.shards)
    return [manifest.num_rows, len(manifest.classes), num_bytes // _MIB, manifest.num_quarantined]


def _num_rows(manifest: AnyManifest) -> int:
    return sum(info.num_rows for info in manifest.splits.values())
