"""`pets models`: what was evaluated, which model an alias points at, and moving it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence

from pets.cli.store_actions import store_actions
from pets.cli.tables import print_table
from pets_core.errors import PetsError, did_you_mean
from pets_core.registry.aliases import (
    Candidate,
    absolute,
    aliases,
    candidates,
    current,
    history,
    promote,
    rollback,
)

__all__ = ["add_commands", "run_command"]

_RUN = "run id, or its first digits"


def add_commands(parser: argparse.ArgumentParser, store: str) -> None:
    """Add the subcommands to the parser of `pets models`.

    Args:
        parser: Of `pets models`.
        store: Default of --store.
    """
    add = store_actions(parser, store)
    listing = add("list", "every evaluated model, the newest first, and what points at it")
    listing.add_argument("--json", action="store_true", help="one JSON array")
    show = add("show", "one run's model, or a data set's aliases with all their moves")
    show.add_argument("what", metavar="RUN|DATASET", help=f"{_RUN}, or name of a data set")
    for name, summary in (
        ("promote", "point an alias at a run's model"),
        ("rollback", "point an alias at what it pointed at before"),
    ):
        move = add(name, summary)
        what = _RUN if name == "promote" else "name of the data set"
        move.add_argument("what", metavar="RUN" if name == "promote" else "DATASET", help=what)
        move.add_argument("--alias", default="champion", help="(default: champion)")


def run_command(arguments: argparse.Namespace) -> None:
    """Run a parsed subcommand.

    Raises:
        PetsError: There is no such model or alias.
    """
    action: Callable[[argparse.Namespace], None] = {
        "list": _list,
        "show": _show,
        "promote": _promote,
        "rollback": _rollback,
    }[arguments.action]
    action(arguments)


def _list(arguments: argparse.Namespace) -> None:
    models = sorted(candidates(arguments.store), key=lambda m: m.evaluated_at, reverse=True)
    pointing = _pointing(arguments.store, models)
    if arguments.json:
        rows = [m.model_dump() | {"aliases": pointing[m.run_id]} for m in models]
        print(json.dumps(rows, indent=2))
    elif not models:
        print(f"no evaluated model in {arguments.store}")
    else:
        print_table(
            ["run", "evaluated (UTC)", "data set", "model", "metric", "samples", "alias"],
            (
                [m.run_id, m.evaluated_at[:19].replace("T", " "), m.dataset_name, m.backbone,
                 _metric(m), f"{m.num_rows} {m.split}", " ".join(pointing[m.run_id])]
                for m in models
            ),
        )  # fmt: skip


def _metric(model: Candidate) -> str:
    return f"{model.metric.name} {model.metric.format(digits=2)}"


def _pointing(store: str, models: Sequence[Candidate]) -> dict[str, list[str]]:
    """The aliases that point at each model, by its run."""
    pointing: dict[str, list[str]] = {model.run_id: [] for model in models}
    for dataset in {model.dataset_name for model in models}:
        for alias in aliases(store, dataset):
            move = current(store, dataset, alias)
            if move and move.model.run_id in pointing:
                pointing[move.model.run_id].append(alias)
    return pointing


def _show(arguments: argparse.Namespace) -> None:
    store, what = arguments.store, arguments.what
    if known := aliases(store, what):
        for alias in known:
            moves = list(history(store, what, alias).values())[::-1]
            print(f"{alias} of {what}")
            print_table(
                ["since (UTC)", "run", "model", "metric", "why"],
                (
                    [m.moved_at[:19].replace("T", " "), m.model.run_id, m.model.backbone,
                     _metric(m.model), m.why]
                    for m in moves
                ),
            )  # fmt: skip
        return
    if any(model.dataset_name == what for model in candidates(store)):
        raise PetsError(f"{what}: no alias points at a model of it yet; pets models promote RUN")
    model = _find(store, what)
    shown_as = model.model_dump(exclude={"format_version"}) | {"metric": _metric(model)}
    for name, value in shown_as.items():
        shown = absolute(store, value) if name.endswith("_url") else value
        print(f"{name.removesuffix('_url').replace('_', ' '):20} {shown}")
    print(f"{'aliases':20} {' '.join(_pointing(store, [model])[model.run_id]) or 'none'}")


def _find(store: str, wanted: str) -> Candidate:
    """The evaluated model of the run whose id begins with `wanted`."""
    known = {model.run_id: model for model in candidates(store)}
    found = [run_id for run_id in known if wanted and run_id.startswith(wanted)]
    if wanted in known or len(found) == 1:
        return known[wanted if wanted in known else found[0]]
    if found:
        raise PetsError(f"{wanted} may be each of {', '.join(found)}: give more of the run's id")
    if any(model.dataset_name == wanted for model in known.values()):
        raise PetsError(f"{wanted} is a data set: give a run of it, pets models list shows them")
    raise PetsError(
        f"{wanted}: no run of {store} with an evaluated model, and no data set with an alias."
        f"{did_you_mean(wanted, known)} pets models list shows what there is"
    )


def _promote(arguments: argparse.Namespace) -> None:
    model = _find(arguments.store, arguments.what)
    promote(arguments.store, arguments.alias, model)
    print(f"{arguments.alias} of {model.dataset_name} points at {model.run_id}")


def _rollback(arguments: argparse.Namespace) -> None:
    move = rollback(arguments.store, arguments.what, arguments.alias)
    print(f"{arguments.alias} of {arguments.what} points at {move.model.run_id} again")
