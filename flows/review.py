"""Review of predictions that were made before: no model, no GPU."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from tasks.review import (
    Report,
    champion_of,
    conclude,
    promote_model,
    review_model,
    use_predictions,
)
from tasks.review_artifacts import publish_review
from tasks.stages import folder_of_run

__all__ = ["review_flow"]


@flow(name="pets-review")
def review_flow(
    predictions_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> Report | State[Report]:
    """Make report, tables and artifacts of the predictions.parquet of an evaluation anew."""
    predicted = use_predictions(predictions_url)
    champion = champion_of(config, predicted)
    report = review_model(config, folder_of_run(config), predicted, champion)
    report = promote_model(config, report)
    publish_review(config, report)
    return conclude(config, report)
