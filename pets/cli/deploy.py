"""`pets deploy`: check deployments, work pools and automations and apply them to a server."""

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
from pets.cli.server import explain_server_errors
from pets_core.errors import PetsError

__all__ = ["add_arguments", "run_command"]

_EARLIER_NAMES = {
    "pets-mark-crashed": "pets-crash-of-a-dead-machine",
    "pets-retry-crashed": "pets-go-on-after-a-crash",
    "pets-reschedule-pending": "pets-take-again",
    "pets-notify": "pets-report",
}
"""Names of automations in earlier versions. Two copies of an automation would act twice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pets deploy` to its parser."""
    parser.add_argument(
        "file", nargs="?", type=Path, default=Path("deployments/prefect.yaml"),
        metavar="prefect.yaml", help="deployments; automations.yaml is read from the same folder "
        "(default: deployments/prefect.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--pools", type=Path, metavar="pools.yaml", help="work pools (default: in the same folder)"
    )
    parser.add_argument(
        "--notify", metavar="BLOCK", help="notification block, such as slack-webhook/ops, for "
        "runs that failed, crashed, are late or did not pass their gate",
    )  # fmt: skip
    parser.add_argument(
        "--webhook", metavar="BLOCK", help="webhook block, such as webhook/ops, to call when a "
        "model is promoted or rolled back",
    )  # fmt: skip
    parser.add_argument(
        "--without-gpus", action="store_true",
        help="also run learning-rate search, training and prediction on machines without a GPU",
    )  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check, without a server")


def run_command(arguments: argparse.Namespace) -> None:
    """Check the files and, without --check, apply them to the configured Prefect server.

    Raises:
        PetsError: The files have errors (all are listed), or no server is configured.
    """
    files = read_files(arguments.file, arguments.pools)
    if arguments.check:
        print(
            f"{len(files.names)} deployments, {len(files.pools)} pools, "
            f"{len(files.automations)} automations: ok"
        )
        return
    if get_current_settings().api.url is None:
        raise PetsError(
            "PREFECT_API_URL is not set: deployments need a permanent server. Start one with "
            "`prefect server start` and set PREFECT_API_URL to its URL"
        )
    with explain_server_errors():
        blocks = {
            flag: asyncio.run(_find_block(flag, name))
            for flag in ("notify", "webhook")
            if (name := getattr(arguments, flag))
        }
        files = read_files(arguments.file, arguments.pools, blocks)
        asyncio.run(_apply_pools(files.pools))
        _run_prefect("deploy", "--all", "--prefect-file", str(arguments.file))
        if arguments.without_gpus:
            asyncio.run(_require_no_gpus(files.names))
        asyncio.run(_apply_automations(files.automations))
        idle = asyncio.run(_find_idle_pools(files.pools))
    print("\n".join(files.names))
    if not arguments.notify:
        print("--notify is not set: notifications stay unchanged", file=sys.stderr)
    for pool in idle:
        print(
            f"warning: pool {pool} has no worker, so its runs wait: prefect worker start --pool "
            f"{pool}", file=sys.stderr,
        )  # fmt: skip


def _run_prefect(*words: str) -> None:
    """Run a `prefect` command.

    Raises:
        PetsError: The command failed; the message holds its output.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - our interpreter
    if done.returncode:
        raise PetsError(f"prefect {' '.join(words)} failed:\n{done.stdout}{done.stderr}".rstrip())


async def _find_block(flag: str, name: str) -> UUID:
    """Return the id of a block, given as kind/name by a flag.

    Raises:
        PetsError: The block does not exist.
    """
    kind, _, own = name.partition("/")
    async with get_client() as client:
        try:
            return (await client.read_block_document_by_name(own, kind)).id
        except ObjectNotFound as error:
            raise PetsError(
                f"--{flag} = {name}: the server has no such block. See `prefect block ls` and use "
                "kind/name"
            ) from error


async def _apply_pools(pools: dict[str, Pool]) -> None:
    """Create or update work pools and their queues.

    Raises:
        PetsError: A pool exists with another type, which cannot be changed.
    """
    async with get_client() as client:
        for name, pool in pools.items():
            try:
                existing = await client.read_work_pool(name)
            except ObjectNotFound:
                new = WorkPoolCreate(name=name, type=pool.type, base_job_template=pool.template)
                await client.create_work_pool(new)
            else:
                if existing.type != pool.type:
                    raise PetsError(
                        f"work pool {name}: type = {pool.type}, but {existing.type} on the server. "
                        f"Remove it there first (prefect work-pool delete {name})"
                    )
                await client.update_work_pool(name, WorkPoolUpdate(base_job_template=pool.template))
            await _apply_queues(client, name, pool.queues)


async def _apply_queues(client: PrefectClient, pool: str, priorities: dict[str, int]) -> None:
    existing = {queue.name: queue for queue in await client.read_work_queues(work_pool_name=pool)}
    # Lowest priority first: a queue that takes a priority moves the others down.
    for name, priority in sorted(priorities.items(), key=lambda item: -item[1]):
        if name not in existing:
            await client.create_work_queue(name, priority=priority, work_pool_name=pool)
        elif existing[name].priority != priority:
            await client.update_work_queue(existing[name].id, priority=priority)


async def _require_no_gpus(names: list[str]) -> None:
    """Set require_gpu = false in deployments that have it."""
    async with get_client() as client:
        for name in names:
            deployment = await client.read_deployment_by_name(name)
            if "require_gpu" in deployment.parameters:
                parameters = deployment.parameters | {"require_gpu": False}
                await client.update_deployment(
                    deployment.id, DeploymentUpdate(parameters=parameters)
                )


async def _apply_automations(automations: list[AutomationCore]) -> None:
    """Create automations, or update those of the same or an earlier name."""
    async with get_client() as client:
        for automation in automations:
            existing = await client.read_automations_by_name(automation.name)
            if earlier := _EARLIER_NAMES.get(automation.name):
                existing += await client.read_automations_by_name(earlier)
            if existing:
                await client.update_automation(existing[0].id, automation)
                for duplicate in existing[1:]:
                    await client.delete_automation(duplicate.id)
            else:
                await client.create_automation(automation)


async def _find_idle_pools(pools: dict[str, Pool]) -> list[str]:
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    async with get_client() as client:
        return [
            name
            for name in pools
            if not await client.read_workers_for_work_pool(name, worker_filter=online)
        ]
