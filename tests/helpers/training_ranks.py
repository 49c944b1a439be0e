"""Jobs of a fork server: a training scenario on CPU ranks; rank 0 prints the result."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.evaluation import predict
from pets_core.models.classifier import Classifier
from pets_core.runtime import supervisor
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.accelerator import create_accelerator
from pets_core.training.history import History
from pets_core.training.loop import fit, train_step
from pets_core.training.memory import largest_micro_batch
from pets_core.training.optimizer import build_optimizer
from pets_core.training.prepared import PreparedModel, prepare
from pets_core.training.schedule import Phase
from pets_core.training.sharding import full_tensor
from pets_core.training.state import TrainState
from pets_core.training.validation import validate

__all__: list[str] = []

supervisor.SHUTDOWN_SECONDS = 1.0
NUM_CLASSES, SIDE, WIDTH = 4, 8, 1200
"""WIDTH gives linear layers of a million weights, which are sharded individually."""
TIMEOUT = timedelta(seconds=20)


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    global_size: int


class Loader:
    """Batches of random photos, divided among the ranks."""

    def __init__(self, num_rows: int, batch_size: int, accelerator: Accelerator) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(num_rows, 3, SIDE, SIDE, generator=generator)
        self.targets = torch.arange(num_rows) % NUM_CLASSES
        self.num_rows, self.num_batches = num_rows, -(-num_rows // batch_size)
        self._rank, self._num_ranks = accelerator.process_index, accelerator.num_processes

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for rows in np.array_split(np.arange(self.num_rows), self.num_batches)[first:]:
            start, end = (len(rows) * (self._rank + more) // self._num_ranks for more in (0, 1))
            own = rows[start:end]
            yield Batch(self.inputs[own], self.targets[own], [""] * len(own), len(rows))


class Reshape(nn.Module):
    """Reshape as in Swin transformers: torch cannot infer -1 for an empty batch."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.reshape(len(inputs), -1).view(inputs.shape)


class CommunicatingNorm(nn.BatchNorm1d):
    """Batch norm that communicates in training, as synchronised batch norm does on GPUs only."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            dist.all_reduce(torch.zeros(1))
        return super().forward(inputs)


class MemoryLimit(nn.Module):
    """Raises an out-of-memory error above `max_rows` samples."""

    max_rows = 99

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > self.max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return inputs


def make_accelerator(
    *, sharded: bool = False, precision: Literal["no", "bf16"] = "no"
) -> Accelerator:
    return create_accelerator(precision, torch.device("cpu"), is_sharded=sharded, timeout=TIMEOUT)


def make_model(*layers: nn.Module) -> Classifier:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(),
        *layers, nn.Linear(WIDTH, WIDTH),
    )  # fmt: skip
    model = Classifier(body, WIDTH, NUM_CLASSES, 0.0)
    nn.init.normal_(model.head[-1].weight, std=0.1)
    return model


def steps(
    num_rows: int, accelerator: Accelerator, model: Classifier, count: int = 2, **settings
) -> dict[str, object]:
    """Repeat one step; return losses over all ranks, gradient norms and a sum of weights."""
    loader = Loader(num_rows, num_rows, accelerator)
    config = TrainConfig(weight_decay=0.0, **settings)
    prepared: PreparedModel = prepare(
        model, SingleLabel(), loader, config, accelerator, 0, RateSlice(1e-3, uniform=True)
    )
    results = [train_step(prepared, next(loader.epoch(0))) for _ in range(count)]
    return {
        "losses": [float(accelerator.reduce(each.loss_sum, "sum")) for each in results],
        "norms": [float(each.grad_norm) for each in results],
        "weights": sum(float(full_tensor(w).double().abs().sum()) for w in model.parameters()),
    }


def unequal_parts(kind: str) -> dict[str, object]:
    """Shares of 2, 3 and 3 samples in micro-batches of at most 2."""
    accelerator = make_accelerator(sharded=kind == "sharded")
    layers = [CommunicatingNorm(WIDTH)] if kind == "communicating" else []
    return steps(8, accelerator, make_model(*layers), micro_batch_size=2)


def empty_share(kind: str) -> dict[str, object]:
    """A batch of two samples, fewer than ranks."""
    accelerator = make_accelerator(sharded=kind == "sharded")
    model = make_model()
    model.body = nn.Sequential(Reshape(), *model.body)
    return steps(2, accelerator, model)


def precision(kind: str) -> dict[str, object]:
    """Steps in bf16."""
    accelerator = make_accelerator(sharded=kind == "sharded", precision="bf16")
    return steps(8, accelerator, make_model(), count=4, micro_batch_size=2)


def search(kind: str) -> dict[str, object]:
    """Search of the largest micro-batch in which only rank 1 runs out of memory."""
    accelerator = make_accelerator(sharded=kind == "sharded")
    limit = MemoryLimit()
    limit.max_rows = 2 if accelerator.process_index == 1 else 99
    model, loader = make_model(CommunicatingNorm(WIDTH), limit), Loader(12, 12, accelerator)
    model.train()
    batch = next(loader.epoch(0))
    optimizer = build_optimizer(model, [1e-3] * len(model.layer_groups()), 0.0)
    wrapped, _ = accelerator.prepare(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = largest_micro_batch(
                wrapped, SingleLabel(), batch.inputs, batch.targets, accelerator=accelerator
            )  # fmt: skip
    except PetsError as error:
        return {"error": str(error)}
    accelerator.free_memory()
    vars(model).pop("_is_accelerate_prepared", None)
    return {"micro_batch_size": found} | steps(12, accelerator, model, micro_batch_size=found)


def statistics(ema_decay: str) -> dict[str, object]:
    """Batch norm trained on different samples per rank and validated with equal statistics."""
    accelerator = make_accelerator()
    model, loader = make_model(nn.BatchNorm1d(WIDTH)), Loader(24, 12, accelerator)
    config = TrainConfig(batch_size=64, batch_norm="train", ema_decay=float(ema_decay))
    phase = Phase("unfrozen", 1, 0, RateSlice(1e-3, uniform=True), 0.3, 25.0)
    history = fit(model, SingleLabel(), loader, loader, [phase], config, accelerator=accelerator)
    alone = Loader(24, 12, accelerator)
    alone._rank, alone._num_ranks = 0, 1
    # Every rank validates all samples, so the sum over ranks is divided by their number.
    loss, _ = validate(model, SingleLabel(), alone, accelerator)
    own = next(value for name, value in model.named_buffers() if name.endswith("running_mean"))
    means = accelerator.gather(own[None])
    return {
        "valid_loss": history.epochs[0].valid_loss,
        "by_each": loss / accelerator.num_processes,
        "statistics_differ": float((means[0] - means[1]).abs().max()),
    }


def communication(_: str) -> dict[str, object]:
    """Names of the collectives in a step of a model with buffers."""
    accelerator = make_accelerator()
    model, loader = make_model(nn.BatchNorm1d(WIDTH)), Loader(8, 8, accelerator)
    rates = RateSlice(1e-3, uniform=True)
    prepared = prepare(model, SingleLabel(), loader, TrainConfig(), accelerator, 0, rates)
    batch = next(loader.epoch(0))
    # DDP rearranges its buckets after the first step and broadcasts their order.
    train_step(prepared, batch)
    train_step(prepared, batch)
    with torch.profiler.profile() as profile:
        train_step(prepared, batch)
    return {"collectives": sorted({e.name for e in profile.events() if "c10d::" in e.name})}


def checkpoint(kind: str) -> dict[str, object]:
    """Training state, gathered on rank 0."""
    accelerator = make_accelerator(sharded=kind == "sharded")
    model, loader = make_model(), Loader(8, 8, accelerator)
    rates = RateSlice(1e-3, uniform=True)
    prepared = prepare(model, SingleLabel(), loader, TrainConfig(), accelerator, 0, rates)
    train_step(prepared, next(loader.epoch(0)))
    state = TrainState(model, None, History(), accelerator)
    snapshot = state.snapshot(prepared.optimizer.optimizer, 0.0)
    state.history.best.update(model, 1.0, needs_copy=accelerator.is_main_process)
    sums = {name: float(value.double().abs().sum()) for name, value in snapshot.tensors.items()}
    counts = accelerator.gather(torch.tensor([len(snapshot.tensors)])).tolist()
    best = len(state.history.best.weights)
    return {"sums": sums, "counts": counts, "best": best}


def rows(_: str) -> dict[str, object]:
    """1,000 rows distributed over the ranks, gathered on rank 0 in order and in blocks."""
    accelerator = make_accelerator()
    predict._BLOCK_BYTES = 1000
    owners = np.random.default_rng(0).integers(0, accelerator.num_processes, 1000)
    mine = np.flatnonzero(owners == accelerator.process_index)
    values = np.stack([mine, mine * 2], 1).astype(np.float32)
    gathered = predict.gather_in_row_order(mine, [values], 1000)
    if gathered is None:
        return {}
    expected = np.stack([np.arange(1000), np.arange(1000) * 2], 1)
    return {"equal": bool((gathered[0] == expected).all()), "main": accelerator.is_main_process}


SCENARIOS: dict[str, Callable[[str], dict[str, object]]] = {
    function.__name__: function
    for function in (
        unequal_parts,
        empty_share,
        precision,
        search,
        statistics,
        communication,
        checkpoint,
        rows,
    )
}


def work(scenario: str, kind: str) -> int:
    torch.set_num_threads(1)
    try:
        result = SCENARIOS[scenario](kind)
    except BaseException as error:
        os.write(1, f"rank {os.environ.get('RANK')}: {type(error).__name__}: {error}\n".encode())
        raise
    if os.environ.get("RANK", "0") == "0":
        os.write(1, f"RESULT {json.dumps(result)}\n".encode())
    if dist.is_initialized():
        dist.barrier()
    return 0


def run(arguments: Sequence[str]) -> int:
    sys.stdout.reconfigure(line_buffering=True)
    num_ranks, *scenario = arguments
    return supervisor.supervise_ranks(int(num_ranks), lambda: work(*scenario))
