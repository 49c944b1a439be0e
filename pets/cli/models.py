"""`pets models`: list and show evaluated models, and move aliases."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from pets.cli.groups import as_variable
from pets.cli.store_actions import run_command, store_actions
from pets.cli.tables import add_json, print_json, print_table
from pets_core import storage
from pets_core.config.base import NAME_PATTERN
from pets_core.config.registry import RegistryConfig
from pets_core.config.run import LATEST
from pets_core.errors import PetsError, did_you_mean
from pets_core.registry.aliases import (
    AliasVersion,
    Candidate,
    absolute,
    aliases,
    candidates,
    current,
    history,
    promote,
    rollback,
)
from pets_core.runtime.run_list import list_runs

__all__ = ["EvaluatedModel", "add_arguments", "run_command"]

_RUN = "id of a run, a start of it, its name, or latest"


class EvaluatedModel(Candidate):
    """An evaluated model and the aliases that point at it."""

    aliases: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `pets models`."""
    add = store_actions(parser)
    add_json(add("list", "list all evaluated models, newest first, with their aliases", _list))
    show = add(
        "show", "show the model of a run, or the aliases of a data set with their history", _show
    )
    show.add_argument("key", metavar="RUN|DATASET", help=f"{_RUN}, or name of a data set")
    add_json(show)
    forward = add("promote", "point an alias at the model of a run", _move)
    forward.add_argument("key", metavar="RUN", help=_RUN)
    back = add("rollback", "point an alias at its previous model", _move)
    back.add_argument("key", metavar="DATASET", help="name of the data set")
    for action in (forward, back):
        action.add_argument("--alias", default="champion", help="alias to move (default: champion)")
        add_json(action)


def _list(arguments: argparse.Namespace) -> None:
    models = sorted(candidates(arguments.store), key=lambda m: m.evaluated_at, reverse=True)
    by_run = _aliases_by_run(arguments.store, models)
    if arguments.json:
        print_json([EvaluatedModel(**m.model_dump(), aliases=by_run[m.run_id]) for m in models])
    elif not models:
        print(f"no evaluated model in {arguments.store}")
    else:
        print_table(
            ["run", "evaluated (UTC)", "data set", "model", "metric", "samples", "alias"],
            (
                [m.run_id, m.evaluated_at[:19].replace("T", " "), m.dataset_name, m.backbone,
                 _format_metric(m), f"{m.num_rows} {m.split}", " ".join(by_run[m.run_id])]
                for m in models
            ),
        )  # fmt: skip


def _format_metric(model: Candidate) -> str:
    return f"{model.metric.name} {model.metric.format(digits=2)}"


def _aliases_by_run(store: str, models: Sequence[Candidate]) -> dict[str, list[str]]:
    """Return the aliases of each model, by run id."""
    by_run: dict[str, list[str]] = {model.run_id: [] for model in models}
    for dataset in {model.dataset_name for model in models}:
        for alias in aliases(store, dataset):
            version = current(store, dataset, alias)
            if version and version.model.run_id in by_run:
                by_run[version.model.run_id].append(alias)
    return by_run


def _show(arguments: argparse.Namespace) -> None:
    store, key = arguments.store, arguments.key
    known = aliases(store, key) if re.fullmatch(NAME_PATTERN, key) else []
    if known:
        if arguments.json:
            print_json({alias: list(history(store, key, alias).values())[::-1] for alias in known})
            return
        for alias in known:
            versions = list(history(store, key, alias).values())[::-1]
            print(f"{alias} of {key}")
            print_table(
                ["since (UTC)", "run", "model", "metric", "reason"],
                (
                    [m.moved_at[:19].replace("T", " "), m.model.run_id, m.model.backbone,
                     _format_metric(m.model), m.why]
                    for m in versions
                ),
            )  # fmt: skip
        return
    if any(model.dataset_name == key for model in candidates(store)):
        raise PetsError(f"{key}: no alias points at its models. Use pets models promote RUN")
    model = _find_model(store, key)
    own = _aliases_by_run(store, [model])[model.run_id]
    if arguments.json:
        print_json(EvaluatedModel(**model.model_dump(), aliases=own))
        return
    fields = model.model_dump(exclude={"format_version"}) | {"metric": _format_metric(model)}
    for name, value in fields.items():
        shown = absolute(store, value) if name.endswith("_url") else value
        print(f"{name.removesuffix('_url').replace('_', ' '):20} {shown}")
    print(f"{'aliases':20} {' '.join(own) or 'none'}")


def _find_model(store: str, wanted: str) -> Candidate:
    """Return the evaluated model of a run, given by `latest`, its id, a start of it or its name.

    Raises:
        PetsError: There is no such model, or several.
    """
    models = {model.run_id: model for model in candidates(store)}
    if wanted in models:
        return models[wanted]
    if wanted == LATEST and models:
        return max(models.values(), key=lambda model: model.evaluated_at)
    names = {run.run_id: run.name for run in list_runs(store)}
    found = [run_id for run_id in models if names.get(run_id) == wanted]
    found = found or [run_id for run_id in models if wanted and run_id.startswith(wanted)]
    if len(found) == 1:
        return models[found[0]]
    if found:
        raise PetsError(f"{wanted} is ambiguous ({', '.join(found)}): use one of these ids")
    if any(model.dataset_name == wanted for model in models.values()):
        raise PetsError(
            f"{wanted} is the name of a data set, not of a run: see pets models list for the runs"
        )
    raise PetsError(
        f"{wanted}: no evaluated run and no data set with an alias in {store} has this name or id."
        f"{did_you_mean(wanted, models)} See pets models list"
    )


def _move(arguments: argparse.Namespace) -> None:
    """Promote the model of a run, or roll back the alias of a data set."""
    store, alias, key = arguments.store, arguments.alias, arguments.key
    mlflow_uri = _mlflow_uri(alias)
    if arguments.action == "promote":
        version, suffix = promote(store, alias, _find_model(store, key)), ""
    else:
        version, suffix = rollback(store, key, alias), " again"
    model = version.model
    if arguments.json:
        print_json(version)
    else:
        print(f"{alias} of {model.dataset_name} points at {model.run_id}{suffix}")
    _publish_move(arguments, version, mlflow_uri)


def _mlflow_uri(alias: str) -> str | None:
    """Return registry.mlflow_uri of the environment.

    Raises:
        PetsError: It is invalid, its package is not installed, or MLflow does not accept the alias.
    """
    from pets_core.runtime.mlflow_mirror import check_mlflow

    variable = as_variable("registry", "mlflow_uri", None)
    try:
        uri = RegistryConfig(mlflow_uri=os.environ.get(variable) or None).mlflow_uri
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise PetsError(f"{variable}: {message}") from None
    check_mlflow(uri, alias)
    return uri


def _publish_move(
    arguments: argparse.Namespace, version: AliasVersion, mlflow_uri: str | None
) -> None:
    """Send the event of a move and mirror the alias; a failure causes a warning only."""
    # Import Prefect and MLflow after the move, because they take seconds.
    from pets_core.runtime.mlflow_mirror import MlflowMirror
    from tasks.events import send_move

    sys.stdout.flush()
    if problem := send_move(arguments.store, arguments.alias, version):
        print(f"warning: no event was sent to the Prefect server: {problem}", file=sys.stderr)
    if mlflow_uri:
        try:
            mirror = MlflowMirror(mlflow_uri, arguments.store)
            mirror.move_alias(version.model.dataset_name, arguments.alias)
        except Exception as error:  # noqa: BLE001 - the alias has moved, whatever fails here
            reason = storage.without_secrets(str(error))
            print(f"warning: the alias is not mirrored: {reason}", file=sys.stderr)
