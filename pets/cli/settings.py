"""Load settings from a YAML file, environment variables and flags, in order of precedence."""

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

from pets.cli.groups import as_flag, as_setting, as_variable, describe_group, find_error, groups
from pets.cli.serve import TOKEN_VARIABLE
from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.yaml_file import parse_settings
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsConfig

__all__ = [
    "FLOW_ARGUMENTS",
    "add_settings",
    "config_file",
    "format_errors",
    "load_settings",
    "setting_names",
]

FLOW_ARGUMENTS = ("dataset", "model_url", "output_url", "predictions_url", "resume")
"""Command-line arguments that are passed to the flow as parameters."""
_OTHER_VARIABLES = (TOKEN_VARIABLE,)
"""Environment variables that start with PETS_ and are not settings."""

Config = PipelineConfig | RatingsConfig
AnyConfig = TypeVar("AnyConfig", PipelineConfig, RatingsConfig)


class _Sources(BaseSettings):
    """Settings that also read PETS_<GROUP>__<NAME> environment variables."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment before the YAML file, which is passed as init settings."""
        return env_settings, init_settings


_SOURCES = SettingsConfigDict(
    env_prefix="PETS_",
    # An empty variable counts as not set, as in `resolve_store`.
    env_ignore_empty=True,
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


_SETTINGS_CLASSES: dict[type[Config], type[BaseSettings]] = {
    PipelineConfig: _PipelineSettings,
    RatingsConfig: _RatingsSettings,
}


def add_settings(parser: argparse.ArgumentParser, kind: type[Config]) -> CliSettingsSource[Any]:
    """Add CONFIG.yaml and a flag for each setting to a command's parser."""
    parser.add_argument(
        "config_file", nargs="?", metavar="CONFIG.yaml", help="settings file; flags take precedence"
    )
    parser.add_argument(
        "--config", dest="config_flag", metavar="FILE", help="the same as CONFIG.yaml"
    )
    source: CliSettingsSource[Any] = CliSettingsSource(_SETTINGS_CLASSES[kind], root_parser=parser)
    # An empty flag is a value, such as --notes "": only empty variables count as not set.
    source.env_ignore_empty = False
    for action in parser._actions:
        if action.dest in groups(kind):
            # pydantic-settings ignores a group's flag without a value.
            action.const = ""
    return source


def load_settings(
    kind: type[AnyConfig],
    source: CliSettingsSource[Any],
    arguments: argparse.Namespace,
    stored_settings: dict[str, Any],
) -> AnyConfig:
    """Load the settings: flags override the environment, the YAML file and the defaults.

    Args:
        kind: Class of the settings.
        source: Source of the flags.
        arguments: Parsed arguments.
        stored_settings: Settings of the run to resume, used instead of a YAML file.

    Raises:
        PetsError: The file cannot be read, or settings are invalid; lists all errors.
    """
    parsed: dict[str, Any] = {
        k: v for k, v in vars(arguments).items() if k.partition(".")[0] in kind.model_fields
    }
    if errors := [*_find_flag_errors(kind, parsed), *_find_variable_errors(kind)]:
        raise PetsError("\n".join(errors))
    flags = _read_flags(kind, source, parsed)
    try:
        filled = _SETTINGS_CLASSES[kind](
            _cli_settings_source=flags, **(stored_settings or _read_yaml(config_file(arguments)))
        )
        return kind.model_validate(filled.model_dump())
    except ValidationError as error:
        raise PetsError(format_errors(error, kind)) from None


def config_file(arguments: argparse.Namespace) -> str | None:
    """Return the path of the settings file, given as CONFIG.yaml or by --config, if any.

    Raises:
        PetsError: Both are given.
    """
    if arguments.config_file and arguments.config_flag:
        raise PetsError(
            f"{arguments.config_file} and --config {arguments.config_flag}: remove one of them"
        )
    file: str | None = arguments.config_file or arguments.config_flag
    return file


def _find_flag_errors(kind: type[AnyConfig], parsed: Mapping[str, Any]) -> list[str]:
    errors = []
    for name, group in groups(kind).items():
        text = parsed.get(name)
        if isinstance(text, str) and (error := find_error(name, group, text, as_flag)):
            errors.append(f"{f'--{name} {text}'.rstrip()}: {error}")
    return errors


def _read_flags(
    kind: type[AnyConfig], source: CliSettingsSource[Any], parsed: dict[str, Any]
) -> CliSettingsSource[Any]:
    try:
        return source(parsed_args=argparse.Namespace(**parsed))
    except SettingsError as error:
        found = re.fullmatch("Parsing error encountered for (.+?): .*", str(error), re.DOTALL)
        if found is None:
            raise PetsError(f"invalid flag: {error}") from error
        name = found[1]
        expected = "comma-separated values or a JSON list"
        if _container_type(kind, name) is dict:
            expected = "NAME=VALUE or a JSON object"
        raise PetsError(f"--{name} {' '.join(parsed[name])}: expected {expected}") from error


def _find_variable_errors(kind: type[AnyConfig]) -> list[str]:
    # The environment may hold settings of both classes.
    names: list[str] = [name for each in _SETTINGS_CLASSES for name in setting_names(each)]
    known = {*names, *(name.split(".")[0] for name in names)}
    errors = []
    for variable, text in sorted(os.environ.items()):
        if not variable.upper().startswith("PETS_") or variable in _OTHER_VARIABLES:
            continue
        name = variable[len("PETS_") :].lower().replace("__", ".")
        if name not in known:
            errors.append(f"{variable}: no such setting.{did_you_mean(name, dict.fromkeys(names))}")
        elif text and (error := _find_variable_error(kind, name, text)):
            errors.append(f"{variable} = {text}: {error}")
    return errors


def _find_variable_error(kind: type[AnyConfig], name: str, text: str) -> str | None:
    """Return the error in a variable's text if its setting takes JSON, else None."""
    if name in groups(kind):
        return find_error(name, groups(kind)[name], text, as_variable)
    container = _container_type(kind, name)
    if container not in (tuple, dict):
        return None
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        example = '["a", "b"]' if container is tuple else '{"name": "value"}'
        return f"expected JSON, such as {example}"
    return None


def _container_type(kind: type[AnyConfig], name: str) -> Any:
    """Return tuple or dict for a setting such as sweep.backbones, None for other settings."""
    group, _, field = name.partition(".")
    fields = groups(kind)[group].model_fields if group in groups(kind) else {}
    return get_origin(fields[field].annotation) if field in fields else None


def format_errors(error: ValidationError, kind: type[Config] = PipelineConfig) -> str:
    """Format validation errors, one per line: setting, value, error, remedy."""
    lines: dict[str, list[str]] = {}
    for each in error.errors(include_url=False):
        setting, _, message = _format_error(each, kind).partition(": ")
        lines.setdefault(setting, []).append(message)
    # A union type has one error per branch. Errors of the whole model name their settings.
    return "\n".join(
        f"{setting}: {', or '.join(messages)}" if setting else "\n".join(messages)
        for setting, messages in lines.items()
    )


def _format_error(error: Any, kind: type[Config]) -> str:
    path = [str(part) for part in error["loc"] if not _is_union_branch(str(part))]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{name}: no such setting.{did_you_mean(name, setting_names(kind))}"
    if error["type"] == "model_type" and name in groups(kind):
        shown = "null" if error["input"] is None else repr(error["input"])
        explanation = describe_group(name, groups(kind)[name], error["input"], as_setting)
        return f"{name} = {shown}: {explanation}"
    message = error["msg"].removeprefix("Value error, ")
    has_value = not isinstance(error["input"], (dict, BaseModel))
    value = storage.strip_password(f" = {error['input']!r}") if has_value else ""
    return f"{name}{value}: {message[:1].lower()}{message[1:]}"


def setting_names(kind: type[Config] = PipelineConfig) -> list[str]:
    """Return the dotted names of all settings."""
    names = []
    for name in kind.model_fields:
        group = groups(kind).get(name)
        names += [f"{name}.{field}" for field in group.model_fields] if group else [name]
    return names


def _is_union_branch(part: str) -> bool:
    """Return whether a part of an error's location is a branch of a union, not a setting."""
    return "[" in part or part in ("float", "int", "str", "none") or part.startswith("constrained-")


def _read_yaml(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    if path.lower() in ("true", "false", "yes", "no", "on", "off"):
        raise PetsError(f"{path}: boolean settings take no value. Use --NAME or --no-NAME")
    if Path(path).is_dir():
        raise PetsError(f"{path}: is a folder. To train on its photos, use --source.url {path}")
    try:
        return parse_settings(Path(path).read_bytes(), path)
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
