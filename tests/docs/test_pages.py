"""Pages of docs/ that repeat the code, held to it, and their Python examples."""

import ast
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import draw_classes, write_drawn
from PIL import Image
from tiny_model import write_tiny_model

import pets
from pets_core.data import dataset
from pets_core.data.ingest.commit import ingest
from pets_core.embeddings import file as embeddings
from pets_core.evaluation import gallery
from pets_core.evaluation.predictions import PredictionsInfo
from pets_core.models.card import ModelCard
from pets_core.ratings import dataset as ratings
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.records import RATINGS_SCHEMA_VERSION
from pets_core.records.dataset import Run
from pets_core.records.evaluation import EvalReport
from pets_core.records.inference import PredictResult
from pets_core.records.training import LRSuggestion
from pets_core.registry.aliases import Candidate, candidates, promote
from pets_core.runtime.runs import start_run
from pets_core.targets.evaluate import evaluate
from pets_core.targets.registry import get_target
from pets_core.training.checkpoint import _Commit
from pets_core.training.lr_finder import Curve, write_curve

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}
FORMATS = PAGES["docs/file-formats.md"]
CLASSES = ("Birman", "Pug", "Sphynx")


def test_commands_page_is_up_to_date(monkeypatch):
    """The page pins arguments and help of every command."""
    for variable in ("PETS_STORE", "PETS_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    page = runpy.run_path(str(ROOT / "docs/cli.py"))["commands_page"]()
    assert page == PAGES["docs/cli.md"], "run python docs/cli.py and review the diff"


def tables(heading: str) -> list[dict[str, str]]:
    """Return the types by column of the tables of columns below a heading of file-formats.md."""
    section = re.split(r"^##+ ", FORMATS.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found = re.findall(r"^\| column \| type .*\n\|[ -|]+\|\n((?:\|.*\n)+)", section, re.M)
    rows = [re.findall(r"^\| `(\S+?)` \| `(.+?)` \|", table, re.M) for table in found]
    return [dict(each) for each in rows]


def columns(schema: pa.Schema) -> dict[str, str]:
    """Return the types by column, as the page writes them."""
    lists = r"(?:fixed_size_)?list<(?:item|element): (\w+)(?: not null)?>(\[\d+\])?"
    return {
        field.name: re.sub(
            lists, lambda each: f"list<{each[1]}>{'[D]' if each[2] else ''}", str(field.type)
        )
        for field in schema
    }


def predictions_info(kind: str, **targets: object) -> PredictionsInfo:
    return PredictionsInfo.model_validate(
        {
            "targets": kind, "split": "test", "model_url": "m", "backbone": "b",
            "dataset_url": "d", "dataset_name": "d", "dataset_fingerprint": "f", **targets,
        }
    )  # fmt: skip


def prediction_columns(kind: str, **targets: object) -> dict[str, str]:
    schema = get_target(kind).schema(predictions_info(kind, **targets))
    return {"id": "string"} | columns(schema)


def test_tables_of_a_data_set_match_the_schemas():
    common = columns(dataset.SCHEMA)
    extra = {
        kind: {k: v for k, v in columns(dataset.schema_of(kind)).items() if k not in common}
        for kind in ("tags", "numbers")
    }
    assert tables("Shards") == [common, extra["tags"], extra["numbers"]]
    index = {k: v for k, v in columns(dataset.photos_schema("class")).items() if k not in common}
    assert tables("photos.parquet") == [index]
    assert tables("quarantine.parquet") == [columns(dataset.QUARANTINE_SCHEMA)]
    assert tables("duplicates.parquet") == [columns(dataset.DUPLICATES_SCHEMA)]
    assert tables("Ratings of a split") == [columns(ratings.SCHEMA)]


def test_tables_of_a_run_match_the_schemas(tmp_path):
    names = {"vocabulary": [{"name": "a"}, {"name": "b"}]}
    assert tables("predictions.parquet") == [
        prediction_columns("class", **names),
        prediction_columns("tags", **names),
        prediction_columns("numbers", numbers=[{"name": "weight"}]),
    ]
    assert tables("gallery.parquet") == [columns(gallery._SCHEMA)]
    info = embeddings.EmbeddingsInfo(
        model_url="m", model_sha256="s", backbone="b", image_size=8, num_features=3,
        dataset_url="d", dataset_name="d", dataset_fingerprint="f",
    )  # fmt: skip
    assert tables("embeddings.parquet") == [columns(embeddings._schema(info))]
    steps = np.ones(3)
    write_curve(str(tmp_path / "curve.parquet"), Curve(steps, steps, steps))
    assert tables("lr_find/curve.parquet") == [columns(pq.read_schema(tmp_path / "curve.parquet"))]


def test_versions_of_formats_are_current():
    table = re.search(r"\| format \| version .*\n\|[ -|]+\|\n((?:\|.*\n)+)", FORMATS)[1]
    written = re.findall(r"^\| [^|]+ \| (\d+) \|", table, re.M)
    records = (
        PredictionsInfo, embeddings.EmbeddingsInfo, ModelCard, RecommenderCard, EvalReport,
        Candidate, _Commit,
    )  # fmt: skip
    versions = [dataset.SCHEMA_VERSION, RATINGS_SCHEMA_VERSION]
    versions += [record.model_fields["format_version"].default for record in records]
    assert written == [str(version) for version in versions]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


def test_python_examples_compile():
    blocks = [(page, block) for page in PAGES for block in python_blocks(page)]
    assert len(blocks) > 8
    for page, block in blocks:
        compile(block, page, "exec", flags=ast.PyCF_ONLY_AST)


@pytest.fixture
def stored_run(small_config, tmp_path, monkeypatch) -> pets.Run:
    """Evaluated run with a model and drawn predictions, the champion of the data set "sample".

    The flows of `fine_tune` and `find_lr` return its results instead of a new run's.
    """
    source = small_config.source.model_copy(update={"name": "sample"})
    config = small_config.model_copy(update={"source": source})
    run = start_run(config, Run(url=f"{config.store}/runs/a1", manifest=ingest(config)))
    model = write_tiny_model(Path(run.url) / "model", CLASSES)
    about = {"names": list(CLASSES), "model_url": model, "dataset_name": "sample"}
    (Path(run.url) / "evaluation").mkdir()
    url = write_drawn(f"{run.url}/evaluation/predictions.parquet", draw_classes(**about))
    predicted = PredictResult(model_url=model, predictions_url=url, photos_per_second=1.0)
    report = evaluate(config, run.url, predicted)
    (candidate,) = candidates(config.store)
    promote(config.store, "champion", candidate)
    plot, curve = f"{run.url}/training.png", f"{run.url}/curve.parquet"
    Image.new("RGB", (9, 9)).save(plot)
    write_curve(curve, Curve(*[np.ones(3)] * 3))
    suggestion = LRSuggestion(
        steepest=1e-3, chosen=1e-3, suggestion="steepest", num_steps=3, seconds=1.0,
        curve_url=curve, plot_url=plot,
    )  # fmt: skip
    results = {"pipeline:pipeline": report, "lr_find:lr_find_flow": suggestion}
    monkeypatch.setattr("pets.run._run_flow", lambda flow, config: results[flow])
    monkeypatch.setenv("PETS_STORE", config.store)
    monkeypatch.chdir(tmp_path)
    return pets.Run(run.url)


REPLACED = {
    '"another run"': '"a1-copy"',
    "https://host/photo.jpg": "photo.jpg",
    "oxford-iiit-pet": "sample",
}
"""Runs, photos and data sets of the examples, and those of the test."""


def run_examples(page: str, **names: object) -> dict[str, object]:
    """Run all Python examples of a page in one namespace, and return it."""
    code = "\n".join(python_blocks(page))
    for name, own in REPLACED.items():
        code = code.replace(name, own)
    exec(compile(code, page, "exec"), names)
    return names


def test_python_page_runs(stored_run, tmp_path):
    copy_run(stored_run)
    photo = Image.effect_noise((80, 60), 40).convert("RGB")
    for path in ("photo.jpg", "photos/a.jpg", "folder/of/photos/b.jpg"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path / path)
    data = (tmp_path / "photo.jpg").read_bytes()
    names = run_examples("docs/python.md", image=photo, array=np.asarray(photo), encoded_bytes=data)
    assert names["model"].url == stored_run.model.url


def copy_run(run: pets.Run) -> None:
    """Copy the run a1 to a1-copy."""
    copied = Path(shutil.copytree(run.url, f"{run.url}-copy"))
    for path in copied.rglob("*.json"):
        path.write_text(path.read_text().replace("runs/a1", "runs/a1-copy"))


def test_tutorial_runs(stored_run, capsys):
    names = run_examples("docs/tutorial.md")
    assert names["prediction"].label in CLASSES
    assert "predicted" in capsys.readouterr().out


def test_examples_with_unknown_names_fail(stored_run, monkeypatch):
    broken = PAGES["docs/tutorial.md"].replace("most_confused(min_count", "most_confused(minimum")
    monkeypatch.setitem(PAGES, "docs/tutorial.md", broken)
    with pytest.raises(TypeError, match="minimum"):
        run_examples("docs/tutorial.md")
