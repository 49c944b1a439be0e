"""Files that `pets gc` finds in a store, and files that it keeps."""

import os
import shutil
import time
from pathlib import Path

import pytest

from pets.cli import main as cli
from pets_core.data.ingest.commit import ingest
from pets_core.maintenance.retention import data_sets_needed, find_old, remove_old
from pets_core.models.card import CARD, ModelCard
from pets_core.records.dataset import ClassInfo
from pets_core.records.evaluation import Metric
from pets_core.registry.aliases import Candidate, promote, rollback

DAY = 86_400


def write(path: Path, days: float, content: str = "12345678") -> None:
    """Write a file that was last modified `days` ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    modified_at = time.time() - days * DAY
    os.utime(path, (modified_at, modified_at))


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.mark.parametrize(
    "command", ["gc", "datasets gc", "datasets list", "models list", "runs list"]
)
def test_files_of_other_programs_are_ignored(store, capsys, command):
    for folder in ("datasets", "datasets/pets", "models", "models/pets", "runs"):
        write(store / folder / ".DS_Store", 1)
    cli.main([*command.split(), "--store", str(store), "--json"])
    assert capsys.readouterr().out.strip() == "[]"


@pytest.mark.parametrize("command", ["gc", "datasets list", "models list", "runs list"])
def test_store_that_is_a_file_is_an_error(store, capsys, command):
    write(store, 1)
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--store", str(store), "--json"])
    assert caught.value.code == 2
    assert "a part of this path is a file, not a folder" in capsys.readouterr().err


@pytest.fixture
def run(store):
    """Return a function that writes a run with files of a given age."""

    def written(name: str, days: float, *, trained: bool = True, fingerprint: str = "f") -> Path:
        folder = store / "runs" / name
        card = ModelCard(
            backbone="resnet18", num_features=8, vocabulary=(ClassInfo(name="a"),), image_size=64,
            resize_to=64, mean=(0, 0, 0), std=(1, 1, 1), dataset_fingerprint=fingerprint,
        )  # fmt: skip
        write(folder / "model" / CARD, days, card.model_dump_json())
        write(folder / "evaluation/predictions.parquet", days)
        write(folder / "checkpoints/step-000000005/checkpoint.json", days)
        write(folder / "checkpoints/step-000000005/weights", days)
        if trained:
            write(folder / "stages/train.json", days)
        return folder

    return written


def candidate(run_id: str, fingerprint: str = "f", predicted_by: str | None = None) -> Candidate:
    return Candidate(
        run_id=predicted_by or run_id, model_url=f"store:runs/{run_id}/model",
        predictions_url=f"store:runs/{predicted_by or run_id}/evaluation/predictions.parquet",
        dataset_name="pets", dataset_fingerprint=fingerprint, split="test", tta_views=0,
        backbone="resnet18", metric=Metric(name="error rate", value=0.1, unit="%"), num_rows=10,
        evaluated_at="2026-01-01",
    )  # fmt: skip


def test_old_runs_and_checkpoints_of_finished_runs_are_removed(store, run):
    old, finished, unfinished, today = (
        run("old", 91), run("finished", 2), run("unfinished", 2, trained=False), run("today", 0.1)
    )  # fmt: skip
    found = find_old(str(store), 90)
    assert [item.url for item in found] == [str(finished / "checkpoints"), str(old)]
    assert found[0].num_bytes == 16
    assert found[1].reason == "run unchanged for 91 days"
    remove_old(str(store), find_old(str(store), 90))
    assert not old.exists()
    assert not (finished / "checkpoints").exists()
    assert (finished / "model" / CARD).exists()
    assert (unfinished / "checkpoints").exists()
    assert (today / "checkpoints").exists()
    assert find_old(str(store), 90) == []


def test_recently_changed_run_is_kept(store, run):
    write(run("old", 91, trained=False) / "evaluation/report.html", 1)
    assert find_old(str(store), 90) == []


def test_models_of_an_alias_and_of_its_rollback_are_kept(store, run):
    for name in ("first", "second", "third", "evaluated-again"):
        run(name, 400)
    for model in (candidate("first"), candidate("second"),
                  candidate("third", predicted_by="evaluated-again")):  # fmt: skip
        promote(str(store), "champion", model)
    old = {item.url.rsplit("/", 1)[1] for item in find_old(str(store), 90)}
    assert old == {"first", "checkpoints"}
    remove_old(str(store), find_old(str(store), 90))
    assert sorted(p.name for p in (store / "runs").iterdir()) == [
        "evaluated-again",
        "second",
        "third",
    ]
    assert rollback(str(store), "pets", "champion").model.run_id == "second"


def test_alias_protects_its_run_under_every_spelling_of_the_store(store, run, tmp_path):
    run("first", 400)
    (tmp_path / "link").symlink_to(tmp_path)
    linked = candidate("first").model_copy(
        update={"model_url": f"{tmp_path}/link/store/runs/first/model", "predictions_url": "gone"}
    )
    promote(str(store), "champion", linked)
    for spelling in (str(store), f"file://{store}", f"{tmp_path}/link/store/"):
        whole = [old.run_id for old in find_old(spelling, 90) if old.run_id]
        assert whole == [], spelling


def test_run_promoted_after_the_search_is_kept(store, run):
    folder = run("first", 400)
    found = find_old(str(store), 90)
    promote(str(store), "champion", candidate("first"))
    assert remove_old(str(store), found) == []
    assert (folder / "model" / CARD).exists()


def test_checkpoints_of_a_finished_ratings_training_are_removed(store, run):
    folder = run("ratings", 3, trained=False)
    write(folder / "stages/ratings-train.json", 3)
    assert [item.url for item in find_old(str(store), 90)] == [str(folder / "checkpoints")]


def test_checkpoints_of_a_repeated_training_are_kept(store, run):
    write(run("again", 10) / "checkpoints/step-000000010/checkpoint.json", 0.1)
    assert find_old(str(store), 90) == []


def test_data_sets_of_the_champion_are_needed(store, run):
    run("first", 400, fingerprint="trained-on")
    promote(str(store), "champion", candidate("first", fingerprint="evaluated-on"))
    assert data_sets_needed(str(store)) == {"trained-on", "evaluated-on"}
    (store / "runs/first/model" / CARD).unlink()
    assert data_sets_needed(str(store)) == {"evaluated-on"}


def test_command_removes_only_with_delete(small_config, run, store, capsys):
    manifest = ingest(small_config)
    grown = small_config.source.model_copy(update={"seed": 3})
    ingest(small_config.model_copy(update={"source": grown}))
    for path in (store / "datasets").rglob("*"):
        os.utime(path, (DAY, DAY))
    old = run("old", 91)
    command = ["gc", "--store", str(store), "--keep-versions", "1"]
    cli.main(command)
    listed = capsys.readouterr().out
    assert f"{old}" in listed
    dry_run = listed.replace("to remove (use --delete)", "removed")
    assert manifest.fingerprint in listed
    assert listed.rstrip().endswith("to remove (use --delete)")
    assert old.exists()
    shutil.copytree(store, store.with_name("copy"))
    promote(str(store), "champion", candidate("old", fingerprint=manifest.fingerprint))
    cli.main([*command, "--delete"])
    removed = capsys.readouterr().out
    assert (old / "model" / CARD).exists()
    assert manifest.fingerprint not in removed
    assert Path(manifest.url, "manifest.json").exists()
    copy = str(store.with_name("copy"))
    cli.main(["gc", "--store", copy, *command[3:], "--delete"])
    # Columns are as wide as the longest path, and manifests are removed first.
    removed = capsys.readouterr().out.replace(copy, str(store))
    assert sorted(removed.split()) == sorted(dry_run.split())


@pytest.mark.parametrize("flag", ["--keep-days", "--keep-versions"])
def test_keep_limits_below_1_are_refused(store, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["gc", "--store", str(store), flag, "0"])
    assert caught.value.code == 2
    assert f"{flag} = 0: must be at least 1" in capsys.readouterr().err
