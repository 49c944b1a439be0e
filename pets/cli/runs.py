"""`pets runs`: list, show, compare and remove runs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from pets.cli.store_actions import run_command, store_actions
from pets.cli.tables import add_json, print_json, print_table
from pets_core import storage
from pets_core.errors import PetsError
from pets_core.maintenance.retention import find_runs, remove_old
from pets_core.runtime.run_list import RunSummary, find_run_folder, list_runs, load_run_summary

__all__ = ["add_arguments", "run_command"]

_MIB = 1 << 20
_RUN = "latest, id of a run, a start of it, its name, or its folder"
_MAX_CHANGED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `pets runs`."""
    add = store_actions(parser)
    listing = add("list", "list all runs, newest first", _list)
    listing.add_argument("--tag", help="only runs with this tag")
    show = add("show", "show one run: state, metric, cost, tags and notes", _show)
    compare = add(
        "compare", "compare evaluated runs with the first of them on the same samples", _compare
    )
    compare.add_argument("--to", metavar="FILE.html", help="also write the comparison as a page")
    compare.add_argument(
        "--publish", action="store_true", help="also publish it as an artifact in the Prefect UI"
    )
    remove = add("rm", "list the files of runs; remove them with --delete", _remove)
    remove.add_argument("--delete", action="store_true", help="remove instead of listing")
    show.add_argument("run", metavar="RUN", help=_RUN)
    for action in (compare, remove):
        action.add_argument("runs", metavar="RUN", nargs="+", help=_RUN)
    for action in (listing, show, compare, remove):
        add_json(action)


def _list(arguments: argparse.Namespace) -> None:
    runs = list_runs(arguments.store)
    if arguments.tag:
        runs = [run for run in runs if arguments.tag in run.tags]
    if arguments.json:
        print_json(runs)
    elif not runs:
        print(f"no run in {arguments.store}")
    else:
        print_table(
            ["run", "started (UTC)", "name", "state", "metric", "seconds", "tags"],
            (
                [run.run_id, _time(run), run.name, run.state, _metric(run), f"{run.seconds:.0f}",
                 " ".join(run.tags)]
                for run in runs
            ),
        )  # fmt: skip


def _time(run: RunSummary) -> str:
    return run.created_at[:19].replace("T", " ") if run.created_at else "-"


def _metric(run: RunSummary) -> str:
    return f"{run.metric.name} {run.metric.format(digits=2)}" if run.metric else "-"


def _show(arguments: argparse.Namespace) -> None:
    url = find_run_folder(arguments.store, arguments.run)
    run = load_run_summary(url)
    if run is None:
        raise PetsError(f"{url}: the run has no data set yet")
    if arguments.json:
        print_json(run)
        return
    interval = f" ({run.metric.interval_text})" if run.metric and run.metric.interval_text else ""
    rows = {
        "run": run.run_id,
        "name": run.name,
        "state": run.state,
        "started": f"{_time(run)} UTC" if run.created_at else "-",
        "data set": f"{run.dataset} {run.dataset_fingerprint}",
        "model": run.backbone,
        "metric": _metric(run) + interval,
        "seconds": f"{run.seconds:.1f} (LR finder and training)",
        "tags": " ".join(run.tags) or "none",
        "notes": run.notes or "none",
        "folder": run.url,
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")


def _compare(arguments: argparse.Namespace) -> None:
    from pets_core.evaluation.comparison import (
        changed_table,
        render_comparison,
        results_table,
        settings_table,
    )
    from pets_core.runtime.run_compare import compare_runs

    if arguments.publish:
        _check_server()
    urls = [find_run_folder(arguments.store, run) for run in arguments.runs]
    comparison = compare_runs(arguments.store, urls)
    if arguments.json:
        print_json(comparison)
    else:
        print_table(*results_table(comparison))
        for run in comparison.runs:
            if run.not_compared:
                print(f"{run.name} ({run.run_id}) is not compared: {run.not_compared}\n")
            if run.baseline and run.baseline.excluded_text:
                print(f"{run.name} ({run.run_id}): {run.baseline.excluded_text}\n")
        if comparison.settings:
            print_table(*settings_table(comparison))
        changed = changed_table(comparison)
        if any(run.baseline for run in comparison.runs):
            print(
                f"{comparison.num_changed:,} of {comparison.num_common:,} samples have different "
                "scores"
            )
        if changed.rows:
            print_table(changed.columns, changed.rows[:_MAX_CHANGED])
    if arguments.to:
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        page = render_comparison(comparison, now).encode()
        storage.write_bytes(storage.absolute(arguments.to), page)
    if arguments.publish:
        from pets.cli.server import explain_server_errors
        from tasks.artifacts.comparison import publish_comparison

        with explain_server_errors():
            publish_comparison(comparison)


def _check_server() -> None:
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        raise PetsError("--publish needs a Prefect server: set PREFECT_API_URL to its URL")


def _remove(arguments: argparse.Namespace) -> None:
    urls = [find_run_folder(arguments.store, run) for run in arguments.runs]
    found = find_runs(arguments.store, urls)
    if arguments.delete:
        found = remove_old(arguments.store, found)
    if arguments.json:
        print_json([item._asdict() for item in found])
        return
    print_table(["MiB", "run"], ([f"{item.num_bytes / _MIB:.1f}", item.url] for item in found))
    done = "removed" if arguments.delete else "to remove (use --delete)"
    print(f"{len(found)} runs {done}")
