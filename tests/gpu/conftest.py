"""Parts of a training on one GPU, or on the CPU at toy sizes with --gpu-dry-run."""

import gc
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig, TransformConfig
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import Augment
from pets_core.models.classifier import Classifier
from pets_core.targets.classes.objective import SingleLabel
from pets_core.targets.objective import Objective
from pets_core.training.accelerator import create_accelerator
from pets_core.training.prepared import PreparedModel, prepare

NUM_CLASSES, PRECISIONS = 37, ("no", "bf16", "fp16")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Parts:
    """Factory for the parts of a training step on one device.

    Attributes:
        device: CUDA, or the CPU in a dry run.
        size: S, pixels.
        batch_size: Photos in a batch.
        backbone: Large enough to keep a GPU busy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.size, self.photo_size, self.batch_size = (
            (224, 256, 64) if self.on_gpu else (64, 73, 16)
        )
        self.backbone = "resnet50" if self.on_gpu else "test_resnet"
        self.precision = "bf16" if self.on_gpu else "no"

    def accelerator(
        self, precision: str, device: torch.device | None = None, **more
    ) -> Accelerator:
        """Create an accelerator; resets the state of the process, which holds the precision."""
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return create_accelerator(precision, device or self.device, **more)

    def photos(self, count: int) -> DecodedPhotos:
        """Create coarse random photos."""
        side = self.photo_size
        coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        fine = coarse.repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)
        pixels = np.ascontiguousarray(fine[:, :side, :side])
        labels = (np.arange(count) % NUM_CLASSES).astype(np.int64)
        return DecodedPhotos(pixels, labels, [f"photo-{number}" for number in range(count)])

    def loader(
        self, photos: DecodedPhotos, *, batch_size: int | None = None,
        device: torch.device | None = None, targets: str = "class", resident: bool = False,
    ) -> PhotoLoader:  # fmt: skip
        """Create a loader of augmented batches."""
        return PhotoLoader(
            photos, Augment(self.size, MEAN, STD, TransformConfig()),
            BatchSampler(len(photos), batch_size or self.batch_size, 0),
            device=device or self.device, on_device=resident and self.on_gpu,
            num_classes=NUM_CLASSES, targets=targets,
        )  # fmt: skip

    def model(
        self, backbone: str | None = None, num_outputs: int = NUM_CLASSES,
        device: torch.device | None = None,
    ) -> Classifier:  # fmt: skip
        """Create a model with the same weights each time and a head that is not zero."""
        torch.manual_seed(0)
        body = timm.create_model(backbone or self.backbone, pretrained=False, num_classes=0)
        with torch.no_grad():
            num_features = body.eval()(torch.zeros(1, 3, self.size, self.size)).shape[1]
        model = Classifier(body, num_features, num_outputs, 0.0)
        torch.nn.init.normal_(model.head[-1].weight, std=0.05)
        return model.to(device or self.device, memory_format=torch.channels_last)

    def prepared(
        self, model: Classifier, train: PhotoLoader, accelerator: Accelerator,
        objective: Objective | None = None, rate: float = 1e-4, **settings,
    ) -> PreparedModel:  # fmt: skip
        """Prepare all layers for training, by default with one pass per batch."""
        config = TrainConfig.model_validate({"micro_batch_size": 65_536} | settings)
        return prepare(
            model, objective or SingleLabel(), train, config, accelerator, 0,
            RateSlice(rate, uniform=True),
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


@pytest.fixture
def parts(request) -> Iterator[Parts]:
    dry = request.config.getoption("--gpu-dry-run")
    yield Parts(torch.device("cpu" if dry else "cuda"))
    gc.collect()
    if not dry:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture
def gpu_only(parts) -> None:
    if not parts.on_gpu:
        pytest.skip("needs a GPU")


@pytest.fixture
def tf32() -> Iterator[Callable[[bool], None]]:
    """Function that enables or disables TF32 matrix products, as a rank does."""

    def set_tf32(enabled: bool) -> None:
        torch.set_float32_matmul_precision("high" if enabled else "highest")
        torch.backends.cudnn.allow_tf32 = enabled

    yield set_tf32
    set_tf32(False)
