"""Training on one GPU: photos per second of this project, of the limit and of peers.

    python benchmarks/gpu.py [--backbone resnet50] [--photos 4096] [--workers 14] [--only limit]
    python benchmarks/gpu.py --dry-run          # toy sizes on the CPU, to check the script

**limit**: the model trains on one batch in GPU memory. Ours trains on decoded photos in GPU memory
(resident) and on photos streamed from host memory, with a checkpoint every 64 steps and without.
Goals, for resnet50 at 224 pixels in bf16 with checkpoints: resident at least 0.95 of the limit,
streamed at least 0.90.

**peers**: training from JPEGs with torch's DataLoader, with timm's loader and its prefetcher, and
with ours decoding every photo in each epoch (by nvJPEG, too); nvJPEG alone.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from checkpoints import make_model
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig, TransformConfig
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos, EncodedPhotos
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import Augment
from pets_core.models.classifier import Classifier
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.accelerator import create_accelerator
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.loop import fit
from pets_core.training.prepared import prepare, release
from pets_core.training.schedule import Phase

MEAN, STD, NUM_CLASSES = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 37
CHECKPOINT_STEPS, ROUNDS, JPEG_SIDES, NUM_JPEGS = 64, 3, (500, 375), 64


@dataclass(frozen=True)
class Bench:
    """Device and sizes.

    Attributes:
        device: CUDA, or the CPU in a dry run.
        backbone: timm model name.
        size: S, pixels.
        photo_size: R, side of decoded photos, pixels.
        num_photos: Photos per epoch.
        num_workers: Processes of the peers' loaders.
    """

    device: torch.device
    backbone: str
    size: int
    photo_size: int
    num_photos: int
    num_workers: int

    @property
    def on_gpu(self) -> bool:
        """Whether this is not a dry run."""
        return self.device.type == "cuda"

    def model(self) -> Classifier:
        """Create a model with random weights, channels last."""
        return make_model(self.backbone).to(self.device)

    def photos(self) -> DecodedPhotos:
        """Create decoded, coarse random photos."""
        side, count = self.photo_size, self.num_photos
        coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        fine = coarse.repeat(-(-side // 8), 1).repeat(-(-side // 8), 2)[:, :side, :side]
        return DecodedPhotos(np.ascontiguousarray(fine), self.labels(), [""] * count)

    def labels(self) -> np.ndarray:
        """Return a class index for each photo."""
        return (np.arange(self.num_photos) % NUM_CLASSES).astype(np.int64)

    def loader(self, photos: DecodedPhotos, batch_size: int, *, resident: bool) -> PhotoLoader:
        """Create our loader of augmented batches."""
        return PhotoLoader(
            photos, Augment(self.size, MEAN, STD, TransformConfig()),
            BatchSampler(len(photos), batch_size, 0), device=self.device,
            on_device=resident and self.on_gpu, num_classes=NUM_CLASSES,
        )  # fmt: skip

    def seconds(self, work: Callable[[], object], rounds: int = ROUNDS) -> float:
        """Return the median seconds over rounds, after a warm-up round."""
        found = []
        for _ in range(rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            work()
            self.synchronize()
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()


def limit(bench: Bench, batch_size: int, *, frozen: bool, compile: bool) -> float:
    """Return photos per second of a model that trains on one batch repeatedly."""
    accelerator = create_accelerator("bf16" if bench.on_gpu else "no", bench.device)
    loader = bench.loader(bench.photos(), batch_size, resident=True)
    model = bench.model()
    prepared = prepare(
        model, SingleLabel(), loader, TrainConfig(micro_batch_size=65_536, compile=compile),
        accelerator, -1 if frozen else 0, RateSlice(1e-4, uniform=True),
    )  # fmt: skip
    batch = next(loader.epoch(0))
    num_steps = 40 if bench.on_gpu else 2

    def steps() -> None:
        for _ in range(num_steps):
            with accelerator.autocast():
                if compile:
                    logits = prepared.model(batch.inputs)
                else:
                    # Not `model`, which uses the folded copy of a frozen body.
                    logits = model.head(model.body(batch.inputs))
            F.cross_entropy(logits.float(), batch.targets).backward()
            prepared.optimizer.step()
            prepared.optimizer.zero_grad()

    speed = num_steps * len(batch.inputs) / bench.seconds(steps)
    release(prepared)
    return speed


def ours(
    bench: Bench, loader: PhotoLoader, *, frozen: bool, compile: bool, checkpoints: bool
) -> float:
    """Return photos per second of our training, the median over epochs after the first."""
    phase = Phase(
        "frozen" if frozen else "unfrozen", ROUNDS + 1, -1 if frozen else 0,
        RateSlice(1e-4, uniform=True), 0.3, 25.0,
    )  # fmt: skip
    config = TrainConfig(
        micro_batch_size=65_536, compile=compile, checkpoint_steps=CHECKPOINT_STEPS,
        checkpoint_seconds=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(folder, {}) if checkpoints else None
        history = fit(
            bench.model(), SingleLabel(), loader, None, [phase], config,
            accelerator=create_accelerator("bf16" if bench.on_gpu else "no", bench.device),
            checkpoints=store,
        )  # fmt: skip
        if store:
            store.wait()
    return statistics.median(epoch.photos_per_second for epoch in history.epochs[1:])


def compare_with_limit(bench: Bench) -> None:
    """Print ours compared with the limit, by batch size, frozen and compiled."""
    print(f"{bench.backbone}, {bench.size} px, photos/s (share of the limit)")
    photos = bench.photos()
    kinds: list[tuple[str, int, dict[str, bool]]] = [
        ("unfrozen", 64, {"frozen": False, "compile": False}),
        ("unfrozen", 128, {"frozen": False, "compile": False}),
        ("unfrozen", 256, {"frozen": False, "compile": False}),
        ("compiled", 64, {"frozen": False, "compile": True}),
        ("frozen", 64, {"frozen": True, "compile": False}),
        ("frozen", 256, {"frozen": True, "compile": False}),
    ]
    for name, batch_size, how in kinds if bench.on_gpu else kinds[:1]:
        batch_size = batch_size if bench.on_gpu else 16
        limit_speed = limit(bench, batch_size, **how)
        cells = [f"limit {limit_speed:.0f}"]
        for storage, resident in (("resident", True), ("streamed", False)):
            loader = bench.loader(photos, batch_size, resident=resident)
            for checkpoints in (False, True):
                speed = ours(bench, loader, checkpoints=checkpoints, **how)
                suffix = " with checkpoints" if checkpoints else ""
                cells.append(f"{storage}{suffix} {speed:.0f} ({speed / limit_speed:.3f})")
        print(f"  {name}, batch {batch_size}: {', '.join(cells)}", flush=True)


class Jpegs(Dataset[tuple[Any, int]]):
    """JPEGs in memory, decoded by Pillow as most training scripts do.

    Args:
        files: Encoded photos, repeated in order.
        count: Photos per epoch.
        transform: Applied to the Pillow image; None returns the image.
    """

    def __init__(self, files: list[bytes], count: int, transform: Any = None) -> None:
        self._files, self._count, self.transform = files, count, transform

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[Any, int]:
        data = self._files[number % len(self._files)]
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return self.transform(image) if self.transform else image, number % NUM_CLASSES


def train_on(bench: Bench, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return photos per second of a plain training loop over batches."""
    model = timm.create_model(bench.backbone, pretrained=False, num_classes=NUM_CLASSES)
    model = model.to(bench.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def epoch() -> None:
        for photos, labels in batches:
            inputs = photos.to(bench.device, non_blocking=True, memory_format=torch.channels_last)
            targets = labels.to(bench.device, non_blocking=True)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.on_gpu):
                loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return bench.num_photos / bench.seconds(epoch, rounds=1)


def compare_with_peers(bench: Bench, batch_size: int) -> None:
    """Print photos per second of training from JPEGs, for ours and the peers."""
    coarse = np.random.default_rng(0).integers(0, 256, (NUM_JPEGS, 24, 32, 3), np.uint8)
    files = []
    for pixels in coarse:
        file = io.BytesIO()
        picture = Image.fromarray(pixels).resize(JPEG_SIDES, Image.Resampling.BICUBIC)
        picture.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(bench.size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    workers = {"num_workers": bench.num_workers, "persistent_workers": bench.num_workers > 0}
    speeds = {
        "torch DataLoader": train_on(
            bench,
            DataLoader(
                Jpegs(files, bench.num_photos, transform), batch_size, shuffle=True,
                pin_memory=bench.on_gpu, **workers,
            ),
        )
    }  # fmt: skip
    if bench.on_gpu:
        timm_loader = timm.data.create_loader(
            Jpegs(files, bench.num_photos), (3, bench.size, bench.size), batch_size,
            is_training=True, use_prefetcher=True, auto_augment=None, **workers,
        )  # fmt: skip
        speeds["timm create_loader, prefetcher"] = train_on(bench, timm_loader)
    encoded = [files[number % NUM_JPEGS] for number in range(bench.num_photos)]
    photos = DecodedPhotos(
        np.empty((0, bench.photo_size, bench.photo_size, 3), np.uint8), bench.labels(),
        [""] * bench.num_photos,
        EncodedPhotos(
            np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(data) for data in encoded])
        ),
    )  # fmt: skip
    how = {"frozen": False, "compile": False, "checkpoints": False}
    own = ours(bench, bench.loader(photos, batch_size, resident=False), **how)
    width, height = JPEG_SIDES
    print(f"training from JPEGs of {width} x {height}, {bench.num_workers} workers, photos/s")
    print(f"  ours, decoded each epoch: {own:.0f}")
    for name, speed in speeds.items():
        print(f"  {name}: {speed:.0f} (ours {own / speed:.2f} x)")
    if bench.on_gpu:
        tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        seconds = bench.seconds(lambda: torchvision.io.decode_jpeg(tensors, device="cuda"))
        print(f"  nvJPEG alone: {NUM_JPEGS / seconds:.0f}")


def main() -> None:
    """Print the selected tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--photos", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--only", nargs="+", choices=("limit", "peers"), default=("limit", "peers"))
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.dry_run:
        bench = Bench(torch.device("cpu"), "test_resnet", 64, 73, 64, 0)
    else:
        bench = Bench(
            torch.device("cuda"), options.backbone, 224, 256, options.photos, options.workers
        )
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if "limit" in options.only:
        compare_with_limit(bench)
    if "peers" in options.only:
        compare_with_peers(bench, 64 if bench.on_gpu else 16)


if __name__ == "__main__":
    main()
