"""Fills the settings from a YAML file, the environment and flags, in rising order of weight."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from pets.cli.groups import as_flag, as_setting, as_variable, describe_group, find_fault, groups
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.yaml_file import parse_settings
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsConfig

__all__ = ["NO_SETTINGS", "add_settings", "explain", "load_settings", "setting_names"]

NO_SETTINGS = ("dataset", "model_url", "output_url", "predictions_url", "resume")
"""Arguments of commands that are parameters of their flow."""


Config = PipelineConfig | RatingsConfig
AnyConfig = TypeVar("AnyConfig", PipelineConfig, RatingsConfig)


class _Sources(BaseSettings):
    """Settings that are also read from PETS_<GROUP>__<NAME> environment variables."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before the YAML file, which arrives as init settings."""
        return env_settings, init_settings


_SOURCES = SettingsConfigDict(
    env_prefix="PETS_",
    env_nested_delimiter="__",
    nested_model_default_partial_update=True,
    cli_avoid_json=True,
    cli_hide_none_type=True,
    cli_implicit_flags=True,
    cli_parse_none_str="null",
)


class _PipelineSettings(PipelineConfig, _Sources):
    model_config = _SOURCES


class _RatingsSettings(RatingsConfig, _Sources):
    model_config = _SOURCES


_READ: dict[type[Config], type[BaseSettings]] = {
    PipelineConfig: _PipelineSettings,
    RatingsConfig: _RatingsSettings,
}


def add_settings(parser: argparse.ArgumentParser, kind: type[Config]) -> CliSettingsSource[Any]:
    """Add CONFIG.yaml and a flag for each setting to a command's parser."""
    parser.add_argument(
        "config_file", nargs="?", metavar="CONFIG.yaml", help="settings; flags outweigh them"
    )
    source: CliSettingsSource[Any] = CliSettingsSource(_READ[kind], root_parser=parser)
    for action in parser._actions:
        if action.dest in groups(kind):
            # A group's flag without a value would be ignored.
            action.const = ""
    return source


def load_settings(
    kind: type[AnyConfig],
    source: CliSettingsSource[Any],
    arguments: argparse.Namespace,
    began_with: dict[str, Any],
) -> AnyConfig:
    """Fill the settings: flags over environment over YAML file over defaults.

    Args:
        kind: Which settings.
        source: Of the flags.
        arguments: As parsed.
        began_with: Settings of the run that is gone on with, in place of a YAML file.

    Raises:
        PetsError: The file cannot be read, or a setting is refused; all faults are listed.
    """
    others = (*NO_SETTINGS, "config_file", "machine", "idle_seconds")
    parsed: dict[str, Any] = {k: v for k, v in vars(arguments).items() if k not in others}
    if faults := [*_find_flag_faults(kind, parsed), *_find_variable_faults(kind)]:
        raise PetsError("\n".join(faults))
    flags = _read_flags(kind, source, parsed)
    try:
        filled = _READ[kind](
            _cli_settings_source=flags, **(began_with or _read_yaml(arguments.config_file))
        )
        return kind.model_validate(filled.model_dump())
    except ValidationError as error:
        raise PetsError(explain(error, kind)) from None


def _find_flag_faults(kind: type[AnyConfig], parsed: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, group in groups(kind).items():
        text = parsed.get(name)
        if isinstance(text, str) and (fault := find_fault(name, group, text, as_flag)):
            faults.append(f"{f'--{name} {text}'.rstrip()}: {fault}")
    return faults


def _read_flags(
    kind: type[AnyConfig], source: CliSettingsSource[Any], parsed: dict[str, Any]
) -> CliSettingsSource[Any]:
    try:
        return source(parsed_args=argparse.Namespace(**parsed))
    except SettingsError as error:
        found = re.fullmatch("Parsing error encountered for (.+?): .*", str(error), re.DOTALL)
        if found is None:
            raise PetsError(f"a flag cannot be read: {error}") from error
        name = found[1]
        expected = "values with commas between them, or a JSON list"
        if _container(kind, name) is dict:
            expected = "NAME=VALUE, or a JSON object"
        raise PetsError(f"--{name} {' '.join(parsed[name])}: expected {expected}") from error


def _find_variable_faults(kind: type[AnyConfig]) -> list[str]:
    # One environment serves the runs of every kind.
    names: list[str] = [name for each in _READ for name in setting_names(each)]
    known = {*names, *(name.split(".")[0] for name in names)}
    faults = []
    for variable, text in sorted(os.environ.items()):
        if not variable.upper().startswith("PETS_"):
            continue
        name = variable[len("PETS_") :].lower().replace("__", ".")
        if name not in known:
            faults.append(f"{variable}: no such setting.{did_you_mean(name, dict.fromkeys(names))}")
        elif fault := _find_variable_fault(kind, name, text):
            faults.append(f"{variable} = {text}: {fault}" if text else f"{variable}: {fault}")
    return faults


def _find_variable_fault(kind: type[AnyConfig], name: str, text: str) -> str | None:
    """What is wrong with the JSON text of a variable, if its setting takes JSON."""
    if name in groups(kind):
        return find_fault(name, groups(kind)[name], text, as_variable)
    container = _container(kind, name)
    if container not in (tuple, dict):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        example = '["a", "b"]' if container is tuple else '{"name": "value"}'
        return f"expected JSON, such as {example}"
    return None


def _container(kind: type[AnyConfig], name: str) -> Any:
    """The container type of a setting such as sweep.backbones: tuple or dict; None for others."""
    group, _, field = name.partition(".")
    fields = groups(kind)[group].model_fields if group in groups(kind) else {}
    return get_origin(fields[field].annotation) if field in fields else None


def explain(error: ValidationError, kind: type[Config] = PipelineConfig) -> str:
    """All faults of a validation, a line each: setting, value, what is wrong, remedy."""
    lines: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        about, _, message = _explain_one(fault, kind).partition(": ")
        lines.setdefault(about, []).append(message)
    # A setting of several types is refused once by each; groups that clash name their settings.
    return "\n".join(
        f"{about}: {', or '.join(said)}" if about else "\n".join(said)
        for about, said in lines.items()
    )


def _explain_one(fault: Any, kind: type[Config]) -> str:
    path = [str(part) for part in fault["loc"] if not _is_branch(str(part))]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"{name}: no such setting.{did_you_mean(name, setting_names(kind))}"
    if fault["type"] == "model_type" and name in groups(kind):
        shown = "null" if fault["input"] is None else repr(fault["input"])
        explained = describe_group(name, groups(kind)[name], fault["input"], as_setting)
        return f"{name} = {shown}: {explained}"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], (dict, BaseModel)) else f" = {fault['input']!r}"
    return f"{name}{value}: {message[:1].lower()}{message[1:]}"


def setting_names(kind: type[Config] = PipelineConfig) -> list[str]:
    """Every setting's dotted name."""
    names = []
    for name in kind.model_fields:
        group = groups(kind).get(name)
        names += [f"{name}.{field}" for field in group.model_fields] if group else [name]
    return names


def _is_branch(part: str) -> bool:
    """Whether a part of an error's place names a branch of a union rather than a setting."""
    return "[" in part or part in ("float", "int", "str", "none") or part.startswith("constrained-")


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    if path.lower() in ("true", "false", "yes", "no", "on", "off"):
        raise PetsError(
            f"{path}: a setting that is on or off takes no value: write --NAME, or --no-NAME"
        )
    if Path(path).is_dir():
        raise PetsError(f"{path}: is a folder; to train on its photos, give --source.url {path}")
    try:
        return parse_settings(Path(path).read_bytes(), path)
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
