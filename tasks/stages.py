"""The stages of a run, one task each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import BaseModel

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.progress import Progress
from pets_core.ratings.config import RatingsConfig
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.evaluation import Champion, PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import CheckResult, Request, WorkRequest
from pets_core.runtime.runs import (
    ask_stage,
    asked_stage,
    find_run,
    finish_stage,
    finished_stage,
    run_folder,
    start_run,
)
from pets_core.runtime.stage_table import STAGES
from pets_core.targets.evaluate import check_gate_settings
from pets_core.training.schedule import few_steps
from tasks.execution.concurrency import turn_of_this_machine
from tasks.execution.delegate import check_deployment, delegate
from tasks.execution.metrics import StageMetrics
from tasks.execution.progress import ProgressArtifact, ProgressDisplay
from tasks.execution.retries import may_pass
from tasks.execution.run_guard import ends_with_its_run
from tasks.ingest import ingest_dataset

__all__ = [
    "GOES_ON",
    "begin_run",
    "check_run",
    "do_or_delegate",
    "do_stage",
    "earlier_run",
    "find_lr",
    "folder_of_run",
    "new_run",
    "predict_model",
    "train_model",
]

Record = TypeVar("Record", bound=BaseModel)

GOES_ON: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": 10,
    "retry_condition_fn": may_pass,
}
"""Another attempt at a training goes on from its last checkpoint."""
_LIVE = "training-progress"


@task(name="check", cache_policy=NO_CACHE)
def check_run(config: PipelineConfig, model_url: str | None = None) -> None:
    """Refuse what cannot work before any work starts; nothing is kept of a refused run."""
    check_gate_settings(config)
    if config.launch.deployment:
        # What its machine cannot do is told by the first stage there.
        check_deployment(config.launch.deployment)
        return
    request = WorkRequest(stage="check", config=config, model_url=model_url)
    check = _launch(request, CheckResult)
    get_run_logger().info(
        "%s: %.1f million parameters, on %s, mixed precision %s",
        model_url or config.model.backbone, check.num_parameters / 1e6,
        check.device, check.mixed_precision,
    )  # fmt: skip


def begin_run(config: PipelineConfig, resume: str | None = None) -> Run:
    """Go on with a run that began before, or ingest and begin one; to be called in a flow.

    Args:
        config: Settings.
        resume: Folder of the run to go on with; None: that of an earlier attempt of this flow run,
            if there was one.
    """
    run = earlier_run(config, resume)
    if run and run.manifest.targets != config.source.targets:
        raise PetsError(
            f"source.targets = {config.source.targets}: {run.url} began with a data set of "
            f"{run.manifest.targets}: leave the setting as it was, or start a new run"
        )
    return run or new_run(config, ingest_dataset(config))


@task(name="earlier run", cache_policy=NO_CACHE)
def earlier_run(config: PipelineConfig, resume: str | None = None) -> Run | None:
    """Find the run to go on with, if any: with the data set it began with."""
    run = find_run(resume or folder_of_run(config), Run)
    if run is None and resume is not None:
        raise PetsError(
            f"resume = {resume}: no run began there; give the folder of one, <store>/runs/<run id>"
        )
    if run:
        get_run_logger().info("the run goes on in %s", run.url)
    return run


@task(name="new run", cache_policy=NO_CACHE)
def new_run(config: PipelineConfig, manifest: DatasetManifest) -> Run:
    """Give the flow run a folder in the store."""
    run = start_run(config, Run(url=folder_of_run(config), manifest=manifest))
    get_run_logger().info("the run's folder is %s", run.url)
    return run


def folder_of_run(config: PipelineConfig | RatingsConfig) -> str:
    """The folder of the present flow run in the store."""
    return run_folder(config, str(flow_run.id))


@task(name="lr-find", **GOES_ON)
def find_lr(config: PipelineConfig, run: Run) -> LRSuggestion:
    """Run the range test in worker ranks."""
    request = WorkRequest(stage="lr-find", config=config, run_url=run.url, manifest=run.manifest)
    return do_or_delegate(request, LRSuggestion)


@task(name="train", **GOES_ON)
def train_model(config: PipelineConfig, run: Run, base_lr: float) -> TrainResult:
    """Train in worker ranks."""
    if warning := few_steps(config.train, run.manifest.splits["train"].num_rows):
        get_run_logger().warning(warning)
    request = WorkRequest(
        stage="train", config=config, run_url=run.url, manifest=run.manifest, base_lr=base_lr
    )
    return do_or_delegate(request, TrainResult)


@task(name="predict", **GOES_ON)
def predict_model(
    config: PipelineConfig, run: Run, model_url: str, champion: Champion | None = None
) -> PredictResult:
    """Have a stored model say in worker ranks what it sees, and the champion if it has not yet."""
    model_url = storage.absolute(model_url)
    request = WorkRequest(
        stage="predict",
        config=config,
        run_url=run.url,
        manifest=run.manifest,
        model_url=model_url,
        champion_url=champion.url_to_predict(model_url) if champion else None,
    )
    return do_or_delegate(request, PredictResult)


@task(name="stage", **GOES_ON)
def do_stage(request_url: str, require_gpu: bool = False) -> None:
    """Do a stage that another flow run asked for; the answer is left in that run's folder."""
    request = asked_stage(request_url)
    record = STAGES[request.stage].result
    # An attempt that nobody waited for any more may have come to its end.
    if finished_stage(request, record) is None:
        _stage_here(request, record, require_gpu=require_gpu)


def do_or_delegate(request: Request, record: type[Record]) -> Record:
    """Do a stage, here or where the settings say, unless an earlier attempt has done it."""
    logger, deployment = get_run_logger(), request.config.launch.deployment
    if (answer := finished_stage(request, record)) is not None:
        logger.info("%s was done before", request.stage)
        return answer
    if deployment is None:
        return _stage_here(request, record)
    delegate(deployment, request.name, ask_stage(request), logger)
    answer = finished_stage(request, record)
    if answer is None:
        raise RuntimeError(f"{request.stage} was done for other settings; it is asked for again")
    return answer


def _stage_here(request: Request, record: type[Record], *, require_gpu: bool = False) -> Record:
    logger = get_run_logger()
    launched = _requiring_gpu(request) if require_gpu else request
    artifact = ProgressArtifact(_LIVE, logger) if STAGES[request.stage].is_training else None
    metrics = StageMetrics(request.config.launch.push_gateway, request.stage, logger)
    with ends_with_its_run(logger), turn_of_this_machine(logger), metrics:
        told = [artifact.show, metrics.show] if artifact else [metrics.show]
        answer = _launch(launched, record, *told)
    if artifact:
        artifact.end()
    finish_stage(request, answer)
    return answer


def _requiring_gpu(request: Request) -> Request:
    """Set `launch.require_gpu`, which is of this machine's pool rather than of the run."""
    launch_config = request.config.launch.model_copy(update={"require_gpu": True})
    config = request.config.model_copy(update={"launch": launch_config})
    return request.model_copy(update={"config": config})


def _launch(request: Request, record: type[Record], *told: Callable[[Progress], None]) -> Record:
    logger = get_run_logger()
    with closing(ProgressDisplay(logger)) as display:

        def show(progress: Progress) -> None:
            display(progress)
            for tell in told:
                tell(progress)

        return launch(
            request, record, on_progress=show, on_line=logger.debug, on_warning=logger.warning
        )
