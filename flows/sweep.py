"""Hyperparameter sweep over backbones and learning rates."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.training import SweepResult
from tasks.execution.naming import named_by_data_set
from tasks.stages import choose_recipe, start_or_resume_run
from tasks.sweep import check_sweep, publish_sweep, run_trials

__all__ = ["sweep_flow"]


@flow(name="pets-sweep", flow_run_name=named_by_data_set("sweep"))
def sweep_flow(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> SweepResult:
    """Train `sweep.num_trials` models, with backbone and learning rate chosen by Optuna.

    Args:
        config: Settings (docs/settings.md).
        resume: Folder of an interrupted sweep to resume.
    """
    check_sweep(config)
    run = start_or_resume_run(config, resume)
    result = run_trials(choose_recipe(config, run), run)
    publish_sweep(result)
    return result
