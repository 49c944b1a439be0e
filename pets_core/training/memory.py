"""Search for the largest micro-batch that fits in device memory."""

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
from pets_core.models.body_view import without_folding
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
"""Kept free by the search for memory outside torch's allocator: NCCL's channels and the
workspaces of cuBLAS and cuDNN."""
NEEDS_MICRO_BATCH_SIZE = (
    "launch.shard_model = true needs train.micro_batch_size on GPUs, because the search for the "
    "largest that fits does not support sharding: set it to the number of photos per process in "
    "one forward pass, for example 8"
)


def num_micro_batches(global_size: int, num_ranks: int, micro_batch_size: int) -> int:
    """Return the number of forward passes in which each rank processes its share of a batch.

    It is the same on every rank although shares differ by one sample, because a model that is
    sharded or has synchronised batch norm communicates in each pass.

    Args:
        global_size: Samples of the batch, over all ranks.
        num_ranks: Number of ranks that share it.
        micro_batch_size: Most samples in one forward pass of a rank; 0: no limit.
    """
    if not micro_batch_size:
        return 1
    largest_share = -(-global_size // num_ranks)
    return max(-(-largest_share // micro_batch_size), 1)


@contextlib.contextmanager
def explain_out_of_memory(micro_batch_size: int) -> Iterator[None]:
    """Raise a `PetsError` if training runs out of memory with the configured micro-batch.

    Args:
        micro_batch_size: The setting; 0: the original error is raised, because on a GPU a retry
            searches for a size that fits.
    """
    try:
        yield
    except RuntimeError as error:
        if not micro_batch_size or not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise PetsError(
            f"train.micro_batch_size = {micro_batch_size} does not fit in memory: set a smaller "
            f"one, {SMALLER_REMEDY} ({reason})"
        ) from error


def largest_micro_batch(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    *,
    accelerator: Accelerator,
    compiles: bool = False,
) -> int:
    """Halve a batch until its forward and backward pass fits in memory.

    The search runs before the first step, because an error during a step would leave other ranks
    waiting for this one's gradients. It also allocates the other memory of a step: the optimizer's
    two moments and, if gradients are accumulated, the gradients. Weights and random state do not
    change.

    Args:
        model: Model prepared by `accelerator`, with `requires_grad` set on trainable parameters.
        objective: Loss to minimise.
        inputs: First dimension B.
        targets: First dimension B.
        accelerator: Mixed precision, device, ranks.
        compiles: Whether the model is compiled after the search.

    Returns:
        Largest number of samples that fits on every rank, at least 1; 0 if all B samples fit.

    Raises:
        PetsError: Not even one sample fits, or the model is sharded.
    """
    if is_sharding(accelerator):
        # Sharded passes communicate: ranks would wait for one that runs out of memory.
        raise PetsError(NEEDS_MICRO_BATCH_SIZE)
    # DDP has allocated memory for all gradients.
    holds_gradients = isinstance(model, DistributedDataParallel)
    # Without the distributed wrapper, because ranks may need different numbers of attempts.
    model = accelerator.unwrap_model(model)
    size, num_halvings = max(len(inputs), 1), 0

    def fits(size: int) -> bool:
        accumulates = size < len(inputs) and not holds_gradients
        part = inputs[:size], targets[:size]
        return _fits(model, objective, *part, accelerator, accumulates=accumulates)

    with _same_memory_as_training(model, compiles=compiles):
        # The backward thread creates its cuBLAS handle in the first pass: run a small one first,
        # before memory use peaks.
        if not fits(1):
            raise PetsError(f"one sample does not fit in memory: {SMALLER_REMEDY}")
        while size > 1 and not fits(size):
            num_halvings += 1
            size = (size + 1) // 2
    empty_cache(accelerator.device)
    # Shares differ by one sample; only ranks that halved theirs have found a limit.
    found = torch.tensor([size if num_halvings else sys.maxsize], device=accelerator.device)
    smallest = int(accelerator.gather(found).min())
    if smallest == sys.maxsize:
        return 0
    warnings.warn(
        f"{len(inputs)} samples do not fit in memory: gradients are accumulated over "
        f"micro-batches of {smallest} (train.micro_batch_size)",
        stacklevel=2,
    )
    return smallest


@contextlib.contextmanager
def _same_memory_as_training(model: nn.Module, *, compiles: bool) -> Iterator[None]:
    """Make a pass use the memory of a training step, without updating batch-norm statistics.

    In evaluation mode batch norm needs nearly the same memory, accepts a single sample, keeps its
    statistics, and does not communicate with other ranks. Norms that are trained, and those of a
    compiled model, are not folded, because a folded one stores no input.
    """
    training = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    for module in training:
        module.training = False
    try:
        with without_folding() if training or compiles else contextlib.nullcontext():
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
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if accumulates:
        for parameter in trainable:
            parameter.grad = torch.zeros_like(parameter)
    try:
        _pass(model, objective, inputs, targets, accelerator)
        fitted = True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    finally:
        for parameter in trainable:
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
    """Run a forward and backward pass with memory reserved for the optimizer and the device."""
    device = accelerator.device
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        reserved = [
            torch.empty_like(parameter)
            for parameter in model.parameters()
            if parameter.requires_grad
            for _moment in range(2)
        ]
        if on_gpu:
            reserved.append(torch.empty(_RESERVE_BYTES, dtype=torch.uint8, device=device))
        with accelerator.autocast():
            outputs = model(inputs)
        # Not accelerator.backward: a gradient scaler must not see this pass.
        torch.autograd.backward(objective.loss_sum(outputs, targets))
        del reserved
