"""Each unused file has a reason; classes that lose many photos are reported."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_table
from pets_core.data.gallery import class_warnings
from pets_core.data.ingest import images
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources import formats
from pets_core.errors import PetsError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)


def config(tmp_path, url, bound=0.05, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"num_workers": 1, "max_quarantined_fraction": bound},
        }
    )


def quarantined(manifest) -> dict[str, str]:
    rows = read_table(storage.join(manifest.url, "quarantine.parquet")).to_pylist()
    return {row["path"] or row["id"]: row["reason"] for row in rows}


@pytest.fixture
def without_plugins(monkeypatch):
    """Simulate an installation without Pillow plugins."""
    monkeypatch.setattr(formats, "_PLUGINS", {})
    formats.photo_formats.cache_clear()
    formats._photo_suffixes.cache_clear()
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    for suffix in [s for s, name in Image.EXTENSION.items() if name in ("HEIF", "JXL")]:
        monkeypatch.delitem(Image.EXTENSION, suffix)
    yield
    formats.photo_formats.cache_clear()
    formats._photo_suffixes.cache_clear()


@pytest.fixture
def phone(tmp_path, write_folder):
    """Photos of a phone: most dogs are HEIC, some of them named .jpg."""
    folder = write_folder(tmp_path / "phone", {"cat": 8, "dog": 8})
    for number in range(10):
        (folder / f"dog/IMG_{number}.{'HEIC' if number % 2 else 'jpg'}").write_bytes(
            HEIC + bytes([number])
        )
    (folder / "dog/clip.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(99))
    (folder / "dog/IMG_1.AAE").write_text("<plist/>")
    (folder / "dog/raw.NEF").write_bytes(b"II*\0" + bytes(99))
    return folder


@pytest.mark.usefixtures("without_plugins")
def test_photos_without_a_decoder_are_counted_by_class(tmp_path, phone):
    with pytest.raises(PetsError, match=r"11 of 27 photos .*\(11 no_decoder\)") as caught:
        ingest(config(tmp_path, phone))
    text = str(caught.value)
    assert "pets-pipeline[heif]" in text
    assert "Classes that lose at least half of their photos: dog (11 of 19)" in text
    manifest = ingest(config(tmp_path, phone, bound=0.5))
    assert manifest.quarantined_by_class == {"dog": (11, 19)}
    warning = "Classes that lost at least half of their photos: dog (11 of 19)."
    assert class_warnings(manifest)[0] == warning
    reasons = quarantined(manifest)
    assert reasons.pop("dog/clip.MOV") == reasons.pop("dog/IMG_1.AAE") == "not_a_photo"
    assert set(reasons.values()) == {"no_decoder"}
    assert len(reasons) == 11


@pytest.mark.usefixtures("without_plugins")
def test_a_class_without_any_readable_photo_is_named(tmp_path, write_folder):
    folder = write_folder(tmp_path / "phone", {"cat": 8})
    for number in range(4):
        storage.write_bytes(str(folder / f"dog/{number}.heic"), HEIC + bytes([number]))
    with pytest.raises(PetsError, match=r"half of their photos: dog \(4 of 4\)"):
        ingest(config(tmp_path, folder))


def test_error_about_a_lost_class_names_the_reason(tmp_path, write_folder):
    folder = write_folder(tmp_path / "mine", {"cat": 30, "dog": 30})
    for number in range(3):
        storage.write_bytes(str(folder / f"bird/{number}.CR3"), b"raw" + bytes([number]))
    with pytest.raises(
        PetsError, match=r"(?s)training photos of bird: .*3 of 3 photos have no decoder.*rawpy"
    ):
        ingest(config(tmp_path, folder))


def test_folder_with_a_non_utf8_name_does_not_affect_others(tmp_path, write_folder, jpeg):
    folder = write_folder(tmp_path / "mine", {"cat": 30, "dog": 30})
    folder_not_utf8 = folder / os.fsdecode(b"K\xe4tz")
    folder_not_utf8.mkdir()
    (folder_not_utf8 / "1.jpg").write_bytes(jpeg(99))
    manifest = ingest(config(tmp_path, folder))
    assert manifest.class_names == ("cat", "dog")
    assert quarantined(manifest) == {"K\\xe4tz/1.jpg": "name_not_utf8"}


def test_photos_are_read_once_their_decoder_is_installed(tmp_path, phone, monkeypatch, jpeg):
    """Shards written without a decoder are not reused once it is installed."""
    monkeypatch.setattr("pets_core.data.ingest.plan.decoders", tuple)

    def inspect(data, inner=images.inspect):
        if data.startswith(HEIC[:12]):
            raise formats.UnreadablePhotoError(formats.NO_DECODER, "install it")
        return inner(data)

    monkeypatch.setattr("pets_core.data.ingest.shards.inspect", inspect)
    first = ingest(config(tmp_path, phone, bound=0.5))
    assert first.quarantine_reasons["no_decoder"] == 11
    monkeypatch.setattr("pets_core.data.ingest.plan.decoders", lambda: ("pillow_heif",))
    photo = images.inspect(jpeg(99))
    monkeypatch.setattr("pets_core.data.ingest.shards.inspect", lambda _: photo)
    second = ingest(config(tmp_path, phone, bound=0.5))
    assert second.quarantine_reasons["no_decoder"] == 1, "the raw file"
    assert second.num_rows == first.num_rows + 12, "including files that are not photos"


def test_thumbnails_of_a_network_drive_are_skipped(tmp_path, write_folder, jpeg):
    folder = write_folder(tmp_path / "nas", {"cat": 6, "dog": 6})
    for path in ("cat/@eaDir/0.jpg/T.jpg", "@eaDir/T.jpg", "#recycle/cat/0.jpg", "dog/._0.jpg"):
        storage.write_bytes(str(folder / path), jpeg(77))
    (folder / "dog/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(99))
    manifest = ingest(config(tmp_path, folder))
    assert manifest.class_names == ("cat", "dog")
    assert manifest.quarantine_reasons == {"hidden": 1, "not_a_photo": 1, "system_folder": 3}
    assert manifest.num_rows == 12


def test_file_that_may_be_a_photo_counts_as_quarantined(tmp_path, write_folder):
    folder = write_folder(tmp_path / "mine", {"cat": 6, "dog": 6})
    (folder / "cat/6.jpg.crdownload").write_bytes(b"\xff\xd8\xff" + bytes(99))
    (folder / "cat/7.oddity").write_bytes(bytes(range(256)))
    (folder / "cat/notes.txt").write_text("notes")
    with pytest.raises(PetsError, match=r"2 of 14 photos .*\(2 not_an_image\)"):
        ingest(config(tmp_path, folder))


def test_split_folders_of_an_archive_define_the_split(tmp_path, jpeg):
    """Competition archives include test photos without labels."""
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as archive:
        for number in range(40):
            label, split = ("cat", "dog")[number % 2], ("train", "val")[number > 29]
            archive.writestr(f"data/{split}/{label}/{number}.jpg", jpeg(number))
        for number in range(100, 106):
            archive.writestr(f"data/test/{number}.jpg", jpeg(number))
        archive.writestr("data/sample_submission.csv", "id,label\n")
    manifest = ingest(config(tmp_path, tmp_path / "kaggle.zip"))
    assert {split: info.num_rows for split, info in manifest.splits.items()} == {
        "train": 30, "valid": 10,
    }  # fmt: skip
    assert manifest.quarantine_reasons == {"not_a_photo": 1, "unlabelled": 6}
    drawn = ingest(config(tmp_path, tmp_path / "kaggle.zip", split="random", name="drawn"))
    assert drawn.splits["train"].num_rows > 30


@pytest.mark.parametrize("prefix", ["./", "top//", "./top/./", "top\\"])
def test_archive_is_read_with_any_path_prefix(tmp_path, jpeg, prefix):
    slash = "\\" if "\\" in prefix else "/"
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as tar:
        for number in range(12):
            info = tarfile.TarInfo(f"{prefix}{'ab'[number % 2]}{slash}{number}.jpg")
            info.size = len(jpeg(number))
            tar.addfile(info, io.BytesIO(jpeg(number)))
    manifest = ingest(config(tmp_path, tmp_path / "photos.tar.gz"))
    assert (manifest.num_rows, manifest.class_names) == (12, ("a", "b"))


@pytest.mark.parametrize("num_encrypted", [1, 12])
def test_encrypted_photos_are_counted(tmp_path, jpeg, num_encrypted):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(12):
            archive.writestr(f"{'ab'[number % 2]}/{number}.jpg", jpeg(number))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = -1
        for _ in range(num_encrypted):
            position = data.find(signature, position + 1)
            data[position + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(PetsError, match=rf"{num_encrypted} of 12 photos are encrypted, the first"):
        ingest(config(tmp_path, path))
    if num_encrypted == 1:
        assert quarantined(ingest(config(tmp_path, path, bound=0.5))) == {"a/0.jpg": "encrypted"}


def test_nested_archives_are_reported(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("train.zip", b"PK\x03\x04")
        archive.writestr("test.zip", b"PK\x03\x04")
    with pytest.raises(
        PetsError, match=r"no photo with a label, but 2 archives, such as t.*unpack"
    ):
        ingest(config(tmp_path, tmp_path / "all.zip"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("instances.json", "COCO or Labelme"), ("photos.7z", r"\.tar\.gz.*\.csv")],
)
def test_unsupported_file_type_is_reported(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(PetsError, match=f"unsupported file type.*{message}"):
        ingest(config(tmp_path, tmp_path / name))


def test_archive_in_a_folder_is_suggested(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.zip").write_bytes(b"PK")
    with pytest.raises(PetsError, match=r"Did you mean source\.url = .*mine/train\.zip"):
        ingest(config(tmp_path, tmp_path / "mine"))


def test_photos_outside_class_folders_are_counted(tmp_path, jpeg):
    for number in range(4):
        storage.write_bytes(str(tmp_path / f"mine/train/cat.{number}.jpg"), jpeg(number))
        storage.write_bytes(str(tmp_path / f"mine/test/{number}.jpg"), jpeg(9 + number))
    with pytest.raises(
        PetsError, match=r"but 8 photos outside class folders, such as .*use a table"
    ):
        ingest(config(tmp_path, tmp_path / "mine"))


@pytest.mark.parametrize(("factor", "is_warned"), [(16, True), (257, False)])
def test_low_contrast_photos_cause_a_warning(tmp_path, factor, is_warned):
    for number in range(12):
        grey = np.random.default_rng(number).integers(0, 256, (20, 30)).astype(np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(grey * factor).save(buffer, "PNG")
        storage.write_bytes(
            str(tmp_path / f"mine/{'ab'[number % 2]}/{number}.png"), buffer.getvalue()
        )
    manifest = ingest(config(tmp_path, tmp_path / "mine"))
    assert manifest.low_contrast_fraction == is_warned
    found = [w for w in class_warnings(manifest) if "Rescale the files" in w]
    assert len(found) == is_warned


@pytest.mark.parametrize(
    ("names", "is_warned"),
    [(("Cat", "cat"), True), (("cat", "cat\u200b"), True), (("Ka\u0308tz", "Kätz"), True),
     (("Maine Coon", "MaineCoon"), True), (("cat", "cats"), False)],
)  # fmt: skip
def test_similar_class_names_are_reported_and_not_merged(tmp_path, write_folder, names, is_warned):
    manifest = ingest(config(tmp_path, write_folder(tmp_path / "mine", dict.fromkeys(names, 6))))
    assert set(manifest.class_names) == set(names)
    found = [w for w in class_warnings(manifest) if "differ only by case" in w]
    assert len(found) == is_warned
    assert all(repr(name) in warning for warning in found for name in names)


def test_class_names_that_may_mean_a_missing_label_are_reported(tmp_path, write_folder):
    manifest = ingest(config(tmp_path, write_folder(tmp_path / "mine", {"None": 6, "cat": 6})))
    assert any("may mean a missing label: 'None'" in w for w in class_warnings(manifest))


def test_groups_across_predefined_splits_are_reported(tmp_path, write_folder):
    folder = write_folder(tmp_path / "mine", {"train/a": 6, "train/b": 6, "val/a": 6, "val/b": 6})
    options = {"group_pattern": r"(\d)\.jpg"}
    manifest = ingest(config(tmp_path, folder, **options))
    assert manifest.warnings[0].startswith(
        "6 of 6 groups have photos in several splits, for example '0'"
    )
    drawn = ingest(config(tmp_path, folder, split="random", **options, valid_fraction=0.4))
    assert drawn.warnings == ()
    with pytest.raises(PetsError, match="24 photos form only 2 groups, too few"):
        ingest(
            config(tmp_path, folder, split="random", group_pattern=r"/(.)/", valid_fraction=0.01)
        )


def test_error_about_an_empty_validation_split_suggests_a_fraction(tmp_path, write_folder):
    folder = write_folder(tmp_path / "mine", {"a": 4, "b": 4})
    with pytest.raises(
        PetsError, match=r"none of the 8 photos is in the validation .*0\.001: set it to ([\d.]+)"
    ) as caught:
        ingest(config(tmp_path, folder, valid_fraction=0.001))
    fraction = float(str(caught.value).split("set it to ")[1].split()[0])
    assert ingest(config(tmp_path, folder, valid_fraction=fraction)).splits["valid"].num_rows > 0


def test_error_about_many_small_classes_suggests_a_fraction(tmp_path, write_folder):
    folder = write_folder(tmp_path / "mine", {f"class {n}": 2 for n in range(40)})
    with pytest.raises(
        PetsError, match=r"of 40 classes \('class \d+', .*\) have no training"
    ) as caught:
        ingest(config(tmp_path, folder, valid_fraction=0.3))
    assert len(str(caught.value)) < 400
    fraction = float(str(caught.value).split("from 0.3 to ")[1].split(",")[0])
    manifest = ingest(config(tmp_path, folder, valid_fraction=fraction))
    assert min(manifest.splits["train"].class_counts) > 0
