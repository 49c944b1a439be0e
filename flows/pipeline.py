"""Full pipeline: ingest, find a learning rate, train, predict, evaluate, promote."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import EvalReport
from tasks.artifacts.dataset import publish_dataset
from tasks.artifacts.evaluation import publish_evaluation
from tasks.artifacts.training import publish_lr, publish_training
from tasks.evaluate import evaluate_model, final_state, load_champion, promote_model
from tasks.execution.naming import flow_run_name
from tasks.mirror import mirror_run
from tasks.stages import (
    check_run,
    choose_recipe,
    find_lr,
    predict_model,
    start_or_resume_run,
    train_model,
)

__all__ = ["pipeline"]


@flow(name="pets-pipeline", flow_run_name=flow_run_name)
def pipeline(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> EvalReport | State[EvalReport]:
    """Ingest photos, find a learning rate, train, evaluate and, with `gate.promote`, promote.

    Args:
        config: Settings (docs/settings.md).
        resume: Folder of an interrupted run to resume.

    Returns:
        The report, or a failed state Rejected with the report if the model should be promoted and
        does not pass the gate.
    """
    check_run(config)
    run = start_or_resume_run(config, resume)
    config = choose_recipe(config, run)
    publish_dataset(run.manifest)
    base_lr = None
    if config.train.num_epochs:
        suggestion = find_lr(config, run)
        publish_lr(suggestion)
        base_lr = config.train.base_lr or suggestion.chosen
    result = train_model(config, run, base_lr)
    publish_training(result, config.train)
    champion = load_champion(config, run)
    predicted = predict_model(config, run, result.model_url, champion, result.probe_url)
    report = evaluate_model(config, run.url, predicted, champion, result)
    report = promote_model(config, report)
    publish_evaluation(config, report)
    mirror_run(config, report)
    return final_state(config, report)
