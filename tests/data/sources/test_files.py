"""Files of folders and archives: equal listings and bytes, unsafe members skipped."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import resource
import struct
import tarfile
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.data.sources import archives
from pets_core.data.sources import files as files_module
from pets_core.data.sources.archives import open_archive, open_packed
from pets_core.data.sources.files import FileEntry, FolderFiles, ListedFiles, path_skip_reason
from pets_core.data.sources.formats import UnreadablePhotoError
from pets_core.data.sources.sources import open_source
from pets_core.errors import PetsError

SUFFIXES = ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip"]
PACKERS = {"tar": bytes, "gz": gzip.compress, "tgz": gzip.compress, "bz2": bz2.compress,
           "xz": lzma.compress}  # fmt: skip
NOISE = np.random.default_rng(0).bytes(40_000)
CONTENT = {
    "photos/pug/b.jpg": NOISE[:3_000],
    "photos/pug/deep/a.jpg": NOISE[3_000:20_000],
    "photos/Birman/a.jpg": b"",
    "photos/Birman/b c é.jpg": NOISE[20_000:],
}


def tar_of(content) -> bytes:
    """Tar of (path or TarInfo, bytes)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in content:
            info = path if isinstance(path, tarfile.TarInfo) else tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(content) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in content:
            archive.writestr(path, data)
    return buffer.getvalue()


def archive_of(suffix: str, content) -> bytes:
    if suffix == "zip":
        return zip_of(content)
    return PACKERS[suffix.rsplit(".", 1)[-1]](tar_of(content))


def special_member(path: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.linkname = kind, target
    return info


def config(tmp_path, url, **source) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(url), **source},
            "ingest": {"num_workers": 1, "max_quarantined_fraction": 1},
        }
    )


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.fixture
def open_bytes(tmp_path):
    """Write an archive and open it."""

    def run(suffix: str, data: bytes):
        path = tmp_path / f"photos.{suffix}"
        path.write_bytes(data)
        return open_archive(str(path), str(tmp_path / "cache"))

    return run


def read(files) -> dict[str, bytes]:
    paths = [entry.path for entry in files.entries() if not entry.skip_reason]
    return dict(zip(paths, files.read(paths), strict=True))


def skip_reasons(files) -> dict[str, str]:
    return {entry.path: entry.skip_reason for entry in files.entries() if entry.skip_reason}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_archive_type_gives_the_same_files(tmp_path, suffix):
    (tmp_path / f"mine.{suffix}").write_bytes(archive_of(suffix, CONTENT.items()))
    source = open_source(config(tmp_path, tmp_path / f"mine.{suffix}"))
    assert (source.name, source.has_predefined_split) == ("mine", False)
    catalogue = source.catalogue()
    assert list(catalogue.vocabulary) == ["Birman", "pug"]
    assert {i: p.label for i, p in catalogue.photos.items()} == {
        path: path.split("/")[1] for path in CONTENT
    }
    assert read(source.files) == CONTENT
    assert {e.path: e.size for e in source.files.entries()} == {
        p: len(d) for p, d in CONTENT.items()
    }
    reversed_paths = list(CONTENT)[::-1]
    assert list(source.files.read(reversed_paths)) == [CONTENT[path] for path in reversed_paths]
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: list(source.files.read(reversed_paths)), range(20)):
            assert found == [CONTENT[path] for path in reversed_paths]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archive_is_not_unpacked_and_is_scanned_only_once(tmp_path, open_bytes, suffix):
    data = archive_of(suffix, CONTENT.items())
    read(open_bytes(suffix, data))
    found = list_files(tmp_path / "cache")
    kinds = {"tar": [".parquet"], "zip": []}.get(suffix, [".data", ".parquet"])
    assert [path.suffix for path in found] == kinds
    if ".data" in kinds:
        assert found[0].read_bytes() == tar_of(CONTENT.items())
    written = [path.stat().st_mtime_ns for path in found]
    again = open_archive(str(tmp_path / f"photos.{suffix}"), str(tmp_path / "cache"))
    assert read(again) == CONTENT
    assert [path.stat().st_mtime_ns for path in list_files(tmp_path / "cache")] == written


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_version_tags_depend_on_content(open_bytes, suffix):
    def version_tags(content):
        return {
            e.path: e.version_tag for e in open_bytes(suffix, archive_of(suffix, content)).entries()
        }

    before = version_tags([("a", b"1"), ("b", b"2")])
    after = version_tags([("b", b"2"), ("a", b"3"), ("c", b"2")])
    assert before["b"] == after["b"] == after["c"]
    assert before["a"] != after["a"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_first_entry_of_a_duplicate_path_is_read(open_bytes, suffix):
    with pytest.warns(match="Duplicate name") if suffix == "zip" else nullcontext():
        data = archive_of(suffix, [("a", b"first"), ("b", b"b"), ("a", b"second")])
    files = open_bytes(suffix, data)
    assert list(files.read(["a", "b", "a"])) == [b"first", b"b", b"first"]
    assert [e.path for e in files.entries()] == ["a", "b", "a"]


def tar_members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getmembers()


TAR = tar_of(CONTENT.items())
TAR_CUTS = {
    "first header": 100,
    "long name": tar_members(TAR)[-1].offset_data - 1500,
    "header": tar_members(TAR)[1].offset + 100,
    "before a header": tar_members(TAR)[1].offset,
    "data": tar_members(TAR)[1].offset_data + 5_000,
    "last data": len(TAR.rstrip(b"\0")) - 1,
    "end": len(TAR.rstrip(b"\0")) // 512 * 512 + 512,
}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("cut", TAR_CUTS)
def test_truncated_tar_is_refused(tmp_path, open_bytes, suffix, cut):
    """The truncated tar is compressed intact, so only the tar parser can detect it."""
    data = PACKERS[suffix.rsplit(".", 1)[-1]](TAR[: TAR_CUTS[cut]])
    with pytest.raises(PetsError, match=rf"photos\.{suffix}: .* truncated or damaged.*Download it"):
        open_bytes(suffix, data)
    assert list_files(tmp_path / "cache") == []


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("kept", [0, 1, 3, 10, 200, 0.3, 0.6, 0.99, -20, -1])
def test_truncated_compressed_archive_is_refused(tmp_path, open_bytes, suffix, kept):
    data = archive_of(suffix, CONTENT.items())
    cut = data[: int(len(data) * kept) if isinstance(kept, float) else kept]
    with pytest.raises(PetsError, match=rf"photos\.{suffix}: .* truncated or damaged.*Download it"):
        open_bytes(suffix, cut)
    assert list_files(tmp_path / "cache") == []


@pytest.mark.parametrize("data", [b"<html>404</html>" * 100, b"PK and no more", b"\1" * 700])
def test_non_archive_is_refused(open_bytes, data):
    with pytest.raises(PetsError, match="truncated or damaged"):
        open_bytes("tar.gz", data)


def test_damaged_remote_archive_is_downloaded_again(tmp_path):
    url, cache = f"memory://{tmp_path.name}/photos.tar.gz", str(tmp_path / "cache")
    storage.write_bytes(url, gzip.compress(TAR)[:5_000])
    with pytest.raises(PetsError, match="truncated or damaged"):
        open_archive(url, cache)
    assert list_files(tmp_path / "cache") == []
    storage.write_bytes(url, gzip.compress(TAR))
    assert read(open_archive(url, cache)) == CONTENT


def test_full_disk_is_not_reported_as_a_damaged_archive(tmp_path):
    url, cache = f"memory://{tmp_path.name}/photos.tar.xz", tmp_path / "cache"
    packed = lzma.compress(tar_of([("a", bytes(10_000_000))]))
    storage.write_bytes(url, packed)
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, hard_limit))
    try:
        with pytest.raises(PetsError, match=r"photos\.tar\.xz: cannot read or cache.*cache_dir"):
            open_archive(url, str(cache))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft_limit, hard_limit))
    (download,) = list_files(cache)
    assert download.read_bytes() == packed


UNSAFE_MEMBERS = [
    (special_member("photos/pug/soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), "link"),
    (special_member("photos/pug/hard.jpg", tarfile.LNKTYPE, "photos/pug/b.jpg"), "link"),
    (special_member("photos/pug/fifo.jpg", tarfile.FIFOTYPE), "special_file"),
    (special_member("photos/pug/disk.jpg", tarfile.BLKTYPE), "special_file"),
    (special_member("photos/pug/null.jpg", tarfile.CHRTYPE), "special_file"),
    ("/photos/pug/absolute.jpg", "unsafe_path"),
    ("photos/../../pug/up.jpg", "unsafe_path"),
]


@pytest.mark.parametrize("suffix", ["tar", "tar.xz"])
def test_unsafe_tar_members_are_skipped(open_bytes, suffix):
    members = [(member, b"") for member, _ in UNSAFE_MEMBERS]
    files = open_bytes(suffix, archive_of(suffix, [*CONTENT.items(), *members]))
    assert skip_reasons(files) == {
        member if isinstance(member, str) else member.name: reason
        for member, reason in UNSAFE_MEMBERS
    }
    assert {entry.version_tag for entry in files.entries() if entry.skip_reason} == {""}
    assert read(files) == CONTENT


def zip_entry(path: str, mode: int = 0, flags: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(path)
    info.external_attr, info.flag_bits = mode << 16, flags
    return info


def test_unsafe_zip_members_are_skipped(open_bytes):
    unsafe = {
        "photos/pug/soft.jpg": (0o120777, "link"),
        "photos/pug/fifo.jpg": (0o010644, "special_file"),
        "photos/pug/disk.jpg": (0o060644, "special_file"),
        "/photos/pug/absolute.jpg": (0o100644, "unsafe_path"),
        "../pug/up.jpg": (0o100644, "unsafe_path"),
        "photos/pug/secret.jpg": (0o100644, "encrypted"),
    }
    members = [(zip_entry(path, mode), b"x") for path, (mode, _) in unsafe.items()]
    data = bytearray(zip_of([*CONTENT.items(), *members, ("photos/empty/", b"")]))
    # The flags of a central directory entry are stored 38 bytes before its name.
    struct.pack_into("<H", data, data.rindex(b"photos/pug/secret.jpg") - 38, 1)
    files = open_bytes("zip", bytes(data))
    assert skip_reasons(files) == {path: reason for path, (_, reason) in unsafe.items()}
    assert read(files) == CONTENT


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_too_large_file_is_skipped_without_reading(open_bytes, monkeypatch, suffix):
    monkeypatch.setattr(files_module, "MAX_FILE_BYTES", 3_000)
    sizes = []

    def pread(descriptor, size, offset, inner=os.pread):
        sizes.append(size)
        return inner(descriptor, size, offset)

    monkeypatch.setattr(archives.os, "pread", pread)
    files = open_bytes(suffix, archive_of(suffix, CONTENT.items()))
    assert set(skip_reasons(files).values()) == {"too_large"}
    assert {p for p, d in CONTENT.items() if len(d) > 3_000} == set(skip_reasons(files))
    read(files)
    assert max(sizes, default=0) <= 3_000


@pytest.mark.parametrize("stated_size", [1 << 33, 1 << 40])
def test_tar_member_larger_than_the_archive_is_refused(open_bytes, stated_size):
    info = tarfile.TarInfo("photos/pug/huge.jpg")
    info.size = stated_size
    with pytest.raises(PetsError, match="truncated"):
        open_bytes("tar", info.tobuf() + NOISE)


@pytest.mark.parametrize(("stated_size", "is_skipped"), [(10, False), (1 << 29, True)])
def test_zip_member_with_a_false_size_is_unreadable(open_bytes, stated_size, is_skipped):
    """A member with a too small size yields at most that size, and its CRC check fails."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pug/bomb.jpg", bytes(5_000_000))
    data = bytearray(buffer.getvalue())
    struct.pack_into("<I", data, data.rindex(b"pug/bomb.jpg") - 46 + 24, stated_size)
    files = open_bytes("zip", bytes(data))
    assert skip_reasons(files) == ({"pug/bomb.jpg": "too_large"} if is_skipped else {})
    if not is_skipped:
        (result,) = files.read(["pug/bomb.jpg"])
        assert isinstance(result, UnreadablePhotoError)
        assert "CRC" in result.detail


def test_damaged_zip_member_does_not_affect_others(open_bytes):
    data = bytearray(zip_of(CONTENT.items()))
    offset = data.index(NOISE[:100])
    data[offset + 50] ^= 1
    files = open_bytes("zip", bytes(data))
    paths = [entry.path for entry in files.entries()]
    found = dict(zip(paths, files.read(paths), strict=True))
    damaged = found.pop("photos/pug/b.jpg")
    assert isinstance(damaged, UnreadablePhotoError)
    assert (damaged.reason, "CRC" in damaged.detail) == ("damaged", True)
    assert found == {path: data for path, data in CONTENT.items() if path in found}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_damaged_archive_raises_only_pets_error(open_bytes, suffix):
    rng, num_refused = random.Random(0), 0
    content = {path: data[:700] for path, data in CONTENT.items()}
    intact = archive_of(suffix, content.items())
    for _ in range(80):
        damaged = bytearray(intact)
        for _ in range(rng.choice([1, 3, 30])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            found = read(open_bytes(suffix, bytes(damaged)))
            num_refused += any(isinstance(data, UnreadablePhotoError) for data in found.values())
        except PetsError:
            num_refused += 1
    assert num_refused > 20


def test_unsafe_members_are_quarantined(tmp_path, jpeg):
    photos = [
        (f"{label}/{n}.jpg", jpeg(n + 50 * (label == "b"))) for label in "ab" for n in range(4)
    ]
    (tmp_path / "photos.tar").write_bytes(
        tar_of(
            [*photos, *((member, b"") for member, _ in UNSAFE_MEMBERS), ("README", b"x"), photos[0]]
        )
    )
    manifest = ingest(config(tmp_path, tmp_path / "photos.tar"))
    assert manifest.num_rows == 8
    assert manifest.quarantine_reasons == {
        **Counter(reason for _, reason in UNSAFE_MEMBERS), "not_a_photo": 1, "same_id": 1,
    }  # fmt: skip


def test_failed_packed_file_leaves_no_files(tmp_path):
    def members(sink):
        sink.write(b"half")
        yield FileEntry("a", 4, "1"), 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_packed(("a",), str(tmp_path), members)
    assert list_files(tmp_path) == []


def test_packed_file_can_be_empty(open_bytes):
    assert list(open_bytes("tar.gz", gzip.compress(tar_of([]))).entries()) == []


@pytest.fixture(params=["file", "memory"])
def folder(request, tmp_path) -> str:
    return str(tmp_path / "mine") if request.param == "file" else f"memory://{tmp_path.name}"


def test_folder_is_listed_in_order_and_system_files_are_skipped(folder):
    for path in ("b/2.jpg", "a/x y.jpg", "a/deep/50%.jpg", "a/.DS_Store", ".git/x.jpg", "README",
                 "a/@eaDir/1.jpg/THUMB.jpg", "#recycle/b/2.jpg"):  # fmt: skip
        storage.write_bytes(storage.join(folder, path), path.encode())
    files = FolderFiles(folder)
    paths = [entry.path for entry in files.entries() if not entry.skip_reason]
    assert paths == ["README", "a/deep/50%.jpg", "a/x y.jpg", "b/2.jpg"]
    assert skip_reasons(files) == {
        "a/.DS_Store": "hidden", ".git/x.jpg": "hidden", "#recycle/b/2.jpg": "system_folder",
        "a/@eaDir/1.jpg/THUMB.jpg": "system_folder",
    }  # fmt: skip
    assert [entry.size for entry in files.entries()] == [len(e.path) for e in files.entries()]
    assert list(files.read(paths[::-1])) == [path.encode() for path in paths[::-1]]


def test_version_tags_of_a_folder_change_with_its_files(folder):
    for path in ("a/1", "a/2"):
        storage.write_bytes(storage.join(folder, path), b"old")
    before = {entry.path: entry.version_tag for entry in FolderFiles(folder).entries()}
    assert {entry.path: entry.version_tag for entry in FolderFiles(folder).entries()} == before
    storage.write_bytes(storage.join(folder, "a/2"), b"new")
    after = {entry.path: entry.version_tag for entry in FolderFiles(folder).entries()}
    assert (after["a/1"] == before["a/1"], after["a/2"] == before["a/2"]) == (True, False)


def test_links_are_followed_and_special_files_skipped(tmp_path):
    """Links to photos are followed; files that would block or fail a reader are skipped."""
    (tmp_path / "mine/a").mkdir(parents=True)
    (tmp_path / "real.jpg").write_bytes(b"photo")
    for name, target in {"good.jpg": "real.jpg", "broken.jpg": "none", "folder": "mine"}.items():
        (tmp_path / "mine/a" / name).symlink_to(tmp_path / target)
    os.mkfifo(tmp_path / "mine/a/fifo.jpg")
    files = FolderFiles(str(tmp_path / "mine"))
    assert skip_reasons(files) == {
        "a/broken.jpg": "missing", "a/folder": "special_file", "a/fifo.jpg": "special_file",
    }  # fmt: skip
    assert read(files) == {"a/good.jpg": b"photo"}


def test_missing_listed_files_are_skipped(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    names = ["none.jpg", "photo.jpg", "", "photo.jpg/inside"]
    files = ListedFiles(names, partial(storage.resolve_file, str(tmp_path)))
    assert skip_reasons(files) == {
        "none.jpg": "missing", "": "special_file", "photo.jpg/inside": "missing",
    }  # fmt: skip
    with pytest.raises(PetsError, match=r"none\.jpg cannot be read"):
        list(files.read(["none.jpg"]))


def test_many_files_are_read_in_the_requested_order(folder):
    paths = [f"{n % 7}/{n}" for n in range(150)]
    for path in paths:
        storage.write_bytes(storage.join(folder, path), path.encode())
    random.Random(0).shuffle(paths)
    assert list(FolderFiles(folder).read(paths)) == [path.encode() for path in paths]


def test_folder_links_are_followed_without_cycles(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.jpg").write_bytes(b"one")
    (tmp_path / "mine/pug").mkdir(parents=True)
    (tmp_path / "mine/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine/pug/round").symlink_to(tmp_path / "mine")
    files = FolderFiles(str(tmp_path / "mine"))
    assert [(e.path, e.skip_reason) for e in files.entries()] == [
        ("cat/1.jpg", ""), ("pug/round", "special_file"),
    ]  # fmt: skip
    assert list(files.read(["cat/1.jpg"])) == [b"one"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize(
    ("name", "path"),
    [("./cat/1.jpg", "cat/1.jpg"), ("photos//cat/1.jpg", "photos/cat/1.jpg"),
     ("././a/./1.jpg", "a/1.jpg"), ("cat\\sub\\1.jpg", "cat/sub/1.jpg"),
     ("Ka\u0308tzchen/1.jpg", "Kätzchen/1.jpg"), ("a::b/50%#1?.jpg", "a::b/50%#1?.jpg"),
     ("C:\\photos\\1.jpg", "C:/photos/1.jpg")],
)  # fmt: skip
def test_archive_member_names_are_normalised(open_bytes, suffix, name, path):
    files = open_bytes(suffix, archive_of(suffix, [(name, b"photo"), ("other", b"2")]))
    assert [(e.path, e.skip_reason) for e in files.entries()] == [(path, ""), ("other", "")]
    assert list(files.read([path])) == [b"photo"]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_name_normalisation_is_idempotent(name):
    path = archives._member_path(name)
    assert archives._member_path(path) == path
    assert "\\" not in path
    assert not {"", "."} & set(path.lstrip("/").split("/")) or path in ("", "/")


def test_utf8_names_without_the_zip_flag_are_decoded(open_bytes):
    """Many tools write such archives; Python decodes the names as CP437."""
    data = zip_of([("Katze/1.jpg", b"photo")])
    name = "Kätz/1.jpg".encode()
    assert len(name) == len(b"Katze/1.jpg")
    files = open_bytes("zip", data.replace(b"Katze/1.jpg", name))
    assert [entry.path for entry in files.entries()] == ["Kätz/1.jpg"]
    assert read(files) == {"Kätz/1.jpg": b"photo"}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_non_utf8_name_in_a_tar_skips_only_that_file(open_bytes, suffix):
    members = [(b"cat/K\xe4tz.jpg".decode(errors="surrogateescape"), b"1"), ("cat/2.jpg", b"2")]
    files = open_bytes(suffix, archive_of(suffix, members))
    assert skip_reasons(files) == {"cat/K\\xe4tz.jpg": "name_not_utf8"}
    assert read(files) == {"cat/2.jpg": b"2"}


ODD_NAMES = ["12::30.jpg", "a#b.jpg", "what?.jpg", "50%.jpg", "50%41.jpg", "a b.jpg", "*[1].jpg"]


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_special_characters_in_file_names_are_kept(tmp_path, kind, serve):
    (tmp_path / "mine/cat").mkdir(parents=True)
    content = {f"cat/{name}": name.encode() for name in ODD_NAMES}
    for path, data in content.items():
        (tmp_path / "mine" / path).write_bytes(data)
    url = str(tmp_path / "mine")
    if kind == "http":
        url = serve(SimpleHTTPRequestHandler, directory=tmp_path / "mine")
    files = FolderFiles(url)
    assert skip_reasons(files) == {}
    assert read(files) == content


@pytest.mark.parametrize("kind", ["folder", "http"])
def test_non_utf8_name_skips_only_that_file(tmp_path, kind, serve):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"1")
    (folder / os.fsdecode(b"K\xe4tz.jpg")).write_bytes(b"2")
    url = str(folder)
    if kind == "http":
        url = serve(SimpleHTTPRequestHandler, directory=folder)
    files = FolderFiles(url)
    # Python's web server encodes this byte differently.
    name = "K\\xe4tz.jpg" if kind == "folder" else "K\\xed\\xb3\\xa4tz.jpg"
    assert skip_reasons(files) == {name: "name_not_utf8"}
    assert read(files) == {"1.jpg": b"1"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [("cat/@eaDir/1.jpg/T.jpg", "system_folder"), ("#recycle/1.jpg", "system_folder"),
     ("System Volume Information/x", "system_folder"), ("lost+found/1.jpg", "system_folder"),
     (".Trash/1.jpg", "system_folder"), ("a/.trashes/501/1.jpg", "system_folder"),
     ("$RECYCLE.BIN/1.jpg", "system_folder"), ("cat/.hidden/1.jpg", "hidden"),
     ("cat/._1.jpg", "hidden"), ("@eaDir", ""), ("cat/#1.jpg", ""), ("recycler.jpg", "")],
)  # fmt: skip
def test_system_and_hidden_paths_are_skipped(path, reason):
    assert path_skip_reason(path) == reason


def test_unlistable_recycle_bin_is_skipped(tmp_path, monkeypatch):
    for path in ("cat/1.jpg", "lost+found/2.jpg"):
        storage.write_bytes(str(tmp_path / path), b"x")
    fs = storage.filesystem(str(tmp_path))[0]

    def ls(folder, inner=fs.ls, **keywords):
        if folder.endswith(("lost+found", "secret")):
            raise PermissionError(folder)
        return inner(folder, **keywords)

    monkeypatch.setattr(type(fs), "ls", lambda _, folder, **keywords: ls(folder, **keywords))
    assert skip_reasons(FolderFiles(str(tmp_path))) == {"lost+found/": "system_folder"}
    (tmp_path / "secret").mkdir()
    with pytest.raises(PetsError, match="cannot be listed"):
        FolderFiles(str(tmp_path)).entries()


@pytest.mark.parametrize("name", ["sub\\1.jpg", "Ka\u0308tz.jpg", " 1.jpg"])
def test_listed_name_matches_an_equivalent_name_on_disk(tmp_path, name):
    (tmp_path / "sub").mkdir()
    for existing in ("sub/1.jpg", "Kätz.jpg", "1.jpg"):
        (tmp_path / existing).write_bytes(b"x")
    files = ListedFiles([name], partial(storage.resolve_file, str(tmp_path)))
    assert skip_reasons(files) == {}
    assert read(files) == {name: b"x"}


def test_full_cache_error_names_cache_dir_and_keeps_the_download(tmp_path, monkeypatch, serve):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/photos.tar.gz").write_bytes(archive_of("tar.gz", CONTENT.items()))
    url = serve(SimpleHTTPRequestHandler, directory=tmp_path / "site") + "/photos.tar.gz"

    def copy(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(archives, "shutil", SimpleNamespace(copyfileobj=copy))
        with pytest.raises(
            PetsError, match=r"packed: cannot be written: .*set cache_dir to another"
        ):
            open_archive(url, str(cache))
    assert [p.name for p in list_files(cache) if "downloads" in str(p)]
    assert read(open_archive(url, str(cache))) == CONTENT
