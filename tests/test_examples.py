"""The scripts and the notebook in examples/ run, on small models and few photos."""

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

import pets

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "model": {"backbone": "test_efficientnet", "weights": "none", "image_size": 64},
    "lr_find": {"num_steps": 12},
}
ARGUMENTS = {
    "boxes.py": [],
    "classes.py": [],
    "keypoints.py": [],
    "numbers_of_table.py": ["weights.csv", "weight", "kg"],
    "ratings.py": [],
    "tags.py": [],
}
pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def folder(tmp_path, monkeypatch, write_folder, drawn_sample) -> Path:
    """Working directory with a table, in which the examples run with tiny models."""
    write_folder(tmp_path / "photos", {"a": 20, "b": 20})
    names = [f"photos/{c}/{n}.jpg" for c in "ab" for n in range(20)]
    rows = [f"{name},{number % 7}" for number, name in enumerate(names)]
    (tmp_path / "weights.csv").write_text("\n".join(["image,weight", *rows, ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETS_STORE", str(tmp_path / "store"))
    for name in ("fine_tune", "find_lr"):
        inner = getattr(pets, name)

        def small(source=None, /, inner=inner, **settings):
            own = {"name": "sample"} if source is None else {}
            groups = {group: settings.get(group, {}) | TINY.get(group, {}) for group in settings}
            groups["source"] = {**groups.get("source", {}), **own}
            groups["source"].pop("sample_photos_per_breed", None)
            places = {"cache_dir": str(tmp_path / "cache")}
            return inner(source or drawn_sample, **TINY | groups | places)

        monkeypatch.setattr(pets, name, small)
    return tmp_path


def test_every_script_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(ARGUMENTS)


@pytest.mark.nightly
@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_script_runs(script, folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [script, *ARGUMENTS[script]])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert capsys.readouterr().out
    if script == "classes.py":
        assert Image.open(folder / "confusion.png").width > 300


@pytest.mark.slow
def test_notebook_runs(folder):
    cells = json.loads((EXAMPLES / "lesson6.ipynb").read_text())["cells"]
    namespace: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert namespace["comparison"].num_common == len(namespace["photos"])
