"""Rating models: embeddings, unknown users and items, and storage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pets_core.errors import PetsError
from pets_core.models.package import save_model
from pets_core.ratings.baselines import Biases
from pets_core.ratings.card import RecommenderCard
from pets_core.ratings.config import RecommenderConfig
from pets_core.ratings.model import create_recommender, load_recommender
from pets_core.targets.regression.objective import Regression


def card(**settings) -> RecommenderCard:
    return RecommenderCard(
        config=RecommenderConfig(num_factors=4, **settings), num_users=6, num_items=5,
        y_range=(1, 5), mean=3.6, dataset_url="here", dataset_fingerprint="f",
    )  # fmt: skip


def test_embedding_equals_a_product_with_one_hot_vectors():
    model = create_recommender(card()).model
    users = torch.tensor([1, 3, 3, 6])
    one_hot = nn.functional.one_hot(users, 7).float()
    product = one_hot @ model.user_factors.weight
    assert torch.equal(model.user_factors(users), product)
    # The gradients are equal, too: a row's gradient is the sum over the samples that use it.
    of_look_up, of_product = (
        torch.autograd.grad(found.square().sum(), model.user_factors.weight)[0]
        for found in (model.user_factors(users), one_hot @ model.user_factors.weight)
    )
    assert torch.allclose(of_look_up, of_product)
    weight = model.user_factors.weight.detach()
    assert torch.allclose(of_look_up[1], 2 * weight[1])
    assert torch.allclose(of_look_up[3], 2 * 2 * weight[3])


def test_dot_product_matches_a_manual_calculation():
    model = create_recommender(card()).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    output = model(torch.tensor([[2, 4]]))
    users, items = model.user_factors.weight[2], model.item_factors.weight[4]
    expected = (users * items).sum() + model.user_bias.weight[2] + model.item_bias.weight[4]
    assert output.item() == pytest.approx((expected + model.bias).item(), abs=1e-6)


def test_neural_model_adds_a_hidden_layer_to_the_dot_product():
    torch.manual_seed(0)
    model = create_recommender(card(model="neural")).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    users, items = model.user_factors.weight[2], model.item_factors.weight[4]
    hidden = model.head[0](torch.cat([users, items])).relu() @ model.head[3].weight[0]
    biases = model.user_bias.weight[2] + model.item_bias.weight[4] + model.bias
    output = model(torch.tensor([[2, 4]]))
    assert output.item() == pytest.approx(
        ((users * items).sum() + hidden + biases).item(), abs=1e-4
    )


@pytest.mark.parametrize("kind", ["dot", "neural"])
def test_fitted_biases_are_predicted(kind):
    """Near the mean, where the sigmoid is close to its tangent."""
    built = create_recommender(card(model=kind))
    torch.manual_seed(0)
    users, items = np.full(7, 0.02), np.full(6, -0.05)
    users[0] = items[0] = 0
    built.model.set_biases(Biases(3.6, users, items))
    logits = built.model.eval()(torch.tensor([[0, 0], [2, 0], [0, 3], [2, 3]]))
    predicted = Regression(built.card.sigmoid_range).activation(logits)
    assert predicted.tolist() == pytest.approx([3.6, 3.62, 3.55, 3.57], abs=1e-3)


def test_training_starts_from_the_mean():
    built = create_recommender(card())
    logits = built.model(torch.tensor([[0, 0], [0, 3]]))
    predicted = Regression(built.card.sigmoid_range).activation(logits)
    assert predicted.tolist() == pytest.approx([3.6, 3.6], abs=1e-5)


@pytest.mark.parametrize("kind", ["dot", "neural"])
def test_unknown_index_is_not_trained(kind):
    model = create_recommender(card(model=kind)).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    pairs = torch.tensor([[0, 0], [0, 2], [3, 0], [3, 2]])
    for _ in range(3):
        model(pairs).square().sum().backward()
        optimizer.step()
    for table in (model.user_factors, model.item_factors):
        assert not table.weight[0].any()
        assert table.weight[2:4].any()


def test_predictions_can_reach_the_ends_of_the_scale():
    predicted = Regression(card().sigmoid_range).activation(torch.tensor([-20.0, 3.0, 20.0]))
    assert predicted[0] < 1
    assert predicted[1] > 5
    assert predicted.tolist() == pytest.approx([0.6, 5.172, 5.4], abs=1e-3)


@pytest.mark.parametrize("kind", ["dot", "neural"])
def test_stored_model_predicts_the_same(tmp_path, kind):
    built = create_recommender(card(model=kind))
    save_model(str(tmp_path), built.card, built.model.state_dict())
    loaded = load_recommender(str(tmp_path))
    pairs = torch.tensor([[1, 2], [0, 5]])
    assert loaded.card == built.card
    assert torch.equal(loaded.model(pairs), built.model.eval()(pairs))


def test_neural_model_of_an_earlier_version_is_rejected(tmp_path):
    built = create_recommender(card(model="neural"))
    state = {k: v for k, v in built.model.state_dict().items() if "bias.weight" not in k}
    save_model(str(tmp_path), built.card, state)
    with pytest.raises(PetsError, match="neural model had no biases: train it again"):
        load_recommender(str(tmp_path))


def test_invalid_rating_model_is_rejected(tmp_path):
    with pytest.raises(PetsError, match="not a model folder"):
        load_recommender(str(tmp_path))
    built = create_recommender(card())
    save_model(str(tmp_path), built.card, built.model.state_dict())
    other = create_recommender(card(model="neural"))
    save_model(str(tmp_path / "other"), other.card, built.model.state_dict())
    with pytest.raises(PetsError, match="damaged or belongs to another model"):
        load_recommender(str(tmp_path / "other"))
    Path(tmp_path, "model.json").write_text('{"backbone": "resnet34"}')
    with pytest.raises(PetsError, match="damaged or not of a rating model"):
        load_recommender(str(tmp_path))
