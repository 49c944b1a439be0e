"""Artifacts of an evaluation of any kind: sections, champion and summary."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from pets_core.config.evaluate import GateConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.evaluation.gallery import Picture, write_gallery
from pets_core.evaluation.tables import write_frame
from pets_core.records.evaluation import (
    Comparison,
    EvalReport,
    Highlights,
    Interval,
    LabelChange,
    Metric,
    Section,
    Verdict,
)
from pets_core.storage import write_bytes
from pets_core.storage.markdown import escape_markdown
from tasks.artifacts.evaluation import publish_evaluation

EVIL = "<b>a|b</b>"
RMSE = Metric(name="RMSE", value=2.25, low=2.0, high=2.5, unit="kg", baseline=4.5)
COMPARISON = Comparison(
    champion_url="runs/best", num_rows=90, num_excluded=10, metric=RMSE,
    champion_metric=RMSE.model_copy(update={"value": 2.5}), num_better=60, num_worse=25,
    improvement=Interval(value=0.25, low=-0.5, high=1.0), p_value=0.31,
    test="paired permutation test",
    worse=(LabelChange(name=EVIL, support=9, champion_recall=0.9, recall=0.8),), largest_drop=0.1,
)  # fmt: skip
PICTURE = Picture(EVIL, EVIL, "pug", "loss 5.50", jpeg=b"jpeg", map_jpeg=b"map")


@pytest.fixture
def report(tmp_path) -> EvalReport:
    """Report with its files in a folder."""
    url = str(tmp_path)
    frame = pd.DataFrame(
        {"name": [EVIL, "pug"], "recall": [0.123456, np.nan], "mae": [12345.678, np.nan],
         "taken_for": [None, "boxer"], "support": [3, 0]}
    )  # fmt: skip
    write_frame(f"{url}/classes", frame)
    write_bytes(f"{url}/residuals.png", b"\x89PNG")
    grouped = [
        Picture("a", "pug", "boxer", group=f"{EVIL}, predicted pug", jpeg=b"jpeg") for _ in range(3)
    ]
    write_gallery(f"{url}/gallery.parquet", {"worst": [PICTURE], "pairs": grouped})
    return EvalReport(
        target="numbers", model_url="m", split="test", num_rows=1234, primary=RMSE,
        metrics=(Metric(name="MAE", value=1.5, unit="kg"),), details=("Two details.",),
        highlights=Highlights(title="Worst", columns=("number", "MAE"), rows=((EVIL, "1.5"),)),
        sections=(
            Section(key="classes", title="Classes", table="classes", percent=("recall",)),
            Section(key="residuals", title="Residuals", figure="residuals", figure_alt="Errors",
                    text=f"Errors of {EVIL}."),
            Section(key="worst", title="Worst errors", gallery="worst"),
            Section(key="pairs", title="Pairs", gallery="pairs", in_report=False),
        ),
        verdict=Verdict(passed=True), predictions_url="p", url=url, photos_per_second=1.0,
        seconds=1.0,
    )  # fmt: skip


@pytest.fixture
def published(report, shown) -> Callable[..., dict[str, object]]:
    """Publish the report with the given fields; return the artifacts by key."""

    def publish(config: PipelineConfig = PipelineConfig(), **changes) -> dict[str, object]:  # noqa: B008
        return shown(publish_evaluation, config, report.model_copy(update=changes))

    return publish


def test_every_section_is_an_artifact_and_the_summary_is_last(published):
    assert list(published()) == ["classes", "residuals", "worst", "pairs", "run-summary"]
    with_champion = published(comparison=COMPARISON)
    assert list(with_champion)[-2:] == ["champion", "run-summary"]


def test_tables_have_rounded_numbers_and_empty_cells(published):
    first, second = published()["classes"]
    name = escape_markdown(EVIL)
    assert first == {"name": name, "recall": 0.1235, "mae": 12350.0, "taken_for": "", "support": 3}
    assert second == {"name": "pug", "recall": "", "mae": "", "taken_for": "boxer", "support": 0}


def test_galleries_show_target_prediction_and_activation_map(published):
    artifacts = published()
    assert artifacts["worst"].count("data:image/jpeg") == 2
    assert "| photo | activation map | actual | predicted |  |" in artifacts["worst"]
    assert "loss 5\\.50" in artifacts["worst"]
    assert artifacts["pairs"].count("data:image/jpeg") == 3
    assert artifacts["pairs"].count("predicted pug") == 1, "one heading per group"
    assert "activation map" not in artifacts["pairs"]
    assert "data:image/png" in artifacts["residuals"]


def test_markup_in_names_is_escaped(published):
    artifacts = published(comparison=COMPARISON)
    for key in ("residuals", "worst", "pairs", "champion", "run-summary"):
        assert EVIL not in artifacts[key], key
        assert "a\\|b" in artifacts[key], key


def test_summary_has_every_metric_in_its_unit(published):
    summary = published()["run-summary"].replace("\\", "")
    assert summary.startswith("# RMSE 2.25 kg: passes the gate\n")
    assert "1,234 test photos. Two details." in summary
    assert "| RMSE | 2.25 kg | 2 to 2.5 kg | 4.5 kg |" in summary
    assert "| MAE | 1.5 kg |  |  |" in summary
    assert "Worst:" in summary
    assert "There is no champion to compare with." in summary


def test_the_summary_shows_the_champion_or_why_there_is_no_comparison(published):
    compared = published(comparison=COMPARISON)["run-summary"].replace("\\", "")
    assert "Champion: 2.5 kg on the same photos; this model is 0.25 kg better" in compared
    assert "(p = 0.310). 10 more are excluded" in compared
    assert "It is the champion." in published(is_champion=True)["run-summary"]
    reasons = ("the champion knows other classes",)
    refused = published(
        comparison_error=reasons[0], verdict=Verdict(passed=False, reasons=reasons)
    )["run-summary"]  # fmt: skip
    assert "**the champion knows other classes**" in refused
    assert "no champion" not in refused


def test_the_comparison_has_the_units_of_the_metric(published):
    page = published(comparison=COMPARISON)["champion"].replace("\\", "")
    assert page.startswith("# Against the champion: 0.25 kg better\n")
    assert "On the same 90 photos. 10 more are excluded" in page
    assert "| improvement | +0.25 kg |" in page
    assert "| 95% interval | -0.5 to +1 kg |" in page
    assert "| paired permutation test | p = 0.310 |" in page
    assert "| photos with a better score than the champion | 60 |" in page
    assert "| 80.0% | 90.0% | 9 |" in page
    without = published(comparison=COMPARISON.model_copy(update={"worse": ()}))["champion"]
    assert "Largest drops" not in without


def test_summary_names_the_alias_of_a_promoted_model(published):
    config = PipelineConfig(gate=GateConfig(promote=True, alias="canary"))
    assert ": passes the gate, promoted to canary\n" in published(config)["run-summary"]
    rejected = published(config, verdict=Verdict(passed=False, reasons=("too bad",)))
    assert ": does not pass the gate\n" in rejected["run-summary"]
    no_gate = published(verdict=Verdict(passed=True, has_condition=False))
    assert ": gate not configured, no champion\n" in no_gate["run-summary"]
