"""Which settings to try next, and which were best: a study of Optuna, and what it was told."""

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

__all__ = ["Study", "concluded", "trial_config", "trial_url", "write_result"]

_RESULT = "sweep.json"


class Study:
    """Proposes trials by the validation metric of those before.

    The trees of Parzen estimators (Bergstra and others 2011) propose backbone and rate. What is
    proposed is a function of the settings and of what was told before, so that a sweep that goes on
    asks for the same trials again, and finds them done.

    Args:
        config: What is varied, and the seed.
    """

    def __init__(self, config: PipelineConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweep = config.sweep
        # Trials that are asked for together are to differ.
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

    def ask(self, count: int) -> list[Trial]:
        """The next trials."""
        asked = [self._study.ask(self._space) for _ in range(count)]
        return [
            Trial(number=trial.number, backbone=p["backbone"], base_lr=float(f"{p['base_lr']:.3g}"))
            for trial in asked
            for p in [trial.params]
        ]

    def tell(self, trial: Trial) -> None:
        """Record the result of a trial; one that could not be trained counts as failed.

        Raises:
            PetsError: Trials before it had another metric.
        """
        failed = optuna.trial.TrialState.FAIL if trial.value is None else None
        self._metrics += [] if failed else [trial.metric]
        _check_same_metric(self._metrics)
        value = None if trial.value is None else trial.metric.score(trial.value)
        self._study.tell(trial.number, value, state=failed)


def trial_config(config: PipelineConfig, trial: Trial, seed: int) -> PipelineConfig:
    """Settings of one training of a trial."""
    model = config.model.model_copy(update={"backbone": trial.backbone})
    train = config.train.model_copy(update={"base_lr": trial.base_lr, "seed": seed})
    return config.model_copy(update={"model": model, "train": train})


def trial_url(run_url: str, trial: Trial, seed: int) -> str:
    """The folder of one training of a trial, a run beside the sweep's."""
    return f"{run_url.rstrip('/')}-{trial.number:03}-{seed}"


def concluded(trial: Trial, trained: Sequence[TrainResult], keep: Literal["last", "best"]) -> Trial:
    """Return a trial with its result: the mean validation metric of the weights that were kept.

    Raises:
        PetsError: There are no validation photos, or the metric is not a finite number.
    """
    kept = [result.kept(keep) for result in trained]
    values = [epoch.valid_metric for epoch in kept if epoch.valid_metric is not None]
    if len(values) < len(kept):
        raise PetsError(
            "a sweep chooses by validation photos, and the data set has none: raise "
            "source.valid_fraction"
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
    """Store all trials, the best first.

    Raises:
        PetsError: None could be trained.
    """

    def order(trial: Trial) -> tuple[float, int]:
        return trial.metric.score(trial.value or 0.0), trial.number

    done = sorted((trial for trial in trials if trial.value is not None), key=order)
    if not done:
        raise PetsError(f"none of the {len(trials)} trials was trained: {trials[0].error}")
    failed = [trial for trial in trials if trial.value is None]
    url = storage.join(run_url, _RESULT)
    result = SweepResult(url=url, trials=(*done, *failed))
    storage.write_bytes(url, result.model_dump_json().encode())
    return result


def _check_same_metric(metrics: Sequence[MetricInfo]) -> None:
    """Refuse to compare trainings of versions that had other metrics.

    Raises:
        PetsError: They differ.
    """
    names = list(dict.fromkeys(metric.name for metric in metrics))
    if len(names) > 1:
        raise PetsError(
            f"the sweep began with an earlier version, by {names[0]}, and goes on by {names[1]}, "
            "which cannot be compared: start a new sweep"
        )
