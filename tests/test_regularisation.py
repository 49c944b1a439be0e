"""Regularisation benchmark: its trainings, resume after a stop, and its table and plot."""

import re
import sys
from argparse import Namespace
from pathlib import Path

import pandas as pd
import pytest

from pets_core.config.pipeline import PipelineConfig

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import peer  # noqa: E402
import regularisation as bench  # noqa: E402

RECIPE = {"size": 64, "epochs": 2}
SCORES = {"train_error": 0.01, "train_loss": 0.1, "valid_error": 0.2, "valid_loss": 0.7}


def config_with(strengths):
    values = PipelineConfig().model_dump(mode="json")
    for group, changed in bench.settings(strengths).items():
        values[group] |= changed
    return PipelineConfig.model_validate(values)


def test_defaults_are_trained_first_and_once_per_seed():
    trainings = bench.trainings(num_seeds=2)
    default = [n for n, each in enumerate(trainings) if bench.DEFAULTS.items() <= each.items()]
    assert default == [0, len(trainings) // 2]
    assert [trainings[n]["seed"] for n in default] == [0, 1]
    assert config_with(trainings[0]) == PipelineConfig()


def test_every_training_changes_one_regulariser_to_a_valid_value():
    trainings = bench.trainings(num_seeds=1)
    assert len(trainings) == 1 + sum(len(values) - 1 for values in bench.STRENGTHS.values())
    for training in trainings[1:]:
        assert config_with(training) != PipelineConfig()
        assert len([n for n, value in bench.DEFAULTS.items() if training[n] != value]) == 1


@pytest.mark.parametrize("name", bench.STRENGTHS)
def test_strengths_start_at_zero_and_include_the_default(name):
    values = bench.STRENGTHS[name]
    assert values[0] == 0
    assert list(values) == sorted(set(values))
    assert bench.DEFAULTS[name] in values


def test_strength_zero_disables_augmentation():
    assert bench.augmentation(0) == {
        "flip": False, "max_rotate_degrees": 0, "max_zoom": 1, "max_warp": 0, "max_lighting": 0,
        "erase_probability": 0,
    }  # fmt: skip


class Trainer:
    """Replaces the training processes: returns constant scores, and may be killed."""

    def __init__(self):
        self.configs, self.killed_after = [], None

    def __call__(self, script, side, arguments):
        if len(self.configs) == self.killed_after:
            raise KeyboardInterrupt
        self.configs.append(str(arguments["config"]))
        return {"epochs": [{"epoch": 3, **SCORES}]}


@pytest.fixture
def trainer(monkeypatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(peer, "run_side", trainer)
    return trainer


def measure(folder, recipe=RECIPE):
    options = Namespace(results=folder / "results.parquet", seeds=1, jobs=1)
    arguments = {"config": PipelineConfig().model_dump(mode="json")}
    *_, found = bench.run_missing(recipe, options, arguments)
    return found


def test_stopped_benchmark_resumes(trainer, tmp_path):
    trainer.killed_after = 3
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path)
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == 3
    trainer.killed_after = None
    assert len(measure(tmp_path)) == len(trainer.configs) == len(bench.trainings(1))
    assert len(set(trainer.configs)) == len(trainer.configs)
    assert len(measure(tmp_path)) == len(trainer.configs)


def test_results_of_another_recipe_are_kept_but_not_used(trainer, tmp_path):
    total = len(bench.trainings(1))
    measure(tmp_path, RECIPE | {"size": 32})
    found = measure(tmp_path)
    assert len(trainer.configs) == 2 * total
    assert set(found["size"]) == {64}
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == 2 * total


@pytest.mark.parametrize("num_done", [1, 16])
def test_table_and_plot_accept_partial_results(trainer, tmp_path, num_done):
    found = measure(tmp_path)[:num_done]
    rows = bench.table(found).splitlines()[2:]
    assert len(rows) == {1: 5, 16: 20}[num_done]
    assert sum("(default) | 1 | 1.0% | 0.100 | 20.0% | 0.700 |" in row for row in rows) == 5
    assert len(bench.picture(found)) > 5_000


def test_settings_named_in_the_docs_exist():
    page = (ROOT / "docs/regularisation.md").read_text()
    named = set(re.findall(r"`(train|model|transform)\.(\w+)", page))
    assert len(named) > 5
    config = PipelineConfig()
    assert [f"{g}.{n}" for g, n in named if not hasattr(getattr(config, g), n)] == []
