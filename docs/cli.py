"""Generate docs/cli.md, the reference of the commands, from their argument parsers.

python docs/cli.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pets.cli.commands import COMMANDS
from pets.cli.completion import full_parser
from pets.cli.settings import setting_names
from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig

__all__ = ["commands_page"]

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """# Commands

All commands with their arguments. [Command line](command-line.md) is the guide: precedence of
settings, JSON output, exit codes, completion. `python docs/cli.py` generates this page.
"""
FLOW_ARGUMENTS = """## Arguments of every flow

Commands with settings run a flow. Each [setting](settings.md) is a flag, such as
`--train.epochs 3`, `--store` or `--cache_dir`; a group of settings is one, too
(`--train '{"epochs": 3}'`). These arguments are common to all flows:
"""
_SETTINGS = {
    setting
    for kind in (PipelineConfig, RatingsConfig)
    for setting in (*kind.model_fields, *setting_names(kind))
}
_HEADER = "| argument | description |\n| --- | --- |"


def commands_page() -> str:
    """Return the page as Markdown."""
    parsers = _subparsers(full_parser())
    flows = [_rows(name, parsers[name]) for name, command in COMMANDS.items() if command.flow]
    common = [row for row in flows[0] if all(row in rows for rows in flows)]
    summaries = [
        f"| [`pets {name}`](#pets-{name}) | {COMMANDS[name].summary} |" for name in parsers
    ]
    table = ["| command | what it does |\n| --- | --- |", *summaries, ""]
    sections = [_section(name, parsers[name], common) for name in parsers]
    shared = "\n".join([FLOW_ARGUMENTS, _HEADER, *common, ""])
    return "\n".join([INTRODUCTION, *table, *sections, shared])


def _section(name: str, parser: argparse.ArgumentParser, common: list[str]) -> str:
    command = COMMANDS[name]
    lines = [f"## pets {name}", "", f"{command.summary[:1].upper()}{command.summary[1:]}.", ""]
    if command.examples:
        examples = [f"pets {name} {text}".rstrip() for text in command.examples]
        lines += ["```console", *examples, "```", ""]
    if actions := _subparsers(parser):
        for action, own in actions.items():
            summary = f"{str(own.description).capitalize()}."
            lines += [f"### pets {name} {action}", "", summary, "", *_table(_rows(name, own))]
        return "\n".join(lines)
    rows = _rows(name, parser)
    lines += _table([row for row in rows if row not in common] if command.flow else rows)
    if command.groups:
        links = ", ".join(
            f"[`{each}`](settings.md#{_anchor(name, each)})" for each in command.groups
        )
        lines += [f"Settings: {links}.", ""]
    if command.flow:
        lines += ["Also the [arguments of every flow](#arguments-of-every-flow).", ""]
    return "\n".join(lines)


def _anchor(name: str, group: str) -> str:
    """Return the anchor of a command's group of settings in settings.md."""
    photos, ratings = PipelineConfig.model_fields.get(group), RatingsConfig.model_fields.get(group)
    has_own = name == "collab" and photos and ratings and photos.annotation != ratings.annotation
    return f"{group}-ratings" if has_own else group


def _table(rows: list[str]) -> list[str]:
    return [_HEADER, *rows, ""] if rows else []


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _rows(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return one row of a table per argument of a command that is neither help nor a setting."""
    settings = _SETTINGS if COMMANDS[name].groups else set()
    return [
        f"| {_name(action)} | {_cell(action.help or '')} |"
        for action in parser._actions
        if action.dest != "help"
        # --name has the destination run.name, as --run.name has.
        and not (action.dest in settings and f"--{action.dest}" in action.option_strings)
    ]


def _name(action: argparse.Action) -> str:
    """Return flags and value of an argument, as code; several flags are alternatives."""
    value = ""
    if action.nargs != 0:
        metavar = action.metavar or "{" + ",".join(action.choices or ()) + "}"
        value = str(metavar if metavar != "{}" else action.dest.upper()).replace("|", " or ")
    if not action.option_strings:
        optional = {"?": f"[{value}]", "+": f"{value} ..."}
        return f"`{optional.get(str(action.nargs), value)}`"
    return ", ".join(f"`{f'{flag} {value}'.rstrip()}`" for flag in action.option_strings)


def _cell(text: str) -> str:
    """Return text for one table cell: a single line, with escaped borders."""
    return " ".join(text.replace("%%", "%").split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    # The help names the default store.
    os.environ.pop("PETS_STORE", None)
    PAGE.write_text(commands_page(), encoding="utf-8")
