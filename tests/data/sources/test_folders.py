"""Class folders and split folders, detected by their names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.sources.folders import read_layout, split_of_path
from pets_core.errors import PetsError


def make_paths(text: str) -> list[str]:
    """Paths of two photos per listed folder; an entry with a suffix is a single file."""
    paths = []
    for entry in text.split():
        paths += [entry] if "." in entry else [f"{entry}/{n}.jpg" for n in range(2)]
    return paths


def read(text: str, class_folder="auto"):
    """Class and split of each folder, and the reason for each skipped path."""
    catalogue = read_layout(make_paths(text), class_folder)
    found = {
        path.rsplit("/", 1)[0]: (photo.label, photo.predefined_split)
        for path, photo in catalogue.photos.items()
    }
    return found, {path: reason for path, (reason, _) in catalogue.skipped.items()}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), ("train", "valid")),
        (("train", "valid", "test"), ("train", "valid", "test")),
        (("Train", "VALIDATION"), ("train", "valid")),
        (("training", "testing"), ("trainval", "test")),
        (("train", "test"), ("trainval", "test")),
        (("seg_train", "seg_test"), ("trainval", "test")),
        (("training_set", "test_set"), ("trainval", "test")),
        (("train2017", "val2017"), ("train", "valid")),
    ],
)
@pytest.mark.parametrize("top", ["", "photos/", "data/photos/"])
def test_split_folders_define_the_split(folders, splits, top):
    text = " ".join(f"{top}{folder}/{label}" for folder in folders for label in ("cat", "dog"))
    found, skipped = read(f"{text} {top}README.md")
    assert skipped == {}
    assert found == {
        f"{top}{folder}/{label}": (label, split)
        for folder, split in zip(folders, splits, strict=True)
        for label in ("cat", "dog")
    }


@pytest.mark.parametrize("test", ["test", "test/unknown", "test/test", "test/images/all"])
def test_test_photos_without_labels_are_skipped(test):
    found, skipped = read(f"train/cat train/dog {test}")
    assert found == {"train/cat": ("cat", None), "train/dog": ("dog", None)}
    assert skipped == {f"{test}/{n}.jpg": "unlabelled" for n in range(2)}
    found, _ = read(f"train/cat train/dog val/cat val/dog {test}")
    assert found["val/cat"] == ("cat", "valid")


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_folders_that_differ_from_training_are_kept(split):
    """Classes with other spellings in another split are kept."""
    found, skipped = read(f"train/Cat train/Dog {split}/cat {split}/dog")
    assert skipped == {}
    assert {label for label, _ in found.values()} == {"Cat", "Dog", "cat", "dog"}


def test_photos_outside_the_splits_are_skipped():
    found, skipped = read("train/cat train/dog test/cat test/dog extra/cat sample cover.jpg")
    assert {name.split("/")[0] for name in found} == {"train", "test"}
    assert set(skipped.values()) == {"in_no_split"}
    assert {path.split("/")[0] for path in skipped} == {"extra", "sample"}


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("cat dog", "cat dog"),
        ("train bus car", "train bus car"),
        ("train_station test_tube", "train_station test_tube"),
        ("cat/indoor cat/outdoor dog", "cat dog"),
        ("cat cat/raw dog dog/raw", "cat dog"),
        ("photos/cat photos/dog cover.jpg", "cat dog"),
        ("cat dog notes/a.txt", "cat dog"),
        ("cat/IMG_1.HEIC dog", "cat dog"),
        ("train/cat train/dog", "cat dog"),
        ("2023/cat 2023/dog 2024", "2023 2024"),
    ],
)
def test_other_folders_are_classes(text, classes):
    found, _ = read(text)
    assert {label for label, _ in found.values()} == set(classes.split())
    assert {split for _, split in found.values()} == {None}


def test_nested_split_folders_are_one_split():
    found, _ = read("seg_train/seg_train/sea seg_train/seg_train/ice seg_test/seg_test/sea "
                    "seg_test/seg_test/ice seg_pred/seg_pred")  # fmt: skip
    assert found["seg_train/seg_train/sea"] == ("sea", "trainval")
    assert found["seg_test/seg_test/ice"] == ("ice", "test")


@pytest.mark.parametrize("text", ["2023/cat 2023/dog 2024/cat 2024/dog", "cat/a dog/a",
                                  "x/1/cat x/1/dog x/2/cat x/2/dog x/2/owl",
                                  "2023/cat 2023/dog 2024/cat", "ann/cat ann/dog bob/cat bob/fox",
                                  "2021/cat 2022/cat 2022/dog 2023/Cat"])  # fmt: skip
def test_class_folders_with_equal_subfolders_are_ambiguous(text):
    with pytest.raises(PetsError, match=r"source\.class_folder = auto: .*first.*or last") as caught:
        read(text)
    assert "contain folders of the same names" in str(caught.value)
    first, _ = read(text, "first")
    last, _ = read(text, "last")
    assert {label for label, _ in last.values()} == {e.split("/")[-1] for e in text.split()}
    with pytest.raises(PetsError, match="class_folder"):
        read(f"{text} {text.split('/')[0]}/cover.jpg {text.split('/')[0]}/README.md")
    assert {label for label, _ in first.values()}.isdisjoint({label for label, _ in last.values()})


def test_class_folder_last_applies_within_splits():
    found, _ = read("train/2023/cat train/2024/dog val/2023/cat val/2023/dog", "last")
    assert found["train/2024/dog"] == ("dog", "train")
    assert found["val/2023/cat"] == ("cat", "valid")


@pytest.mark.parametrize("stray", ["LICENSE", "x.jpg", "README.md", ".gitignore"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train", "seg_test"),
        ("Train Data", "Test Data"),
        ("train2017", "val2017"),
        ("train", "test"),
    ],
)
def test_stray_file_does_not_disable_the_splits(train, test, stray):
    paths = [f"{s}/{c}/{n}.jpg" for s in (train, test) for c in ("cat", "dog") for n in range(4)]
    catalogue = read_layout([*paths, f"{train}/{stray}"], "auto")
    assert set(catalogue.photos) == set(paths)
    assert list(catalogue.vocabulary) == ["cat", "dog"]
    splits = {photo.predefined_split for photo in catalogue.photos.values()}
    assert len(splits - {None}) == 2


@pytest.mark.parametrize("stray", ["LICENSE", "preview.png"])
def test_stray_file_does_not_make_its_folder_a_class(stray):
    paths = [f"top/{c}/{n}.jpg" for c in ("cat", "dog") for n in range(4)]
    catalogue = read_layout([*paths, f"top/{stray}"], "auto")
    assert list(catalogue.vocabulary) == ["cat", "dog"]


def test_split_folders_can_be_inside_class_folders():
    found, _ = read("cat/train cat/test dog/train dog/test")
    assert found["cat/train"] == ("cat", "trainval")
    assert found["dog/test"] == ("dog", "test")
    found, _ = read("cat/train cat/val dog/train dog/val", "first")
    assert found["cat/val"] == ("cat", "valid")


def test_folders_without_photos_in_splits_are_not_classes():
    found, _ = read("train/cat train/dog train/labels/1.txt val/cat val/labels/1.txt")
    assert {label for label, _ in found.values()} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("name", "is_warned"),
    [("img.0", True), ("1.jpg?w=200", True), ("a.txt", False), ("a.json", False)],
)
@pytest.mark.parametrize("top", ["", "train/"])
def test_folders_of_unknown_files_are_reported(name, is_warned, top):
    paths = [f"{top}{c}/{n}.jpg" for c in ("cat", "dog") for n in range(2)]
    paths += ["val/cat/1.jpg"] if top else []
    catalogue = read_layout([*paths, f"{top}fox/{name}"], "auto")
    assert "fox" not in catalogue.vocabulary
    assert len(catalogue.warnings) == is_warned
    assert all("fox (1 of unknown type)" in warning for warning in catalogue.warnings)


@pytest.mark.parametrize("name", ["cat", "cats", "Cafe\u0301"])
def test_the_only_class_of_a_validation_folder_is_kept(name):
    """Its spelling may differ from train; a later error is better than losing its photos."""
    found, skipped = read(f"train/Cat train/Café val/{name}")  # codespell:ignore caf
    assert skipped == {}
    assert found[f"val/{name}"] == (name, "valid")


def test_blanks_around_a_class_are_trimmed():
    catalogue = read_layout(["cat /1.jpg", "dog/1.jpg"], "auto")
    labels = {path: photo.label for path, photo in catalogue.photos.items()}
    assert labels == {"cat /1.jpg": "cat", "dog/1.jpg": "dog"}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-00000-of-00002.parquet", "train"), ("validation.parquet", "valid"), ("0000", None),
     ("train_test", None), ("contest", None), ("Test_A", "test"), ("straining", None)],
)  # fmt: skip
def test_split_is_detected_from_a_word_of_the_name(name, split):
    assert split_of_path(name) == split


names = st.sampled_from(["cat", "dog", "train", "val", "test", "2023", "a.jpg", "b.jpg", "c.txt"])


@given(st.lists(st.lists(names, min_size=1, max_size=4).map("/".join), max_size=12))
def test_any_tree_is_read_or_refused(paths):
    """Each photo has either a label or a reason to be skipped."""
    try:
        catalogue = read_layout(sorted(set(paths)), "auto")
    except PetsError:
        return
    photos = catalogue.photos
    assert photos.keys().isdisjoint(catalogue.skipped)
    assert photos.keys() | catalogue.skipped.keys() <= set(paths)
    assert all(photo.label in path.split("/")[:-1] for path, photo in photos.items())
    assert list(catalogue.vocabulary) == sorted({photo.label for photo in photos.values()})
