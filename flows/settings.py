"""Fills `PipelineConfig` from a YAML file, the environment and flags, in rising order of weight."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

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

__all__ = ["NO_SETTINGS", "add_settings", "explain", "load_settings", "setting_names"]

NO_SETTINGS = ("model_url", "output_url", "predictions_url", "resume")
"""Arguments of commands that are parameters of their flow."""


class _Settings(PipelineConfig, BaseSettings):
    """The same settings, also read from PETS_<GROUP>__<NAME> environment variables."""

    model_config = SettingsConfigDict(
        env_prefix="PETS_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_parse_none_str="null",
    )

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


def add_settings(parser: argparse.ArgumentParser) -> CliSettingsSource[Any]:
    """Add CONFIG.yaml and a flag for each setting to a command's parser."""
    parser.add_argument(
        "config_file", nargs="?", metavar="CONFIG.yaml", help="settings; flags outweigh them"
    )
    return CliSettingsSource(_Settings, root_parser=parser)


def load_settings(
    source: CliSettingsSource[Any], arguments: argparse.Namespace, began_with: dict[str, Any]
) -> PipelineConfig:
    """Fill the settings: flags over environment over YAML file over defaults.

    Args:
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
        filled = _Settings(
            _cli_settings_source=flags, **(began_with or _read_yaml(arguments.config_file))
        )
        return PipelineConfig.model_validate(filled.model_dump())
    except ValidationError as error:
        raise PetsError(explain(error)) from None


def _refuse_unknown_variables() -> None:
    known = {*setting_names(), *(name.split(".")[0] for name in setting_names())}
    faults = [
        f"{variable}: no such setting.{did_you_mean(name, setting_names())}"
        for variable in sorted(os.environ)
        if variable.startswith("PETS_")
        and (name := variable.removeprefix("PETS_").lower().replace("__", ".")) not in known
    ]
    if faults:
        raise PetsError("\n".join(faults))


def explain(error: ValidationError) -> str:
    """All faults of a validation, a line each: setting, value, what is wrong, remedy."""
    lines: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False):
        about, _, message = _explain_one(fault).partition(": ")
        lines.setdefault(about, []).append(message)
    # A setting of several types is refused once by each; groups that clash name their settings.
    return "\n".join(
        f"{about}: {', or '.join(said)}" if about else "\n".join(said)
        for about, said in lines.items()
    )


def _explain_one(fault: Any) -> str:
    path = [str(part) for part in fault["loc"] if not _is_branch(str(part))]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"{name}: no such setting.{did_you_mean(name, setting_names())}"
    message = fault["msg"].removeprefix("Value error, ")
    value = "" if isinstance(fault["input"], (dict, BaseModel)) else f" = {fault['input']!r}"
    return f"{name}{value}: {message[:1].lower()}{message[1:]}"


def setting_names() -> list[str]:
    """Every setting's dotted name."""
    names = []
    for name, field in PipelineConfig.model_fields.items():
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
