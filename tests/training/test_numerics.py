"""Golden losses, which must not change by accident, in fp32 and bf16."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from convolutions import Convolutions
from torch import nn

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.models.classifier import Classifier
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.loop import fit
from pets_core.training.schedule import Phase

PHASES = [
    Phase("frozen", 1, -1, RateSlice(1e-2), 0.3, 25.0),
    Phase("unfrozen", 2, 0, RateSlice(1e-1, 1e-2), 0.3, 5.0),
]
GOLDEN = [
    1.1212232,
    1.1040951,
    1.125481,
    1.0934762,
    1.1233287,
    1.1352822,
    1.0969014,
    1.1438253,
    1.1230086,
    1.1196778,
    1.0437601,
    1.01364,
    1.1007917,
    0.9647675,
    0.9264113,
    0.9078761,
    1.1641462,
    0.9156865,
]


@pytest.fixture
def train_in(tiny_model, tiny_loader):
    def train(precision: str) -> list[float]:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        tiny_model.second[1].p = 0.0
        history = fit(
            tiny_model, SingleLabel(), tiny_loader, None, PHASES,
            TrainConfig(batch_size=64, batch_norm="train"), accelerator=accelerator,
        )  # fmt: skip
        return [row["loss"] for row in history.steps]

    yield train
    AcceleratorState._reset_state(reset_partial_state=True)


def test_golden_losses(train_in) -> None:
    """Measured with torch 2.15 on an Intel CPU; others may round the last digits differently."""
    assert train_in("no") == pytest.approx(GOLDEN, rel=1e-4)


def test_every_phase_computes_in_bf16(train_in, tiny_model) -> None:
    dtypes = []
    tiny_model.head.register_forward_hook(lambda _, __, logits: dtypes.append(logits.dtype))
    train_in("bf16")
    assert set(dtypes) == {torch.bfloat16}


def test_bf16_losses_stay_near_the_golden_ones(train_in) -> None:
    """bf16 keeps 8 bits of each number, and rounding errors add up over the steps."""
    losses = train_in("bf16")
    assert losses == pytest.approx(GOLDEN, rel=2**-5)
    assert losses != pytest.approx(GOLDEN, rel=1e-4), "losses of fp32, not of bf16"
    assert torch.get_default_dtype() == torch.float32


def make_photo_model() -> Classifier:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Classifier(body, 8, 3, 0.0)


def test_photos_train_in_bf16_with_depthwise_convolutions_in_fp32(tiny_loader) -> None:
    noise = torch.randn(tiny_loader.num_rows, 3, 12, 12)
    tiny_loader.inputs = tiny_loader.inputs[:, :3, None, None] + 0.1 * noise
    found = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        model, config = make_photo_model(), TrainConfig()
        with Convolutions() as recorded:
            history = fit(
                model, SingleLabel(), tiny_loader, None, PHASES, config, accelerator=accelerator
            )
        found[precision] = [row["loss"] for row in history.steps], recorded.seen
    AcceleratorState._reset_state(reset_partial_state=True)
    losses, seen = found["bf16"]
    assert losses == pytest.approx(found["no"][0], abs=2**-5)
    assert losses != pytest.approx(found["no"][0], rel=1e-5), "losses of fp32, not of bf16"
    depthwise = [dtype for direction, grouped, dtype in seen if grouped and direction == "forward"]
    assert torch.bfloat16 in depthwise, "frozen epochs"
    assert depthwise[-1] == torch.float32, "unfrozen epochs"
    backward = {each[1:] for each in seen if each[0] == "backward"}
    assert backward == {(True, torch.float32), (False, torch.bfloat16)}
