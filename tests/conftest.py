"""What the tests share: opt-in marks, the drawn sample, settings that fit a temporary folder."""

import io
import logging
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pets_core.config import PipelineConfig
from pets_core.data.sample import write_sample

REAL_DATA = Path(__file__).parents[2] / "shared/data"
OPT_IN = {
    "browser": "opens pages in Chromium: give --run-browser",
    "slow": "takes more than half a minute: give --run-slow",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for mark in OPT_IN:
        parser.addoption(f"--run-{mark}", action="store_true", help=f"also run tests marked {mark}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {m: why for m, why in OPT_IN.items() if not config.getoption(f"--run-{m}")}
    if not REAL_DATA.is_dir():
        reasons["real_data"] = f"{REAL_DATA} is not here"
    if any(item.get_closest_marker("gpu") for item in items) and not _has_gpu():
        reasons["gpu"] = "there is no CUDA device"
    for item in items:
        for mark, why in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photos; for tests marked real_data."""
    return REAL_DATA


@pytest.fixture(scope="session")
def drawn_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in sample, 4 photos a breed, drawn once; read-only by agreement."""
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    write_sample(folder, photos_per_breed=4)
    return folder


@pytest.fixture
def small_config(tmp_path: Path, drawn_sample: Path) -> PipelineConfig:
    """Settings with store and cache in `tmp_path` and the drawn sample as the source."""
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(drawn_sample), "sample_photos_per_breed": 4},
            "ingest": {"num_workers": 1},
        }
    )


@pytest.fixture(scope="session")
def jpeg() -> Callable[..., bytes]:
    """Draw a small JPEG of noise; another number, another photo."""

    def draw(number: int = 0, width: int = 24, height: int = 16) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def write_archive() -> Callable[[Path, list[tuple[str, bytes]]], None]:
    """Write a tar.gz of (name, content) in the order given."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    return write


@pytest.fixture(scope="session")
def write_oxford(write_archive) -> Callable[..., None]:
    """Write both archives from photos by file name and lists by name."""

    def write(folder: Path, photos: list[tuple[str, bytes]], lists: Mapping[str, str]) -> None:
        write_archive(folder / "images.tar.gz", [(f"images/{n}", data) for n, data in photos])
        write_archive(
            folder / "annotations.tar.gz",
            [(f"annotations/{name}", text.encode()) for name, text in lists.items()],
        )

    return write


@pytest.fixture(scope="session")
def write_folder(jpeg) -> Callable[..., Path]:
    """Write a folder a class, `counts[class]` photos in each."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        for place, (label, count) in enumerate(counts.items()):
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (root / label / f"{number}.jpg").write_bytes(jpeg(100 * place + number))
        return root

    return write


@pytest.fixture(scope="session")
def s3_server():
    """A server that speaks S3, and the log of what it was asked."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    log: list[tuple[str, str]] = []
    answer = server._server.app

    def logged(environment, start_response):
        log.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        return answer(environment, start_response)

    server._server.app = logged
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}", log
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """An empty bucket, and what has been asked of the server since."""
    url, log = s3_server
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": url})
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", url)  # the same for processes it starts
    fs = fsspec.filesystem("s3")
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")
    fs.mkdir(name)
    log.clear()
    yield f"s3://{name}", log
    fs.clear_instance_cache()
