"""Evaluation of a prediction file, without torch and without the model."""

import csv
import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from predictions_of import info_of, predictions_of

from pets.cli.results import show_evaluation
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    VALID_PREDICTIONS,
    write_predictions,
)
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.registry.aliases import promote_run
from pets_core.storage.markdown import escape_markdown
from pets_core.targets.evaluate import evaluate, find_prediction_files
from pets_core.targets.tags.target import TAGS
from tasks.artifacts.evaluation import publish_evaluation

EVIL = "<img src=x onerror=alert(1)>|`*_"


@pytest.fixture
def config(tmp_path) -> PipelineConfig:
    return PipelineConfig(store=str(tmp_path / "store"))


def evaluated(config, url: str, **keywords):
    run = f"{config.store}/runs/run-1"
    return evaluate(config, run, find_prediction_files(url), **keywords)


def test_report_values_match_the_predictions(config, draw_classes, write):
    predictions = draw_classes(400, 6, names=["a", "b", "c", "d", "e", EVIL])
    report = evaluated(config, write(predictions))
    table = pq.read_table(report.predictions_url).to_pandas()
    wrong = table.actual != table.predicted
    assert report.num_rows == 400
    assert report.primary.value == pytest.approx(wrong.mean())
    assert report.metric("cross-entropy") == pytest.approx(table.loss.mean(), rel=1e-5)
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
    stored = EvalReport.model_validate_json(Path(report.file("report.json")).read_bytes())
    assert stored == report.model_copy(update={"seconds": stored.seconds})


def test_markup_in_names_is_escaped(config, draw_classes, write):
    report = evaluated(config, write(draw_classes(200, names=["a", EVIL], skill=0.1)))
    assert EVIL not in Path(report.file("report.html")).read_text()
    assert EVIL not in Path(report.file("model_card.md")).read_text()
    assert EVIL in Path(report.file("classes.csv")).read_text()


@pytest.mark.parametrize("num_classes", [1, 2])
def test_evaluation_works_with_one_or_two_classes(config, draw_classes, write, num_classes):
    report = evaluated(config, write(draw_classes(20, num_classes, skill=9.0)))
    assert report.primary.value < 0.1
    assert Path(report.file("confusion.png")).stat().st_size > 500


def test_class_without_photos_has_undefined_recall(config, draw_classes, write):
    drawn = draw_classes(60, 3)
    targets = np.minimum(drawn.targets, 1)
    predictions = predictions_of(drawn.info, drawn.ids, targets, drawn.outputs)
    report = evaluated(config, write(predictions))
    rows = pq.read_table(report.file("classes.parquet")).to_pylist()
    assert (rows[2]["support"], rows[2]["recall"]) == (0, None)
    assert not re.search(r"\bnan\b", Path(report.file("model_card.md")).read_text().lower())
    assert ">nan" not in Path(report.file("report.html")).read_text().lower()


@pytest.fixture
def unseen(draw_classes, write) -> str:
    """Predictions of three classes; no photo has the last one."""
    drawn = draw_classes(60, names=["a", "b", EVIL])
    targets = np.minimum(drawn.targets, 1)
    return write(predictions_of(drawn.info, drawn.ids, targets, drawn.outputs))


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({}, True),
        ({"max_error_rate": 1.0}, False),
        ({"max_error_rate": 1.0, "allow_unseen_classes": True}, True),
    ],
)
def test_class_without_photos_is_reported(config, unseen, shown, capsys, gate, passed):
    config = config.model_copy(update={"gate": GateConfig(**gate)})
    report = evaluated(config, unseen)
    assert report.unseen_labels == (EVIL,)
    assert report.verdict.passed == passed
    summary = shown(publish_evaluation, config, report)["run-summary"]
    page = html.unescape(Path(report.file("report.html")).read_text())
    card = Path(report.file("model_card.md")).read_text()
    show_evaluation(report)
    # Shown once: as a warning, or as a reason of the gate; always as a warning in the card.
    warning = f"Classes without an evaluated photo: {EVIL}."
    text = warning if passed else warning.replace("Classes", "labels")
    assert text in capsys.readouterr().out
    assert page.count(text) == page.count("without an evaluated") == 1
    for markdown, shown_text in ((summary, text), (card, warning)):
        assert markdown.count(escape_markdown(shown_text)) == 1
        assert markdown.count("without an evaluated") == 1


def test_classes_with_photos_are_not_reported_as_unseen(config, draw_classes, write, shown):
    report = evaluated(config, write(draw_classes(60, 3)))
    assert report.unseen_labels == ()
    summary = shown(publish_evaluation, config, report)["run-summary"]
    card = Path(report.file("model_card.md")).read_text()
    page = Path(report.file("report.html")).read_text()
    assert all("without an evaluated" not in text for text in (summary, card, page))


def test_report_json_without_unseen_labels_is_read(config, unseen):
    report = evaluated(config, unseen)
    stored = json.loads(Path(report.file("report.json")).read_text())
    del stored["unseen_labels"]
    assert EvalReport.model_validate(stored).unseen_labels == ()


def calibration_text(report) -> str:
    (section,) = (each for each in report.sections if each.key == "calibration")
    return section.text


def test_validation_predictions_enable_calibration_and_label_issues(config, draw_classes, write):
    url = write(draw_classes(300, 4))
    alone = evaluated(config, url)
    assert alone.num_label_issues is None
    assert "label-issues" not in {section.key for section in alone.sections}
    assert "temperature" not in calibration_text(alone)
    write(draw_classes(300, 4, seed=7, split="valid"), VALID_PREDICTIONS)
    report = evaluated(config, url)
    assert re.search(r"temperature scaling \(T = \d\.\d\d, ", calibration_text(report))
    assert report.num_label_issues is not None
    assert Path(report.file("label_fixes.csv")).read_text().startswith("id,label,given")


def test_model_is_compared_with_the_champion(config, draw_classes, write):
    champion = write(draw_classes(300, 4, skill=1.0), "champion.parquet")
    url = write(draw_classes(300, 4, skill=3.0))
    report = evaluated(config, url, champion=Champion(model_url="best", predictions_url=champion))
    assert report.verdict.passed
    assert report.comparison.improvement.low > 0
    assert " percentage points better" in Path(report.file("report.html")).read_text()


@pytest.mark.parametrize("difference", ["missing", "classes"])
def test_incomparable_champion_fails_the_gate_with_a_reason(
    config, draw_classes, write, difference
):
    url = write(draw_classes(30, 3))
    champion_url = (
        None if difference == "missing" else write(draw_classes(30, 4), "champion.parquet")
    )
    champion = Champion(model_url="best", predictions_url=champion_url)
    report = evaluated(config, url, champion=champion)
    assert report.comparison is None
    assert not report.verdict.passed
    assert "the champion" in report.verdict.reasons[0]
    assert "pets models promote" in report.verdict.reasons[0]
    assert Path(report.file("report.html")).exists()


def write_tags(path: Path, model_url: str = "best") -> str:
    """Write predictions of tags for the photos of `draw_classes`."""
    info = info_of(["class-0", "class-1", "class-2"], targets="tags", model_url=model_url)
    random = np.random.default_rng(0)
    targets, outputs = random.integers(0, 2, (30, 3)), random.random((30, 3), np.float32)
    ids = [f"photo-{row}" for row in range(30)]
    write_predictions(str(path), TAGS, info, ids, targets, outputs)
    return str(path)


def test_champion_of_another_kind_fails_the_gate_with_a_reason(
    config, draw_classes, write, tmp_path
):
    tags = write_tags(tmp_path / "tags.parquet")
    report = evaluated(
        config,
        write(draw_classes(30, 3)),
        champion=Champion(model_url="best", predictions_url=tags),
    )
    (reason,) = report.verdict.reasons
    assert reason == report.comparison_error
    assert "predictions of targets = tags, not of targets = class" in reason
    assert "pets models promote" in reason
    assert report.comparison is None
    assert Path(report.file("report.html")).exists()


def test_class_champion_fails_the_gate_of_a_tags_model(config, draw_classes, write, tmp_path):
    champion = Champion(model_url="a/model", predictions_url=write(draw_classes(30, 3)))
    (folder := tmp_path / "tags").mkdir()
    report = evaluated(config, write_tags(folder / "predictions.parquet"), champion=champion)
    assert report.target == "tags"
    (reason,) = report.verdict.reasons
    assert "predictions of targets = class, not of targets = tags" in reason


def test_predictions_of_an_unknown_kind_are_refused(draw_classes, write):
    drawn = draw_classes(5, 3)
    url = write(drawn)
    info = drawn.info.model_copy(update={"targets": "tag"}).model_dump_json()
    table = pq.read_table(url).replace_schema_metadata({b"pets": info.encode()})
    pq.write_table(table, url)
    message = (
        r"predictions.parquet: targets = tag: no such kind of target; set class, tags, numbers, "
        r"points, box, .*\. Did you mean tags"
    )
    with pytest.raises(PetsError, match=message):
        find_prediction_files(url)


def test_gate_setting_of_another_kind_is_refused_before_anything_is_stored(
    config, draw_classes, write
):
    config = config.model_copy(update={"gate": GateConfig(min_score=0.5)})
    message = (
        r"gate.min_score = 0.5 has no meaning for targets = class, .*: set gate.max_error_rate"
    )
    with pytest.raises(PetsError, match=message):
        evaluated(config, write(draw_classes(30, 3)))
    assert not Path(config.store).exists()


def test_champion_predictions_in_the_folder_are_reused(config, draw_classes, write):
    url = write(draw_classes(300, 4, skill=3.0))
    write(draw_classes(300, 4, skill=1.0, model_url="best"), CHAMPION_PREDICTIONS)
    assert evaluated(config, url, champion=Champion(model_url="best")).comparison is not None
    other = evaluated(config, url, champion=Champion(model_url="another"))
    assert (
        "it has no predictions of these samples; run `pets evaluate MODEL`"
        in other.comparison_error
    )
    assert other.verdict.reasons == (other.comparison_error,)


@pytest.mark.parametrize("fields", [{"num_classes": 3}, {"model_url": "another"}])
def test_validation_predictions_of_another_model_are_refused(config, draw_classes, write, fields):
    url = write(draw_classes(300, 4))
    write(draw_classes(300, **({"num_classes": 4, "split": "valid"} | fields)), VALID_PREDICTIONS)
    with pytest.raises(PetsError, match=r"predictions-valid.parquet: .* differ in model, .*remove"):
        evaluated(config, url)


@pytest.mark.parametrize("url", ["nowhere/at/all", "memory://nowhere", "strange://x"])
def test_galleries_omit_unavailable_photos(config, draw_classes, write, url, caplog):
    report = evaluated(config, write(draw_classes(30, 3, dataset_url=url)))
    assert "photo unavailable" in Path(report.file("report.html")).read_text()
    assert "Galleries are written without photos" in caplog.text


def test_report_shows_the_settings_of_the_prediction_run(config, draw_classes, write):
    report = evaluated(config, write(draw_classes(30, 3)))
    assert "Settings" not in Path(report.file("report.html")).read_text()
    run = Path(report.url).parent
    (run / "config.yaml").write_text("source: {url: 'https://host/p.zip?sig=SECRET', seed: 7}")
    page = Path(evaluated(config, report.predictions_url).file("report.html")).read_text()
    assert "https://host/p.zip" in page
    assert "SECRET" not in page


def test_csv_cells_are_not_formulas(config, draw_classes, write):
    name = '=HYPERLINK("http://evil")'
    report = evaluated(config, write(draw_classes(60, names=["-1+1", name], skill=0.1)))
    for table in ("classes", "confusion", "most_confused"):
        rows = csv.reader(Path(report.file(f"{table}.csv")).read_text().splitlines())
        cells = [cell for row in rows for cell in row]
        assert f"'{name}" in cells
        assert not [cell for cell in cells if cell.startswith(("=", "-", "+", "@"))]


def test_damaged_predictions_write_no_files(config, draw_classes, write):
    url = write(draw_classes(30, 3))
    Path(url).write_bytes(Path(url).read_bytes()[:-40])
    with pytest.raises(PetsError, match=r"not a predictions file"):
        evaluated(config, url)
    assert not Path(config.store).exists()


def test_evaluated_model_can_be_promoted(config, draw_classes, write, tmp_path):
    model = str(tmp_path / "model")
    Path(model).mkdir()
    (Path(model) / "model.json").touch()
    report = evaluated(config, write(draw_classes(30, 3, model_url=model)))
    move = promote_run(config.store, "champion", report)
    assert (move.model.run_id, move.model.model_url) == ("run-1", model)
    assert move.model.metric == report.primary
    assert (move.model.target, move.model.num_rows) == ("class", 30)
