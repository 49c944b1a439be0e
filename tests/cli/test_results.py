"""Evaluation results as the command line prints them."""

from pets.cli.results import show_evaluation, show_lr_suggestion, show_training
from pets_core.records.evaluation import (
    Baseline,
    Comparison,
    EvalReport,
    Highlights,
    Interval,
    Metric,
    Verdict,
)
from pets_core.records.training import EpochMetrics, LRSuggestion, TrainResult

RMSE = Metric(name="RMSE", value=2.25, low=2.0, high=2.5, unit="kg", baseline=4.5)
REPORT = EvalReport(
    target="numbers", model_url="a/model", split="test", num_rows=1234, primary=RMSE,
    metrics=(Metric(name="MAE", value=1.5, unit="kg"),), details=("Two details.",),
    notes=("The photos are few.",),
    highlights=Highlights(title="Worst", columns=("number", "MAE"), rows=(("age", "1.5"),)),
    verdict=Verdict(passed=True), predictions_url="p", url="e", photos_per_second=1.0, seconds=1.0,
)  # fmt: skip
COMPARISON = Comparison(
    champion_url="best", num_rows=90, num_excluded=10, metric=RMSE,
    champion_metric=RMSE.model_copy(update={"value": 2.5}), num_better=60, num_worse=25,
    improvement=Interval(value=0.25, low=-0.5, high=1.0), p_value=0.31,
    test="paired permutation test",
)  # fmt: skip


def printed(capsys, **fields) -> list[str]:
    show_evaluation(REPORT.model_copy(update=fields))
    return capsys.readouterr().out.splitlines()


def test_output_has_metrics_intervals_and_paths(capsys):
    assert printed(capsys) == [
        "",
        "RMSE         2.25 kg  (1,234 test photos; 95% interval 2 to 2.5 kg; baseline 4.5 kg)",
        "  MAE                          1.5 kg",
        "  Two details.",
        "Gate         passed",
        "Warning      The photos are few.",
        "Worst",
        "  number  MAE",
        "  age     1.5",
        "",
        "Model        a/model",
        "Report       e/report.html",
    ]


def test_output_compares_the_model_with_its_baselines(capsys):
    probe = Baseline(
        name="linear probe", metric=RMSE.model_copy(update={"value": 2.5}),
        improvement=Interval(value=0.25, low=-0.5, high=1.0), p_value=0.31,
    )  # fmt: skip
    much_worse = probe.model_copy(update={"improvement": Interval(value=-2, low=-3, high=-1)})
    assert much_worse.warning == (
        "The model is worse than the linear probe (2.5 kg): improvement -2, 95% interval -3 to "
        "-1 kg."
    )
    improvement = Interval(value=1.5, low=0.5, high=2.5)
    worse = probe.model_copy(update={"name": "nearest neighbours", "improvement": improvement})
    lines = printed(capsys, baselines=(worse, probe))
    assert (
        "Baselines    nearest neighbours 2.5 kg, linear probe 2.5 kg, this model 2.25 kg" in lines
    )
    (warning,) = [line for line in lines if "linear probe" in line and line.startswith("Warning")]
    assert warning == (
        "Warning      The model is not significantly better than the linear probe (2.5 kg): "
        "improvement +0.25, 95% interval -0.5 to +1 kg."
    )


def test_output_compares_the_model_with_the_champion(capsys):
    lines = printed(capsys, comparison=COMPARISON)
    assert (
        "Champion     2.5 kg on the same photos: this model is 0.25 kg better, p = 0.310" in lines
    )
    assert (
        "             10 more are excluded: one of the models was trained on them." in lines
    )  # fmt: skip
    assert "Champion     this model" in printed(capsys, is_champion=True)


def test_output_lists_the_reasons_of_a_failed_gate(capsys):
    verdict = Verdict(passed=False, reasons=("too bad", "too old"))
    assert "Gate         not passed: too bad; too old" in printed(capsys, verdict=verdict)


def test_output_states_that_no_gate_is_configured(capsys):
    verdict = Verdict(passed=True, has_condition=False)
    assert "Gate         not configured" in printed(capsys, verdict=verdict)


def test_output_names_the_validation_split(capsys):
    assert "(1,234 validation photos;" in printed(capsys, split="valid")[1]


def test_model_that_equals_a_baseline_is_not_called_worse():
    equal = Baseline(
        name="linear probe", metric=RMSE, improvement=Interval(value=0, low=0, high=0), p_value=1.0
    )
    assert equal.warning == "The model is exactly as good as the linear probe (2.25 kg)."


def test_output_of_a_training_lists_its_epochs(capsys):
    epoch = EpochMetrics(
        phase="frozen", epoch=0, train_loss=0.5, valid_loss=0.25, valid_metric=0.125,
        seconds=2.6, photos_per_second=100.0,
    )  # fmt: skip
    probe = epoch.model_copy(update={"phase": "probe", "epoch": -1, "valid_loss": None})
    result = TrainResult(
        model_url="a/model", last_model_url="a/last", history_url="h", plot_url="p.png",
        base_lr=0.003, mixed_precision="no", device="cpu", num_processes=1, num_steps=1200,
        num_layer_groups=9, unfreeze_to=4, epochs=(probe, epoch), seconds=9.5,
    )  # fmt: skip
    show_training(result)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "epoch  phase   train loss  valid loss  valid error rate  seconds",
        "-      probe   0.500       -           12.5%             3",
        "1      frozen  0.500       0.250       12.5%             3",
        "",
        "Training     1,200 optimizer steps in 10 s on 1 x cpu, mixed precision no, "
        "base_lr 3.00e-03",
        "Unfrozen     the last 5 of 9 layer groups",
        "Model        a/model",
        "Plot         p.png",
    ]


def test_output_of_the_lr_finder_lists_all_suggestions(capsys):
    show_lr_suggestion(
        LRSuggestion(
            minimum=0.02,
            steepest=0.003,
            valley=0.0045,
            slide=0.01,
            chosen=0.003,
            suggestion="steepest",
            num_steps=90,
            seconds=1.0,
            curve_url="c.parquet",
            plot_url="p.png",
        )
    )
    assert capsys.readouterr().out.splitlines() == [
        "",
        "base_lr      3.00e-03  (steepest; 90 steps)",
        "  minimum    2.00e-02",
        "  steepest   3.00e-03",
        "  valley     4.50e-03",
        "  slide      1.00e-02",
        "  limited    4.50e-03",
        "Curve        c.parquet",
        "Plot         p.png",
    ]


def test_output_of_the_lr_finder_without_suggestions(capsys):
    show_lr_suggestion(
        LRSuggestion(
            chosen=0.003,
            suggestion="limited",
            num_steps=4,
            seconds=1.0,
            curve_url="c.parquet",
            plot_url="p.png",
        )
    )
    assert capsys.readouterr().out.splitlines() == [
        "",
        "base_lr      3.00e-03  (train.base_lr, no suggestion; 4 steps)",
        "Curve        c.parquet",
        "Plot         p.png",
    ]


def test_output_omits_missing_intervals_and_highlights(capsys):
    metric = Metric(name="mean IoU", value=0.5)
    lines = printed(capsys, primary=metric, highlights=None, metrics=(), details=(), notes=())
    assert lines[1] == "Mean IoU     0.5  (1,234 test photos)"
    assert "Worst" not in lines
