"""`pets join`: run training ranks on this machine for the runs of another machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pets.cli.flow_command import load_config
from pets.cli.parser import Parser, add_short_help
from pets_core.errors import PetsError

if TYPE_CHECKING:
    from pydantic_settings import CliSettingsSource

__all__ = ["add_join_arguments", "run_join"]


def add_join_arguments(parser: Parser) -> CliSettingsSource[Any]:
    """Add the arguments of `pets join` and a flag for each setting, and return their source."""
    from pets.cli.groups import groups
    from pets.cli.settings import add_settings
    from pets_core.config.pipeline import PipelineConfig

    parser.add_argument("--machine", type=int, default=1, help="machine number (default: 1)")
    parser.add_argument(
        "--idle-seconds", type=float, default=600.0, metavar="N",
        help="exit after this long without a request, seconds (default: 600)",
    )  # fmt: skip
    source = add_settings(parser, PipelineConfig)
    add_short_help("join", parser, groups(PipelineConfig))
    return source


def run_join(parser: Parser, arguments: list[str]) -> None:
    """Run this machine's ranks in every stage that machine 0 requests.

    Raises:
        PetsError: An argument or a setting is invalid.
    """
    source = add_join_arguments(parser)
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.runtime.multi_node import join

    config, parsed = load_config(PipelineConfig, source, parser, arguments)
    if not parsed.idle_seconds >= 0:
        raise PetsError(f"--idle-seconds = {parsed.idle_seconds:g}: must be at least 0")
    join(config, parsed.machine, idle_seconds=parsed.idle_seconds, log=partial(print, flush=True))
