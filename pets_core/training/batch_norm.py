"""Check that each forward pass holds enough samples for batch norm."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.training.memory import num_micro_batches

__all__ = ["check_batch_norm", "smallest_micro_batch"]


def check_batch_norm(
    model: nn.Module,
    config: TrainConfig,
    *,
    num_rows: int,
    num_processes: int,
    micro_batch_size: int,
) -> None:
    """Check that batch norm in training mode gets enough samples in each forward pass.

    The statistics of a single sample are not those of a batch, and torch raises an error during
    the step if a channel of it has a single value. Synchronised batch norm sees the samples of all
    ranks and needs at least one from each, because a rank without samples joins the collective
    with another dtype than the others (torch/nn/modules/_functions.py).

    Args:
        model: Model with each module in its training or evaluation mode.
        config: Settings of the recipe.
        num_rows: Number of training samples.
        num_processes: Number of ranks.
        micro_batch_size: Most samples in one forward pass of a rank; 0: no limit.

    Raises:
        PetsError: A forward pass would hold too few samples.
    """
    if not any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        return
    needed = 1 if config.batch_norm == "sync" and num_processes > 1 else 2
    if smallest_micro_batch(num_rows, config.batch_size, num_processes, micro_batch_size) >= needed:
        return
    settings = f"train.batch_size = {config.batch_size}"
    remedy = "raise train.batch_size (4 per process is enough)"
    if smallest_micro_batch(num_rows, config.batch_size, num_processes, 0) >= needed:
        settings += f" and train.micro_batch_size = {micro_batch_size}"
        if not config.micro_batch_size:
            settings += " (the largest that fits in memory)"
        remedy = "change train.micro_batch_size"
    raise PetsError(
        f"train.batch_norm = {config.batch_norm} needs {needed} sample{'s' * (needed > 1)} in each "
        f"forward pass of a process. With {settings}, {num_rows} training samples and "
        f"{num_processes} process{'es' * (num_processes > 1)} a pass may hold only {needed - 1}: "
        f"set train.batch_norm = frozen, or {remedy}"
    )


def smallest_micro_batch(
    num_rows: int, batch_size: int, num_ranks: int, micro_batch_size: int
) -> int:
    """Return the fewest samples in a forward pass of any rank, given how loaders split batches.

    Args:
        num_rows: Number of training samples, at least 1.
        batch_size: Most samples in a batch, over all ranks.
        num_ranks: Number of ranks that share a batch.
        micro_batch_size: Most samples in one forward pass of a rank; 0: no limit.
    """
    num_batches = -(-num_rows // batch_size)
    sizes = {num_rows // num_batches, -(-num_rows // num_batches)}
    return min(
        size // num_ranks // num_micro_batches(size, num_ranks, micro_batch_size) for size in sizes
    )
