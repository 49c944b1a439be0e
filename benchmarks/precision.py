"""Training step of a body by precision, with batch norms folded and not.

    python benchmarks/precision.py [--backbone tf_efficientnet_lite0] [--size 160] [--batch 64]
                                   [--steps 3] [--rounds 3] [--only operations steps]

Frozen: forward passes. Unfrozen: forward and backward passes, with frozen batch-norm statistics.
Precisions: fp32, bf16, and bf16 with depthwise convolutions in fp32. All run alternately in one
process, with the memory settings of a rank. Prints photos per second, its ratio to that of fp32
without folding, and MiB per photo that autograd stores for the backward pass, without weights.

Before that, single convolutions of 16 photos: the time in bf16 as a multiple of that in fp32, for
the outputs, the gradient of the inputs and the gradient of the weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pets_core.models.backbones import create_body
from pets_core.models.body_view import create_view
from pets_core.models.folding import cast_for_autocast, fold
from pets_core.runtime.launcher import worker_environment

__all__ = ["main"]


_CONVOLUTIONS = {
    # channels, groups, side of the inputs in pixels, side of the kernel
    "depthwise 3x3, 96 channels, 80 px": (96, 96, 80, 3),
    "depthwise 3x3, 240 channels, 40 px": (240, 240, 40, 3),
    "depthwise 5x5, 672 channels, 10 px": (672, 672, 10, 5),
    "depthwise 7x7, 192 channels, 20 px": (192, 192, 20, 7),
    "grouped 3x3, 128 channels in 32 groups, 40 px": (128, 32, 40, 3),
    "grouped 3x3, 256 channels in 4 groups, 20 px": (256, 4, 20, 3),
    "dense 3x3, 64 channels, 40 px": (64, 1, 40, 3),
}


def compare_operations(num_rounds: int) -> None:
    """Print the time of convolutions in bf16 as a multiple of that in fp32."""
    print("bf16 / fp32: outputs, gradient of the inputs, gradient of the weights")
    for name, shape in _CONVOLUTIONS.items():
        fp32, bf16 = (
            operation_seconds(dtype, *shape, num_rounds)
            for dtype in (torch.float32, torch.bfloat16)
        )
        ratios = (b / f for f, b in zip(fp32, bf16, strict=True))
        print(f"{name:46s} {'  '.join(f'{ratio:5.2f}' for ratio in ratios)}", flush=True)


def operation_seconds(
    dtype: torch.dtype, channels: int, groups: int, side: int, kernel: int, num_rounds: int
) -> list[float]:
    """Return the minimum seconds of a convolution, of its inputs' gradient and of its weights'."""
    photos = torch.randn(16, channels, side, side).to(dtype)
    photos = photos.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels // groups, kernel, kernel).to(dtype)
    gradient = torch.randn_like(photos)
    where = [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], groups
    works: list[Callable[[], object]] = [
        lambda: torch.ops.aten.convolution(photos, weight, None, *where)
    ]
    for needed in ([True, False, False], [False, True, False]):
        works.append(
            lambda needed=needed: torch.ops.aten.convolution_backward(
                gradient, photos, weight, None, *where, needed
            )
        )
    return [min(_timed(work, 1) for _ in range(num_rounds)) for work in works]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        phase: "frozen" or "unfrozen".
        precision: Name of the precision.
        is_folded: Whether batch norms are folded.
        body: Body in the form to measure.
        is_bf16: Whether it runs under autocast to bf16.
    """

    phase: str
    precision: str
    is_folded: bool
    body: nn.Module
    is_bf16: bool

    def forward(self, photos: Tensor) -> Tensor:
        """Return the features of photos (B, 3, S, S)."""
        autocast = torch.autocast("cpu", torch.bfloat16) if self.is_bf16 else nullcontext()
        with autocast, torch.set_grad_enabled(self.phase == "unfrozen"):
            features: Tensor = self.body(photos)
        return features

    def step(self, photos: Tensor) -> None:
        """Run one step; an unfrozen body gets gradients."""
        features = self.forward(photos)
        if self.phase == "unfrozen":
            features.float().sum().backward()
            self.body.zero_grad()

    def stored_bytes(self, photos: Tensor) -> int:
        """Return the bytes that autograd stores in a forward pass, without parameters."""
        blocks: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            features = self.forward(photos)
        del features
        for weight in self.body.parameters():
            blocks.pop(weight.untyped_storage().data_ptr(), None)
        return sum(blocks.values())


def frozen_cases(body: nn.Module, photos: Tensor) -> list[Case]:
    """Return the forms of a frozen body. Depthwise convolutions in fp32 need a trained body."""
    cases = []
    for is_folded in (False, True):
        form = fold(body, photos[:1]) if is_folded else body
        cases.append(Case("frozen", "fp32", is_folded, form, is_bf16=False))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            form = cast_for_autocast(form, torch.bfloat16, photos[:1])
        cases.append(Case("frozen", "bf16", is_folded, form, is_bf16=True))
    return cases


def unfrozen_cases(body: nn.Module, photos: Tensor) -> list[Case]:
    """Return the forms of a trained body."""
    cases = []
    for is_folded in (False, True):
        plain = create_view(body, photos, folds=is_folded).body
        mixed = create_view(body, photos, folds=is_folded, depthwise_in_fp32=True).body
        cases.append(Case("unfrozen", "fp32", is_folded, plain, is_bf16=False))
        cases.append(Case("unfrozen", "bf16", is_folded, plain, is_bf16=True))
        cases.append(Case("unfrozen", "bf16, depthwise fp32", is_folded, mixed, is_bf16=True))
    return cases


def measure(
    cases: list[Case], photos: Tensor, num_steps: int, num_rounds: int
) -> dict[Case, float]:
    """Return the photos per second of each case, the median over alternating rounds.

    Args:
        cases: Cases to measure.
        photos: Batch of each step.
        num_steps: Steps of a round.
        num_rounds: Measured rounds; a step of each case before them warms up.
    """
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(num_rounds + 1):
        for case in cases:
            elapsed = _timed(lambda case=case: case.step(photos), num_steps if number else 1)
            if number:
                seconds[case].append(elapsed / num_steps)
    return {case: len(photos) / statistics.median(each) for case, each in seconds.items()}


def _timed(step: Callable[[], object], num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    return time.perf_counter() - start


def main() -> None:
    """Print the selected measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm model")
    parser.add_argument("--weights", default="auto", help="use none without access to the hub")
    parser.add_argument("--size", type=int, default=160, help="side of the photos, pixels")
    parser.add_argument("--batch", type=int, default=64, help="photos per step")
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    kinds = ("operations", "steps")
    parser.add_argument(
        "--only", nargs="+", choices=kinds, default=kinds, help="measurements to run"
    )
    options = parser.parse_args()
    # Read by glibc when a process starts.
    settings = worker_environment()
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    cpu = torch.cpu.get_capabilities()
    print(
        f"{cpu.get('cpu_name')}, {torch.get_num_threads()} threads, AMX {cpu.get('amx_bf16')}, "
        f"AVX-512 BF16 {cpu.get('avx512_bf16')}, torch {torch.__version__}"
    )
    torch.manual_seed(0)
    if "operations" in options.only:
        compare_operations(5 * options.rounds)
    if "steps" in options.only:
        compare_steps(options)


def compare_steps(options: argparse.Namespace) -> None:
    """Print the table of phases, precisions and folding."""
    print(f"{options.backbone}, {options.size} px, batch {options.batch}")
    body = create_body(options.backbone, options.weights, options.size).eval()
    body.to(memory_format=torch.channels_last)
    photos = torch.randn(options.batch, 3, options.size, options.size)
    photos = photos.contiguous(memory_format=torch.channels_last)
    for cases in (frozen_cases(body, photos), unfrozen_cases(body, photos)):
        speeds = measure(cases, photos, options.steps, options.rounds)
        for case in cases:
            mib = case.stored_bytes(photos) / len(photos) / 2**20
            print(
                f"{case.phase:9s} {case.precision:21s} {'folded' if case.is_folded else '':7s}"
                f"{speeds[case]:7.1f} photos/s ({speeds[case] / speeds[cases[0]]:.2f})"
                f"{mib:7.1f} MiB stored per photo",
                flush=True,
            )


if __name__ == "__main__":
    main()
