"""The linear probe: heads solved on features, compared with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from pets_core.errors import PetsError
from pets_core.targets.classes.objective import SingleLabel
from pets_core.targets.regression.objective import Regression
from pets_core.targets.tags.objective import MultiLabel
from pets_core.training.features import Features
from pets_core.training.probe import fit_linear_probe

D = 16


def new_head(num_outputs: int) -> nn.Sequential:
    linear = nn.Linear(D, num_outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(D), nn.Dropout(0.5), linear)


def features_of(values: np.ndarray, targets: np.ndarray) -> Features:
    return Features(values.astype(np.float32), torch.from_numpy(targets), [""] * len(values))


def normalised(features: Features) -> np.ndarray:
    return nn.functional.layer_norm(torch.from_numpy(features.values), (D,)).numpy()


@pytest.fixture
def classes() -> tuple[Features, Features]:
    """Three overlapping classes, 120 training and 60 validation photos."""
    random = np.random.default_rng(0)
    targets = np.arange(180) % 3
    values = random.normal(size=(3, D))[targets] + 1.5 * random.normal(size=(180, D))
    return features_of(values[:120], targets[:120]), features_of(values[120:], targets[120:])


def test_head_of_classes_is_logistic_regression(classes):
    train, valid = classes
    solved = fit_linear_probe(new_head(3), SingleLabel(), train, valid)
    # scikit-learn's penalty is that of the summed loss.
    reference = LogisticRegression(C=1 / (solved.ridge * 120), tol=1e-8, max_iter=1000)
    reference.fit(normalised(train), train.targets)
    np.testing.assert_allclose(solved.state["2.weight"], reference.coef_, atol=2e-3)
    wrong = (reference.predict(normalised(valid)) != valid.targets.numpy()).mean()
    assert solved.valid_metric == pytest.approx(wrong)
    assert solved.num_samples == 120


def test_head_of_numbers_is_ridge_regression():
    random = np.random.default_rng(0)
    values = random.normal(size=(150, D)).astype(np.float32)
    targets = (normalised(features_of(values, values)) @ random.normal(size=(D, 2))).astype("f4")
    targets += random.normal(size=targets.shape).astype("f4")
    train, valid = (features_of(values[s], targets[s]) for s in (slice(100), slice(100, 150)))
    solved = fit_linear_probe(new_head(2), Regression(), train, valid)
    # The loss is averaged over the two numbers: half of scikit-learn's, as is the penalty.
    reference = Ridge(alpha=solved.ridge * 100).fit(normalised(train), train.targets)
    np.testing.assert_allclose(solved.state["2.weight"], reference.coef_, atol=2e-3)
    expected = ((reference.predict(normalised(valid)) - targets[100:]) ** 2).mean()
    assert solved.valid_loss == pytest.approx(expected, rel=1e-3)


def test_head_of_tags_is_one_logistic_regression_per_tag():
    random = np.random.default_rng(0)
    values = random.normal(size=(200, D))
    tags = (values[:, :2] + random.normal(size=(200, 2)) > 0).astype("f4")
    train, valid = (features_of(values[s], tags[s]) for s in (slice(150), slice(150, 200)))
    solved = fit_linear_probe(new_head(2), MultiLabel(), train, valid)
    for tag in range(2):
        reference = LogisticRegression(C=1 / (2 * solved.ridge * 150), tol=1e-8, max_iter=1000)
        reference.fit(normalised(train), train.targets[:, tag])
        np.testing.assert_allclose(solved.state["2.weight"][tag], reference.coef_[0], atol=5e-3)


def test_ridge_with_the_lowest_validation_loss_is_used(classes):
    train, valid = classes
    solved = fit_linear_probe(new_head(3), SingleLabel(), train, valid)
    losses = {}
    for ridge in (solved.ridge * 10**0.5, solved.ridge, solved.ridge / 10**0.5):
        model = LogisticRegression(C=1 / (ridge * 120), tol=1e-8, max_iter=1000)
        model.fit(normalised(train), train.targets)
        probabilities = model.predict_proba(normalised(valid))
        losses[ridge] = -np.log(probabilities[range(60), valid.targets]).mean()
    assert min(losses, key=losses.get) == solved.ridge
    for ridge, loss in losses.items():
        (tried,) = [found for each, found in solved.tried if each == pytest.approx(ridge)]
        assert tried == pytest.approx(loss, rel=1e-2)
    assert solved.valid_loss == pytest.approx(losses[solved.ridge], rel=1e-3)


def test_without_validation_photos_the_head_is_solved_on_all_training_photos(classes):
    train, _ = classes
    solved = fit_linear_probe(new_head(3), SingleLabel(), train, None)
    assert solved.valid_loss is None
    assert solved.valid_metric is None
    reference = LogisticRegression(C=1 / (solved.ridge * 120), tol=1e-8, max_iter=1000)
    reference.fit(normalised(train), train.targets)
    np.testing.assert_allclose(solved.state["2.weight"], reference.coef_, atol=2e-3)


def test_solution_does_not_depend_on_the_seed(classes):
    heads = []
    for seed in range(2):
        torch.manual_seed(seed)
        heads.append(fit_linear_probe(new_head(3), SingleLabel(), *classes).state["2.weight"])
    assert torch.equal(*heads)


def test_head_is_not_changed(classes):
    head = new_head(3)
    fit_linear_probe(head, SingleLabel(), *classes)
    assert not head[-1].weight.any()
    assert head.training


@pytest.mark.parametrize("num_rows", [1, 2, 4, 5])
def test_few_photos_without_validation(num_rows):
    """A class with one photo, and more classes than photos."""
    values = np.random.default_rng(0).normal(size=(num_rows, D))
    solved = fit_linear_probe(
        new_head(9), SingleLabel(), features_of(values, np.arange(num_rows)), None
    )
    assert all(tensor.isfinite().all() for tensor in solved.state.values())


def test_equal_features_are_an_error():
    train = features_of(np.ones((20, D)), np.arange(20) % 3)
    with pytest.raises(PetsError, match="same features for all training photos"):
        fit_linear_probe(new_head(3), SingleLabel(), train, None)
