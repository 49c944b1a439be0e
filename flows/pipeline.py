"""The whole pipeline: ingest, learning rate, train, predict, review, promote."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import State, flow

from pets_core.config.pipeline import PipelineConfig
from tasks.artifacts.dataset import publish_dataset
from tasks.artifacts.training import publish_lr, publish_training
from tasks.review import Report, conclude, find_the_champion, promote_model, review_model
from tasks.review_artifacts import publish_review
from tasks.stages import begin_run, check_run, find_lr, predict_model, train_model

__all__ = ["pipeline"]


@flow(name="pets-pipeline")
def pipeline(
    config: PipelineConfig = PipelineConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> Report | State[Report]:
    """Turn photos into a trained, evaluated model.

    `resume` is the folder of a run that ended early, to go on with.
    """
    check_run(config)
    run = begin_run(config, resume)
    publish_dataset(run.manifest)
    suggestion = find_lr(config, run)
    publish_lr(suggestion)
    base_lr = config.train.base_lr or suggestion.chosen
    result = train_model(config, run, base_lr)
    publish_training(result)
    champion = find_the_champion(config, run)
    predicted = predict_model(config, run, result.model_url, champion)
    report = review_model(config, run.url, predicted, champion, result)
    report = promote_model(config, report)
    publish_review(config, report)
    return conclude(config, report)
