"""Run the example of docs/new-target.md through the whole pipeline."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prefect_server import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/new-target.md").read_text()
MAX_LINES = 150
SMALL = (
    "--model.image_size", "32", "--model.weights", "none", "--model.backbone", "resnet18",
    "--lr_find.num_steps", "12", "--train.base_lr", "1e-3", "--train.batch_size", "8",
    "--train.epochs", "1", "--train.freeze_epochs", "1",
    "--source.test_fraction", "0.3", "--source.valid_fraction", "0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def coat_folder(tmp_path_factory, jpeg) -> Path:
    """Write the example's module, 60 photos, and a table of their grades."""
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


def pets(
    coat_folder: Path, *arguments: str, server: Server | None = None
) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "pets",
        *arguments[0].split(),
        "--store",
        str(coat_folder / "store"),
        *arguments[1:],
    ]
    given = server.environment if server else os.environ
    environment = given | {"PYTHONPATH": f"{coat_folder}:{ROOT}"}
    return subprocess.run(
        command, cwd=coat_folder, env=environment, capture_output=True, text=True, check=False
    )


def run(
    coat_folder: Path, *arguments: str, server: Server | None = None
) -> subprocess.CompletedProcess:
    return pets(
        coat_folder, "run", "--source.url", "coats.csv", "--source.label_column", "condition",
        "--source.targets", "coat:COAT", "--cache_dir", str(coat_folder / "cache"),
        "--gate.promote", *SMALL, *arguments, server=server,
    )  # fmt: skip


@pytest.fixture
def server(tmp_path, prefect_home) -> Iterator[Server]:
    running = Server(tmp_path, prefect_home)
    with running.started():
        yield running


@pytest.mark.slow
def test_documented_custom_target_runs_end_to_end(coat_folder, server) -> None:
    first = run(coat_folder, "--gate.max_value", "4", server=server)
    assert first.returncode == 0, first.stdout + first.stderr
    assert re.search(r"Grades off +\d\.", first.stdout)
    assert "Grades with the largest errors" in first.stdout
    (model,) = re.findall(r"Model +(\S+)", first.stdout)
    evaluation = Path(model).parent / "evaluation"
    report = json.loads((evaluation / "report.json").read_text())
    predictions = pd.read_parquet(evaluation / "predictions.parquet")
    off = (predictions.predicted.astype(int) - predictions.actual.astype(int)).abs()
    assert report["target"] == "coat:COAT"
    assert report["primary"]["value"] == pytest.approx(off.mean())
    assert "grades the coat from 1 to 5" in (Path(model) / "README.md").read_text()
    assert "Grades with the largest errors" not in (evaluation / "report.html").read_text()
    assert 'id="grades"' in (evaluation / "report.html").read_text()
    listed = json.loads(pets(coat_folder, "models list", "--json", server=server).stdout)
    assert [row["aliases"] for row in listed] == [["champion"]]
    # The gate compares the next model by the metric of this target.
    second = run(coat_folder, "--train.seed", "1", "--gate.min_improvement", "4", server=server)
    assert second.returncode == 3
    assert re.search(r"grades off \S+ \(champion: .* is below gate.min_improv", second.stdout)
    done = pets(
        coat_folder,
        "batch-predict",
        model,
        "--source.url",
        "photos",
        "--to",
        str(coat_folder / "out"),
        server=server,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = pd.read_parquet(coat_folder / "out/predictions")
    assert len(found) == 60
    assert set(found.predicted) <= set("12345")


def test_gate_setting_of_another_kind_is_refused_before_the_run_starts(coat_folder) -> None:
    done = run(coat_folder, "--gate.max_error_rate", "0.1", "--store", "unused")
    assert done.returncode == 2
    message = (
        "gate.max_error_rate = 0.1 has no meaning for targets = coat:COAT, whose metric is the "
    )
    assert message + "grades off (lower is better): set gate.max_value" in done.stderr + done.stdout
    assert not (coat_folder / "unused").exists()
