"""Evaluation of a stored model."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import EvalReport
from tasks.artifacts.evaluation import publish_evaluation
from tasks.evaluate import evaluate_model, final_state, load_champion, promote_model
from tasks.execution.naming import named_by_data_set
from tasks.mirror import mirror_run
from tasks.stages import check_run, predict_model, start_or_resume_run

__all__ = ["evaluate_flow"]


@flow(name="pets-evaluate", flow_run_name=named_by_data_set("evaluate"))
def evaluate_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> EvalReport | State[EvalReport]:
    """Evaluate a stored model on the photos of the source.

    Args:
        model_url: Model folder, path or URL.
        config: Settings (docs/settings.md).
    """
    check_run(config, model_url)
    run = start_or_resume_run(config)
    champion = load_champion(config, run)
    predicted = predict_model(config, run, model_url, champion)
    report = evaluate_model(config, run.url, predicted, champion)
    report = promote_model(config, report)
    publish_evaluation(config, report)
    mirror_run(config, report)
    return final_state(config, report)
