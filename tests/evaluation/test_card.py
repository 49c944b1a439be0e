"""The model card reads as cards do, and tells the figures."""

import pytest
from huggingface_hub import ModelCard

from pets_core.evaluation.card import model_card
from pets_core.evaluation.measures import measure_classes
from pets_core.records.evaluation import Calibration, EvalReport, Share, Verdict
from pets_core.records.training import EpochMetrics, TrainResult

EVIL = "<b>*pug*</b> | [x](y)"


@pytest.fixture
def report() -> EvalReport:
    return EvalReport(
        model_url="m", split="test", num_rows=200,
        error_rate=Share(value=0.125, low=0.08, high=0.17), top_k={1: 0.875, 2: 0.95}, loss=0.4,
        calibration=Calibration(ece=0.05, temperature=1.5, ece_after=0.02), most_confused=(),
        verdict=Verdict(passed=True), predictions_url="p", url="e", photos_per_second=1.0,
        seconds=1.0,
    )  # fmt: skip


TRAINING = TrainResult(
    model_url="m", last_model_url="m", history_url="h", plot_url="p", base_lr=1.5e-3,
    mixed_precision="bf16", device="cpu", num_processes=2, num_steps=1234, seconds=90.0,
    epochs=(EpochMetrics(phase="frozen", epoch=0, train_loss=1.2, seconds=9.0,
                         photos_per_second=77.0),),
)  # fmt: skip


@pytest.mark.parametrize("training", [None, TRAINING])
def test_hubs_can_read_it(draw, report, training):
    predictions = draw(200, names=[EVIL, "boxer: a dog", "yes"], dataset_name="my: pets")
    content = model_card(predictions.info, report, measure_classes(predictions), training)
    card = ModelCard(content)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.875)
    assert (result.dataset_name, result.dataset_revision) == ("my: pets", "f")
    assert card.data.base_model == "resnet34"
    assert "12.50% (95% interval 8.00% to 17.00%)" in card.text
    assert "95.00%" in card.text
    assert EVIL not in card.text
    assert ("1234 optimizer steps" in card.text) == (training is not None)
