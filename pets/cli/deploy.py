"""`pets deploy`: applies checked deployments, their work pools and automations to a server."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from pets.cli.deployments import Pool, read_files
from pets.cli.server import telling_of_the_server
from pets_core.errors import PetsError

__all__ = ["add_arguments", "run_command"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets deploy` to its parser."""
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("deployments/prefect.yaml"),
        metavar="prefect.yaml", help="automations.yaml is read from beside it "
        "(default: deployments/prefect.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--pools", type=Path, metavar="pools.yaml", help="work pools (default: beside prefect.yaml)"
    )
    parser.add_argument(
        "--notify", metavar="BLOCK", help="notification block, such as slack-webhook/ops, that "
        "tells of runs that failed, crashed, are late, or did not pass their gate",
    )  # fmt: skip
    parser.add_argument(
        "--without-gpus", action="store_true",
        help="do not require a GPU of the machines that find rates, train and predict",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check; asks no server")


def run_command(arguments: argparse.Namespace) -> None:
    """Check the files; unless that is all, apply them to the Prefect server that is configured.

    Raises:
        PetsError: Something is wrong in the files, all faults at once, or there is no server.
    """
    files = read_files(arguments.file, arguments.pools)
    if arguments.check:
        print(
            f"{len(files.names)} deployments, {len(files.pools)} pools, "
            f"{len(files.automations)} automations: good"
        )
        return
    if get_current_settings().api.url is None:
        raise PetsError(
            "PREFECT_API_URL is not set: deployments need a server that stays; start one with "
            "`prefect server start`, and set its address"
        )
    with telling_of_the_server():
        if arguments.notify:
            block = asyncio.run(_find_block(arguments.notify))
            files = read_files(arguments.file, arguments.pools, block)
        asyncio.run(_make_pools(files.pools))
        _prefect("deploy", "--all", "--prefect-file", str(arguments.file))
        if arguments.without_gpus:
            asyncio.run(_require_no_gpus(files.names))
        asyncio.run(_apply_automations(files.automations))
        idle = asyncio.run(_without_workers(files.pools))
    print("\n".join(files.names))
    if not arguments.notify:
        print("without --notify, who is told of runs that fail stays as it is", file=sys.stderr)
    for pool in idle:
        print(
            f"warning: pool {pool} has no worker, so its runs wait: prefect worker start --pool "
            f"{pool}", file=sys.stderr,
        )  # fmt: skip


def _prefect(*words: str) -> None:
    """Run a command of Prefect's own.

    Raises:
        PetsError: It failed; with what it printed.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our interpreter
    if done.returncode:
        raise PetsError(f"prefect {' '.join(words)} failed:\n{done.stdout}{done.stderr}".rstrip())


async def _find_block(name: str) -> UUID:
    """The id of a block.

    Raises:
        PetsError: There is none of that name.
    """
    kind, _, own = name.partition("/")
    async with get_client() as client:
        try:
            return (await client.read_block_document_by_name(own, kind)).id
        except ObjectNotFound as error:
            raise PetsError(
                f"--notify = {name}: the server has no such block; `prefect block ls` lists those "
                "there are, as kind/name"
            ) from error


async def _make_pools(pools: dict[str, Pool]) -> None:
    """Make pools and queues, or change those of the same name.

    Raises:
        PetsError: A pool is there and of another type, which cannot be changed.
    """
    async with get_client() as client:
        for name, pool in pools.items():
            try:
                there = await client.read_work_pool(name)
            except ObjectNotFound:
                new = WorkPoolCreate(name=name, type=pool.type, base_job_template=pool.template)
                await client.create_work_pool(new)
            else:
                if there.type != pool.type:
                    raise PetsError(
                        f"work pool {name} is of type {there.type} on the server, and {pool.type} "
                        f"in the file: delete it there first (prefect work-pool delete {name})"
                    )
                await client.update_work_pool(name, WorkPoolUpdate(base_job_template=pool.template))
            await _make_queues(client, name, pool.queues)


async def _make_queues(client: PrefectClient, pool: str, priorities: dict[str, int]) -> None:
    there = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=pool)}
    # From the last to the first: a queue that takes a priority moves the others down.
    for name, priority in sorted(priorities.items(), key=lambda item: -item[1]):
        if name not in there:
            await client.create_work_queue(name, priority=priority, work_pool_name=pool)
        elif there[name].priority != priority:
            await client.update_work_queue(there[name].id, priority=priority)


async def _require_no_gpus(names: list[str]) -> None:
    """Let the stages of other flow runs be done on machines without GPUs."""
    async with get_client() as client:
        for name in names:
            deployment = await client.read_deployment_by_name(name)
            if "require_gpu" in deployment.parameters:
                parameters = deployment.parameters | {"require_gpu": False}
                await client.update_deployment(
                    deployment.id, DeploymentUpdate(parameters=parameters)
                )


async def _apply_automations(automations: list[AutomationCore]) -> None:
    """Make automations, or change those of the same name."""
    async with get_client() as client:
        for automation in automations:
            there = await client.read_automations_by_name(automation.name)
            if there:
                await client.update_automation(there[0].id, automation)
            else:
                await client.create_automation(automation)


async def _without_workers(pools: dict[str, Pool]) -> list[str]:
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    async with get_client() as client:
        return [
            name
            for name in pools
            if not await client.read_workers_for_work_pool(name, worker_filter=online)
        ]
