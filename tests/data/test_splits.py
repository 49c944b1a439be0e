"""The draw: uniform, reproducible, and of one photo alone."""

from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.splits import draw

seeds = st.integers(0, 2**40)


@given(seeds, st.text())
def test_a_draw_is_a_share(seed, photo_id):
    assert 0 <= draw(seed, photo_id) < 1
    assert draw(seed, photo_id) == draw(seed, photo_id)


def test_draws_stay_what_they_are():
    # Another value moves photos of existing data sets from train to test.
    assert draw(0, "Abyssinian_1") == 0.2851120781513026
    assert draw(1, "Abyssinian_1") == 0.11384461153128556
    assert draw(0, "猫/1.jpg") == 0.6342486179637082


def test_draws_are_uniform():
    numbers = sorted(draw(0, f"photo {n}") for n in range(20_000))
    # Kolmogorov-Smirnov: 1.63 / sqrt(n) is passed by 99 in 100.
    worst = max(abs(number - place / 20_000) for place, number in enumerate(numbers))
    assert worst < 1.63 / 20_000**0.5


def test_another_seed_is_another_choice():
    held = [{n for n in range(2000) if draw(seed, str(n)) < 0.2} for seed in range(2)]
    assert all(320 < len(own) < 480 for own in held)
    # Independent choices of a fifth share a fifth of it.
    assert len(held[0] & held[1]) < 130


@given(seeds, st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_the_smaller(seed, photo_id, one, other):
    small, large = sorted([one, other])
    assert draw(seed, photo_id) >= small or draw(seed, photo_id) < large or small == large
