"""Backbones and learning rates tried beside each other."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import SweepResult
from tasks.stages import begin_run
from tasks.sweep import check_sweep, publish_sweep, run_trials

__all__ = ["sweep_flow"]


@flow(name="pets-sweep")
def sweep_flow(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> SweepResult:
    """Train sweep.num_trials models, Optuna choosing backbone and rate of each.

    `resume` is the folder of a sweep that ended early, to go on with.
    """
    check_sweep(config)
    run = begin_run(config, resume)
    result = run_trials(config, run)
    publish_sweep(result)
    return result
