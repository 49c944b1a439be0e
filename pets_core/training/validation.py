"""Loss and metric of the validation split."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from pets_core.models.memory import HalvingForward
from pets_core.targets.objective import Objective
from pets_core.training.accelerator import share_buffers
from pets_core.training.memory import num_micro_batches
from pets_core.training.prepared import Loader, Prepared
from pets_core.training.saving import Saving
from pets_core.training.sharding import is_sharding

__all__ = ["score", "validate"]


def score(
    judged: nn.Module, prepared: Prepared, valid: Loader | None, saving: Saving
) -> tuple[float, float] | None:
    """Validate the weights of an epoch, with the same buffers on every rank; errors as `validate`.

    Returns:
        Loss and metric; None where nothing is held out.
    """
    config = prepared.config
    if config.batch_norm == "train":
        # Each rank's statistics are those of its own samples.
        share_buffers(judged)
    if valid is None:
        return None
    return validate(
        judged, prepared.objective, valid, prepared.accelerator, saving,
        micro_batch_size=config.micro_batch_size,
    )  # fmt: skip


@torch.no_grad()
def validate(
    model: nn.Module,
    objective: Objective,
    valid: Loader,
    accelerator: Accelerator,
    saving: Saving | None = None,
    *,
    micro_batch_size: int = 0,
) -> tuple[float, float]:
    """Return mean loss and the metric of a split, each sample counted once.

    A batch that does not fit the memory is taken in parts. Of a sharded model these have
    `micro_batch_size` samples at most, for all ranks must take as many.

    Raises:
        Interrupted: The training was told to end; a checkpoint was written.
    """
    model.eval()
    halving = HalvingForward(lambda inputs: (model(inputs),), accelerator)
    shards = is_sharding(accelerator)
    # Apple's GPUs have no float64.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=dtype, device=accelerator.device)
    for batch in valid.epoch(0):
        if saving and not saving.may_begin():
            saving.leave()
        if shards:
            num_parts = num_micro_batches(
                batch.global_size, accelerator.num_processes, micro_batch_size
            )
            with accelerator.autocast():
                parts = [model(part) for part in batch.inputs.tensor_split(num_parts)]
            logits = torch.cat(parts)
        else:
            (logits,) = halving(batch.inputs)
        sums[0] += objective.valid_loss_sum(logits, batch.targets)
        sums[1] += objective.metric_sum(logits, batch.targets)
    loss, metric = (accelerator.reduce(sums, "sum") / valid.num_rows).tolist()
    return loss, objective.metric_value(metric)
