"""Which model of a data set an alias points at, and which ones it pointed at before.

<store>/models/<data set>/<alias>/<time>-<draw>.json   one file a move; the newest is what holds
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pets_core import storage
from pets_core.config.base import NAME_PATTERN
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError, did_you_mean
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.models.card import CARD
from pets_core.records.base import Split
from pets_core.records.dataset import DatasetManifest
from pets_core.records.evaluation import Champion, EvalReport, Metric

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
    "promote",
    "promote_run",
    "relative",
    "rollback",
]

CANDIDATE = "candidate.json"
"""What a run's evaluation writes last."""
_INSIDE = "store:"

Record = TypeVar("Record", bound=BaseModel)


class AliasConflict(PetsError):  # noqa: N818 - as Git and HTTP name it
    """An alias points at another model than the one that a new one was compared with."""


class Candidate(BaseModel):
    """A model that was evaluated, and can be promoted.

    Attributes:
        format_version: Those of version 1 were all of classes, with an error rate alone.
        run_id: The run that evaluated it.
        target: Kind of target.
        model_url: The model; relative to the store where it lies in it.
        predictions_url: Its predictions; relative likewise.
        dataset_name: Data set it was evaluated on.
        dataset_fingerprint: Version of that.
        split: Samples it was evaluated on.
        tta_views: Augmented views that were averaged.
        backbone: Of the model.
        metric: Primary metric on these samples.
        num_rows: How many these are.
        evaluated_at: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    """Settings of a run whose model is evaluated."""

    @property
    def store(self) -> str:
        """Root of data sets and runs."""
        ...

    @property
    def gate(self) -> GateConfig:
        """Conditions to be promoted."""
        ...


class EvaluationKey(NamedTuple):
    """What photos a model is judged on, and how."""

    dataset_name: str
    dataset_fingerprint: str
    split: Split
    tta_views: int

    @staticmethod
    def of(model: Candidate | PredictionsInfo) -> EvaluationKey:
        """Those that a model was judged on."""
        return EvaluationKey(
            model.dataset_name, model.dataset_fingerprint, model.split, model.tta_views
        )

    @staticmethod
    def by(config: PipelineConfig, manifest: DatasetManifest) -> EvaluationKey:
        """Those that a run is about to judge a model on."""
        split = manifest.evaluation_split(config.evaluate.split)
        return EvaluationKey(manifest.name, manifest.fingerprint, split, config.evaluate.tta_views)


class AliasVersion(BaseModel):
    """One move of an alias.

    Attributes:
        model: What it points at since.
        previous: Name of the move that a rollback returns to, if there is one.
        why: promoted or rolled back.
        moved_at: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model: Candidate
    previous: str | None = None
    why: Literal["promoted", "rolled back"] = "promoted"
    moved_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def find_champion(config: GatedConfig, judged: EvaluationKey) -> Champion | None:
    """What the alias of the settings points at, for photos that are judged; None: nothing yet.

    What it once said of these photos serves again where version, split and views are the same.
    """
    held = _newest(config.store, judged.dataset_name, config.gate.alias)
    if held is None:
        return None
    name, move = held
    url = absolute(config.store, move.model.predictions_url)
    same = EvaluationKey.of(move.model) == judged and storage.exists(url)
    return Champion(
        model_url=absolute(config.store, move.model.model_url),
        predictions_url=url if same else None,
        version=name,
    )


def is_inside(store: str, url: str) -> bool:
    """Whether a URL lies in the store."""
    return relative(store, url).startswith(_INSIDE)


def relative(store: str, url: str) -> str:
    """A URL without the store's, where it lies in that: the store may be elsewhere tomorrow."""
    root = storage.absolute(store).rstrip("/") + "/"
    return _INSIDE + url.removeprefix(root) if url.startswith(root) else url


def absolute(store: str, url: str) -> str:
    """The URL that `relative` was given."""
    if not url.startswith(_INSIDE):
        return url
    return storage.join(storage.absolute(store), url.removeprefix(_INSIDE))


def candidates(store: str) -> Iterator[Candidate]:
    """Every evaluated model of a store, in the order of the runs' names."""
    root = storage.join(storage.absolute(store), "runs")
    for run_id in sorted(storage.list_folder(root)):
        url = storage.join(root, run_id, "evaluation", CANDIDATE)
        if storage.exists(url):
            yield _read(url, Candidate)


def aliases(store: str, dataset: str) -> list[str]:
    """The aliases of a data set, in their alphabet's order."""
    return sorted(storage.list_folder(_folder(store, dataset)))


def history(store: str, dataset: str, alias: str) -> dict[str, AliasVersion]:
    """Every move of an alias by its name, the newest last; nothing where there is no such alias.

    Raises:
        PetsError: A move is damaged.
    """
    folder = _folder(store, dataset, alias)
    return {name: _read(storage.join(folder, name), AliasVersion) for name in _moves(folder)}


def current(store: str, dataset: str, alias: str) -> AliasVersion | None:
    """The move that holds."""
    held = _newest(store, dataset, alias)
    return held[1] if held else None


def kept_models(store: str) -> list[Candidate]:
    """The models that the aliases of a store point at, and those a rollback would return to."""
    root, kept = storage.join(storage.absolute(store), "models"), []
    for dataset in sorted(storage.list_folder(root)):
        for alias in aliases(store, dataset):
            moves = history(store, dataset, alias)
            held = moves[max(moves)] if moves else None
            before = moves.get(held.previous) if held and held.previous else None
            kept += [move.model for move in (held, before) if move]
    return kept


def promote(store: str, alias: str, model: Candidate) -> AliasVersion:
    """Point an alias of the model's data set at it; one file appears, whole or not at all.

    Raises:
        PetsError: The model is gone.
    """
    return _promote(store, alias, model, _newest(store, model.dataset_name, alias))


def promote_run(store: str, alias: str, report: EvalReport) -> AliasVersion:
    """Point an alias at the model that was evaluated, as `promote`.

    Raises:
        AliasConflict: The alias points at another model than the one it was compared with.
    """
    model = _read(report.file(CANDIDATE), Candidate)
    held = _newest(store, model.dataset_name, alias)
    if held:
        name, move = held
        if name != report.champion_version and move.model.model_url != model.model_url:
            raise AliasConflict(
                f"{alias} was pointed at {move.model.run_id} meanwhile, which this model was not "
                "compared with: `pets evaluate MODEL --gate.promote` judges it beside that one"
            )
    return _promote(store, alias, model, held)


def _promote(
    store: str, alias: str, model: Candidate, held: tuple[str, AliasVersion] | None
) -> AliasVersion:
    """Promote a model after the move that holds."""
    _check_there(store, model)
    name, move = held or (None, None)
    # What is promoted again still has what came before it to go back to.
    again = move is not None and move.model.model_url == model.model_url
    if move and move.model == model:
        return move
    previous = move.previous if move and again else name
    return _write(store, alias, AliasVersion(model=model, previous=previous), name)


def rollback(store: str, dataset: str, alias: str) -> AliasVersion:
    """Point an alias at what it pointed at before; again, at what came before that.

    Raises:
        PetsError: There is no such alias, or nothing before, or that is gone.
    """
    moves = history(store, dataset, alias)
    if not moves:
        known = aliases(store, dataset)
        raise PetsError(f"{dataset} has no alias {alias!r}.{did_you_mean(alias, known)}")
    newest = max(moves)
    name = moves[newest].previous
    if name is None or name not in moves:
        raise PetsError(f"{alias} of {dataset} has pointed at no other model before")
    before = moves[name]
    _check_there(store, before.model)
    move = AliasVersion(model=before.model, previous=before.previous, why="rolled back")
    return _write(store, alias, move, newest)


def _check_there(store: str, model: Candidate) -> None:
    url = absolute(store, model.model_url)
    if not storage.exists(storage.join(url, CARD)):
        raise PetsError(f"{url}: the model is gone; promote another")


def _write(store: str, alias: str, move: AliasVersion, newest: str | None) -> AliasVersion:
    # A clock that is behind another machine's must not write a move that is older than the newest.
    after = int(newest.split("-")[0]) + 1 if newest else 0
    # Two moves at once are both kept, and the later one holds.
    name = f"{max(time.time_ns(), after):020}-{uuid.uuid4().hex[:8]}.json"
    url = storage.join(_folder(store, move.model.dataset_name, alias), name)
    storage.write_bytes(url, move.model_dump_json(indent=2).encode())
    return move


def _moves(folder: str) -> list[str]:
    return sorted(name for name in storage.list_folder(folder) if name.endswith(".json"))


def _newest(store: str, dataset: str, alias: str) -> tuple[str, AliasVersion] | None:
    """The move that holds, and its name."""
    folder = _folder(store, dataset, alias)
    names = _moves(folder)
    return (names[-1], _read(storage.join(folder, names[-1]), AliasVersion)) if names else None


def _read(url: str, record: type[Record]) -> Record:
    try:
        return record.model_validate_json(storage.read_bytes(url))
    except pydantic.ValidationError as error:
        raise PetsError(f"{url} is damaged, or of another version: remove it") from error


def _folder(store: str, *parts: str) -> str:
    for part in parts:
        if not re.fullmatch(NAME_PATTERN, part):
            raise PetsError(
                f"{part!r} is no name of a data set or alias: letters, digits, '.', '_' and '-'"
            )
    return storage.join(storage.absolute(store), "models", *parts)
