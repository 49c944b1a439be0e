"""Argument parser of the command line: short and full help, errors as `PetsError`."""

from __future__ import annotations

import argparse
import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pets.cli.commands import COMMANDS, GROUP_EXAMPLES
from pets_core.errors import PetsError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "Parser",
    "add_log_options",
    "add_run_options",
    "add_short_help",
    "command_parser",
    "set_log_level",
]

_LOG_LEVELS = ("debug", "info", "warning", "error")
_INDENT = 14
_MAX_WIDTH = 100


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `PetsError` and accepts dashes for underscores in flags."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)
        self.short_help = ""
        """Help that --help prints if the full help, of --help-all, is long."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of exiting."""
        raise PetsError(f"{message}\nSee {self.prog} --help.")

    def format_help(self) -> str:
        """Return the short help if there is one, otherwise the full help."""
        return self.short_help or super().format_help()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments; `--lr-find.num-steps` is the same as `--lr_find.num_steps`."""
        flags = {flag.replace("-", "_"): flag for flag in self._option_string_actions}
        words = []
        for word in args or ():
            flag, equals, value = word.partition("=")
            is_flag = word.startswith("--") and flag not in self._option_string_actions
            known = flags.get(flag.replace("-", "_"), flag) if is_flag else flag
            words.append(f"{known}{equals}{value}")
        return super().parse_known_args(words, namespace)


class _PrintFullHelp(argparse.Action):
    """Action of --help-all."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the help of every setting, and exit."""
        print(argparse.ArgumentParser.format_help(parser), end="")
        parser.exit()


def command_parser(name: str) -> Parser:
    """Return the parser of a command, without its arguments."""
    command = COMMANDS[name]
    examples = "".join(f"\n  {f'pets {name} {text}'.rstrip()}" for text in command.examples)
    return Parser(
        prog=f"pets {name}",
        description=f"{command.summary[:1].upper()}{command.summary[1:]}.",
        epilog=f"examples:{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add -v, -q and --log-level, which set the level of Prefect's log."""
    add = parser.add_mutually_exclusive_group().add_argument
    for short, long, level in (("-v", "--verbose", "debug"), ("-q", "--quiet", "warning")):
        add(
            short, long, dest="log_level", action="store_const", const=level,
            help=f"the same as --log-level {level}",
        )  # fmt: skip
    add("--log-level", dest="log_level", choices=_LOG_LEVELS, help="lowest level of the log")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add --name, --tag and --notes, which are short for the settings of the group `run`."""
    options: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("--name", "run.name", {"metavar": "NAME", "help": "name of the run"}),
        (
            "--tag",
            "run.tags",
            {"metavar": "TAG", "action": "append", "help": "tag of the run; may be repeated"},
        ),
        ("--notes", "run.notes", {"metavar": "TEXT", "help": "notes of the run"}),
    )
    for flag, setting, keywords in options:
        parser.add_argument(flag, dest=setting, default=argparse.SUPPRESS, **keywords)


def set_log_level(arguments: argparse.Namespace) -> None:
    """Apply -v, -q or --log-level. Call this before Prefect is imported."""
    if arguments.log_level:
        os.environ["PREFECT_LOGGING_LEVEL"] = arguments.log_level.upper()


def add_short_help(name: str, parser: Parser, groups: Mapping[str, type[BaseModel]]) -> None:
    """Let --help print the groups of settings that a command uses, and --help-all every setting.

    Args:
        name: Name of the command.
        parser: Its parser, with all arguments.
        groups: All groups of settings by name.
    """
    parser.add_argument(
        "--help-all", action=_PrintFullHelp, nargs=0, help="show every setting and exit"
    )
    own = [action for action in parser._actions if _is_own(action, groups)]
    positional = [action for action in own if not action.option_strings]
    names = [f"[{each.metavar}]" if each.nargs == "?" else str(each.metavar) for each in positional]
    short = argparse.ArgumentParser(
        usage=" ".join([parser.prog, *names, "[options] [--GROUP.SETTING VALUE ...]"]),
        description=parser.description,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for action in own:
        short._add_action(action)
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 2
    lines = [f"settings (described by {parser.prog} --help-all):"]
    for group in COMMANDS[name].groups:
        lines += _group_lines(group, groups[group], width)
    text = "\n".join(lines)
    parser.short_help = f"{short.format_help()}\n{text}\n\n{parser.epilog}\n"


def _is_own(action: argparse.Action, groups: Mapping[str, type[BaseModel]]) -> bool:
    """Return whether an argument is not a field of a group, nor a whole group."""
    is_setting = any(f"--{action.dest}" == flag for flag in action.option_strings)
    return not (is_setting and "." in action.dest) and action.dest not in groups


def _group_lines(name: str, group: type[BaseModel], width: int) -> list[str]:
    """Return a group's summary and some of its settings, wrapped."""
    examples = GROUP_EXAMPLES[name]
    num_more = len(group.model_fields) - len(examples)
    flags = ", ".join(f"--{name}.{field}" for field in examples)
    lines: list[str] = []
    for text in (
        (group.__doc__ or "").partition("\n")[0],
        flags + (f" and {num_more} more" if num_more else ""),
    ):
        start = "" if lines else f"  {name}"
        lines += textwrap.wrap(
            text, width, initial_indent=f"{start:{_INDENT}}", subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
        )  # fmt: skip
    return lines
