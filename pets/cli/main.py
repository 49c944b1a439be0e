"""Command-line interface, `pets`: parse arguments, run a command, print its result."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NoReturn

from pets_core.errors import PetsError, did_you_mean, without_queries

if TYPE_CHECKING:
    from pets.cli.settings import AnyConfig
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.ratings.config import RatingsConfig

__all__ = ["main"]

_PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start of a temporary server creates its database, which can be slow.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

_FLOWS = {
    "run": ("pipeline:pipeline", "results:show_evaluation"),
    "ingest": ("ingest:ingest_flow", "datasets:show_manifest"),
    "lr-find": ("lr_find:lr_find_flow", "results:show_lr_suggestion"),
    "train": ("train:train_flow", "results:show_training"),
    "evaluate": ("evaluate:evaluate_flow", "results:show_evaluation"),
    "review": ("review:review_flow", "results:show_evaluation"),
    "collab": ("collab:collab_flow", "results:show_evaluation"),
    "sweep": ("sweep:sweep_flow", "results:show_sweep"),
    "batch-predict": ("batch_predict:batch_predict_flow", "results:show_batch"),
    "embed": ("embed:embed_flow", "results:show_embeddings"),
}
"""Flow and result printer of each command that runs a flow, as module:function."""
_RUN_RANKS = ("run", "lr-find", "train", "evaluate", "batch-predict", "embed", "collab", "sweep")
_COMMANDS = {
    "run": "run the whole pipeline: ingest, find a learning rate, train, evaluate",
    "ingest": "convert photos to a Parquet data set",
    "lr-find": "suggest a learning rate",
    "train": "train a model",
    "evaluate": "evaluate a stored model or stored predictions",
    "batch-predict": "run a model on many photos and write the predictions to Parquet",
    "embed": "compute embeddings of a data set's photos and find near-duplicates",
    "similar": "find the photos of a data set that are most similar to a given photo",
    "collab": "train a recommender on ratings: ingest, find a learning rate, train, evaluate",
    "recommend": "list the items with the highest predicted ratings for a user",
    "sweep": "train with several backbones and learning rates and compare the results",
    "models": "list, show, promote and roll back evaluated models",
    "predict": "print a model's predictions for photos",
    "export": "export a model to ONNX",
    "deploy": "check deployments and apply them to a Prefect server",
    "datasets": "list, show, compare, verify and clean up stored data sets",
    "gc": "list or remove old runs, checkpoints and data that are no longer needed",
    "join": "run training ranks on this machine for the runs of another machine",
    "ui": "open a run in the Prefect UI",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command. Exits with 2 on invalid input or settings and with 1 on other errors."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As on Ctrl-C, exit handlers stop the processes that were started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = _Parser(
        prog="pets",
        description="Fine-tune image models with Prefect flows.",
        epilog="pets COMMAND --help lists every setting with its unit and default.",
    )
    parser.add_argument("--version", action="version", version=version("pets-pipeline"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary, add_help=False)
    try:
        command = parser.parse_args(arguments[:1]).command
        _run_command(command, arguments[1:])
    except PetsError as error:
        sys.exit(_print_error(str(error)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises `PetsError`."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        raise PetsError(f"{message}\nSee {self.prog} --help.")


def _run_command(command: str, arguments: list[str]) -> None:
    parser = _Parser(prog=f"pets {command}", description=_COMMANDS[command])
    match command:
        case "predict" | "export" | "recommend":
            resolve_name(f"pets.cli.inference:{command}")(parser, arguments)
        case "datasets" | "deploy" | "gc" | "models" | "similar":
            _run_module(command, parser, arguments)
        case "join":
            _join(parser, arguments)
        case "ui":
            _open_ui(parser, arguments)
        case _:
            _run_flow(command, parser, arguments)


def _run_flow(command: str, parser: _Parser, arguments: list[str]) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if command == "evaluate":
        command = _add_evaluate_arguments(parser, arguments)
    if command in ("run", "train", "sweep", "collab"):
        parser.add_argument(
            "--resume", metavar="RUN", help="resume an interrupted run, given its folder"
        )
    if command in ("batch-predict", "embed"):
        parser.add_argument("model_url", metavar="MODEL", help="model folder, path or URL")
    if command == "embed":
        parser.add_argument(
            "--dataset", metavar="VERSION",
            help="name of a stored data set (newest version) or fingerprint prefix of a version "
            "(default: the data set of the source, ingested if necessary)",
        )  # fmt: skip
    if command == "batch-predict":
        parser.add_argument(
            "--to", dest="output_url", metavar="FOLDER",
            help="output folder; if an earlier run wrote to it, resumes that run (default: a new "
            "folder in the store)",
        )  # fmt: skip
    from pets_core.config.pipeline import PipelineConfig

    if command == "collab":
        from pets_core.ratings.config import RatingsConfig

        config, parsed = _load_config(RatingsConfig, parser, arguments)
        from pets_core.ratings.target import RATINGS
        from pets_core.registry.gate import check_gate

        check_gate(config.gate, RATINGS)
        if not parsed.resume:
            from pets_core.ratings.files import check_tables

            check_tables(config.ratings)
        _start_flow(command, config, parsed)
        return
    settings, parsed = _load_config(PipelineConfig, parser, arguments)
    _check_input(command, settings, parsed)
    _start_flow(command, settings, parsed)


def _add_evaluate_arguments(parser: _Parser, arguments: list[str]) -> str:
    """Add the arguments of `pets evaluate` and return the flow to run: evaluate or review."""
    parser.add_argument(
        "--from", dest="predictions_url", metavar="PREDICTIONS",
        help="predictions.parquet of an evaluation, instead of MODEL (needs no GPU)",
    )  # fmt: skip
    if any(word == "--from" or word.startswith("--from=") for word in arguments):
        return "review"
    # The destination "model" is taken by the group of settings.
    parser.add_argument(
        "model_url", metavar="MODEL", nargs="?", help="model folder, path or URL; or use --from"
    )
    return "evaluate"


def _check_input(command: str, config: PipelineConfig, parsed: argparse.Namespace) -> None:
    """Check local input paths and the gate before Prefect is started.

    Raises:
        PetsError: The model, the predictions, the source or a gate setting is invalid.
    """
    from pets_core.storage import is_url

    if command == "review" and not is_url(parsed.predictions_url):
        from pets_core.evaluation.predictions import read_info

        read_info(parsed.predictions_url)
    if command == "evaluate" and parsed.model_url is None:
        raise PetsError(
            "pets evaluate needs MODEL, a model folder, or --from PREDICTIONS, the "
            "predictions.parquet of an evaluation"
        )
    if command in ("evaluate", "batch-predict", "embed") and not is_url(parsed.model_url):
        from pets_core.models.card import read_card

        card = read_card(parsed.model_url)
        if command == "evaluate" and card.targets != config.source.targets:
            raise PetsError(
                f"{parsed.model_url} predicts targets = {card.targets}, but source.targets = "
                f"{config.source.targets}. Use --source.targets {card.targets}"
            )
    if command in ("run", "evaluate"):
        from pets_core.targets.evaluate import check_gate_settings

        check_gate_settings(config)
    if _reads_source(command, parsed):
        from pets_core.data.sources.sources import check_source

        check_source(config)


def _load_config(
    kind: type[AnyConfig], parser: _Parser, arguments: list[str]
) -> tuple[AnyConfig, argparse.Namespace]:
    from pets.cli.settings import add_settings, load_settings, setting_names

    source = add_settings(parser, kind)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise PetsError(f"{name}: no such setting.{did_you_mean(name, setting_names(kind))}")
    stored_settings: dict[str, Any] = {}
    if getattr(parsed, "resume", None):
        if parsed.config_file:
            raise PetsError(
                f"{parsed.config_file}: --resume uses the settings of the run. Remove the file "
                "from the command"
            )
        from pets_core.runtime.runs import load_run_settings

        stored_settings = load_run_settings(parsed.resume)
        is_ratings_config = "ratings" in kind.model_fields
        if ("ratings" in stored_settings) != is_ratings_config:
            other = "pets run" if is_ratings_config else "pets collab"
            raise PetsError(
                f"--resume {parsed.resume}: the run was trained on "
                f"{'photos' if is_ratings_config else 'ratings'}. Use {other} --resume"
            )
    return load_settings(kind, source, parsed, stored_settings), parsed


def _set_prefect_defaults() -> None:
    """Set environment defaults of Prefect. Call this before Prefect is imported."""
    for key, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    # Prefect warns twice at import; pets.cli.writable raises if a server needs the folder.
    warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")


def _start_flow(
    command: str, config: PipelineConfig | RatingsConfig, parsed: argparse.Namespace
) -> None:
    _set_prefect_defaults()
    if _runs_ranks_here(command, config):
        from pets_core.runtime.launcher import prestart_ranks

        prestart_ranks()
    import httpx

    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_is_not_user_error)
    from pets.cli.server import check_server, start_temporary_server
    from pets.cli.settings import FLOW_ARGUMENTS
    from pets.cli.writable import check_folders

    parameters = {k: v for k, v in vars(parsed).items() if k in FLOW_ARGUMENTS and v is not None}
    try:
        # evaluate and review continue without the configured server. Longer commands stop, because
        # their progress would not be visible.
        needs_temporary_server = check_server(required=command not in ("evaluate", "review"))
        check_folders(
            cache_dir=_cache_dir(command, config, parsed), is_serving=needs_temporary_server
        )
        wait_for_server = start_temporary_server() if needs_temporary_server else None
        # Import the flow while the server starts.
        run, show = _load_flow(command)
        if wait_for_server:
            wait_for_server()
        state = run(config=config, return_state=True, **parameters)
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        problem = "is unreachable" if isinstance(error, httpx.TransportError) else "failed"
        sys.exit(_print_error(
            f"the Prefect server {problem}: {error}\nCompleted work is stored in "
            f"{config.store}/runs.", code=1,
        ))  # fmt: skip
    result = state.result(raise_on_failure=False)
    rejected = state.name == "Rejected"
    if isinstance(result, BaseException):
        if isinstance(result, PetsError):
            raise result
        sys.exit(_print_error(f"{type(result).__name__}: {result}", code=1))
    if parsed.json:
        print(result.model_dump_json(indent=2))
    else:
        show(result)
    # Keep standard output valid JSON.
    stream = sys.stderr if parsed.json else sys.stdout
    hint = f"\nSee it in the Prefect UI:  {_command_name()} ui {state.state_details.flow_run_id}"
    print(hint, file=stream)
    if rejected:
        sys.exit(_print_error(str(state.message), code=1))


def _reads_source(command: str, parsed: argparse.Namespace) -> bool:
    stored = getattr(parsed, "resume", None) or getattr(parsed, "dataset", None)
    return command != "review" and not stored


def _cache_dir(
    command: str, config: PipelineConfig | RatingsConfig, parsed: argparse.Namespace
) -> str | None:
    """Return cache_dir if the command writes to it: for ranks, downloads or unpacked archives."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.storage import absolute, is_url

    is_read = _reads_source(command, parsed)
    if isinstance(config, PipelineConfig):
        url = config.source.url
        # A local folder is read in place.
        is_fetched = is_read and (url is None or not Path(absolute(url)).is_dir())
        return config.cache_dir if is_fetched or _runs_ranks_here(command, config) else None
    urls = (config.ratings.url, config.ratings.items_url)
    return config.cache_dir if is_read and any(url and is_url(url) for url in urls) else None


def _runs_ranks_here(command: str, config: PipelineConfig | RatingsConfig) -> bool:
    return command in _RUN_RANKS and config.launch.deployment is None


def _load_flow(command: str) -> tuple[Callable[..., Any], Callable[[Any], None]]:
    """Import the flow of a command and the function that prints its result."""
    flow, show = _FLOWS[command]
    return resolve_name(f"flows.{flow}"), resolve_name(f"pets.cli.{show}")


def _command_name() -> str:
    """Return the shell command of this program: `pets`, its quoted path, or `python -m pets`."""
    started = Path(sys.argv[0])
    found = shutil.which("pets")
    if started.name != "pets":
        return f"{sys.executable} -m pets"
    return "pets" if found and Path(found).samefile(started) else shlex.quote(sys.argv[0])


def _run_module(command: str, parser: _Parser, arguments: list[str]) -> None:
    if command == "deploy":
        _set_prefect_defaults()
    module = import_module(f"pets.cli.{command}")
    if command in ("datasets", "models", "gc"):
        from pets_core.config.pipeline import PipelineConfig

        module.add_commands(parser, os.environ.get("PETS_STORE", PipelineConfig().store))
    else:
        module.add_arguments(parser)
    module.run_command(parser.parse_args(arguments))


def _join(parser: _Parser, arguments: list[str]) -> None:
    parser.add_argument("--machine", type=int, default=1, help="machine number (default: 1)")
    parser.add_argument(
        "--idle-seconds", type=float, default=600.0, metavar="N",
        help="exit after this long without a request, seconds (default: 600)",
    )  # fmt: skip
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.runtime.multi_node import join

    config, parsed = _load_config(PipelineConfig, parser, arguments)

    join(config, parsed.machine, idle_seconds=parsed.idle_seconds, log=partial(print, flush=True))


def _open_ui(parser: _Parser, arguments: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="flow run id; default: all runs")
    parser.add_argument("--port", type=int, default=4200, help="port of the server (default: 4200)")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the URL without opening a browser"
    )
    parsed = parser.parse_args(arguments)
    _set_prefect_defaults()
    from pets.cli.ui import open_ui

    open_ui(parsed.run, parsed.port, browser=not parsed.no_browser)


def _is_not_user_error(record: logging.LogRecord) -> bool:
    """Filter out log records of a `PetsError`, because `main` prints the error."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, PetsError) and "PetsError: " not in record.getMessage()


def _print_error(message: str, code: int = 2) -> int:
    first, *rest = without_queries(message).splitlines()
    print(f"error: {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
