"""Evaluation of predicted ratings: gate, champion, promotion and retention."""

import html
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pets.cli import flow_command
from pets.cli import main as cli
from pets.cli.results import show_evaluation
from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import PredictionsInfo, read_predictions, write_predictions
from pets_core.maintenance.retention import data_sets_needed, find_old
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.config import RatingsConfig, RecommenderConfig
from pets_core.ratings.dataset import ingest_ratings, load_ratings, read_pair_ids
from pets_core.ratings.evaluate import evaluate_ratings, reindex_ratings, trained_on_ratings
from pets_core.ratings.records import RatingsManifest, RatingsRun
from pets_core.ratings.target import RATINGS
from pets_core.ratings.versions import diff_ratings, list_ratings
from pets_core.records.dataset import NumberInfo
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.records.inference import PredictResult
from pets_core.registry.aliases import EvaluationKey, current, find_champion, promote_run
from pets_core.runtime.runs import start_run
from pets_core.targets.gate import check_gate
from tasks.artifacts.evaluation import publish_evaluation

DAY = 86_400


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch) -> None:
    """Replace the figures, which take most of the time."""
    for name in ("rating_errors", "embedding_map"):
        monkeypatch.setattr(f"pets_core.plots.ratings.{name}", lambda *_: b"")


@pytest.fixture
def config(tmp_path) -> RatingsConfig:
    return RatingsConfig(store=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def versions(config) -> dict[str, RatingsManifest]:
    """Versions of the built-in sample with test fractions of 0.1 and 0.3."""
    found = {}
    for name, fraction in (("few", 0.1), ("many", 0.3)):
        source = config.ratings.model_copy(update={"test_fraction": fraction})
        found[name] = ingest_ratings(config.store, config.cache_dir, source)
    return found


def write_model(folder: Path, manifest: RatingsManifest) -> str:
    """Write a model of random factors and return its URL."""
    card = RecommenderCard(
        config=RecommenderConfig(), num_users=manifest.num_users, num_items=manifest.num_items,
        y_range=manifest.y_range, mean=manifest.mean, dataset_url=manifest.url,
        dataset_fingerprint=manifest.fingerprint,
    )  # fmt: skip
    factors = np.random.default_rng(0).normal(size=(manifest.num_items + 1, 3)).astype(np.float32)
    weights = {"item_factors.weight": factors, "item_bias.weight": factors[:, :1].copy()}
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(card.model_dump_json())
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    return str(folder)


def write_ratings(
    url: str, manifest: RatingsManifest, model_url: str, off: float, split: str = "test"
) -> PredictResult:
    """Write predictions with errors of standard deviation `off`."""
    actual = load_ratings(manifest, split).ratings[:, None]
    noise = np.random.default_rng(round(off * 100)).normal(scale=off, size=actual.shape)
    info = PredictionsInfo(
        targets="ratings", split=split, model_url=model_url, backbone="dot",
        dataset_url=manifest.url, dataset_name=manifest.name,
        dataset_fingerprint=manifest.fingerprint,
        numbers=(NumberInfo(name="rating", mean=manifest.mean),),
    )  # fmt: skip
    ids = [str(row) for row in range(len(actual))]
    write_predictions(url, RATINGS, info, ids, actual, (actual + noise).astype(np.float32))
    return PredictResult(
        targets="ratings", model_url=model_url, predictions_url=url, photos_per_second=9.0
    )


@pytest.fixture
def evaluated(config, versions):
    """Function that evaluates a model with errors of `off` in a new run."""
    number = 0

    def evaluate_model(
        off: float, champion: Champion | None = None, version: str = "few", split: str = "test",
        gate: GateConfig | None = None, **predicted,
    ) -> EvalReport:  # fmt: skip
        nonlocal number
        number += 1
        run = Path(config.store, "runs", f"run-{number}")
        model_url = write_model(run / "model", versions[version])
        url = str(run / "evaluation/predictions.parquet")
        done = write_ratings(url, versions[version], model_url, off, split)
        own = config.model_copy(update={"gate": gate or GateConfig()})
        done = done.model_copy(update=predicted)
        return evaluate_ratings(own, str(run), done, champion=champion)

    return evaluate_model


def champion_of(report: EvalReport) -> Champion:
    return Champion(model_url=report.model_url, predictions_url=report.predictions_url)


def test_primary_metric_is_the_rmse_with_its_baseline(evaluated, versions):
    report = evaluated(0.5)
    ratings = load_ratings(versions["few"], "test").ratings.astype(np.float64)
    predictions = read_predictions(report.predictions_url, RATINGS)
    errors = predictions.outputs[:, 0].astype(np.float64) - ratings
    primary = report.primary
    assert (report.target, report.samples, primary.name) == ("ratings", "ratings", "RMSE")
    assert primary.value == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert primary.low < primary.value < primary.high
    of_mean = np.sqrt(np.mean((ratings - versions["few"].mean) ** 2))
    assert primary.baseline == pytest.approx(of_mean)
    scored = RATINGS.evaluator(predictions).score()
    assert scored.is_root
    assert scored.scores == pytest.approx(errors**2)
    assert report.notes == ()
    notes = evaluated(2.0, split="valid").notes
    assert "RMSE 1.979 is worse than the user and item biases (0.8436)." in notes
    assert "RMSE 1.979 is worse than the mean rating (0.9763)." in notes
    assert any("Metrics of the validation ratings are optimistic" in note for note in notes)


def test_model_worse_than_a_baseline_is_a_warning(config, evaluated, shown, capsys):
    report = evaluated(2.0)
    warning = f"RMSE {report.primary.format()} is worse than the user and item biases ("
    show_evaluation(report)
    assert f"Warning      {warning}" in capsys.readouterr().out
    summary = shown(publish_evaluation, config, report)["run-summary"]
    page = html.unescape(Path(report.file("report.html")).read_text())
    for text in (page, summary, Path(report.file("model_card.md")).read_text()):
        assert warning in text.replace("\\", "")


def test_gate_compares_with_the_champion_and_the_limit(evaluated):
    champion = champion_of(evaluated(0.5, gate=GateConfig(max_value=0.6)))
    better, worse = evaluated(0.4, champion), evaluated(0.6, champion)
    assert better.verdict.passed
    assert better.comparison.improvement.low > 0
    assert better.comparison.test == "paired permutation test"
    assert better.comparison.num_excluded == 0
    assert "gate.min_improvement" in worse.verdict.reasons[0]
    failed = evaluated(0.5, gate=GateConfig(max_value=0.4)).verdict
    assert "exceeds gate.max_value = 0.4" in failed.reasons[0]


@pytest.mark.parametrize("name", ["max_error_rate", "min_score", "max_drop_per_class"])
def test_gate_settings_invalid_for_ratings_are_rejected(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flow_command, "start_flow", lambda *_: None)
    with pytest.raises(PetsError, match="targets = ratings"):
        check_gate(GateConfig.model_validate({name: 0.1}), RATINGS)
    with pytest.raises(SystemExit) as caught:
        cli.main(["collab", "--store", str(tmp_path / "store"), f"--gate.{name}", "0.1"])
    assert caught.value.code == 2
    assert "targets = ratings" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_training_ratings_of_the_champion_are_excluded(evaluated, versions, tmp_path):
    model_url = write_model(tmp_path / "champion", versions["few"])
    url = str(tmp_path / "champion.parquet")
    predicted = write_ratings(url, versions["many"], model_url, 0.01)
    champion = Champion(model_url=model_url)
    report = evaluated(0.5, champion, "many", champion_url=predicted.predictions_url)
    train_pairs, test_pairs = (
        set(zip(*(ids.to_pylist() for ids in read_pair_ids(versions[name], split)), strict=True))
        for name, split in (("few", "train"), ("many", "test"))
    )
    assert report.comparison.num_excluded == len(train_pairs & test_pairs) > 1000
    assert report.comparison.num_rows == report.num_rows - len(train_pairs & test_pairs)
    assert report.num_trained_on == 0


def test_ratings_are_reindexed_for_another_version(versions):
    old, new = versions["few"], versions["many"]
    cold = load_ratings(new, "test")
    found = reindex_ratings(old, new, "test")
    users, items = (ids.to_pylist() for ids in read_pair_ids(new, "test"))
    assert None not in {*users, *items}
    names = read_pair_ids(old, "train"), load_ratings(old, "train")
    known = dict(zip(names[0][1].to_pylist(), names[1].items.tolist(), strict=True))
    assert found.items.tolist() == [known.get(item, 0) for item in items]
    assert (cold.items == 0).any(), "an item has training ratings only in the old version"
    assert (found.items[cold.items == 0] > 0).any()
    with pytest.raises(PetsError, match="without the ids of users and items"):
        reindex_ratings(old, new.model_copy(update={"schema_version": 1}), "test")


def test_incomparable_champion_fails_the_gate(evaluated, versions, config, tmp_path):
    for predicted, reason in (
        ({"champion_error": "it is not a rating model"}, "it is not a rating model"),
        ({}, "it has no predictions of these samples"),
    ):
        report = evaluated(0.5, Champion(model_url="missing"), **predicted)
        assert not report.verdict.passed
        assert reason in report.verdict.reasons[0]
    missing = versions["few"].model_copy(update={"url": "nowhere", "fingerprint": "missing"})
    predictions = read_predictions(report.predictions_url, RATINGS)
    model_url = write_model(tmp_path / "m", missing)
    assert trained_on_ratings(config.store, model_url, predictions) is None


def test_promotion_registry_rollback_and_retention(evaluated, versions, config, capsys):
    first, second = evaluated(0.5), evaluated(0.4)
    store, manifest = config.store, versions["few"]
    for report in (first, second):
        key = EvaluationKey(manifest.name, manifest.fingerprint, "test", tta_views=0)
        champion = find_champion(config, key)
        version = champion.version if champion else None
        promote_run(store, "champion", report.model_copy(update={"champion_version": version}))
    assert current(store, manifest.name, "champion").model.metric == second.primary
    for path in Path(store).rglob("*"):
        if "models" not in path.parts:
            os.utime(path, (DAY, DAY))
    assert not [item for item in find_old(store, 90) if item.run_id]
    assert data_sets_needed(store) == {manifest.fingerprint}
    cli.main(["datasets", "gc", "--store", store, "--keep", "1", "--delete"])
    assert len(list_ratings(store)) == 2, "the older version is the champion's"
    cli.main(["models", "rollback", manifest.name, "--store", store])
    cli.main(["models", "show", "run-1", "--store", store])
    shown = capsys.readouterr().out
    assert "champion" in shown.splitlines()[-1]


def test_ratings_of_an_unfinished_run_are_kept(config, versions):
    run = RatingsRun(url=f"{config.store}/runs/one", manifest=versions["few"])
    start_run(config, run)
    assert data_sets_needed(config.store) == {versions["few"].fingerprint}
    stage = Path(run.url, "stages/ratings-predict.json")
    stage.parent.mkdir()
    stage.write_text("{}")
    assert data_sets_needed(config.store) == set()


def test_versions_are_listed_shown_verified_compared_and_removed(config, versions, capsys):
    few, many = versions.values()
    store = ["--store", config.store]

    def printed(*arguments: str) -> str:
        cli.main(["datasets", *arguments, *store])
        return capsys.readouterr().out

    assert [line.split()[1] for line in printed("list").splitlines()[1:] if line] == [
        many.fingerprint, few.fingerprint,
    ]  # fmt: skip
    assert "of 600 users and" in printed("show", few.fingerprint[:8])
    assert printed("show", few.name, "--files", "test") == f"{many.url}/test.parquet\n"
    assert printed("verify", few.name).endswith("ratings match the manifest\n")
    difference = diff_ratings(few, many)
    assert list(difference) == ["added", "removed", "changed", "moved"]
    assert not difference["added"]
    assert not difference["changed"]
    assert len(difference["moved"]) > 1000
    assert printed("diff", few.fingerprint, many.fingerprint).startswith("added")
    Path(many.url, "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit):
        cli.main(["datasets", "verify", many.fingerprint, *store])
    assert "damaged  items.parquet" in capsys.readouterr().out
    assert printed("gc", "--keep", "1", "--delete").startswith("0 files"), (
        "recent versions are kept"
    )
    for path in Path(config.store).rglob("*"):
        os.utime(path, (DAY, DAY))
    printed("gc", "--keep", "1", "--delete")
    assert [version.fingerprint for version in list_ratings(config.store)] == [many.fingerprint]
