"""Search for the largest micro-batch, and out-of-memory errors elsewhere."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import CenterCrop
from pets_core.errors import PetsError
from pets_core.evaluation import predict
from pets_core.evaluation.predict import predict_split
from pets_core.models.classifier import Classifier
from pets_core.models.memory import HalvingForward, is_out_of_memory
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training import prepared
from pets_core.training.groups import set_train_mode
from pets_core.training.loop import train_step
from pets_core.training.memory import explain_out_of_memory, largest_micro_batch, num_micro_batches
from pets_core.training.prepared import prepare
from pets_core.training.validation import validate

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")


class LimitedMemory(SingleLabel):
    """Runs out of memory above `capacity` samples; records the gradients present in each pass."""

    def __init__(self, capacity, model=None):
        super().__init__()
        self.capacity, self.model, self.passes = capacity, model, []

    def loss_sum(self, logits, targets):
        num_gradients = (
            sum(p.grad is not None for p in self.model.parameters()) if self.model else 0
        )
        self.passes.append((len(targets), num_gradients))
        if len(targets) > self.capacity:
            raise OUT_OF_MEMORY
        return super().loss_sum(logits, targets)


@pytest.mark.parametrize(
    ("capacity", "expected"), [(100, 0), (16, 0), (15, 8), (3, 2), (2, 2), (1, 1)]
)
def test_batch_is_halved_until_it_fits(
    tiny_model, tiny_loader, accelerator, capacity, expected, recwarn
):
    batch = next(tiny_loader.epoch(0))
    tiny_model.train()
    before, random = copy.deepcopy(tiny_model.state_dict()), torch.get_rng_state()
    size = largest_micro_batch(
        tiny_model, LimitedMemory(capacity), batch.inputs, batch.targets, accelerator=accelerator
    )
    assert size == expected
    assert bool(recwarn) == (expected > 0)
    assert torch.equal(torch.get_rng_state(), random), "dropout drew random numbers"
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())
    assert all(p.grad is None for p in tiny_model.parameters())
    assert all(module.training for module in tiny_model.modules())


def test_half_batch_must_fit_together_with_the_gradients(tiny_model, tiny_loader, accelerator):
    batch, limited = next(tiny_loader.epoch(0)), LimitedMemory(4, tiny_model)
    with pytest.warns(UserWarning, match="micro-batches of 4"):
        largest_micro_batch(
            tiny_model, limited, batch.inputs, batch.targets, accelerator=accelerator
        )
    total = len(list(tiny_model.parameters()))
    # The first pass, of one sample, makes CUDA's libraries allocate their workspaces.
    assert limited.passes == [(1, total), (16, 0), (8, total), (4, total)]


def test_single_sample_that_does_not_fit_is_a_clear_error(tiny_model, tiny_loader, accelerator):
    batch = next(tiny_loader.epoch(0))
    tiny_model.eval()
    with pytest.raises(PetsError, match=r"lower model\.image_size"):
        largest_micro_batch(
            tiny_model, LimitedMemory(0), batch.inputs, batch.targets, accelerator=accelerator
        )


@pytest.mark.parametrize(
    ("batch_norm", "compiles", "folds"),
    [("frozen", False, True), ("train", False, False), ("frozen", True, False)],
)
def test_search_measures_the_passes_of_training(accelerator, batch_norm, compiles, folds):
    """A folded batch norm stores no input; the search must fold exactly if training does."""
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    model = Classifier(nn.Sequential(body, nn.Flatten()), 4, 2, 0.0)
    set_train_mode(model, batch_norm)
    calls = []
    # A folded norm calls the hooks, too, but is of another class.
    body[1].register_forward_pre_hook(lambda norm, _: calls.append(type(norm) is nn.BatchNorm2d))
    inputs, targets = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    largest_micro_batch(
        model, SingleLabel(), inputs, targets, accelerator=accelerator, compiles=compiles
    )
    # To verify its folded form, the body runs once. The search runs it twice.
    assert calls.count(True) == (1 if folds else 2)
    model(inputs)
    calls.clear()
    model(inputs)
    assert calls == [batch_norm == "train"], "the search restores modes and folding"


def test_search_knows_whether_the_model_is_compiled(tiny_model, tiny_loader, monkeypatch):
    found = []

    def search(*args, **settings):
        found.append(settings["compiles"])
        return 0

    monkeypatch.setattr(prepared, "largest_micro_batch", search)
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    fake = SimpleNamespace(
        device=torch.device("cuda"), num_processes=1, prepare=lambda *parts: parts
    )  # fmt: skip
    for compiles in (False, True):
        config = TrainConfig(compile=compiles)
        rates = RateSlice(1e-3, uniform=True)
        prepare(tiny_model, SingleLabel(), tiny_loader, config, fake, 0, rates)
    assert found == [False, True]


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
def test_out_of_memory_errors_are_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)


def test_configured_micro_batch_that_does_not_fit_is_explained():
    message = r"train\.micro_batch_size = 8 does not fit in memory: set a smaller one, .*2\.00 GiB"
    with pytest.raises(PetsError, match=message), explain_out_of_memory(8):
        raise OUT_OF_MEMORY


def test_training_step_explains_out_of_memory(tiny_model, tiny_loader, accelerator):
    config = TrainConfig(micro_batch_size=8)
    rates = RateSlice(1e-3, uniform=True)
    limited = LimitedMemory(4)
    ready = prepare(tiny_model, limited, tiny_loader, config, accelerator, 0, rates)
    with pytest.raises(PetsError, match=r"train\.micro_batch_size = 8 does not fit"):
        train_step(ready, next(tiny_loader.epoch(0)))


def test_validation_splits_batches_that_do_not_fit(tiny_model, tiny_loader, accelerator):
    expected = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    forward, sizes = tiny_model.forward, []

    def limited_forward(inputs):
        if len(inputs) > 5:
            raise OUT_OF_MEMORY
        sizes.append(len(inputs))
        return forward(inputs)

    tiny_model.forward = limited_forward
    found = validate(tiny_model, SingleLabel(), tiny_loader, accelerator)
    assert found == pytest.approx(expected)
    assert sum(sizes) == tiny_loader.num_rows


class SmallBody(nn.Module):
    """A body that runs out of memory above five photos."""

    def forward(self, inputs):
        if len(inputs) > 5:
            raise OUT_OF_MEMORY
        return inputs.mean((2, 3))


@pytest.mark.parametrize("block_bytes", [0, 1 << 20])
def test_prediction_splits_batches_that_do_not_fit(accelerator, monkeypatch, block_bytes):
    """With blocks of 0 bytes, each batch is copied to the host separately, the last one too."""
    monkeypatch.setattr(predict, "_BLOCK_BYTES", block_bytes)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    photos = DecodedPhotos(pixels, np.zeros(12, np.int64), [""] * 12)
    crop = CenterCrop(8, (0.5,) * 3, (0.5,) * 3)
    loader = PhotoLoader(photos, crop, BatchSampler(12, 12, None), device=torch.device("cpu"))
    model = Classifier(SmallBody(), 3, 2, 0.0)
    outputs = predict_split(model, loader, accelerator=accelerator, embeddings=True)
    assert outputs.values.shape == (12, 2)
    expected = pixels.mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(outputs.embeddings, expected, atol=1e-5)


def test_out_of_memory_after_a_search_is_raised_unchanged():
    with pytest.raises(torch.OutOfMemoryError), explain_out_of_memory(0):
        raise OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="shape mismatch"), explain_out_of_memory(8):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 20])
@pytest.mark.parametrize("capacity", [1, 3, 20])
def test_halving_forward_splits_batches_that_do_not_fit(accelerator, num_rows, capacity):
    inputs, sizes = torch.arange(num_rows * 2.0).view(num_rows, 2), []

    def forward(part):
        if len(part) > capacity:
            raise OUT_OF_MEMORY
        sizes.append(len(part))
        return part * 2, part.sum(1)

    fitting = HalvingForward(forward, accelerator)
    for _ in range(2):
        doubled, summed = fitting(inputs)
        assert torch.equal(doubled, inputs * 2)
        assert torch.equal(summed, inputs.sum(1))
    # The second batch starts with the size that fits.
    assert sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]


def test_halving_forward_with_a_sample_that_does_not_fit_is_a_clear_error(accelerator):
    def forward(part):
        raise OUT_OF_MEMORY

    with pytest.raises(PetsError, match=r"one sample does not fit in memory: lower model"):
        HalvingForward(forward, accelerator)(torch.ones(3, 2))


def test_number_of_micro_batches_follows_the_largest_share():
    assert [num_micro_batches(size, 3, 2) for size in (1, 6, 7, 8, 12, 13)] == [1, 1, 2, 2, 2, 3]
    assert num_micro_batches(1000, 3, 0) == 1
