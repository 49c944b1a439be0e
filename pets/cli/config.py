"""`pets config schema`: print the JSON Schema of the settings, or of a command's result."""

from __future__ import annotations

import argparse
from pkgutil import resolve_name
from types import GenericAlias
from typing import Any, get_type_hints

from pydantic import TypeAdapter, create_model

from pets.cli.tables import print_json
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.ratings.config import RatingsConfig

__all__ = ["LISTED_RESULTS", "RESULTS", "add_arguments", "run_command"]

RESULTS = {
    "run": "pets_core.records.evaluation:EvalReport",
    "evaluate": "pets_core.records.evaluation:EvalReport",
    "collab": "pets_core.records.evaluation:EvalReport",
    "ingest": "pets_core.records.dataset:DatasetManifest",
    "lr-find": "pets_core.records.training:LRSuggestion",
    "train": "pets_core.records.training:TrainResult",
    "sweep": "pets_core.records.training:SweepResult",
    "batch-predict": "pets_core.records.inference:BatchSummary",
    "embed": "pets_core.records.inference:NearDuplicates",
    "push": "pets_core.hub.client:Pushed",
    "pull": "pets_core.hub.client:PulledModel",
    "runs show": "pets_core.runtime.run_list:RunSummary",
    "runs compare": "pets_core.records.comparison:RunComparison",
}
"""Class of the result that each command prints as one JSON object."""
LISTED_RESULTS = {
    "datasets list": "pets.cli.datasets:AnyManifest",
    "runs list": "pets_core.runtime.run_list:RunSummary",
    "models list": "pets.cli.models:EvaluatedModel",
    "predict": "pets_core.inference.predict:Prediction",
    "recommend": "pets_core.ratings.recommend:Recommendation",
    "similar": "pets_core.embeddings.similar:Neighbour",
    "gc": "pets_core.maintenance.retention:Garbage",
    "doctor": "pets.cli.doctor:Check",
}
"""Class of the elements that each command prints as a JSON array."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the parser of `pets config`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "print the JSON Schema of a settings file, or of a command's --json output"
    schema = actions.add_parser("schema", help=summary, description=summary)
    what = schema.add_mutually_exclusive_group()
    what.add_argument("--ratings", action="store_true", help="the settings of pets collab")
    what.add_argument(
        "--result", metavar="COMMAND", help='the result of a command, such as run or "models list"'
    )


def run_command(arguments: argparse.Namespace) -> None:
    """Print the JSON Schema.

    Raises:
        PetsError: The command has no JSON output with a schema.
    """
    print_json(_schema(arguments))


def _schema(arguments: argparse.Namespace) -> dict[str, Any]:
    name = arguments.result
    if name is None:
        kind = RatingsConfig if arguments.ratings else PipelineConfig
        return kind.model_json_schema()
    if name in RESULTS:
        return TypeAdapter(resolve_name(RESULTS[name])).json_schema(mode="serialization")
    if name not in LISTED_RESULTS:
        known = ", ".join([*RESULTS, *LISTED_RESULTS])
        raise PetsError(f"--result {name}: use one of {known}")
    listed: Any = GenericAlias(list, (_element(LISTED_RESULTS[name]),))
    return TypeAdapter(listed).json_schema(mode="serialization")


def _element(name: str) -> Any:
    """Return the class of an element; a named tuple is printed as an object."""
    found = resolve_name(name)
    if isinstance(found, type) and issubclass(found, tuple):
        fields: dict[str, Any] = {key: (kind, ...) for key, kind in get_type_hints(found).items()}
        return create_model(found.__name__, **fields)
    return found
