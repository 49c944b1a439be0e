"""The search for the largest micro-batch, and what becomes of memory that runs out elsewhere."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import CenterCrop
from pets_core.errors import PetsError
from pets_core.evaluation import predict
from pets_core.evaluation.predict import predict_split
from pets_core.models.classifier import Classifier
from pets_core.models.memory import HalvingForward, is_out_of_memory
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.loop import train_step
from pets_core.training.memory import explain_out_of_memory, largest_micro_batch, num_micro_batches
from pets_core.training.prepared import prepare
from pets_core.training.validation import validate

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


class Hungry(SingleLabel):
    """Runs out of memory above so many samples; notes what gradients there were before."""

    def __init__(self, room, model=None):
        super().__init__()
        self.room, self.model, self.seen = room, model, []

    def loss_sum(self, logits, targets):
        held = sum(p.grad is not None for p in self.model.parameters()) if self.model else 0
        self.seen.append((len(targets), held))
        if len(targets) > self.room:
            raise OUT_OF_MEMORY
        return super().loss_sum(logits, targets)


@pytest.mark.parametrize(("room", "expected"), [(100, 0), (16, 0), (15, 8), (3, 2), (2, 2), (1, 1)])
def test_the_batch_is_halved_until_it_fits(
    tiny_model, tiny_loader, accelerator, room, expected, recwarn
):
    batch = next(tiny_loader.epoch(0))
    tiny_model.train()
    before, random = copy.deepcopy(tiny_model.state_dict()), torch.get_rng_state()
    size = largest_micro_batch(
        tiny_model, Hungry(room), batch.inputs, batch.targets, accelerator=accelerator
    )
    assert size == expected
    assert bool(recwarn) == (expected > 0)
    assert torch.equal(torch.get_rng_state(), random), "dropout drew random numbers"
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())
    assert all(p.grad is None for p in tiny_model.parameters())
    assert all(module.training for module in tiny_model.modules())


def test_a_half_must_fit_beside_the_gradients_it_is_added_to(tiny_model, tiny_loader, accelerator):
    batch, hungry = next(tiny_loader.epoch(0)), Hungry(4, tiny_model)
    with pytest.warns(UserWarning, match="micro-batches of 4"):
        largest_micro_batch(
            tiny_model, hungry, batch.inputs, batch.targets, accelerator=accelerator
        )
    every = len(list(tiny_model.parameters()))
    # The first pass, of one sample, has CUDA's libraries allocate what they need.
    assert hungry.seen == [(1, every), (16, 0), (8, every), (4, every)]


def test_one_sample_that_does_not_fit_is_a_clear_error(tiny_model, tiny_loader, accelerator):
    batch = next(tiny_loader.epoch(0))
    tiny_model.eval()
    with pytest.raises(PetsError, match=r"lower model\.image_size"):
        largest_micro_batch(
            tiny_model, Hungry(0), batch.inputs, batch.targets, accelerator=accelerator
        )


@pytest.mark.parametrize(
    "error",
    [
        OUT_OF_MEMORY,
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    ],
)
def test_memory_runs_out_in_many_words(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_errors_are_not_of_memory(error):
    assert not is_out_of_memory(error)


def test_a_micro_batch_that_was_set_and_does_not_fit_is_explained():
    words = r"train\.micro_batch_size = 8 does not fit in memory: set a smaller one, .*2\.00 GiB"
    with pytest.raises(PetsError, match=words), explain_out_of_memory(8):
        raise OUT_OF_MEMORY


def test_a_step_explains_it(tiny_model, tiny_loader, accelerator):
    config = TrainConfig(micro_batch_size=8)
    rates = RateSlice(1e-3, uniform=True)
    hungry = Hungry(4)
    prepared = prepare(tiny_model, hungry, tiny_loader, config, accelerator, 0, rates)
    with pytest.raises(PetsError, match=r"train\.micro_batch_size = 8 does not fit"):
        train_step(prepared, next(tiny_loader.epoch(0)))


def test_validation_takes_in_parts_what_does_not_fit(tiny_model, tiny_loader, accelerator):
    expected = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    forward, sizes = tiny_model.forward, []

    def small(inputs):
        if len(inputs) > 5:
            raise OUT_OF_MEMORY
        sizes.append(len(inputs))
        return forward(inputs)

    tiny_model.forward = small
    found = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    assert found == pytest.approx(expected)
    assert sum(sizes) == tiny_loader.num_rows


class Small(nn.Module):
    """A body that runs out of memory above five photos."""

    def forward(self, inputs):
        if len(inputs) > 5:
            raise OUT_OF_MEMORY
        return inputs.mean((2, 3))


@pytest.mark.parametrize("block_bytes", [0, 1 << 20])
def test_prediction_takes_in_parts_what_does_not_fit(accelerator, monkeypatch, block_bytes):
    """Also where each batch goes to the host by itself, the last among them."""
    monkeypatch.setattr(predict, "_BLOCK_BYTES", block_bytes)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    photos = DecodedPhotos(pixels, np.zeros(12, np.int64), [""] * 12)
    crop = CenterCrop(8, (0.5,) * 3, (0.5,) * 3)
    loader = PhotoLoader(photos, crop, batch_size=12, seed=None, device=torch.device("cpu"))
    model = Classifier(Small(), 3, 2, 0.0)
    outputs = predict_split(model, loader, accelerator=accelerator, embeddings=True)
    assert outputs.values.shape == (12, 2)
    expected = pixels.mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(outputs.embeddings, expected, atol=1e-5)


def test_one_that_was_searched_for_is_left_to_another_attempt():
    with pytest.raises(torch.OutOfMemoryError), explain_out_of_memory(0):
        raise OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="shape mismatch"), explain_out_of_memory(8):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("room", [1, 3, 20])
def test_evaluation_takes_in_parts_what_does_not_fit(accelerator, num_rows, room):
    inputs, sizes = torch.arange(num_rows * 2.0).view(num_rows, 2), []

    def forward(part):
        if len(part) > room:
            raise OUT_OF_MEMORY
        sizes.append(len(part))
        return part * 2, part.sum(1)

    fitting = HalvingForward(forward, accelerator)
    for _ in range(2):
        doubled, summed = fitting(inputs)
        assert torch.equal(doubled, inputs * 2)
        assert torch.equal(summed, inputs.sum(1))
    # The second batch begins at the size that fits.
    assert sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]


def test_evaluation_of_one_sample_that_does_not_fit_is_a_clear_error(accelerator):
    def forward(part):
        raise OUT_OF_MEMORY

    with pytest.raises(PetsError, match=r"one sample does not fit in memory: lower model"):
        HalvingForward(forward, accelerator)(torch.ones(3, 2))


def test_ranks_take_as_many_passes_as_the_largest_share_needs():
    assert [num_micro_batches(size, 3, 2) for size in (1, 6, 7, 8, 12, 13)] == [1, 1, 2, 2, 2, 3]
    assert num_micro_batches(1000, 3, 0) == 1
