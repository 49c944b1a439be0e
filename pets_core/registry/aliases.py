"""Aliases of evaluated models, per data set, with their history.

<store>/models/<data set>/<alias>/<time>-<random>.json   one file per version; the newest is current
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field, model_validator

from pets_core import storage
from pets_core.config.base import NAME_PATTERN
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError, did_you_mean
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.models.card import CARD
from pets_core.records.base import Record, RecordT, Split, parse_record
from pets_core.records.dataset import DatasetManifest
from pets_core.records.evaluation import Champion, EvalReport, Metric
from pets_core.storage.layout import EVALUATION, MODELS, RUNS

__all__ = [
    "CANDIDATE",
    "AliasConflict",
    "AliasVersion",
    "Candidate",
    "EvaluationKey",
    "GatedConfig",
    "absolute",
    "aliases",
    "candidates",
    "current",
    "find_champion",
    "history",
    "is_inside",
    "kept_models",
    "load_candidate",
    "promote",
    "promote_run",
    "relative",
    "rollback",
]

CANDIDATE = "candidate.json"
"""File that an evaluation writes last, which commits it."""
_STORE_PREFIX = "store:"


class AliasConflict(PetsError):  # noqa: N818 - as Git and HTTP name it
    """The alias moved after the comparison with the model it pointed at."""


class Candidate(Record):
    """Evaluated model that can be promoted.

    Attributes:
        format_version: Version of this record. Version 1 has classes and an error rate only.
        run_id: Id of the run that evaluated the model.
        target: Kind of target.
        model_url: URL of the model; relative to the store if the model is in the store.
        predictions_url: URL of the predictions, relative in the same way.
        dataset_name: Data set of the evaluation.
        dataset_fingerprint: Version of the data set.
        split: Split of the evaluation.
        tta_views: Number of augmented views averaged per sample.
        backbone: Backbone of the model.
        metric: Primary metric.
        num_rows: Number of evaluated samples.
        evaluated_at: Time of the evaluation, UTC, ISO 8601.
    """

    format_version: Literal[1, 2] = 2
    run_id: str
    target: str = "class"
    model_url: str
    predictions_url: str
    dataset_name: str
    dataset_fingerprint: str
    split: Split
    tta_views: int
    backbone: str
    metric: Metric
    num_rows: int
    evaluated_at: str

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, data: Any) -> Any:
        if isinstance(data, dict) and "error_rate" in data:
            data = dict(data)
            data["metric"] = {"name": "error rate", "value": data.pop("error_rate"), "unit": "%"}
            data["format_version"] = 2
        return data


class GatedConfig(Protocol):
    """Settings that promotion needs."""

    @property
    def store(self) -> str:
        """URL of the store with data sets and runs."""

    @property
    def gate(self) -> GateConfig:
        """Conditions of promotion, and the alias."""


class EvaluationKey(NamedTuple):
    """Samples and method of an evaluation. Metrics with the same key are comparable."""

    dataset_name: str
    dataset_fingerprint: str
    split: Split
    tta_views: int

    @staticmethod
    def of(model: Candidate | PredictionsInfo) -> EvaluationKey:
        """Return the key that a model was evaluated with."""
        return EvaluationKey(
            model.dataset_name, model.dataset_fingerprint, model.split, model.tta_views
        )

    @staticmethod
    def by(config: PipelineConfig, manifest: DatasetManifest) -> EvaluationKey:
        """Return the key that a run will evaluate its model with."""
        split = manifest.evaluation_split(config.evaluate.split)
        return EvaluationKey(manifest.name, manifest.fingerprint, split, config.evaluate.tta_views)


class AliasVersion(Record):
    """Version of an alias: the model that it points at from `moved_at` on.

    Attributes:
        format_version: Version of this record.
        model: Model that the alias points at.
        previous: Name of the version that a rollback returns to, if there is one.
        why: promoted or rolled back.
        moved_at: Time of the change, UTC, ISO 8601.
        name: Name of the version's file, which sorts by time; not stored.
    """

    format_version: Literal[1] = 1
    name: str = Field(default="", exclude=True)
    model: Candidate
    previous: str | None = None
    why: Literal["promoted", "rolled back"] = "promoted"
    moved_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def find_champion(config: GatedConfig, key: EvaluationKey) -> Champion | None:
    """Return the model that the alias of the settings points at, or None if there is none.

    Its stored predictions are reused if they exist and were made with the same `key`.
    """
    version = current(config.store, key.dataset_name, config.gate.alias)
    if version is None:
        return None
    url = absolute(config.store, version.model.predictions_url)
    is_reusable = EvaluationKey.of(version.model) == key and storage.exists(url)
    return Champion(
        model_url=absolute(config.store, version.model.model_url),
        predictions_url=url if is_reusable else None,
        evaluation_url=_evaluation_url(config.store, version.model.run_id),
        version=version.name,
    )


def is_inside(store: str, url: str) -> bool:
    """Whether a URL is in the store."""
    return relative(store, url).startswith(_STORE_PREFIX)


def relative(store: str, url: str) -> str:
    """Return a URL relative to the store if it is in the store, so that the store can be moved."""
    root = storage.absolute(store).rstrip("/") + "/"
    return _STORE_PREFIX + url.removeprefix(root) if url.startswith(root) else url


def absolute(store: str, url: str) -> str:
    """Return the absolute URL of the result of `relative`."""
    if not url.startswith(_STORE_PREFIX):
        return url
    return storage.join(storage.absolute(store), url.removeprefix(_STORE_PREFIX))


def candidates(store: str) -> Iterator[Candidate]:
    """Yield the evaluated models of a store, sorted by run id."""
    for run_id in sorted(storage.list_folder(storage.join(storage.absolute(store), RUNS))):
        url = storage.join(_evaluation_url(store, run_id), CANDIDATE)
        if storage.exists(url):
            yield _read(url, Candidate)


def load_candidate(report: EvalReport) -> Candidate:
    """Return the evaluated model of a report."""
    return _read(report.file(CANDIDATE), Candidate)


def aliases(store: str, dataset: str) -> list[str]:
    """Return the sorted aliases of a data set."""
    return _names(_folder(store, dataset))


def _names(folder: str) -> list[str]:
    """Return the sorted entries of a folder, without other files such as .DS_Store of macOS."""
    return sorted(name for name in storage.list_folder(folder) if re.fullmatch(NAME_PATTERN, name))


def history(store: str, dataset: str, alias: str) -> dict[str, AliasVersion]:
    """Return the versions of an alias by name, newest last; empty if there is no such alias.

    Raises:
        PetsError: A version is damaged.
    """
    folder = _folder(store, dataset, alias)
    return {name: _read_version(folder, name) for name in _versions(folder)}


def current(store: str, dataset: str, alias: str) -> AliasVersion | None:
    """Return the current version of an alias, or None if there is none."""
    folder = _folder(store, dataset, alias)
    names = _versions(folder)
    return _read_version(folder, names[-1]) if names else None


def kept_models(store: str) -> list[Candidate]:
    """Return the models of all aliases of a store, and the models a rollback would return to."""
    root, kept = storage.join(storage.absolute(store), MODELS), []
    for dataset in _names(root):
        for alias in aliases(store, dataset):
            versions = history(store, dataset, alias)
            newest = versions[max(versions)] if versions else None
            previous = versions.get(newest.previous) if newest and newest.previous else None
            kept += [version.model for version in (newest, previous) if version]
    return kept


def promote(store: str, alias: str, model: Candidate) -> AliasVersion:
    """Point an alias of the model's data set at the model, by an atomic write of one file.

    Raises:
        PetsError: The model no longer exists.
    """
    return _promote(store, alias, model, current(store, model.dataset_name, alias))


def promote_run(store: str, alias: str, report: EvalReport) -> AliasVersion:
    """Point an alias at the model of an evaluation, as `promote` does.

    Raises:
        AliasConflict: The alias moved after the comparison with the model it pointed at.
        PetsError: The model no longer exists.
    """
    model = load_candidate(report)
    newest = current(store, model.dataset_name, alias)
    if (
        newest
        and newest.name != report.champion_version
        and newest.model.model_url != model.model_url
    ):
        raise AliasConflict(
            f"{alias} moved to run {newest.model.run_id} during this evaluation, and this "
            "model was not compared with it. Run `pets evaluate MODEL --gate.promote` again"
        )
    return _promote(store, alias, model, newest)


def _promote(store: str, alias: str, model: Candidate, newest: AliasVersion | None) -> AliasVersion:
    """Promote a model as the successor of the newest version."""
    _check_exists(store, model)
    if newest is None:
        return _write(store, alias, AliasVersion(model=model))
    if newest.model == model:
        return newest
    # A rollback of a model that is promoted twice returns to the model before it.
    is_same = newest.model.model_url == model.model_url
    previous = newest.previous if is_same else newest.name
    return _write(store, alias, AliasVersion(model=model, previous=previous), newest.name)


def rollback(store: str, dataset: str, alias: str) -> AliasVersion:
    """Point an alias at its previous model; repeated calls go further back.

    Raises:
        PetsError: There is no such alias, no previous model, or that model no longer exists.
    """
    versions = history(store, dataset, alias)
    if not versions:
        known = aliases(store, dataset)
        raise PetsError(f"{dataset} has no alias {alias!r}.{did_you_mean(alias, known)}")
    newest = max(versions)
    name = versions[newest].previous
    if name is None or name not in versions:
        raise PetsError(f"{alias} of {dataset} has no previous model to roll back to")
    restored = versions[name]
    _check_exists(store, restored.model)
    version = AliasVersion(model=restored.model, previous=restored.previous, why="rolled back")
    return _write(store, alias, version, newest)


def _check_exists(store: str, model: Candidate) -> None:
    url = absolute(store, model.model_url)
    if not storage.exists(storage.join(url, CARD)):
        raise PetsError(f"{url}: the model no longer exists. Promote another model")


def _write(store: str, alias: str, version: AliasVersion, newest: str = "") -> AliasVersion:
    """Write a version that sorts after the one named `newest`."""
    # A machine with a slow clock must not write a version that sorts before the newest one.
    earliest = int(newest.split("-")[0]) + 1 if newest else 0
    # Concurrent versions are both kept, and the later one is current.
    name = f"{max(time.time_ns(), earliest):020}-{uuid.uuid4().hex[:8]}.json"
    url = storage.join(_folder(store, version.model.dataset_name, alias), name)
    storage.write_bytes(url, version.model_dump_json(indent=2).encode())
    return version.model_copy(update={"name": name})


def _versions(folder: str) -> list[str]:
    return sorted(name for name in storage.list_folder(folder) if name.endswith(".json"))


def _read_version(folder: str, name: str) -> AliasVersion:
    version = _read(storage.join(folder, name), AliasVersion)
    return version.model_copy(update={"name": name})


def _read(url: str, kind: type[RecordT]) -> RecordT:
    problem = f"{url} is damaged or has an unknown format: remove it"
    return parse_record(kind, storage.read_bytes(url), problem)


def _evaluation_url(store: str, run_id: str) -> str:
    return storage.join(storage.absolute(store), RUNS, run_id, EVALUATION)


def _folder(store: str, *parts: str) -> str:
    for part in parts:
        if not re.fullmatch(NAME_PATTERN, part):
            raise PetsError(
                f"{part!r} is not a valid data set or alias name: use letters, digits and . _ -"
            )
    return storage.join(storage.absolute(store), MODELS, *parts)
