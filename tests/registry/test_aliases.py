"""Aliases: promotion, history and rollback."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.registry.aliases import (
    AliasConflict,
    Candidate,
    EvaluationKey,
    absolute,
    candidates,
    current,
    find_champion,
    history,
    promote,
    promote_run,
    relative,
    rollback,
)
from pets_core.storage import write_bytes


def model(run_id: str, **overrides) -> Candidate:
    fields = {
        "run_id": run_id, "model_url": f"store:runs/{run_id}/model",
        "predictions_url": f"store:runs/{run_id}/evaluation/predictions.parquet",
        "dataset_name": "pets", "dataset_fingerprint": "f", "split": "test", "tta_views": 0,
        "backbone": "resnet34", "num_rows": 100,
        "metric": {"name": "error rate", "value": 0.1, "unit": "%"},
        "evaluated_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Candidate.model_validate(fields | overrides)


@pytest.fixture
def store(tmp_path) -> str:
    """A store with the models of some runs."""
    for run in ("a", "b", "c", "d", *map(str, range(24))):
        (tmp_path / "store/runs" / run / "model").mkdir(parents=True)
        (tmp_path / "store/runs" / run / "model/model.json").touch()
    return str(tmp_path / "store")


def current_run_id(store: str) -> str:
    return current(store, "pets", "champion").model.run_id


def test_alias_without_versions_has_no_current_model(store):
    assert current(store, "pets", "champion") is None
    assert history(store, "pets", "champion") == {}
    with pytest.raises(PetsError, match=r"pets has no alias 'champion'"):
        rollback(store, "pets", "champion")


def test_rollback_returns_to_the_previous_model(store):
    for run in ("a", "b", "c"):
        promote(store, "champion", model(run))
    assert current_run_id(store) == "c"
    assert rollback(store, "pets", "champion").model.run_id == "b"
    assert rollback(store, "pets", "champion").model.run_id == "a"
    with pytest.raises(PetsError, match=r"has no previous model to roll back to"):
        rollback(store, "pets", "champion")
    promote(store, "champion", model("d"))
    assert rollback(store, "pets", "champion").model.run_id == "a"
    moves = [(m.model.run_id, m.why) for m in history(store, "pets", "champion").values()]
    assert moves == [
        ("a", "promoted"), ("b", "promoted"), ("c", "promoted"), ("b", "rolled back"),
        ("a", "rolled back"), ("d", "promoted"), ("a", "rolled back"),
    ]  # fmt: skip


def test_newest_version_is_current_if_an_earlier_clock_was_ahead(store, monkeypatch):
    hour = 3_600_000_000_000
    ahead = time.time_ns() + hour
    monkeypatch.setattr("pets_core.registry.aliases.time.time_ns", lambda: ahead)
    promote(store, "champion", model("a"))
    monkeypatch.setattr("pets_core.registry.aliases.time.time_ns", lambda: ahead - hour)
    promote(store, "champion", model("b"))
    assert current_run_id(store) == "b"
    assert rollback(store, "pets", "champion").model.run_id == "a"
    assert current_run_id(store) == "a"


def test_rollback_skips_repeated_promotions_of_one_model(store):
    for run in ("a", "b", "b"):
        promote(store, "champion", model(run))
    assert rollback(store, "pets", "champion").model.run_id == "a"


def test_missing_model_is_not_promoted(store):
    with pytest.raises(PetsError, match=r"runs/gone/model: the model no longer exists"):
        promote(store, "champion", model("gone"))
    assert history(store, "pets", "champion") == {}


@pytest.mark.parametrize("name", ["../../outside", "team/a", "..", ""])
def test_names_with_path_components_are_refused(store, name):
    with pytest.raises(PetsError, match=r"is not a valid data set or alias name"):
        promote(store, name, model("a"))
    with pytest.raises(PetsError, match=r"is not a valid data set or alias name"):
        current(store, name, "champion")


def test_second_promotion_against_the_same_champion_is_a_conflict(store):
    promote(store, "champion", model("a"))
    config = PipelineConfig(store=store)
    version = find_champion(config, EvaluationKey("pets", "f", "test", 0)).version
    reports = []
    for run in ("b", "c"):
        folder = f"{store}/runs/{run}/evaluation"
        write_bytes(f"{folder}/candidate.json", model(run).model_dump_json().encode())
        reports.append(SimpleNamespace(file=f"{folder}/{{}}".format, champion_version=version))
    promote_run(store, "champion", reports[0])
    with pytest.raises(AliasConflict, match=r"champion moved to run b during this evaluation"):
        promote_run(store, "champion", reports[1])
    promote_run(store, "champion", reports[0])
    assert current_run_id(store) == "b"
    assert rollback(store, "pets", "champion").model.run_id == "a"


def test_damaged_candidate_is_refused(store):
    write_bytes(f"{store}/runs/a/evaluation/candidate.json", b"{}")
    with pytest.raises(PetsError, match=r"runs/a/evaluation/candidate.json is damaged"):
        list(candidates(store))


def test_aliases_and_data_sets_are_independent(store):
    promote(store, "champion", model("a"))
    promote(store, "canary", model("b"))
    promote(store, "champion", model("c", dataset_name="birds"))
    assert current_run_id(store) == "a"
    with pytest.raises(PetsError, match=r"no alias 'champoin'. Did you mean champion"):
        rollback(store, "pets", "champoin")


def test_concurrent_promotions_are_all_kept(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: promote(store, "champion", model(run)), map(str, range(24))))
    moves = history(store, "pets", "champion")
    assert {m.model.run_id for m in moves.values()} == set(map(str, range(24)))
    assert current_run_id(store) == moves[max(moves)].model.run_id


def test_damaged_version_is_refused(store, tmp_path):
    promote(store, "champion", model("a"))
    (path,) = (tmp_path / "store/models/pets/champion").iterdir()
    path.write_text("{")
    with pytest.raises(PetsError, match=r"is damaged or has an unknown format: remove it"):
        current(store, "pets", "champion")


def test_store_can_be_moved(store):
    kept = relative(store, f"{store}/runs/a/model")
    assert absolute("/mnt/other", kept) == "/mnt/other/runs/a/model"
    assert absolute("s3://bucket/pets", kept) == "s3://bucket/pets/runs/a/model"
    assert absolute("/mnt/other", relative(store, "s3://b/model")) == "s3://b/model"


def test_candidates_are_the_evaluated_runs(store):
    for run in ("b", "a"):
        url = f"{store}/runs/{run}/evaluation/candidate.json"
        write_bytes(url, model(run).model_dump_json().encode())
    write_bytes(f"{store}/runs/c/config.yaml", b"")
    assert [m.run_id for m in candidates(store)] == ["a", "b"]
    assert list(candidates(f"{store}/nowhere")) == []


@pytest.mark.parametrize(
    ("overrides", "is_reused"),
    [
        ({}, True),
        ({"dataset_fingerprint": "g"}, False),
        ({"split": "valid"}, False),
        ({"tta_views": 4}, False),
    ],
)
def test_predictions_of_the_champion_are_reused_for_the_same_photos(store, overrides, is_reused):
    promote(store, "champion", model("a", **overrides))
    write_bytes(f"{store}/runs/a/evaluation/predictions.parquet", b"")
    config = PipelineConfig(store=store)
    champion = find_champion(config, EvaluationKey("pets", "f", "test", 0))
    assert champion.model_url == f"{store}/runs/a/model"
    assert (champion.predictions_url is not None) == is_reused
    assert find_champion(config, EvaluationKey("birds", "f", "test", 0)) is None


VERSION_1 = {
    "format_version": 1, "run_id": "a", "model_url": "store:runs/a/model",
    "predictions_url": "store:runs/a/evaluation/predictions.parquet", "dataset_name": "pets",
    "dataset_fingerprint": "f", "split": "test", "tta_views": 0, "backbone": "resnet34",
    "error_rate": 0.125, "num_rows": 100, "evaluated_at": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
"""A candidate.json of version 1, whose only metric is the error rate."""


def test_candidate_of_version_1_is_read_and_promoted(store, tmp_path):
    url = f"{store}/runs/a/evaluation/candidate.json"
    write_bytes(url, json.dumps(VERSION_1).encode())
    (found,) = candidates(store)
    assert (found.target, found.metric.name, found.metric.format()) == (
        "class", "error rate", "12.5%",
    )  # fmt: skip
    assert not found.metric.higher_is_better
    report = SimpleNamespace(file=f"{store}/runs/a/evaluation/{{}}".format, champion_version=None)
    promote_run(store, "champion", report)
    assert current(store, "pets", "champion").model == found
    (path,) = (tmp_path / "store/models/pets/champion").iterdir()
    stored = json.loads(path.read_text())["model"]
    assert stored["format_version"] == 2, "records are written in the newest version"
    assert "error_rate" not in stored


def test_alias_of_version_1_still_points_at_its_model(store):
    move = {"format_version": 1, "model": VERSION_1, "previous": None, "why": "promoted",
            "moved_at": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    write_bytes(f"{store}/models/pets/champion/{1:020}-0.json", json.dumps(move).encode())
    champion = find_champion(PipelineConfig(store=store), EvaluationKey("pets", "f", "test", 0))
    assert champion.model_url == f"{store}/runs/a/model"
    promote(store, "champion", model("b"))
    assert rollback(store, "pets", "champion").model.metric.value == 0.125


def test_promoting_the_current_model_again_writes_nothing(store):
    write_bytes(f"{store}/runs/a/evaluation/candidate.json", json.dumps(VERSION_1).encode())
    (found,) = candidates(store)
    for _ in range(2):
        promote(store, "champion", found)
    assert len(history(store, "pets", "champion")) == 1
