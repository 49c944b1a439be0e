"""Schedules, group rates and suggestions compared with fastai; needs the extra `bench`."""

import numpy as np
import pytest
import torch

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.training.lr_finder import smooth, suggest
from pets_core.training.schedule import OneCycle, fine_tune_phases, group_rates

fastai_schedule = pytest.importorskip(
    "fastai.callback.schedule", reason="fastai is not installed: pip install -e '.[bench]'"
)
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.learner import Learner  # noqa: E402


@pytest.mark.parametrize(("pct_start", "div"), [(0.25, 25.0), (0.3, 5.0), (0.99, 25.0)])
def test_one_cycle_matches_fastai(pct_start, div):
    peak, steps = 3e-3, 200
    ours = OneCycle(steps, pct_start, div)
    rates = fastai_schedule.combined_cos(pct_start, peak / div, peak, peak / 1e5)
    momenta = fastai_schedule.combined_cos(pct_start, 0.95, 0.85, 0.95)
    # fastai computes the position in the cycle in fp32.
    for step in range(steps):
        assert peak * ours.lr_factor(step) == pytest.approx(rates(step / steps), rel=1e-5)
        assert ours.momentum(step) == pytest.approx(momenta(step / steps), rel=1e-6)


class Groups(torch.nn.Module):
    def __init__(self, num_groups):
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(num_groups))

    def forward(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs


def learner(num_groups, num_rows=32):
    batches = [(torch.randn(8, 2), torch.zeros(8, dtype=torch.int64)) for _ in range(num_rows // 8)]
    return Learner(
        DataLoaders(batches, batches, device="cpu"),
        Groups(num_groups),
        loss_func=torch.nn.functional.cross_entropy,
        splitter=lambda model: [list(part.parameters()) for part in model.parts],
    )


@pytest.mark.parametrize("num_groups", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("slice(1e-6, 1e-4)", slice(1e-6, 1e-4)),
        ("slice(1e-3)", slice(1e-3)),
        (2e-3, 2e-3),
    ],
)
def test_rate_slices_match_fastai(num_groups, ours, theirs):
    learn = learner(num_groups)
    learn.create_opt()
    learn.opt.set_hyper("lr", theirs)
    expected = [hyper["lr"] for hyper in learn.opt.hypers]
    assert group_rates(RateSlice.parse(ours), num_groups) == pytest.approx(expected)


def test_fine_tune_matches_fastai():
    """Compare the rates and momenta that fastai applies in every step and group."""
    learn, recorded = learner(3), []

    class RecordRates(fastai_schedule.Callback):
        order = 61

        def before_step(self):
            recorded.append([(h["lr"], h["mom"]) for h in self.opt.hypers])

    learn.add_cb(RecordRates())
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(2, base_lr=2e-3, freeze_epochs=1)
    config = TrainConfig(
        freeze_epochs=1,
        epochs=2,
        unfrozen_lr_div=2,
        pct_start=0.3,
        lr_mult=100,
        batch_norm="train",
        unfreeze_to=0,
    )
    expected = []
    for phase in fine_tune_phases(config, 2e-3, 3):
        assert phase.freeze_to == (-1 if phase.name == "frozen" else 0)
        # In fastai, the warm-up of the frozen phase takes 99% of its steps.
        pct_start = 0.99 if phase.name == "frozen" else phase.pct_start
        peaks = group_rates(phase.lr_max, 3)
        cycle = OneCycle(phase.epochs * 4, pct_start, phase.div)
        for _ in range(phase.epochs * 4):
            factor, momentum = cycle.advance()
            expected.append([(peak * factor, momentum) for peak in peaks])
    assert len(recorded) == len(expected) == 12
    frozen, unfrozen = slice(0, 4), slice(4, 12)
    np.testing.assert_allclose(
        np.array(recorded)[unfrozen], np.array(expected)[unfrozen], rtol=1e-6
    )
    head = (slice(None), -1)
    np.testing.assert_allclose(
        np.array(recorded)[frozen][head], np.array(expected)[frozen][head], rtol=1e-6
    )


def curve(seed):
    random = np.random.default_rng(seed)
    rates = np.geomspace(1e-7, 10, 100)
    logs = np.log10(rates)
    losses = 1 + 2 / (1 + np.exp(3 * (logs + 3 + random.normal()))) + 4 * np.clip(logs, 0, None)
    return rates, losses + 0.02 * random.normal(size=100)


@pytest.mark.parametrize("seed", range(20))
def test_suggestions_match_fastai(seed):
    rates, losses = curve(seed)
    ours = suggest(rates, losses)
    as_tensors = torch.tensor(rates), torch.tensor(losses)
    theirs = {
        name: getattr(fastai_schedule, name)(*as_tensors, 100)
        for name in ("valley", "slide", "minimum", "steep")
    }
    found = {name: float(value[0]) for name, value in theirs.items()}
    assert ours.minimum == pytest.approx(found["minimum"], rel=1e-5)
    assert ours.steepest == pytest.approx(found["steep"], rel=1e-5)
    assert ours.valley == pytest.approx(found["valley"], rel=1e-5)
    assert ours.slide == pytest.approx(found["slide"], rel=1e-5)


def test_smoothing_matches_fastai():
    from fastai.learner import AvgSmoothLoss

    losses, theirs, expected = np.random.default_rng(0).random(50), AvgSmoothLoss(), []
    theirs.reset()
    for loss in losses:
        theirs.accumulate(type("Learn", (), {"loss": torch.tensor(loss, dtype=torch.float32)}))
        expected.append(float(theirs.value))
    assert smooth(losses) == pytest.approx(expected, rel=1e-6)
