"""Comparison of two models: binary scores, continuous scores, and roots of means."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from predictions_of import predictions_of
from scipy.stats import binomtest, bootstrap, permutation_test

from pets_core.errors import PetsError
from pets_core.evaluation import compare as compare_module
from pets_core.evaluation.compare import ScoredSamples, _agresti_min, _mcnemar, compare
from pets_core.records.evaluation import Metric
from pets_core.targets.classes.target import ClassesEvaluator


def score_classes(draw_classes, targets, predicted, ids=None, **fields) -> ScoredSamples:
    """Return scores of a model that predicts the classes `predicted`."""
    num_classes = fields.pop("num_classes", 3)
    drawn = draw_classes(len(targets), num_classes, **fields)
    probabilities = np.eye(num_classes, dtype=np.float32)[predicted]
    predictions = predictions_of(drawn.info, ids or drawn.ids, np.array(targets), probabilities)
    return ClassesEvaluator(predictions).score()


def scored(
    scores: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool = False,
    is_root: bool = False,
    ids: Sequence[str] | None = None,
) -> ScoredSamples:
    """Return scores of a metric in kilograms."""
    values = np.asarray(scores, np.float64)
    mean = float(values.mean())
    metric = Metric(
        name="RMSE" if is_root else "MAE", unit="kg", higher_is_better=higher_is_better,
        value=float(np.sqrt(mean)) if is_root else mean, low=0.0, high=9.0, baseline=5.0,
    )  # fmt: skip
    names = ids or [f"photo-{row}" for row in range(len(values))]
    return ScoredSamples(metric, names, values, "a/model", is_root)


@pytest.fixture
def both(draw_classes):
    """Scores of 100 photos: 10 are wrong only by the champion, 2 only by the model, 5 by both."""
    targets = np.zeros(100, int)
    model, champion = np.zeros(100, int), np.zeros(100, int)
    champion[:10] = 1
    model[10:12] = 1
    model[12:17] = champion[12:17] = 2
    return score_classes(draw_classes, targets, model), score_classes(
        draw_classes, targets, champion, model_url="best"
    )


def test_comparison_computed_by_hand(both):
    comparison = compare(*both)
    assert comparison.champion_url == "best"
    assert (comparison.metric.value, comparison.champion_metric.value) == (0.07, 0.15)
    assert (comparison.num_better, comparison.num_worse) == (10, 2)
    assert comparison.improvement.value == pytest.approx(0.08)
    assert comparison.improvement.low < 0.08 < comparison.improvement.high
    # McNemar's exact test: P(at most 2, or at least 10, of 12 by even odds) = 158 / 4096.
    assert comparison.p_value == pytest.approx(158 / 4096)
    assert comparison.p_text == "p = 0.039"
    assert comparison.delta_text == "8.00 percentage points better"
    assert comparison.test == "McNemar's test"
    assert compare(*reversed(both)).delta_text == "8.00 percentage points worse"


def test_metrics_of_a_comparison_have_no_interval_or_baseline(both):
    comparison = compare(*both)
    for metric in (comparison.metric, comparison.champion_metric):
        assert (metric.name, metric.low, metric.high, metric.baseline) == (
            "error rate", None, None, None,
        )  # fmt: skip


def test_interval_matches_a_published_example():
    """Approval ratings, 794 + 150 + 86 + 570 people (Agresti, Categorical Data Analysis, 10.1)."""
    found = _agresti_min(150, 86, 1600)
    assert found.value == pytest.approx(0.04)
    # Wald's interval is 0.0213 to 0.0587; adding half a person to each cell changes it little.
    assert found.low == pytest.approx(0.0213, abs=3e-4)
    assert found.high == pytest.approx(0.0587, abs=3e-4)


def test_interval_is_clipped_to_1():
    found = _agresti_min(1, 0, 1)
    assert (found.value, found.high) == (1.0, 1.0)


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_binary_scores_use_mcnemars_test_and_the_agresti_min_interval(higher_is_better):
    """Scores of any kind (tags, IoU, errors) are binary if all are 0 or 1."""
    random = np.random.default_rng(5)
    model, champion = (random.integers(0, 2, 60).astype(float) for _ in range(2))
    found = compare(
        scored(model, higher_is_better=higher_is_better),
        scored(champion, higher_is_better=higher_is_better),
    )
    gains = (model - champion) * (1 if higher_is_better else -1)
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    assert better
    assert worse
    assert better != worse
    assert (found.num_better, found.num_worse) == (better, worse)
    assert found.p_value == pytest.approx(binomtest(worse, better + worse).pvalue)
    assert found.improvement == _agresti_min(better, worse, 60)
    assert found.improvement.value == pytest.approx(gains.mean())
    assert found.test == "McNemar's test"


def test_mcnemars_test_equals_the_exact_permutation_test():
    """SciPy enumerates all 2^N exchanges of the two models' scores."""
    model, champion = np.array([0.0] * 8 + [1] * 4), np.array([1.0] * 6 + [0] * 2 + [1] * 3 + [0])
    exact = permutation_test(
        (model, champion), lambda a, b, axis=-1: (a - b).mean(axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert compare(scored(model), scored(champion)).p_value == pytest.approx(exact.pvalue)


def by_scipy(
    model: np.ndarray, champion: np.ndarray, improvement: Callable[..., np.ndarray]
) -> tuple[float, float, float]:
    """Return both ends of the paired bootstrap interval, and the p-value, with another seed."""
    interval = bootstrap(
        (model, champion), improvement, paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=np.random.default_rng(77), batch=2000,
    ).confidence_interval  # fmt: skip
    tested = permutation_test(
        (model, champion), improvement, permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=np.random.default_rng(78), batch=2000,
    )  # fmt: skip
    return interval.low, interval.high, tested.pvalue


@pytest.mark.parametrize("higher_is_better", [False, True])
@pytest.mark.parametrize("is_root", [False, True])
def test_continuous_scores_match_scipy(is_root, higher_is_better):
    """The model's squared errors of 150 samples are somewhat smaller."""
    random = np.random.default_rng(3)
    model = random.gamma(2.0, 1.0, 150)
    champion = model * random.uniform(0.6, 1.55, 150)
    sign = 1 if higher_is_better else -1

    def improvement(a, b, axis=-1):
        a, b = a.mean(axis), b.mean(axis)
        return sign * (np.sqrt(a) - np.sqrt(b) if is_root else a - b)

    kind = {"higher_is_better": higher_is_better, "is_root": is_root}
    found = compare(scored(model, **kind), scored(champion, **kind))
    low, high, p_value = by_scipy(model, champion, improvement)
    width = high - low
    assert found.improvement.value == pytest.approx(float(improvement(model, champion)))
    assert found.improvement.low == pytest.approx(low, abs=0.1 * width)
    assert found.improvement.high == pytest.approx(high, abs=0.1 * width)
    assert found.improvement.low < found.improvement.value < found.improvement.high
    assert 0.005 < p_value < 0.5, "the expected p-value is not extreme"
    assert found.p_value == pytest.approx(p_value, abs=0.03)
    assert found.test == "paired permutation test"
    assert found.num_better == int((sign * (model - champion) > 0).sum())
    assert found.num_worse == 150 - found.num_better


def test_comparison_is_paired():
    """The spread is large and the difference small: an unpaired test would not detect it."""
    model = np.random.default_rng(0).gamma(1.0, 50.0, 80)
    found = compare(scored(model), scored(model + np.linspace(0.5, 1.5, 80)))
    assert found.p_value < 0.01
    assert found.improvement.low > 0.8
    assert found.improvement.high < 1.2


def test_root_metric_is_computed_on_shared_samples():
    model = scored([1.0, 4.0, 100.0], is_root=True)
    champion = scored([4.0, 9.0], is_root=True, ids=["photo-0", "photo-1"])
    found = compare(model, champion)
    assert found.metric.value == pytest.approx(np.sqrt(2.5))
    assert found.champion_metric.value == pytest.approx(np.sqrt(6.5))
    assert found.improvement.value == pytest.approx(np.sqrt(6.5) - np.sqrt(2.5))
    assert found.delta_text == f"{np.sqrt(6.5) - np.sqrt(2.5):.4g} kg better"


def test_binary_root_scores_use_the_permutation_test():
    """McNemar's test applies to the mean; a root has another improvement."""
    found = compare(
        scored([0.0, 1, 1, 0, 1, 0], is_root=True), scored([1.0, 1, 1, 1, 1, 0], is_root=True)
    )
    assert found.improvement.value == pytest.approx(np.sqrt(5 / 6) - np.sqrt(0.5))
    assert found.test == "paired permutation test"


def test_comparison_is_reproducible():
    model, champion = np.random.default_rng(1).gamma(1.0, 1.0, (2, 40))
    assert compare(scored(model), scored(champion)) == compare(scored(model), scored(champion))


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.25, 0.125]])
def test_equal_continuous_scores_have_no_improvement(scores):
    found = compare(scored(scores), scored(scores))
    assert (found.improvement.value, found.improvement.low, found.improvement.high) == (0, 0, 0)
    assert found.p_value == 1
    assert found.delta_text == "equal"


def test_interval_of_one_sample_has_zero_width():
    found = compare(scored([0.25]), scored([0.5]))
    assert (found.improvement.low, found.improvement.high) == (0.25, 0.25)
    assert found.p_value == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_cannot_be_compared(bad):
    for one, other in (([0.5, bad], [0.5, 0.5]), ([0.5, 0.5], [bad, 0.5])):
        with pytest.raises(PetsError, match=r"a sample's MAE is not finite"):
            compare(scored(one), scored(other))


def test_equal_models_have_no_improvement(both):
    comparison = compare(both[0], both[0])
    assert comparison.improvement.value == 0
    assert comparison.improvement.low < 0 < comparison.improvement.high
    assert comparison.p_value == _mcnemar(0, 0) == 1
    assert comparison.better == comparison.worse == ()
    assert comparison.largest_drop == 0
    assert comparison.delta_text == "equal"


def test_photos_are_matched_by_their_ids(draw_classes):
    model = score_classes(draw_classes, [0, 1, 2, 0], [0, 1, 2, 1], ids=["a", "b", "c", "d"])
    champion = score_classes(draw_classes, [2, 0, 1], [2, 0, 2], ids=["c", "a", "b"])
    comparison = compare(model, champion)
    assert comparison.num_rows == 3
    assert (comparison.num_better, comparison.num_worse) == (1, 0)


def test_labels_with_a_changed_recall_are_listed(draw_classes):
    targets = [0] * 10 + [1] * 10 + [2] * 10
    model = [0] * 10 + [1] * 6 + [0] * 4 + [2] * 9 + [0]
    champion = [0] * 5 + [1] * 5 + [1] * 10 + [2] * 9 + [0]
    comparison = compare(
        score_classes(draw_classes, targets, model, num_classes=4),
        score_classes(draw_classes, targets, champion, num_classes=4),
    )
    (better,), (worse,) = comparison.better, comparison.worse
    assert (better.name, better.champion_recall, better.recall) == ("class-0", 0.5, 1.0)
    assert (worse.name, worse.champion_recall, worse.recall) == ("class-1", 1.0, 0.6)
    assert (better.support, worse.support) == (10, 10)
    assert comparison.largest_drop == pytest.approx(0.4)


def test_recall_is_computed_on_shared_samples(draw_classes):
    """Samples that only the model has are excluded from the recall."""
    model = score_classes(draw_classes, [0, 0, 1, 1], [0, 1, 1, 0], ids=["a", "b", "c", "d"])
    champion = score_classes(draw_classes, [0, 1], [1, 1], ids=["a", "c"])
    (better,) = compare(model, champion).better
    assert (better.name, better.support, better.recall, better.champion_recall) == (
        "class-0", 1, 1.0, 0.0,
    )  # fmt: skip


def test_models_without_shared_samples_cannot_be_compared():
    with pytest.raises(PetsError, match=r"evaluated on none of these samples"):
        compare(scored([0.5, 0.5]), scored([0.5, 0.5], ids=["x", "y"]))


@pytest.mark.parametrize("is_root", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.01, 0.03])
def test_normal_approximation_for_many_samples_matches_the_permutation_test(
    is_root, shift, monkeypatch
):
    random = np.random.default_rng(1)
    base = np.square(random.normal(1, 0.5, 3000))
    other = base * random.uniform(0.5, 1.5, 3000) + shift
    model, champion = scored(base, is_root=is_root), scored(other, is_root=is_root)
    exact = compare(model, champion).p_value
    monkeypatch.setattr(compare_module, "_MOST_PERMUTED", 1000)
    assert compare(model, champion).p_value == pytest.approx(exact, abs=0.04)
