"""`pets datasets`: list, show, compare, verify and clean up the versions in a store."""

from __future__ import annotations

import argparse
import sys

from pets.cli.exit_codes import FAILED
from pets.cli.store_actions import run_command, store_actions
from pets.cli.tables import add_json, print_json, print_table
from pets_core import storage
from pets_core.data.versions import choose_version, diff, list_versions, verify
from pets_core.errors import PetsError
from pets_core.maintenance.retention import collect_garbage, data_sets_needed
from pets_core.ratings.records import RatingsManifest
from pets_core.ratings.versions import diff_ratings, list_ratings, verify_ratings
from pets_core.records.dataset import DatasetManifest

__all__ = ["add_arguments", "run_command", "show_manifest"]

AnyManifest = DatasetManifest | RatingsManifest

_MIB = 1 << 20
_SHOWN_IDS = 10
_VERSION_HELP = "name of a data set (newest version) or fingerprint prefix of a version"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `pets datasets`."""
    add = store_actions(parser)
    add_json(add("list", "list all versions, newest first", _list))
    show = add("show", "show one version: splits, quarantined files and duplicates", _show)
    show.add_argument("version", metavar="VERSION", help=_VERSION_HELP)
    output = show.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the manifest")
    output.add_argument(
        "--files", metavar="SPLIT", help="print only the URLs of this split's files, one per line"
    )
    compare = add("diff", "show what changed from one version to another", _diff)
    compare.add_argument("old", metavar="A", help=_VERSION_HELP)
    compare.add_argument("new", metavar="B", help=_VERSION_HELP)
    compare.add_argument("--json", action="store_true", help="print all ids as JSON")
    check = add(
        "verify",
        "check every photo or ratings file of a version; exits with 1 on an error",
        _verify,
    )
    check.add_argument("version", metavar="VERSION", help=_VERSION_HELP)
    add_json(check)
    garbage = add(
        "gc",
        "list unreferenced files and old versions; remove them with --delete",
        _collect_garbage,
    )
    garbage.add_argument(
        "--keep", type=int, metavar="N", help="newest versions to keep (default: all)"
    )
    garbage.add_argument(
        "--grace-hours", type=float, default=24.0, metavar="H",
        help="keep younger files, which an ingest may be writing (default: 24)",
    )  # fmt: skip
    garbage.add_argument("--delete", action="store_true", help="remove instead of listing")
    add_json(garbage)


def _versions(store: str) -> list[AnyManifest]:
    """Return all versions of photos and of ratings, oldest first."""
    found: list[AnyManifest] = [*list_versions(store), *list_ratings(store)]
    return sorted(found, key=lambda m: (m.created_at, m.fingerprint))


def _find_version(store: str, wanted: str) -> AnyManifest:
    return choose_version(_versions(store), store, wanted)


def _list(arguments: argparse.Namespace) -> None:
    versions = _versions(arguments.store)[::-1]
    if arguments.json:
        print_json(versions)
    elif not versions:
        print(f"no data set in {arguments.store}")
    else:
        print_table(
            ["data set", "version", "created (UTC)", "samples", "classes", "MiB", "quarantined"],
            (
                [m.name, m.fingerprint, m.created_at[:19].replace("T", " "), *_contents(m)]
                for m in versions
            ),
        )  # fmt: skip


def _show(arguments: argparse.Namespace) -> None:
    manifest = _find_version(arguments.store, arguments.version)
    if arguments.json:
        print(manifest.model_dump_json(indent=2))
    elif arguments.files:
        files = _files(manifest)
        if arguments.files not in files:
            raise PetsError(f"--files {arguments.files}: use one of {', '.join(files)}")
        print("\n".join(files[arguments.files]))
    elif isinstance(manifest, RatingsManifest):
        _show_ratings(manifest)
    else:
        show_manifest(manifest)


def _files(manifest: AnyManifest) -> dict[str, list[str]]:
    """Return the URLs of the files of each split, by split."""
    if isinstance(manifest, RatingsManifest):
        return {
            split: [storage.join(manifest.url, file.path)]
            for split, file in manifest.splits.items()
        }
    return {split: manifest.files(split) for split in manifest.splits}


def _print_origin(manifest: AnyManifest) -> None:
    print(f"{manifest.name} {manifest.fingerprint}, created {manifest.created_at[:19]} UTC")
    print(f"source       {manifest.source_url}\nurl          {manifest.url}")


def _show_ratings(manifest: RatingsManifest) -> None:
    low, high = manifest.y_range
    _print_origin(manifest)
    print(
        f"ratings      of {manifest.num_users} users and {manifest.num_items} items, {low:g} to "
        f"{high:g}, mean {manifest.mean:.3f}\n"
    )
    print_table(
        ["split", "ratings", "cold users", "cold items"],
        ([split, file.num_rows, file.num_cold_users, file.num_cold_items]
         for split, file in manifest.splits.items()),
    )  # fmt: skip


def show_manifest(manifest: DatasetManifest) -> None:
    """Print a data set version: origin, splits, quarantined photos and duplicates."""
    _print_origin(manifest)
    print(f"parent       {manifest.parent or 'none'}\ncontract     {manifest.contract_version}\n")
    print_table(
        ["split", "photos", "shards", "MiB", "min per class", "max per class"],
        (
            [split, info.num_rows, len(info.shards), _mib(sum(s.num_bytes for s in info.shards)),
             *info.class_range]
            for split, info in manifest.splits.items()
        ),
    )  # fmt: skip
    for title, counts in (
        ("quarantined", manifest.quarantine_reasons), ("duplicates", manifest.duplicates),
    ):  # fmt: skip
        text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        print(f"{title:12} {text or 'none'}")


def _diff(arguments: argparse.Namespace) -> None:
    old, new = (_find_version(arguments.store, wanted) for wanted in (arguments.old, arguments.new))
    if isinstance(old, RatingsManifest) and isinstance(new, RatingsManifest):
        difference = diff_ratings(old, new)
    elif isinstance(old, DatasetManifest) and isinstance(new, DatasetManifest):
        difference = diff(old, new)
    else:
        raise PetsError(
            f"{arguments.old} and {arguments.new}: ratings and photos cannot be compared. Use two "
            "versions of one data set"
        )
    if arguments.json:
        print_json(difference)
        return
    for change, ids in difference.items():
        more = f", and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        print(f"{change:10} {len(ids):8}  {', '.join(ids[:_SHOWN_IDS])}{more}".rstrip())


def _verify(arguments: argparse.Namespace) -> None:
    manifest = _find_version(arguments.store, arguments.version)
    results = []
    checked = (
        verify_ratings(manifest) if isinstance(manifest, RatingsManifest) else verify(manifest)
    )
    for file, error in checked:
        results.append({"path": file.path, "error": error or None})
        if arguments.json:
            continue
        print(f"{'damaged' if error else 'ok':8} {file.path}", flush=True)
        if error:
            print(f"         {error}", file=sys.stderr)
    if arguments.json:
        print_json(results)
    if any(result["error"] for result in results):
        sys.exit(FAILED)
    if not arguments.json:
        samples = "ratings" if isinstance(manifest, RatingsManifest) else "photos"
        print(f"{_num_rows(manifest)} {samples} match the manifest")


def _collect_garbage(arguments: argparse.Namespace) -> None:
    if arguments.keep is not None and arguments.keep < 1:
        raise PetsError(f"--keep = {arguments.keep}: must be at least 1. Omit it to keep all")
    if not arguments.grace_hours >= 0:
        raise PetsError(f"--grace-hours = {arguments.grace_hours:g}: must be at least 0")
    grace_seconds = arguments.grace_hours * 3600
    found = collect_garbage(
        arguments.store,
        keep=arguments.keep or 0,
        delete=arguments.delete,
        grace_seconds=grace_seconds,
        in_use=data_sets_needed(arguments.store, grace_seconds),
    )
    if arguments.json:
        print_json([item._asdict() for item in found])
        return
    for item in found:
        print(item.url)
    size = sum(item.num_bytes for item in found) / _MIB
    done = "removed" if arguments.delete else "to remove (use --delete)"
    print(f"{len(found)} files, {size:.1f} MiB {done}")


def _contents(manifest: AnyManifest) -> list[object]:
    """Return the numbers of samples, classes, MiB and quarantined files."""
    if isinstance(manifest, RatingsManifest):
        sizes = (int(info.get("size") or 0) for info in storage.list_folder(manifest.url).values())
        return [_num_rows(manifest), "", _mib(sum(sizes)), ""]
    num_bytes = sum(s.num_bytes for info in manifest.splits.values() for s in info.shards)
    return [
        manifest.num_rows,
        len(manifest.vocabulary),
        _mib(num_bytes),
        manifest.num_quarantined,
    ]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:.1f}"


def _num_rows(manifest: AnyManifest) -> int:
    return sum(info.num_rows for info in manifest.splits.values())
