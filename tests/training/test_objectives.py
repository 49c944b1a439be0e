"""Objectives of tags, numbers and coordinates, against values computed by hand."""

import math

import pytest
import torch

from pets_core.config.train import TrainConfig
from pets_core.models.card import ModelCard
from pets_core.records.dataset import ClassInfo, NumberInfo
from pets_core.targets.coordinates.objective import Boxes, Keypoints
from pets_core.targets.registry import get_target
from pets_core.targets.regression.objective import Regression, widen_range
from pets_core.targets.tags.objective import MultiLabel

LOGITS = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
TAGS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_tag_loss_is_the_mean_binary_cross_entropy():
    by_hand = (softplus(0) + softplus(2)) / 2 + (softplus(-1) + softplus(-3)) / 2
    assert float(MultiLabel().loss_sum(LOGITS, TAGS)) == pytest.approx(by_hand, rel=1e-6)
    assert float(MultiLabel(0.2).valid_loss_sum(LOGITS, TAGS)) == pytest.approx(by_hand, rel=1e-6)


def test_label_smoothing_moves_tags_towards_one_half():
    smooth = MultiLabel(0.2).loss_sum(torch.zeros(1, 2) + 1, torch.tensor([[1.0, 0.0]]))
    by_hand = (0.9 * softplus(-1) + 0.1 * softplus(1) + 0.1 * softplus(-1) + 0.9 * softplus(1)) / 2
    assert float(smooth) == pytest.approx(by_hand, rel=1e-6)


def test_tag_metric_is_the_f1_per_photo():
    objective = MultiLabel()
    # Both photos get only the second tag: a probability of 0.5 predicts no tag.
    assert float(objective.metric_sum(LOGITS, TAGS)) == pytest.approx(0 + 1)
    assert float(objective.metric_sum(torch.tensor([[0.1, 0.1]]), TAGS[:1])) == pytest.approx(2 / 3)
    assert float(objective.metric_sum(-torch.ones(1, 2), torch.zeros(1, 2))) == 1.0
    assert (objective.metric.name, objective.metric.higher_is_better) == ("F1 per photo", True)
    assert objective.activation(LOGITS)[0, 0] == 0.5


def test_keypoint_metric_is_the_mean_distance():
    objective = Keypoints()
    predicted, actual = torch.tensor([[0.3, 0.4, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(objective.metric_sum(predicted, actual)) == pytest.approx((0.5 + 0) / 2 / 2)
    assert objective.metric_value(0.25) == 0.25


def test_box_metric_is_the_mean_iou_for_any_order_of_corners():
    objective = Boxes()
    half = torch.tensor([[0.0, 0.5, -0.5, -0.5]])
    actual = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    assert float(objective.metric_sum(half, actual)) == pytest.approx(0.5)
    assert objective.metric.higher_is_better


def test_empty_batch_has_zero_loss_and_metric():
    empty = torch.zeros(0, 2)
    for objective in (MultiLabel(), Regression(), Regression(loss="l1")):
        assert float(objective.loss_sum(empty, empty)) == 0.0
        assert float(objective.metric_sum(empty, empty)) == 0.0


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [("mse", (0.5**2 + 2**2) / 2), ("l1", (0.5 + 2) / 2), ("smooth_l1", (0.125 + 1.5) / 2)],
)
def test_regression_loss_is_in_standard_deviations(loss, by_hand):
    objective = Regression(loss=loss, mean=torch.tensor([10.0, 0.0]), std=torch.tensor([4.0, 1.0]))
    logits, targets = torch.tensor([[0.5, 0.0]]), torch.tensor([[10.0, 2.0]])
    assert objective.activation(logits).tolist() == [[12.0, 0.0]]
    assert float(objective.loss_sum(logits, targets)) == pytest.approx(by_hand)
    assert float(objective.metric_sum(logits, targets)) == pytest.approx((2**2 + 2**2) / 2)


def test_regression_metric_is_the_rmse():
    objective = Regression()
    total = objective.metric_sum(torch.tensor([1.0, 4.0]), torch.tensor([4.0, 0.0]))
    assert objective.metric_value(float(total) / 2) == pytest.approx(math.sqrt((9 + 16) / 2))


def test_metric_of_several_units_is_in_standard_deviations():
    objective = Regression(std=torch.tensor([4.0, 1.0]), has_one_unit=False)
    logits, targets = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(objective.metric_sum(logits, targets)) == pytest.approx((0.5**2 + 2**2) / 2)
    assert objective.metric.unit == "SD"


def test_sigmoid_range_is_widened_by_a_tenth():
    assert widen_range((0.0, 10.0)) == (-1.0, 11.0)
    objective = Regression(widen_range((0.0, 10.0)))
    assert float(objective.activation(torch.zeros(1, 1))) == 5.0
    assert float(objective.activation(torch.full((1, 1), 50.0))) == pytest.approx(11.0)


def card(**changes) -> ModelCard:
    defaults = {
        "backbone": "x", "num_features": 8, "vocabulary": (), "image_size": 24, "resize_to": 32,
        "mean": (0, 0, 0), "std": (1, 1, 1), "dataset_fingerprint": "f",
    }  # fmt: skip
    return ModelCard(**defaults | changes)


def create_objective(model_card: ModelCard, *arguments):
    return get_target(model_card.targets).objective(model_card, *arguments)


def decode(model_card: ModelCard, logits: torch.Tensor) -> torch.Tensor:
    return get_target(model_card.targets).decode(model_card, logits)


COORDINATE = NumberInfo(name="x", unit="half widths")


def test_each_kind_of_target_has_its_objective():
    cpu, train = torch.device("cpu"), TrainConfig()
    classes = (ClassInfo(name="a"), ClassInfo(name="b"))
    of_class = create_objective(card(vocabulary=classes), train, (1, 2), cpu)
    assert of_class.metric.name == "error rate"
    of_tags = create_objective(card(targets="tags", vocabulary=classes), train, (), cpu)
    assert of_tags.metric.name == "F1 per photo"
    keypoints = card(targets="points", numbers=(COORDINATE, COORDINATE))
    large = torch.full((1, 2), 50.0)
    objective = create_objective(keypoints, train, (), cpu)
    assert objective.activation(large)[0].tolist() == pytest.approx([1.2, 1.2])
    kg, years = NumberInfo(name="w", unit="kg", mean=5, std=2), NumberInfo(name="a", unit="years")
    mixed = create_objective(card(targets="numbers", numbers=(kg, years)), train, (), cpu)
    assert mixed.metric.unit == "SD"
    assert mixed.activation(torch.ones(1, 2))[0].tolist() == [7.0, 1.0]


def test_decoded_outputs_refer_to_the_whole_photo():
    keypoints = card(targets="points", numbers=(COORDINATE, COORDINATE))
    # The centre of the crop is the centre of the photo; its edge is at 24 / 32.
    assert decode(keypoints, torch.zeros(1, 2))[0].tolist() == pytest.approx([0.0, 0.0])
    edge = math.log((1 + 1.2) / (1.2 - 1))
    assert decode(keypoints, torch.full((1, 2), edge))[0].tolist() == pytest.approx([0.75, 0.75])
    assert decode(keypoints, torch.full((1, 2), 50.0))[0].tolist() == pytest.approx([0.9, 0.9])
    bounded = card(targets="numbers", numbers=(NumberInfo(name="a"),), y_range=(0.0, 10.0))
    assert decode(bounded, torch.full((1, 1), 50.0)).tolist() == [[10.0]]
    box = card(targets="box", numbers=(COORDINATE,) * 4)
    xmin, ymin, xmax, ymax = decode(box, torch.tensor([[1.0, 0.0, -1.0, 0.5]]))[0].tolist()
    assert (xmin, ymin) < (xmax, ymax)
    assert xmin == pytest.approx(-xmax), "corners are sorted, as those of a transformed box"
    classes = card(vocabulary=(ClassInfo(name="a"), ClassInfo(name="b")))
    assert decode(classes, torch.zeros(1, 2)).tolist() == [[0.5, 0.5]]


def test_model_card_of_an_earlier_version_is_read():
    old = card(vocabulary=(ClassInfo(name="a"),)).model_dump(mode="json")
    old["objective"] = "single_label"
    del old["targets"], old["numbers"], old["y_range"]
    assert ModelCard.model_validate(old).targets == "class"
