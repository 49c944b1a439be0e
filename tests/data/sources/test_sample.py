"""The built-in sample: reproducible bytes, published format, distinguishable breeds."""

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import fromstring
from PIL import Image

from pets_core.data.sources.sample.sample import BREEDS, write_sample

PHOTOS = 5
REAL = Path(__file__).parents[4] / "shared/data/oxford-iiit-pet-256px/annotations.tar.gz"
# Published (class id, species, breed id) of some breeds, copied by hand.
PUBLISHED = {
    "Abyssinian": (1, 1, 1),
    "american_bulldog": (2, 2, 1),
    "Birman": (7, 1, 3),
    "Sphynx": (34, 1, 12),
    "staffordshire_bull_terrier": (35, 2, 23),
    "yorkshire_terrier": (37, 2, 25),
}


def read_archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:gz") as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def breed_of(name: str) -> str:
    return name.rsplit("_", 1)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "made" / "on_demand"
    write_sample(folder, photos_per_breed=PHOTOS)
    return folder


@pytest.fixture(scope="module")
def photos(folder) -> dict[str, bytes]:
    return read_archive(folder / "images.tar.gz")


@pytest.fixture(scope="module")
def lists(folder) -> dict[str, list[str]]:
    files = read_archive(folder / "annotations.tar.gz")
    return {name: content.decode().splitlines() for name, content in files.items()}


def test_same_arguments_give_the_same_bytes(folder, tmp_path):
    write_sample(tmp_path, photos_per_breed=PHOTOS)
    names = {"images.tar.gz", "annotations.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_archives_carry_no_time_owner_or_name(folder):
    for name in ("images.tar.gz", "annotations.tar.gz"):
        packed = (folder / name).read_bytes()
        assert packed[3] == 0, "the gzip header contains a file name"
        assert packed[4:8] == b"\0\0\0\0", "the gzip header contains a time"
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
            metadata = {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in tar}
        assert metadata == {(0, 0, 0, "", "", 0o644)}


def test_another_seed_gives_other_photos_and_another_split(photos, lists, tmp_path):
    write_sample(tmp_path, photos_per_breed=PHOTOS, seed=1)
    other_photos = read_archive(tmp_path / "images.tar.gz")
    assert other_photos.keys() == photos.keys()
    assert all(other_photos[name] != photos[name] for name in other_photos)
    other_lists = read_archive(tmp_path / "annotations.tar.gz")
    assert (
        other_lists["annotations/test.txt"].decode().splitlines() != (lists["annotations/test.txt"])
    )


def test_more_photos_keep_the_earlier_ones_unchanged(photos, tmp_path):
    write_sample(tmp_path, photos_per_breed=4)
    fewer = read_archive(tmp_path / "images.tar.gz")
    assert fewer == {name: photos[name] for name in fewer}


def test_photos_have_the_published_names(photos):
    assert len(BREEDS) == 37
    assert set(photos) == {
        f"images/{breed.name}_{n}.jpg" for breed in BREEDS for n in range(1, PHOTOS + 1)
    }


def test_lists_have_the_published_format(lists):
    texts = [name for name in lists if name.endswith(".txt")]
    assert texts == [f"annotations/{name}.txt" for name in ("list", "trainval", "test")]
    header, rows = lists["annotations/list.txt"][:4], lists["annotations/list.txt"][4:]
    assert header[0] == "#Image CLASS-ID SPECIES BREED ID"
    assert all(line.startswith("#") for line in header)
    ids_of_breed = {}
    for row in rows:
        name, *ids = row.split(" ")
        assert ids_of_breed.setdefault(breed_of(name), tuple(map(int, ids))) == tuple(map(int, ids))
    assert PUBLISHED.items() <= ids_of_breed.items()
    assert sorted(ids[0] for ids in ids_of_breed.values()) == list(range(1, 38))
    assert Counter(ids[1] for ids in ids_of_breed.values()) == {1: 12, 2: 25}


def test_every_photo_has_a_head_box(folder, lists):
    with tarfile.open(folder / "images.tar.gz") as tar:
        photos = {Path(info.name).stem: tar.extractfile(info).read() for info in tar}
    annotations = {Path(name).stem: rows for name, rows in lists.items() if name.endswith(".xml")}
    assert annotations.keys() == photos.keys()
    for name, (text,) in annotations.items():
        corners = {side.tag: int(side.text) for side in fromstring(text).find(".//bndbox")}
        width, height = Image.open(io.BytesIO(photos[name])).size
        assert 0 <= corners["xmin"] < corners["xmax"] <= width
        assert 0 <= corners["ymin"] < corners["ymax"] <= height
        # A drawn head covers more than a tenth of the width.
        assert corners["xmax"] - corners["xmin"] > 0.1 * width


def test_splits_are_disjoint_complete_and_hold_every_breed(lists):
    trainval, test = lists["annotations/trainval.txt"], lists["annotations/test.txt"]
    assert not set(trainval) & set(test)
    assert sorted(trainval + test) == sorted(lists["annotations/list.txt"][4:])
    names = {breed.name for breed in BREEDS}
    for rows, count in ((trainval, 3), (test, 2)):
        counts = Counter(breed_of(row.split(" ")[0]) for row in rows)
        assert counts == dict.fromkeys(names, count)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="the published annotations are missing")
def test_ids_match_the_published_list():
    def ids(archive: dict[str, bytes]) -> set[tuple[str, ...]]:
        rows = archive["annotations/list.txt"].decode().splitlines()
        fields = [row.split() for row in rows if not row.startswith("#")]
        return {(breed_of(name), *rest) for name, *rest in fields}

    sample_ids = {(b.name, str(b.class_id), str(b.species), str(b.breed_id)) for b in BREEDS}
    assert sample_ids == ids(read_archive(REAL))


def test_photos_are_colour_jpegs_of_varying_sizes(photos):
    sizes = set()
    for content in photos.values():
        with Image.open(io.BytesIO(content)) as photo:
            photo.load()
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            sizes.add(photo.size)
    sides = [side for size in sizes for side in size]
    assert len(sizes) > 50
    assert 180 <= min(sides) < 195
    assert 245 < max(sides) <= 260


def test_similar_breeds_are_nearer_than_others(photos):
    means = {}
    for breed in BREEDS:
        shrunk = [
            Image.open(io.BytesIO(photos[f"images/{breed.name}_{n}.jpg"])).resize((32, 32))
            for n in range(1, PHOTOS + 1)
        ]
        # Only the middle shows the animal; the background is independent of the breed.
        middles = [np.asarray(photo, dtype=float)[6:20, 10:22] for photo in shrunk]
        means[breed.name] = np.mean([middle.mean(axis=(0, 1)) for middle in middles], axis=0)

    def distance(one: str, other: str) -> float:
        return float(np.linalg.norm(means[one] - means[other]))

    assert distance("Birman", "Ragdoll") < distance("Birman", "Bombay")
    assert distance("British_Shorthair", "Russian_Blue") < distance("Russian_Blue", "shiba_inu")
    assert distance("Bengal", "Egyptian_Mau") < distance("Bengal", "newfoundland")


def test_failed_write_keeps_the_old_archives(tmp_path, monkeypatch):
    write_sample(tmp_path, photos_per_breed=4)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    drawn = []

    def fail_at_the_tenth(*args: object) -> bytes:
        drawn.append(args)
        if len(drawn) == 10:
            raise OSError("the disk is full")
        return b"photo"

    monkeypatch.setattr("pets_core.data.sources.sample.sample._draw_photo", fail_at_the_tenth)
    with pytest.raises(OSError, match="the disk is full"):
        write_sample(tmp_path, photos_per_breed=4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
