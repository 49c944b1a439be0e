"""Ingests from remote sources: a web server with injected failures, and object stores."""

import tarfile
import traceback
from collections import Counter
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest import shards
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.plan import plan_dataset
from pets_core.data.ingest.shards import write_shard
from pets_core.data.sources.files import BATCH_FILES, FolderFiles, ListedFiles
from pets_core.data.sources.sources import open_source
from pets_core.data.versions import list_versions, verify
from pets_core.errors import PetsError
from pets_core.maintenance.retention import collect_garbage
from pets_core.storage import download


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch):
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(download, "_MAX_BACKOFF_SECONDS", 0.01)


def config(tmp_path, url, store=None, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": store or str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"num_workers": 2},
        }
    )


class FailingSite(SimpleHTTPRequestHandler):
    """Python's web server with injected failures; it lists folders and ignores Range.

    For each path, the first HEAD and the first GET respond 503, and the second GET is truncated
    halfway.
    """

    fails = False
    """Whether failures are injected."""
    broken: frozenset[str] = frozenset()
    """Paths whose response is always 503."""
    seen: Counter
    failed: list[str]
    """`METHOD path` of each failed request."""

    def do_HEAD(self):
        if not self._fails():
            super().do_HEAD()

    def do_GET(self):
        if not self._fails():
            super().do_GET()

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data[: len(data) // 2] if self.is_truncated else data)

    def _fails(self) -> bool:
        # Decided before the client can send its next request.
        request = f"{self.command} {self.path}"
        self.seen[request] += 1
        is_failing = (self.fails and self.seen[request] == 1) or self.path in self.broken
        self.is_truncated = self.fails and self.command == "GET" and self.seen[request] == 2
        if is_failing or self.is_truncated:
            self.failed.append(request)
        if is_failing:
            self.send_error(503)
        return is_failing


@pytest.fixture
def site(tmp_path, serve):
    """A server of the folder tmp_path/www."""

    class Site(FailingSite):
        seen, failed = Counter(), []

    folder = tmp_path / "www"
    folder.mkdir()
    Site.url, Site.folder = serve(Site, directory=folder), folder
    return Site


def write_tar(path: Path, folder: Path, mode: str = "w:gz") -> None:
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.rglob("*.jpg")):
            tar.add(file, file.relative_to(folder))


@pytest.mark.parametrize("fails", [False, True])
def test_archive_is_ingested_over_http(tmp_path, site, write_folder, fails):
    write_tar(site.folder / "mine.tar.gz", write_folder(tmp_path / "mine", {"a": 5, "b": 5}))
    local = ingest(config(tmp_path, tmp_path / "mine", str(tmp_path / "other")))
    site.fails = fails
    manifest = ingest(config(tmp_path, f"{site.url}/mine.tar.gz"))
    assert manifest.fingerprint == local.fingerprint
    # fsspec requests the size by HEAD, or by GET if HEAD fails. The archive is truncated once.
    requests = ["HEAD /mine.tar.gz", "GET /mine.tar.gz", "GET /mine.tar.gz"]
    assert site.failed == (requests if fails else [])


@pytest.mark.parametrize("fails", [False, True])
def test_published_archives_are_ingested_over_http(tmp_path, site, drawn_sample, fails):
    for name in ("images.tar.gz", "annotations.tar.gz"):
        (site.folder / name).write_bytes((drawn_sample / name).read_bytes())
    site.fails = fails
    manifest = ingest(config(tmp_path, site.url, name="pets"))
    assert manifest.num_rows == 148
    assert manifest.quarantine_reasons == {}


@pytest.mark.parametrize("fails", [False, True])
def test_folder_is_ingested_over_http(tmp_path, site, write_folder, fails):
    """Failures of the server cause retries and lose no photo."""
    folder = write_folder(site.folder / "mine", {"maine coon": 4, "50% pug": 4, "b": 4})
    (folder / "b/# 1 & 2?.jpg").write_bytes((folder / "b/0.jpg").read_bytes())
    local = ingest(config(tmp_path, folder, str(tmp_path / "other")))
    site.fails = fails
    source = open_source(config(tmp_path, f"{site.url}/mine"))
    assert list(source.catalogue().vocabulary) == ["50% pug", "b", "maine coon"]
    assert [e.path for e in source.files.entries()] == sorted(source.catalogue().photos)
    manifest = ingest(config(tmp_path, f"{site.url}/mine"))
    assert manifest.fingerprint == local.fingerprint
    assert manifest.num_rows == 13


def test_planning_lists_every_folder_once(tmp_path, site, write_folder, monkeypatch):
    """The root folder is listed once more to detect the type of the source."""
    write_folder(site.folder / "mine", {"a": 5, "b": 5})
    requests = Counter()

    def get(handler, inner=site.do_GET):
        requests[handler.path] += 1
        inner(handler)

    monkeypatch.setattr(site, "do_GET", get)
    # Tasks that write shards open the source as well.
    open_source(config(tmp_path, f"{site.url}/mine"))
    assert requests["/mine/a/"] + requests["/mine/b/"] == 1
    requests.clear()
    plan_dataset(config(tmp_path, f"{site.url}/mine"))
    assert (requests["/mine/a/"], requests["/mine/b/"]) == (1, 1)


def test_new_photo_in_a_folder_over_http_is_ingested(tmp_path, site, write_folder, jpeg):
    """Version tags of existing photos do not change."""
    folder = write_folder(site.folder / "mine", {"a": 6, "b": 6})
    settings = config(tmp_path, f"{site.url}/mine")
    before = {e.path: e.version_tag for e in FolderFiles(f"{site.url}/mine").entries()}
    first = ingest(settings)
    (folder / "a/new.jpg").write_bytes(jpeg(999))
    after = {e.path: e.version_tag for e in FolderFiles(f"{site.url}/mine").entries()}
    assert after.keys() - before.keys() == {"a/new.jpg"}
    assert {path: after[path] for path in before} == before
    assert ingest(settings).num_rows == first.num_rows + 1
    assert ingest(settings).num_rows == first.num_rows + 1


def test_broken_server_raises_an_error_and_loses_no_photo(tmp_path, site, write_folder):
    """A failed request raises an error; it is not treated as a missing folder or photo."""
    write_folder(site.folder / "mine", {"a": 4, "b": 4})
    for path in ("/mine/b", "/mine/b/2.jpg", "/mine/images.tar.gz", "/mine"):
        site.broken = frozenset({path})
        with pytest.raises(PetsError, match=r"cannot be (listed|reached).*503"):
            ingest(config(tmp_path, f"{site.url}/mine"))
    assert list_versions(str(tmp_path / "store")) == []


def test_next_batch_is_fetched_during_inspection(tmp_path, site, write_folder, monkeypatch):
    """The first inspection waits for a request of the next batch."""
    write_folder(site.folder / "mine", {"a": 60, "b": 60})
    settings = config(tmp_path, f"{site.url}/mine")
    plan = plan_dataset(settings)
    shard = max(plan.pending, key=lambda shard: shard.num_photos)
    assert shard.num_photos > 2 * BATCH_FILES
    requested, next_batch, fetched_ahead = [], Event(), []

    def get(handler, inner=site.do_GET):
        requested.extend([handler.path] if handler.path.endswith(".jpg") else [])
        if len(requested) > BATCH_FILES:
            next_batch.set()
        inner(handler)

    def record_inspection(data, inner=shards.inspect):
        fetched_ahead.append(next_batch.wait(timeout=0 if fetched_ahead else 600))
        assert len(requested) <= len(fetched_ahead) + 2 * BATCH_FILES, (
            "two batches in memory at most"
        )
        return inner(data)

    monkeypatch.setattr(site, "do_GET", get)
    monkeypatch.setattr(shards, "inspect", record_inspection)
    assert write_shard(settings, plan, shard).num_read == shard.num_photos == len(requested)
    assert fetched_ahead[0]


def test_self_links_in_an_apache_listing_are_ignored(tmp_path, site, write_folder):
    folder = write_folder(site.folder / "mine", {"a": 4, "b": 4})
    for directory in (folder, folder / "a", folder / "b"):
        links = [p.name + "/" * p.is_dir() for p in sorted(directory.iterdir())]
        html = "".join(f'<a href="{link}">x</a>' for link in ["?C=N;O=D", "/mine/", *links])
        (directory / "index.html").write_text(html)
    paths = [e.path for e in FolderFiles(f"{site.url}/mine").entries()]
    assert paths == [f"{label}/{n}.jpg" for label in "ab" for n in range(4)]


def test_remote_archive_checksum_is_verified(tmp_path, site, write_folder):
    write_tar(site.folder / "mine.tar.gz", write_folder(tmp_path / "mine", {"a": 5, "b": 5}))
    checksums = {"mine.tar.gz": "sha256:00"}
    with pytest.raises(PetsError, match=r"mine\.tar\.gz: its sha256 is .* expected 00"):
        ingest(config(tmp_path, f"{site.url}/mine.tar.gz", checksums=checksums))
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_store_contains_no_secret_of_a_signed_url(tmp_path, site, write_folder):
    write_tar(site.folder / "mine.tar.gz", write_folder(tmp_path / "mine", {"a": 20, "b": 20}))
    manifest = ingest(config(tmp_path, f"{site.url}/mine.tar.gz?token=seCret42"))
    assert (manifest.name, manifest.num_rows) == ("mine", 40)
    assert manifest.source_url == f"{site.url}/mine.tar.gz"
    files = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert [p for p in files if "seCret42" in str(p) or b"seCret42" in p.read_bytes()] == []


def failing_signed_sources(site):
    """Yield settings of a failing source and a pattern of its error."""
    (site.folder / "bad.tar.gz").write_bytes(b"\x1f\x8b and no more")
    (site.folder / "bad.csv").write_bytes(b"a,b\n1,2\n")
    (site.folder / "busy.tar").write_bytes(b"")
    signed = f"{site.url}/busy.jpg?token=seCret42"
    (site.folder / "photos.csv").write_text(f"image,label\n{signed},a\n")
    site.broken = frozenset({"/busy.tar?token=seCret42", "/busy.jpg?token=seCret42"})
    yield {"url": f"{site.url}/none.tar?token=seCret42"}, "does not exist"
    yield {"url": f"{site.url}/none?token=seCret42"}, "no such|cannot be reached"
    yield {"url": f"{site.url}/busy.tar?token=seCret42"}, "cannot be reached.*503"
    yield {"url": f"{site.url}/bad.tar.gz?token=seCret42"}, "truncated or damaged"
    yield {"url": f"{site.url}/bad.csv?token=seCret42"}, "no such column"
    yield {"url": f"{site.url}/photos.csv"}, "cannot be reached.*503"
    checksums = {"bad.csv": "md5:00"}
    yield {"url": f"{site.url}/bad.csv?token=seCret42", "checksums": checksums}, "expected 00"


def test_errors_contain_no_secret_of_a_signed_url(tmp_path, site):
    """Neither the message nor the traceback, which Prefect logs, contains the secret."""
    for source, message in failing_signed_sources(site):
        with pytest.raises(PetsError, match=message) as caught:
            ingest(config(tmp_path, **source))
        assert "seCret42" not in "".join(traceback.format_exception(caught.value))


def test_photo_errors_contain_no_secret_of_a_signed_url(site):
    (site.folder / "photo.jpg").write_bytes(b"photo")
    signed = f"{site.url}/photo.jpg?token=seCret42"
    urls = {"photo": signed, "none": f"{site.url}/none.jpg?token=seCret42"}
    files = ListedFiles(urls, lambda path: storage.filesystem(urls[path]))
    assert [entry.skip_reason for entry in files.entries()] == ["", "missing"]
    site.broken = frozenset({"/photo.jpg?token=seCret42"})
    for operation in (lambda: list(files.read(["photo"])), lambda: storage.read_bytes(signed),
                lambda: list(files.read(["none"]))):  # fmt: skip
        with pytest.raises(PetsError, match=r"cannot be read|does not exist") as caught:
            operation()
        assert "seCret42" not in "".join(traceback.format_exception(caught.value))


def test_missing_source_over_http_raises_pets_error(tmp_path, site):
    for name in ("none", "none.zip", "none.csv"):
        with pytest.raises(PetsError, match=rf"/{name}.*(no such|does not exist)"):
            ingest(config(tmp_path, f"{site.url}/{name}"))


def upload(folder: Path, url: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{url}/{path.relative_to(folder)}", path.read_bytes())


def requests_below(folder: str, requested, method="GET") -> list[str]:
    """Objects in a folder that were requested with this method."""
    prefix = f"/{folder.split('://')[1]}/"
    return sorted(
        p.removeprefix(prefix) for m, p in requested if m == method and p.startswith(prefix)
    )


def test_photos_in_a_bucket_are_ingested_into_a_bucket(tmp_path, bucket, write_folder, jpeg):
    photos, store = f"{bucket.url}/photos", f"{bucket.url}/store"
    local = write_folder(tmp_path / "photos", {"a": 6, "maine coon": 6})
    upload(local, photos)
    settings = config(tmp_path, photos, store)
    bucket.take_requests()
    first = ingest(settings)
    requested = bucket.take_requests()
    assert first.fingerprint == ingest(config(tmp_path, local)).fingerprint
    assert first.url.startswith(f"{store}/datasets/photos/")
    assert [error for _, error in verify(first)] == [""] * sum(
        len(info.shards) for info in first.splits.values()
    )
    assert len(requests_below(photos, requested)) == 12
    shards = {shard.path for info in first.splits.values() for shard in info.shards}
    assert set(requests_below(f"{store}/datasets/photos/shards", requested, "PUT")) == shards

    bucket.take_requests()
    assert ingest(settings) == first
    requested = bucket.take_requests()
    assert requests_below(photos, requested) == []
    assert requests_below(f"{store}/datasets/photos/shards", requested, "PUT") == []

    storage.write_bytes(f"{photos}/a/new.jpg", jpeg(999))
    bucket.take_requests()
    grown = ingest(settings)
    assert requests_below(photos, bucket.take_requests()) == ["a/new.jpg"]
    assert (grown.num_rows, grown.parent) == (13, first.fingerprint)

    storage.write_bytes(f"{photos}/a/new.jpg", jpeg(998))
    bucket.take_requests()
    assert ingest(settings).fingerprint != grown.fingerprint
    assert requests_below(photos, bucket.take_requests()) == ["a/new.jpg"]
    assert [m.num_rows for m in list_versions(store)] == [12, 13, 13]


def test_garbage_in_a_bucket_is_collected(tmp_path, bucket, write_folder, jpeg):
    photos, store = f"{bucket.url}/photos", f"{bucket.url}/store"
    upload(write_folder(tmp_path / "photos", {"a": 6, "b": 6}), photos)
    settings = config(tmp_path, photos, store)
    old = ingest(settings)
    storage.write_bytes(f"{photos}/a/new.jpg", jpeg(999))
    new = ingest(settings)
    stray = f"{store}/datasets/photos/shards/stray.parquet"
    storage.write_bytes(stray, b"stray")
    # Object stores report the age of their files.
    assert collect_garbage(store, grace_seconds=600, delete=True) == []
    everything_is_old = -600
    assert stray in [g.url for g in collect_garbage(store, grace_seconds=everything_is_old)]
    assert storage.exists(stray)
    removed = collect_garbage(store, keep=1, delete=True, grace_seconds=everything_is_old)
    assert {stray, f"{old.url}/manifest.json"} <= {item.url for item in removed}
    assert not any(storage.exists(item.url) for item in removed)
    assert list_versions(store) == [new]
    assert {error for _, error in verify(new)} == {""}
    assert collect_garbage(store, keep=1, grace_seconds=everything_is_old) == []


def test_archives_in_a_bucket_are_ingested(tmp_path, bucket, drawn_sample, small_config):
    pets = f"{bucket.url}/pets"
    upload(drawn_sample, pets)
    settings = config(tmp_path, pets, f"{bucket.url}/store", sample_photos_per_breed=4)
    manifest = ingest(settings)
    assert manifest.fingerprint == ingest(small_config).fingerprint
    assert set(requests_below(pets, bucket.take_requests())) == {
        "annotations.tar.gz",
        "images.tar.gz",
    }
    assert ingest(settings) == manifest
    assert requests_below(pets, bucket.take_requests()) == []


def test_table_in_a_bucket_is_ingested(tmp_path, bucket, write_folder):
    url = bucket.url
    local = write_folder(tmp_path / "photos", {"a": 4, "b": 4})
    upload(local, f"{url}/photos")
    paths = [f"{label}/{n}.jpg" for label in "ab" for n in range(4)]
    table_paths = [f"{url}/photos/{paths[0]}", *paths[1:], "a/none.jpg"]
    rows = "".join(
        f"{entry},{path[0]}\n" for entry, path in zip(table_paths, [*paths, "a"], strict=True)
    )
    storage.write_bytes(f"{url}/photos/table.csv", f"image,label\n{rows}".encode())
    settings = config(tmp_path, f"{url}/photos/table.csv", f"{url}/store")
    settings = settings.model_copy(
        update={"ingest": settings.ingest.model_copy(update={"max_quarantined_fraction": 0.2})}
    )
    manifest = ingest(settings)
    assert (manifest.num_rows, manifest.quarantine_reasons) == (8, {"missing": 1})


def test_missing_source_in_a_bucket_raises_pets_error(tmp_path, bucket):
    url = bucket.url
    for name in ("none", "none.zip", "none.csv"):
        with pytest.raises(PetsError, match=rf"/{name}.*(no such|does not exist)"):
            ingest(config(tmp_path, f"{url}/{name}", f"{url}/store"))
