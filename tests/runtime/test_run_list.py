"""Runs in a store: list, find, compare and remove them, by the command line."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from chromium import open_chromium
from made_predictions import draw_tags, write_drawn

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import dataset_root
from pets_core.errors import PetsError
from pets_core.evaluation.predictions import PREDICTIONS, VALID_PREDICTIONS
from pets_core.records.dataset import DatasetManifest
from pets_core.records.training import TrainResult
from pets_core.registry.aliases import candidates, promote
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.run_list import find_run_folder, list_runs
from pets_core.runtime.runs import load_result
from pets_core.targets.evaluate import evaluate, find_prediction_files

pytestmark = pytest.mark.usefixtures("own_environment")


def test_runs_are_listed_newest_first_with_name_state_and_metric(add_run, pets):
    add_run("a1", stage="started")
    add_run("a2", stage="interrupted", run={"name": "my run", "tags": ["x", "y"]})
    add_run("b3", stage="trained", model={"backbone": "resnet34", "image_size": 128})
    add_run("b4")
    rows = json.loads(pets("runs", "list", "--store", add_run.store, "--json"))
    assert [(row["run_id"], row["state"]) for row in rows] == [
        ("b4", "evaluated"), ("b3", "trained"), ("a2", "unfinished"), ("a1", "started"),
    ]  # fmt: skip
    assert [row["name"] for row in rows[1:]] == [
        "pets · resnet34 · 128 px", "my run", "pets · tf_efficientnet_lite0 · 224 px",
    ]  # fmt: skip
    assert [row["seconds"] for row in rows] == [4.5, 4.5, 0, 0]
    table = pets("runs", "list", "--store", add_run.store)
    assert re.search(r"b4 .*evaluated +error rate \d+\.\d+% +4", table)
    tagged = pets("runs", "list", "--store", add_run.store, "--tag", "y")
    assert "my run" in tagged
    assert "b4" not in tagged


def test_a_folder_that_is_no_run_is_ignored(add_run, pets):
    add_run("a1", stage="started")
    (Path(add_run.store) / "runs/stray").mkdir()
    assert [run.run_id for run in list_runs(add_run.store)] == ["a1"]
    assert pets("runs", "list", "--store", f"{add_run.store}/none").startswith("no run in")


def test_a_run_is_found_by_latest_id_prefix_name_and_folder(add_run):
    first = add_run("ab11", stage="started", run={"name": "good"})
    second = add_run("ab12", stage="started", run={"name": "ab1"})
    find = partial(find_run_folder, add_run.store)
    assert find("latest") == second
    assert find("ab11") == find("good") == find(first) == first
    # A name goes before the start of an id.
    assert find("ab1") == second
    with pytest.raises(PetsError, match=r"^ab is ambiguous: ab12 \(ab1\), ab11 \(good\)\. Use"):
        find("ab")
    with pytest.raises(PetsError, match=r"^goot: no such run in .* Did you mean good\?"):
        find("goot")


def test_equal_names_are_ambiguous(add_run):
    add_run("a1", stage="started", run={"name": "nightly"})
    add_run("b2", stage="started", run={"name": "nightly"})
    with pytest.raises(PetsError, match=r"nightly is ambiguous: b2 .*, a1 "):
        find_run_folder(add_run.store, "nightly")


def test_resume_accepts_latest_and_names(add_run, started):
    add_run("a1", stage="started", run={"name": "good"}, train={"seed": 7})
    for wanted in ("latest", "good", "a"):
        config = started("run", "--resume", wanted, "--store", add_run.store)
        assert config.train.seed == 7
        assert started.calls[-1][2].resume == f"{add_run.store}/runs/a1"


def test_show_prints_metric_interval_and_notes(add_run, pets):
    add_run("a1", run={"notes": "a first try"})
    text = pets("runs", "show", "latest", "--store", add_run.store)
    assert re.search(r"^metric +error rate \d.*\(95% interval .*\)$", text, re.M)
    assert re.search(r"^notes +a first try$", text, re.M)


@pytest.mark.parametrize("kind", ["class", "tags", "numbers", "points", "box"])
def test_runs_of_every_kind_are_compared(add_run, pets, tmp_path, kind):
    source = {"number_columns": ["age", "weight"]} if kind == "numbers" else {}
    for number, (run_id, epochs) in enumerate((("a1", 3), ("b2", 5), ("c3", 5))):
        add_run(
            run_id,
            kind,
            predicted_by=number,
            train={"epochs": epochs},
            source={"targets": kind, **source},
        )
    arguments = ("a1", "b2", "c3", "--store", add_run.store)
    result = json.loads(pets("runs", "compare", *arguments, "--json"))
    assert result["settings"] == [{"name": "train.epochs", "values": [3, 5, 5]}]
    assert [run["baseline"] is None for run in result["runs"]] == [True, False, False]
    assert result["num_common"] == 40
    assert 0 < result["num_changed"] <= 40
    first = result["changed"][0]
    spread = max(first["scores"]) - min(first["scores"])
    assert all(max(each["scores"]) - min(each["scores"]) <= spread for each in result["changed"])
    compared = result["runs"][1]["baseline"]
    own, other = result["runs"][1]["metric"]["value"], result["runs"][0]["metric"]["value"]
    sign = 1 if compared["metric"]["higher_is_better"] else -1
    assert compared["improvement"]["value"] == pytest.approx(sign * (own - other))
    page = tmp_path / "page.html"
    table = pets("runs", "compare", *arguments, "--to", page)
    assert re.search(r"train\.epochs +3 +5 +5", table)
    assert "samples have different scores" in table
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 1
    assert "://" not in html, "nothing is loaded from the network"


def test_tags_are_compared_at_the_thresholds_of_their_evaluations(add_run, pets):
    """Thresholds are not stored with a model outside the store."""
    values = []
    for number, run_id in enumerate(("a1", "b2")):
        url = add_run(run_id, "tags", source={"targets": "tags"})
        for file, split, seed in ((PREDICTIONS, "test", 0), (VALID_PREDICTIONS, "valid", 1)):
            predictions = draw_tags(
                40, predicted_by=number, seed=seed, split=split, model_url="elsewhere/model"
            )
            predictions.outputs[:] *= 0.4
            write_drawn(f"{url}/evaluation/{file}", predictions)
        predicted = find_prediction_files(f"{url}/evaluation/{PREDICTIONS}")
        report = evaluate(PipelineConfig(store=add_run.store), url, predicted)
        values.append(report.primary.value)
    result = json.loads(pets("runs", "compare", "a1", "b2", "--store", add_run.store, "--json"))
    assert [run["metric"]["value"] for run in result["runs"]] == values
    assert result["runs"][1]["baseline"]["metric"]["value"] == values[1]


def test_runs_on_other_samples_are_listed_but_not_compared(add_run, pets):
    add_run("a1")
    add_run("b2", "numbers", source={"targets": "numbers", "number_columns": ["age", "weight"]})
    result = json.loads(pets("runs", "compare", "a1", "b2", "--store", add_run.store, "--json"))
    assert result["runs"][1]["not_compared"] == "targets differ (class; numbers)"
    assert (result["changed"], result["num_common"]) == ([], 40)
    text = pets("runs", "compare", "a1", "b2", "--store", add_run.store)
    assert "is not compared: targets differ (class; numbers)" in text


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["a1"], "runs compare needs at least two runs"),
        (["a1", "a1"], "this run is given twice"),
        (["a1", "b2"], "b2: the run has no evaluation to compare"),
    ],
)
def test_runs_that_cannot_be_compared_are_rejected(add_run, refused, runs, message):
    add_run("a1")
    add_run("b2", stage="trained")
    assert message in refused("runs", "compare", *runs, "--store", add_run.store)[0]


def test_runs_are_removed_unless_an_alias_needs_them(add_run, pets, refused):
    kept, other = add_run("a1"), add_run("b2")
    (model,) = [each for each in candidates(add_run.store) if each.run_id == "a1"]
    promote(add_run.store, "champion", model)
    trial = add_run("b2-001-0", stage="trained")
    (line,) = refused("runs", "rm", "b2", "--store", add_run.store, "--delete")
    assert "the run may be active" in line
    for file in Path(add_run.store).rglob("*"):
        os.utime(file, (1, 1))
    pets("runs", "rm", "b2", "--store", add_run.store)
    assert Path(other).exists()
    pets("runs", "rm", "b2", "--store", add_run.store, "--delete")
    assert not Path(other).exists()
    assert not Path(trial).exists(), "the trainings of a sweep belong to it"
    (line,) = refused("runs", "rm", "a1", "--store", add_run.store, "--delete")
    assert "an alias points at its model" in line
    assert Path(kept).exists()


def test_folders_that_are_no_runs_of_the_store_are_not_removed(add_run, refused, tmp_path):
    url = add_run("a1", stage="started")
    other = tmp_path / "elsewhere"
    shutil.copytree(url, other / "runs/a1")
    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "photos", Path(url).parent, other / "runs/a1"):
        refused("runs", "rm", path, "--store", add_run.store, "--delete")
        assert path.exists()


def test_trainings_of_a_search_are_no_runs_of_their_own(add_run):
    main = add_run("a1", run={"name": "search"})
    add_run("a1-wd-0.1", stage="trained", run={"name": "search"})
    add_run("a1-001-0", stage="trained", run={"name": "search"})
    for wanted in ("latest", "search", "a"):
        assert find_run_folder(add_run.store, wanted) == main


def test_a_damaged_run_does_not_hide_the_others(add_run, caplog):
    add_run("a1", stage="started")
    damaged = add_run("b2", stage="started")
    Path(damaged, "config.yaml").write_text("{")
    assert [run.run_id for run in list_runs(add_run.store)] == ["a1"]
    assert "b2 cannot be listed: PetsError" in caplog.text
    assert find_run_folder(add_run.store, "b2") == damaged, "an id needs no other run"


def test_runs_of_a_store_without_modification_times_are_listed(add_run, pets, monkeypatch):
    for run_id in ("a1", "b2"):
        add_run(run_id, stage="trained", run={"name": f"run {run_id}"})
    monkeypatch.setattr(storage, "raw_modified_time", lambda _: None)
    assert [run.run_id for run in list_runs(add_run.store)] == ["b2", "a1"]
    assert re.search(r"^b2 +- +run b2", pets("runs", "list", "--store", add_run.store), re.M)
    row, _ = json.loads(pets("runs", "list", "--store", add_run.store, "--json"))
    assert row["created_at"] is None
    assert re.search(r"^started +-$", pets("runs", "show", "b2", "--store", add_run.store), re.M)


def test_a_run_of_unknown_age_is_not_removed(add_run, refused, monkeypatch):
    add_run("a1")
    monkeypatch.setattr(storage, "raw_modified_time", lambda _: None)
    (line,) = refused("runs", "rm", "a1", "--store", add_run.store, "--delete")
    assert "the time of its last change is unknown" in line


def test_an_evaluation_is_named_by_the_evaluated_model(add_run):
    url = add_run("a1")
    candidate = Path(url, "evaluation/candidate.json")
    stored = json.loads(candidate.read_text()) | {"backbone": "resnet50"}
    candidate.write_text(json.dumps(stored))
    (run,) = list_runs(add_run.store)
    assert (run.backbone, run.name) == ("resnet50", "pets · resnet50")


def test_names_with_formulas_are_drawn(add_run, pets, tmp_path):
    add_run("a1", run={"name": "a$_$b"})
    add_run("b2", run={"name": "_hidden"}, predicted_by=1)
    page = tmp_path / "p.html"
    pets("runs", "compare", "a1", "b2", "--store", add_run.store, "--to", page)
    assert page.exists()


def test_models_are_shown_by_the_name_of_their_run(add_run, pets):
    add_run("a1", run={"name": "larger photos"})
    shown = pets("models", "show", "larger photos", "--store", add_run.store)
    assert re.search(r"^run id +a1$", shown, re.M)


def test_name_tags_and_notes_do_not_change_what_a_stage_finds(add_run):
    url = add_run("a1", stage="trained", run={"name": "one"})
    config = PipelineConfig.model_validate({"store": add_run.store, "run": {"name": "other"}})
    manifest = DatasetManifest.model_construct(
        name="pets", fingerprint="f" * 20, splits={}, targets="class", url=dataset_root("s", "pets")
    )
    request = WorkRequest(stage="train", config=config, run_url=url, manifest=manifest)
    assert load_result(request, TrainResult).num_steps == 9


@pytest.mark.parametrize("name", ["latest", "a/b", " ", "a\nb"])
def test_names_that_cannot_be_found_are_rejected(refused, name):
    assert "cannot name a run" in refused("run", "--name", name)[0]


@pytest.mark.browser
def test_comparison_page_fits_a_phone(add_run, pets, tmp_path):
    for number in range(3):
        add_run(f"r{number}", predicted_by=number, train={"epochs": number + 1})
    page_file = tmp_path / "page.html"
    pets("runs", "compare", "r0", "r1", "r2", "--store", add_run.store, "--to", page_file)
    with open_chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto(f"file://{page_file}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("h2").all_inner_texts() == [
            "Results", "Settings that differ", "Training", "Changed samples",
        ]  # fmt: skip
