"""Loss and metric of the validation split."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from pets_core.models.memory import HalvingForward
from pets_core.targets.objective import Objective
from pets_core.training.accelerator import share_buffers
from pets_core.training.memory import num_micro_batches
from pets_core.training.prepared import Loader, PreparedModel
from pets_core.training.saving import CheckpointSaver
from pets_core.training.sharding import is_sharding

__all__ = ["validate", "validate_epoch"]


def validate_epoch(
    model: nn.Module, prepared: PreparedModel, valid: Loader | None, saver: CheckpointSaver
) -> tuple[float, float] | None:
    """Share batch-norm buffers over the ranks and evaluate the model on the validation split.

    Returns:
        Loss and metric; None if there is no validation split.

    Raises:
        Interrupted: The training was stopped; a checkpoint was written.
    """
    config = prepared.config
    if config.batch_norm == "train":
        # Each rank's statistics are those of its own samples.
        share_buffers(model)
    if valid is None:
        return None
    return validate(
        model, prepared.objective, valid, prepared.accelerator, saver,
        micro_batch_size=config.micro_batch_size,
    )  # fmt: skip


@torch.no_grad()
def validate(
    model: nn.Module,
    objective: Objective,
    valid: Loader,
    accelerator: Accelerator,
    saver: CheckpointSaver | None = None,
    *,
    micro_batch_size: int = 0,
) -> tuple[float, float]:
    """Return mean loss and metric of a split, counting each sample once.

    A batch that does not fit in memory is halved. With a sharded model, parts instead have at most
    `micro_batch_size` samples, because all ranks must process the same number of parts.

    Args:
        model: Set to evaluation mode.
        objective: Loss and metric.
        valid: Batches of the split.
        accelerator: Mixed precision, devices, ranks.
        saver: Checked before each batch; can stop the training.
        micro_batch_size: Most samples in one forward pass of a sharded model; 0: no limit.

    Raises:
        Interrupted: The training was stopped; a checkpoint was written.
    """
    model.eval()
    halving = HalvingForward(lambda inputs: (model(inputs),), accelerator)
    is_sharded = is_sharding(accelerator)
    # MPS does not support float64.
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
    sums = torch.zeros(2, dtype=dtype, device=accelerator.device)
    for batch in valid.epoch(0):
        if saver and not saver.should_continue():
            saver.stop()
        if is_sharded:
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
