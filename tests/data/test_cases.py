"""Realistic inputs from shared/cases, each with its expected result or error."""

import importlib.util
import sys
from pathlib import Path

import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.gallery import class_warnings
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources import formats
from pets_core.errors import PetsError

CASES = Path(__file__).parents[3] / "shared/cases/make_cases.py"

SUPPORTED = {
    # Name: file in the case's folder, settings, photos (by split), quarantined files by reason.
    "split_folders": ("", {}, {"train": 20, "valid": 8}, {}),
    "split_folders_with_test": ("", {}, {"train": 16, "valid": 8, "test": 8}, {"not_a_photo": 1}),
    "nas_thumbnails": ("", {}, 40, {"system_folder": 41}),
    "name_with_colons": ("", {}, 21, {}),
    "name_not_utf8": ("", {}, 24, {"name_not_utf8": 1}),
    "tiff_of_floats": ("", {}, 20, {}),
    "png_of_12_bits": ("", {}, 20, {}),
    "exif_with_bad_rational": ("", {}, 81, {}),
    "boxes_and_orientation": ("", {"targets": "box"}, 32, {}),
    "table_of_semicolons": ("table.csv", {}, 20, {}),
    "table_in_utf16": ("table.csv", {}, 20, {}),
    "labels_with_blanks": ("table.csv", {}, 60, {}),
    "tags_as_text_of_lists": ("table.csv", {"targets": "tags"}, 24, {}),
    "parquet_in_shards": ("", {}, 24, {}),
    "tar_of_a_folder": ("photos.tar.gz", {}, 24, {}),
}
UNSUPPORTED = {
    "phone_export": ("", {}, r"20 of 32 photos .*no_decoder.*heif.*dog \(20 of 26\)"),
    "ids_without_suffix": (
        "labels.csv", {"image_column": "id", "label_column": "breed"},
        r"20 of 20 photos are missing.*Did you mean train/000\.jpg\?",
    ),
    "parquet_of_floats": ("table.parquet", {}, r"3 rows \(1, 2, 3\) have no label"),
    "zip_with_password": ("photos.zip", {}, "24 of 24 photos are encrypted"),
}  # fmt: skip
WARNINGS = {
    "png_of_12_bits": "less than a quarter of the range",
    "labels_with_blanks": "'Cat' and 'cat', 'Dog' and 'dog'",
    "tags_as_text_of_lists": "source.tag_separator",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    if not CASES.exists():
        pytest.skip("shared/cases is missing")
    spec = importlib.util.spec_from_file_location("make_cases", CASES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


@pytest.fixture
def ingest_case(cases, tmp_path, monkeypatch):
    """Write a case and ingest it without Pillow plugins."""
    for package in formats._PLUGINS:
        monkeypatch.setitem(sys.modules, package, None)

    def run(name, file, settings):
        (tmp_path / name).mkdir()
        cases[name](tmp_path / name)
        values = {
            "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(tmp_path / name / file), **settings},
            "ingest": {"num_workers": 1},
        }  # fmt: skip
        return ingest(PipelineConfig.model_validate(values))

    return run


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_cases_are_ingested(ingest_case, name):
    file, settings, photos, quarantined = SUPPORTED[name]
    manifest = ingest_case(name, file, settings)
    counts = {split: info.num_rows for split, info in manifest.splits.items()}
    assert photos in (counts, sum(counts.values()))
    assert manifest.quarantine_reasons == quarantined
    assert manifest.duplicates["near"] == 0
    assert ("valid" in counts) or ("test" in counts)
    warnings = "\n".join(class_warnings(manifest))
    assert WARNINGS.get(name, "") in warnings
    rows = read_table(storage.join(manifest.url, "photos.parquet")).to_pylist()
    if name == "exif_with_bad_rational":
        assert [(r["width"], r["height"]) for r in rows if "turned" in r["id"]] == [(80, 96)]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_cases_raise_pets_error(ingest_case, name):
    file, settings, message = UNSUPPORTED[name]
    with pytest.raises(PetsError, match=f"(?s){message}"):
        ingest_case(name, file, settings)


def test_every_case_is_covered(cases):
    assert set(cases) == {*SUPPORTED, *UNSUPPORTED, "movielens_1m"}, (
        "the ratings case is tested in tests/ratings"
    )
