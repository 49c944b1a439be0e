"""Collaborative filtering: ratings in, a reviewed model of users and items out."""

# No postponed annotations: a worker loads this file apart and could not resolve them.
from prefect import flow

from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.records import RatingsReport
from tasks.artifacts.training import publish_lr, publish_training
from tasks.collab import (
    begin_ratings_run,
    find_ratings_lr,
    predict_held_out,
    publish_collab,
    publish_ratings,
    review_collab,
    train_best,
)

__all__ = ["collab_flow"]


@flow(name="pets-collab")
def collab_flow(
    config: RatingsConfig = RatingsConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> RatingsReport:
    """Learn to rate as users do.

    `resume` is the folder of a run that ended early, to go on with.
    """
    run = begin_ratings_run(config, resume)
    publish_ratings(run.manifest)
    base_lr = config.train.base_lr
    if base_lr is None:
        suggestion = find_ratings_lr(config, run)
        publish_lr(suggestion)
        base_lr = suggestion.chosen
    result, trials = train_best(config, run, base_lr)
    publish_training(result)
    predicted = predict_held_out(config, run, result.model_url)
    report = review_collab(run, predicted)
    publish_collab(report, trials)
    return report
