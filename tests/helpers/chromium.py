"""Chromium for tests of pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["open_chromium"]

_PATH = Path("/usr/bin/chromium")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_chromium() -> Iterator["Browser"]:
    """Run Chromium until the end of the block; skip the test if it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not _PATH.exists():
        pytest.skip(f"{_PATH} is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(_PATH), args=_FLAGS)
        yield browser
        browser.close()
