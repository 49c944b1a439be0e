"""Which settings to try next, and which were best: a study of Optuna, and what it was told."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Literal

import optuna

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.records.training import SweepResult, TrainResult, Trial

__all__ = ["Study", "concluded", "trial_config", "trial_url", "write_result"]

_RESULT = "sweep.json"


class Study:
    """Asks for trials and is told of their errors.

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
        """What came of a trial; one that could not be trained counts as failed."""
        failed = optuna.trial.TrialState.FAIL if trial.error_rate is None else None
        self._study.tell(trial.number, trial.error_rate, state=failed)


def trial_config(config: PipelineConfig, trial: Trial, seed: int) -> PipelineConfig:
    """Settings of one training of a trial."""
    model = config.model.model_copy(update={"backbone": trial.backbone})
    train = config.train.model_copy(update={"base_lr": trial.base_lr, "seed": seed})
    return config.model_copy(update={"model": model, "train": train})


def trial_url(run_url: str, trial: Trial, seed: int) -> str:
    """The folder of one training of a trial, a run beside the sweep's."""
    return f"{run_url.rstrip('/')}-{trial.number:03}-{seed}"


def concluded(trial: Trial, trained: Sequence[TrainResult], keep: Literal["last", "best"]) -> Trial:
    """A trial with what its trainings came to: the mean validation error of the weights kept.

    Raises:
        PetsError: There are no validation photos to tell by.
    """
    rates = [result.kept(keep).valid_error for result in trained]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates):
        raise PetsError(
            "a sweep chooses by validation photos, and the data set has none: raise "
            "source.valid_fraction"
        )
    return trial.model_copy(
        update={
            "error_rates": tuple(known),
            "error_rate": mean(known),
            "seconds": sum(result.seconds for result in trained),
            "model_urls": tuple(result.model_url for result in trained),
        }
    )


def write_result(run_url: str, trials: Sequence[Trial]) -> SweepResult:
    """Store all trials, the best first.

    Raises:
        PetsError: None could be trained.
    """
    done = sorted(
        (t for t in trials if t.error_rate is not None), key=lambda t: (t.error_rate, t.number)
    )
    if not done:
        raise PetsError(f"none of the {len(trials)} trials came to its end: {trials[0].fault}")
    failed = [trial for trial in trials if trial.error_rate is None]
    url = storage.join(run_url, _RESULT)
    result = SweepResult(url=url, trials=(*done, *failed))
    storage.write_bytes(url, result.model_dump_json().encode())
    return result
