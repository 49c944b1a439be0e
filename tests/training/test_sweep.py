"""Trials that a sweep suggests, and the results it stores."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.plots.sweep import sweep_trials
from pets_core.records.training import EpochMetrics, MetricInfo, TrainResult, Trial
from pets_core.training.sweep import Study, complete_trial, trial_config, trial_url, write_result

BACKBONES = ("a", "b")


def settings(**sweep) -> PipelineConfig:
    return PipelineConfig.model_validate({"sweep": {"backbones": BACKBONES, **sweep}})


def error_rate_of(trial: Trial) -> float:
    """Return an error that is lower for backbone b and for rates near 0.003."""
    return 0.1 + 0.2 * (trial.backbone == "a") + abs(trial.base_lr - 0.003) * 20


def run_trials(config: PipelineConfig, count: int, num_parallel: int = 1) -> list[Trial]:
    study, trials = Study(config), []
    while len(trials) < count:
        for trial in study.suggest(num_parallel):
            done = trial.model_copy(update={"value": error_rate_of(trial)})
            study.record(done)
            trials.append(done)
    return trials


def test_same_results_lead_to_the_same_trials() -> None:
    assert run_trials(settings(), 12, 3) == run_trials(settings(), 12, 3)
    other = PipelineConfig.model_validate({"train": {"seed": 1}, "sweep": {"backbones": BACKBONES}})
    assert run_trials(settings(), 4) != run_trials(other, 4)


def test_later_trials_are_better_than_random_trials() -> None:
    trials = run_trials(settings(num_random=10), 40)
    early, late = trials[:10], trials[-10:]
    assert sum(map(error_rate_of, late)) < 0.7 * sum(map(error_rate_of, early))
    assert sum(trial.backbone == "b" for trial in late) > 5
    assert all(3e-4 <= trial.base_lr <= 3e-2 for trial in trials)


def test_sweep_without_backbones_uses_the_models_backbone() -> None:
    (trial,) = Study(PipelineConfig()).suggest(1)
    assert trial.backbone == PipelineConfig().model.backbone


def test_failed_trial_is_recorded_and_not_chosen(tmp_path) -> None:
    study = Study(settings())
    first, second = study.suggest(2)
    study.record(first.model_copy(update={"error": "the loss is not finite"}))
    good = second.model_copy(update={"value": 0.5})
    study.record(good)
    bad = first.model_copy(update={"error": "the loss is not finite"})
    result = write_result(str(tmp_path), [bad, good])
    assert [trial.number for trial in result.trials] == [1, 0]
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert kept["trials"][1]["error"] == "the loss is not finite"
    with pytest.raises(PetsError, match="all 1 trials failed; the first error: the loss"):
        write_result(str(tmp_path), [bad])


def trained(error_rate: float | None) -> TrainResult:
    epoch = EpochMetrics(
        epoch=0, phase="frozen", train_loss=1.0, valid_loss=1.0, valid_metric=error_rate,
        seconds=1.0, photos_per_second=1.0,
    )  # fmt: skip
    return TrainResult.model_construct(epochs=(epoch,), seconds=2.0, model_url="m")


def test_trial_value_is_the_mean_over_its_seeds() -> None:
    trial = Trial(number=0, backbone="a", base_lr=0.1)
    done = complete_trial(trial, [trained(0.2), trained(0.4)], "last")
    assert done.value == pytest.approx(0.3)
    assert done.values == (0.2, 0.4)
    assert done.seconds == 4.0
    with pytest.raises(PetsError, match=r"source\.valid_fraction"):
        complete_trial(trial, [trained(None)], "last")


def test_best_trial_follows_the_direction_of_the_metric(tmp_path) -> None:
    iou = MetricInfo(name="mean IoU", higher_is_better=True)
    trials = [
        Trial(number=n, backbone="a", base_lr=0.1, metric=iou, value=value)
        for n, value in enumerate([0.3, 0.9, 0.5])
    ]
    assert [t.number for t in write_result(str(tmp_path), trials).trials] == [1, 2, 0]
    study = Study(settings(num_random=1))
    for trial, value in zip(study.suggest(3), [0.3, 0.9, 0.5], strict=True):
        study.record(trial.model_copy(update={"metric": iou, "value": value}))
    assert study._study.best_trial.number == 1


def test_trials_with_another_metric_are_refused() -> None:
    study = Study(settings())
    first, second = study.suggest(2)
    study.record(first.model_copy(update={"value": 0.1}))
    other = MetricInfo(name="F1 per photo", higher_is_better=True)
    with pytest.raises(PetsError, match="earlier version with the metric error rate, which cannot"):
        study.record(second.model_copy(update={"value": 0.9, "metric": other}))


def test_trial_with_a_nan_metric_fails() -> None:
    trial = Trial(number=0, backbone="a", base_lr=0.1)
    done = complete_trial(trial, [trained(0.2), trained(float("nan"))], "last")
    assert done.value is None
    assert "error rate is not a finite number" in done.error


def test_kept_epoch_is_the_one_with_the_kept_weights() -> None:
    epochs = tuple(
        trained(error).epochs[0].model_copy(update={"epoch": number, "valid_loss": loss})
        for number, (error, loss) in enumerate([(0.3, 2.0), (0.2, 1.0), (0.4, 3.0)])
    )
    result = TrainResult.model_construct(epochs=epochs)
    assert result.kept_epoch("best").valid_metric == 0.2
    assert result.kept_epoch("last").valid_metric == 0.4


def test_epochs_of_earlier_versions_are_read() -> None:
    old = {"epoch": 0, "phase": "frozen", "train_loss": 1.0, "seconds": 1, "photos_per_second": 1}
    epoch = EpochMetrics.model_validate(old | {"valid_loss": 1.0, "valid_error_rate": 0.25})
    assert epoch.metric_text == "25.0%"
    assert EpochMetrics.model_validate_json(epoch.model_dump_json()) == epoch
    named = EpochMetrics.model_validate(old | {"valid_error": 2.5, "metric": "RMSE"})
    assert (named.metric.name, named.metric_text) == ("RMSE", "2.5")


def test_each_training_is_a_separate_run() -> None:
    trial = Trial(number=7, backbone="b", base_lr=0.02)
    config = trial_config(settings(), trial, 5)
    assert (config.model.backbone, config.train.base_lr, config.train.seed) == ("b", 0.02, 5)
    assert trial_url("s3://bucket/runs/1/", trial, 5) == "s3://bucket/runs/1-007-5"


@pytest.mark.parametrize("count", [0, 1, 9])
def test_plot_shows_any_number_of_trials(count) -> None:
    trials = [
        Trial(number=n, backbone=f"b${n}", base_lr=10.0**-n, value=n / 10) for n in range(count)
    ]
    plot = Image.open(io.BytesIO(sweep_trials(trials)))
    assert plot.width > 900


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"min_lr": 0.1, "max_lr": 0.01}, "max_lr .* must be above min_lr"),
        ({"num_trials": 0}, "greater than or equal to 1"),
    ],
)
def test_invalid_sweep_settings_are_refused(sweep, message) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**sweep)


def test_sweep_result_is_stored(tmp_path) -> None:
    trials = run_trials(settings(), 3)
    result = write_result(str(tmp_path), trials)
    assert result.trials[0].value == min(trial.value for trial in trials)
    assert Path(result.url).exists()
