"""Ratings through the engine of photos: the same finder, loop, ranks and checkpoints."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets_core import storage
from pets_core.errors import PetsError
from pets_core.ratings.dataset import open_ratings, read_vocabulary
from pets_core.ratings.recommend import recommend
from pets_core.ratings.records import RatingsPrediction
from pets_core.ratings.review import review_ratings
from pets_core.records.training import LRSuggestion, TrainResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import RatingsRequest, read_request


def ask(stage: str, config, manifest, url: str, **more) -> RatingsRequest:
    return RatingsRequest(stage=stage, config=config, manifest=manifest, run_url=url, **more)


def train(config, manifest, url: str) -> TrainResult:
    return launch(ask("ratings-train", config, manifest, url, base_lr=0.03), TrainResult)


@pytest.fixture(scope="module")
def reviewed(sample_ratings, tmp_path_factory):
    config, manifest = sample_ratings
    url = str(tmp_path_factory.mktemp("run"))
    trained = train(config, manifest, url)
    asked = ask("ratings-predict", config, manifest, url, model_url=trained.model_url)
    return trained, review_ratings(url, manifest, launch(asked, RatingsPrediction))


def test_the_model_beats_the_baselines(reviewed):
    trained, report = reviewed
    own, biases, mean = (row.rmse for row in report.errors)
    assert own < 0.95 * biases < 0.95 * mean
    assert {epoch.metric for epoch in trained.epochs} == {"RMSE"}
    assert trained.epochs[-1].valid_metric == pytest.approx(own, abs=0.05)
    told = pq.read_table(report.file("predictions.parquet"))
    errors = told["predicted"].to_numpy() - told["rating"].to_numpy()
    assert np.sqrt((errors**2).mean()) == pytest.approx(own, abs=1e-6)


def test_the_artifacts_have_their_files(reviewed):
    _, report = reviewed
    items = pq.read_table(report.file("items.parquet"))
    assert items.num_rows == 400
    assert report.best[0].bias > 0 > report.worst[0].bias
    assert all(len(row.nearest) == 5 for row in report.popular)
    assert report.popular[0].num_ratings == max(items["num_ratings"].to_pylist())
    for name in ("map.png", "errors.png", "report.json"):
        assert storage.exists(report.file(name))


def test_recommended_is_what_the_user_has_not_rated(reviewed, sample_ratings):
    trained, _ = reviewed
    manifest = sample_ratings[1]
    found = recommend(trained.model_url, "17", 400, min_ratings=1)
    names = read_vocabulary(manifest)
    user = names.users.index("17")
    rated = set()
    for split in manifest.splits:
        ratings = open_ratings(manifest, split)
        rated |= {names.items[i] for i in ratings.items[ratings.users == user]}
    assert len(rated) > 20
    assert sorted(row.item for row in found) == sorted(set(names.items[1:]) - rated)
    assert [row.rating for row in found] == sorted((row.rating for row in found), reverse=True)
    assert all(0.5 <= row.rating <= 5 for row in found)
    anybody = recommend(trained.model_url, None, 3)
    assert all(row.num_ratings >= 5 for row in anybody)
    with pytest.raises(PetsError, match="--min-ratings 999: no item"):
        recommend(trained.model_url, "17", 3, min_ratings=999)
    with pytest.raises(PetsError, match=r"--user nobody: no user of this id .*600 have"):
        recommend(trained.model_url, "nobody", 3)


def test_the_finder_takes_its_steps(sample_ratings, tmp_path):
    config, manifest = sample_ratings
    found = launch(ask("ratings-lr-find", config, manifest, str(tmp_path)), LRSuggestion)
    assert found.num_steps == 12
    assert storage.exists(found.curve_url)


def test_two_ranks_are_the_same_training(sample_ratings, reviewed, tmp_path):
    config, manifest = sample_ratings
    launching = config.launch.model_copy(update={"num_processes": 2})
    two = train(config.model_copy(update={"launch": launching}), manifest, str(tmp_path))
    one, _ = reviewed
    losses = [[epoch.valid_loss for epoch in result.epochs] for result in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_training_that_is_asked_for_again_goes_on(sample_ratings, tmp_path):
    config, manifest = sample_ratings
    first = train(config, manifest, str(tmp_path))
    again = train(config, manifest, str(tmp_path))
    assert again.epochs == first.epochs, "from the last checkpoint, with nothing left to do"
    other = config.train.model_copy(update={"weight_decay": 0.1})
    with pytest.raises(PetsError, match=r"train\.weight_decay"):
        train(config.model_copy(update={"train": other}), manifest, str(tmp_path))


def test_a_request_is_read_as_what_it_is(sample_ratings):
    config, manifest = sample_ratings
    request = ask("ratings-train", config, manifest, "run", base_lr=0.1)
    assert read_request(request.model_dump_json(exclude_defaults=True)) == request
