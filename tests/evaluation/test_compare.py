"""Two models on the same photos, and the gate."""

import re

import numpy as np
import pytest
from predictions_of import predictions_of

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.evaluation.compare import _improvement, compare, judge
from pets_core.evaluation.predictions import Predictions
from pets_core.records.evaluation import unseen_text


def answering(draw, targets, said, ids=None, **about) -> Predictions:
    """Predictions of a model that says `said`, and is sure of it."""
    num_classes = about.pop("num_classes", 3)
    drawn = draw(len(targets), num_classes, **about)
    probabilities = np.eye(num_classes, dtype=np.float32)[said]
    return predictions_of(drawn.info, ids or drawn.ids, np.array(targets), probabilities)


@pytest.fixture
def both(draw):
    """100 photos: 10 only the champion got wrong, 2 only the model, 5 both."""
    targets = np.zeros(100, int)
    model, champion = np.zeros(100, int), np.zeros(100, int)
    champion[:10] = 1
    model[10:12] = 1
    model[12:17] = champion[12:17] = 2
    return answering(draw, targets, model), answering(draw, targets, champion, model_url="best")


def test_figures_by_hand(both):
    comparison = compare(*both)
    assert comparison.champion_url == "best"
    assert (comparison.error_rate, comparison.champion_error_rate) == (0.07, 0.15)
    assert (comparison.only_champion_wrong, comparison.only_model_wrong) == (10, 2)
    assert comparison.improvement.value == pytest.approx(0.08)
    assert comparison.improvement.low < 0.08 < comparison.improvement.high
    # McNemar's exact test: P(at most 2, or at least 10, of 12 by even odds) = 158 / 4096.
    assert comparison.p_value == pytest.approx(158 / 4096)
    assert comparison.chance == "p = 0.039"


def test_the_interval_of_a_published_example():
    """Approval ratings, 794 + 150 + 86 + 570 people (Agresti, Categorical Data Analysis, 10.1)."""
    found = _improvement(150, 86, 1600)
    assert found.value == pytest.approx(0.04)
    # Wald's interval there is 0.0213 to 0.0587; half a person more a cell moves it by little.
    assert found.low == pytest.approx(0.0213, abs=3e-4)
    assert found.high == pytest.approx(0.0587, abs=3e-4)


def test_equal_models_differ_by_nothing(both):
    comparison = compare(both[0], both[0])
    assert comparison.improvement.value == 0
    assert comparison.improvement.low < 0 < comparison.improvement.high
    assert comparison.p_value == 1
    assert comparison.better == comparison.worse == ()
    assert comparison.largest_drop == 0


def test_photos_are_matched_by_their_ids(draw):
    targets, said = [0, 1, 2, 0], [0, 1, 2, 1]
    model = answering(draw, targets, said, ids=["a", "b", "c", "d"])
    champion = answering(draw, [2, 0, 1], [2, 0, 2], ids=["c", "a", "b"])
    comparison = compare(model, champion)
    assert comparison.num_rows == 3
    assert (comparison.only_champion_wrong, comparison.only_model_wrong) == (1, 0)


def test_classes_that_changed_are_told(draw):
    targets = [0] * 10 + [1] * 10 + [2] * 10
    model = [0] * 10 + [1] * 6 + [0] * 4 + [2] * 9 + [0]
    champion = [0] * 5 + [1] * 5 + [1] * 10 + [2] * 9 + [0]
    comparison = compare(
        answering(draw, targets, model, num_classes=4),
        answering(draw, targets, champion, num_classes=4),
    )
    (better,), (worse,) = comparison.better, comparison.worse
    assert (better.name, better.champion_recall, better.recall) == ("class-0", 0.5, 1.0)
    assert (worse.name, worse.champion_recall, worse.recall) == ("class-1", 1.0, 0.6)
    assert comparison.largest_drop == pytest.approx(0.4)


def test_other_classes_cannot_be_compared(draw):
    with pytest.raises(PetsError, match=r"knows 4 classes and the model 3"):
        compare(draw(num_classes=3), draw(num_classes=4))


def test_other_photos_cannot_be_compared(draw):
    one, other = draw(3), draw(3)
    other.ids[:] = ["x", "y", "z"]
    with pytest.raises(PetsError, match=r"judged on none of these photos"):
        compare(one, other)


def test_without_a_champion_the_error_rate_alone_decides():
    assert judge(GateConfig(), 0.9, None).passed
    assert judge(GateConfig(max_error_rate=0.1), 0.1, None).passed
    verdict = judge(GateConfig(max_error_rate=0.1), 0.101, None)
    assert verdict.reasons == ("error rate 10.10%, at most gate.max_error_rate = 10.00%",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, None),
        ({"min_improvement": 0.08}, None),
        ({"min_improvement": 0.081}, r"by \+8\.00%, at least gate.min_improvement = \+8\.10%"),
        ({"max_drop_per_class": 0.0}, None),
        ({"max_error_rate": 0.05, "min_improvement": 0.2}, r"max_error_rate.*min_improvement"),
    ],
)
def test_beside_the_champion(both, settings, words):
    verdict = judge(GateConfig(**settings), 0.07, compare(*both))
    assert verdict.passed == (words is None)
    if words:
        assert re.search(words, " ".join(verdict.reasons))


def test_no_interval_is_wider_than_all():
    found = _improvement(1, 0, 1)
    assert (found.value, found.high) == (1.0, 1.0)


def test_an_error_rate_that_is_no_number_does_not_pass():
    assert not judge(GateConfig(max_error_rate=0.1), float("nan")).passed


def test_a_worse_model_passes_only_where_that_is_allowed(both):
    comparison = compare(*reversed(both))
    assert not judge(GateConfig(), 0.15, comparison).passed
    assert judge(GateConfig(min_improvement=-0.08), 0.15, comparison).passed
    verdict = judge(GateConfig(min_improvement=-1, max_drop_per_class=0.05), 0.15, comparison)
    assert "of class-0 85.0% are recognised, by the champion 93.0%: 8.0% less" in verdict.reasons[0]


def test_what_cannot_be_compared_is_a_reason_against():
    verdict = judge(GateConfig(), 0.0, not_compared="the champion knows other classes")
    assert verdict.reasons == ("the champion knows other classes",)


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
def test_classes_without_a_photo_do_not_pass_a_gate(settings, passed):
    verdict = judge(GateConfig(**settings), 0.1, unseen_classes=("pug", "Sphynx"))
    assert verdict.passed == passed
    assert ("without an evaluated photo: pug, Sphynx." in " ".join(verdict.reasons)) == (not passed)


def test_classes_without_a_photo_do_not_pass_beside_a_champion(both):
    comparison = compare(*both)
    unseen = ("Sphynx",)
    (reason,) = judge(GateConfig(), 0.07, comparison, unseen_classes=unseen).reasons
    assert reason.endswith("set gate.allow_unseen_classes")
    allowed = GateConfig(allow_unseen_classes=True)
    assert judge(allowed, 0.07, comparison, unseen_classes=unseen).passed
    assert len(judge(GateConfig(), 0.07, None, "other classes", 0, unseen).reasons) == 2


def test_the_first_of_many_classes_without_a_photo_are_named():
    names = [f"class-{i}" for i in range(500)]
    assert unseen_text(names).endswith(" class-18, class-19 and 480 more")
    assert unseen_text(names[:20]).endswith(" class-18, class-19")
