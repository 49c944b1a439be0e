"""Commands that run a flow: arguments, settings and checks before Prefect is started."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pets.cli.commands import COMMANDS, EVALUATE_PREDICTIONS
from pets.cli.flow_start import reads_source, start_flow
from pets.cli.parser import (
    Parser,
    add_log_options,
    add_run_options,
    add_short_help,
    set_log_level,
)
from pets.cli.store_actions import MODEL_HELP
from pets_core.errors import PetsError, did_you_mean

if TYPE_CHECKING:
    from pydantic_settings import CliSettingsSource

    from pets.cli.settings import AnyConfig
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.ratings.config import RatingsConfig

__all__ = ["add_flow_arguments", "load_config", "run_flow", "settings_class"]


def run_flow(name: str, parser: Parser, arguments: list[str]) -> None:
    """Parse the arguments of a command, run its flow and print the result.

    Raises:
        PetsError: An argument, a setting or the input is invalid.
    """
    source = add_flow_arguments(name, parser, arguments)
    kind: Any = settings_class(name)
    config, parsed = load_config(kind, source, parser, arguments)
    if parsed.print_config:
        _print_config(config)
        return
    set_log_level(parsed)
    if name == "evaluate" and parsed.predictions_url:
        name = EVALUATE_PREDICTIONS
    if name == "collab":
        _check_ratings(config, parsed)
    else:
        _check_input(name, config, parsed)
    start_flow(name, config, parsed)


def add_flow_arguments(
    name: str, parser: Parser, arguments: Sequence[str] = ()
) -> CliSettingsSource[Any]:
    """Add a command's arguments and a flag for each setting to its parser.

    Args:
        name: Name of the command.
        parser: Its parser.
        arguments: The arguments to parse: with --from, `pets evaluate` has no MODEL.

    Returns:
        The source of the flags.
    """
    from pets.cli.groups import groups
    from pets.cli.settings import add_settings

    add = parser.add_argument
    has_predictions = any(word.partition("=")[0] == "--from" for word in arguments)
    # The destination "model" is taken by the group of settings.
    if name in ("batch-predict", "embed"):
        add("model_url", metavar="MODEL", help=MODEL_HELP)
    if name == "evaluate" and not has_predictions:
        add("model_url", metavar="MODEL", nargs="?", help=MODEL_HELP)
    if name == "evaluate":
        add(
            "--from", dest="predictions_url", metavar="PREDICTIONS",
            help="predictions.parquet of an evaluation, instead of MODEL (needs no GPU)",
        )  # fmt: skip
    if COMMANDS[name].resumes:
        add("--resume", metavar="RUN", help="resume an interrupted run: latest, id, name or folder")
        add_run_options(parser)
    if name == "embed":
        add(
            "--dataset", metavar="VERSION",
            help="name of a stored data set (newest version) or fingerprint prefix of a version "
            "(default: the data set of the source, ingested if necessary)",
        )  # fmt: skip
    if name == "batch-predict":
        add(
            "--to", dest="output_url", metavar="FOLDER",
            help="output folder; if an earlier run wrote to it, resumes that run (default: a new "
            "folder in the store)",
        )  # fmt: skip
    add("--json", action="store_true", help="print the result as JSON (docs/command-line.md)")
    add("--print-config", action="store_true", help="print the settings as YAML and exit")
    add_log_options(parser)
    kind = settings_class(name)
    source = add_settings(parser, kind)
    add_short_help(name, parser, groups(kind))
    return source


def settings_class(name: str) -> type[PipelineConfig] | type[RatingsConfig]:
    """Return the class of a command's settings."""
    if name == "collab":
        from pets_core.ratings.config import RatingsConfig

        return RatingsConfig
    from pets_core.config.pipeline import PipelineConfig

    return PipelineConfig


def load_config(
    kind: type[AnyConfig],
    source: CliSettingsSource[Any],
    parser: argparse.ArgumentParser,
    arguments: list[str],
) -> tuple[AnyConfig, argparse.Namespace]:
    """Parse the arguments and load the settings, of the resumed run if there is one.

    Args:
        kind: Class of the settings.
        source: Source of the flags.
        parser: Parser of the command.
        arguments: Its arguments.

    Raises:
        PetsError: An argument or a setting is invalid, or the run does not exist.
    """
    from pets.cli.settings import config_file, load_settings, setting_names

    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise PetsError(f"{name}: no such setting.{did_you_mean(name, setting_names(kind))}")
    stored_settings: dict[str, Any] = {}
    if getattr(parsed, "resume", None) is not None:
        if file := config_file(parsed):
            raise PetsError(
                f"{file}: --resume uses the settings of the run. Remove the file from the command"
            )
        from pets_core.runtime.runs import load_run_settings

        parsed.resume = _find_run(parsed)
        stored_settings = load_run_settings(parsed.resume)
        is_ratings_config = "ratings" in kind.model_fields
        if ("ratings" in stored_settings) != is_ratings_config:
            other = "pets run" if is_ratings_config else "pets collab"
            raise PetsError(
                f"--resume {parsed.resume}: the run was trained on "
                f"{'photos' if is_ratings_config else 'ratings'}. Use {other} --resume"
            )
    return load_settings(kind, source, parsed, stored_settings), parsed


def _find_run(parsed: argparse.Namespace) -> str:
    """Return the folder of the run to resume."""
    from pets.store import resolve_store
    from pets_core.runtime.run_list import find_run_folder

    return find_run_folder(resolve_store(getattr(parsed, "store", None)), parsed.resume)


def _print_config(config: PipelineConfig | RatingsConfig) -> None:
    import yaml

    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")


def _check_ratings(config: Any, parsed: argparse.Namespace) -> None:
    """Check the gate and the tables before Prefect is started."""
    from pets_core.ratings.target import RATINGS
    from pets_core.targets.gate import check_gate

    check_gate(config.gate, RATINGS)
    if not parsed.resume:
        from pets_core.ratings.files import check_tables

        check_tables(config.ratings)


def _check_input(name: str, config: PipelineConfig, parsed: argparse.Namespace) -> None:
    """Check local inputs, the kind of target and the gate settings before Prefect is started.

    Args:
        name: Name of the command; `evaluate-predictions` for `pets evaluate --from`.
        config: The settings.
        parsed: The other arguments.

    Raises:
        PetsError: The model, the predictions, the source or a gate setting is invalid.
    """
    from pets_core.hub.address import is_hub_address
    from pets_core.storage import is_url

    if name == EVALUATE_PREDICTIONS and not is_url(parsed.predictions_url):
        from pets_core.evaluation.predictions import read_info

        read_info(parsed.predictions_url)
    if name == "evaluate" and parsed.model_url is None:
        raise PetsError(
            "pets evaluate: no model is given. Add MODEL (a model folder), or --from PREDICTIONS "
            "(the predictions.parquet of an evaluation)"
        )
    if name in ("evaluate", "batch-predict", "embed") and (
        not is_url(parsed.model_url) or is_hub_address(parsed.model_url)
    ):
        from pets.model import find_model
        from pets_core.models.card import read_card

        parsed.model_url = find_model(parsed.model_url, config.store).url
        card = read_card(parsed.model_url)
        if name == "evaluate" and card.targets != config.source.targets:
            raise PetsError(
                f"{parsed.model_url} predicts targets = {card.targets}, but source.targets = "
                f"{config.source.targets}. Use --source.targets {card.targets}"
            )
    if name in ("run", "evaluate"):
        from pets_core.targets.gate import check_gate
        from pets_core.targets.registry import get_target

        check_gate(config.gate, get_target(config.source.targets))
    if reads_source(name, parsed):
        from pets_core.data.sources.sources import check_source

        check_source(config)
