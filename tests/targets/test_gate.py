"""Conditions a model must meet to be promoted, for every kind of target."""

import re

import pytest

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.records.evaluation import Comparison, Interval, LabelChange, Metric, unseen_text
from pets_core.records.target_spec import BUILT_IN_SPECS
from pets_core.targets.gate import check_gate, evaluate_gate
from pets_core.targets.registry import get_target

LIMITS = {
    "class": "max_error_rate",
    "tags": "min_score",
    "numbers": "max_value",
    "points": "max_value",
    "box": "min_score",
}
"""The gate's limit of each kind."""
SHARES = ("class", "tags", "box")
"""Kinds whose metric ranges from 0 to 1."""
OUT_OF_RANGE = [
    (kind, name, value)
    for kind in SHARES
    for name, value in (
        ("min_score", 1.01),
        ("min_score", -0.01),
        ("min_improvement", 1.01),
        ("min_improvement", -1.01),
    )
    if name in (LIMITS[kind], "min_improvement")
]
FOREIGN = [
    (kind, name)
    for kind, own in LIMITS.items()
    for name in ("max_error_rate", "min_score", "max_value")
    if name != own
]


def error_rate(value: float) -> Metric:
    return Metric(name="error rate", value=value, unit="%")


def f1(value: float) -> Metric:
    return Metric(name="F1 per photo", value=value, unit="%", higher_is_better=True)


def rmse(value: float) -> Metric:
    return Metric(name="RMSE", value=value, unit="kg")


def compared(
    improvement: float, drop: float = 0.0, metric: Metric | None = None, champion: float = 0.15
) -> Comparison:
    """Return a comparison in which the model is better than the champion by `improvement`."""
    metric = metric or error_rate(0.07)
    change = LabelChange(name="pug", support=10, champion_recall=0.93, recall=0.93 - drop)
    return Comparison(
        champion_url="best", num_rows=100, metric=metric,
        champion_metric=metric.model_copy(update={"value": champion}), num_better=10, num_worse=2,
        improvement=Interval(value=improvement, low=improvement - 0.05, high=improvement + 0.05),
        p_value=0.04, test="McNemar's test", worse=(change,) if drop else (), largest_drop=drop,
    )  # fmt: skip


def test_every_kind_has_a_limit():
    assert set(LIMITS) == set(BUILT_IN_SPECS)


@pytest.mark.parametrize("kind", LIMITS)
def test_gate_without_settings_fits_every_kind(kind):
    check_gate(GateConfig(), get_target(kind))
    check_gate(GateConfig(promote=True, alias="canary", min_improvement=0.01), get_target(kind))


@pytest.mark.parametrize(("kind", "limit"), LIMITS.items())
def test_limit_of_a_kind_is_accepted(kind, limit):
    check_gate(GateConfig(**{limit: 0.5}), get_target(kind))


@pytest.mark.parametrize(("kind", "name"), FOREIGN)
def test_limit_of_other_kinds_is_refused(kind, name):
    target = get_target(kind)
    direction = "higher" if target.higher_is_better else "lower"
    message = (
        rf"gate\.{name} = 0\.5 has no meaning for targets = {kind}, whose metric is the "
        rf"{target.metric} \({direction} is better\): set gate\.{LIMITS[kind]}$"
    )
    with pytest.raises(PetsError, match=message):
        check_gate(GateConfig(**{name: 0.5}), target)


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("settings", [{"max_drop_per_class": 0.1}, {"allow_unseen_classes": True}])
def test_label_settings_are_refused_for_kinds_without_labels(kind, settings):
    target = get_target(kind)
    if target.has_labels:
        check_gate(GateConfig(**settings), target)
        return
    (name,) = settings
    with pytest.raises(PetsError, match=rf"gate\.{name} has no meaning for targets = {kind}, "):
        check_gate(GateConfig(**settings), target)


@pytest.mark.parametrize(("kind", "name", "value"), OUT_OF_RANGE)
def test_values_outside_the_metric_range_are_refused(kind, name, value):
    target = get_target(kind)
    lower_bound = "-1" if name == "min_improvement" else "0"
    message = (
        rf"gate\.{name} = {value:g}: the {target.metric} goes from 0 to 1; set gate\.{name} "
        rf"from {lower_bound} to 1$"
    )
    with pytest.raises(PetsError, match=message):
        check_gate(GateConfig(**{name: value}), target)


@pytest.mark.parametrize("kind", ["numbers", "points"])
@pytest.mark.parametrize("value", [-25.0, 25.0])
def test_metric_without_a_range_accepts_any_improvement(kind, value):
    assert get_target(kind).metric_range is None
    check_gate(GateConfig(min_improvement=value), get_target(kind))


def test_bounds_of_the_metric_range_are_accepted():
    for value in (0.0, 1.0):
        check_gate(GateConfig(min_score=value), get_target("tags"))
    check_gate(GateConfig(min_improvement=-1.0), get_target("box"))
    check_gate(GateConfig(max_value=250.0), get_target("numbers"))


def test_verdict_without_a_champion_depends_on_the_metric_only():
    assert evaluate_gate(GateConfig(), error_rate(0.9)).passed
    assert evaluate_gate(GateConfig(max_error_rate=0.1), error_rate(0.1)).passed
    verdict = evaluate_gate(GateConfig(max_error_rate=0.1), error_rate(0.101))
    assert verdict.reasons == ("error rate 10.10% exceeds gate.max_error_rate = 10.00%",)
    assert verdict.text == "does not pass the gate"


def test_min_score_limits_a_metric_where_higher_is_better():
    assert evaluate_gate(GateConfig(min_score=0.8), f1(0.8)).passed
    assert evaluate_gate(GateConfig(min_score=0.8), f1(0.9)).passed
    verdict = evaluate_gate(GateConfig(min_score=0.8), f1(0.795))
    assert verdict.reasons == ("F1 per photo 79.50% is below gate.min_score = 80.00%",)


def test_max_value_limits_a_metric_where_lower_is_better():
    assert evaluate_gate(GateConfig(max_value=2.5), rmse(2.5)).passed
    assert evaluate_gate(GateConfig(max_value=2.5), rmse(1.0)).passed
    verdict = evaluate_gate(GateConfig(max_value=2.5), rmse(2.75))
    assert verdict.reasons == ("RMSE 2.75 kg exceeds gate.max_value = 2.5 kg",)


def test_rounding_errors_do_not_fail_the_gate():
    """0.1 + 0.2 is a little more than 0.3, and 1 - 0.9 a little less than 0.1."""
    assert evaluate_gate(GateConfig(max_error_rate=0.3), error_rate(0.1 + 0.2)).passed
    assert evaluate_gate(GateConfig(max_value=0.3), rmse(0.1 + 0.2)).passed
    assert evaluate_gate(GateConfig(min_score=0.1), f1(1 - 0.9)).passed
    assert evaluate_gate(
        GateConfig(min_improvement=0.1), error_rate(0.07), compared(1 - 0.9)
    ).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("metric", "gate"),
    [
        (error_rate, {"max_error_rate": 0.1}),
        (f1, {"min_score": 0.1}),
        (rmse, {"max_value": 0.1}),
        (rmse, {}),
    ],
)
def test_metric_that_is_not_finite_does_not_pass(metric, gate, value):
    verdict = evaluate_gate(GateConfig(**gate), metric(value))
    assert verdict.reasons == (f"{metric(value).name} is not a finite number",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"min_improvement": 0.08}, None),
        (
            {"min_improvement": 0.081},
            r"improvement \+8\.00 percentage points is below gate.min_improvement = \+8\.10 perc",
        ),
        ({"max_drop_per_class": 0.0}, None),
        ({"max_error_rate": 0.05, "min_improvement": 0.2}, r"max_error_rate.*min_improvement"),
    ],
)
def test_improvement_over_the_champion_is_checked(settings, message):
    verdict = evaluate_gate(GateConfig(**settings), error_rate(0.07), compared(0.08))
    assert verdict.passed == (message is None)
    if message:
        assert re.search(message, " ".join(verdict.reasons))


def test_worse_model_passes_only_if_settings_allow_it():
    worse = compared(-0.08, drop=0.08, metric=error_rate(0.15), champion=0.07)
    assert not evaluate_gate(GateConfig(), error_rate(0.15), worse).passed
    assert evaluate_gate(GateConfig(min_improvement=-0.08), error_rate(0.15), worse).passed
    gate = GateConfig(min_improvement=-1, max_drop_per_class=0.05)
    (reason,) = evaluate_gate(gate, error_rate(0.15), worse).reasons
    assert reason == (
        "recall of pug 85.0% (champion: 93.0%): drop 8.0% exceeds gate.max_drop_per_class = 5.0%"
    )


def test_improvement_has_the_unit_of_the_metric():
    comparison = compared(0.25, metric=rmse(2.25), champion=2.5)
    (reason,) = evaluate_gate(GateConfig(min_improvement=0.5), rmse(2.25), comparison).reasons
    assert reason == (
        "RMSE 2.25 kg (champion: 2.5 kg): improvement +0.25 kg is below "
        "gate.min_improvement = +0.5 kg"
    )


def test_incomparable_champion_fails_the_gate():
    verdict = evaluate_gate(
        GateConfig(), error_rate(0.0), comparison_error="the champion has other classes"
    )
    assert verdict.reasons == ("the champion has other classes",)


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        ({}, True),
        ({"alias": "canary"}, True),
        ({"max_error_rate": 0.5}, False),
        ({"promote": True}, False),
        ({"max_drop_per_class": 0.5}, False),
        ({"promote": True, "allow_unseen_classes": True}, True),
    ],
)
def test_labels_without_a_sample_do_not_pass_a_gate(settings, passed):
    verdict = evaluate_gate(GateConfig(**settings), error_rate(0.1), unseen=("pug", "Sphynx"))
    assert verdict.passed == passed
    assert ("without an evaluated photo: pug, Sphynx." in " ".join(verdict.reasons)) == (not passed)


def test_labels_without_a_sample_do_not_pass_against_a_champion():
    comparison, unseen = compared(0.08), ("Sphynx",)
    (reason,) = evaluate_gate(GateConfig(), error_rate(0.07), comparison, unseen=unseen).reasons
    assert reason.endswith("set gate.allow_unseen_classes")
    allowed = GateConfig(allow_unseen_classes=True)
    assert evaluate_gate(allowed, error_rate(0.07), comparison, unseen=unseen).passed
    refused = evaluate_gate(
        GateConfig(), error_rate(0.07), comparison_error="other classes", unseen=unseen
    )  # fmt: skip
    assert len(refused.reasons) == 2


@pytest.mark.parametrize(
    ("settings", "comparison", "has_condition"),
    [
        ({}, None, False),
        ({"promote": True}, None, False),
        ({"max_error_rate": 0.5}, None, True),
        ({"max_value": 0.5}, None, True),
        ({"min_score": 0.0}, None, True),
        ({}, compared(0.08), True),
    ],
)
def test_gate_without_conditions_is_reported_as_not_configured(settings, comparison, has_condition):
    verdict = evaluate_gate(GateConfig(**settings), error_rate(0.07), comparison)
    assert verdict.has_condition == has_condition
    assert verdict.text == (
        "passes the gate" if has_condition else "gate not configured, no champion"
    )


def test_message_names_the_first_20_unseen_labels():
    names = [f"class-{i}" for i in range(500)]
    assert unseen_text(names).endswith(" class-18, class-19 and 480 more")
    assert unseen_text(names[:20]).endswith(" class-18, class-19")
    assert unseen_text([]) == ""
