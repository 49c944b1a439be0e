"""The report: complete in itself, escaped, and telling the numbers."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pets_core.evaluation.gallery import Gallery, Picture
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.evaluation.report import ReportContext, SpeciesCounts, render_report
from pets_core.records.dataset import ClassInfo
from pets_core.records.evaluation import (
    Calibration,
    ClassChange,
    ClassMeasures,
    Comparison,
    ConfusedPair,
    EvalReport,
    Share,
    Verdict,
)
from pets_core.records.training import EpochMetrics, TrainResult

EVIL = "<script>alert('pug')</script>"
VOID = {"meta", "img", "wbr"}
INFO = PredictionsInfo(
    classes=tuple(ClassInfo(name=name) for name in ("pug", EVIL, "Sphynx")), split="test",
    model_url="m", backbone="resnet34", image_size=224, dataset_url="d",
    dataset_name="oxford-iiit-pet", dataset_fingerprint="0123456789abcdef0123456789abcdef",
)  # fmt: skip
REPORT = EvalReport(
    model_url="m", split="test", num_rows=2000,
    error_rate=Share(value=0.0625, low=0.052, high=0.073), top_k={1: 0.9375, 2: 0.98},
    loss=0.2134, calibration=Calibration(ece=0.0312, temperature=1.37, ece_after=0.012),
    most_confused=(
        ConfusedPair(actual=EVIL, predicted="pug", count=75, share=0.075),
        ConfusedPair(actual="pug", predicted="boxer", count=50, share=0.05),
    ),
    num_label_issues=1, verdict=Verdict(passed=False, reasons=(f"of {EVIL} too few",)),
    predictions_url="p", url="e", photos_per_second=1.0, seconds=1.0,
)  # fmt: skip
SHOWN = Picture(photo_id=EVIL, actual=EVIL, predicted=EVIL, probability=0.97, loss=5.5,
                jpeg=b"jpeg", map_jpeg=b"map")  # fmt: skip
CONTEXT = ReportContext(
    run_id="run-42",
    info=INFO,
    report=REPORT,
    classes=[
        ClassMeasures(name="pug", species="dog", support=1000, correct=950, precision=0.9,
                      recall=0.95, f1=0.92, taken_for="boxer"),
        ClassMeasures(name=EVIL, species="cat", support=1000, correct=925, precision=0.88,
                      recall=0.925, f1=0.91, taken_for="pug"),
        ClassMeasures(name="Sphynx", species="cat", support=0, correct=0, precision=None,
                      recall=None, f1=None),
    ],
    gallery=Gallery(top_losses=(SHOWN,), confident_errors=(SHOWN,), pairs=(SHOWN,),
                    label_issues=(SHOWN,)),
    confusion_png=b"matrix",
    reliability_png=b"bars",
    settings_yaml=f"source:\n  url: {EVIL}\n",
    generated_at="2025-03-01 10:11 UTC",
)  # fmt: skip
TRAINING = TrainResult(
    model_url="m", last_model_url="m", history_url="h", plot_url="p", base_lr=1.5e-3,
    mixed_precision="bf16", device="cpu", num_processes=2, num_steps=1234, seconds=90.0,
    epochs=(EpochMetrics(phase="frozen", epoch=0, train_loss=1.234, seconds=9.0,
                         photos_per_second=77.0),),
)  # fmt: skip
COMPARISON = Comparison(
    champion_url=f"runs/{EVIL}", num_rows=2000, champion_error_rate=0.08, error_rate=0.0625,
    only_champion_wrong=60, only_model_wrong=25,
    improvement=Share(value=0.0175, low=0.008, high=0.027), p_value=0.0002,
    better=(ClassChange(name=EVIL, support=9, champion_recall=0.5, recall=0.75),),
    worse=(ClassChange(name="pug", support=9, champion_recall=0.9, recall=0.8),), largest_drop=0.1,
)  # fmt: skip


class Page(HTMLParser):
    """Collects the tags, their attributes and the text, and checks that tags are closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
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
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full():
    return replace(
        CONTEXT, report=REPORT.model_copy(update={"comparison": COMPARISON}), training=TRAINING,
        training_png=b"curves", lr_png=b"sweep",
        species=SpeciesCounts(names=[EVIL, "dog"], counts=[[900, 11], [7, 1082]]),
    )  # fmt: skip


def test_it_tells_the_numbers(full):
    text = Page(render_report(full)).text
    for words in (
        "6.2% error rate", "1,875 of 2,000 photos right, test split", "0.2134", "resnet34",
        "95% interval of the error rate 5.2% to 7.3%", "Among the 2 most probable98.0%",
        "oxford-iiit-pet", INFO.dataset_fingerprint, "run-42", "2025-03-01 10:11 UTC",
        "pug taken for boxer, 5% of its photos", "97%", "loss 5.50", "Does not pass",
        "Beside the champion: 1.75 points better (+0.8 to +2.7)", "p < 0.001", "60 photos",
        "\N{MINUS SIGN}10.0",
        "3.1%; 1.2% with logits divided by 1.37", "1 validation photo whose", "1,082", "92.5%",
        "1.50e-03", "1,234", "1.234", "bf16", "source: url:",
    ):  # fmt: skip
        assert words in text, words


def test_nothing_is_fetched(full):
    html = render_report(full)
    page = Page(html)
    addresses = [a[k] for _, a in page.tags for k in ("src", "href", "srcset", "action") if k in a]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", html)
    assert not page.all("link")
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert all(a["href"][1:] in anchors for a in page.all("a"))


def test_names_are_text(full):
    page = Page(render_report(full))
    assert len(page.all("script")) == 1
    assert page.text.count(EVIL) >= 12
    assert EVIL not in render_report(full)


def test_it_can_be_read_without_seeing(full):
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


def test_parts_come_in_order_and_only_when_known(full):
    def headings(context):
        return re.findall(r'<h2 id="(\w+)-heading"', render_report(context))

    always = ["result", "confused", "confusion", "losses", "sure", "labels", "classes",
              "calibration", "settings"]  # fmt: skip
    assert headings(CONTEXT) == always
    assert headings(full) == [
        "result", "champion", *always[1:-1], "training", "rates", "settings"
    ]  # fmt: skip
    none_sought = REPORT.model_copy(update={"num_label_issues": None})
    assert "labels" not in headings(replace(CONTEXT, report=none_sought))
    assert "training" in headings(replace(CONTEXT, training_png=b"curves"))


def test_classes_come_worst_first():
    body = render_report(CONTEXT).split('<table class="sortable">')[1].split("</table>")[0]
    names = re.findall(r'<th scope="row">(.*?)</th>', body)
    assert [name[:4] for name in names] == ["&lt;", "pug", "Sphy"]


def of(report: EvalReport, **about) -> EvalReport:
    return report.model_copy(update=about)


def test_photos_out_of_reach_leave_their_place():
    gone = replace(SHOWN, jpeg=None, map_jpeg=None)
    page = Page(render_report(replace(CONTEXT, gallery=Gallery(top_losses=(gone,)))))
    assert "photo out of reach" in page.text
    assert "Grad-CAM" not in page.text


def test_a_perfect_model():
    nothing_wrong = Share(value=0.0, low=0.0, high=0.0)
    report = of(REPORT, error_rate=nothing_wrong, most_confused=(), verdict=Verdict(passed=True))
    perfect = ClassMeasures(name="a", support=9, correct=9, precision=1, recall=1, f1=1)
    context = replace(CONTEXT, report=report, classes=[perfect], gallery=Gallery())
    page = Page(render_report(context))
    assert "0.0% error rate" in page.text
    assert "Passes the gate" in page.text
    assert "Nothing was wrong" in page.text
    assert "Species" not in page.text
