"""Results of `pets run` in a real browser: `pets ui`, artifacts and the HTML report."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chromium import open_chromium
from ports import free_port

pytestmark = pytest.mark.browser

SETTINGS = {
    "PETS_MODEL__BACKBONE": "test_efficientnet",
    "PETS_MODEL__WEIGHTS": "none",
    "PETS_MODEL__IMAGE_SIZE": "64",
    "PETS_SOURCE__SAMPLE_PHOTOS_PER_BREED": "4",
    "PETS_TRAIN__EPOCHS": "1",
    "PETS_LR_FIND__NUM_STEPS": "12",
    "PETS_EVALUATE__MOST_CONFUSED_MIN_COUNT": "1",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """Run the pipeline with its own database; return its environment and output."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | SETTINGS
    environment |= {
        "PREFECT_HOME": str(home / "prefect"),
        "PETS_STORE": str(home / "store"),
        "PETS_CACHE_DIR": str(home / "cache"),
    }
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-m", "pets", "run"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return environment, done.stdout


@pytest.fixture(scope="module")
def page_and_root(finished) -> Iterator[tuple]:
    """Yield a browser page and the address that `pets ui` printed."""
    environment, printed = finished
    run_id = re.search(r" ui (\S+)", printed).group(1)
    port = free_port()
    command = [sys.executable, "-m", "pets", "ui", run_id, "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().strip()
        assert address.startswith(f"http://127.0.0.1:{port}/"), address
        with open_chromium() as browser:
            page = browser.new_page(viewport={"width": 1300, "height": 1100})
            # The page requests fonts and analytics from other hosts.
            page.route(
                lambda url: not url.startswith(("http://127.0.0.1", "data:", "file:")),
                lambda route: route.abort(),
            )
            yield page, address
    finally:
        server.terminate()
        server.wait(timeout=600)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, "the server exits with `pets ui`"


@pytest.fixture(scope="module")
def rejected(finished, page_and_root) -> str:
    """Id of a run whose model the gate rejects; the first run's model is the champion."""
    environment, printed = finished
    # The running server owns the database.
    server = "/".join(page_and_root[1].split("/")[:3])
    environment = environment | {"PREFECT_API_URL": f"{server}/api"}
    run_id = re.search(r" ui (\S+)", printed).group(1)
    predictions = Path(re.search(r"Report +(\S+)", printed).group(1)).with_name(
        "predictions.parquet"
    )
    promote = ["models", "promote", run_id]
    evaluate = [
        "evaluate", "--from", str(predictions), "--gate.promote", "--gate.max_error_rate", "0"
    ]  # fmt: skip
    command = [sys.executable, "-m", "pets"]
    subprocess.run([*command, *promote], env=environment, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(
        [*command, *evaluate], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 3
    assert "error: not promoted, see Gate above" in done.stderr
    assert "Gate         not passed: error rate" in done.stdout
    return re.search(r" ui (\S+)", done.stdout).group(1)


@pytest.fixture
def keep(request, tmp_path) -> Callable[[object, str], None]:
    """Save screenshots of a page to the folder of --screenshots."""
    folder = Path(request.config.getoption("--screenshots") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png")


MARKUP = [
    "[click](javascript:alert(1))",
    "![shown](http://127.0.0.1:1/p.png)",
    "<img src=x onerror=alert(1)>",
    "*bold* __init__ ~~gone~~",
    "# head",
    "1. one",
    "a|b `code` https://evil.example",
]
PUBLISH = """
import json, sys
from prefect import flow, task
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.publisher import Publisher, table

@task
def publish(names):
    with Publisher("nowhere") as publisher:
        publisher.table("markup-table", [{"name": name, "count": 1} for name in names], "")
        rows = table(["name"], ([escape_markdown(name)] for name in names))
        publisher.markdown("markup-text", rows, "")

flow(name="markup")(lambda: publish(json.loads(sys.argv[1])))()
"""


@pytest.mark.parametrize("key", ["markup-table", "markup-text"])
def test_markup_in_names_is_shown_as_text(page_and_root, finished, key, keep) -> None:
    page, address = page_and_root
    root = "/".join(address.split("/")[:3])
    environment = finished[0] | {"PREFECT_API_URL": f"{root}/api"}
    command = [sys.executable, "-c", PUBLISH, json.dumps(MARKUP)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    page.goto(f"{root}/artifacts/key/{key}")
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    page.wait_for_url(re.compile(r"/artifacts/artifact/"))
    page.get_by_text("1. one").first.wait_for()
    keep(page, key)
    cells = all_of(page, "table td")
    shown = cells.evaluate("cells => cells.map(cell => cell.innerText.trim())")
    assert [text for text in shown if text not in ("1", "")] == MARKUP
    tags = "a, img, em, strong, del, h1, ol, code"
    assert cells.evaluate("(cells, tags) => cells.some(c => c.querySelector(tags))", tags) is False


def all_of(page, selector: str):
    """Wait for at least one match and all matched images to load; return a handle of the matches.

    Prefect's page replaces its content when more data arrives, so a query after a wait may match
    nothing. The elements of the handle do not change.
    """
    return page.wait_for_function(
        """selector => {
            const found = [...document.querySelectorAll(selector)];
            const ready = i => i.tagName !== "IMG" || (i.complete && i.naturalWidth > 0);
            return found.length > 0 && found.every(ready) && found;
        }""",
        arg=selector,
    )


def open_artifact(page, address: str, key: str) -> None:
    page.goto(address)
    page.locator(f"a[href$='/artifacts/key/{key}']").first.click()
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    page.wait_for_url(re.compile(r"/artifacts/artifact/"))


def test_run_prints_metrics_and_the_report_path(finished) -> None:
    printed = finished[1]
    assert re.search(r"Error rate +\d+\.\d%  \(74 test photos; 95% interval .*%\)", printed)
    assert re.search(r"^  \d+ of 74 photos correct\.$", printed, re.M)
    most_confused = printed.split("Most confused\n")[1].splitlines()
    assert most_confused[0].split() == ["actual", "predicted", "photos", "share"]
    assert all(re.search(r" \d+ +\d+%$", line) for line in most_confused[1:4])
    assert Path(re.search(r"Report +(\S+)", printed).group(1)).is_file()


def test_summary_shows_the_error_rate_of_the_predictions(page_and_root, finished, keep) -> None:
    page, address = page_and_root
    report = Path(re.search(r"Report +(\S+)", finished[1]).group(1))
    predictions = pq.read_table(report.with_name("predictions.parquet")).to_pandas()
    error_rate = (predictions.actual != predictions.predicted).mean()
    page.goto(address)
    page.locator("a[href$='/artifacts/key/run-summary']").first.wait_for()
    page.wait_for_load_state("networkidle")
    keep(page, "artifacts")
    open_artifact(page, address, "run-summary")
    page.get_by_text(f"Error rate {error_rate:.1%}: gate not configured").first.wait_for()
    keep(page, "run-summary")


def test_rejected_run_shows_the_reason(page_and_root, rejected, finished, keep) -> None:
    page, address = page_and_root
    run_id = re.search(r" ui (\S+)", finished[1]).group(1)
    page.goto(address.replace(run_id, rejected))
    page.get_by_text("Rejected").first.wait_for()
    keep(page, "rejected")
    open_artifact(page, address.replace(run_id, rejected), "run-summary")
    page.get_by_text("does not pass the gate").first.wait_for()
    page.get_by_text("exceeds gate.max_error_rate = 0.00%").first.wait_for()
    page.get_by_text("It is the champion.").first.wait_for()
    keep(page, "rejected-summary")


@pytest.mark.parametrize("key", ["confusion-matrix", "lr-finder", "training-curves", "calibration"])
def test_figures_are_rendered(page_and_root, key: str, keep) -> None:
    page, address = page_and_root
    open_artifact(page, address, key)
    pictures = all_of(page, "img[src^='data:image/png']")
    keep(page, key)
    assert pictures.evaluate("([image]) => image.decode().then(() => image.naturalWidth)") > 400
    colours = pictures.evaluate(
        """([image]) => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
            const seen = new Set();
            for (let i = 0; i < pixels.length; i += 4)
                seen.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
            return seen.size;
        }"""
    )
    assert colours > 20


@pytest.mark.parametrize(
    ("key", "most"),
    [("top-losses", 32), ("confident-errors", 32), ("confused-pairs", 80)],
)
def test_galleries_show_photos(page_and_root, key: str, most: int, keep) -> None:
    page, address = page_and_root
    open_artifact(page, address, key)
    photos = all_of(page, "img[src^='data:image/jpeg']")
    widths = photos.evaluate(
        "images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth)))"
    )
    keep(page, key)
    assert 0 < len(widths) <= most
    assert min(widths) > 40


def test_class_table_shows_the_recall(page_and_root, finished, keep) -> None:
    page, address = page_and_root
    report = Path(re.search(r"Report +(\S+)", finished[1]).group(1))
    predictions = pq.read_table(report.with_name("predictions.parquet")).to_pandas()
    recall = (predictions.actual == predictions.predicted)[predictions.actual == "Abyssinian"]
    open_artifact(page, address, "classes")
    row = page.locator("tr", has_text="Abyssinian").first
    row.wait_for()
    keep(page, "classes")
    assert f"{round(float(recall.mean()), 4):g}" in row.inner_text()


@pytest.mark.parametrize("key", ["most-confused", "confusion-table"])
def test_confusion_tables_match_the_predictions(page_and_root, finished, key, keep) -> None:
    page, address = page_and_root
    report = Path(re.search(r"Report +(\S+)", finished[1]).group(1))
    predictions = pq.read_table(report.with_name("predictions.parquet")).to_pandas()
    pairs = predictions.groupby(["actual", "predicted"]).size().reset_index(name="count")
    pairs["share"] = pairs["count"] / pairs.groupby("actual")["count"].transform("sum")
    expected = {
        (row.actual, row.predicted, str(row["count"]), f"{round(row.share, 4):g}")
        for _, row in pairs.iterrows()
        if key == "confusion-table" or row.actual != row.predicted
    }
    open_artifact(page, address, key)
    rows = all_of(page, "tbody tr")
    keep(page, key)
    shown = rows.evaluate("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")
    assert len(shown) >= 10
    assert {tuple(row) for row in shown} <= expected
    most = max(int(count) for actual, predicted, count, _ in expected if actual != predicted)
    assert shown[0][2] == str(most)


def test_report_is_self_contained(page_and_root, finished, keep) -> None:
    # A new page: Prefect's scripts may still send requests on the shared one.
    page = page_and_root[0].context.browser.new_page()
    report = Path(re.search(r"Report +(\S+)", finished[1]).group(1))
    requests, console = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: console.append(message.text))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    keep(page, "report")
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert not console
    error_rate = re.search(r"Error rate +(\S+)", finished[1]).group(1)
    assert error_rate in page.inner_text("main")
    widths = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
    assert len(widths) > 3
    assert json.dumps(min(widths)) != "0"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_works_on_a_phone_and_with_a_keyboard(page_and_root, finished, scheme, keep) -> None:
    report = Path(re.search(r"Report +(\S+)", finished[1]).group(1))
    context = page_and_root[0].context.browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(report.as_uri())
    keep(page, f"report-phone-{scheme}")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0, "only tables and plots scroll horizontally"
    text, background = page.evaluate(
        """[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]
           .map(text => text.match(/\\d+/g).slice(0, 3).reduce((sum, c) => sum + Number(c), 0))"""
    )
    assert (text < background) == (scheme == "light")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    context.close()
