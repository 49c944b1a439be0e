"""Tasks of a run: its checks, its folder, and one task per stage."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from pydantic import BaseModel

from pets_core import storage
from pets_core.config.automatic import resolve_automatic
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.progress import Progress
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsRun
from pets_core.records.dataset import DatasetManifest, Run
from pets_core.records.evaluation import Champion
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.mlflow_mirror import check_mlflow
from pets_core.runtime.request import CheckResult, Request, WorkRequest, make_request
from pets_core.runtime.runs import (
    find_run,
    load_result,
    load_run_settings,
    read_request,
    run_folder,
    save_result,
    start_run,
    write_request,
)
from pets_core.runtime.stage_table import STAGES
from pets_core.targets.gate import check_gate
from pets_core.targets.registry import get_target
from pets_core.training.schedule import few_steps_warning
from tasks.execution.concurrency import machine_slot
from tasks.execution.delegate import check_deployment, delegate
from tasks.execution.metrics import StageMetrics
from tasks.execution.progress import ProgressArtifact, ProgressDisplay
from tasks.execution.retries import should_retry
from tasks.execution.run_guard import exit_when_superseded
from tasks.ingest import ingest_dataset

__all__ = [
    "RESUMABLE_TASK",
    "check_run",
    "choose_recipe",
    "create_run",
    "current_run_folder",
    "find_earlier_run",
    "find_lr",
    "find_run_to_resume",
    "predict_model",
    "run_or_delegate",
    "run_requested_stage",
    "start_or_resume_run",
    "train_model",
]

Record = TypeVar("Record", bound=BaseModel)
AnyRun = TypeVar("AnyRun", Run, RatingsRun)

RESUMABLE_TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": 10,
    "retry_condition_fn": should_retry,
}
"""Retry policy of stages; a retried training resumes from its last checkpoint."""
_LIVE_KEY = "training-progress"


@task(name="check", cache_policy=NO_CACHE)
def check_run(config: PipelineConfig, model_url: str | None = None) -> None:
    """Check settings, hardware and model before any work starts; stores nothing."""
    check_gate(config.gate, get_target(config.source.targets))
    check_mlflow(config.registry.mlflow_uri, config.gate.alias)
    if config.launch.deployment:
        # The first remote stage checks the hardware.
        check_deployment(config.launch.deployment)
        return
    request = WorkRequest(stage="check", config=config, model_url=model_url)
    check = _launch(request, CheckResult)
    get_run_logger().info(
        "Model %s: %.1fM parameters, device %s, mixed precision %s",
        model_url or config.model.backbone, check.num_parameters / 1e6,
        check.device, check.mixed_precision,
    )  # fmt: skip


def start_or_resume_run(config: PipelineConfig, resume: str | None = None) -> Run:
    """Resume a run, or ingest the data set and start a new run. Call it in a flow.

    Args:
        config: Settings.
        resume: Folder of the run to resume. None: resume an earlier attempt of this flow run, if
            there is one.

    Raises:
        PetsError: `resume` is not a run, or `source.targets` differs from that of the run.
    """
    run = find_earlier_run(config, resume)
    if run and run.manifest.targets != config.source.targets:
        raise PetsError(
            f"source.targets = {config.source.targets}: {run.url} uses a data set of "
            f"{run.manifest.targets}. Restore the setting, or start a new run"
        )
    return run or create_run(config, ingest_dataset(config))


@task(name="earlier run", cache_policy=NO_CACHE)
def find_earlier_run(config: PipelineConfig, resume: str | None = None) -> Run | None:
    """Return the run to resume, with its data set, or None if there is none."""
    return find_run_to_resume(config, resume, Run)


def find_run_to_resume(
    config: PipelineConfig | RatingsConfig, resume: str | None, kind: type[AnyRun]
) -> AnyRun | None:
    """Return the run to resume, or None if a new one is to start. Call it in a task.

    Raises:
        PetsError: There is no such run in the folder `resume`.
    """
    run = find_run(resume or current_run_folder(config), kind)
    if run is None and resume is not None:
        name = "ratings run" if kind is RatingsRun else "run"
        raise PetsError(
            f"resume = {resume}: no {name} found there. Set it to a run folder, "
            "<store>/runs/<run id>"
        )
    if run:
        get_run_logger().info("Resuming run %s", run.url)
    return run


@task(name="new run", cache_policy=NO_CACHE)
def create_run(config: PipelineConfig, manifest: DatasetManifest) -> Run:
    """Create the run folder of the current flow run in the store."""
    run = start_run(config, Run(url=current_run_folder(config), manifest=manifest))
    get_run_logger().info("Run folder: %s", run.url)
    return run


def current_run_folder(config: PipelineConfig | RatingsConfig) -> str:
    """Return the URL of the current flow run's folder in the store."""
    return run_folder(config, str(flow_run.id))


def choose_recipe(config: PipelineConfig, run: Run) -> PipelineConfig:
    """Return the settings with a value for each automatic one of `train`, and log these.

    Stages get the values, so that a worker with other defaults trains the same. `unfreeze_to`,
    which depends on the model, is chosen by the stage, but a run of an earlier version continues to
    train all layer groups.
    """
    stored = load_run_settings(run.url)["train"]["unfreeze_to"]
    if config.train.unfreeze_to is None and stored is not None:
        train = config.train.model_copy(update={"unfreeze_to": stored})
        config = config.model_copy(update={"train": train})
    chosen, num_rows = (
        resolve_automatic(config, run.manifest),
        run.manifest.splits["train"].num_rows,
    )
    values = [
        f"train.{name} = {value}"
        for name, value in chosen.train
        if value != getattr(config.train, name)
    ]
    logger = get_run_logger()
    if values and config.train.recipe != "probe":
        logger.info("Chosen for %d training photos: %s", num_rows, ", ".join(values))
    if warning := few_steps_warning(chosen.train, num_rows):
        logger.warning(warning)
    return chosen


@task(name="lr-find", **RESUMABLE_TASK)
def find_lr(config: PipelineConfig | RatingsConfig, run: Run | RatingsRun) -> LRSuggestion:
    """Run the learning-rate range test in worker ranks."""
    return run_or_delegate(make_request("lr-find", config, run), LRSuggestion)


@task(name="train", **RESUMABLE_TASK)
def train_model(
    config: PipelineConfig | RatingsConfig,
    run: Run | RatingsRun,
    base_lr: float | None,
    *,
    is_evaluated: bool = True,
) -> TrainResult:
    """Train the model in worker ranks.

    Args:
        config: Settings.
        run: The run.
        base_lr: Peak learning rate of the head; None if `train.recipe` is probe.
        is_evaluated: Whether the run evaluates the model, and so needs its baselines.
    """
    request = make_request("train", config, run, base_lr=base_lr, is_evaluated=is_evaluated)
    return run_or_delegate(request, TrainResult)


@task(name="predict", **RESUMABLE_TASK)
def predict_model(
    config: PipelineConfig | RatingsConfig,
    run: Run | RatingsRun,
    model_url: str,
    champion: Champion | None = None,
    probe_url: str | None = None,
) -> PredictResult:
    """Predict with a stored model in worker ranks, and with the champion if not yet done.

    Args:
        config: Settings.
        run: The run.
        model_url: Folder of the model.
        champion: Model to compare with, if any.
        probe_url: Linear probe of the same training, for the baselines.
    """
    model_url = storage.absolute(model_url)
    champion_url = champion.url_to_predict(model_url) if champion else None
    request = make_request(
        "predict", config, run,
        model_url=model_url, champion_url=champion_url, probe_url=probe_url,
    )  # fmt: skip
    return run_or_delegate(request, PredictResult)


@task(name="stage", **RESUMABLE_TASK)
def run_requested_stage(request_url: str, require_gpu: bool = False) -> None:
    """Run a stage that another flow run requested; save the result in the folder of that run."""
    request = read_request(request_url)
    record = STAGES[request.stage].result
    # An earlier attempt may have finished after its caller stopped waiting.
    if load_result(request, record) is None:
        _run_locally(request, record, require_gpu=require_gpu)


def run_or_delegate(request: Request, record: type[Record]) -> Record:
    """Return the result of a stage; run it here or by `launch.deployment` if there is none yet."""
    logger, deployment = get_run_logger(), request.config.launch.deployment
    if (result := load_result(request, record)) is not None:
        logger.info("Stage %s is already finished", request.stage)
        return result
    if deployment is None:
        return _run_locally(request, record)
    delegate(deployment, request.name, write_request(request), logger)
    result = load_result(request, record)
    if result is None:
        raise RuntimeError(f"{request.stage} ran with other settings; it will be retried")
    return result


def _run_locally(request: Request, record: type[Record], *, require_gpu: bool = False) -> Record:
    logger = get_run_logger()
    launched = _requiring_gpu(request) if require_gpu else request
    artifact = ProgressArtifact(_LIVE_KEY, logger) if STAGES[request.stage].is_training else None
    metrics = StageMetrics(request.config.launch.push_gateway, request.stage, logger)
    with exit_when_superseded(logger), machine_slot(logger), metrics:
        callbacks = [artifact.update, metrics.update] if artifact else [metrics.update]
        result = _launch(launched, record, *callbacks)
    if artifact:
        artifact.end()
    save_result(request, result)
    return result


def _requiring_gpu(request: Request) -> Request:
    """Return the request with `launch.require_gpu`, a setting of the work pool, not of the run."""
    launch_config = request.config.launch.model_copy(update={"require_gpu": True})
    config = request.config.model_copy(update={"launch": launch_config})
    return request.model_copy(update={"config": config})


def _launch(
    request: Request, record: type[Record], *callbacks: Callable[[Progress], None]
) -> Record:
    logger = get_run_logger()
    with closing(ProgressDisplay(logger)) as display:

        def show(progress: Progress) -> None:
            display(progress)
            for callback in callbacks:
                callback(progress)

        return launch(
            request, record, on_progress=show, on_line=logger.debug, on_warning=logger.warning
        )
