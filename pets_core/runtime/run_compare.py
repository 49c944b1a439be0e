"""Comparison of evaluated runs: metrics, settings, curves, samples and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import open_parquet
from pets_core.errors import PetsError
from pets_core.evaluation.compare import ScoredSamples, compare
from pets_core.evaluation.predictions import (
    PREDICTIONS,
    Predictions,
    PredictionsInfo,
    read_info,
    read_predictions,
)
from pets_core.evaluation.train_overlap import trained_on
from pets_core.ratings.config import RatingsConfig
from pets_core.ratings.evaluate import trained_on_ratings
from pets_core.ratings.target import RATINGS
from pets_core.records.comparison import (
    ChangedSample,
    ComparedRun,
    RunComparison,
    SettingDifference,
)
from pets_core.records.evaluation import Comparison
from pets_core.records.training import TrainResult
from pets_core.runtime.run_list import RunSummary, load_run_summary, run_stages
from pets_core.runtime.runs import flatten_settings, load_run_settings
from pets_core.storage.layout import EVALUATION
from pets_core.targets.base import Target
from pets_core.targets.registry import get_target

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_runs"]

_MAX_CHANGED = 200
_IGNORED = frozenset({"store", "cache_dir", "run"})
"""Settings that affect no result."""


@dataclass(frozen=True)
class _Evaluated:
    """An evaluated run and its predictions."""

    summary: RunSummary
    target: Target
    predictions: Predictions
    scores: ScoredSamples
    settings: Mapping[str, Any]


def compare_runs(store: str, urls: Sequence[str]) -> RunComparison:
    """Compare runs with the first of them.

    Args:
        store: URL of the store.
        urls: Folders of at least two runs.

    Raises:
        PetsError: There are fewer than two runs, one is given twice, or one is not evaluated.
    """
    if len(urls) < 2:
        raise PetsError("runs compare needs at least two runs")
    if len(set(urls)) < len(urls):
        raise PetsError(f"{max(urls, key=list(urls).count)}: this run is given twice")
    runs = [_load(url) for url in urls]
    compared = [_compare_with(store, runs[0], run) for run in runs]
    comparable = [
        run
        for run, (comparison, _) in zip(runs, compared, strict=True)
        if comparison or run is runs[0]
    ]
    changed, num_changed, num_common = _changed_samples(comparable)
    return RunComparison(
        runs=tuple(
            _to_record(run, comparison, error)
            for run, (comparison, error) in zip(runs, compared, strict=True)
        ),
        settings=_setting_differences([run.settings for run in runs]),
        changed=tuple(changed),
        num_changed=num_changed,
        num_common=num_common,
    )


def _load(url: str) -> _Evaluated:
    summary = load_run_summary(url)
    folder = storage.join(url, EVALUATION)
    path = storage.join(folder, PREDICTIONS)
    if summary is None or summary.metric is None or not storage.exists(path):
        raise PetsError(f"{url}: the run has no evaluation to compare")
    info = read_info(path)
    target = _target(info)
    predictions = read_predictions(path, target)
    return _Evaluated(
        summary=summary,
        target=target,
        predictions=predictions,
        scores=target.evaluator(predictions, evaluation_url=folder).score(),
        settings=_load_settings(url, summary),
    )


def _load_settings(url: str, summary: RunSummary) -> dict[str, Any]:
    """Return the settings of a run, with defaults for those that its version did not have."""
    stored = load_run_settings(url)
    kind = RatingsConfig if "ratings" in stored else PipelineConfig
    settings = kind.model_validate(stored).model_dump(mode="json")
    if summary.model_url and not summary.model_url.startswith(url):
        settings["evaluated model"] = summary.model_url
    return settings


def _target(info: PredictionsInfo) -> Target:
    if info.targets == RATINGS.name:
        return RATINGS
    return get_target(info.targets)


def _compare_with(store: str, first: _Evaluated, run: _Evaluated) -> tuple[Comparison | None, str]:
    """Return the comparison of a run with the first one, or why there is none."""
    if run is first:
        return None, ""
    try:
        _check_same_samples(first, run)
        first.target.check_comparable(run.predictions.info, first.predictions.info)
        find_overlap = trained_on_ratings if run.target.name == RATINGS.name else trained_on
        own, other = (
            find_overlap(store, each.predictions.info.model_url, run.predictions)
            for each in (run, first)
        )
        either = None if own is None or other is None else own | other
        # Standardise the errors of both by the same training photos.
        numbers = first.predictions.info.numbers
        info = run.predictions.info.model_copy(update={"numbers": numbers})
        evaluator = run.target.evaluator(
            replace(run.predictions, info=info),
            evaluation_url=storage.join(run.summary.url, EVALUATION),
        )
        return compare(evaluator.score(), first.scores, either), ""
    except PetsError as error:
        return None, str(error)


def _check_same_samples(first: _Evaluated, run: _Evaluated) -> None:
    """Raise a PetsError if equal ids of two runs may be different samples."""
    one, other = first.predictions.info, run.predictions.info
    if run.target.name != first.target.name:
        raise PetsError(f"targets differ ({first.target.name}; {run.target.name})")
    if one.dataset_name != other.dataset_name:
        raise PetsError(f"data sets differ ({one.dataset_name}; {other.dataset_name})")
    # The ids of ratings are their positions in a split of one version.
    is_ratings = run.target.name == RATINGS.name
    if is_ratings and (one.dataset_fingerprint, one.split) != (
        other.dataset_fingerprint,
        other.split,
    ):
        raise PetsError("they were evaluated on different versions or splits of the ratings")


def _to_record(run: _Evaluated, comparison: Comparison | None, error: str) -> ComparedRun:
    summary, info = run.summary, run.predictions.info
    stages = run_stages(summary.url, summary.model_url)
    training = stages.get("train")
    return ComparedRun(
        run_id=summary.run_id,
        name=summary.name,
        url=summary.url,
        dataset=info.dataset_name,
        fingerprint=info.dataset_fingerprint,
        split=info.split,
        metric=run.scores.metric,
        baseline=comparison,
        not_compared=error,
        epochs=training.epochs if isinstance(training, TrainResult) else (),
        seconds={name: record.seconds for name, record in stages.items()},
    )


def _setting_differences(settings: Sequence[Mapping[str, Any]]) -> tuple[SettingDifference, ...]:
    """Return the settings with different values; a missing one is None."""
    flat = [
        flatten_settings({name: each[name] for name in each if name not in _IGNORED})
        for each in settings
    ]
    names = sorted({name for each in flat for name in each})
    rows = [(name, tuple(each.get(name) for each in flat)) for name in names]
    return tuple(
        SettingDifference(name=name, values=values)
        for name, values in rows
        if any(value != values[0] for value in values)
    )


def _changed_samples(runs: Sequence[_Evaluated]) -> tuple[list[ChangedSample], int, int]:
    """Return the samples with the largest differences of scores, and two counts.

    Args:
        runs: Comparable runs.

    Returns:
        At most `_MAX_CHANGED` samples; the number of samples whose scores differ; the number of
        samples that all runs have.
    """
    import pandas as pd

    scores = pd.concat(
        [pd.Series(run.scores.scores, run.predictions.ids) for run in runs],
        axis=1,
        join="inner",
        ignore_index=True,
    )
    spread = scores.max(axis=1) - scores.min(axis=1)
    changed = spread[spread > 0].sort_values(ascending=False, kind="stable").index
    texts = [_texts(run) for run in runs]
    samples = [
        ChangedSample(
            id=sample,
            actual=texts[0].at[sample, "actual"],
            predictions=tuple(text.at[sample, "predicted"] for text in texts),
            scores=tuple(scores.loc[sample].tolist()),
        )
        for sample in changed[:_MAX_CHANGED]
    ]
    return samples, len(changed), len(scores)


def _texts(run: _Evaluated) -> pd.DataFrame:
    """Return target and prediction of each sample as text, by id; the score without such columns.

    Returns:
        The columns actual and predicted.
    """
    import pandas as pd

    url = storage.join(run.summary.url, EVALUATION, PREDICTIONS)
    with storage.open_read(url) as file:
        parquet = open_parquet(file)
        names = {"actual", "predicted"} & set(parquet.schema_arrow.names)
        table = parquet.read(columns=sorted(names))
    scores = [run.scores.metric.format(score) for score in run.scores.scores.tolist()]
    texts = pd.DataFrame({"actual": "", "predicted": scores}, index=run.predictions.ids)
    for name in names:
        texts[name] = [_text(value) for value in table[name].to_pylist()]
    return texts


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
