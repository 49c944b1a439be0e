"""The command line, `pets`: the same settings and flows, for people at a terminal."""

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
    # A new machine takes its time to make the database of the temporary server.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

_FLOWS = {
    "run": ("pipeline:pipeline", "results:show_evaluation"),
    "ingest": ("ingest:ingest_flow", "datasets:show_manifest"),
    "lr-find": ("lr_find:lr_find_flow", "results:show_record"),
    "train": ("train:train_flow", "results:show_record"),
    "evaluate": ("evaluate:evaluate_flow", "results:show_evaluation"),
    "review": ("review:review_flow", "results:show_evaluation"),
    "collab": ("collab:collab_flow", "results:show_evaluation"),
    "sweep": ("sweep:sweep_flow", "results:show_sweep"),
    "batch-predict": ("batch_predict:batch_predict_flow", "results:show_batch"),
    "embed": ("embed:embed_flow", "results:show_embeddings"),
}
"""Flow and presenter of each command that runs a flow, by module."""
_RUN_RANKS = ("run", "lr-find", "train", "evaluate", "batch-predict", "embed", "collab", "sweep")
_COMMANDS = {
    "run": "the whole pipeline: ingest, learning rate, train, evaluate",
    "ingest": "photos to a Parquet data set",
    "lr-find": "suggest a learning rate",
    "train": "train a model",
    "evaluate": "judge a stored model, or predictions that were made before",
    "batch-predict": "name the breed on many photos, to Parquet",
    "embed": "embeddings of a data set's photos, to Parquet, and near-duplicates by them",
    "similar": "find the photos of a data set that are most like another one",
    "collab": "learn from ratings what users like: ingest, learning rate, train, evaluate",
    "recommend": "what a user may like and has not rated",
    "sweep": "try backbones and learning rates, and compare them",
    "models": "list, show, promote and roll back evaluated models",
    "predict": "name the breed on photos",
    "export": "write a model as ONNX",
    "deploy": "check deployments, and apply them to a Prefect server",
    "datasets": "list, show, compare, verify and sweep stored data sets",
    "gc": "list or remove old runs, checkpoints and data that nothing needs",
    "join": "lend this machine to the runs of another",
    "ui": "open a run in the Prefect UI",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits 2 on a fault the user can mend, 1 on any other."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # As Ctrl-C: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = _Parser(
        prog="pets",
        description="Fine-tune image classifiers, as Prefect flows.",
        epilog="pets COMMAND --help lists every setting with its unit and default.",
    )
    parser.add_argument("--version", action="version", version=version("pets-pipeline"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _COMMANDS.items():
        commands.add_parser(name, help=summary, description=summary, add_help=False)
    try:
        command = parser.parse_args(arguments[:1]).command
        _run(command, arguments[1:])
    except PetsError as error:
        sys.exit(_say_error(str(error)))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    """argparse, with this project's errors."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        raise PetsError(f"{message}\nSee {self.prog} --help.")


def _run(command: str, arguments: list[str]) -> None:
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
    if command == "evaluate":
        command = _what_to_evaluate(parser, arguments)
    if command in ("run", "train", "sweep", "collab"):
        parser.add_argument(
            "--resume", metavar="RUN", help="go on with a run that ended early: its folder"
        )
    if command in ("batch-predict", "embed"):
        parser.add_argument("model_url", metavar="MODEL", help="model folder, path or URL")
    if command == "embed":
        parser.add_argument(
            "--dataset", metavar="VERSION",
            help="stored data set (its newest version), or the first digits of a version's "
            "fingerprint (default: the source's, brought into the store if need be)",
        )  # fmt: skip
    if command == "batch-predict":
        parser.add_argument(
            "--to", dest="output_url", metavar="FOLDER",
            help="of the results; a run that ended early is gone on with there (default: a new "
            "one in the store)",
        )  # fmt: skip
    from pets_core.config.pipeline import PipelineConfig

    if command == "collab":
        from pets_core.ratings.config import RatingsConfig

        config, parsed = _settings(RatingsConfig, parser, arguments)
        from pets_core.ratings.target import RATINGS
        from pets_core.registry.gate import check_gate

        check_gate(config.gate, RATINGS)
        if not parsed.resume:
            from pets_core.ratings.files import check_tables

            check_tables(config.ratings)
        _start_flow(command, config, parsed)
        return
    settings, parsed = _settings(PipelineConfig, parser, arguments)
    _check_input(command, settings, parsed)
    _start_flow(command, settings, parsed)


def _what_to_evaluate(parser: _Parser, arguments: list[str]) -> str:
    """Add the arguments of `pets evaluate`; which flow it is: a model's, or predictions'."""
    parser.add_argument(
        "--from", dest="predictions_url", metavar="PREDICTIONS",
        help="predictions.parquet of an evaluation, in place of MODEL: needs no GPU",
    )  # fmt: skip
    if any(word == "--from" or word.startswith("--from=") for word in arguments):
        return "review"
    # Not "model", which is a group of settings.
    parser.add_argument(
        "model_url", metavar="MODEL", nargs="?", help="model folder, path or URL; or give --from"
    )
    return "evaluate"


def _check_input(command: str, config: PipelineConfig, parsed: argparse.Namespace) -> None:
    """Refuse a path of this machine at which the wrong thing lies, before Prefect is started.

    Raises:
        PetsError: The model, the predictions or the source's path is wrong.
    """
    from pets_core.storage import is_url

    if command == "review" and not is_url(parsed.predictions_url):
        from pets_core.evaluation.predictions import read_info

        read_info(parsed.predictions_url)
    if command == "evaluate" and parsed.model_url is None:
        raise PetsError(
            "pets evaluate wants MODEL, a model folder, or --from PREDICTIONS, the "
            "predictions.parquet of an evaluation"
        )
    if command in ("evaluate", "batch-predict", "embed") and not is_url(parsed.model_url):
        from pets_core.models.card import read_card

        card = read_card(parsed.model_url)
        if command == "evaluate" and card.targets != config.source.targets:
            raise PetsError(
                f"{parsed.model_url} predicts targets = {card.targets}: evaluate it with "
                f"--source.targets {card.targets}"
            )
    if command in ("run", "evaluate"):
        from pets_core.targets.evaluate import check_gate_settings

        check_gate_settings(config)
    if _reads_source(command, parsed):
        from pets_core.data.sources.sources import check_source

        check_source(config)


def _settings(
    kind: type[AnyConfig], parser: _Parser, arguments: list[str]
) -> tuple[AnyConfig, argparse.Namespace]:
    from pets.cli.settings import add_settings, load_settings, setting_names

    source = add_settings(parser, kind)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise PetsError(f"{name}: no such setting.{did_you_mean(name, setting_names(kind))}")
    began_with: dict[str, Any] = {}
    if getattr(parsed, "resume", None):
        if parsed.config_file:
            raise PetsError(
                f"{parsed.config_file}: with --resume the settings are those of the run; leave "
                "the file out"
            )
        from pets_core.runtime.runs import run_settings

        began_with = run_settings(parsed.resume)
        is_ratings_config = "ratings" in kind.model_fields
        if ("ratings" in began_with) != is_ratings_config:
            other = "pets run" if is_ratings_config else "pets collab"
            raise PetsError(
                f"--resume {parsed.resume}: that run learns from "
                f"{'photos' if is_ratings_config else 'ratings'}; go on with {other} --resume"
            )
    return load_settings(kind, source, parsed, began_with), parsed


def _set_prefect_defaults() -> None:
    """To be called before Prefect is imported, which reads them then."""
    for key, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    # Prefect's import warns twice; pets.cli.writable refuses it where a server is to use it.
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
        logging.getLogger(name).addFilter(_without_user_errors)
    from pets.cli.server import check_server, start_temporary_server
    from pets.cli.settings import NO_SETTINGS
    from pets.cli.writable import check_folders

    keywords = {k: v for k, v in vars(parsed).items() if k in NO_SETTINGS and v is not None}
    try:
        # evaluate and review continue without the configured server. Longer commands stop, because
        # nobody could follow them.
        needs_temporary_server = check_server(required=command not in ("evaluate", "review"))
        check_folders(
            cache_dir=_cache_dir(command, config, parsed), is_serving=needs_temporary_server
        )
        wait_for_server = start_temporary_server() if needs_temporary_server else None
        # Import the flow while the server starts.
        run, show = _flow(command)
        if wait_for_server:
            wait_for_server()
        state = run(config=config, return_state=True, **keywords)
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        trouble = "out of reach" if isinstance(error, httpx.TransportError) else "in trouble"
        sys.exit(_say_error(
            f"the Prefect server is {trouble}: {error}\nWhat was done is kept in "
            f"{config.store}/runs.", code=1,
        ))  # fmt: skip
    result = state.result(raise_on_failure=False)
    rejected = state.name == "Rejected"
    if isinstance(result, BaseException):
        if isinstance(result, PetsError):
            raise result
        sys.exit(_say_error(f"{type(result).__name__}: {result}", code=1))
    show(result)
    # Standard output may be read by a program.
    stream = sys.stderr if show.__name__ == "show_record" else sys.stdout
    hint = f"\nSee it in the Prefect UI:  {_program()} ui {state.state_details.flow_run_id}"
    print(hint, file=stream)
    if rejected:
        sys.exit(_say_error(str(state.message), code=1))


def _reads_source(command: str, parsed: argparse.Namespace) -> bool:
    stored = getattr(parsed, "resume", None) or getattr(parsed, "dataset", None)
    return command != "review" and not stored


def _cache_dir(
    command: str, config: PipelineConfig | RatingsConfig, parsed: argparse.Namespace
) -> str | None:
    """The cache_dir if the command writes to it: ranks do, and what is downloaded or unpacked."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.storage import absolute, is_url

    is_read = _reads_source(command, parsed)
    if isinstance(config, PipelineConfig):
        url = config.source.url
        # A local folder is read where it is.
        is_fetched = is_read and (url is None or not Path(absolute(url)).is_dir())
        return config.cache_dir if is_fetched or _runs_ranks_here(command, config) else None
    urls = (config.ratings.url, config.ratings.items_url)
    return config.cache_dir if is_read and any(url and is_url(url) for url in urls) else None


def _runs_ranks_here(command: str, config: PipelineConfig | RatingsConfig) -> bool:
    return command in _RUN_RANKS and config.launch.deployment is None


def _flow(command: str) -> tuple[Callable[..., Any], Callable[[Any], None]]:
    """The flow of a command and how its result is shown; Prefect is imported only here."""
    flow, show = _FLOWS[command]
    return resolve_name(f"flows.{flow}"), resolve_name(f"pets.cli.{show}")


def _program() -> str:
    """How to call this command line again: `pets` where the path finds it, else by its file."""
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
    parser.add_argument("--machine", type=int, default=1, help="number of this one (default: 1)")
    parser.add_argument(
        "--idle-seconds", type=float, default=600.0, metavar="N",
        help="end when nothing is asked for so long (default: 600)",
    )  # fmt: skip
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.runtime.multi_node import join

    config, parsed = _settings(PipelineConfig, parser, arguments)

    join(config, parsed.machine, idle_seconds=parsed.idle_seconds, log=partial(print, flush=True))


def _open_ui(parser: _Parser, arguments: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="flow run id; default: all runs")
    parser.add_argument("--port", type=int, default=4200, help="of the server (default: 4200)")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, open no browser"
    )
    parsed = parser.parse_args(arguments)
    _set_prefect_defaults()
    from pets.cli.ui import open_ui

    open_ui(parsed.run, parsed.port, browser=not parsed.no_browser)


def _without_user_errors(record: logging.LogRecord) -> bool:
    """Leave out what is told of a fault that is reported in one clear line at the end."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, PetsError) and "PetsError: " not in record.getMessage()


def _say_error(message: str, code: int = 2) -> int:
    first, *rest = without_queries(message).splitlines()
    print(f"error: {first}", *(f"       {line}" for line in rest), sep="\n", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
