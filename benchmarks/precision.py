"""Training step of a body by precision, with batch norms folded and not.

    python benchmarks/precision.py [--backbone tf_efficientnet_lite0] [--size 160] [--batch 64]
                                   [--steps 3] [--rounds 3]

Frozen: forward passes. Unfrozen: forward and backward passes, with frozen batch-norm statistics.
Precisions: fp32, bf16, and bf16 with depthwise convolutions in fp32. All run alternately in one
process, with the memory settings of a rank. Prints photos per second, its ratio to that of fp32
without folding, and MiB per photo that autograd stores for the backward pass, without weights.
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
    """Return the median photos per second of each case; rounds alternate between the cases."""
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    for number in range(num_rounds + 1):
        for case in cases:
            elapsed = _timed(lambda case=case: case.step(photos), num_steps if number else 1)
            if number:
                seconds[case].append(elapsed / num_steps)
    return {case: len(photos) / statistics.median(each) for case, each in seconds.items()}


def _timed(step: Callable[[], None], num_steps: int) -> float:
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    return time.perf_counter() - start


def main() -> None:
    """Measure all forms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm model")
    parser.add_argument("--weights", default="auto", help="use none without access to the hub")
    parser.add_argument("--size", type=int, default=160, help="side of the photos, pixels")
    parser.add_argument("--batch", type=int, default=64, help="photos per step")
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    options = parser.parse_args()
    # Read by glibc when a process starts.
    settings = worker_environment()
    if any(os.environ.get(name) != value for name, value in settings.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    torch.manual_seed(0)
    body = create_body(options.backbone, options.weights, options.size).eval()
    body.to(memory_format=torch.channels_last)
    photos = torch.randn(options.batch, 3, options.size, options.size)
    photos = photos.contiguous(memory_format=torch.channels_last)
    cpu = torch.cpu.get_capabilities()
    print(
        f"{cpu.get('cpu_name')}, {torch.get_num_threads()} threads, "
        f"AMX {cpu.get('amx_bf16')}, AVX-512 BF16 {cpu.get('avx512_bf16')}, "
        f"torch {torch.__version__}, {options.backbone}, {options.size} px, batch {options.batch}"
    )
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
