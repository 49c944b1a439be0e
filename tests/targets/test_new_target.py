"""The page that shows how a kind of target is added: its file runs through the whole product."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/new-target.md").read_text()
MAX_LINES = 150
SMALL = (
    "--model.image_size", "32", "--model.weights", "none", "--model.backbone", "resnet18",
    "--train.epochs", "1", "--train.freeze_epochs", "1", "--train.base_lr", "1e-3",
    "--train.batch_size", "8", "--source.test_fraction", "0.3", "--source.valid_fraction", "0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, jpeg) -> Path:
    """The file of the page, 60 photos, and a table of their grades."""
    folder = tmp_path_factory.mktemp("coat")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code.splitlines()) < MAX_LINES
    (folder / "coat.py").write_text(code)
    (folder / "photos").mkdir()
    grades = np.random.default_rng(0).integers(1, 6, 60)
    for number in range(60):
        (folder / f"photos/{number:03}.jpg").write_bytes(jpeg(number))
    table = {"image": [f"photos/{n:03}.jpg" for n in range(60)], "condition": grades}
    pd.DataFrame(table).to_csv(folder / "coats.csv", index=False)
    return folder


def pets(place: Path, *words: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pets",
        *words[0].split(),
        "--store",
        str(place / "store"),
        *words[1:],
    ]
    environment = os.environ | {"PYTHONPATH": f"{place}:{ROOT}"}
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def run(place: Path, *words: str) -> subprocess.CompletedProcess:
    return pets(
        place, "run", "--source.url", "coats.csv", "--source.label_column", "condition",
        "--source.targets", "coat:COAT", "--cache_dir", str(place / "cache"), "--gate.promote",
        *SMALL, *words,
    )  # fmt: skip


@pytest.mark.slow
def test_the_kind_of_the_page_runs_through_the_product(place) -> None:
    first = run(place, "--gate.max_value", "4")
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"Grades off +\d\.", first.stdout)
    assert "Farthest off" in first.stdout
    (model,) = re.findall(r"Model +(\S+)", first.stdout)
    evaluation = Path(model).parent / "evaluation"
    report = json.loads((evaluation / "report.json").read_text())
    predictions = pd.read_parquet(evaluation / "predictions.parquet")
    off = (predictions.predicted.astype(int) - predictions.actual.astype(int)).abs()
    assert report["target"] == "coat:COAT"
    assert report["primary"]["value"] == pytest.approx(off.mean())
    assert "grades the coat from 1 to 5" in (Path(model) / "README.md").read_text()
    assert "Farthest off" not in (evaluation / "report.html").read_text()
    assert 'id="grades"' in (evaluation / "report.html").read_text()
    listed = json.loads(pets(place, "models list", "--json").stdout)
    assert [row["aliases"] for row in listed] == [["champion"]]
    # Another model has to be better than this one, by the metric of this kind.
    second = run(place, "--train.seed", "1", "--gate.min_improvement", "4")
    assert second.returncode == 1
    assert re.search(r"grades off \S+ \(champion: .* is below gate.min_improv", second.stdout)
    done = pets(place, "batch-predict", model, "--source.url", "photos", "--to", str(place / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_parquet(place / "out/predictions")
    assert len(found) == 60
    assert set(found.predicted) <= set("12345")


def test_a_setting_without_meaning_for_the_kind_is_refused_before_any_work(place) -> None:
    done = run(place, "--gate.max_error_rate", "0.1", "--store", "unused")
    assert done.returncode == 2
    words = "gate.max_error_rate = 0.1 has no meaning for targets = coat:COAT, whose metric is the "
    assert words + "grades off (lower is better): set gate.max_value" in done.stderr + done.stdout
    assert not (place / "unused").exists()
