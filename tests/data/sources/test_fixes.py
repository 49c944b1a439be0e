"""Label corrections from a file, and errors for invalid files."""

from pathlib import Path

import pandas as pd
import pytest

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.gallery import read_quarantine
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources.fixes import read_fixes
from pets_core.errors import PetsError
from pets_core.evaluation.tables import issues_csv


@pytest.fixture
def settings(tmp_path, write_folder) -> dict:
    photos = write_folder(tmp_path / "photos", {"boxer": 6, "pug": 6})
    return {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"),
        "source": {
            "url": str(photos), "valid_fraction": 0.3, "label_fixes": str(tmp_path / "f.csv")
        },
    }  # fmt: skip


def ingest_with_fixes(settings: dict, text: str):
    Path(settings["source"]["label_fixes"]).write_text(text)
    return ingest(PipelineConfig.model_validate(settings))


def test_labels_are_corrected_and_photos_excluded(settings):
    manifest = ingest_with_fixes(
        settings, "id,label,reason\nboxer/1.jpg,pug,look\nboxer/2.jpg,,blank\n"
    )
    index = read_table(f"{manifest.url}/photos.parquet").to_pandas().set_index("id")
    assert index.target_text["boxer/1.jpg"] == "pug"
    assert index.label["boxer/1.jpg"] == manifest.class_names.index("pug")
    assert "boxer/2.jpg" not in index.index
    (row,) = read_quarantine(manifest)
    assert (row["id"], row["reason"]) == ("boxer/2.jpg", "excluded")
    assert len(index) == 11


def test_empty_fixes_keep_the_version(settings):
    empty = ingest_with_fixes(settings, "id,label\n")
    settings["source"].pop("label_fixes")
    assert ingest(PipelineConfig.model_validate(settings)).fingerprint == empty.fingerprint


def test_issues_csv_is_read_as_fixes(tmp_path):
    """Ids with spaces or formulas are kept; empty rows of a spreadsheet are ignored."""
    url = str(tmp_path / "f.csv")
    issues = pd.DataFrame(
        {"id": [" =a.jpg ", "@b"], "label": "-boxer", "given": "pug",
         "label_probability": 0.9, "given_probability": 0.1}
    )  # fmt: skip
    Path(url).write_text(issues_csv(issues).decode() + ",,,,\n")
    assert "'@b,'-boxer" in Path(url).read_text()
    assert read_fixes(url) == {" =a.jpg ": "-boxer", "@b": "-boxer"}


def test_another_encoding_is_refused(tmp_path):
    (tmp_path / "f.csv").write_bytes("id,label\nMüller.jpg,pug\n".encode("cp1252"))
    with pytest.raises(PetsError, match=r"not UTF-8.*Save it as CSV UTF-8"):
        read_fixes(str(tmp_path / "f.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photo,label\nx,pug\n", r"missing column id\. Use a CSV"),
        ("id,breed\nx,pug\n", r"missing column label"),
        ("", r"missing column id, label"),
        ("id,label\nboxer/1.jpg,pug\nboxer/1.jpg,boxer\n", r"boxer/1\.jpg has two labels"),
        (
            "id,label\nboxer/77.jpg,pug\n",
            r"1 ids are not in the source, such as 'boxer/77\.jpg'.*boxer/",
        ),
        ("id,label\nboxer/1.jpg,pugg\n", r"has the label 'pugg', .*Did you mean pug"),
    ],
)
def test_invalid_fixes_are_refused(settings, text, message):
    with pytest.raises(PetsError, match=rf"source\.label_fixes.*{message}"):
        ingest_with_fixes(settings, text)
    assert not (Path(settings["store"]) / "datasets").exists()


def test_missing_file_is_refused(settings):
    with pytest.raises(PetsError, match=r"f\.csv does not exist"):
        ingest(PipelineConfig.model_validate(settings))
