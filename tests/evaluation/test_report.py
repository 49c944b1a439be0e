"""The report: complete in itself, escaped, and telling the numbers."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from pets_core.evaluation.interpret import ClassRow
from pets_core.evaluation.report import ReportContext, Thumbnail, render_report
from pets_core.records import ConfusedPair, EpochMetrics, TrainResult

EVIL = "<script>alert('pug')</script>"
VOID = {"meta", "img", "wbr"}
CONTEXT = ReportContext(
    title="pets: test",
    run_id="run-42",
    backbone="resnet34",
    dataset_name="oxford-iiit-pet",
    dataset_fingerprint="0123456789abcdef0123456789abcdef",
    split="test",
    num_rows=2000,
    error_rate=0.0625,
    loss=0.2134,
    classes=[
        ClassRow("pug", "dog", 1000, 950, 0.05, "boxer"),
        ClassRow(EVIL, "cat", 1000, 925, 0.075, "pug"),
        ClassRow("Sphynx", "cat", 0, 0, None, None),
    ],
    most_confused=[
        ConfusedPair(actual=EVIL, predicted="pug", count=75),
        ConfusedPair(actual="pug", predicted="boxer", count=50),
    ],
    confusion_png=b"matrix",
    top_losses=[
        Thumbnail(jpeg=b"jpeg", photo_id=EVIL, actual=EVIL, predicted=EVIL, probability=0.97,
                  loss=5.5)
    ],
    settings_yaml=f"source:\n  url: {EVIL}\n",
    generated_at="2025-03-01 10:11 UTC",
)  # fmt: skip
TRAINING = TrainResult(
    model_url="m", last_model_url="m", history_url="h", plot_url="p", base_lr=1.5e-3,
    mixed_precision="bf16", device="cpu", num_processes=2, num_steps=1234, seconds=90.0,
    epochs=(EpochMetrics(phase="frozen", epoch=0, train_loss=1.234, seconds=9.0,
                         photos_per_second=77.0),),
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
    return replace(CONTEXT, training=TRAINING, training_png=b"curves", lr_png=b"sweep")


def test_it_tells_the_numbers(full):
    text = Page(render_report(full)).text
    for words in (
        "6.2% error rate", "1,875 of 2,000 photos right, test split", "0.2134", "resnet34",
        "oxford-iiit-pet", full.dataset_fingerprint, "run-42", "2025-03-01 10:11 UTC",
        "pug taken for boxer, 5% of 1000 photos", "7.5%", "97%", "loss 5.50",
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
    assert page.text.count(EVIL) >= 6
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

    always = ["result", "confused", "confusion", "losses", "classes", "settings"]
    assert headings(CONTEXT) == always
    assert headings(full) == [*always[:-1], "training", "rates", "settings"]
    assert "training" in headings(replace(CONTEXT, training_png=b"curves"))


def test_classes_come_worst_first():
    body = render_report(CONTEXT).split('<table class="sortable">')[1].split("</table>")[0]
    names = re.findall(r'<th scope="row">(.*?)</th>', body)
    assert [name[:4] for name in names] == ["&lt;", "pug", "Sphy"]


def test_long_lists_of_pairs_say_what_they_leave_out():
    pairs = [ConfusedPair(actual="pug", predicted=f"other{i}", count=1) for i in range(80)]
    text = Page(render_report(replace(CONTEXT, most_confused=pairs))).text
    assert "The first 50 of 80 pairs" in text
    assert "other49" in text
    assert "other50" not in text


def test_an_empty_split():
    context = replace(CONTEXT, num_rows=0, error_rate=float("nan"), loss=float("nan"),
                      classes=[], most_confused=[], top_losses=[])  # fmt: skip
    text = Page(render_report(context)).text
    assert "0 of 0 photos" in text
    assert "nan" not in text
    assert "No pair was confused" in text


def test_a_perfect_model():
    context = replace(CONTEXT, error_rate=0.0, most_confused=[],
                      classes=[ClassRow("a", None, 9, 9, 0.0, None)])  # fmt: skip
    page = Page(render_report(context))
    assert "0.0% error rate" in page.text
    assert "Species" not in page.text
