"""How many samples fit the device's memory in one forward and backward pass."""

from __future__ import annotations

import copy
import sys
import warnings

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from pets_core.errors import PetsError
from pets_core.objectives.objective import Objective

__all__ = ["largest_micro_batch"]


def largest_micro_batch(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    *,
    accelerator: Accelerator,
) -> int:
    """Halve a batch until a forward and backward pass of it fits the memory.

    Tried before the first step, with room set aside for the optimizer's two moments, since an
    error in the middle of a step would leave other ranks waiting for this one's gradients. The
    model, its gradients and the random numbers are left as they were.

    Args:
        model: As prepared by `accelerator`; parameters say by `requires_grad` whether they learn.
        objective: What is minimised.
        inputs: First dimension B.
        targets: First dimension B.
        accelerator: Mixed precision, device, ranks.

    Returns:
        The most samples that fit every rank, at least 1; 0 where all do.

    Raises:
        PetsError: Not even one sample fits.
    """
    # Not the distributed wrapper: ranks that try more often than others would leave them waiting.
    model = accelerator.unwrap_model(model)
    size, tries = max(len(inputs), 1), 0
    buffers = copy.deepcopy(dict(model.named_buffers()))
    while not _fits(model, objective, inputs[:size], targets[:size], accelerator):
        tries += 1
        if size == 1:
            raise PetsError(
                "one sample does not fit the GPU's memory: lower model.image_size, or take a "
                "smaller model.backbone"
            )
        size = (size + 1) // 2
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    # Shares differ by a sample; only ranks that had to halve theirs tell what fits.
    found = torch.tensor([size if tries else sys.maxsize], device=accelerator.device)
    smallest = int(accelerator.gather(found).min())
    if smallest == sys.maxsize:
        return 0
    warnings.warn(
        f"{len(inputs)} samples do not fit the memory: gradients are accumulated over "
        f"micro-batches of {smallest} (train.micro_batch_size)",
        stacklevel=2,
    )
    return smallest


def _fits(
    model: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    accelerator: Accelerator,
) -> bool:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            moments = [torch.empty_like(parameter) for parameter in learning * 2]
            # Not accelerator.backward: a gradient scaler must not see this pass.
            torch.autograd.backward(objective.loss_sum(model(inputs), targets))
            del moments
    except Exception as error:
        if should_reduce_batch_size(error):
            return False
        raise
    finally:
        for parameter in learning:
            parameter.grad = None
    return True
