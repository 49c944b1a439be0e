"""The whole review of a file of predictions: no torch, no model, whatever the predictions."""

import csv
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from predictions_of import predictions_of

from pets.cli.results import show_report
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import CHAMPION_PREDICTIONS, VALID_PREDICTIONS
from pets_core.evaluation.review import given_predictions, review
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.registry import promote_run
from pets_core.storage.markdown import literal
from tasks.review_artifacts import publish_classes

EVIL = "<img src=x onerror=alert(1)>|`*_"


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    return PipelineConfig(store=str(tmp_path / "store"))


def reviewed(config, url: str, **keywords):
    run = f"{config.store}/runs/run-1"
    return review(config, run, given_predictions(url), **keywords)


def test_every_figure_is_that_of_the_predictions(config, draw, write):
    predictions = draw(400, 6, names=["a", "b", "c", "d", "e", EVIL])
    report = reviewed(config, write(predictions))
    table = pq.read_table(report.predictions_url).to_pandas()
    wrong = table.actual != table.predicted
    assert report.num_rows == 400
    assert report.error_rate.value == pytest.approx(wrong.mean())
    assert report.loss == pytest.approx(table.loss.mean(), rel=1e-5)
    confusion = pq.read_table(report.file("confusion.parquet")).to_pandas()
    assert confusion["count"].sum() == 400
    expected = table[wrong].groupby(["actual", "predicted"]).size().sort_values(ascending=False)
    pairs = pq.read_table(report.file("most_confused.parquet")).to_pandas()
    assert pairs["count"].tolist() == expected.tolist()
    first = pairs.iloc[0]
    assert expected[(first.actual, first.predicted)] == first["count"]
    assert first.share == pytest.approx(first["count"] / (table.actual == first.actual).sum())
    rows = csv.DictReader(Path(report.file("classes.csv")).read_text().splitlines())
    recall = (~wrong).groupby(table.actual).mean()
    assert {r["name"]: float(r["recall"]) for r in rows} == pytest.approx(recall.to_dict())
    stored = json.loads(Path(report.file("report.json")).read_text())
    assert stored["error_rate"]["value"] == report.error_rate.value


def test_it_runs_without_torch(config, draw, write):
    url = write(draw(50))
    code = (
        "import sys; from pets_core.config.pipeline import PipelineConfig;"
        "from pets_core.evaluation.review import given_predictions, review;"
        "config = PipelineConfig(store=sys.argv[1]);"
        "review(config, sys.argv[1] + '/runs/r', given_predictions(sys.argv[2]));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, config.store, url], check=True)
    assert (Path(config.store) / "runs/r/evaluation/report.html").exists()


def test_names_with_markup_are_text_everywhere(config, draw, write):
    report = reviewed(config, write(draw(200, names=["a", EVIL], skill=0.1)))
    assert EVIL not in Path(report.file("report.html")).read_text()
    assert EVIL not in Path(report.file("model_card.md")).read_text()
    assert EVIL in Path(report.file("classes.csv")).read_text()


@pytest.mark.parametrize("num_classes", [1, 2])
def test_very_few_classes(config, draw, write, num_classes):
    report = reviewed(config, write(draw(20, num_classes, skill=9.0)))
    assert report.error_rate.value < 0.1
    assert Path(report.file("confusion.png")).stat().st_size > 500


def test_a_class_without_photos(config, draw, write):
    drawn = draw(60, 3)
    targets = np.minimum(drawn.targets, 1)
    predictions = predictions_of(drawn.info, drawn.ids, targets, drawn.probabilities)
    report = reviewed(config, write(predictions))
    rows = pq.read_table(report.file("classes.parquet")).to_pylist()
    assert (rows[2]["support"], rows[2]["recall"]) == (0, None)
    assert not re.search(r"\bnan\b", Path(report.file("model_card.md")).read_text().lower())
    assert ">nan" not in Path(report.file("report.html")).read_text().lower()


@pytest.fixture
def unseen(draw, write) -> str:
    """Predictions of three classes; no photo has the last one."""
    drawn = draw(60, names=["a", "b", EVIL])
    targets = np.minimum(drawn.targets, 1)
    return write(predictions_of(drawn.info, drawn.ids, targets, drawn.probabilities))


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({}, True),
        ({"max_error_rate": 1.0}, False),
        ({"max_error_rate": 1.0, "allow_unseen_classes": True}, True),
    ],
)
def test_a_class_without_photos_is_named(config, unseen, shown, capsys, gate, passed):
    config = config.model_copy(update={"gate": GateConfig(**gate)})
    report = reviewed(config, unseen)
    assert report.unseen_classes == (EVIL,)
    assert report.verdict.passed == passed
    summary = shown(publish_classes, config, report)["run-summary"]
    page = html.unescape(Path(report.file("report.html")).read_text())
    card = Path(report.file("model_card.md")).read_text()
    show_report(report)
    assert f"lasses without an evaluated photo: {EVIL}." in capsys.readouterr().out
    # Once each: as a reason, or as a caution.
    assert page.count(f"lasses without an evaluated photo: {EVIL}.") == 1
    for markdown in (summary, card):
        assert markdown.count(literal(f"lasses without an evaluated photo: {EVIL}")) == 1


def test_classes_that_all_have_photos_are_not_named(config, draw, write, shown):
    report = reviewed(config, write(draw(60, 3)))
    assert report.unseen_classes == ()
    summary = shown(publish_classes, config, report)["run-summary"]
    card = Path(report.file("model_card.md")).read_text()
    page = Path(report.file("report.html")).read_text()
    assert all("without an evaluated" not in text for text in (summary, card, page))


def test_a_report_from_before_unseen_classes_is_read(config, unseen):
    report = reviewed(config, unseen)
    stored = json.loads(Path(report.file("report.json")).read_text())
    del stored["unseen_classes"]
    assert EvalReport.model_validate(stored).unseen_classes == ()


def test_validation_beside_the_file_mends_calibration_and_labels(config, draw, write):
    url = write(draw(300, 4))
    assert reviewed(config, url).num_label_issues is None
    write(draw(300, 4, seed=7, split="valid"), VALID_PREDICTIONS)
    report = reviewed(config, url)
    assert report.calibration.temperature > 0
    assert report.num_label_issues is not None
    assert Path(report.file("label_fixes.csv")).read_text().startswith("id,label,given")


def test_the_champion_is_compared(config, draw, write):
    champion = write(draw(300, 4, skill=1.0), "champion.parquet")
    url = write(draw(300, 4, skill=3.0))
    report = reviewed(config, url, champion=Champion(model_url="best", predictions_url=champion))
    assert report.verdict.passed
    assert report.comparison.improvement.low > 0
    assert " points better\n" in Path(report.file("report.html")).read_text()


@pytest.mark.parametrize("other", ["gone", "classes"])
def test_a_champion_that_cannot_be_compared_is_a_reason_not_a_crash(config, draw, write, other):
    url = write(draw(30, 3))
    of_champion = None if other == "gone" else write(draw(30, 4), "champion.parquet")
    champion = Champion(model_url="best", predictions_url=of_champion)
    report = reviewed(config, url, champion=champion)
    assert report.comparison is None
    assert not report.verdict.passed
    assert "the champion" in report.verdict.reasons[0]
    assert "pets models promote" in report.verdict.reasons[0]
    assert Path(report.file("report.html")).exists()


def test_what_the_champion_said_in_the_same_stage_serves_a_later_review(config, draw, write):
    url = write(draw(300, 4, skill=3.0))
    write(draw(300, 4, skill=1.0, model_url="best"), CHAMPION_PREDICTIONS)
    assert reviewed(config, url, champion=Champion(model_url="best")).comparison is not None
    other = reviewed(config, url, champion=Champion(model_url="another"))
    assert "has not judged these photos; `pets evaluate MODEL`" in other.not_compared
    assert other.verdict.reasons == (other.not_compared,)


@pytest.mark.parametrize("about", [{"num_classes": 3}, {"model_url": "another"}])
def test_validation_of_another_model_is_refused(config, draw, write, about):
    url = write(draw(300, 4))
    write(draw(300, **({"num_classes": 4, "split": "valid"} | about)), VALID_PREDICTIONS)
    with pytest.raises(PetsError, match=r"predictions-valid.parquet: predictions of .*remove it"):
        reviewed(config, url)


@pytest.mark.parametrize("url", ["nowhere/at/all", "memory://nowhere", "strange://x"])
def test_galleries_go_without_photos_that_are_out_of_reach(config, draw, write, url, caplog):
    report = reviewed(config, write(draw(30, 3, dataset_url=url)))
    assert "photo out of reach" in Path(report.file("report.html")).read_text()
    assert "the galleries go without photos" in caplog.text


def test_the_settings_told_are_those_that_made_the_predictions(config, draw, write):
    report = reviewed(config, write(draw(30, 3)))
    assert "Settings" not in Path(report.file("report.html")).read_text()
    run = Path(report.url).parent
    (run / "config.yaml").write_text("source: {url: 'https://host/p.zip?sig=SECRET', seed: 7}")
    page = Path(reviewed(config, report.predictions_url).file("report.html")).read_text()
    assert "https://host/p.zip" in page
    assert "SECRET" not in page


def test_a_spreadsheet_runs_nothing(config, draw, write):
    name = '=HYPERLINK("http://evil")'
    report = reviewed(config, write(draw(60, names=["-1+1", name], skill=0.1)))
    for table in ("classes", "confusion", "most_confused"):
        rows = csv.reader(Path(report.file(f"{table}.csv")).read_text().splitlines())
        cells = [cell for row in rows for cell in row]
        assert f"'{name}" in cells
        assert not [cell for cell in cells if cell.startswith(("=", "-", "+", "@"))]


def test_damaged_predictions_leave_nothing(config, draw, write):
    url = write(draw(30, 3))
    Path(url).write_bytes(Path(url).read_bytes()[:-40])
    with pytest.raises(PetsError, match=r"no file of predictions"):
        reviewed(config, url)
    assert not Path(config.store).exists()


def test_what_was_reviewed_may_be_promoted(config, draw, write, tmp_path):
    model = str(tmp_path / "model")
    Path(model).mkdir()
    (Path(model) / "model.json").touch()
    report = reviewed(config, write(draw(30, 3, model_url=model)))
    move = promote_run(config.store, "champion", report)
    assert (move.model.run_id, move.model.model_url) == ("run-1", model)
    assert move.model.error_rate == report.error_rate.value
