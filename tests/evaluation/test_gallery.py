"""Photos and activation maps of gallery pictures, and the gallery file."""

import io
from dataclasses import replace

import pyarrow as pa
import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.gallery import Picture, fetch_photos, read_gallery, write_gallery

PICTURE = Picture("a", "pug", "boxer, 97%", "loss 5.50", group="pug, predicted boxer")


@pytest.fixture
def dataset(drawn_sample, tmp_path) -> tuple[str, list[str]]:
    """Folder of a data set, and the ids of its photos."""
    settings = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(drawn_sample)},
    }  # fmt: skip
    url = ingest(PipelineConfig.model_validate(settings)).url
    return url, pa.parquet.read_table(f"{url}/photos.parquet")["id"].to_pylist()


def test_gallery_of_an_unavailable_data_set_has_no_photos(caplog):
    gallery = fetch_photos({"top-losses": [PICTURE]}, "nowhere/pets/f", 160)
    assert gallery == {"top-losses": [PICTURE]}
    assert "Galleries are written without photos" in caplog.text


def test_photos_and_maps_are_fetched_and_stored(dataset, tmp_path):
    url, ids = dataset
    maps = str(tmp_path / "maps.parquet")
    write_table(maps, pa.table({"id": [ids[0]], "jpeg": [b"map"]}))
    pictures = [replace(PICTURE, photo_id=photo_id) for photo_id in ids[:3]]
    gallery = fetch_photos({"top-losses": pictures, "none": []}, url, 60, maps_url=maps)
    first, *others = gallery["top-losses"]
    assert (first.photo_id, first.map_jpeg, first.detail) == (ids[0], b"map", "loss 5.50")
    assert [picture.map_jpeg for picture in others] == [None, None]
    for picture in gallery["top-losses"]:
        assert max(Image.open(io.BytesIO(picture.jpeg)).size) == 60
    stored = str(tmp_path / "gallery.parquet")
    write_gallery(stored, gallery)
    assert read_gallery(stored) == {"top-losses": gallery["top-losses"]}
    write_gallery(stored, {})
    assert read_gallery(stored) == {}


def test_draw_callback_replaces_the_photo(dataset):
    url, ids = dataset

    def draw(photo_id: str, jpeg: bytes) -> bytes:
        assert Image.open(io.BytesIO(jpeg)).size
        return f"drawn on {photo_id}".encode()

    pictures = [replace(PICTURE, photo_id=ids[0])]
    (shown,) = fetch_photos({"top-losses": pictures}, url, 60, draw=draw)["top-losses"]
    assert shown.jpeg == f"drawn on {ids[0]}".encode()
