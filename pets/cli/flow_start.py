"""Start the flow of a command, and print its result or how to resume it."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pets.cli.commands import EVALUATE_PREDICTIONS, FLOW_COMMANDS
from pets.cli.exit_codes import FAILED, REJECTED, print_error
from pets_core.errors import PetsError
from pets_core.runtime.importing import import_object

if TYPE_CHECKING:
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.ratings.config import RatingsConfig

__all__ = ["reads_source", "set_prefect_defaults", "start_flow"]

_PREFECT_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The first start of a temporary server creates its database, which can be slow.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
_HIDDEN = ("Crash detected! Execution was aborted by", "Running hook ", "Hook '")
"""Starts of Prefect's messages after Ctrl-C or SIGTERM, and about the hook that reads the id."""


def set_prefect_defaults() -> None:
    """Set environment defaults of Prefect. Call this before Prefect is imported."""
    for key, value in _PREFECT_DEFAULTS.items():
        os.environ.setdefault(key, value)
    # Prefect warns twice at import; pets.cli.writable raises if a server needs the folder.
    warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")


def start_flow(
    name: str, config: PipelineConfig | RatingsConfig, parsed: argparse.Namespace
) -> None:
    """Run a command's flow and print its result. Exits with 1 if it fails, with 3 if rejected.

    Args:
        name: Name of the command; `evaluate-predictions` for `pets evaluate --from`.
        config: The settings.
        parsed: Its other arguments.

    Raises:
        PetsError: The flow failed because of its input or settings.
    """
    if _runs_ranks_here(name, config):
        from pets_core.runtime.launcher import prestart_ranks

        prestart_ranks()
    import httpx

    for logger in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(logger).addFilter(_is_shown)
    from pets.cli.server import check_server, start_temporary_server
    from pets.cli.settings import FLOW_ARGUMENTS
    from pets.cli.writable import check_folders

    parameters = {k: v for k, v in vars(parsed).items() if k in FLOW_ARGUMENTS and v is not None}
    run_ids: list[UUID] = []
    try:
        # Evaluations continue without the configured server. Longer commands stop, because their
        # progress would not be visible.
        is_evaluation = name in ("evaluate", EVALUATE_PREDICTIONS)
        needs_temporary_server = check_server(required=not is_evaluation)
        check_folders(cache_dir=_cache_dir(name, config, parsed), is_serving=needs_temporary_server)
        wait_for_server = start_temporary_server() if needs_temporary_server else None
        # Import the flow while the server starts.
        flow, show = _load_flow(name)
        if wait_for_server:
            wait_for_server()
        flow = flow.with_options(on_running=[lambda _flow, run, _state: run_ids.append(run.id)])
        from prefect import tags

        with tags(*config.run.tags):
            state = flow(config=config, return_state=True, **parameters)
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        problem = "is unreachable" if isinstance(error, httpx.TransportError) else "failed"
        message = f"the Prefect server {problem}: {error}"
        sys.exit(print_error(message + _how_to_resume(name, config, parsed, run_ids), FAILED))
    except (KeyboardInterrupt, SystemExit):
        sys.stderr.write(_how_to_resume(name, config, parsed, run_ids).lstrip())
        raise
    result = state.result(raise_on_failure=False)
    if isinstance(result, PetsError):
        raise result
    if isinstance(result, BaseException):
        message = f"{type(result).__name__}: {result}"
        sys.exit(print_error(message + _how_to_resume(name, config, parsed, run_ids), FAILED))
    _print_result(result, show, parsed, state.state_details.flow_run_id)
    if state.name == "Rejected":
        sys.exit(print_error("not promoted, see Gate above", REJECTED))


def _print_result(
    result: Any, show: Callable[[Any], None], parsed: argparse.Namespace, run_id: UUID | None
) -> None:
    if parsed.json:
        print(result.model_dump_json(indent=2))
    else:
        show(result)
    if parsed.log_level not in ("warning", "error"):
        # Keep standard output valid JSON.
        stream = sys.stderr if parsed.json else sys.stdout
        print(f"\nSee it in the Prefect UI:  {_program()} ui {run_id}", file=stream)


def _how_to_resume(
    name: str,
    config: PipelineConfig | RatingsConfig,
    parsed: argparse.Namespace,
    run_ids: list[UUID],
) -> str:
    """Return a line with the command that resumes the run; empty if nothing is stored."""
    from pets_core import storage
    from pets_core.runtime.runs import is_run, run_folder

    folder = getattr(parsed, "resume", None)
    if FLOW_COMMANDS[name].resumes and not folder and run_ids:
        folder = run_folder(config, str(run_ids[0]))
    if not folder or not is_run(folder):
        return ""
    shown = shlex.quote(storage.absolute(folder))
    return f"\nTo resume the run:  {_program()} {name} --resume {shown}\n"


def reads_source(name: str, parsed: argparse.Namespace) -> bool:
    """Return whether a command reads the configured source."""
    stored = getattr(parsed, "resume", None) or getattr(parsed, "dataset", None)
    return name != EVALUATE_PREDICTIONS and not stored


def _cache_dir(
    name: str, config: PipelineConfig | RatingsConfig, parsed: argparse.Namespace
) -> str | None:
    """Return cache_dir if the command writes to it: for ranks, downloads or unpacked archives."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.storage import absolute, is_url

    is_read = reads_source(name, parsed)
    if isinstance(config, PipelineConfig):
        url = config.source.url
        # A local folder is read in place.
        is_fetched = is_read and (url is None or not Path(absolute(url)).is_dir())
        return config.cache_dir if is_fetched or _runs_ranks_here(name, config) else None
    urls = (config.ratings.url, config.ratings.items_url)
    return config.cache_dir if is_read and any(url and is_url(url) for url in urls) else None


def _runs_ranks_here(name: str, config: PipelineConfig | RatingsConfig) -> bool:
    return FLOW_COMMANDS[name].runs_ranks and config.launch.deployment is None


def _load_flow(name: str) -> tuple[Any, Callable[[Any], None]]:
    """Import the flow of a command and the function that prints its result."""
    command = FLOW_COMMANDS[name]
    return import_object(f"flows.{command.flow}"), import_object(f"pets.cli.{command.show}")


def _program() -> str:
    """Return the shell command of this program: `pets`, its quoted path, or `python -m pets`."""
    started = Path(sys.argv[0])
    found = shutil.which("pets")
    if started.name != "pets":
        return f"{sys.executable} -m pets"
    return "pets" if found and Path(found).samefile(started) else shlex.quote(sys.argv[0])


def _is_shown(record: logging.LogRecord) -> bool:
    """Filter out log records that the command line prints itself: a `PetsError`, and a stop."""
    error = record.exc_info[1] if record.exc_info else None
    message = record.getMessage()
    is_user_error = isinstance(error, PetsError) or "PetsError: " in message
    return not is_user_error and not message.startswith(_HIDDEN)
