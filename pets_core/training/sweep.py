"""Hyperparameter search: proposes trials with Optuna, and ranks their results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Literal

import optuna

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.records.training import MetricInfo, SweepResult, TrainResult, Trial
from pets_core.storage.layout import SWEEP

__all__ = ["Study", "complete_trial", "trial_config", "trial_url", "write_result"]


class Study:
    """Optuna study that proposes trials from the validation metrics of earlier ones.

    A tree-structured Parzen estimator (TPE, Bergstra et al. 2011) proposes backbone and learning
    rate. Proposals depend only on the settings and the earlier results, so a resumed sweep proposes
    the same trials again and finds their results in the store.

    Args:
        config: Search space and seed.
    """

    def __init__(self, config: PipelineConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = config.sweep
        # constant_liar: trials proposed at the same time differ.
        sampler = optuna.samplers.TPESampler(
            seed=config.train.seed, n_startup_trials=sweep.num_random, constant_liar=True
        )
        self._study = optuna.create_study(sampler=sampler)
        self._metrics: list[MetricInfo] = []
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            "backbone": optuna.distributions.CategoricalDistribution(
                sweep.backbones or (config.model.backbone,)
            ),
            "base_lr": optuna.distributions.FloatDistribution(sweep.min_lr, sweep.max_lr, log=True),
        }

    def suggest(self, count: int) -> list[Trial]:
        """Return the next trials to train."""
        proposed = [self._study.ask(self._space) for _ in range(count)]
        return [
            Trial(number=trial.number, backbone=p["backbone"], base_lr=float(f"{p['base_lr']:.3g}"))
            for trial in proposed
            for p in [trial.params]
        ]

    def record(self, trial: Trial) -> None:
        """Record the result of a trial; one without a value counts as failed.

        Raises:
            PetsError: Earlier trials have another metric.
        """
        failed = optuna.trial.TrialState.FAIL if trial.value is None else None
        self._metrics += [] if failed else [trial.metric]
        _check_same_metric(self._metrics)
        value = None if trial.value is None else trial.metric.score(trial.value)
        self._study.tell(trial.number, value, state=failed)


def trial_config(config: PipelineConfig, trial: Trial, seed: int) -> PipelineConfig:
    """Return the settings of one training of a trial."""
    model = config.model.model_copy(update={"backbone": trial.backbone})
    train = config.train.model_copy(update={"base_lr": trial.base_lr, "seed": seed})
    return config.model_copy(update={"model": model, "train": train})


def trial_url(run_url: str, trial: Trial, seed: int) -> str:
    """Return the run folder of one training of a trial, next to the sweep's folder."""
    return f"{run_url.rstrip('/')}-{trial.number:03}-{seed}"


def complete_trial(
    trial: Trial, trained: Sequence[TrainResult], keep: Literal["last", "best"]
) -> Trial:
    """Return a trial with its result: the mean validation metric of the kept weights.

    A metric that is not finite makes it a failed trial.

    Raises:
        PetsError: There are no validation photos, or the trainings have different metrics.
    """
    kept = [result.kept_epoch(keep) for result in trained]
    values = [epoch.valid_metric for epoch in kept if epoch.valid_metric is not None]
    if len(values) < len(kept):
        raise PetsError(
            "a sweep ranks trials by their validation metric, but the data set has no validation "
            "photos: raise source.valid_fraction"
        )
    seconds = sum(result.seconds for result in trained)
    metric = kept[0].metric
    _check_same_metric([epoch.metric for epoch in kept])
    if not all(map(math.isfinite, values)):
        error = f"the validation {metric.name} is not a finite number: lower sweep.max_lr"
        return trial.model_copy(update={"error": error, "seconds": seconds})
    return trial.model_copy(
        update={
            "metric": metric,
            "values": tuple(values),
            "value": mean(values),
            "seconds": seconds,
            "model_urls": tuple(result.model_url for result in trained),
        }
    )


def write_result(run_url: str, trials: Sequence[Trial]) -> SweepResult:
    """Write all trials to sweep.json, best first and failed ones last.

    Raises:
        PetsError: No trial succeeded.
    """

    def order(trial: Trial) -> tuple[float, int]:
        return trial.metric.score(trial.value or 0.0), trial.number

    done = sorted((trial for trial in trials if trial.value is not None), key=order)
    if not done:
        raise PetsError(f"all {len(trials)} trials failed; the first error: {trials[0].error}")
    failed = [trial for trial in trials if trial.value is None]
    url = storage.join(run_url, SWEEP)
    result = SweepResult(url=url, trials=(*done, *failed))
    storage.write_bytes(url, result.model_dump_json().encode())
    return result


def _check_same_metric(metrics: Sequence[MetricInfo]) -> None:
    """Check that all trainings have the same metric.

    Raises:
        PetsError: The metrics differ.
    """
    names = list(dict.fromkeys(metric.name for metric in metrics))
    if len(names) > 1:
        raise PetsError(
            f"the sweep was started by an earlier version with the metric {names[0]}, which cannot "
            f"be compared with {names[1]} of this version: start a new sweep"
        )
