"""The cache of decoded photos: the very pixels, made once, whole or not at all."""

import threading
from pathlib import Path

import numpy as np
import pytest

from pets_core.config import PipelineConfig
from pets_core.data import decoded
from pets_core.data.decoded import DecodedPhotos, open_decoded
from pets_core.data.images import decode
from pets_core.data.ingest import ingest
from pets_core.errors import PetsError

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


def test_the_pixels_are_those_of_decode(open_split, manifest, tmp_path):
    for split, info in manifest.splits.items():
        photos = open_split(split)
        assert len(photos) == info.num_rows == len(set(photos.ids))
        assert photos.pixels.shape == (info.num_rows, SIZE, SIZE, 3)
        for pixels, label, photo_id in zip(photos.pixels, photos.labels, photos.ids, strict=True):
            data = (tmp_path / "mine" / photo_id).read_bytes()
            np.testing.assert_array_equal(pixels, decode(data, SIZE))
            assert manifest.classes[label].name == photo_id.split("/")[0]


def test_the_pixels_cannot_be_changed(open_split):
    with pytest.raises(ValueError, match="read-only"):
        open_split().pixels[0] = 0


def test_the_cache_is_used_again(open_split, monkeypatch):
    first = open_split()
    monkeypatch.setattr(decoded, "decode", None)
    again = open_split()
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert first.ids == again.ids


def test_another_size_is_another_file(open_split):
    assert open_split(size=8).pixels.shape[1:] == (8, 8, 3)
    assert open_split(size=9).pixels.shape[1:] == (9, 9, 3)


def test_progress_is_told(open_split, manifest):
    told = []
    open_split(on_progress=told.append)
    total = manifest.splits["train"].num_rows
    assert [progress.done for progress in told] == [128, total]
    assert {(p.stage, p.total, p.unit) for p in told} == {("decode train", total, "photos")}


def test_the_limit_is_told_before_any_work(open_split, manifest, tmp_path):
    needed = manifest.splits["train"].num_rows * SIZE * SIZE * 3 / 2**30
    with pytest.raises(PetsError, match=r"launch\.decode_cache_gib = .*model\.image_size"):
        open_split(limit_gib=needed * 0.999)
    assert not (tmp_path / "cache").exists()
    assert len(open_split(limit_gib=needed)) == manifest.splits["train"].num_rows


def test_a_damaged_shard_fails_its_checksum(open_split, manifest, tmp_path):
    path = Path(manifest.shard_url(manifest.splits["train"].shards[0]))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(PetsError, match=rf"{path.name} fails its checksum"):
        open_split()
    assert list((tmp_path / "cache/decoded").iterdir()) == []


def test_a_missing_shard_is_a_plain_error(open_split, manifest):
    (Path(manifest.shard_url(manifest.splits["train"].shards[0]))).unlink()
    with pytest.raises(PetsError, match="does not exist"):
        open_split()


def test_a_failure_half_way_leaves_nothing(open_split, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_split(on_progress=stop)
    assert list((tmp_path / "cache/decoded").iterdir()) == []
    assert len(open_split()) > 0


def test_two_may_build_it_at_once(open_split, tmp_path):
    meet, results = threading.Barrier(2, timeout=20), []
    met = threading.local()

    def wait_once(_):
        if not getattr(met, "done", False):
            met.done = True
            meet.wait()

    def build():
        results.append(open_split(on_progress=wait_once))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0].pixels, results[1].pixels)
    assert len(list((tmp_path / "cache/decoded").iterdir())) == 1


def test_lengths_must_agree():
    pixels, labels = np.zeros((2, 1, 1, 3), np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="one entry a photo"):
        DecodedPhotos(pixels, labels, ["a"])
