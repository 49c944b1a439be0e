"""Search of the weight decay."""

import math

import pytest

from pets_core.ratings.config import WEIGHT_DECAYS
from pets_core.ratings.search import next_weight_decay


@pytest.mark.parametrize("best", [*WEIGHT_DECAYS, 0.002, 20.0])
def test_search_finds_the_minimum(best):
    errors: dict[float, float] = {}
    while (decay := next_weight_decay(errors)) is not None:
        assert decay not in errors
        errors[decay] = abs(math.log(decay / best))
    assert min(errors, key=errors.get) == min(max(best, 0.01), 3)
    assert next(iter(errors)) == 0.3


def test_search_takes_three_trainings_if_the_default_is_best():
    assert next_weight_decay({}) == 0.3
    assert next_weight_decay({0.3: 1.0}) == 1.0
    assert next_weight_decay({0.3: 1.0, 1.0: 2.0}) == 0.1
    assert next_weight_decay({0.3: 1.0, 1.0: 2.0, 0.1: 2.0}) is None
