"""Which photos are shown, and that they come from the data set."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import write_table
from pets_core.data.ingest.commit import ingest
from pets_core.evaluation.confusion import confusion_counts, most_confused
from pets_core.evaluation.gallery import Gallery, collect, read_gallery, write_gallery
from pets_core.records.evaluation import LabelIssue


def pairs_of(predictions):
    counts = confusion_counts(predictions.targets, predictions.predicted, len(predictions.names))
    return most_confused(counts, predictions.names)


def test_the_worst_come_first(draw):
    predictions = draw(300, 4, skill=1.0)
    gallery = collect(predictions, None, pairs_of(predictions), [], None)
    losses = [picture.loss for picture in gallery.top_losses]
    assert losses == sorted(predictions.losses.tolist(), reverse=True)[:16]
    sure = [picture.probability for picture in gallery.confident_errors]
    assert sure == sorted(sure, reverse=True)
    assert all(picture.actual != picture.predicted for picture in gallery.confident_errors)
    assert sure[0] == predictions.confidence[predictions.wrong].max()


def test_each_pair_has_at_most_eight_photos_of_its_own(draw):
    predictions = draw(300, 4, skill=0.5)
    pairs = pairs_of(predictions)
    shown = collect(predictions, None, pairs, [], None).pairs
    for pair in pairs[:10]:
        own = [p for p in shown if (p.actual, p.predicted) == (pair.actual, pair.predicted)]
        assert len(own) == min(pair.count, 8)
    seen = list(dict.fromkeys((p.actual, p.predicted) for p in shown))
    assert seen == [(pair.actual, pair.predicted) for pair in pairs[:10]]


def test_a_data_set_out_of_reach_leaves_no_photos(draw):
    predictions = draw(20, 3)
    gallery = collect(predictions, None, [], [], None)
    assert {picture.jpeg for picture in gallery.top_losses} == {None}


@pytest.fixture
def judged(draw, drawn_sample, tmp_path):
    """Predictions of photos that are in a data set."""
    settings = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {"url": str(drawn_sample)},
    }  # fmt: skip
    manifest = ingest(PipelineConfig.model_validate(settings))
    ids = pa.parquet.read_table(f"{manifest.url}/photos.parquet")["id"].to_pylist()
    predictions = draw(30, 3, dataset_url=manifest.url)
    predictions.ids[:] = ids[:30]
    return predictions


def test_photos_and_maps_are_found_and_kept(judged, tmp_path):
    first = judged.ids[int(np.argmax(judged.losses))]
    maps = str(tmp_path / "maps.parquet")
    write_table(maps, pa.table({"id": [first], "jpeg": [b"map"]}))
    issue = LabelIssue(
        id=judged.ids[5], label="class-0", proposed="class-1", label_probability=0.1,
        proposed_probability=0.8,
    )  # fmt: skip
    gallery = collect(judged, judged, pairs_of(judged), [issue], maps)
    assert [p.photo_id for p in gallery.label_issues] == [judged.ids[5]]
    assert (gallery.top_losses[0].photo_id, gallery.top_losses[0].map_jpeg) == (first, b"map")
    assert {p.map_jpeg for p in gallery.confident_errors} <= {None}
    for part in vars(gallery).values():
        for picture in part:
            image = Image.open(io.BytesIO(picture.jpeg))
            assert max(image.size) <= 160
    url = str(tmp_path / "gallery.parquet")
    write_gallery(url, gallery)
    assert read_gallery(url) == gallery
    write_gallery(url, Gallery())
    assert read_gallery(url) == Gallery()
