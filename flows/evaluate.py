"""Evaluation of a stored model alone."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from tasks.review import Report, conclude, find_the_champion, promote_model, review_model
from tasks.review_artifacts import publish_review
from tasks.stages import begin_run, check_run, predict_model

__all__ = ["evaluate_flow"]


@flow(name="pets-evaluate")
def evaluate_flow(
    model_url: str,
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
) -> Report | State[Report]:
    """Judge the model in a folder, path or URL, on the source's photos."""
    check_run(config, model_url)
    run = begin_run(config)
    champion = find_the_champion(config, run)
    predicted = predict_model(config, run, model_url, champion)
    report = review_model(config, run.url, predicted, champion)
    report = promote_model(config, report)
    publish_review(config, report)
    return conclude(config, report)
