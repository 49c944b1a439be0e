"""Ratings with the training engine: LR finder, training, ranks, checkpoints and evaluation."""

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from chromium import open_chromium
from model_server import run_server

from pets.cli.results import show_evaluation
from pets.serving.settings import ServeSettings
from pets_core import storage
from pets_core.errors import PetsError
from pets_core.evaluation.tables import read_frame
from pets_core.ratings.baselines import fit_biases
from pets_core.ratings.dataset import ingest_ratings, load_ratings, read_vocabulary
from pets_core.ratings.evaluate import evaluate_ratings
from pets_core.ratings.model import load_recommender
from pets_core.ratings.recommend import Recommender
from pets_core.ratings.target import rating_errors
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import RatingsRequest, parse_request
from pets_core.targets.regression.objective import Regression


def make_request(stage: str, config, manifest, url: str, **more) -> RatingsRequest:
    return RatingsRequest(stage=stage, config=config, manifest=manifest, run_url=url, **more)


def train(config, manifest, url: str) -> TrainResult:
    return launch(make_request("ratings-train", config, manifest, url, base_lr=0.03), TrainResult)


@pytest.fixture(scope="module")
def evaluated(sample_ratings, tmp_path_factory):
    config, manifest = sample_ratings
    url = str(tmp_path_factory.mktemp("run"))
    trained = train(config, manifest, url)
    request = make_request("ratings-predict", config, manifest, url, model_url=trained.model_url)
    predicted = launch(request, PredictResult)
    return trained, evaluate_ratings(config, url, predicted, training=trained)


def test_model_beats_the_baselines(evaluated, sample_ratings):
    trained, report = evaluated
    own, biases = report.primary.value, report.metric("RMSE of user and item biases")
    assert own < 0.95 * biases < 0.95 * report.primary.baseline
    assert report.primary.low < own < report.primary.high
    assert {epoch.metric.name for epoch in trained.epochs} == {"RMSE"}
    assert trained.epochs[-1].valid_metric == pytest.approx(own, abs=0.05)
    predictions = pq.read_table(report.predictions_url)
    actual, predicted = (
        np.array(predictions[name].to_pylist())[:, 0] for name in ("actual", "predicted")
    )
    assert np.sqrt(((predicted - actual) ** 2).mean()) == pytest.approx(own, abs=1e-6)
    errors = read_frame(report.file("errors"))
    assert errors["RMSE"].tolist() == pytest.approx([own, biases, report.primary.baseline])
    assert report.metric("MAE") == pytest.approx(np.abs(predicted - actual).mean())
    manifest = sample_ratings[1]
    names, ratings = read_vocabulary(manifest), load_ratings(manifest, "test")
    named = [(names.users[u], names.items[i]) for u, i in zip(*ratings[:2], strict=True)]
    pairs = list(zip(*(predictions[name].to_pylist() for name in ("user", "item")), strict=True))
    assert [pair for pair, at in zip(pairs, named, strict=True) if all(at)] == [
        at for at in named if all(at)
    ]


def test_each_report_section_has_its_files(evaluated):
    _, report = evaluated
    for section in report.sections:
        if section.figure:
            assert storage.exists(report.file(f"{section.figure}.png"))
        if section.table:
            assert len(read_frame(report.file(section.table)))
    assert [section.key for section in report.sections] == [
        "ratings-errors", "ratings-predicted", "items-best", "items-worst", "items-popular",
        "items-map",
    ]  # fmt: skip
    items = pq.read_table(report.file("items.parquet"))
    assert items.num_rows == 400
    best, worst, popular = (read_frame(report.file(n)) for n in ("best", "worst", "popular"))
    assert best["bias"][0] > 0 > worst["bias"][0]
    assert popular["nearest"].str.count(", ").min() == 4
    assert popular["ratings"][0] == max(items["num_ratings"].to_pylist())


def test_report_and_model_card_mention_ratings_not_photos(evaluated, capsys):
    _, report = evaluated
    show_evaluation(report)
    shown = [capsys.readouterr().out]
    shown += [Path(report.file(name)).read_text() for name in ("report.html", "model_card.md")]
    for text in shown:
        assert f"{report.primary.value:.4g}" in text
        assert "test ratings" in text
        readable = re.sub(r"<style.*?</style>|<!--.*?-->|<[^>]*>", "", text, flags=re.DOTALL)
        assert "photo" not in readable.lower()
    assert Path(report.model_url, "README.md").read_text() == shown[2]


@pytest.mark.slow
def test_champion_that_one_rank_cannot_read_is_reported(
    evaluated, sample_ratings, tmp_path, faulty_agent
):
    config, manifest = sample_ratings
    settings = {"num_processes": 2, "stall_timeout_seconds": 30}
    launch_config = config.launch.model_copy(update=settings)
    config = config.model_copy(update={"launch": launch_config})
    champion = shutil.copytree(evaluated[0].model_url, tmp_path / "champion")
    request = make_request(
        "ratings-predict", config, manifest, str(tmp_path / "run"),
        model_url=evaluated[0].model_url, champion_url=str(champion),
    )  # fmt: skip
    predicted = launch(request, PredictResult)
    assert predicted.champion_url is None
    assert predicted.champion_error == faulty_agent


def test_champion_of_another_version_predicts_by_ids(evaluated, sample_ratings, tmp_path):
    """The same ids have other indices in a version without some of the items."""
    config, manifest = sample_ratings
    champion, _ = evaluated
    source = config.ratings.model_copy(update={"test_fraction": 0.5, "split": "time"})
    other = ingest_ratings(config.store, config.cache_dir, source)
    trained = train(config, other, str(tmp_path))
    request = make_request(
        "ratings-predict", config, other, str(tmp_path), model_url=trained.model_url,
        champion_url=champion.model_url,
    )  # fmt: skip
    predicted = launch(request, PredictResult)
    table = pq.read_table(predicted.champion_url)
    names, built = read_vocabulary(manifest), load_recommender(champion.model_url)
    pairs = torch.tensor(
        [
            [known.index(name) if name in known else 0 for name in table[side].to_pylist()]
            for side, known in (("user", names.users), ("item", names.items))
        ]
    ).T
    outputs = Regression(built.card.sigmoid_range).activation(built.model(pairs)).numpy()
    found = np.array(table["predicted"].to_pylist())[:, 0]
    assert found == pytest.approx(outputs.clip(*manifest.y_range), abs=1e-5)
    invalid = request.model_copy(update={"champion_url": str(tmp_path / "nowhere")})
    assert "is not a model folder" in launch(invalid, PredictResult).champion_error


def test_recommended_items_are_those_the_user_has_not_rated(evaluated, sample_ratings):
    trained, _ = evaluated
    manifest = sample_ratings[1]
    model = Recommender(trained.model_url)
    found = model.recommend("17", 400, min_ratings=1)
    names = read_vocabulary(manifest)
    user = names.users.index("17")
    rated = set()
    for split in manifest.splits:
        ratings = load_ratings(manifest, split)
        rated |= {names.items[i] for i in ratings.items[ratings.users == user]}
    assert len(rated) > 20
    assert sorted(row.item for row in found) == sorted(set(names.items[1:]) - rated)
    assert [row.rating for row in found] == sorted((row.rating for row in found), reverse=True)
    assert all(0.5 <= row.rating <= 5 for row in found)
    for_new_user = model.recommend(None, 3)
    assert all(row.num_ratings >= 5 for row in for_new_user)
    with pytest.raises(PetsError, match="min-ratings 999: no item"):
        model.recommend("17", 3, min_ratings=999)
    with pytest.raises(PetsError, match=r"user unknown: no user of this id .*600 have"):
        model.recommend("unknown", 3)


def test_lr_finder_takes_the_configured_steps(sample_ratings, tmp_path):
    config, manifest = sample_ratings
    found = launch(make_request("ratings-lr-find", config, manifest, str(tmp_path)), LRSuggestion)
    assert found.num_steps == 12
    assert storage.exists(found.curve_url)


def test_recommendations_are_served(evaluated):
    url = evaluated[0].model_url
    with run_server(ServeSettings(url)) as served:
        found = served.client.get("/recommend?user=17&top=4&min_ratings=1").json()
        assert found["model"] == {"url": url}
        wanted = [item._asdict() for item in Recommender(url).recommend("17", 4, min_ratings=1)]
        assert found["recommendations"] == wanted
        assert len(served.client.get("/recommend").json()["recommendations"]) == 10
        unknown = served.client.get("/recommend?user=unknown")
        assert (unknown.status_code, unknown.json()["detail"][:13]) == (422, "user unknown:")
        photo = served.client.post("/predict", content=b"x")
        assert (photo.status_code, photo.json()["detail"]) == (
            404, "this model predicts ratings: use GET /recommend"
        )  # fmt: skip


@pytest.mark.browser
def test_page_shows_recommendations(evaluated):
    with run_server(ServeSettings(evaluated[0].model_url)) as served, open_chromium() as browser:
        page = browser.new_page()
        page.goto(served.url)
        page.fill("#user", "17")
        page.click("#recommend button")
        page.wait_for_selector("text=Recommended for user 17")
        wanted = served.client.get("/recommend?user=17").json()["recommendations"]
        assert all(item["title"] in page.inner_text("li") for item in wanted)


def test_two_ranks_train_like_one(sample_ratings, evaluated, tmp_path):
    config, manifest = sample_ratings
    launch_settings = config.launch.model_copy(update={"num_processes": 2})
    two = train(config.model_copy(update={"launch": launch_settings}), manifest, str(tmp_path))
    one, _ = evaluated
    losses = [[epoch.valid_loss for epoch in result.epochs] for result in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_repeated_training_resumes_from_its_checkpoint(sample_ratings, tmp_path):
    config, manifest = sample_ratings
    first = train(config, manifest, str(tmp_path))
    again = train(config, manifest, str(tmp_path))
    assert again.epochs == first.epochs, "the last checkpoint is complete"
    other = config.train.model_copy(update={"weight_decay": 0.1})
    with pytest.raises(PetsError, match=r"train\.weight_decay"):
        train(config.model_copy(update={"train": other}), manifest, str(tmp_path))


def test_unknown_optimizer_is_refused_before_training(sample_ratings, tmp_path):
    config, manifest = sample_ratings
    unknown = config.train.model_copy(update={"optimizer": "adamv"})
    with pytest.raises(PetsError, match=r"train\.optimizer = 'adamv' is not an optimizer of timm"):
        train(config.model_copy(update={"train": unknown}), manifest, str(tmp_path))


def test_training_starts_from_damped_biases(sample_ratings, tmp_path):
    """Without training, the model is close to the baseline, and far better than the mean."""
    config, manifest = sample_ratings
    train_config = config.train.model_copy(update={"base_lr": 1e-9, "epochs": 1})
    config = config.model_copy(update={"train": train_config})
    request = make_request("ratings-train", config, manifest, str(tmp_path), base_lr=1e-9)
    start = launch(request, TrainResult).epochs[0].valid_metric
    valid = load_ratings(manifest, "valid")
    biases = fit_biases(load_ratings(manifest, "train"), manifest.num_users, manifest.num_items)
    baseline = rating_errors("biases", valid, biases.predict(valid)).rmse
    assert baseline == pytest.approx(start, rel=0.05)
    assert start < 0.95 * rating_errors("mean", valid, np.full(len(valid.ratings), 3.34)).rmse


def test_weights_of_the_best_epoch_are_the_model(evaluated):
    trained, _ = evaluated
    assert trained.model_url == trained.best_model_url
    assert trained.model_url != trained.last_model_url


def test_ratings_request_is_parsed_as_a_ratings_request(sample_ratings):
    config, manifest = sample_ratings
    request = make_request("ratings-train", config, manifest, "run", base_lr=0.1)
    assert parse_request(request.model_dump_json(exclude_defaults=True)) == request
