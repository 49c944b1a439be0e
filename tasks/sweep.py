"""A sweep: trials asked for in rounds, each training a flow run on a pool if there is one."""

from __future__ import annotations

from typing import Any

from prefect import State, get_run_logger, task, unmapped
from prefect.cache_policies import NO_CACHE

from pets_core import plots
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.records.dataset import Run
from pets_core.records.training import SweepResult, TrainResult, Trial
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.runs import start_run
from pets_core.storage.markdown import literal
from pets_core.training.sweep import Study, concluded, trial_config, trial_url, write_result
from tasks.artifacts.publisher import Publisher, picture_of, table
from tasks.execution.delegate import in_threads
from tasks.stages import GOES_ON, check_run, do_or_delegate

__all__ = ["check_sweep", "publish_sweep", "run_trials"]

_MAX_ROWS = 50


def check_sweep(config: PipelineConfig) -> None:
    """Refuse what cannot work; where this machine trains, every backbone is looked at.

    Raises:
        PetsError: Trials cannot be trained at once here, or a backbone cannot be trained.
    """
    if config.sweep.num_concurrent > 1 and config.launch.deployment is None:
        raise PetsError(
            f"sweep.num_concurrent = {config.sweep.num_concurrent}: on one machine trainings take "
            "turns; set launch.deployment to have them done by several, or leave it at 1"
        )
    for backbone in config.sweep.backbones or (config.model.backbone,):
        model = config.model.model_copy(update={"backbone": backbone})
        check_run(config.model_copy(update={"model": model}))


@task(name="train trial", **GOES_ON)
def train_trial(config: PipelineConfig, run: Run, trial: Trial, seed: int) -> TrainResult:
    """Train one model of a trial in worker ranks; its folder is a run of its own."""
    request = WorkRequest(
        stage="train",
        config=trial_config(config, trial, seed),
        run_url=trial_url(run.url, trial, seed),
        manifest=run.manifest,
        base_lr=trial.base_lr,
    )
    start_run(request.config, Run(url=request.run_url, manifest=run.manifest))
    return do_or_delegate(request, TrainResult)


def run_trials(config: PipelineConfig, run: Run) -> SweepResult:
    """Train trial after trial, as many at a time as the settings say; to be called in a flow."""
    study, trials = Study(config), list[Trial]()
    while len(trials) < config.sweep.num_trials:
        left = config.sweep.num_trials - len(trials)
        asked = study.ask(min(config.sweep.num_concurrent, left))
        for trial in _round(config, run, asked):
            study.tell(trial)
            trials.append(trial)
            get_run_logger().info(
                "trial %d of %d: %s at %g: %s", len(trials), config.sweep.num_trials,
                trial.backbone, trial.base_lr,
                trial.error or f"validation {trial.metric.name} {trial.value_text}",
            )  # fmt: skip
    return write_result(run.url, trials)


def _round(config: PipelineConfig, run: Run, asked: list[Trial]) -> list[Trial]:
    seeds = range(config.train.seed, config.train.seed + config.sweep.num_seeds)
    pairs = [(trial, seed) for trial in asked for seed in seeds]
    if config.launch.deployment is None:
        # A launcher dies with the thread that started it.
        states = [train_trial(config, run, *pair, return_state=True) for pair in pairs]
    else:
        trials, of_trials = [t for t, _ in pairs], [s for _, s in pairs]
        given: dict[str, Any] = {"config": unmapped(config), "run": unmapped(run)}
        given |= {"trial": trials, "seed": of_trials}
        states = in_threads(train_trial, given, len(pairs))
    outcomes = dict(zip(pairs, map(_outcome, states), strict=True))
    return [_told(config, trial, [outcomes[trial, seed] for seed in seeds]) for trial in asked]


def _told(config: PipelineConfig, trial: Trial, outcomes: list[TrainResult | PetsError]) -> Trial:
    """A trial with its errors, or with what went wrong in one of its trainings."""
    faults = [outcome for outcome in outcomes if isinstance(outcome, PetsError)]
    if faults:
        return trial.model_copy(update={"error": str(faults[0])})
    trained = [o for o in outcomes if isinstance(o, TrainResult)]
    return concluded(trial, trained, config.train.keep)


def _outcome(state: State[Any]) -> TrainResult | PetsError:
    """What a training came to, or why to nothing, as one whose loss is not finite."""
    result = state.result(raise_on_failure=False)
    if isinstance(result, (TrainResult, PetsError)):
        return result
    raise result


@task(name="publish sweep", cache_policy=NO_CACHE)
def publish_sweep(result: SweepResult) -> None:
    """Artifact `sweep`: all trials beside each other, the best first."""
    best = result.trials[0]
    rows = table(
        ["trial", "backbone", "base_lr", f"validation {best.metric.name}", "of each seed",
         "seconds"],
        ([t.number, literal(t.backbone), f"{t.base_lr:g}", *_cells(t)]
         for t in result.trials[:_MAX_ROWS]),
    )  # fmt: skip
    curve = picture_of(
        plots.sweep_trials([t for t in result.trials if not t.error]),
        "validation metric over rates",
    )
    text = (
        f"# {best.metric.name} {best.value_text} with {literal(best.backbone)} at "
        f"{best.base_lr:g}\n\n{rows}\n\n{curve}\n\nTo train with these settings: "
        f"`--model.backbone {best.backbone} --train.base_lr {best.base_lr:g}`. Its model: "
        f"`{best.model_urls[0]}`. The best of many looks better than it is: evaluate it on test "
        "photos.\n"
    )
    with Publisher(result.url) as publisher:
        publisher.markdown("sweep", text, f"{len(result.trials)} trials, the best first")


def _cells(trial: Trial) -> list[str]:
    if trial.error:
        return ["failed", literal(trial.error), ""]
    each = ", ".join(map(trial.metric.format, trial.values))
    return [trial.value_text, each, f"{trial.seconds:.0f}"]
