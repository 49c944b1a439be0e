"""Evaluation of stored predictions of any kind of target, without torch and without the model."""

from __future__ import annotations

from functools import partial

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    MAPS,
    VALID_PREDICTIONS,
    Predictions,
    PredictionsInfo,
    read_info,
    read_predictions,
)
from pets_core.evaluation.train_overlap import trained_on
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.records.inference import BaselinePredictions, PredictResult
from pets_core.records.training import TrainResult
from pets_core.targets.base import Evaluator, Target
from pets_core.targets.gate import check_gate
from pets_core.targets.registry import get_target
from pets_core.targets.write import EvaluationInputs, write_evaluation

__all__ = ["evaluate", "find_prediction_files"]

_COMPANION_FILES = {
    "valid_url": VALID_PREDICTIONS,
    "champion_url": CHAMPION_PREDICTIONS,
    "maps_url": MAPS,
}


def evaluate(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate predictions and store the results under `<run>/evaluation`.

    candidate.json is written last and commits the evaluation.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: Files of predictions.
        champion: Model to compare with, if any.
        training: Training result of the model, if known.

    Raises:
        PetsError: The predictions are damaged, or a gate setting does not apply to their kind.
    """
    target = get_target(predicted.targets)
    check_gate(config.gate, target)
    predictions = read_predictions(predicted.predictions_url, target)
    evaluator = target.evaluator(
        predictions,
        _read_validation(predicted, predictions, target),
        config.evaluate,
        is_run_model=predicted.model_url.startswith(f"{run_url.rstrip('/')}/"),
        maps_url=predicted.maps_url,
    )
    subject = EvaluationInputs(
        target=target,
        evaluator=evaluator,
        predicted=predicted,
        trained_on=partial(trained_on, config.store),
        baselines={
            each.name: partial(_baseline, each, target, config) for each in predicted.baselines
        },
    )
    return write_evaluation(config, run_url, subject, champion=champion, training=training)


def find_prediction_files(url: str) -> PredictResult:
    """Locate a prediction file and the companion files that an evaluation wrote to its folder.

    Raises:
        PetsError: The file is missing, holds no predictions, or its kind of target is unknown.
    """
    url = storage.absolute(url)
    info = read_info(url)
    try:
        get_target(info.targets)
    except PetsError as error:
        raise PetsError(f"{url}: {error}") from error
    folder = url.rpartition("/")[0]
    companions = {
        name: storage.join(folder, file)
        for name, file in _COMPANION_FILES.items()
        if storage.exists(storage.join(folder, file))
    }
    if info.split == "valid":
        companions["valid_url"] = url
    return PredictResult(
        targets=info.targets,
        model_url=info.model_url,
        predictions_url=url,
        photos_per_second=info.photos_per_second,
        **companions,
    )


def _read_validation(
    predicted: PredictResult, predictions: Predictions, target: Target
) -> Predictions | None:
    if predicted.valid_url is None:
        return None
    if predicted.valid_url == predicted.predictions_url:
        return predictions
    validation = read_predictions(predicted.valid_url, target)
    model_url, own_url = validation.info.model_url, predictions.info.model_url
    if model_url != own_url or not _is_comparable(target, predictions.info, validation.info):
        raise PetsError(
            f"{predicted.valid_url}: predictions of {model_url}, which differ in model, labels or "
            f"numbers from the evaluated predictions of {own_url}: remove the file, or predict "
            "again"
        )
    return validation


def _baseline(baseline: BaselinePredictions, target: Target, config: PipelineConfig) -> Evaluator:
    predictions = read_predictions(baseline.predictions_url, target)
    validation = predictions if predictions.info.split == "valid" else None
    if baseline.valid_url:
        validation = read_predictions(baseline.valid_url, target)
    # As a model of this run: a threshold stored with the probe is not that of the neighbours.
    return target.evaluator(predictions, validation, config.evaluate, is_run_model=True)


def _is_comparable(target: Target, one: PredictionsInfo, other: PredictionsInfo) -> bool:
    try:
        target.check_comparable(one, other)
    except PetsError:
        return False
    return True
