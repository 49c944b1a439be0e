"""Shared fixtures: opt-in marks, the built-in sample, settings for a temporary folder, servers."""

import gc
import io
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from http.server import HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import unquote
from uuid import uuid4

import fsspec
import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from prefect_server import Server

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.sources.sample.sample import write_sample

pytest_plugins = ["drawn_predictions", "prefect_fixtures", "selection"]

AZURITE_ACCOUNT = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;BlobEndpoint={}/devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeks"
    "oGMGw=="
)
"""Connection string of Azurite's default account, whose key is public."""
# A shell ignores SIGINT for background jobs, and child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Example durations vary with the load of the machine.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
REAL_DATA = Path(__file__).parents[2] / "shared/data"
OPT_IN = {
    "browser": "opens pages in Chromium: use --run-browser",
    "slow": "starts machines, servers or whole runs: use --run-slow",
    "nightly": "more cases of a slow test: use --run-nightly",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="FOLDER", help="keep browser screenshots")
    parser.addoption(
        "--gpu-dry-run", action="store_true",
        help="run tests marked gpu on the CPU at toy sizes, which checks the tests",
    )  # fmt: skip
    for mark in OPT_IN:
        parser.addoption(f"--run-{mark}", action="store_true", help=f"also run tests marked {mark}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed torch, so that models do not depend on the tests that ran before."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def check_logging_handlers() -> Iterator[None]:
    """Fail if a test leaves a rank's warning handler, which prints to standard output."""
    yield
    root = logging.getLogger()
    left = [each for each in root.handlers if type(each).__module__ == "pets_core.runtime.rank"]
    for handler in left:
        root.removeHandler(handler)
    assert not left, "worker.work changed the logging of the process of the tests"


def pytest_configure(config: pytest.Config) -> None:
    """Divide the cores among the pytest-xdist processes before they start.

    Two processes that each use all cores take ten times as long.
    """
    num_processes = config.getoption("numprocesses", None)
    if num_processes:
        num_threads = max((os.cpu_count() or 1) // num_processes, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {m: why for m, why in OPT_IN.items() if not config.getoption(f"--run-{m}")}
    if not REAL_DATA.is_dir():
        reasons["real_data"] = f"{REAL_DATA} does not exist"
    is_dry = config.getoption("--gpu-dry-run")
    if any(item.get_closest_marker("gpu") for item in items) and not (is_dry or _has_gpu()):
        reasons["gpu"] = "there is no CUDA device"
    for item in items:
        for mark, why in reasons.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=why))


def pytest_collectstart() -> None:
    """Pause garbage collection, which takes a fifth of the time of the imports."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which takes 0.3 s each time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> object:
    return (yield _share_environment())


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> object:
    return (yield _share_environment())


def _share_environment() -> None:
    """Remove the test's name from the environment, so that all stages share a fork server."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photos, for tests marked real_data."""
    return REAL_DATA


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeOnce:
    """Create a folder once for all processes of a test run. Tests must not write to it."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent

    def make_folder(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not folder.exists():
                unfinished = root / f"{name}-unfinished"
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return make_folder


@pytest.fixture(scope="session")
def drawn_sample(make_once: MakeOnce) -> Path:
    """Folder of the built-in sample with 4 photos per breed."""
    return make_once("sample", partial(write_sample, photos_per_breed=4))


@pytest.fixture(scope="session")
def prefect_home(make_once: MakeOnce) -> Path:
    """Prefect home with an initialised database, to be copied."""

    def set_up(folder: Path) -> None:
        with Server(folder).started():
            pass

    return make_once("prefect-home", set_up) / "prefect"


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
    """Function that draws a small JPEG of noise, seeded by its number."""

    def draw(number: int = 0, width: int = 24, height: int = 16) -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()

    return draw


@pytest.fixture(scope="session")
def write_archive() -> Callable[[Path, list[tuple[str, bytes]]], None]:
    """Function that writes a tar.gz of (name, content) pairs in the given order."""

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
    """Function that writes both Oxford archives from (file name, photo) pairs and list files."""

    def write(folder: Path, photos: list[tuple[str, bytes]], lists: Mapping[str, str]) -> None:
        write_archive(folder / "images.tar.gz", [(f"images/{n}", data) for n, data in photos])
        write_archive(
            folder / "annotations.tar.gz",
            [(f"annotations/{name}", text.encode()) for name, text in lists.items()],
        )

    return write


@pytest.fixture(scope="session")
def write_folder(jpeg) -> Callable[..., Path]:
    """Function that writes one folder per class with `counts[class]` photos each."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        for index, (label, count) in enumerate(counts.items()):
            (root / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (root / label / f"{number}.jpg").write_bytes(jpeg(100 * index + number))
        return root

    return write


@pytest.fixture
def faulty_agent(monkeypatch) -> str:
    """Use an agent whose rank 1 cannot read the champion; return the error's message."""
    from pets_core.runtime import launcher

    monkeypatch.setattr(launcher, "_AGENT", "faulty_agent:run_stage")
    helpers = str(Path(__file__).parent / "helpers")
    paths = [helpers, *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return "the store is unavailable"


@pytest.fixture
def rank_in_this_process() -> Iterator[None]:
    """Reset the process-wide state of Accelerate before and after the test."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def shown(monkeypatch) -> Callable[..., dict[str, object]]:
    """Function that runs a publishing task and returns its artifacts by key, in order."""
    from tasks.artifacts import publisher as publisher_module

    def publish(task, *arguments: object) -> dict[str, object]:
        found: dict[str, object] = {}
        for kind in ("markdown", "table"):
            monkeypatch.setattr(
                publisher_module, f"create_{kind}_artifact",
                lambda key, kind=kind, **content: found.update({key: content[kind]}),
            )  # fmt: skip
        monkeypatch.setattr(publisher_module, "get_run_logger", lambda: logging.getLogger("run"))
        task.fn(*arguments)
        return found

    return publish


TakeRequests = Callable[[], list[tuple[str, str]]]


class StoreServer(NamedTuple):
    """An object store on this machine.

    Attributes:
        options: fsspec options for the connection.
        take_requests: Returns method and path ("/bucket/folder/file") of each request since the
            last call.
    """

    options: dict[str, str]
    take_requests: TakeRequests


class Bucket(NamedTuple):
    """An empty bucket (on Azure a container); for `take_requests` see StoreServer."""

    url: str
    take_requests: TakeRequests


def _take_all(log: list[tuple[str, str]]) -> list[tuple[str, str]]:
    entries = log[:]
    del log[: len(entries)]
    return entries


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Function that starts a web server of a handler class and keywords, and returns its URL."""
    with ExitStack() as running:

        def start(handler: type, **keywords: object) -> str:
            quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, **keywords))
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            for stop in (server.server_close, thread.join, server.shutdown):
                running.callback(stop)
            return f"http://127.0.0.1:{server.server_port}"

        yield start
    # fsspec caches one instance with its connections.
    fsspec.filesystem("http").clear_instance_cache()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[StoreServer]:
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    log: list[tuple[str, str]] = []
    app = server._server.app

    def logged(environment, start_response):
        log.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        return app(environment, start_response)

    server._server.app = logged
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "testing", "secret": "testing"}
    yield StoreServer(options, partial(_take_all, log))
    server.stop()


@pytest.fixture(scope="session")
def gs_server() -> Iterator[StoreServer]:
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    log: list[tuple[str, str]] = []

    class LoggedStorage(emulator.Storage):
        def get_file(self, bucket_name, file_name, show_error=True):
            log.append(("GET", f"/{bucket_name}/{file_name}"))
            return super().get_file(bucket_name, file_name, show_error)

        def create_file(self, bucket_name, file_name, *arguments, **keywords):
            log.append(("PUT", f"/{bucket_name}/{file_name}"))
            super().create_file(bucket_name, file_name, *arguments, **keywords)

    class Handler(emulator.RequestHandler):
        # Unbuffered error responses break the pipe if the client closes the connection early.
        wbufsize = -1

        def do_DELETE(self):  # noqa: N802 - http.server's name for it
            # The emulator does not support cancelling an upload.
            if self.path.startswith("/upload/"):
                self.send_response(499)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_DELETE()

    class Server(HTTPServer):
        # The default of 5 makes further simultaneous connections wait over a second.
        request_queue_size = 128

    storage = LoggedStorage(use_memory_fs=True)
    server = Server(("127.0.0.1", 0), partial(Handler, storage))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    options = {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "token": "anon"}
    yield StoreServer(options, partial(_take_all, log))
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def abfs_server() -> Iterator[StoreServer]:
    pytest.importorskip("adlfs")
    program = shutil.which("azurite-blob")
    if not program:
        pytest.skip("azurite-blob is not on PATH: npm install azurite")
    process = subprocess.Popen(
        [program, "--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry",
         "--skipApiVersionCheck"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        endpoint = _azurite_endpoint(process.stdout)
        options = {"connection_string": AZURITE_ACCOUNT.format(endpoint)}
        yield StoreServer(options, partial(_read_azurite_requests, process.stdout, endpoint))
    finally:
        # On SIGTERM it would wait for the open connections of this process.
        process.kill()
        process.wait()
        process.stdout.close()


def _azurite_endpoint(output: Iterable[str]) -> str:
    for line in output:
        if found := re.search(r"successfully listens on (\S+)", line):
            return found[1]
    raise RuntimeError("azurite-blob ended")


def _read_azurite_requests(output: Iterable[str], endpoint: str) -> list[tuple[str, str]]:
    """Read the log up to a marker request sent here."""
    last = f"/{uuid4().hex}"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(endpoint + last)
    found = (re.search(r'"(\w+) (/[^ ?]*)', line) for line in output)
    requests = ((match[1], unquote(match[2])) for match in found if match)
    until = itertools.takewhile(lambda entry: entry[1] != last, requests)
    return [(method, path.removeprefix("/devstoreaccount1")) for method, path in until]


@pytest.fixture(
    params=[
        "s3",
        pytest.param("gs", marks=pytest.mark.slow),
        pytest.param("abfs", marks=pytest.mark.slow),
    ]
)
def bucket(request, monkeypatch) -> Iterator[Bucket]:
    """An empty bucket, once per kind of object store."""
    kind = request.param
    # Read at the import of gcsfs, which otherwise queries Google for the type of a bucket.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server: StoreServer = request.getfixturevalue(f"{kind}_server")
    monkeypatch.setitem(fsspec.config.conf, kind, server.options)
    for name, value in server.options.items():  # for child processes
        monkeypatch.setenv(f"FSSPEC_{kind.upper()}_{name.upper()}", value)
    fs = fsspec.filesystem(kind)
    name = uuid4().hex
    fs.mkdir(name)
    server.take_requests()
    yield Bucket(f"{kind}://{name}", server.take_requests)
    fs.clear_instance_cache()
