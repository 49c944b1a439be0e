"""A tiny model and loader to test the training loop without images."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn


class TinyModel(nn.Module):
    """Two body groups, one with batch norm and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(inputs)))

    def layer_groups(self) -> list[list[nn.Parameter]]:
        return [list(part.parameters()) for part in (self.first, self.second, self.head)]


@dataclass(frozen=True)
class TinyBatch:
    inputs: torch.Tensor
    targets: torch.Tensor
    ids: list[str]
    global_size: int


class TinyLoader:
    """Batches of a learnable problem with `num_rows` rows."""

    def __init__(self, num_rows: int = 96, batch_size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(num_rows, 4, generator=generator)
        self.targets = self.inputs[:, :3].argmax(1)
        self.num_rows, self._batch_size = num_rows, batch_size
        self.num_batches = -(-num_rows // batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[TinyBatch]:
        order = np.random.default_rng(epoch).permutation(self.num_rows)
        for rows in np.array_split(order, self.num_batches)[first:]:
            ids = [f"row-{row}" for row in rows]
            yield TinyBatch(self.inputs[rows], self.targets[rows], ids, len(rows))


@pytest.fixture(scope="module", autouse=True)
def _freeze_existing_objects() -> None:
    """Exclude existing objects from garbage collection, which every training starts with."""
    gc.freeze()


@pytest.fixture
def tiny_model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()


@pytest.fixture
def tiny_loader() -> TinyLoader:
    return TinyLoader()
