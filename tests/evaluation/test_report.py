"""The report and the model card: complete and escaped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard

from pets_core.evaluation.gallery import Picture
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.report import ReportContext, model_card, render_report
from pets_core.records.dataset import ClassInfo
from pets_core.records.evaluation import (
    Comparison,
    EvalReport,
    Highlights,
    Interval,
    LabelChange,
    Metric,
    Section,
    Verdict,
)
from pets_core.records.training import EpochMetrics, TrainResult

EVIL = "<script>alert('pug')</script>"
VOID = {"meta", "img", "wbr"}
INFO = PredictionsInfo(
    vocabulary=tuple(ClassInfo(name=name) for name in ("pug", EVIL, "Sphynx")), split="test",
    model_url="m", backbone="resnet34", image_size=224, dataset_url="d",
    dataset_name="oxford-iiit-pet", dataset_fingerprint="0123456789abcdef0123456789abcdef",
)  # fmt: skip
ERROR_RATE = Metric(name="error rate", value=0.0625, low=0.052, high=0.073, unit="%")
REPORT = EvalReport(
    target="class", model_url="m", split="test", num_rows=2000, primary=ERROR_RATE,
    metrics=(
        Metric(name="top-2 accuracy", value=0.98, higher_is_better=True, unit="%"),
        Metric(name="cross-entropy", value=0.2134, unit="nats"),
        Metric(name="mAP", value=0.5, unit="%", baseline=0.25),
    ),
    details=(f"1,875 of 2,000 photos right, {EVIL}.",), notes=("The photos are few.",),
    highlights=Highlights(
        title="Most confused", columns=("actual", "predicted", "photos", "share"),
        rows=((EVIL, "pug", "75", "8%"), ("pug", "boxer", "50", "5%")),
    ),
    sections=(
        Section(key="classes", title="Classes", table="classes", percent=("recall",),
                text=f"Every class of {EVIL}; see --source.label_fixes."),
        Section(key="confusion-matrix", title="Confusion matrix", figure="confusion",
                figure_alt=f"Confusion matrix of {EVIL}"),
        Section(key="top-losses", title="Top losses", gallery="top-losses"),
        Section(key="confused-pairs", title="Confused pairs", gallery="confused-pairs"),
        Section(key="confusion-table", title="Confusion table", table="classes", in_report=False),
    ),
    num_label_issues=1, verdict=Verdict(passed=False, reasons=(f"of {EVIL} too few",)),
    predictions_url="p", url="e", photos_per_second=1.0, seconds=1.0,
)  # fmt: skip
SHOWN = Picture(photo_id=EVIL, actual=EVIL, predicted=f"{EVIL}, 97%", detail="loss 5.50",
                jpeg=b"jpeg", map_jpeg=b"map")  # fmt: skip
CLASSES = pd.DataFrame(
    {
        "name": [EVIL, "pug", "Sphynx"],
        "support": [1000, 1234, 0],
        "recall": [0.925, 0.95, np.nan],
        "loss": [0.123456, np.nan, np.nan],
        "taken_for": [None, "boxer", None],
    }
)
CONTEXT = ReportContext(
    run_id="run-42",
    info=INFO,
    report=REPORT,
    tables={"classes": CLASSES},
    figures={"confusion": b"matrix"},
    gallery={"top-losses": [SHOWN], "confused-pairs": [replace(SHOWN, group=f"{EVIL}, as pug")]},
    settings_yaml=f"source:\n  url: {EVIL}\n",
    generated_at="2025-03-01 10:11 UTC",
)
TRAINING = TrainResult(
    model_url="m", last_model_url="m", history_url="h", plot_url="p", base_lr=1.5e-3,
    mixed_precision="bf16", device="cpu", num_processes=2, num_steps=1234, seconds=90.0,
    num_layer_groups=9, unfreeze_to=4,
    epochs=(EpochMetrics(phase="frozen", epoch=0, train_loss=1.234, seconds=9.0,
                         photos_per_second=77.0),),
)  # fmt: skip
COMPARISON = Comparison(
    champion_url=f"runs/{EVIL}", num_rows=2000, num_excluded=3, metric=ERROR_RATE,
    champion_metric=Metric(name="error rate", value=0.08, unit="%"),
    num_better=60, num_worse=25, improvement=Interval(value=0.0175, low=0.008, high=0.027),
    p_value=0.0002, test="McNemar's test", largest_drop=0.1,
    better=(LabelChange(name=EVIL, support=9, champion_recall=0.5, recall=0.75),),
    worse=(LabelChange(name="pug", support=9, champion_recall=0.9, recall=0.8),),
)  # fmt: skip
RMSE = Metric(name="RMSE", value=2.25, low=2.0, high=2.5, unit="kg", baseline=4.5)


class Page(HTMLParser):
    """Parser of tags, attributes and text that checks that all tags are closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def of(report: EvalReport, **fields) -> EvalReport:
    return report.model_copy(update=fields)


def text_of(report: EvalReport, **fields) -> str:
    return Page(render_report(replace(CONTEXT, report=of(report, **fields)))).text


@pytest.fixture(scope="module")
def full():
    return replace(
        CONTEXT, report=of(REPORT, comparison=COMPARISON), training=TRAINING,
        training_png=b"curves", lr_png=b"range test",
    )  # fmt: skip


def test_report_shows_all_values(full):
    text = Page(render_report(full)).text
    for fragment in (
        "6.2% error rate", "2,000 test photos; 95% interval 5.2% to 7.3%",
        "1,875 of 2,000 photos right", "The photos are few.", "Top-2 accuracy98.0%",
        "Cross-entropy0.2134 nats", "mAP50.0% (baseline 25.0%)", "resnet34", "224 px",
        "oxford-iiit-pet", INFO.dataset_fingerprint, "run-42", "2025-03-01 10:11 UTC",
        "97%", "loss 5.50", "Does not pass the gate", "1,234", "92.5%", "0.1235",
        "the last 5 of 9 layer groups",
        "Against the champion: 1.75 percentage points better (+0.80 to +2.70 percentage points)",
        "On the same 2,000 photos. 3 more are excluded: one of the models was trained on them.",
        "McNemar's testp < 0.001", "60 photos", "25 photos", "8.00%",
        "\N{MINUS SIGN}10.0", "+25.0", "1.50e-03", "1.234", "bf16", "source: url:",
    ):  # fmt: skip
        assert fragment in text, fragment


def test_report_shows_units_and_baselines():
    improvement = Interval(value=0.25, low=-0.5, high=1.0)
    comparison = of(
        COMPARISON, metric=RMSE, champion_metric=of(RMSE, value=2.5), improvement=improvement,
        better=(), worse=(),
    )  # fmt: skip
    text = text_of(REPORT, primary=RMSE, comparison=comparison)
    assert "2.25 kg, RMSE" in text
    assert "95% interval 2 to 2.5 kg; baseline 4.5 kg" in text
    assert "Against the champion: 0.25 kg better (-0.5 to +1 kg)" in text
    assert "Classes with the largest drops" not in text


def test_meter_width_is_the_share_of_correct_predictions():
    for metric, width in (
        (ERROR_RATE, "93.750"),
        (of(ERROR_RATE, higher_is_better=True), "6.250"),
    ):
        html = render_report(replace(CONTEXT, report=of(REPORT, primary=metric)))
        assert f"width: {width}%" in html
    html = render_report(replace(CONTEXT, report=of(REPORT, primary=RMSE)))
    assert 'class="meter"' not in html


def test_report_is_self_contained(full):
    html = render_report(full)
    page = Page(html)
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "srcset", "action") if k in a]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", html)
    assert not page.all("link")
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert all(a["href"][1:] in anchors for a in page.all("a"))


def test_markup_in_names_is_escaped(full):
    page = Page(render_report(full))
    assert len(page.all("script")) == 1
    assert page.text.count(EVIL) == 11
    assert EVIL not in render_report(full)


def test_report_is_accessible(full):
    page = Page(render_report(full))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(labels) <= set(ids)


def test_sections_are_in_order_and_omitted_without_data(full):
    def headings(context):
        return re.findall(r'<h2 id="([\w-]+)-heading"', render_report(context))

    always = ["result", "classes", "confusion-matrix", "top-losses", "confused-pairs", "settings"]
    assert headings(CONTEXT) == always, "sections of the report, in their order"
    assert headings(full) == [
        "result", "champion", *always[1:-1], "training", "rates", "settings"
    ]  # fmt: skip
    assert "training" in headings(replace(CONTEXT, training_png=b"curves"))


def cells(html: str) -> list[list[str]]:
    """Return the cells of the first table of a report."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]


def test_tables_keep_row_order_and_mark_missing_values():
    found = cells(render_report(CONTEXT))
    assert [row[0][:4] for row in found] == ["&lt;", "pug", "Sphy"]
    assert [row[1:] for row in found] == [
        ["1,000", "92.5%", "0.1235", "-"], ["1,234", "95.0%", "-", "boxer"], ["0", "-", "-", "-"],
    ]  # fmt: skip


def test_columns_are_aligned_by_type_not_by_first_value():
    """A column of text or of numbers may start with a missing value."""
    table = pd.DataFrame(
        {
            "name": ["a", "b"],
            "value": [np.nan, 1.5],
            "label": [np.nan, "pug"],
            "count": pd.array([None, 3], dtype="Int64"),
        }
    )
    html = render_report(replace(CONTEXT, tables={"classes": table}))
    head = html.split("<thead>")[1].split("</thead>")[0]
    assert re.findall(r'<th scope="col"( class="num")?>', head) == [
        "",
        ' class="num"',
        "",
        ' class="num"',
    ]
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    assert re.findall(r"<td( class=\"num\")?", body) == [' class="num"', "", ' class="num"'] * 2
    assert body.count(' data-value="Infinity">-<') == 2, "NaN has no sort order"
    assert not re.search("nan|na&gt;", body.lower())


def test_long_tables_are_truncated():
    table = pd.DataFrame({"name": [f"class-{i}" for i in range(1234)], "support": range(1234)})
    text = Page(render_report(replace(CONTEXT, tables={"classes": table}))).text
    assert "1,234 rows, the first 1,000 shown; all are in classes.csv" in text
    assert "class-999" in text
    assert "class-1000" not in text


def test_empty_sections_have_a_placeholder():
    context = replace(CONTEXT, tables={"classes": CLASSES[:0]}, gallery={})
    text = Page(render_report(context)).text
    assert "None." in text
    assert text.count("No photos.") == 2


def test_unavailable_photos_have_a_placeholder():
    missing = replace(SHOWN, jpeg=None, map_jpeg=None)
    page = Page(render_report(replace(CONTEXT, gallery={"top-losses": [missing]})))
    assert "photo unavailable" in page.text
    assert len(page.all("img")) == 1, "the confusion matrix"


def test_pictures_of_a_group_are_below_its_heading():
    pair = replace(SHOWN, group="pug, predicted boxer")
    other = replace(SHOWN, group="boxer, predicted pug")
    html = render_report(replace(CONTEXT, gallery={"confused-pairs": [pair, pair, other]}))
    assert re.findall(r"<h3>(.*?)</h3>", html) == ["pug, predicted boxer", "boxer, predicted pug"]
    strips = html.split('<ul class="strip"')[1:]
    assert [strip.split("</ul>")[0].count("<img") for strip in strips] == [2, 1]


def test_report_of_a_perfect_model_passes_the_gate():
    metric = of(ERROR_RATE, value=0.0, low=0.0, high=0.0)
    text = text_of(REPORT, primary=metric, verdict=Verdict(passed=True))
    assert "0.0% error rate" in text
    assert "Passes the gate" in text
    assert "Champion" not in text


def test_unconfigured_gate_is_not_shown_as_passed():
    text = text_of(REPORT, verdict=Verdict(passed=True, has_condition=False))
    assert "Gate not configured, no champion" in text
    assert "Passes" not in text


def test_warnings_are_shown():
    unknown = text_of(REPORT, num_trained_on=None, samples="ratings")
    assert "Whether the model was trained on some of these ratings is unknown: the" in unknown
    assert "Classes without an evaluated photo: pug." in text_of(REPORT, unseen_labels=("pug",))
    assert "It is the champion." in text_of(REPORT, is_champion=True)


def test_style_rules_and_html_classes_match(full):
    """A leftover closing brace of a deleted rule makes browsers skip the next rule."""
    html = render_report(full)
    style = html.split("<style>")[1].split("</style>")[0]
    depth = 0
    for index, brace in enumerate(style):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        assert depth >= 0, style[:index][-80:]
    assert depth == 0
    selectors = re.findall(r"([^{};]+)\{", style)
    assert all(re.fullmatch(r"[\w\s.,:>\-\[\]=\"*@()#]+", each) for each in selectors)
    ruled = set(re.findall(r"\.([a-z][\w-]*)", " ".join(selectors)))
    # A missing photo, a correct and a wrong prediction use the remaining classes.
    right = replace(SHOWN, is_correct=True, jpeg=None)
    wrong = replace(SHOWN, is_correct=False)
    others = render_report(replace(full, gallery={"top-losses": [right, wrong]}))
    used = {
        name for names in re.findall(r'class="([^"]*)"', html + others) for name in names.split()
    }
    assert ruled == used


@pytest.mark.parametrize(("kind", "noun"), [("class", "Classes"), ("tags", "Tags")])
def test_model_card_names_the_labels_by_their_kind(kind, noun):
    report = of(REPORT, target=kind, unseen_labels=("pug",))
    card = model_card(replace(CONTEXT, report=report), "finds dogs", "image-classification")
    found = card.replace("\\", "")
    assert f"\n{noun} without an evaluated photo: pug. The metrics above do not cover" in found


@pytest.mark.parametrize("training", [None, TRAINING])
def test_hugging_face_hub_parses_the_model_card(training):
    name = "<b>*pug*</b> | [x](y)"
    info = INFO.model_copy(update={"dataset_name": "my: pets"})
    highlights = of(REPORT.highlights, rows=((name, "boxer: a dog", "75", "8%"),))
    report = of(
        REPORT, comparison=COMPARISON, highlights=highlights, unseen_labels=(name,),
        details=(), notes=(f"{name} is rare.",),
    )  # fmt: skip
    context = replace(CONTEXT, info=info, report=report, training=training)
    card = ModelCard(model_card(context, f"names one of {name}", "image-classification"))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("error rate", 0.0625)
    assert (result.dataset_name, result.dataset_revision) == ("my: pets", INFO.dataset_fingerprint)
    assert (card.data.base_model, card.data.pipeline_tag) == ("resnet34", "image-classification")
    text = card.text.replace("\\", "")
    assert "| error rate | 6.25% (95% interval 5.2% to 7.3%) |" in text
    assert "| mAP | 50.00%; baseline 25.00% (always predicts the mean) |" in text
    assert "| against the champion | 1.75 percentage points better, on 2000 photos" in text
    assert "Classes without an evaluated photo" in text
    assert name in text
    assert name not in card.text
    assert ("1234 optimizer steps" in text) == (training is not None)
    assert ("trained the last 5 of 9 layer groups" in text) == (training is not None)
    assert ("No training result was available" in text) == (training is None)
