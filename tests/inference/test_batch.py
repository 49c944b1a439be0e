"""Batch prediction: each photo is predicted once, also if the run is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from predicting import predict_photos
from tiny_model import write_tiny_model

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.errors import PetsError
from pets_core.inference.batch import commit_batch, missing_parts, part_url, plan_batch
from pets_core.records.inference import BatchPlan, PartsResult
from pets_core.runtime.launcher import launch
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.photo_stages import predict_parts
from pets_core.runtime.request import WorkRequest

CLASSES = ("Birman", "Boxer", "Pug", "Sphynx")
NUM_PHOTOS = 23


@pytest.fixture(scope="module")
def model_url(tmp_path_factory) -> str:
    """Tiny model whose predictions differ between photos."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "model", CLASSES)


@pytest.fixture
def folder(tmp_path, jpeg) -> Path:
    """Photos in arbitrary folders, two broken ones, a text file and a hidden file."""
    root = tmp_path / "photos"
    for number in range(NUM_PHOTOS):
        path = root / f"2026/{number % 3}/{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 90, 70))
    (root / "2026/0/broken.jpg").write_bytes(b"no photo")
    (root / "2026/1/empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("not a photo")
    (root / ".hidden.jpg").write_bytes(jpeg(1))
    return root


@pytest.fixture
def config(tmp_path, folder) -> PipelineConfig:
    return PipelineConfig.model_validate(
        {
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
            "source": {"url": str(folder)},
            "batch": {"part_photos": 4},
            "evaluate": {"batch_size": 3},
            "launch": {"num_threads": 1},
        }
    )


def request(config: PipelineConfig, plan: BatchPlan, run_url: str) -> WorkRequest:
    return WorkRequest(
        stage="predict-parts", config=config, run_url=run_url, batch=plan,
        parts=(0, plan.num_parts),
    )  # fmt: skip


def predictions(plan: BatchPlan) -> pd.DataFrame:
    return pd.read_parquet(Path(plan.url) / "predictions")


def test_every_file_is_planned_or_listed(config, model_url, folder, tmp_path) -> None:
    """Undecodable photos are planned; other files are listed with a reason."""
    others = {
        "notes.txt": "not_a_photo", ".hidden.jpg": "hidden",
        "2026/@eaDir/1.jpg": "system_folder", "#recycle/1.jpg": "system_folder",
    }  # fmt: skip
    odd = ["2026/IMG_1.HEIC", "2026/12::30.jpg", "2026/raw.NEF", "2026/50%41?#.jpg"]
    for path in (*others, *odd):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    (folder / os.fsdecode(b"2026/K\xe4tz.jpg")).write_bytes(b"x")
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    planned = pq.read_table(Path(plan.url) / "plan.parquet").to_pydict()
    assert {*odd, "2026/K\\xe4tz.jpg"} <= set(planned["photo"])
    assert plan.num_photos == NUM_PHOTOS + 2 + len(odd) + 1
    skipped = pq.read_table(Path(plan.url) / "skipped.parquet").to_pydict()
    assert dict(zip(skipped["file"], skipped["reason"], strict=True)) == others


def test_photos_in_parquet_shards_are_planned(config, model_url, tmp_path, jpeg) -> None:
    (tmp_path / "shards/data").mkdir(parents=True)
    for shard in range(2):
        image = pa.array([jpeg(10 * shard + n) for n in range(5)], pa.binary())
        pq.write_table(pa.table({"image": image}), tmp_path / f"shards/data/{shard}.parquet")
    source = config.source.model_copy(update={"url": str(tmp_path / "shards")})
    plan = plan_batch(
        config.model_copy(update={"source": source}), model_url, str(tmp_path / "out")
    )
    assert plan.num_photos == 10


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_each_photo_is_predicted_once_as_by_predict_photos(
    config, model_url, folder, tmp_path, num_ranks
) -> None:
    launches = config.launch.model_copy(update={"num_processes": num_ranks})
    config = config.model_copy(update={"launch": launches})
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    assert (plan.num_photos, plan.num_parts) == (NUM_PHOTOS + 2, 7)
    done = launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    assert (done.num_photos, done.num_parts) == (NUM_PHOTOS + 2, 7)
    summary = commit_batch(plan, num_predicted=done.num_photos, seconds=2.0)
    found = predictions(plan)
    assert found["photo"].is_unique
    assert len(found) == NUM_PHOTOS + 2
    good = found[found["error"].isna()]
    assert len(good) == NUM_PHOTOS
    alone = list(predict_photos(model_url, [str(folder / p) for p in good["photo"]]))
    assert good["predicted"].tolist() == [p.label for p in alone]
    np.testing.assert_allclose(good["probability"], [p.probability for p in alone], 1e-4)
    assert all(np.isclose(sum(p), 1, atol=1e-5) and len(p) == 4 for p in good["probabilities"])
    assert summary.num_unreadable == 2
    assert sum(summary.counts.values()) == NUM_PHOTOS
    unreadable = dict(pq.read_table(Path(plan.url) / "unreadable.parquet").to_pydict().items())
    assert unreadable["photo"] == ["2026/0/broken.jpg", "2026/1/empty.png"]
    assert unreadable["error"][0].startswith("not an image")
    assert (Path(plan.url) / "summary.json").exists()


def test_existing_parts_are_not_predicted_again(config, model_url, tmp_path) -> None:
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    removed = [part_url(plan, number) for number in (2, 5)]
    kept = {path: path.stat().st_mtime_ns for path in Path(plan.url).glob("predictions/*")}
    for url in removed:
        Path(url).unlink()
    again = plan_batch(config, model_url, str(tmp_path / "out"))
    assert missing_parts(again, range(again.num_parts)) == [2, 5]
    with pytest.raises(PetsError, match="part-00002"):
        commit_batch(again, num_predicted=0, seconds=1.0)
    done = launch(request(config, again, str(tmp_path / "run")), PartsResult)
    assert (done.num_photos, done.num_parts) == (8, 2)
    commit_batch(again, num_predicted=done.num_photos, seconds=1.0)
    for path, written in kept.items():
        assert path.stat().st_mtime_ns == written or str(path) in removed
    shutil.copy(part_url(again, 1), part_url(again, 0))
    with pytest.raises(RuntimeError, match="exactly once"):
        commit_batch(again, num_predicted=0, seconds=1.0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ranks die with their parent on Linux")
def test_killed_batch_resumes(config, model_url, folder, jpeg, tmp_path) -> None:
    for number in range(200):
        (folder / f"more-{number:03}.jpg").write_bytes(jpeg(number, 300, 200))
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    work_request = request(config, plan, str(tmp_path / "run"))
    code = (
        "import sys; from pets_core.runtime.request import WorkRequest; "
        "from pets_core.runtime.launcher import launch; "
        "from pets_core.records.inference import PartsResult; "
        "launch(WorkRequest.model_validate_json(sys.argv[1]), PartsResult)"
    )
    for num_parts in (2, 9):
        process = subprocess.Popen([sys.executable, "-c", code, work_request.model_dump_json()])
        deadline = time.monotonic() + 600
        while len(missing_parts(plan, range(plan.num_parts))) > plan.num_parts - num_parts:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    num_missing = len(missing_parts(plan, range(plan.num_parts)))
    assert 0 < num_missing < plan.num_parts
    # A kill between the write and the rename leaves a whole file under its temporary name.
    with storage.writing(part_url(plan, 0)) as file:
        file.write(Path(part_url(plan, 0)).read_bytes())
        file.flush()
        (temporary,) = Path(plan.url, "predictions").glob(".part-00000*")
        shutil.copy(temporary, f"{temporary}-killed")
    done = launch(work_request, PartsResult)
    assert done.num_parts <= num_missing
    commit_batch(plan, num_predicted=done.num_photos, seconds=1.0)
    assert len(predictions(plan)) == NUM_PHOTOS + 202


def test_photos_added_after_planning_belong_to_the_next_batch(
    config, model_url, folder, jpeg, tmp_path
):
    out = str(tmp_path / "out")
    plan = plan_batch(config, model_url, out)
    (folder / "2026/0/000-new.jpg").write_bytes(jpeg(99))
    assert plan_batch(config, model_url, out) == plan
    assert plan_batch(config, model_url, str(tmp_path / "next")).num_photos == plan.num_photos + 1


@pytest.mark.parametrize("other", ["weights", "source", "size"])
def test_output_folder_with_other_predictions_is_refused(
    config, model_url, tmp_path, other
) -> None:
    out = str(tmp_path / "out")
    plan_batch(config, model_url, out)
    before = sorted(Path(out).rglob("*"))
    if other == "weights":
        # The card is the same, as after training with another seed.
        copy = shutil.copytree(model_url, tmp_path / "another")
        weights = safetensors.torch.load_file(copy / "model.safetensors")
        safetensors.torch.save_file({k: v + 0 if v.ndim < 2 else v * 2 for k, v in weights.items()},
                                    copy / "model.safetensors")  # fmt: skip
        model_url = str(copy)
    elif other == "source":
        source = config.source.model_copy(update={"url": str(tmp_path)})
        config = config.model_copy(update={"source": source})
    else:
        config = config.model_copy(
            update={"batch": config.batch.model_copy(update={"part_photos": 5})}
        )
    with pytest.raises(PetsError, match="contains predictions of another model"):
        plan_batch(config, model_url, out)
    assert sorted(Path(out).rglob("*")) == before


def test_photo_deleted_after_planning_is_reported_as_unreadable(
    config, model_url, folder, tmp_path
) -> None:
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    (folder / "2026/0/003.jpg").unlink()
    launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    summary = commit_batch(plan, num_predicted=1, seconds=1.0)
    assert summary.num_unreadable == 3
    assert dict(summary.unreadable)["2026/0/003.jpg"].startswith("missing: deleted after")


class OneOfTwo:
    """Accelerator wrapper that reports rank `index` of two."""

    def __init__(self, accelerator, index: int) -> None:
        self._accelerator, self.process_index, self.num_processes = accelerator, index, 2

    def __getattr__(self, name: str) -> object:
        return getattr(self._accelerator, name)


@pytest.mark.usefixtures("rank_in_this_process")
def test_late_rank_skips_no_parts(config, model_url, tmp_path) -> None:
    """Parts that another rank has already written do not change the assignment of parts."""
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    for index in (0, 1):
        rank = PhotoRank(request(config, plan, str(tmp_path / "run")))
        rank.accelerator = OneOfTwo(rank.accelerator, index)
        predict_parts(rank)
    assert missing_parts(plan, range(plan.num_parts)) == []


def test_table_rows_are_planned_as_distinct_photos(config, model_url, folder, tmp_path) -> None:
    rows = ["../photos/2026/0/000.jpg", "./photos/2026/1/001.jpg", str(folder / ".hidden.jpg")]
    table = tmp_path / "tables/photos.csv"
    table.parent.mkdir()
    pd.DataFrame({"image": [*rows, rows[0]]}).to_csv(table, index=False)
    config = config.model_copy(
        update={"source": config.source.model_copy(update={"url": str(table)})}
    )
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    assert plan.num_photos == 3, "duplicate rows are one photo"


def test_duplicate_archive_member_is_predicted_once(
    config, model_url, write_archive, jpeg, tmp_path
) -> None:
    archive = tmp_path / "photos.tar"
    write_archive(archive, [("x/a.jpg", jpeg(1)), ("x/a.jpg", jpeg(2)), ("x/b.jpg", jpeg(3))])
    config = config.model_copy(
        update={"source": config.source.model_copy(update={"url": str(archive)})}
    )
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    assert commit_batch(plan, num_predicted=2, seconds=1.0).num_photos == 2


def test_missing_photos_or_model_write_nothing(config, model_url, tmp_path) -> None:
    (tmp_path / "none/sub").mkdir(parents=True)
    source = config.source.model_copy(update={"url": str(tmp_path / "none")})
    with pytest.raises(PetsError, match="no photos found"):
        plan_batch(config.model_copy(update={"source": source}), model_url, str(tmp_path / "o"))
    with pytest.raises(PetsError, match=r"model\.json"):
        plan_batch(config, str(tmp_path / "none"), str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("form", ["csv", "bytes"])
def test_table_needs_no_labels(config, model_url, folder, tmp_path, form) -> None:
    photos = sorted(str(p) for p in folder.rglob("*.jpg") if not p.name.startswith("."))[:5]
    table = tmp_path / ("photos.csv" if form == "csv" else "photos.parquet")
    if form == "csv":
        pd.DataFrame({"image": [*photos, str(folder / "gone.jpg")]}).to_csv(table, index=False)
    else:
        pq.write_table(pa.table({"image": [Path(p).read_bytes() for p in photos]}), table)
    source = config.source.model_copy(update={"url": str(table)})
    config = config.model_copy(update={"source": source})
    plan = plan_batch(config, model_url, str(tmp_path / "out"))
    launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    summary = commit_batch(plan, num_predicted=5, seconds=1.0)
    found = predictions(plan)
    if form == "csv":
        assert found["photo"].tolist() == [*photos, str(folder / "gone.jpg")]
        assert found["error"].tolist()[-1] == "missing"
    assert summary.num_photos == len(found) == (6 if form == "csv" else 5)


@pytest.mark.slow
def test_photos_and_predictions_can_be_in_a_bucket(
    config, model_url, folder, bucket, tmp_path
) -> None:
    for path in sorted(folder.rglob("*.jpg"))[:6]:
        storage.write_bytes(f"{bucket.url}/in/{path.name}", path.read_bytes())
    source = config.source.model_copy(update={"url": f"{bucket.url}/in"})
    config = config.model_copy(update={"source": source})
    plan = plan_batch(config, model_url, f"{bucket.url}/out")
    done = launch(request(config, plan, str(tmp_path / "run")), PartsResult)
    summary = commit_batch(plan, num_predicted=done.num_photos, seconds=1.0)
    assert summary.num_photos == plan.num_photos > 0
