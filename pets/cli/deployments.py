"""Read and check the files of `pets deploy`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args
from uuid import UUID

from jsonschema import Draft202012Validator
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentTriggerTypes
from prefect.events.actions import ActionTypes
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.templating import apply_values, find_placeholders
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pets.cli.settings import format_errors
from pets_core.config.yaml_file import parse_yaml
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsConfig
from pets_core.records.base import Record
from pets_core.storage import is_url

__all__ = ["Files", "Pool", "read_files"]

ModelT = TypeVar("ModelT", bound=BaseModel)

# Keys that Prefect reads; it silently ignores all others.
_KEYS = (
    "concurrency_limit", "description", "enforce_parameter_schema", "entrypoint", "name",
    "parameters", "paused", "schedules", "tags", "triggers", "version", "work_pool",
)  # fmt: skip
_SCHEDULE_KEYS = (
    "active", "anchor_date", "cron", "day_or", "interval", "max_scheduled_runs", "parameters",
    "rrule", "slug", "timezone",
)  # fmt: skip
# Prefect accepts other types since 3.9, and never runs them.
_ACTION_TYPES = [str(action.model_fields["type"].default) for action in get_args(ActionTypes)]
_BLOCKS = {"{{ notify }}": "notify", "{{ webhook }}": "webhook"}
"""Placeholders of blocks in automations.yaml, with the flags of `pets deploy` that name them."""
_LIMIT_KEYS = ("collision_strategy", "grace_period_seconds", "limit")
_POOL_KEYS = ("job_variables", "name", "work_queue_name")


class _PoolEntry(Record):
    """Entry of a work pool in pools.yaml.

    Attributes:
        type: Worker type, such as process, docker or kubernetes.
        template: File of the base job template, in the folder of pools.yaml.
        variables: Defaults that override those of the template.
        queues: Priority of each queue; 1 is the highest.
    """

    type: str
    template: str
    variables: dict[str, Any] = Field(default_factory=dict)
    queues: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """Work pool with its type, base job template and queue priorities."""

    type: str
    template: dict[str, Any]
    queues: dict[str, int]


@dataclass(frozen=True)
class Files:
    """Checked contents: deployment names ("flow name/deployment name"), pools, automations."""

    names: list[str]
    pools: dict[str, Pool]
    automations: list[AutomationCore]


def read_files(
    file: Path, pools_file: Path | None = None, blocks: Mapping[str, UUID] | None = None
) -> Files:
    """Read and check deployments, work pools and automations.

    Args:
        file: prefect.yaml; automations.yaml is read from the same folder.
        pools_file: Work pools; by default pools.yaml in the folder of `file`.
        blocks: Ids of blocks by flag: notify, webhook. Automations that need a block without an id
            are dropped.

    Raises:
        PetsError: A file cannot be read or has errors; lists all errors, one per line.
    """
    if not file.is_file():
        raise PetsError(
            f"{file}: no such file. Give the prefect.yaml of a copy of the repository's folder "
            "deployments"
        )
    errors: list[str] = []
    pools = _read_pools(pools_file or file.with_name("pools.yaml"), errors)
    automations = _read_automations(file.with_name("automations.yaml"), blocks or {}, errors)
    names, found = _check_all(_read_yaml_mapping(file).get("deployments") or [], pools)
    errors += [f"{file}: {error}" for error in found]
    if errors:
        raise PetsError("\n".join(errors))
    return Files(names, pools, automations)


def _read_automations(
    file: Path, blocks: Mapping[str, UUID], errors: list[str]
) -> list[AutomationCore]:
    automations = []
    for entry in _read_yaml_mapping(file).get("automations") or []:
        where = f"{file}: {entry.get('name', 'an automation')}"
        actions = [dict(action) for action in entry.get("actions") or []]
        kinds = [str(action.get("type")) for action in actions]
        if unknown := [kind for kind in kinds if kind not in _ACTION_TYPES]:
            errors += [
                f"{where}: actions: {kind}: no such type.{did_you_mean(kind, _ACTION_TYPES)}"
                for kind in unknown
            ]
            continue
        missing = False
        for action in actions:
            if flag := _BLOCKS.get(str(action.get("block_document_id"))):
                missing |= flag not in blocks
                action["block_document_id"] = str(blocks.get(flag, UUID(int=0)))
        automation = _validate(where, AutomationCore, entry | {"actions": actions}, errors)
        if automation and not missing:
            automations.append(automation)
    return automations


def _read_pools(file: Path, errors: list[str]) -> dict[str, Pool]:
    pools = {}
    for name, content in _read_yaml_mapping(file).items():
        where = f"{file}: {name}"
        entry = _validate(where, _PoolEntry, content or {}, errors)
        if entry is None:
            continue
        template = _read_yaml_mapping(file.with_name(entry.template))
        properties = template.get("variables", {}).get("properties")
        if properties is None or "job_configuration" not in template:
            errors.append(f"{where}: template = {entry.template}: not a base job template")
            continue
        found = _check_variables("variables", entry.variables, template)
        used = {p.name for p in find_placeholders(template["job_configuration"])}
        found += [
            f"template = {entry.template}: variable {variable} is missing"
            for variable in sorted(used - properties.keys())
        ]
        errors += [f"{where}: {error}" for error in found]
        for variable in entry.variables.keys() & properties.keys():
            properties[variable]["default"] = entry.variables[variable]
        pools[name] = Pool(entry.type, template, entry.queues)
    return pools


def _check_variables(where: str, given: dict[str, Any], template: dict[str, Any]) -> list[str]:
    """Return the errors in values of a template's variables."""
    schema = template["variables"] | {"required": []}
    known = schema["properties"]
    errors = [
        f"{where}.{name}: the pool's template has no such variable.{did_you_mean(name, known)}"
        for name in sorted(given.keys() - known.keys())
    ]
    return errors + [
        f"{where}.{'.'.join(map(str, error.absolute_path))} = {error.instance!r}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(given)
    ]


def _read_yaml_mapping(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise PetsError(f"{path}: must be a YAML mapping (name: value), but is {found}")
    return content


def _validate(where: str, record: type[ModelT], entry: Any, errors: list[str]) -> ModelT | None:
    try:
        return record.model_validate(entry)
    except ValidationError as error:
        errors += [f"{where}: {line}" for line in _list_errors(error)]
        return None


def _list_errors(error: ValidationError) -> list[str]:
    errors = error.errors()
    # For a union of records, drop the errors of branches whose `type` differs.
    others = {each["loc"][:-1] for each in errors if each["loc"][-1:] == ("type",)}
    relevant = [e for e in errors if not any(e["loc"][: len(other)] == other for other in others)]
    return [
        f"{'.'.join(map(str, each['loc']))} = {each['input']!r}: {each['msg']}"
        for each in relevant or errors
    ]


def _check_all(
    entries: list[dict[str, Any]], pools: dict[str, Pool]
) -> tuple[list[str], list[str]]:
    """Return the names of the deployments and all errors."""
    if unset := _find_unset_variables(entries):
        return [], [f"environment variable {name} is not set" for name in unset]
    filled: Any = apply_values(entries, dict(os.environ), remove_notset=False)
    flows = [_load_flow(entry) for entry in filled]
    pairs = list(zip(filled, flows, strict=True))
    names = [f"{flow.name}/{entry.get('name')}" for entry, flow in pairs if flow]
    errors = []
    for number, (entry, flow) in enumerate(pairs, 1):
        where = f"{entry.get('entrypoint', f'deployment {number}')} {entry.get('name', '')}".strip()
        if flow:
            found = _check_parameters(flow, entry.get("parameters") or {}, names)
        else:
            found = [f"entrypoint = {entry.get('entrypoint')!r}: no such flow"]
        errors += [f"{where}: {error}" for error in (*found, *_check_deployment(entry, pools))]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    errors += [f"{name}: duplicate name. Use another name" for name in duplicates]
    return names, errors


def _find_unset_variables(entries: list[dict[str, Any]]) -> list[str]:
    names = {p.name for p in find_placeholders(entries) if p.name.startswith("$")}
    variables = {name.removeprefix("$") for name in names}
    return sorted(name for name in variables if not os.environ.get(name))


def _load_flow(entry: dict[str, Any]) -> Flow[..., Any] | None:
    try:
        return load_flow_from_entrypoint(str(entry.get("entrypoint")), use_placeholder_flow=False)
    except (MissingFlowError, ScriptError, ImportError, ValueError):
        return None


def _check_parameters(
    flow: Flow[..., Any], parameters: dict[str, Any], names: Sequence[str]
) -> list[str]:
    errors = _check_keys("parameters", parameters, list(inspect.signature(flow.fn).parameters))
    if "config" not in parameters:
        return errors
    kind = inspect.signature(flow.fn).parameters["config"].annotation
    try:
        config = kind.model_validate(parameters["config"])
    except ValidationError as error:
        return [*errors, *format_errors(error, kind).splitlines()]
    deployment = config.launch.deployment
    if deployment and deployment not in names:
        hint = did_you_mean(deployment, names)
        errors.append(f"launch.deployment = {deployment}: not one of these deployments.{hint}")
    if isinstance(config, RatingsConfig):
        urls = {"ratings.url": config.ratings.url, "ratings.items_url": config.ratings.items_url}
    else:
        urls = {"source.url": config.source.url}
    for name, url in {"store": config.store, **urls}.items():
        if url and not is_url(url) and not url.startswith(("/", "~/", "file:")):
            errors.append(
                f"{name} = {url}: a relative path, but each worker has its own working folder. "
                "Use an absolute path or a URL"
            )
    return errors


def _check_keys(where: str, given: Collection[str], known: Collection[str]) -> list[str]:
    return [
        f"{where}.{name}: unknown key.{did_you_mean(name, known)}".removeprefix(".")
        for name in sorted({*given} - {*known})
    ]


def _check_deployment(entry: dict[str, Any], pools: dict[str, Pool]) -> list[str]:
    """Return the errors of a deployment, except those of its flow and parameters."""
    errors = _check_keys("", entry, _KEYS)
    if not entry.get("name"):
        errors.append("name is missing")
    for schedule in entry.get("schedules") or []:
        errors += _check_schedule(schedule)
    limit = entry.get("concurrency_limit")
    if isinstance(limit, dict):
        errors += _check_keys("concurrency_limit", limit, _LIMIT_KEYS)
        known = [strategy.value for strategy in ConcurrencyLimitStrategy]
        if (strategy := limit.get("collision_strategy", known[0])) not in known:
            errors.append(
                f"concurrency_limit.collision_strategy = {strategy}: use one of {', '.join(known)}"
            )
    for trigger in entry.get("triggers") or []:
        errors += _check_trigger(trigger)
    return errors + _check_pool(entry.get("work_pool") or {}, pools)


def _check_schedule(schedule: dict[str, Any]) -> list[str]:
    errors = _check_keys("schedules", schedule, _SCHEDULE_KEYS)
    if len(schedule.keys() & {"cron", "interval", "rrule"}) != 1:
        return [*errors, "schedules: set exactly one of cron, interval and rrule"]
    if "cron" not in schedule:
        return errors
    if "timezone" not in schedule:
        return [*errors, f"schedules.cron = {schedule['cron']!r}: set timezone, too"]
    try:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    except ValidationError as error:
        errors += [f"schedules.{line}" for line in _list_errors(error)]
    return errors


def _check_trigger(trigger: dict[str, Any]) -> list[str]:
    try:
        valid = TypeAdapter(DeploymentTriggerTypes).validate_python({"name": "?"} | trigger)
    except ValidationError as error:
        return [f"triggers.{line}" for line in _list_errors(error)]
    return _check_keys("triggers", trigger, list(type(valid).model_fields))


def _check_pool(entry: dict[str, Any], pools: dict[str, Pool]) -> list[str]:
    errors, name = _check_keys("work_pool", entry, _POOL_KEYS), entry.get("name", "")
    if name not in pools:
        return [
            *errors,
            f"work_pool.name = {name!r}: not in pools.yaml.{did_you_mean(name, pools)}",
        ]
    variables = entry.get("job_variables") or {}
    errors += _check_variables("work_pool.job_variables", variables, pools[name].template)
    queue, queues = entry.get("work_queue_name", "default"), {"default", *pools[name].queues}
    if queue not in queues:
        errors.append(
            f"work_pool.work_queue_name = {queue!r}: not a queue of {name} in pools.yaml."
            f"{did_you_mean(queue, sorted(queues))}"
        )
    return errors
