"""`pets deploy`: checks a file of deployments, then applies it, its work pools and automations."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import MissingFlowError, ObjectNotFound, ScriptError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import get_current_settings
from prefect.utilities.templating import apply_values, find_placeholders
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.settings import explain
from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.errors import PetsError, did_you_mean

__all__ = ["add_arguments", "run_command"]

Record = TypeVar("Record", bound=BaseModel)

_KEYS = (
    "concurrency_limit", "description", "enforce_parameter_schema", "entrypoint", "name",
    "parameters", "paused", "schedules", "tags", "triggers", "version", "work_pool",
)  # fmt: skip
"""Of a deployment, as Prefect names them; it passes over any other in silence."""


class _Pool(BaseModel):
    """A work pool, and the priorities of its queues: 1 is the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = "process"
    queues: dict[str, int] = Field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets deploy` to its parser."""
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("deployments/prefect.yaml"),
        metavar="prefect.yaml", help="pools.yaml and automations.yaml are read from beside it "
        "(default: deployments/prefect.yaml)",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check; asks no server")


def run_command(arguments: argparse.Namespace) -> None:
    """Check the files; unless that is all, apply them to the Prefect server that is configured.

    Raises:
        PetsError: Something is wrong in the files, all faults at once, or there is no server.
    """
    file: Path = arguments.file
    pools = {
        name: _validated(file.with_name("pools.yaml"), name, _Pool, about or {})
        for name, about in _read(file.with_name("pools.yaml")).items()
    }
    entries = _read(file).get("deployments") or []
    names = _check(file, entries, pools)
    source = file.with_name("automations.yaml")
    automations = [
        _validated(source, about.get("name", "?"), AutomationCore, about)
        for about in _read(source).get("automations") or []
    ]
    if arguments.check:
        print(f"{len(names)} deployments, {len(pools)} pools, {len(automations)} automations: good")
        return
    if get_current_settings().api.url is None:
        raise PetsError(
            "PREFECT_API_URL is not set: deployments need a server that stays; start one with "
            "`prefect server start`, and set its address"
        )
    asyncio.run(_make_pools(pools))
    _prefect("deploy", "--all", "--prefect-file", str(file))
    asyncio.run(_apply_automations(automations))
    print("\n".join(names))
    for pool in asyncio.run(_without_workers(pools)):
        print(
            f"warning: pool {pool} has no worker, so its runs wait: prefect worker start --pool "
            f"{pool}", file=sys.stderr,
        )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise PetsError(f"{path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise PetsError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise PetsError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def _validated(path: Path, name: str, record: type[Record], about: dict[str, Any]) -> Record:
    try:
        return record.model_validate(about)
    except ValidationError as error:
        raise PetsError(f"{path}: {name}: {error}") from error


def _check(file: Path, entries: list[dict[str, Any]], pools: dict[str, _Pool]) -> list[str]:
    """Find all faults of the deployments; returns their names.

    Raises:
        PetsError: There are some, a line each.
    """
    if unset := _unset_variables(entries):
        raise PetsError(
            f"{file}: the environment has no {', '.join(unset)}, which it takes from it"
        )
    names, faults = [], []
    for number, entry in enumerate(entries, 1):
        filled: Any = apply_values(entry, dict(os.environ), remove_notset=False)
        own = f"{entry.get('entrypoint', f'deployment {number}')} {entry.get('name', '')}".strip()
        found = _faults_of(filled, pools)
        faults += [f"{file}: {own}: {line}" for fault in found for line in fault.splitlines()]
        if not found:
            names.append(f"{load_flow_from_entrypoint(entry['entrypoint']).name}/{entry['name']}")
    if twice := {name for name in names if names.count(name) > 1}:
        faults.append(f"{file}: {', '.join(sorted(twice))}: there twice; give another name")
    if faults:
        raise PetsError("\n".join(faults))
    return names


def _unset_variables(entries: list[dict[str, Any]]) -> list[str]:
    names = {p.name for p in find_placeholders(entries) if p.name.startswith("$")}
    variables = {name.removeprefix("$") for name in names}
    return sorted(name for name in variables if not os.environ.get(name))


def _faults_of(entry: dict[str, Any], pools: dict[str, _Pool]) -> list[str]:
    faults = [f"{key}: no such key.{did_you_mean(key, _KEYS)}" for key in entry.keys() - {*_KEYS}]
    faults += [f"{key} is missing" for key in ("entrypoint", "name") if not entry.get(key)]
    if entry.get("entrypoint"):
        faults += _faults_of_parameters(entry["entrypoint"], entry.get("parameters") or {})
    for schedule in entry.get("schedules") or []:
        faults += _faults_of_schedule(schedule)
    pool = (entry.get("work_pool") or {}).get("name", "")
    if pool not in pools:
        faults.append(f"work_pool.name = {pool!r}: not in pools.yaml.{did_you_mean(pool, pools)}")
    return faults


def _faults_of_parameters(entrypoint: str, parameters: dict[str, Any]) -> list[str]:
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except (MissingFlowError, ScriptError, ImportError, ValueError) as error:
        return [f"entrypoint: there is no such flow: {error}"]
    known = list(inspect.signature(flow.fn).parameters)
    faults = [
        f"parameters.{name}: no such parameter.{did_you_mean(name, known)}"
        for name in parameters.keys() - {*known}
    ]
    if "config" not in parameters:
        return faults
    try:
        config = PipelineConfig.model_validate(parameters["config"])
    except ValidationError as error:
        return [*faults, *explain(error).splitlines()]
    for name, place in (("store", config.store), ("source.url", config.source.url)):
        if place is not None and storage.absolute(place) != place.rstrip("/"):
            faults.append(
                f"{name} = {place}: a relative path, and workers have folders of their own: give "
                "an absolute one, or a URL"
            )
    return faults


def _faults_of_schedule(schedule: dict[str, Any]) -> list[str]:
    if "cron" not in schedule:
        return []
    if "timezone" not in schedule:
        return [f"schedule {schedule['cron']!r}: give its timezone, for one Europe/Berlin"]
    try:
        CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    except ValidationError as error:
        return [
            f"schedules.{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors()
        ]
    return []


def _prefect(*words: str) -> None:
    """Run a command of Prefect's own.

    Raises:
        PetsError: It failed; with what it printed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our interpreter
    if done.returncode:
        raise PetsError(f"prefect {' '.join(words)} failed:\n{done.stdout}{done.stderr}".rstrip())


async def _make_pools(pools: dict[str, _Pool]) -> None:
    """Make the pools and queues that are missing, and set the queues' priorities."""
    async with get_client() as client:
        for name, pool in pools.items():
            try:
                await client.read_work_pool(name)
            except ObjectNotFound:
                _prefect("work-pool", "create", name, "--type", pool.type)
            await _make_queues(client, name, pool.queues)


async def _make_queues(client: PrefectClient, pool: str, priorities: dict[str, int]) -> None:
    there = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=pool)}
    # From the last to the first: a queue that takes a priority moves the others down.
    for name, priority in sorted(priorities.items(), key=lambda item: -item[1]):
        if name not in there:
            await client.create_work_queue(name, priority=priority, work_pool_name=pool)
        elif there[name].priority != priority:
            await client.update_work_queue(there[name].id, priority=priority)


async def _apply_automations(automations: list[AutomationCore]) -> None:
    """Make automations, or change those of the same name."""
    async with get_client() as client:
        for automation in automations:
            there = await client.read_automations_by_name(automation.name)
            if there:
                await client.update_automation(there[0].id, automation)
            else:
                await client.create_automation(automation)


async def _without_workers(pools: dict[str, _Pool]) -> list[str]:
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    async with get_client() as client:
        return [
            name
            for name in pools
            if not await client.read_workers_for_work_pool(name, worker_filter=online)
        ]
