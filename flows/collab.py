"""Collaborative filtering: train and evaluate a recommender on ratings."""

# No postponed annotations: workers load this file by path and could not resolve them.
from prefect import State, flow

from pets_core.ratings.config import RatingsConfig
from pets_core.records.evaluation import EvalReport
from tasks.artifacts.evaluation import publish_evaluation
from tasks.artifacts.training import publish_lr, publish_training
from tasks.collab import (
    publish_ratings,
    publish_trials,
    resolve_ratings,
    start_or_resume_ratings_run,
    train_best,
)
from tasks.evaluate import evaluate_model, final_state, load_champion, promote_model
from tasks.execution.naming import flow_run_name
from tasks.mirror import mirror_run
from tasks.stages import find_lr, predict_model

__all__ = ["collab_flow"]


@flow(name="pets-collab", flow_run_name=flow_run_name)
def collab_flow(
    config: RatingsConfig = RatingsConfig(),  # noqa: B008 - frozen
    resume: str | None = None,
) -> EvalReport | State[EvalReport]:
    """Ingest ratings, then train, evaluate and, if it passes the gate, promote a recommender.

    Args:
        config: Settings (docs/settings.md).
        resume: Folder of an interrupted run to resume.
    """
    run = start_or_resume_ratings_run(config, resume)
    publish_ratings(run.manifest)
    chosen, base_lr = resolve_ratings(config, run), config.train.base_lr
    if base_lr is None:
        suggestion = find_lr(chosen, run)
        publish_lr(suggestion)
        base_lr = suggestion.chosen
    result, trials = train_best(config, run, base_lr)
    publish_training(result, config.train)
    champion = load_champion(config, run)
    predicted = predict_model(chosen, run, result.model_url, champion)
    report = evaluate_model(config, run.url, predicted, champion, result)
    report = promote_model(config, report)
    publish_trials(report, trials)
    publish_evaluation(config, report)
    mirror_run(config, report)
    return final_state(config, report)
