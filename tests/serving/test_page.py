"""The page of the model server in Chromium."""

import base64
from collections.abc import Callable, Iterator

import pytest
from chromium import open_chromium
from model_server import Served, write_photo
from tiny_model import write_tiny_model

pytestmark = pytest.mark.browser
DROP = """async ([data, name]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  const event = new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true});
  document.querySelector("#drop").dispatchEvent(event);
}"""
YELLOW = """() => {
  const canvas = document.querySelector("canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    count += data[i] > 240 && data[i + 1] > 190 && data[i + 1] < 230 && data[i + 2] < 60;
  }
  return count;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with open_chromium() as running:
        yield running


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """Function that opens a server's page; fails on script errors and on other requests."""
    errors: list[str] = []
    contexts = []

    def open_at(served: Served, **viewport: int):
        contexts.append(browser.new_context(viewport=viewport or {"width": 1100, "height": 800}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: check(request.url, served.url))
        page.goto(served.url)
        return page

    def check(url: str, server: str) -> None:
        if not url.startswith((server, "data:", "blob:")):
            errors.append(f"request to {url}")

    yield open_at
    for context in contexts:
        context.close()
    assert errors == []


def drop(page, data: bytes, name: str = "photo.png") -> None:
    page.wait_for_selector("#drop:not([hidden])")
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


def test_dropped_photo_is_predicted_and_explained(open_page, served, photos):
    page = open_page(served)
    drop(page, photos[0])
    (found,) = served.client.post("/predict", content=photos[0]).json()["predictions"]
    page.wait_for_selector("button.toggle")
    assert page.inner_text("h2") == found["label"]
    assert f"{found['probability']:.1%}" in page.inner_text("li")
    map_shown = page.evaluate("document.querySelector('canvas').toDataURL()")
    assert page.evaluate("document.querySelector('canvas').width") == 320, "side of the map"
    page.click("text=Show the photo")
    assert page.inner_text("button.toggle") == "Show the activation map"
    assert page.evaluate("document.querySelector('canvas').width") == 60, "width of the photo"
    page.click("text=Show the activation map")
    assert page.evaluate("document.querySelector('canvas').toDataURL()") == map_shown


def test_unreadable_and_large_files_show_the_reason(open_page, served):
    page = open_page(served, width=390, height=800)
    drop(page, b"<b>no photo</b>", "<img src=x>.txt")
    page.wait_for_selector(".failed")
    assert "not an image" in page.inner_text("li")
    assert "<img src=x>.txt" in page.inner_text("li")
    drop(page, b"\0" * 1_100_000, "large.png")
    page.wait_for_selector("text=larger than 1 MB")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "fits a phone"


@pytest.mark.parametrize(
    ("targets", "numbers"),
    [("box", ("xmin", "ymin", "xmax", "ymax")), ("points", ("x1", "y1", "x2", "y2"))],
)
def test_coordinates_are_drawn_on_the_photo(open_page, serve, tmp_path, targets, numbers):
    url = write_tiny_model(tmp_path / "model", targets=targets, numbers=numbers)
    page = open_page(serve(url))
    drop(page, write_photo(0, 400, 300))
    page.wait_for_selector("text=" + numbers[0])
    page.wait_for_function(f"({YELLOW})() > 20")


def test_token_is_requested_once(open_page, serve, model_url, photos):
    page = open_page(serve(model_url, token="secret"))
    page.fill("#token", "wrong")
    page.click("#login button")
    page.wait_for_selector("text=This is not the token of the server.")
    page.fill("#token", "secret")
    page.click("#login button")
    drop(page, photos[0])
    page.wait_for_selector("button.toggle")
    page.reload()
    page.wait_for_selector("#drop:not([hidden])")
    assert page.is_hidden("#login")
