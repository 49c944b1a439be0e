"""Measure how long a checkpoint blocks training, and the longest pause of another thread.

    python benchmarks/checkpoints.py [FOLDER] [--backbone resnet50] [--steps 40] [--interval 4]

**pause**: a counting thread simulates the one that queues a GPU's kernels. Measures its longest
wait while a checkpoint of the model and its optimizer is written: by this project, with a history
of 20,000 steps, and by `safetensors.torch.save` of blocking copies. Our copy is made by the
training thread.

**steps**: seconds per training step with a checkpoint every --interval steps, and without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import timm
import torch
from accelerate import Accelerator

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.models.classifier import Classifier
from pets_core.runtime.launcher import worker_environment
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.checkpoint import Checkpoints
from pets_core.training.history import History
from pets_core.training.loop import fit
from pets_core.training.optimizer import build_optimizer
from pets_core.training.schedule import Phase
from pets_core.training.state import TrainState

SIZE, BATCH, CLASSES, ROUNDS = 64, 8, 37, 5
NUM_STEPS = 20_000
"""Steps in the history that is written with each checkpoint."""


@dataclass(frozen=True)
class Batch:
    """Batch of random photos."""

    inputs: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    global_size: int


class Loader:
    """Loader that repeats one batch."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches, self.num_rows = num_batches, num_batches * BATCH
        inputs = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        self._batch = Batch(inputs, torch.arange(BATCH) % CLASSES, [""] * BATCH, BATCH)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        for _ in range(first, self.num_batches):
            yield self._batch


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that `work` takes, and the longest wait of a counting thread."""
    ended, longest = threading.Event(), 0.0

    def count() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not ended.is_set():
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    ended.set()
    counter.join()
    return seconds, longest


def make_model(backbone: str) -> Classifier:
    """Create a model with random weights, channels last."""
    torch.manual_seed(0)
    body = timm.create_model(backbone, pretrained=False, num_classes=0)
    model = Classifier(body, body.num_features, CLASSES, 0.0)
    return model.to(memory_format=torch.channels_last)


def pauses(backbone: str, folder: Path) -> None:
    """Print the pauses of our checkpoint and of a blocking one."""
    accelerator, model = Accelerator(cpu=True, mixed_precision="no"), make_model(backbone)
    optimizer = build_optimizer(model, [1e-4] * len(model.layer_groups()), 0.01)
    model(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    row = {"loss": 0.5, "grad_norm": 1.0, "momentum": 0.9, "lr_group_0": 1e-5, "lr_group_1": 1e-3}
    history = History(steps=[row | {"step": number} for number in range(NUM_STEPS)])
    state = TrainState(model, None, history, accelerator)
    checkpoints = Checkpoints(f"{folder}/ours", {})
    snapshot = state.snapshot(optimizer, 0.0)
    num_bytes = sum(tensor.nbytes for tensor in snapshot.tensors.values())
    tensors = [*model.state_dict().values()]
    tensors += [v for moments in optimizer.state.values() for v in moments.values()]

    def blocking() -> None:
        copies = {
            str(n): v.detach().to("cpu", copy=True).contiguous() for n, v in enumerate(tensors)
        }
        (folder / "blocking.safetensors").write_bytes(safetensors.torch.save(copies))

    def ours() -> None:
        checkpoints.save(snapshot, wait=True)

    print(f"checkpoint of {backbone} and its optimizer, {num_bytes / 1e6:.0f} MB")
    ways = {"nothing": lambda: time.sleep(0.5), "blocking": blocking, "ours": ours}
    for name, work in ways.items():
        found = [longest_pause(work) for _ in range(ROUNDS)]
        seconds, pause = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"  {name:8} {seconds:.3f} s, longest pause of a counting thread {pause * 1e3:.1f} ms"
        )
    copy_seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        state.snapshot(optimizer, 0.0)
        copy_seconds.append(time.perf_counter() - start)
    print(f"  ours: training waits only for the copy, {statistics.median(copy_seconds):.3f} s")


def steps(backbone: str, folder: Path, num_steps: int, interval: int) -> None:
    """Print the seconds per step without and with checkpoints, measured alternately."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    phase = Phase("unfrozen", 1, 0, RateSlice(1e-4, uniform=True), 0.3, 25.0)
    for number in range(2 * ROUNDS):
        name = ("without", "with")[number % 2]
        config = TrainConfig(
            checkpoint_steps=interval if name == "with" else 10**6, checkpoint_seconds=0
        )
        checkpoints = Checkpoints(f"{folder}/steps-{number}", {})
        history = fit(
            make_model(backbone), SingleLabel(), Loader(num_steps), None, [phase], config,
            accelerator=Accelerator(cpu=True, mixed_precision="no"), checkpoints=checkpoints,
        )  # fmt: skip
        checkpoints.wait()
        found[name].append(history.epochs[0].seconds / num_steps)
    without, with_checkpoints = (statistics.median(found[name]) for name in ("without", "with"))
    print(
        f"step of {backbone}, {BATCH} photos of {SIZE} px: {without:.3f} s without checkpoints, "
        f"{with_checkpoints:.3f} s with one every {interval} steps "
        f"({interval * without:.1f} s), ratio {with_checkpoints / without:.2f}"
    )


def main() -> None:
    """Run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--interval", type=int, default=4)
    options = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        # Keep freed memory as in a rank: new pages would take as long as the copies.
        os.execve(sys.executable, [sys.executable, *sys.argv], worker_environment())
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        pauses(options.backbone, Path(name))
        steps(options.backbone, Path(name), options.steps, options.interval)


if __name__ == "__main__":
    main()
