"""Sources: content, type detection, and one clear error per problem."""

import gzip
import hashlib
import io
import tarfile
from pathlib import PurePosixPath

import fsspec
import pytest

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources import sources
from pets_core.data.sources.catalogue import Box
from pets_core.data.sources.oxford import AUTHORS_URL
from pets_core.data.sources.sources import open_photos, open_source
from pets_core.errors import PetsError
from pets_core.storage import download

HEADER = "#Image CLASS-ID SPECIES BREED ID\n"
TRAINVAL = "Birman_1 2 1 1\npug_2 1 2 1\n"
TEST = "Birman_3 2 1 1\n\npug_4 1 2 1\n"
LISTS = {"list.txt": HEADER + TRAINVAL + TEST, "trainval.txt": TRAINVAL, "test.txt": TEST}
PHOTOS = [(f"{name}.jpg", name.encode()) for name in ("Birman_1", "pug_2", "Birman_3", "pug_4")]


def config(tmp_path, **source) -> PipelineConfig:
    values = {
        "store": str(tmp_path / "store"), "cache_dir": str(tmp_path / "cache"), "source": source,
    }  # fmt: skip
    return PipelineConfig.model_validate(values)


@pytest.fixture
def oxford(tmp_path, write_oxford):
    folder = tmp_path / "pets"

    def write(photos=PHOTOS, **lists):
        write_oxford(folder, photos, LISTS | {f"{name}.txt": text for name, text in lists.items()})
        return open_source(config(tmp_path, url=str(folder)))

    return write


def test_published_oxford_archives_are_read(oxford):
    source = oxford()
    assert (source.name, source.has_predefined_split) == ("oxford-iiit-pet", True)
    catalogue = source.catalogue()
    assert list(catalogue.vocabulary.items()) == [("Pug", "dog"), ("Birman", "cat")]
    assert {p.id: (p.label, p.species, p.predefined_split) for p in catalogue.photos.values()} == {
        "Birman_1": ("Birman", "cat", "trainval"),
        "pug_2": ("Pug", "dog", "trainval"),
        "Birman_3": ("Birman", "cat", "test"),
        "pug_4": ("Pug", "dog", "test"),
    }
    paths = [f"images/{name}" for name, _ in PHOTOS]
    assert [e.path for e in source.files.entries() if not e.skip_reason] == paths
    assert list(source.files.read(paths)) == [data for _, data in PHOTOS]
    assert [source.photo_id(path) for path in paths] == [name[:-4] for name, _ in PHOTOS]
    assert {photo.head_box for photo in catalogue.photos.values()} == {None}


def head_box_xml(xmin="10", ymin="20", xmax="30.4", ymax="40") -> str:
    return (
        "<annotation><object><bndbox>"
        f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
        "</bndbox></object></annotation>"
    )


def test_only_valid_head_boxes_are_read(tmp_path, write_oxford):
    bomb = '<!DOCTYPE a [<!ENTITY b "x">]><annotation>&b;</annotation>'
    xmls = {
        "Birman_1": head_box_xml(), "pug_2": head_box_xml(xmin="50"),
        "Birman_3": head_box_xml(ymax="none"), "pug_4": bomb, "stray_5": "<annotation>",
    }  # fmt: skip
    lists = LISTS | {f"xmls/{name}.xml": text for name, text in xmls.items()}
    write_oxford(tmp_path / "pets", PHOTOS, lists | {"xmls/._pug_2.xml": "AppleDouble"})
    photos = open_source(config(tmp_path, url=str(tmp_path / "pets"))).catalogue().photos
    assert {name: photo.head_box for name, photo in photos.items()} == {
        "Birman_1": Box(10, 20, 30, 40), "pug_2": None, "Birman_3": None, "pug_4": None,
    }  # fmt: skip


def test_a_photo_in_both_lists_is_refused(oxford):
    with pytest.raises(
        PetsError, match=r"1 photos .* trainval\.txt and in test\.txt, such as pug_2"
    ):
        oxford(test=TEST + "pug_2 1 2 1\n").catalogue()


def test_archive_checksum_is_verified(tmp_path, oxford):
    oxford()
    url = str(tmp_path / "pets")
    for name in ("images.tar.gz", "annotations.tar.gz"):
        source = open_source(config(tmp_path, url=url, checksums={name: "md5:00"}))
        with pytest.raises(PetsError, match=rf"{name}: its md5 is .* expected 00"):
            (source.catalogue(), source.files)
    digest = hashlib.sha256((tmp_path / "pets/images.tar.gz").read_bytes()).hexdigest()
    checksums = {"images.tar.gz": f"sha256:{digest}"}
    assert open_source(config(tmp_path, url=url, checksums=checksums)).files.entries()


def test_breed_of_several_words_is_parsed_from_the_photo_id(oxford):
    line = "american_pit_bull_terrier_7 3 2 2\n"
    catalogue = oxford(trainval=TRAINVAL + line).catalogue()
    assert catalogue.photos["american_pit_bull_terrier_7"].label == "American Pit Bull Terrier"


def test_only_list_txt_is_optional(tmp_path, write_oxford):
    for missing in LISTS:
        folder = tmp_path / missing
        write_oxford(folder, PHOTOS, {n: text for n, text in LISTS.items() if n != missing})
        source = open_source(config(tmp_path, url=str(folder)))
        if missing == "list.txt":
            assert len(source.catalogue().photos) == 4
        else:
            with pytest.raises(PetsError, match=f"contains no {missing}"):
                source.catalogue()


@pytest.mark.parametrize(
    "line", ["Birman_5 2 1", "Birman_5 2 1 1 9", "Birman_5 two 1 1", "Birman_5", "Birman_5 2 1 -1"]
)
def test_invalid_line_is_reported(oxford, line):
    with pytest.raises(PetsError, match=r"test\.txt, line 4: expected .*got '") as caught:
        oxford(test=f"{TEST}{line}\n").catalogue()
    assert repr(line) in str(caught.value)


def test_hidden_annotation_file_in_another_encoding_is_ignored(tmp_path, write_archive):
    members = [(f"annotations/{name}", text.encode()) for name, text in LISTS.items()]
    write_archive(tmp_path / "pets/images.tar.gz", [])
    write_archive(
        tmp_path / "pets/annotations.tar.gz", [*members, ("annotations/._list.txt", b"\xff\xfe")]
    )
    source = open_source(config(tmp_path, url=str(tmp_path / "pets")))
    assert len(source.catalogue().photos) == 4


@pytest.fixture(params=["file", "memory"])
def folder_url(request, tmp_path) -> str:
    """URL of a folder named mine, on disk or in memory."""
    return str(tmp_path / "mine") if request.param == "file" else f"memory://{tmp_path.name}/mine"


def test_each_folder_is_a_class(tmp_path, folder_url):
    paths = ["Birman/a.jpg", "README.md", "pug/b.jpg", "pug/deep/a.jpg", "pug/notes.txt"]
    for path in (*paths, "pug/.DS_Store", ".git/x.jpg"):
        storage.write_bytes(f"{folder_url}/{path}", path.encode())
    source = open_source(config(tmp_path, url=f"{folder_url}/"))
    assert (source.name, source.has_predefined_split) == ("mine", False)
    catalogue = source.catalogue()
    assert list(catalogue.vocabulary.items()) == [("Birman", None), ("pug", None)]
    assert {i: p.label for i, p in catalogue.photos.items()} == {
        path: path.split("/")[0] for path in paths if path != "README.md"
    }
    assert [e.path for e in source.files.entries() if not e.skip_reason] == paths
    assert list(source.files.read(paths)) == [path.encode() for path in paths]


@pytest.mark.parametrize("parent", ["", "photos/", "data/photos/"])
def test_single_parent_folder_of_the_classes_is_ignored(tmp_path, write_archive, parent):
    names = [f"{parent}{label}/{n}.jpg" for label in ("a", "b") for n in range(2)]
    write_archive(tmp_path / "mine.tar.gz", [(name, b"x") for name in names])
    source = open_source(config(tmp_path, url=str(tmp_path / "mine.tar.gz")))
    assert list(source.catalogue().vocabulary) == ["a", "b"]
    assert list(source.catalogue().photos) == names


def test_source_type_is_detected_from_the_url(tmp_path, oxford, write_folder, drawn_sample):
    assert type(oxford()).__name__ == "OxfordPetSource"
    url = str(write_folder(tmp_path / "mine", {"a": 1, "b": 1}))
    assert type(open_source(config(tmp_path, url=url))).__name__ == "ClassFolderSource"
    assert (
        type(open_source(config(tmp_path, url=url, kind="folder"))).__name__ == "ClassFolderSource"
    )
    for suffix in ("tar.gz", "tgz"):
        (tmp_path / f"a.{suffix}").write_bytes((tmp_path / "pets/images.tar.gz").read_bytes())
        source = open_source(config(tmp_path, url=str(tmp_path / f"a.{suffix}")))
        assert (type(source).__name__, source.name) == ("ClassFolderSource", "a")
    for suffix in (".csv", ".labels"):
        (tmp_path / f"a{suffix}").write_text("image,label\n")
        kind = "auto" if suffix == ".csv" else "table"
        source = open_source(config(tmp_path, url=str(tmp_path / f"a{suffix}"), kind=kind))
        assert type(source).__name__ == "TableSource"
    assert open_source(config(tmp_path, kind="oxford-iiit-pet")).url == AUTHORS_URL


def test_folder_named_like_an_archive_is_read_as_a_folder(tmp_path, write_folder):
    url = write_folder(tmp_path / "photos.zip", {"a": 2, "b": 2})
    assert len(open_source(config(tmp_path, url=str(url))).catalogue().photos) == 4


def test_folder_of_a_store_named_like_an_archive_is_read_as_a_folder(tmp_path, write_folder):
    folder = write_folder(tmp_path / "photos", {"a": 2, "b": 2})
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), f"/{tmp_path.name}/2024.zip", recursive=True)
    source = open_source(config(tmp_path, url=f"memory://{tmp_path.name}/2024.zip/"))
    assert len(source.catalogue().photos) == 4


def test_name_can_be_set(tmp_path, drawn_sample):
    assert open_source(config(tmp_path, url=str(drawn_sample), name="mine")).name == "mine"


@pytest.mark.parametrize("kind", ["auto", "sample"])
def test_missing_url_selects_the_cached_sample(tmp_path, drawn_sample, kind):
    settings = config(tmp_path, kind=kind, sample_photos_per_breed=4)
    source = open_source(settings)
    assert source.name == "sample"
    (archive,) = (tmp_path / "cache").rglob("images.tar.gz")
    assert archive.read_bytes() == (drawn_sample / "images.tar.gz").read_bytes()
    written = archive.stat().st_mtime_ns
    open_source(settings)
    assert archive.stat().st_mtime_ns == written


@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_unreachable_url_raises_pets_error(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(download, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(download, "_MAX_BACKOFF_SECONDS", 0.01)
    for url in (str(tmp_path / "none"), "nostore://bucket", "http://127.0.0.1:9/pets"):
        with pytest.raises(PetsError, match=url.rsplit("/", 1)[-1]):
            open_source(config(tmp_path, url=url, kind=kind))


def test_missing_archive_raises_pets_error(tmp_path):
    source = open_source(config(tmp_path, url=str(tmp_path / "none"), kind="oxford-iiit-pet"))
    with pytest.raises(PetsError, match=r"annotations\.tar\.gz does not exist"):
        source.catalogue()


def test_folder_without_classes_raises_pets_error(tmp_path, jpeg):
    folder = tmp_path / "mine"
    folder.mkdir()
    for _ in range(2):
        with pytest.raises(PetsError, match="contains neither images"):
            open_source(config(tmp_path, url=str(folder)))
        (folder / "a.jpg").write_bytes(jpeg())


@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_photos_without_labels_need_no_class_folders(tmp_path, oxford, jpeg, kind):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/a.jpg").write_bytes(jpeg())
    settings = config(tmp_path, url=str(tmp_path / "pets"), kind=kind)
    _, photos, others = open_photos(settings)
    assert ([photo.path for photo in photos], others) == (["a.jpg"], [])
    oxford()
    _, photos, _ = open_photos(settings)
    archived = {path for path, _ in PHOTOS}
    assert {PurePosixPath(p.path).name for p in photos} == (
        archived if kind == "auto" else {"a.jpg"}
    )


def cut_at_a_header(archive: bytes) -> bytes:
    """Truncate an archive within its last header, which tarfile alone does not detect."""
    tar = gzip.decompress(archive)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        offset = opened.getmembers()[-1].offset
    compressed = gzip.compress(tar[: offset + 100])
    return compressed[:-8]


CUTS = {
    "nothing": lambda data: b"",
    "one byte": lambda data: data[:1],
    "gzip header": lambda data: data[:10],
    "third": lambda data: data[: len(data) // 3],
    "half": lambda data: data[: len(data) // 2],
    "checksum": lambda data: data[:-8],
    "last byte": lambda data: data[:-1],
    "padding": lambda data: data[:-20],
    "at a header": cut_at_a_header,
    "flipped bits": lambda data: data[: len(data) // 2] + bytes(8) + data[len(data) // 2 + 8 :],
    "not gzip": lambda data: b"<html>404</html>" * 100,
}


@pytest.mark.parametrize("archive", ["images.tar.gz", "annotations.tar.gz"])
@pytest.mark.parametrize("cut", CUTS)
def test_damaged_archive_raises_pets_error(tmp_path, drawn_sample, archive, cut):
    folder = tmp_path / "pets"
    folder.mkdir()
    for name in ("images.tar.gz", "annotations.tar.gz"):
        data = (drawn_sample / name).read_bytes()
        (folder / name).write_bytes(CUTS[cut](data) if name == archive else data)
    with pytest.raises(PetsError, match=rf"{archive}: .* truncated or damaged.*Download it again"):
        ingest(config(tmp_path, url=str(folder)))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/photos.tar.gz?X-Signature=secret", "photos"),
        ("s3://bucket/pets 2024/", "pets-2024"),
        ("/data/..", "photos"),
        ("/data/breeds.v2.csv", "breeds.v2"),
    ],
)
def test_data_set_name_from_a_url_excludes_its_secret(url, name):
    assert sources._name(url) == name
