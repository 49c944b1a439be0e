"""Cache of decoded photos: exact pixels, built once, written atomically."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.ingest.images import decode
from pets_core.data.loading import decoded
from pets_core.data.loading.decoded import DecodedPhotos, open_decoded
from pets_core.errors import PetsError
from pets_core.storage.cache import UNUSED_DAYS

SIZE = 24


@pytest.fixture
def manifest(tmp_path, write_folder):
    url = write_folder(tmp_path / "mine", {"a": 130, "b": 130})
    return ingest(
        PipelineConfig.model_validate(
            {"store": str(tmp_path / "store"), "source": {"url": str(url)}}
        )
    )


@pytest.fixture
def open_split(manifest, tmp_path):
    def open_it(split="train", size=SIZE, limit_gib=1.0, **keywords):
        cache = str(tmp_path / "cache")
        return open_decoded(manifest, split, size, cache_dir=cache, limit_gib=limit_gib, **keywords)

    return open_it


def cache_files(tmp_path) -> list[Path]:
    """Cache files except locks."""
    return [p for p in (tmp_path / "cache/decoded").iterdir() if p.suffix != ".lock"]


def test_cached_pixels_equal_decode(open_split, manifest, tmp_path):
    for split, info in manifest.splits.items():
        photos = open_split(split)
        assert len(photos) == info.num_rows == len(set(photos.ids))
        assert photos.pixels.shape == (info.num_rows, SIZE, SIZE, 3)
        for pixels, label, photo_id in zip(photos.pixels, photos.targets, photos.ids, strict=True):
            data = (tmp_path / "mine" / photo_id).read_bytes()
            np.testing.assert_array_equal(pixels, decode(data, SIZE))
            assert manifest.vocabulary[label].name == photo_id.split("/")[0]


def test_cached_pixels_are_read_only(open_split):
    with pytest.raises(ValueError, match="read-only"):
        open_split().pixels[0] = 0


def test_cache_is_reused(open_split, monkeypatch):
    first = open_split()
    monkeypatch.setattr(decoded, "decode", None)
    again = open_split()
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.ids == again.ids


def test_unused_cache_files_are_removed(open_split, tmp_path):
    unused_since = time.time() - 86_400 * (UNUSED_DAYS + 1)
    for size in (8, 9):
        open_split(size=size)
    for path in cache_files(tmp_path):
        os.utime(path, (unused_since, unused_since))
    open_split(size=8)
    open_split(size=10)
    sizes = {path.stem.split("-")[-2] for path in cache_files(tmp_path)}
    assert sizes == {"8", "10"}
    assert len(cache_files(tmp_path)) == 6


def test_each_size_has_its_own_file(open_split):
    assert open_split(size=8).pixels.shape[1:] == (8, 8, 3)
    assert open_split(size=9).pixels.shape[1:] == (9, 9, 3)


def test_each_form_of_a_square_has_its_own_file(open_split, manifest, tmp_path):
    squished, cropped = open_split(), open_split(resize="crop")
    name = cropped.ids[0]
    data = (tmp_path / "mine" / name).read_bytes()
    np.testing.assert_array_equal(cropped.pixels[0], decode(data, SIZE, "crop"))
    assert not np.array_equal(cropped.pixels, squished.pixels)
    encoded = open_split(resize="crop", limit_gib=0.0)
    rows = np.arange(len(encoded))
    np.testing.assert_array_equal(encoded.read(rows), cropped.pixels)


def test_progress_is_reported(open_split, manifest):
    reports = []
    open_split(on_progress=reports.append)
    total = manifest.splits["train"].num_rows
    assert [progress.done for progress in reports] == [128, total]
    assert {(p.stage, p.total, p.unit) for p in reports} == {("decode train", total, "photos")}


def test_read_returns_the_requested_rows_in_order(open_split):
    photos = open_split()
    rows = np.array([7, 0, 200, 3, 7])
    np.testing.assert_array_equal(photos.read(rows), photos.pixels[rows])
    assert photos.read(rows[:0]).shape == (0, SIZE, SIZE, 3)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.999, 1.0])
def test_photos_beyond_the_limit_are_decoded_on_read(open_split, tmp_path, fraction):
    whole = open_split()
    limit = whole.pixels.nbytes * fraction / 2**30
    partial = open_split(limit_gib=limit)
    assert len(partial) == len(whole)
    assert partial.pixels.nbytes <= limit * 2**30
    assert len(partial.pixels) == int(len(whole) * fraction)
    rows = np.random.default_rng(0).permutation(len(whole))
    np.testing.assert_array_equal(partial.read(rows), whole.pixels[rows])
    assert (partial.ids, partial.targets.tolist()) == (whole.ids, whole.targets.tolist())
    again = open_split(limit_gib=limit)
    np.testing.assert_array_equal(again.read(rows), whole.pixels[rows])


def test_auto_limit_depends_on_free_disk_space(open_split, manifest, tmp_path, monkeypatch):
    info, photo = manifest.splits["train"], SIZE * SIZE * 3
    stored = sum(shard.num_bytes for shard in info.shards)

    def free(num_bytes):
        monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: SimpleNamespace(free=num_bytes))

    free(2 * info.num_rows * photo)
    whole = open_split("valid", limit_gib="auto")
    assert len(whole.pixels) == len(whole)
    # Half of the free space holds all encoded photos and eleven decoded ones.
    free(2 * (stored + 11 * (photo - stored / info.num_rows)) + 2)
    partial = open_split(limit_gib="auto")
    assert (len(partial.pixels), len(partial)) == (11, info.num_rows)
    free(1)
    assert len(open_split(limit_gib="auto").pixels) == 11, "an existing cache file is reused"
    open_split(limit_gib=1.0)
    assert len(open_split(limit_gib="auto").pixels) == info.num_rows
    monkeypatch.setattr(decoded, "_MAX_AUTO_GIB", 0)
    free(2**40)
    assert len(open_split(size=SIZE + 1, limit_gib="auto").pixels) == 0


def test_a_damaged_shard_fails_its_checksum(open_split, manifest, tmp_path):
    path = Path(manifest.shard_url(manifest.splits["train"].shards[0]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PetsError, match=rf"{path.name} fails its checksum"):
        open_split()
    assert cache_files(tmp_path) == []


def test_missing_shard_raises_pets_error(open_split, manifest):
    (Path(manifest.shard_url(manifest.splits["train"].shards[0]))).unlink()
    with pytest.raises(PetsError, match="does not exist"):
        open_split()


def test_interrupted_decoding_leaves_no_files(open_split, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_split(on_progress=stop)
    assert cache_files(tmp_path) == []
    assert len(open_split()) > 0


def test_concurrent_openers_build_the_cache_once(open_split, tmp_path):
    started, reports, results = threading.Event(), [], []

    def report(progress):
        reports.append(progress.done)
        started.set()

    def build():
        results.append(open_split(on_progress=report))

    threads = [threading.Thread(target=build) for _ in range(2)]
    threads[0].start()
    assert started.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0].pixels, results[1].pixels)
    assert reports == sorted(set(reports)), "the photos were decoded once"
    assert len(cache_files(tmp_path)) == 3


def test_truncated_cache_file_is_rebuilt(open_split, tmp_path):
    whole = np.array(open_split().pixels)
    path = next((tmp_path / "cache/decoded").glob("*.u8"))
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(open_split().pixels, whole)


def test_unequal_lengths_raise_value_error():
    pixels, labels = np.zeros((2, 1, 1, 3), np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="one entry per photo"):
        DecodedPhotos(pixels, labels, ["a"])
