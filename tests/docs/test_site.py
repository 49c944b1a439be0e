"""The documentation site: builds without warnings, links, no requests to other hosts, widths."""

import functools
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from chromium import open_chromium

ROOT = Path(__file__).parents[2]
HANG_MS = 600_000
PARTS = ["Home", "Tutorial", "How-to guides", "Reference", "Explanation"]
PROJECT_PAGES = ("overview", "contributing", "changelog")


@pytest.fixture(scope="module")
def site(make_once) -> Path:
    """The site, built as `make docs` builds it."""

    def build(folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"],
            cwd=ROOT,
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return make_once("docs-site", build) / "site"


class References(HTMLParser):
    """URLs that a browser loads when it shows a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video") and named.get("src"):
            self.urls.append(named["src"])
        if tag == "link" and named.get("rel") not in ("prev", "next", "canonical"):
            self.urls.append(named["href"])


def test_every_page_is_in_the_site(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    assert len(pages) > 20
    missing = [page for page in pages if not (site / f"{page}.html").is_file()]
    assert missing == []
    assert (site / "index.html").is_file()
    assert all((site / f"project/{page}.html").is_file() for page in PROJECT_PAGES)
    assert not list(site.rglob("*.py"))


def test_navigation_has_the_four_parts(site):
    page = (site / "index.html").read_text()
    tabs = re.search(r'<nav class="md-tabs".*?</nav>', page, re.S)[0]
    assert re.findall(r"([A-Z][\w -]+?)\s*</a>", tabs) == PARTS


def test_public_names_and_records_are_documented(site):
    import pets

    page = (site / "api.html").read_text()
    names = {f"pets.{name}" for name in pets.__all__} - {"pets.datasets"}
    for name in names | {"pets.datasets.open", "pets.Run.most_confused", "pets.Model.predict"}:
        assert f'id="{name}"' in page, name


def test_pages_load_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    urls = {url for page in pages for url in References(page.read_text()).urls}
    assert any(url.endswith(".css") for url in urls)
    assert any(url.endswith(".js") for url in urls)
    assert [url for url in urls if "//" in url] == []
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert not [style for style in styles if re.search(r"(url\(|@import)\W*(https?:)?//", style)]


@pytest.fixture
def build_small(tmp_path):
    """Function that builds one page, and those of the project, with the settings of the site."""
    mkdocs_build = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# Project\n")
    (tmp_path / "docs").mkdir()
    for name in ("hooks.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")

    def build(page: str, **others: str) -> Path:
        config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
        projects = [f"project/{name}.md" for name in PROJECT_PAGES]
        config |= {"nav": ["README.md", *projects], "plugins": []}
        (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
        (tmp_path / "docs/README.md").write_text(f"# Home\n\n## Part one\n\n{page}\n")
        for name, text in others.items():
            (tmp_path / "docs" / f"{name}.md").write_text(text)
        mkdocs_build.build(load_config(str(tmp_path / "mkdocs.yml"), strict=True))
        return tmp_path / "site"

    return build


def test_links_to_files_outside_docs_lead_to_pages_of_the_site(build_small, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("print(1)\n")
    site = build_small(
        "[a](#part-one) [b](../CONTRIBUTING.md#project) [c](../code/a.py) [d](../code)"
    )
    page = (site / "index.html").read_text()
    assert 'href="project/contributing.html#project"' in page
    assert 'href="source/code/a.py.html"' in page
    assert 'href="source/code.html"' in page
    assert "print" in (site / "source/code/a.py.html").read_text()
    assert "a.py" in (site / "source/code.html").read_text()


@pytest.mark.parametrize(
    ("page", "others", "message"),
    [
        ("[a](#part-two)", {}, "no such anchor"),
        ("[a](../CHANGELOG.md#nothing)", {}, "does not contain an anchor"),
        ("[a](nothing.md)", {}, "not found among documentation files"),
        ("![a](nothing.png)", {}, "not found among documentation files"),
        ("[a](../nothing.py)", {}, "leads to no file"),
        ("Text", {"other": "# Not in the navigation\n"}, 'not included in the "nav"'),
    ],
    ids=["own-anchor", "anchor", "page", "image", "file", "navigation"],
)
def test_broken_links_and_lost_pages_stop_the_build(build_small, caplog, page, others, message):
    from click import ClickException

    with caplog.at_level(logging.WARNING), pytest.raises(ClickException) as info:
        build_small(page, **others)
    assert message in caplog.text + str(info.value)


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Address of the site on a server on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_window_and_request_only_the_site(address, width, request):
    names = ["index", "tutorial", "settings", "cli", "api", "file-formats", "project/overview"]
    requested, failed = set(), []
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda each: requested.add(each.url))
        page.on("response", lambda each: each.status < 400 or failed.append(each.url))
        for name in names:
            page.goto(f"{address}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") == width, name
            if folder := request.config.getoption("--screenshots"):
                page.screenshot(path=f"{folder}/docs-{name.replace('/', '-')}-{width}.png")
        page.goto(f"{address}/index.html")
        if width < 1000:
            page.click("label.md-header__button[for=__search]")
        # The search reacts to keys, and to the index when it is loaded; `fill` presses no key.
        page.locator("input.md-search__input").press_sequentially("quarantine")
        page.wait_for_selector(".md-search-result__item", timeout=HANG_MS)
    assert len(requested) > len(names)
    assert [url for url in requested if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
