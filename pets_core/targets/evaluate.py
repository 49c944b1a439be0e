"""Evaluation of any kind of target, from its predictions alone: no torch, no model."""

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
from pets_core.records.evaluation import Champion, EvalReport, PredictResult
from pets_core.records.training import TrainResult
from pets_core.registry.gate import check_gate
from pets_core.targets.base import Target
from pets_core.targets.registry import get_target
from pets_core.targets.write import Subject, write_evaluation

__all__ = ["check_gate_settings", "evaluate", "given_predictions"]

_BESIDE = {
    "valid_url": VALID_PREDICTIONS,
    "champion_url": CHAMPION_PREDICTIONS,
    "maps_url": MAPS,
}


def check_gate_settings(config: PipelineConfig, target: str | None = None) -> None:
    """Refuse gate settings that have no meaning for a kind of target.

    Args:
        config: Settings.
        target: Name of the kind; None: the one of the settings.

    Raises:
        PetsError: A setting has no meaning, or there is no such kind.
    """
    check_gate(config.gate, get_target(target or config.source.targets))


def evaluate(
    config: PipelineConfig,
    run_url: str,
    predicted: PredictResult,
    *,
    champion: Champion | None = None,
    training: TrainResult | None = None,
) -> EvalReport:
    """Evaluate predictions and store everything under `<run>/evaluation`, candidate.json last.

    Args:
        config: Settings.
        run_url: Folder of the run.
        predicted: The files of predictions.
        champion: The model to compare with, if there is one.
        training: How the model was trained, where that is known.

    Raises:
        PetsError: The predictions are damaged, or a setting has no meaning for their kind.
    """
    target = get_target(predicted.targets)
    check_gate_settings(config, target.name)
    predictions = read_predictions(predicted.predictions_url, target)
    evaluator = target.evaluator(
        predictions,
        _validation(predicted, predictions, target),
        config.evaluate,
        is_own=predicted.model_url.startswith(f"{run_url.rstrip('/')}/"),
        maps_url=predicted.maps_url,
    )
    subject = Subject(
        target=target,
        evaluator=evaluator,
        predicted=predicted,
        trained_on=partial(trained_on, config.store),
    )
    return write_evaluation(config, run_url, subject, champion=champion, training=training)


def given_predictions(url: str) -> PredictResult:
    """Return the predictions in a file, with the files that an evaluation left in its folder.

    Raises:
        PetsError: There is no such file, or it holds no predictions, or of an unknown kind.
    """
    url = storage.absolute(url)
    info = read_info(url)
    try:
        get_target(info.targets)
    except PetsError as error:
        raise PetsError(f"{url}: {error}") from error
    folder = url.rpartition("/")[0]
    beside = {
        name: storage.join(folder, file)
        for name, file in _BESIDE.items()
        if storage.exists(storage.join(folder, file))
    }
    if info.split == "valid":
        beside["valid_url"] = url
    return PredictResult(
        targets=info.targets,
        model_url=info.model_url,
        predictions_url=url,
        photos_per_second=info.photos_per_second,
        **beside,
    )


def _validation(
    predicted: PredictResult, predictions: Predictions, target: Target
) -> Predictions | None:
    if predicted.valid_url is None:
        return None
    if predicted.valid_url == predicted.predictions_url:
        return predictions
    validation = read_predictions(predicted.valid_url, target)
    if validation.info.model_url != predictions.info.model_url or _differs(
        target, predictions.info, validation.info
    ):
        raise PetsError(
            f"{predicted.valid_url}: predictions of {validation.info.model_url}, not of "
            f"{predictions.info.model_url} as those evaluated: remove it, or predict again"
        )
    return validation


def _differs(target: Target, one: PredictionsInfo, other: PredictionsInfo) -> bool:
    try:
        target.check_comparable(one, other)
    except PetsError:
        return True
    return False
