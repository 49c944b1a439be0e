"""The files of `pets deploy`, read, and checked before anything of them is applied."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from jsonschema import Draft202012Validator
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentTriggerTypes
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import MissingFlowError, ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.templating import apply_values, find_placeholders
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pets.cli.settings import explain
from pets_core.config.yaml_file import parse_yaml
from pets_core.errors import PetsError, did_you_mean
from pets_core.ratings.config import RatingsConfig
from pets_core.storage import is_url

__all__ = ["Files", "Pool", "read_files"]

Record = TypeVar("Record", bound=BaseModel)

# As Prefect names them; it passes over any other in silence.
_KEYS = (
    "concurrency_limit", "description", "enforce_parameter_schema", "entrypoint", "name",
    "parameters", "paused", "schedules", "tags", "triggers", "version", "work_pool",
)  # fmt: skip
_SCHEDULE_KEYS = (
    "active", "anchor_date", "cron", "day_or", "interval", "max_scheduled_runs", "parameters",
    "rrule", "slug", "timezone",
)  # fmt: skip
_NOTIFY = "{{ notify }}"
_LIMIT_KEYS = ("collision_strategy", "grace_period_seconds", "limit")
_POOL_KEYS = ("job_variables", "name", "work_queue_name")


class _PoolEntry(BaseModel):
    """A work pool in pools.yaml.

    `template` is the file of its base job template, beside pools.yaml; `variables` are defaults in
    place of the template's; `queues` has the priorities of its queues, 1 the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    template: str
    variables: dict[str, Any] = Field(default_factory=dict)
    queues: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """A work pool: its type, base job template, and the priorities of its queues."""

    type: str
    template: dict[str, Any]
    queues: dict[str, int]


@dataclass(frozen=True)
class Files:
    """What is to be applied: names of deployments ("flow name/deployment name"), and more."""

    names: list[str]
    pools: dict[str, Pool]
    automations: list[AutomationCore]


def read_files(file: Path, pools_file: Path | None = None, notify: UUID | None = None) -> Files:
    """Read prefect.yaml, and what lies beside it.

    Args:
        file: prefect.yaml; automations.yaml is read from beside it.
        pools_file: Of the work pools; None: pools.yaml beside `file`.
        notify: Block that notifications are sent through; None: there are none.

    Raises:
        PetsError: A file cannot be read, or something is wrong in them: all faults, a line each.
    """
    faults: list[str] = []
    pools = _read_pools(pools_file or file.with_name("pools.yaml"), faults)
    automations_file, automations = file.with_name("automations.yaml"), []
    for about in _read(automations_file).get("automations") or []:
        where = f"{automations_file}: {about.get('name', 'an automation')}"
        actions = about.get("actions") or []
        notifying = [action for action in actions if action.get("block_document_id") == _NOTIFY]
        block = {"block_document_id": str(notify or UUID(int=0))}
        filled = [action | block if action in notifying else action for action in actions]
        about = about | {"actions": filled}
        automation = _validated(where, AutomationCore, about, faults)
        if automation and (notify or not notifying):
            automations.append(automation)
    names, found = _check(_read(file).get("deployments") or [], pools)
    faults += [f"{file}: {fault}" for fault in found]
    if faults:
        raise PetsError("\n".join(faults))
    return Files(names, pools, automations)


def _read_pools(file: Path, faults: list[str]) -> dict[str, Pool]:
    pools = {}
    for name, about in _read(file).items():
        where = f"{file}: {name}"
        entry = _validated(where, _PoolEntry, about or {}, faults)
        if entry is None:
            continue
        template = _read(file.with_name(entry.template))
        properties = template.get("variables", {}).get("properties")
        if properties is None or "job_configuration" not in template:
            faults.append(f"{where}: template = {entry.template}: is no base job template")
            continue
        found = _faults_of_variables("variables", entry.variables, template)
        used = {p.name for p in find_placeholders(template["job_configuration"])}
        found += [
            f"template = {entry.template}: its variables lack {variable}"
            for variable in sorted(used - properties.keys())
        ]
        faults += [f"{where}: {fault}" for fault in found]
        for variable in entry.variables.keys() & properties.keys():
            properties[variable]["default"] = entry.variables[variable]
        pools[name] = Pool(entry.type, template, entry.queues)
    return pools


def _faults_of_variables(place: str, given: dict[str, Any], template: dict[str, Any]) -> list[str]:
    """What is wrong with values of a template's variables."""
    schema = template["variables"] | {"required": []}
    known = schema["properties"]
    faults = [
        f"{place}.{name}: the pool's template has no such variable.{did_you_mean(name, known)}"
        for name in sorted(given.keys() - known.keys())
    ]
    return faults + [
        f"{place}.{'.'.join(map(str, error.absolute_path))} = {error.instance!r}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(given)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise PetsError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def _validated(where: str, record: type[Record], about: Any, faults: list[str]) -> Record | None:
    try:
        return record.model_validate(about)
    except ValidationError as error:
        faults += [f"{where}: {fault}" for fault in _plain(error)]
        return None


def _plain(error: ValidationError) -> list[str]:
    faults = error.errors()
    # Where one of several records was meant, the ones of another type refuse it too.
    others = {fault["loc"][:-1] for fault in faults if fault["loc"][-1:] == ("type",)}
    meant = [f for f in faults if not any(f["loc"][: len(other)] == other for other in others)]
    return [
        f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
        for fault in meant or faults
    ]


def _check(entries: list[dict[str, Any]], pools: dict[str, Pool]) -> tuple[list[str], list[str]]:
    """The deployments' names, and all that is wrong with them."""
    if unset := _unset_variables(entries):
        return [], [f"the environment has no {name}, which it takes from it" for name in unset]
    filled: Any = apply_values(entries, dict(os.environ), remove_notset=False)
    flows = [_flow(entry) for entry in filled]
    pairs = list(zip(filled, flows, strict=True))
    names = [f"{flow.name}/{entry.get('name')}" for entry, flow in pairs if flow]
    faults = []
    for number, (entry, flow) in enumerate(pairs, 1):
        where = f"{entry.get('entrypoint', f'deployment {number}')} {entry.get('name', '')}".strip()
        if flow:
            found = _faults_of_parameters(flow, entry.get("parameters") or {}, names)
        else:
            found = [f"entrypoint = {entry.get('entrypoint')!r}: there is no such flow"]
        faults += [f"{where}: {fault}" for fault in (*found, *_faults_of(entry, pools))]
    twice = sorted({name for name in names if names.count(name) > 1})
    faults += [f"{name}: there twice; give another name" for name in twice]
    return names, faults


def _unset_variables(entries: list[dict[str, Any]]) -> list[str]:
    names = {p.name for p in find_placeholders(entries) if p.name.startswith("$")}
    variables = {name.removeprefix("$") for name in names}
    return sorted(name for name in variables if not os.environ.get(name))


def _flow(entry: dict[str, Any]) -> Flow[..., Any] | None:
    try:
        return load_flow_from_entrypoint(str(entry.get("entrypoint")), use_placeholder_flow=False)
    except (MissingFlowError, ScriptError, ImportError, ValueError):
        return None


def _faults_of_parameters(
    flow: Flow[..., Any], parameters: dict[str, Any], names: Sequence[str]
) -> list[str]:
    faults = _unknown("parameters", parameters, list(inspect.signature(flow.fn).parameters))
    if "config" not in parameters:
        return faults
    kind = inspect.signature(flow.fn).parameters["config"].annotation
    try:
        config = kind.model_validate(parameters["config"])
    except ValidationError as error:
        return [*faults, *explain(error, kind).splitlines()]
    asked = config.launch.deployment
    if asked and asked not in names:
        faults.append(
            f"launch.deployment = {asked}: not among these deployments.{did_you_mean(asked, names)}"
        )
    if isinstance(config, RatingsConfig):
        urls = {"ratings.url": config.ratings.url, "ratings.items_url": config.ratings.items_url}
    else:
        urls = {"source.url": config.source.url}
    for name, place in {"store": config.store, **urls}.items():
        if place and not is_url(place) and not place.startswith(("/", "~/", "file:")):
            faults.append(
                f"{name} = {place}: a relative path, and workers have folders of their own: give "
                "an absolute one, or a URL"
            )
    return faults


def _unknown(where: str, given: Collection[str], known: Collection[str]) -> list[str]:
    return [
        f"{where}.{name}: Prefect knows no such key.{did_you_mean(name, known)}".removeprefix(".")
        for name in sorted({*given} - {*known})
    ]


def _faults_of(entry: dict[str, Any], pools: dict[str, Pool]) -> list[str]:
    """What is wrong with a deployment, its flow and parameters left out."""
    faults = _unknown("", entry, _KEYS)
    if not entry.get("name"):
        faults.append("name is missing")
    for schedule in entry.get("schedules") or []:
        faults += _faults_of_schedule(schedule)
    limit = entry.get("concurrency_limit")
    if isinstance(limit, dict):
        faults += _unknown("concurrency_limit", limit, _LIMIT_KEYS)
        known = [strategy.value for strategy in ConcurrencyLimitStrategy]
        if (strategy := limit.get("collision_strategy", known[0])) not in known:
            faults.append(
                f"concurrency_limit.collision_strategy = {strategy}: one of {', '.join(known)}"
            )
    for trigger in entry.get("triggers") or []:
        faults += _faults_of_trigger(trigger)
    return faults + _faults_of_pool(entry.get("work_pool") or {}, pools)


def _faults_of_schedule(schedule: dict[str, Any]) -> list[str]:
    faults = _unknown("schedules", schedule, _SCHEDULE_KEYS)
    if len(schedule.keys() & {"cron", "interval", "rrule"}) != 1:
        return [*faults, "schedules: each has one of cron, interval and rrule"]
    if "cron" not in schedule:
        return faults
    if "timezone" not in schedule:
        return [*faults, f"schedules.cron = {schedule['cron']!r}: give its timezone beside it"]
    try:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    except ValidationError as error:
        faults += [f"schedules.{fault}" for fault in _plain(error)]
    return faults


def _faults_of_trigger(trigger: dict[str, Any]) -> list[str]:
    try:
        valid = TypeAdapter(DeploymentTriggerTypes).validate_python({"name": "?"} | trigger)
    except ValidationError as error:
        return [f"triggers.{fault}" for fault in _plain(error)]
    return _unknown("triggers", trigger, list(type(valid).model_fields))


def _faults_of_pool(wanted: dict[str, Any], pools: dict[str, Pool]) -> list[str]:
    faults, name = _unknown("work_pool", wanted, _POOL_KEYS), wanted.get("name", "")
    if name not in pools:
        return [
            *faults,
            f"work_pool.name = {name!r}: not in pools.yaml.{did_you_mean(name, pools)}",
        ]
    variables = wanted.get("job_variables") or {}
    faults += _faults_of_variables("work_pool.job_variables", variables, pools[name].template)
    queue, queues = wanted.get("work_queue_name", "default"), {"default", *pools[name].queues}
    if queue not in queues:
        faults.append(
            f"work_pool.work_queue_name = {queue!r}: {name} has none of that name in pools.yaml."
            f"{did_you_mean(queue, sorted(queues))}"
        )
    return faults
