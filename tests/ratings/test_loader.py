"""Rating batches: every rating once per epoch for any number of ranks."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pets_core.data.loading.batches import BatchSampler, RowLoader
from pets_core.ratings.dataset import Ratings
from pets_core.ratings.loader import ratings_loader


def ratings(count: int) -> Ratings:
    rows = np.arange(count, dtype=np.int32)
    return Ratings(rows + 1, rows % 7, rows.astype(np.float32))


def loader(
    count: int, rank: int = 0, world_size: int = 1, *, batch_size: int = 16, seed: int | None = 0
) -> RowLoader:
    sampler = BatchSampler(count, batch_size, seed, rank, world_size)
    return ratings_loader(ratings(count), sampler, torch.device("cpu"))


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3))
def test_ranks_divide_all_ratings(count, world_size, batch_size, epoch):
    shares = [
        list(loader(count, rank, world_size, batch_size=batch_size).epoch(epoch))
        for rank in range(world_size)
    ]
    seen = np.concatenate([batch.rows for share in shares for batch in share])
    assert sorted(seen) == list(range(count))
    for batches in zip(*shares, strict=True):
        assert sum(len(batch.inputs) for batch in batches) == batches[0].global_size <= batch_size


def test_inputs_and_targets_belong_together():
    for batch in loader(50).epoch(3):
        assert batch.inputs.dtype == torch.int64
        assert batch.inputs[:, 0].tolist() == (batch.rows + 1).tolist()
        assert batch.inputs[:, 1].tolist() == (batch.rows % 7).tolist()
        assert batch.targets.tolist() == batch.rows.tolist()
        assert batch.ids[0] == f"user index {batch.rows[0] + 1} item index {batch.rows[0] % 7}"
        assert len(batch.ids[:2]) == 2


def test_epoch_can_start_at_any_batch_and_is_reshuffled():
    whole = [batch.rows.tolist() for batch in loader(64).epoch(1)]
    assert [batch.rows.tolist() for batch in loader(64).epoch(1, first=2)] == whole[2:]
    assert whole != [batch.rows.tolist() for batch in loader(64).epoch(2)]
    kept = np.concatenate([batch.rows for batch in loader(64, seed=None).epoch(5)])
    assert kept.tolist() == list(range(64))
