"""Fills the settings from a YAML file, the environment and flags, in rising order of weight."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pets_core.config import PipelineConfig
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
    return CliSettingsSource(_READ[kind], root_parser=parser)


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
    parsed = {k: v for k, v in vars(arguments).items() if k not in others}
    flags = source(parsed_args=argparse.Namespace(**parsed))
    _refuse_unknown_variables()
    try:
        filled = _READ[kind](
            _cli_settings_source=flags, **(began_with or _read_yaml(arguments.config_file))
        )
        return kind.model_validate(filled.model_dump())
    except ValidationError as error:
        raise PetsError(explain(error, kind)) from None


def _refuse_unknown_variables() -> None:
    # One environment serves the runs of every kind.
    names = [name for kind in _READ for name in setting_names(kind)]
    known = {*names, *(name.split(".")[0] for name in names)}
    faults = [
        f"{variable}: no such setting.{did_you_mean(name, names)}"
        for variable in sorted(os.environ)
        if variable.startswith("PETS_")
        and (name := variable.removeprefix("PETS_").lower().replace("__", ".")) not in known
    ]
    if faults:
        raise PetsError("\n".join(faults))


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
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], (dict, BaseModel)) else f" = {fault['input']!r}"
    return f"{name}{value}: {message[:1].lower()}{message[1:]}"


def setting_names(kind: type[Config] = PipelineConfig) -> list[str]:
    """Every setting's dotted name."""
    names = []
    for name, field in kind.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            names += [f"{name}.{inner}" for inner in group.model_fields]
        else:
            names.append(name)
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
        content = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise PetsError(f"{path}: is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise PetsError(f"{path}: expected settings by name, found {type(content).__name__}")
    return {str(name): value for name, value in content.items()}
