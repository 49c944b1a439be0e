"""The whole review of a file of predictions of tags, and what people see of it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pets.cli.results import show_tags
from pets_core.config.pipeline import PipelineConfig
from pets_core.records.evaluation import PredictResult
from pets_core.tags.gallery import read_top_losses
from pets_core.tags.records import TagsReport
from pets_core.tags.review import review_tags
from pets_core.tags.thresholds import THRESHOLDS, choose_thresholds, read_thresholds
from tasks.artifacts.publisher import MAX_BYTES
from tasks.tags import publish_tags

EVIL = "<img src=x onerror=alert(1)>|`*_"


@pytest.fixture
def review(tmp_path, write):
    """Review predictions as a run does."""

    def reviewed(predictions, validation=None, threshold="shared") -> TagsReport:
        url = write(predictions)
        predicted = PredictResult(
            targets="tags", model_url=predictions.info.model_url, predictions_url=url,
            valid_url=write(validation, "valid.parquet") if validation else None,
            photos_per_second=9.0,
        )  # fmt: skip
        config = PipelineConfig.model_validate(
            {"store": str(tmp_path / "store"), "evaluate": {"threshold": threshold},
             "source": {"targets": "tags"}}
        )  # fmt: skip
        return review_tags(config, str(tmp_path / "store/runs/run-1"), predicted)

    return reviewed


def test_every_figure_is_that_of_the_predictions(review, draw):
    predictions, validation = draw(200, seed=1), draw(100, seed=2)
    report = review(predictions, validation)
    chosen = choose_thresholds(
        validation.targets, validation.probabilities, validation.info.tags, "shared"
    )
    given = predictions.probabilities >= np.float32(chosen.values[0])
    assert report.accuracy_multi == pytest.approx((given == predictions.targets).mean())
    assert report.exact_match == pytest.approx((given == predictions.targets).all(1).mean())
    assert report.num_untagged == (~predictions.targets.any(1)).sum()
    assert report.loss == pytest.approx(predictions.losses.mean(), rel=1e-5)
    assert (report.num_rows, report.num_validation, report.threshold_kind) == (200, 100, "shared")
    assert {tag.threshold for tag in report.tags} == set(chosen.values)
    files = {path.name for path in Path(report.url).iterdir()}
    assert files == {
        "tags.parquet", "tags.csv", "thresholds.parquet", "thresholds.png", "gallery.parquet",
        "report.json",
    }  # fmt: skip
    rows = list(csv.DictReader(Path(report.file("tags.csv")).read_text().splitlines()))
    assert [row["name"] for row in rows] == list(predictions.info.tags)
    assert pq.read_table(report.file("thresholds.parquet")).num_rows == 99
    assert TagsReport.model_validate_json(Path(report.file("report.json")).read_text()) == report


def test_a_model_of_the_run_keeps_its_thresholds(review, draw, tmp_path):
    model = str(tmp_path / "store/runs/run-1/model")
    first = review(draw(model_url=model), draw(80, seed=5), "per_tag")
    kept = read_thresholds(model, first_tags := draw().info.tags)
    assert kept.kind == "per_tag"
    assert kept.values == tuple(tag.threshold for tag in first.tags)
    # Tried again with another setting, it has others.
    again = review(draw(model_url=model), draw(80, seed=5), "shared")
    assert again.threshold_kind == "shared"
    assert read_thresholds(model, first_tags).kind == "shared"


def test_another_run_takes_the_model_s_thresholds(review, draw, shown, tmp_path):
    model = tmp_path / "elsewhere/model"
    model.mkdir(parents=True)
    assert not (model / THRESHOLDS).exists()
    review(draw(model_url=str(model)), draw(80, seed=5))
    assert not (model / THRESHOLDS).exists(), "a model that another run trained is left alone"
    own = {"kind": "shared", "tags": draw().info.tags, "values": [0.77] * 5, "num_photos": 9}
    (model / THRESHOLDS).write_text(json.dumps(own))
    report = review(draw(model_url=str(model)), draw(80, seed=5))
    assert {tag.threshold for tag in report.tags} == {0.77}
    assert report.num_validation == 9
    # Nor is a curve asked for where there are no validation photos to draw it of.
    (Path(report.url) / "thresholds.png").unlink()
    assert "thresholds" not in shown(publish_tags, review(draw(model_url=str(model))))


def test_without_validation_photos_thresholds_are_one_half(review, draw, shown):
    report = review(draw())
    assert {tag.threshold for tag in report.tags} == {0.5}
    assert "0.5 for each tag, for there were no validation photos" in report.threshold_text
    assert set(shown(publish_tags, report)) == {"tags", "top-losses", "run-summary"}


def test_what_people_see(review, draw, shown, capsys):
    tags = ["dog", "cat", EVIL, "sofa", "never"]
    predictions = draw(tags=tags)
    report = review(predictions, draw(80, seed=5, tags=tags))
    made = shown(publish_tags, report)
    assert list(made) == ["tags", "thresholds", "top-losses", "run-summary"]
    assert all(len(json.dumps(content)) < MAX_BYTES for content in made.values())
    assert all("<img src=x" not in str(content) for content in made.values())
    assert [row["tag"] for row in made["tags"]][-1] == "never", "what no photo has comes last"
    scores = [row["F1"] for row in made["tags"][:-1]]
    assert scores == sorted(scores)
    summary = made["run-summary"]
    assert summary.startswith(f"# F1 {report.micro_f1.value:.1%}, mAP")
    assert f"{report.num_untagged} of them have no tag" in summary
    assert "**Tags without an evaluated photo\\: never\\.**" in summary
    assert "data:image/png;base64,iVBOR" in made["thresholds"]
    worst = read_top_losses(report.file("gallery.parquet"))
    assert worst[0].photo_id == predictions.ids[int(predictions.losses.argmax())]
    assert made["top-losses"].count("(photo out of reach)") == 16
    show_tags(report)
    said = capsys.readouterr().out
    assert f"F1 {report.micro_f1.value:.1%}" in said
    assert f"Review       {report.url}" in said


def test_one_photo_and_one_tag(review, draw):
    report = review(draw(1, 1))
    assert report.num_rows == 1


def test_it_runs_without_torch(tmp_path, draw, write):
    code = (
        "import sys; from pets_core.config.pipeline import PipelineConfig;"
        "from pets_core.tags.review import review_tags;"
        "from pets_core.records.evaluation import PredictResult;"
        "said = PredictResult(model_url='m', predictions_url=sys.argv[2], photos_per_second=1);"
        "review_tags(PipelineConfig(store=sys.argv[1]), sys.argv[1] + '/runs/r', said);"
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store"), write(draw())]
    subprocess.run(command, check=True)
    assert (tmp_path / "store/runs/r/evaluation/report.json").exists()
