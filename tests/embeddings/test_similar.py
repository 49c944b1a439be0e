"""Embedding of a data set by ranks, its near-duplicates, and a search for similar photos."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_model import write_tiny_model

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.ingest.commit import ingest
from pets_core.embeddings.near import find_near_duplicates
from pets_core.embeddings.similar import find_similar_photos
from pets_core.errors import PetsError
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo, DatasetManifest
from pets_core.records.inference import EmbedResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

NUM_PHOTOS, PLANTED = 40, (3, 8, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, drawn_sample) -> Path:
    """Photos and a table of splits; cropped, recompressed copies of some are in the test split."""
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(drawn_sample / "images.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".jpg")][:NUM_PHOTOS]
        photos = [archive.extractfile(member).read() for member in members]
    rows = []
    for number, (member, data) in enumerate(zip(members, photos, strict=True)):
        name, breed = f"{number:02}.jpg", Path(member.name).stem.rsplit("_", 1)[0]
        (folder / name).write_bytes(data)
        rows.append((name, breed, "valid" if number % 5 == 4 else "train"))
        if number in PLANTED:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                again = image.crop((0, 0, width - width // 12, height - height // 12))
                again.save(folder / f"again-{name}", quality=60)
            rows.append((f"again-{name}", breed, "test"))
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table.to_csv(folder / "photos.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, folder) -> PipelineConfig:
    work = tmp_path_factory.mktemp("work")
    return PipelineConfig.model_validate(
        {
            "store": str(work / "store"),
            "cache_dir": str(work / "cache"),
            "source": {"url": str(folder / "photos.csv"), "split_column": "split"},
            "model": {"image_size": 96},
            "evaluate": {"batch_size": 7},
            "launch": {"num_threads": 1},
            "train": {"mixed_precision": "no"},
        }
    )


@pytest.fixture(scope="module")
def manifest(config) -> DatasetManifest:
    return ingest(config)


@pytest.fixture(scope="module")
def model_url(config, tmp_path_factory) -> str:
    """Model with the built-in pretrained backbone; its classes differ from the data set's."""
    built = create_model(config, (ClassInfo(name="cat"), ClassInfo(name="dog")), "f")
    url = str(tmp_path_factory.mktemp("models") / "model")
    save_model(url, built.card, built.model.state_dict())
    return url


def embedded(
    config: PipelineConfig, manifest: DatasetManifest, model_url: str, run: Path, num_ranks: int = 1
) -> EmbedResult:
    launches = config.launch.model_copy(update={"num_processes": num_ranks})
    request = WorkRequest(
        stage="embed", config=config.model_copy(update={"launch": launches}), run_url=str(run),
        manifest=manifest, model_url=model_url,
    )  # fmt: skip
    return launch(request, EmbedResult)


@pytest.fixture(scope="module")
def run(config, manifest, model_url, tmp_path_factory) -> Path:
    """Folder of a run with the embeddings of one rank."""
    run = tmp_path_factory.mktemp("run")
    embedded(config, manifest, model_url, run)
    return run


def test_embeddings_are_independent_of_the_number_of_ranks(
    config, manifest, model_url, run, tmp_path
):
    result = embedded(config, manifest, model_url, tmp_path, num_ranks=2)
    assert result.num_photos == NUM_PHOTOS + len(PLANTED)
    one = pq.read_table(run / "embeddings/embeddings.parquet")
    two = pq.read_table(result.embeddings_url)
    assert one.drop_columns("embedding").equals(two.drop_columns("embedding"))
    assert one.schema.equals(two.schema, check_metadata=True)
    features = np.stack(one["embedding"].to_pylist())
    assert features.shape == (result.num_photos, 1280)
    np.testing.assert_allclose(np.stack(two["embedding"].to_pylist()), features, atol=1e-4)
    photos = pq.read_table(f"{manifest.url}/photos.parquet").to_pylist()
    stored = {row["id"]: (row["split"], row["target_text"]) for row in photos}
    found = one.drop_columns("embedding").to_pylist()
    assert {row["id"]: (row["split"], row["target_text"]) for row in found} == stored
    assert len(found) == len(stored)


def test_planted_near_duplicates_are_found(manifest, run, tmp_path):
    url = str(run / "embeddings/embeddings.parquet")
    found = find_near_duplicates(manifest, str(tmp_path), url, 0.8)
    rows = pq.read_table(found.url).to_pylist()
    pairs = [(row["id"], row["match_id"], row["match_split"]) for row in rows]
    assert sorted(pairs[:3]) == [(f"{n:02}.jpg", f"again-{n:02}.jpg", "test") for n in PLANTED]
    # A hash of low frequencies does not match cropped copies.
    assert (found.num_leaking, found.num_leaking_only_embedding) == (3, 3)
    assert manifest.duplicates["leaking"] == 0


def test_photo_of_the_data_set_is_nearest_to_itself(run, folder):
    for number in PLANTED:
        first, second, *_ = found = find_similar_photos(
            str(folder / f"{number:02}.jpg"), str(run), 4
        )
        assert first.id == f"{number:02}.jpg"
        assert first.similarity == pytest.approx(1, abs=1e-4)
        assert (second.id, second.split) == (f"again-{number:02}.jpg", "test")
        assert second.target_text == first.target_text
        assert [n.similarity for n in found] == sorted((n.similarity for n in found), reverse=True)


def test_search_returns_at_most_all_photos(run, folder):
    assert len(find_similar_photos(str(folder / "00.jpg"), str(run), 1000)) == NUM_PHOTOS + 3


@pytest.fixture
def other(run, model_url, tmp_path, config, manifest) -> tuple[str, Path]:
    """Folders of a run with embeddings, and of a model that the test may change."""
    model = Path(shutil.copytree(model_url, tmp_path / "model"))
    embedded(config, manifest, str(model), tmp_path / "run")
    return str(tmp_path / "run"), model


def test_search_requires_the_model_of_the_embeddings(other, folder):
    url, model = other
    photo = str(folder / "00.jpg")
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PetsError, match=r"is now another model, with other weights: run `pets em"):
        find_similar_photos(photo, url, 5)
    write_tiny_model(model, ("cat", "dog"))
    with pytest.raises(PetsError, match=r"another model, with \d+ features instead of 1280"):
        find_similar_photos(photo, url, 5)
    shutil.rmtree(model)
    with pytest.raises(
        PetsError, match=r"the model that computed it cannot be read: .*is not a model folder"
    ):
        find_similar_photos(photo, url, 5)


def test_unreadable_files_are_reported(run, folder, tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(PetsError, match=r"text.jpg: not an image: text"):
        find_similar_photos(str(tmp_path / "text.jpg"), str(run), 5)
    with pytest.raises(PetsError, match=r"no.jpg does not exist"):
        find_similar_photos(str(tmp_path / "no.jpg"), str(run), 5)
    with pytest.raises(PetsError, match=r"embeddings.parquet does not exist"):
        find_similar_photos(str(folder / "00.jpg"), str(tmp_path), 5)
