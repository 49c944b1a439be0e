"""Thumbnails and warnings of a data set."""

import io

import pytest
from PIL import Image

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.gallery import class_warnings, thumbnails
from pets_core.data.ingest.commit import ingest


@pytest.fixture
def manifest(tmp_path, write_folder):
    return ingest(
        PipelineConfig.model_validate(
            {
                "store": str(tmp_path / "store"),
                "cache_dir": str(tmp_path / "cache"),
                "source": {"url": str(write_folder(tmp_path / "mine", {"a": 6, "b": 90}))},
            }
        )
    )


def test_thumbnails_are_small_and_only_of_requested_photos(manifest):
    images = thumbnails(manifest, ["a/0.jpg", "b/7.jpg", "c/1.jpg"], 12)
    assert set(images) == {"a/0.jpg", "b/7.jpg"}
    for data in images.values():
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (12, 8)


def with_train(manifest, *counts):
    train = manifest.splits["train"].model_copy(update={"class_counts": counts})
    return manifest.model_copy(update={"splits": {"train": train}})


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((10, 100), []),
        ((10, 101), ["largest class has 101"]),
        ((9, 20), ["Fewer than 10 training photos: a (9)."]),
        ((3, 31), ["a (3)", "smallest 3"]),
    ],
)
def test_small_and_imbalanced_classes_cause_warnings(manifest, counts, expected):
    warnings = class_warnings(with_train(manifest, *counts))
    assert len(warnings) == len(expected)
    assert all(part in warning for part, warning in zip(expected, warnings, strict=True))


def test_class_without_validation_photos_causes_a_warning(manifest):
    valid = manifest.splits["valid"].model_copy(update={"class_counts": (0, 9)})
    changed = manifest.model_copy(update={"splits": manifest.splits | {"valid": valid}})
    assert "Split valid has no photos of 1 of 2 classes" in class_warnings(changed)[-1]
