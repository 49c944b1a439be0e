"""How many samples fit the device's memory in one forward and backward pass."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pets_core.errors import PetsError
from pets_core.models.memory import SMALLER_REMEDY, empty_cache, is_out_of_memory
from pets_core.targets.objective import Objective
from pets_core.training.sharding import is_sharding

__all__ = [
    "NEEDS_MICRO_BATCH_SIZE",
    "explain_out_of_memory",
    "largest_micro_batch",
    "num_micro_batches",
]

_RESERVE_BYTES = 2**30
"""Left free by the search, for what lies outside torch's allocator: NCCL's channels and the
workspaces of cuBLAS and cuDNN."""
NEEDS_MICRO_BATCH_SIZE = (
    "launch.shard_model = true needs train.micro_batch_size on GPUs, where the largest that fits "
    "is not searched for: set it to the photos of a process in one forward pass, for example 8"
)


def num_micro_batches(global_size: int, num_ranks: int, micro_batch_size: int) -> int:
    """Return in how many forward passes each rank takes its share of a batch.

    The same on every rank, whose shares differ by a sample: a model that is sharded, or has
    synchronised batch norm, communicates in each pass.

    Args:
        global_size: Samples of the batch, over all ranks.
        num_ranks: Ranks that share it.
        micro_batch_size: Most samples in one forward pass of a rank; 0: all of its share.
    """
    if not micro_batch_size:
        return 1
    largest_share = -(-global_size // num_ranks)
    return max(-(-largest_share // micro_batch_size), 1)


@contextlib.contextmanager
def explain_out_of_memory(micro_batch_size: int) -> Iterator[None]:
    """Raise a `PetsError` where training runs out of memory with a micro-batch that was set.

    Args:
        micro_batch_size: As set; 0: the error is left as it is, for on a GPU another attempt
            searches for one that fits.
    """
    try:
        yield
    except RuntimeError as error:
        if not micro_batch_size or not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise PetsError(
            f"train.micro_batch_size = {micro_batch_size} does not fit the memory: set a smaller "
            f"one, {SMALLER_REMEDY} ({reason})"
        ) from error


def largest_micro_batch(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    *,
    accelerator: Accelerator,
) -> int:
    """Halve a batch until a forward and backward pass of it fits the memory.

    Tried before the first step, because an error in the middle of a step would leave other ranks
    waiting for this one's gradients. The search sets aside what a step holds besides: the
    optimizer's two moments and, where gradients are accumulated, the gradients. The model, its
    gradients and the random numbers are left as they were.

    Args:
        model: As prepared by `accelerator`; parameters say by `requires_grad` whether they learn.
        objective: What is minimised.
        inputs: First dimension B.
        targets: First dimension B.
        accelerator: Mixed precision, device, ranks.

    Returns:
        The most samples that fit every rank, at least 1; 0 where all do.

    Raises:
        PetsError: Not even one sample fits, or the model is sharded.
    """
    if is_sharding(accelerator):
        # Its passes communicate: a rank that runs out of memory would leave the others waiting.
        raise PetsError(NEEDS_MICRO_BATCH_SIZE)
    # DDP has memory for all gradients already.
    holds_gradients = isinstance(model, DistributedDataParallel)
    # Not the distributed wrapper: ranks that try more often than others would leave them waiting.
    model = accelerator.unwrap_model(model)
    size, num_halvings = max(len(inputs), 1), 0

    def fits(size: int) -> bool:
        accumulates = size < len(inputs) and not holds_gradients
        part = inputs[:size], targets[:size]
        return _fits(model, objective, *part, accelerator, accumulates=accumulates)

    with _resting_batch_norm(model):
        # The thread of backward passes makes its cuBLAS handle in the first one: a small one,
        # before memory is at its peak.
        if not fits(1):
            raise PetsError(f"one sample does not fit the memory: {SMALLER_REMEDY}")
        while size > 1 and not fits(size):
            num_halvings += 1
            size = (size + 1) // 2
    empty_cache(accelerator.device)
    # Shares differ by a sample; only ranks that had to halve theirs know what fits.
    found = torch.tensor([size if num_halvings else sys.maxsize], device=accelerator.device)
    smallest = int(accelerator.gather(found).min())
    if smallest == sys.maxsize:
        return 0
    warnings.warn(
        f"{len(inputs)} samples do not fit the memory: gradients are accumulated over "
        f"micro-batches of {smallest} (train.micro_batch_size)",
        stacklevel=2,
    )
    return smallest


@contextlib.contextmanager
def _resting_batch_norm(model: nn.Module) -> Iterator[None]:
    """Put batch norm in evaluation mode.

    There it needs nearly the same memory, takes a single sample, moves no statistics, and
    communicates with no other rank.
    """
    training = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _fits(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    accelerator: Accelerator,
    *,
    accumulates: bool,
) -> bool:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if accumulates:
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)
    try:
        _pass(model, objective, inputs, targets, accelerator)
        fitted = True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    finally:
        for parameter in learning:
            parameter.grad = None
    if not fitted:
        empty_cache(accelerator.device)
    return fitted


def _pass(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    accelerator: Accelerator,
) -> None:
    """Take a forward and backward pass while what a step holds besides is reserved."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        set_aside = [
            torch.empty_like(parameter)
            for parameter in model.parameters()
            if parameter.requires_grad
            for _moment in range(2)
        ]
        if on_gpu:
            set_aside.append(torch.empty(_RESERVE_BYTES, dtype=torch.uint8, device=device))
        with accelerator.autocast():
            outputs = model(inputs)
        # Not accelerator.backward: a gradient scaler must not see this pass.
        torch.autograd.backward(objective.loss_sum(outputs, targets))
        del set_aside
