"""Evaluation of every kind of target."""

import csv
import html
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import write_drawn

from pets.cli.results import show_evaluation
from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.evaluation import gallery as gallery_module
from pets_core.evaluation import predictions as predictions_module
from pets_core.evaluation.gallery import read_gallery
from pets_core.evaluation.predictions import (
    CHAMPION_PREDICTIONS,
    VALID_PREDICTIONS,
    Predictions,
    read_predictions,
)
from pets_core.evaluation.tables import read_frame
from pets_core.records.evaluation import Champion, EvalReport
from pets_core.registry.aliases import (
    AliasConflict,
    EvaluationKey,
    candidates,
    current,
    find_champion,
    promote_run,
    rollback,
)
from pets_core.targets.evaluate import find_prediction_files
from pets_core.targets.gate import check_gate
from pets_core.targets.registry import get_target
from pets_core.targets.tags.labels import tag_issues
from tasks.artifacts.evaluation import publish_evaluation

KINDS = ["class", "tags", "numbers", "points", "box"]
METRICS = {
    "class": ("error rate", False, "max_error_rate"),
    "tags": ("F1 per photo", True, "min_score"),
    "numbers": ("RMSE", False, "max_value"),
    "points": ("mean distance", False, "max_value"),
    "box": ("mean IoU", True, "min_score"),
}
"""Name and direction of the primary metric, and the setting of the gate that limits it."""
EVIL = "<img src=x onerror=alert(1)>|`*_"
FORMULA = '=HYPERLINK("http://evil")'
UNESCAPED = re.compile(r"(?<!\\)<img src=x")
WRONG = [3, 23, 43]
"""Rows of the validation photos that get wrong targets."""

every_kind = pytest.mark.parametrize("kind", KINDS)


def expected_scores(predictions: Predictions) -> list[float]:
    """Return the score of each sample, computed independently; tags use a threshold of 0.5."""
    rows = zip(predictions.targets.tolist(), predictions.outputs.tolist(), strict=True)
    return [EXPECTED[predictions.info.targets](actual, output) for actual, output in rows]


def f1(actual: list[bool], probabilities: list[float]) -> float:
    has = {index for index, flag in enumerate(actual) if flag}
    given = {index for index, probability in enumerate(probabilities) if probability >= 0.5}
    return 2 * len(has & given) / (len(has) + len(given)) if has or given else 1.0


def iou(actual: list[float], predicted: list[float]) -> float:
    left, top = (max(actual[index], predicted[index]) for index in (0, 1))
    right, bottom = (min(actual[index], predicted[index]) for index in (2, 3))
    shared = max(right - left, 0) * max(bottom - top, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (actual, predicted)]
    return shared / (sum(areas) - shared)


EXPECTED = {
    "class": lambda actual, values: float(values.index(max(values)) != actual),
    "tags": f1,
    # The training photos' standard deviation is 0.5.
    "numbers": lambda actual, predicted: np.mean(
        [((p - a) / 0.5) ** 2 for a, p in zip(actual, predicted, strict=True)]
    ),
    "points": lambda actual, predicted: math.dist(actual, predicted) / 2,
    "box": iou,
}


@pytest.fixture
def blank_figures(monkeypatch) -> None:
    """Replace the figures, which are slow to draw."""
    for name in (
        "calibration.reliability_diagram",
        "confusion.confusion_matrix",
        "regression.residuals",
        "tags.threshold_curve",
    ):
        monkeypatch.setattr(f"pets_core.plots.{name}", lambda *_: b"")


@pytest.fixture
def compared(draw_kind, write, evaluated):
    """Return a function that evaluates a model against a champion.

    Predictions are off by `off`, those of the champion by `champion_off`.
    """

    def compare_with(kind: str, off: float, champion_off: float, **keywords) -> EvalReport:
        theirs = draw_kind(kind, 120, off=champion_off, predicted_by=1, model_url="best")
        champion = Champion(model_url="best", predictions_url=write(theirs, "champion.parquet"))
        return evaluated(draw_kind(kind, 120, off=off), champion=champion, **keywords)

    return compare_with


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_primary_metric_is_the_mean_of_the_sample_scores(draw_kind, write, evaluated, kind):
    predictions = draw_kind(kind, off=0.2)
    report, name = evaluated(predictions), METRICS[kind][0]
    scores = expected_scores(predictions)
    mean = np.sqrt(np.mean(scores)) if name == "RMSE" else np.mean(scores)
    assert report.primary.value == pytest.approx(mean, rel=1e-5)
    assert report.primary.low < report.primary.value < report.primary.high
    assert (report.primary.name, report.primary.higher_is_better) == METRICS[kind][:2]
    target = get_target(kind)
    assert (target.metric, target.higher_is_better) == METRICS[kind][:2]
    scored = target.evaluator(read_predictions(write(predictions), target)).score()
    assert scored.metric == report.primary
    assert scored.scores == pytest.approx(np.array(scores), rel=1e-4, abs=1e-6)
    assert list(scored.ids) == predictions.ids


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_interval_narrows_with_more_samples(draw_kind, evaluated, kind):
    few, many = (evaluated(draw_kind(kind, count, off=0.2)).primary for count in (40, 640))
    # A quarter of the width, up to random variation.
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_comparison_follows_the_direction_of_the_metric(compared, kind):
    better = compared(kind, off=0.05, champion_off=0.4).comparison
    own, champion = better.metric.value, better.champion_metric.value
    assert (own > champion) == METRICS[kind][1]
    assert better.improvement.value == pytest.approx(abs(own - champion))
    assert 0 < better.improvement.low <= better.improvement.value <= better.improvement.high
    assert better.p_value < 0.01
    assert better.num_better > better.num_worse
    assert better.delta_text.endswith(" better")
    report = compared(kind, off=0.4, champion_off=0.05)
    worse = report.comparison
    assert worse.improvement.high < 0
    assert worse.p_value < 0.01
    assert worse.num_better < worse.num_worse
    assert worse.delta_text.endswith(" worse")
    assert not report.verdict.passed
    assert "gate.min_improvement" in report.verdict.reasons[0]


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_equally_good_models_do_not_differ_significantly(compared, kind):
    comparison = compared(kind, off=0.2, champion_off=0.2).comparison
    assert comparison.improvement.low < 0 < comparison.improvement.high
    assert comparison.p_value > 0.05


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_champion_with_other_labels_is_not_compared(draw_kind, write, evaluated, kind):
    names = ["one", "two", "three", "four"]
    url = write(draw_kind(kind, names=names, model_url="best"), "champion.parquet")
    report = evaluated(draw_kind(kind), champion=Champion(model_url="best", predictions_url=url))
    assert report.comparison is None
    assert report.comparison_error.startswith("the champion best cannot be compared: ")
    assert re.search(r"differ \(champion: .*model: ", report.comparison_error)
    assert not report.verdict.passed


@every_kind
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("split", ["valid", "test"])
def test_metrics_of_the_validation_split_have_a_warning(draw_kind, evaluated, kind, split):
    predictions = draw_kind(kind, split=split)
    report = evaluated(predictions, predictions)
    warned = any("Metrics of the validation photos are optimistic" in w for w in report.warnings)
    assert warned == (split == "valid")


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_gate_limit_decides_the_verdict(draw_kind, evaluated, kind):
    predictions = draw_kind(kind, off=0.2)
    name, higher_is_better, setting = METRICS[kind]
    without_gate = evaluated(predictions)
    value = without_gate.primary.value
    step = 1e-3 if higher_is_better else -1e-3
    refused = evaluated(predictions, settings={"gate": {setting: value + step}}).verdict
    assert not refused.passed
    (reason,) = refused.reasons
    assert reason.startswith(f"{name} ")
    assert f"gate.{setting}" in reason
    passed = evaluated(predictions, settings={"gate": {setting: value - step}}).verdict
    assert (passed.passed, passed.reasons, passed.has_condition) == (True, (), True)
    assert not without_gate.verdict.has_condition


@every_kind
def test_gate_limit_of_another_kind_is_refused(kind):
    own = METRICS[kind][2]
    for setting in ("max_error_rate", "min_score", "max_value"):
        config = GateConfig(**{setting: 0.5})
        if setting == own:
            check_gate(config, get_target(kind))
        else:
            with pytest.raises(PetsError, match=rf"gate.{setting} = 0.5 .* set gate.{own}"):
                check_gate(config, get_target(kind))


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_models_are_promoted_and_rolled_back(draw_kind, evaluated, tmp_path, kind):
    config = PipelineConfig(store=str(tmp_path / "store"))
    key = EvaluationKey("pets", "f", "test", 0)

    def run(name: str, off: float, champion: Champion | None) -> EvalReport:
        model = tmp_path / "store/runs" / name / "model"
        model.mkdir(parents=True)
        (model / "model.json").touch()
        predictions = draw_kind(kind, 120, off=off, model_url=str(model))
        return evaluated(predictions, run=name, champion=champion)

    first = run("a", 0.3, find_champion(config, key))
    promote_run(config.store, "champion", first)
    champion = find_champion(config, key)
    assert champion.model_url == first.model_url
    second, third = run("b", 0.1, champion), run("c", 0.1, champion)
    assert second.comparison.improvement.low > 0
    promote_run(config.store, "champion", second)
    with pytest.raises(AliasConflict, match=r"champion moved to run b during this evaluation"):
        promote_run(config.store, "champion", third)
    held = current(config.store, "pets", "champion").model
    assert (held.run_id, held.target, held.metric) == ("b", kind, second.primary)
    # A second evaluation of the champion recognises it.
    again = evaluated(
        draw_kind(kind, 120, off=0.1, model_url=second.model_url), run="again",
        champion=find_champion(config, key),
    )  # fmt: skip
    assert again.is_champion
    assert rollback(config.store, "pets", "champion").model.metric == first.primary
    assert [model.run_id for model in candidates(config.store)] == ["a", "again", "b", "c"]


@every_kind
def test_sections_are_stored_published_and_printed(
    draw_kind, draw_stored, compared, shown, capsys, kind
):
    validation = draw_kind(kind, seed=1, split="valid")
    report = compared(kind, off=0.1, champion_off=0.3, validation=validation)
    page = Path(report.file("report.html")).read_text()
    gallery = read_gallery(report.file("gallery.parquet"))
    artifacts = shown(publish_evaluation, PipelineConfig(), report)
    assert list(artifacts) == [
        *(section.key for section in report.sections),
        "champion",
        "run-summary",
    ]
    for section in report.sections:
        assert (f'id="{section.key}"' in page) == section.in_report
        if section.table:
            table = read_frame(report.file(section.table))
            assert set(section.percent) <= set(table.columns)
            assert len(artifacts[section.key]) == len(table)
            assert Path(report.file(f"{section.table}.csv")).exists()
        if section.figure:
            png = Path(report.file(f"{section.figure}.png")).read_bytes()
            assert png.startswith(b"\x89PNG")
            assert "data:image/png" in artifacts[section.key]
        for picture in gallery.get(section.gallery, ()):
            assert html.escape(picture.predicted) in page.replace("<wbr>", "")
    assert any(gallery.values())
    assert EvalReport.model_validate_json(Path(report.file("report.json")).read_text()) == report
    (candidate,) = candidates(str(Path(report.url).parents[2]))
    assert (candidate.metric, candidate.target, candidate.run_id) == (report.primary, kind, "run-1")
    name, value = report.primary.name, report.primary.format()
    card = Path(report.file("model_card.md")).read_text()
    assert f"| {name} | " in card
    assert card.startswith("---\n")
    assert value in page
    show_evaluation(report)
    printed = capsys.readouterr().out
    assert f"{name[:1].upper()}{name[1:]}" in printed
    assert value in printed
    assert report.comparison.p_text in printed
    assert report.primary.interval_text in printed


@every_kind
def test_markup_in_names_is_escaped(draw_kind, write, evaluated, shown, jpeg, monkeypatch, kind):
    """Names of labels, numbers, units and photos are escaped."""
    # Only available photos have an alternative text.
    monkeypatch.setattr(
        gallery_module, "_photos", lambda url, ids, side: dict.fromkeys(ids, jpeg())
    )
    names = [EVIL, FORMULA, *(f"{EVIL} {index}" for index in range(2))]
    units = {"units": [f"{EVIL} per second"] * 4} if kind == "numbers" else {}

    def drawn(**fields) -> Predictions:
        predictions = draw_kind(kind, names=names, off=0.3, **units, **fields)
        ids = [f"{EVIL} {photo}" for photo in predictions.ids]
        return replace(predictions, ids=ids)

    url = write(drawn(predicted_by=1, model_url="best"), "champion.parquet")
    champion = Champion(model_url="best", predictions_url=url)
    report = evaluated(drawn(), drawn(seed=1, split="valid"), champion=champion)
    assert report.comparison
    page = Path(report.file("report.html")).read_text()
    assert not UNESCAPED.search(page)
    assert html.escape(EVIL) in page.replace("<wbr>", "")
    assert not UNESCAPED.search(Path(report.file("model_card.md")).read_text())
    artifacts = shown(publish_evaluation, PipelineConfig(), report)
    found = [key for key, content in artifacts.items() if UNESCAPED.search(str(content))]
    assert found == []
    for path in Path(report.url).glob("*.csv"):
        cells = [cell for row in csv.reader(path.read_text().splitlines()) for cell in row]
        assert not [cell for cell in cells if cell.startswith("=")], path.name


def test_evaluation_of_every_kind_runs_without_torch(draw_kind, tmp_path):
    urls = []
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        write_drawn(str(folder / VALID_PREDICTIONS), draw_kind(kind, seed=1, split="valid"))
        champion = draw_kind(kind, predicted_by=1, model_url="best")
        write_drawn(str(folder / CHAMPION_PREDICTIONS), champion)
        urls.append(write_drawn(str(folder / "predictions.parquet"), draw_kind(kind)))
    code = (
        "import sys; from pets_core.config.pipeline import PipelineConfig;"
        "from pets_core.records.evaluation import Champion;"
        "from pets_core.targets.evaluate import evaluate, find_prediction_files;"
        "store, *urls = sys.argv[1:];"
        "[evaluate(PipelineConfig(store=store), f'{store}/runs/{index}',"
        " find_prediction_files(url), champion=Champion(model_url='best'))"
        " for index, url in enumerate(urls)];"
        "sys.exit('torch is imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "store"), *urls], check=True)
    for index, kind in enumerate(KINDS):
        stored = tmp_path / f"store/runs/{index}/evaluation/report.json"
        report = EvalReport.model_validate_json(stored.read_text())
        assert (report.target, report.num_label_issues is None) == (kind, False)
        assert report.comparison is not None


@every_kind
def test_validation_file_next_to_predictions_is_found(draw_kind, tmp_path, kind):
    url = write_drawn(str(tmp_path / "predictions.parquet"), draw_kind(kind))
    assert find_prediction_files(url).valid_url is None
    valid_url = write_drawn(
        str(tmp_path / VALID_PREDICTIONS), draw_kind(kind, seed=1, split="valid")
    )
    given = find_prediction_files(url)
    assert (given.targets, given.valid_url, given.champion_url) == (kind, valid_url, None)


def well_predicted(draw_kind, kind: str, seed: int) -> Predictions:
    """Draw predictions of validation photos by a good model."""
    off = {"class": 0.0, "tags": 0.0, "numbers": 0.1}.get(kind, 0.05)
    numbers = {"names": ["age"]} if kind == "numbers" else {}
    validation = draw_kind(kind, 60, off=off, seed=seed, split="valid", **numbers)
    if kind == "numbers":
        validation.targets[:] += 2
        validation.outputs[:] += 2
    return validation


def make_wrong(kind: str, targets: np.ndarray) -> list[int]:
    """Make targets wrong and return their rows."""
    match kind:
        case "class":
            targets[WRONG] = (targets[WRONG] + 1) % 4
        case "tags":
            targets[WRONG] ^= True
        case "numbers":
            targets[WRONG[:1]] *= 10
            return WRONG[:1]
        case _:
            targets[WRONG] += np.where(targets[WRONG] > 0, -1.2, 1.2)
    return WRONG


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_wrong_validation_targets_are_reported_as_label_issues(draw_kind, evaluated, shown, kind):
    validation = well_predicted(draw_kind, kind, seed=3)
    wrong = [validation.ids[row] for row in make_wrong(kind, validation.targets)]
    numbers = {"names": ["age"]} if kind == "numbers" else {}
    report = evaluated(draw_kind(kind, **numbers), validation)
    assert report.num_label_issues == len(wrong)
    name = "label_fixes.csv" if kind == "class" else "label_issues.csv"
    rows = list(csv.DictReader(Path(report.file(name)).read_text().splitlines()))
    assert {row["id"] for row in rows} == set(wrong)
    pictures = read_gallery(report.file("gallery.parquet"))["label-issues"]
    assert {picture.photo_id for picture in pictures} == set(wrong)
    plural = "s" if len(wrong) > 1 else ""
    published = shown(publish_evaluation, PipelineConfig(), report)["label-issues"]
    assert f"{len(wrong)} validation photo{plural} with a probable" in published


def issues_of(validation: Predictions) -> set[str]:
    """Return the photos with label issues."""
    if validation.info.targets == "tags":
        return set(tag_issues(validation)["id"])
    evaluator = get_target(validation.info.targets).evaluator(validation, validation)
    return set(evaluator.issues()["id"])


@pytest.mark.parametrize("kind", KINDS[1:])
def test_label_issues_find_wrong_targets_with_few_false_positives(draw_kind, kind):
    """Few correct targets are reported."""
    num_found = num_wrong = num_false = 0
    for seed in range(8):
        validation = well_predicted(draw_kind, kind, seed)
        num_false += len(issues_of(validation))
        wrong = {validation.ids[row] for row in make_wrong(kind, validation.targets)}
        num_found += len(wrong & issues_of(validation))
        num_wrong += len(wrong)
    assert num_found >= 0.95 * num_wrong
    max_false_rate = {"numbers": 0.02}.get(kind, 0)
    assert num_false <= max_false_rate * 8 * 60


def test_label_issues_of_tags_exclude_most_model_errors(draw_kind):
    """5% of the tags are predicted wrong; with 4 tags that is about 19% of the photos."""
    num_reported = num_contradicted = 0
    for seed in range(5):
        validation = draw_kind("tags", 100, off=0.05, seed=seed)
        contradicts = (validation.outputs >= 0.5) != validation.targets
        num_contradicted += contradicts.any(1).sum()
        num_reported += len(issues_of(validation))
    assert 0 < num_reported < 0.75 * num_contradicted


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_no_label_issues_without_validation_photos(draw_kind, evaluated, shown, kind):
    report = evaluated(draw_kind(kind))
    assert report.num_label_issues is None
    assert "label-issues" not in shown(publish_evaluation, PipelineConfig(), report)
    assert not list(Path(report.url).glob("label_*.csv"))


@every_kind
def test_embeddings_are_stored_with_predictions(draw_kind, write, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(predictions_module, "_ROWS", 25)
    predictions = draw_kind(kind)
    embeddings = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    url = write_drawn(str(tmp_path / "with.parquet"), predictions, embeddings)
    stored = np.stack(pq.read_table(url)["embedding"].to_pylist())
    np.testing.assert_array_equal(stored, embeddings)
    target = get_target(kind)
    found, plain = (read_predictions(path, target) for path in (url, write(predictions)))
    assert (found.info, found.ids) == (plain.info, plain.ids)
    np.testing.assert_array_equal(found.targets, predictions.targets)
    np.testing.assert_array_equal(found.outputs, plain.outputs)
    assert "embedding" not in pq.read_schema(write(predictions)).names


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonfinite_values_are_refused(draw_kind, write, kind, value):
    predictions = draw_kind(kind)
    predictions.outputs[[3, 5, 7, 9], 1] = value
    text = (
        r"predictions.parquet: 4 of 60 samples have .* not finite.*: photo-3, photo-5, photo-7\. "
        r"Predict again; if the model returns NaN, train again with a lower train.base_lr$"
    )
    with pytest.raises(PetsError, match=text), np.errstate(all="ignore"):
        read_predictions(write(predictions), get_target(kind))


@pytest.mark.parametrize("kind", ["class", "tags"])
@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan])
def test_invalid_probabilities_are_refused(draw_kind, write, kind, value):
    url = write(draw_kind(kind, 5))
    table = pq.read_table(url)
    index = table.schema.get_field_index("probabilities")
    rows = table["probabilities"].to_pylist()
    rows[2][1] = value
    column = pa.array(rows, table.schema.field(index).type)
    pq.write_table(table.set_column(index, table.schema.field(index), column), url)
    with pytest.raises(PetsError, match=r"parquet: 1 of 5 samples have probabilities .*: photo-2"):
        read_predictions(url, get_target(kind))


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_champion_predictions_overwritten_after_promotion_are_not_compared(
    draw_kind, write, evaluated, kind
):
    theirs = draw_kind(kind, predicted_by=1, model_url="best", tta_views=4)
    champion = Champion(model_url="best", predictions_url=write(theirs, "champion.parquet"))
    report = evaluated(draw_kind(kind), champion=champion)
    assert report.comparison is None
    assert "with 4 TTA views, the model's of split test" in report.comparison_error
    assert not report.verdict.passed


@every_kind
@pytest.mark.usefixtures("blank_figures")
def test_nan_score_is_an_error_and_stores_nothing(
    draw_kind, evaluated, kind, monkeypatch, tmp_path
):
    evaluator = get_target(kind).evaluator
    score = evaluator.score

    def score_with_nan(self):
        scores = score(self)
        scores.scores[3] = float("nan")
        return scores

    monkeypatch.setattr(evaluator, "score", score_with_nan)
    predictions = draw_kind(kind)
    with pytest.raises(
        PetsError, match=rf"not finite for 1 of 60 samples \(first: {predictions.ids[3]}\)"
    ):
        evaluated(predictions)
    assert list(candidates(str(tmp_path / "store"))) == []
