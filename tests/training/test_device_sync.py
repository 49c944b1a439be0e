"""Training steps do not synchronise with the GPU, and geometry keeps its precision there.

Steps run on fake CUDA tensors, which have shapes and devices but no values; a dispatch mode records
every operation.
"""

from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig, TransformConfig
from pets_core.data.loading import loader
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import Augment, draw_maps, sampling_grid, transform_box
from pets_core.models.classifier import Classifier
from pets_core.targets.classes.objective import SingleLabel
from pets_core.targets.regression.objective import Regression
from pets_core.targets.tags.objective import MultiLabel
from pets_core.training.loop import train_step
from pets_core.training.prepared import prepare

# Photos are written to real memory under a mode for fake tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

NUM_PHOTOS, SIDE, SIZE = 8, 24, 16
MATRIX_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "dot"}
SYNCHRONISING = {
    "_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select", "equal",
    "is_nonzero", "_linalg_svd", "unique_dim", "_unique2",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Records operations that wait for a GPU, and copies from pageable memory or back."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []
        self.pinned: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").split(".")[0]
        self.names.append(name)
        tensors = [each for each in args if isinstance(each, torch.Tensor)]
        on_gpu = any(each.device.type == "cuda" for each in tensors)
        if name in SYNCHRONISING and on_gpu:
            self.waits.append(name)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            to, back = result.device.type, source.device.type
            asynchronous = id(source) in self.pinned and (kwargs or {}).get("non_blocking")
            if (back, to) == ("cpu", "cuda") and not asynchronous:
                self.waits.append(f"{name} from the host")
            if (back, to) == ("cuda", "cpu"):
                self.waits.append(f"{name} to the host")
        return result


class SameThread:
    """Executor that runs in the calling thread, because dispatch modes are per thread."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def submit(self, function, *args) -> Future:
        done: Future = Future()
        done.set_result(function(*args))
        return done


@pytest.fixture
def operations(monkeypatch) -> Iterator[Operations]:
    recorded = Operations()
    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        recorded.pinned.add(id(tensor))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(loader, "ThreadPoolExecutor", SameThread)

    def real_buffer(shape, device):
        # Photos are written to real memory.
        with unset_fake_temporarily():
            return pin(torch.empty(shape, dtype=torch.uint8))

    monkeypatch.setattr(loader, "host_buffer", real_buffer)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield recorded


OBJECTIVES = {
    "class": (SingleLabel(), 3),
    "tags": (MultiLabel(), 3),
    "numbers": (Regression(), 2),
    "points": (Regression((-1.2, 1.2)), 4),
    "box": (Regression((-1.2, 1.2)), 4),
}


def loss(targets: str, config: TransformConfig, operations: Operations) -> torch.Tensor:
    """Return the loss of a batch of photos on the GPU; `operations` records its operations."""
    device = torch.device("cuda")
    objective, num_outputs = OBJECTIVES[targets]
    values = np.zeros((NUM_PHOTOS, num_outputs), np.float32)
    photos = DecodedPhotos(
        np.zeros((NUM_PHOTOS, SIDE, SIDE, 3), np.uint8),
        np.zeros(NUM_PHOTOS, np.int64) if targets == "class" else values,
        [""] * NUM_PHOTOS,
    )
    augment = Augment(SIZE, (0.5,) * 3, (0.2,) * 3, config)
    batches = PhotoLoader(
        photos, augment, BatchSampler(NUM_PHOTOS, NUM_PHOTOS, 0), device=device, mixing=config,
        num_classes=num_outputs, targets=targets,
    )  # fmt: skip
    with device:
        convolution, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        body = nn.Sequential(convolution, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = Classifier(body, 8, num_outputs, 0.1)
    with operations:
        batch = next(batches.epoch(0))
        return objective.loss_sum(model(batch.inputs), batch.targets)


@pytest.mark.parametrize("targets", OBJECTIVES)
def test_batch_does_not_wait_for_the_gpu(targets, operations):
    assert loss(targets, TransformConfig(), operations).device.type == "cuda"
    assert "convolution" in operations.names
    assert operations.waits == []


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 4, "max_grad_norm": 1.0}])
def test_optimizer_step_does_not_read_values(settings, tiny_model, tiny_loader):
    """Backward passes need a GPU driver; this step runs on the CPU, and every operation counts."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    config, rates = TrainConfig.model_validate(settings), RateSlice(1e-3, uniform=True)
    prepared = prepare(tiny_model, SingleLabel(), tiny_loader, config, accelerator, 0, rates)
    recorded, batch = Operations(), next(tiny_loader.epoch(0))
    with recorded:
        train_step(prepared, batch)
    assert "_fused_adamw_" in recorded.names
    assert not SYNCHRONISING & set(recorded.names)


@pytest.mark.parametrize("alpha", ["mixup_alpha", "cutmix_alpha"])
def test_mixup_and_cutmix_do_not_wait_for_the_gpu(alpha, operations):
    loss("class", TransformConfig.model_validate({alpha: 0.4}), operations)
    assert operations.waits == []


def test_synchronising_operations_are_recorded(operations):
    with operations:
        values = torch.ones(3, device="cuda")
        torch.zeros(3).to("cuda", non_blocking=True)
        torch.linalg.inv(torch.ones(2, 3, 3, device="cuda"))
        with pytest.raises(Exception, match="_local_scalar_dense"):
            values.sum().item()
    assert operations.waits == ["_to_copy from the host", "_linalg_check_errors"]


def test_geometry_is_exact_and_uses_no_matrix_products():
    """GPUs multiply matrices in TF32, with ten bits of mantissa; geometry multiplies none."""
    maps = draw_maps(16, 0.8, TransformConfig(), torch.Generator().manual_seed(0))
    boxes = torch.tensor([[-0.5, -0.4, 0.6, 0.7]]).expand(16, 4)
    recorded = Operations()
    with recorded:
        grid, moved = sampling_grid(maps, 1024), transform_box(boxes, maps)
    assert not MATRIX_PRODUCTS & set(recorded.names)
    exact = sampling_grid(maps.double(), 1024)
    assert ((grid - exact).abs() * 512).max() < 0.01, "pixels"
    torch.testing.assert_close(
        moved, transform_box(boxes.double(), maps.double()), check_dtype=False
    )
