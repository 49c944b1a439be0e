"""Sweep tasks: train the trials that Optuna suggests, in rounds, and publish the results."""

from __future__ import annotations

from typing import Any

from prefect import State, get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.records.dataset import Run
from pets_core.records.training import SweepResult, TrainResult, Trial
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import start_run
from pets_core.storage.markdown import escape_markdown
from pets_core.training.sweep import Study, complete_trial, trial_config, trial_url, write_result
from tasks.artifacts.publisher import Publisher, png, table
from tasks.execution.delegate import map_in_threads
from tasks.stages import RESUMABLE_TASK, check_run, run_or_delegate

__all__ = ["check_sweep", "publish_sweep", "run_trials"]

_MAX_ROWS = 50


def check_sweep(config: PipelineConfig) -> None:
    """Check the settings of a sweep, and each backbone if this machine trains.

    Raises:
        PetsError: Concurrent trials need a deployment, the recipe is a probe, or a backbone
            cannot be trained.
    """
    if not config.train.num_epochs:
        raise PetsError(
            "train.recipe = probe: a sweep chooses a learning rate, which a probe does not have. "
            "Set train.recipe = fine_tune, or compare backbones by one run each"
        )
    if config.sweep.num_concurrent > 1 and config.launch.deployment is None:
        raise PetsError(
            f"sweep.num_concurrent = {config.sweep.num_concurrent}: one machine trains one trial "
            "at a time. Set launch.deployment, or set sweep.num_concurrent to 1"
        )
    for backbone in config.sweep.backbones or (config.model.backbone,):
        model = config.model.model_copy(update={"backbone": backbone})
        check_run(config.model_copy(update={"model": model}))


@task(name="train trial", **RESUMABLE_TASK)
def train_trial(config: PipelineConfig, run: Run, trial: Trial, seed: int) -> TrainResult:
    """Train one model of a trial in worker ranks, in its own run folder."""
    request = WorkRequest(
        stage="train",
        config=trial_config(config, trial, seed),
        run_url=trial_url(run.url, trial, seed),
        manifest=run.manifest,
        base_lr=trial.base_lr,
        is_evaluated=False,
    )
    start_run(request.config, Run(url=request.run_url, manifest=run.manifest))
    return run_or_delegate(request, TrainResult)


def run_trials(config: PipelineConfig, run: Run) -> SweepResult:
    """Train `sweep.num_trials` trials, `sweep.num_concurrent` at a time. Call it in a flow."""
    study, trials = Study(config), list[Trial]()
    while len(trials) < config.sweep.num_trials:
        remaining = config.sweep.num_trials - len(trials)
        suggested = study.suggest(min(config.sweep.num_concurrent, remaining))
        for trial in _train_trials(config, run, suggested):
            study.record(trial)
            trials.append(trial)
            get_run_logger().info(
                "Trial %d/%d: backbone %s, base_lr %g, %s", len(trials), config.sweep.num_trials,
                trial.backbone, trial.base_lr,
                trial.error or f"valid {trial.metric.name} {trial.value_text}",
            )  # fmt: skip
    return write_result(run.url, trials)


def _train_trials(config: PipelineConfig, run: Run, suggested: list[Trial]) -> list[Trial]:
    """Train suggested trials, once per seed, and return them with their results."""
    seeds = range(config.train.seed, config.train.seed + config.sweep.num_seeds)
    pairs = [(trial, seed) for trial in suggested for seed in seeds]
    if config.launch.deployment is None:
        # A launcher ends with the thread that started it: use this thread.
        states = [train_trial(config, run, *pair, return_state=True) for pair in pairs]
    else:
        given: dict[str, Any] = {"config": unmapped(config), "run": unmapped(run)}
        given |= {"trial": [trial for trial, _ in pairs], "seed": [seed for _, seed in pairs]}
        states = map_in_threads(train_trial, given, len(pairs))
    results = dict(zip(pairs, map(_result_or_error, states), strict=True))
    return [_finish(config, trial, [results[trial, seed] for seed in seeds]) for trial in suggested]


def _finish(config: PipelineConfig, trial: Trial, results: list[TrainResult | PetsError]) -> Trial:
    """Return the trial with the results of all seeds, or with the first error."""
    errors = [result for result in results if isinstance(result, PetsError)]
    if errors:
        return trial.model_copy(update={"error": str(errors[0])})
    trained = [result for result in results if isinstance(result, TrainResult)]
    return complete_trial(trial, trained, config.train.keep)


def _result_or_error(state: State[Any]) -> TrainResult | PetsError:
    """Return the result of a training or its `PetsError`, such as a loss that is not finite."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, (TrainResult, PetsError)):
        return result
    raise result


@task(name="publish sweep", cache_policy=NO_CACHE)
def publish_sweep(result: SweepResult) -> None:
    """Publish the artifact `sweep`: a table of all trials, best first."""
    from pets_core.plots.sweep import sweep_trials

    best = result.trials[0]
    rows = table(
        ["trial", "backbone", "base_lr", f"valid {best.metric.name}", "per seed", "seconds"],
        ([t.number, escape_markdown(t.backbone), f"{t.base_lr:g}", *_cells(t)]
         for t in result.trials[:_MAX_ROWS]),
    )  # fmt: skip
    curve = png(
        sweep_trials([t for t in result.trials if not t.error]),
        "Validation metric over learning rates",
    )
    text = (
        f"# {best.metric.name} {best.value_text}: {escape_markdown(best.backbone)}, base_lr "
        f"{best.base_lr:g}\n\n{rows}\n\n{curve}\n\nBest settings: "
        f"`--model.backbone {best.backbone} --train.base_lr {best.base_lr:g}`. Model: "
        f"`{best.model_urls[0]}`. The metric of the best trial is optimistically biased: evaluate "
        "the model on the test split.\n"
    )
    with Publisher(result.url) as publisher:
        publisher.markdown("sweep", text, f"{len(result.trials)} trials, best first")


def _cells(trial: Trial) -> list[str]:
    if trial.error:
        return ["failed", escape_markdown(trial.error), ""]
    each = ", ".join(map(trial.metric.format, trial.values))
    return [trial.value_text, each, f"{trial.seconds:.0f}"]
