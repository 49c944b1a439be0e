"""Mixup and CutMix blend photos and targets by the same weight."""

import numpy as np
import pytest
import torch

from pets_core.config.train import TransformConfig
from pets_core.data.loading.mixing import mix

CLASSES = 5


def batch(count=4, size=32):
    """Photos of constant value i + 1 and class i."""
    values = torch.arange(1, count + 1).float()
    return values.view(-1, 1, 1, 1).expand(count, 3, size, size).clone(), torch.arange(count)


def test_mixup_blends_photos_by_their_target_weights():
    for seed in range(20):
        inputs, targets = mix(*batch(), CLASSES, TransformConfig(mixup_alpha=0.4), seed=seed)
        values = torch.arange(1, CLASSES + 1).float()
        expected = (targets @ values).view(-1, 1, 1, 1).expand_as(inputs)
        torch.testing.assert_close(inputs, expected)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_cutmix_target_weight_is_the_rectangle_area():
    sizes = set()
    for seed in range(20):
        inputs, targets = mix(*batch(), CLASSES, TransformConfig(cutmix_alpha=1.0), seed=seed)
        for number in range(4):
            partner = 3 - number
            photo = inputs[number, 0]
            assert set(photo.unique().tolist()) <= {number + 1.0, partner + 1.0}
            assert (photo == number + 1).float().mean() == pytest.approx(
                targets[number, number].item(), abs=1e-6
            )
            foreign = photo == partner + 1
            assert foreign.sum() == foreign.any(0).sum() * foreign.any(1).sum()
        sizes.add(int(foreign.sum()))
    assert len(sizes) > 10, "the rectangle should vary"


def test_each_batch_uses_either_mixup_or_cutmix():
    both = TransformConfig(mixup_alpha=1.0, cutmix_alpha=1.0)
    blended = [
        len(mix(*batch(), CLASSES, both, seed=seed)[0][0].unique()) == 1 for seed in range(40)
    ]
    assert 10 < sum(blended) < 30


def test_mixing_is_reproducible_by_seed():
    settings = TransformConfig(mixup_alpha=0.4, cutmix_alpha=1.0)
    first, second = (mix(*batch(), CLASSES, settings, seed=7) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_mixing_weights_follow_the_beta_distribution():
    """With alpha 0.4 most weights are near 0 or 1; with alpha 50 all are near 0.5."""

    def weights(alpha):
        config = TransformConfig(mixup_alpha=alpha)
        return np.array([mix(*batch(2), 2, config, seed=s)[1][0, 0].item() for s in range(300)])

    assert (np.abs(weights(0.4) - 0.5) > 0.4).mean() > 0.4
    assert np.abs(weights(50.0) - 0.5).max() < 0.25


def test_empty_batch_stays_empty():
    inputs, targets = mix(
        torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64), CLASSES,
        TransformConfig(mixup_alpha=1.0, cutmix_alpha=1.0), seed=0,
    )  # fmt: skip
    assert (len(inputs), targets.shape) == (0, (0, CLASSES))


@pytest.mark.parametrize("method", ["mixup_alpha", "cutmix_alpha"])
def test_tags_are_blended_like_their_photos(method):
    inputs = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    tags = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    mixed, targets = mix(inputs, tags, 3, TransformConfig(**{method: 1.0}), seed=3)
    weight = float(targets[0, 0])
    assert 0 < weight < 1
    # A tag of both photos stays 1, a tag of neither stays 0.
    assert targets[0].tolist() == pytest.approx([weight, 1.0, 0.0])
    assert targets[1].tolist() == pytest.approx([1 - weight, 1.0, 0.0])
    assert float(mixed[0].mean()) == pytest.approx(1 - weight, abs=1e-5)
