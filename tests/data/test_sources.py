"""Sources: what they hold, how one is chosen, and one plain error for each fault."""

import gzip
import io
import tarfile

import pytest

from pets_core import storage
from pets_core.config import PipelineConfig
from pets_core.data.ingest import ingest
from pets_core.data.sources import AUTHORS_URL, open_source
from pets_core.errors import PetsError

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


def test_the_published_form_is_read(oxford):
    source = oxford()
    assert (source.name, source.has_official_split) == ("oxford-iiit-pet", True)
    catalogue = source.catalogue()
    assert list(catalogue.classes.items()) == [("Pug", "dog"), ("Birman", "cat")]
    assert {p.id: (p.label, p.species, p.official) for p in catalogue.photos.values()} == {
        "Birman_1": ("Birman", "cat", "trainval"),
        "pug_2": ("Pug", "dog", "trainval"),
        "Birman_3": ("Birman", "cat", "test"),
        "pug_4": ("Pug", "dog", "test"),
    }
    assert list(source.read()) == [
        (name[:-4], f"images/{name}", data) for name, data in PHOTOS
    ]  # fmt: skip


def test_breeds_of_two_words_and_ids_are_told_apart(oxford):
    row = "american_pit_bull_terrier_7 3 2 2\n"
    catalogue = oxford(trainval=TRAINVAL + row).catalogue()
    assert catalogue.photos["american_pit_bull_terrier_7"].label == "American Pit Bull Terrier"


def test_list_txt_may_be_absent_but_no_other(tmp_path, write_oxford):
    for left_out in LISTS:
        folder = tmp_path / left_out
        write_oxford(folder, PHOTOS, {n: text for n, text in LISTS.items() if n != left_out})
        source = open_source(config(tmp_path, url=str(folder)))
        if left_out == "list.txt":
            assert len(source.catalogue().photos) == 4
        else:
            with pytest.raises(PetsError, match=f"holds no {left_out}"):
                source.catalogue()


@pytest.mark.parametrize(
    "line", ["Birman_5 2 1", "Birman_5 2 1 1 9", "Birman_5 two 1 1", "Birman_5", "Birman_5 2 1 -1"]
)
def test_a_bad_line_is_named(oxford, line):
    with pytest.raises(PetsError, match=r"test\.txt line 4 is '.*expected") as caught:
        oxford(test=f"{TEST}{line}\n").catalogue()
    assert repr(line) in str(caught.value)


def test_a_text_file_in_another_encoding_is_a_bad_line_at_most(tmp_path, write_archive):
    members = [(f"annotations/{name}", text.encode()) for name, text in LISTS.items()]
    write_archive(tmp_path / "pets/images.tar.gz", [])
    write_archive(
        tmp_path / "pets/annotations.tar.gz", [*members, ("annotations/._list.txt", b"\xff\xfe")]
    )
    source = open_source(config(tmp_path, url=str(tmp_path / "pets")))
    assert len(source.catalogue().photos) == 4


def test_folders_hold_a_class_each(tmp_path, jpeg):
    for path in ("pug/b.jpg", "pug/deep/a.jpg", "Birman/a.jpg", "pug/.DS_Store", ".git/x.jpg"):
        (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / path).write_bytes(path.encode())
    (tmp_path / "mine" / "README.md").write_text("not in a class")
    (tmp_path / "mine" / "pug" / "notes.txt").write_text("no photo")
    source = open_source(config(tmp_path, url=str(tmp_path / "mine") + "/"))
    assert (source.name, source.has_official_split) == ("mine", False)
    catalogue = source.catalogue()
    assert list(catalogue.classes.items()) == [("Birman", None), ("pug", None)]
    assert {i: p.label for i, p in catalogue.photos.items()} == {
        "Birman/a.jpg": "Birman", "pug/b.jpg": "pug", "pug/deep/a.jpg": "pug",
    }  # fmt: skip
    assert [(path, data.decode()) for _, path, data in source.read()] == [
        ("Birman/a.jpg", "Birman/a.jpg"), ("pug/b.jpg", "pug/b.jpg"),
        ("pug/deep/a.jpg", "pug/deep/a.jpg"), ("pug/notes.txt", "no photo"),
    ]  # fmt: skip


def test_folders_may_lie_in_any_store(tmp_path):
    root = f"memory://{tmp_path.name}/mine"
    for path in ("a/1.jpg", "b/2.jpg"):
        storage.write_bytes(f"{root}/{path}", path.encode())
    source = open_source(config(tmp_path, url=root))
    assert [(i, data.decode()) for i, _, data in source.read()] == [
        ("a/1.jpg", "a/1.jpg"), ("b/2.jpg", "b/2.jpg"),
    ]  # fmt: skip
    storage.remove(root)


def test_the_source_is_chosen_by_what_lies_there(tmp_path, oxford, write_folder, drawn_sample):
    assert type(oxford()).__name__ == "OxfordPetSource"
    url = str(write_folder(tmp_path / "mine", {"a": 1, "b": 1}))
    assert type(open_source(config(tmp_path, url=url))).__name__ == "FolderSource"
    assert type(open_source(config(tmp_path, url=url, kind="folder"))).__name__ == "FolderSource"
    assert open_source(config(tmp_path, kind="oxford-iiit-pet")).url == AUTHORS_URL


@pytest.mark.parametrize("kind", ["auto", "sample"])
def test_no_url_means_the_sample_drawn_once(tmp_path, drawn_sample, kind):
    settings = config(tmp_path, kind=kind, sample_photos_per_breed=4)
    source = open_source(settings)
    assert source.name == "sample"
    (archive,) = (tmp_path / "cache").rglob("images.tar.gz")
    assert archive.read_bytes() == (drawn_sample / "images.tar.gz").read_bytes()
    written = archive.stat().st_mtime_ns
    open_source(settings)
    assert archive.stat().st_mtime_ns == written


@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_no_such_url(tmp_path, kind):
    for url in (str(tmp_path / "none"), "nostore://bucket", "http://127.0.0.1:9/pets"):
        with pytest.raises(PetsError, match=url.rsplit("/", 1)[-1]):
            open_source(config(tmp_path, url=url, kind=kind))


def test_no_such_archive(tmp_path):
    source = open_source(config(tmp_path, url=str(tmp_path / "none"), kind="oxford-iiit-pet"))
    with pytest.raises(PetsError, match=r"annotations\.tar\.gz does not exist"):
        source.catalogue()


def test_an_empty_folder_and_one_without_classes(tmp_path, jpeg):
    folder = tmp_path / "mine"
    folder.mkdir()
    for _ in range(2):
        with pytest.raises(PetsError, match="holds neither images"):
            open_source(config(tmp_path, url=str(folder)))
        (folder / "a.jpg").write_bytes(jpeg())


def cut_at_a_header(archive: bytes) -> bytes:
    """The archive compressed up to the middle of its last header: tarfile alone sees no fault."""
    tar = gzip.decompress(archive)
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        offset = opened.getmembers()[-1].offset
    whole = gzip.compress(tar[: offset + 100])
    return whole[:-8]


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
    "no gzip": lambda data: b"<html>404</html>" * 100,
}


@pytest.mark.parametrize("archive", ["images.tar.gz", "annotations.tar.gz"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_damaged_archive_is_one_plain_error(tmp_path, drawn_sample, archive, cut):
    folder = tmp_path / "pets"
    folder.mkdir()
    for name in ("images.tar.gz", "annotations.tar.gz"):
        data = (drawn_sample / name).read_bytes()
        (folder / name).write_bytes(CUTS[cut](data) if name == archive else data)
    with pytest.raises(PetsError, match=rf"{archive} is cut short or damaged.*fetch it again"):
        ingest(config(tmp_path, url=str(folder)))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
