"""Model servers of tiny models."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from model_server import Served, run_server, write_photo
from tiny_model import write_tiny_model

from pets.serving.settings import ServeSettings

CLASSES = ("Birman", "Pug", "Sphynx", "Boxer")


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Function that serves a model until the end of the test."""
    with ExitStack() as stack:
        yield lambda model, **settings: stack.enter_context(
            run_server(ServeSettings(model, **{"device": "cpu", **settings}))
        )


@pytest.fixture(scope="session")
def model_url(tmp_path_factory) -> str:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", CLASSES)


@pytest.fixture(scope="module")
def served(model_url) -> Iterator[Served]:
    with run_server(ServeSettings(model_url, device="cpu", max_mb=1, max_images=8)) as running:
        yield running


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    return [write_photo(seed) for seed in range(24)]
