"""Evaluation of stored predictions, without a model or GPU."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import EvalReport
from tasks.artifacts.evaluation import publish_evaluation
from tasks.evaluate import (
    evaluate_model,
    final_state,
    load_champion,
    promote_model,
    use_predictions,
)
from tasks.mirror import mirror_run
from tasks.stages import current_run_folder

__all__ = ["evaluate_predictions_flow"]


@flow(name="pets-evaluate-predictions")
def evaluate_predictions_flow(
    predictions_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> EvalReport | State[EvalReport]:
    """Recompute report, tables and artifacts from stored predictions.

    Args:
        predictions_url: predictions.parquet of an evaluation, path or URL.
        config: Settings (docs/settings.md).
    """
    predicted = use_predictions(config, predictions_url)
    champion = load_champion(config, predicted)
    report = evaluate_model(config, current_run_folder(config), predicted, champion)
    report = promote_model(config, report)
    publish_evaluation(config, report)
    mirror_run(config, report)
    return final_state(config, report)
