"""Loader: every row once per epoch, pixels independent of the world size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pets_core.config.train import TransformConfig
from pets_core.data.loading.batches import BatchSampler, RowLoader, global_batches
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader, fits_on_gpu
from pets_core.data.loading.transforms import Augment
from pets_core.training.features import Features

rows = st.integers(1, 200)
batch_sizes = st.integers(1, 64)
seeds = st.none() | st.integers(0, 2**32)
epochs = st.integers(0, 50)


class Recorder:
    """Identity transform that records its arguments."""

    def __init__(self):
        self.arguments = []

    def __call__(self, photos, *, seed, rows, global_size):
        self.arguments.append((seed, rows, global_size))
        return photos


def numbered(num_rows: int, side: int = 1) -> DecodedPhotos:
    """Photos whose pixels, label and id encode their row."""
    numbers = np.arange(num_rows)
    pixels = np.zeros((num_rows, side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = (n[:, None, None] for n in (numbers % 256, numbers // 256))
    return DecodedPhotos(pixels, numbers.astype(np.int64), [str(n) for n in numbers])


def loader(
    num_rows, batch_size, *, seed=0, rank=0, world_size=1, transform=None, side=1, **settings
):
    return PhotoLoader(
        numbered(num_rows, side), transform or Recorder(),
        BatchSampler(num_rows, batch_size, seed, rank, world_size),
        device=torch.device("cpu"), **settings,
    )  # fmt: skip


@given(rows, batch_sizes, seeds, epochs)
def test_batches_contain_every_row_once(num_rows, batch_size, seed, epoch):
    batches = global_batches(num_rows, batch_size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num_rows))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == -(-num_rows // batch_size)


def test_weighted_rows_are_drawn_by_frequency():
    """A row of weight 3 occurs three times as often as one of weight 1, a row of weight 0 never."""
    weights = np.repeat([0.0, 1.0, 3.0], 100)
    drawn = np.concatenate(
        [
            np.concatenate(global_batches(300, 32, seed=1, epoch=e, weights=weights))
            for e in range(9)
        ]
    )
    counts = np.bincount(drawn // 100, minlength=3)
    assert counts.sum() == 9 * 300
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("kind", ["photos", "features"])
def test_ranks_share_weighted_batches(kind):
    weights = np.linspace(0, 1, 50)

    def rows(rank, world_size):
        sampler = BatchSampler(50, 8, 3, rank, world_size, weights)
        if kind == "photos":
            made = PhotoLoader(numbered(50), Recorder(), sampler, device=torch.device("cpu"))
        else:
            ids = [str(n) for n in range(50)]
            features = Features(np.zeros((50, 2), np.float32), torch.arange(50), ids)
            made = RowLoader(features.read, sampler, torch.device("cpu"))
        return [batch.rows.tolist() for batch in made.epoch(1)]

    together = [first + second for first, second in zip(rows(0, 2), rows(1, 2), strict=True)]
    assert together == rows(0, 1)
    assert together[0] != sorted(together[0])


@given(rows, batch_sizes, seeds, epochs, st.integers(1, 9))
def test_ranks_see_every_row_once(num_rows, batch_size, seed, epoch, world_size):
    expected = global_batches(num_rows, batch_size, seed=seed, epoch=epoch)
    ranks = [
        loader(num_rows, batch_size, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {rank.num_batches for rank in ranks} == {len(expected)}
    rank_batches = [list(rank.epoch(epoch)) for rank in ranks]
    assert {len(own_batches) for own_batches in rank_batches} == {len(expected)}
    for number, batch in enumerate(expected):
        of_ranks = [own_batches[number] for own_batches in rank_batches]
        np.testing.assert_array_equal(np.concatenate([b.rows for b in of_ranks]), batch)
        assert {b.global_size for b in of_ranks} == {len(batch)}
        sizes = [len(b.rows) for b in of_ranks]
        assert max(sizes) - min(sizes) <= 1
        for part in of_ranks:
            assert len(part.inputs) == len(part.targets) == len(part.rows)


@given(rows, batch_sizes, seeds)
def test_inputs_and_targets_match_their_rows(num_rows, batch_size, seed):
    for batch in loader(num_rows, batch_size, seed=seed).epoch(0):
        np.testing.assert_array_equal(batch.targets.numpy(), batch.rows)
        assert batch.ids == [str(row) for row in batch.rows]
        seen = batch.inputs[:, 0, 0].numpy().astype(int)
        np.testing.assert_array_equal(seen[:, 0] + 256 * seen[:, 1], batch.rows)


def order(seed, epoch):
    return np.concatenate(global_batches(100, 10, seed=seed, epoch=epoch)).tolist()


def test_order_depends_on_seed_and_epoch_only():
    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(None, 0) == order(None, 5) == list(range(100))


def test_each_batch_has_its_own_seed():
    seen = set()
    for seed in (0, 1):
        transform = Recorder()
        for epoch in (0, 1):
            list(loader(100, 10, seed=seed, transform=transform).epoch(epoch))
        seen |= {seed for seed, _, _ in transform.arguments}
    assert len(seen) == 40
    assert all(0 <= seed < 2**63 for seed in seen)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_augmentation_is_independent_of_world_size(world_size):
    augment = Augment(6, (0.5,) * 3, (0.2,) * 3, TransformConfig(max_rotate_degrees=30))

    def by_row(world_size):
        seen = {}
        for rank in range(world_size):
            rank_loader = loader(
                50, 16, seed=3, rank=rank, world_size=world_size, transform=augment, side=8
            )
            for batch in rank_loader.epoch(1):
                seen |= dict(zip(batch.rows.tolist(), batch.inputs, strict=True))
        return seen

    single, shared = by_row(1), by_row(world_size)
    assert single.keys() == shared.keys() == set(range(50))
    for row, pixels in single.items():
        torch.testing.assert_close(shared[row], pixels, rtol=0, atol=1e-6)


def test_more_ranks_than_rows_gives_empty_batches():
    augment = Augment(6, (0.5,) * 3, (0.2,) * 3, TransformConfig())
    shapes = [
        batch.inputs.shape
        for rank in range(4)
        for batch in loader(2, 8, rank=rank, world_size=4, transform=augment, side=8).epoch(0)
    ]
    assert sorted(shape[0] for shape in shapes) == [0, 0, 1, 1]
    assert {tuple(shape[1:]) for shape in shapes} == {(3, 6, 6)}


def test_empty_split_raises_value_error():
    with pytest.raises(ValueError, match="empty"):
        loader(0, 4)


def batches(**settings):
    return [
        (b.inputs.clone(), b.targets, b.rows.tolist()) for b in loader(50, 16, **settings).epoch(2)
    ]


def test_on_device_photos_give_the_same_batches():
    for plain, kept in zip(batches(), batches(on_device=True), strict=True):
        assert torch.equal(plain[0], kept[0])
        assert torch.equal(plain[1], kept[1])
        assert plain[2] == kept[2]


def test_epoch_can_be_restarted_midway():
    photos = loader(50, 16)
    first = next(photos.epoch(0)).rows.tolist()
    assert next(photos.epoch(0)).rows.tolist() == first
    assert len(list(photos.epoch(0))) == photos.num_batches


def test_mixing_blends_inputs_and_targets():
    augment = Augment(6, (0.5,) * 3, (0.2,) * 3, TransformConfig())
    settings = {"transform": augment, "side": 8, "num_classes": 50}
    mixed = batches(mixing=TransformConfig(mixup_alpha=1.0), **settings)
    plain = batches(mixing=TransformConfig(), **settings)
    for (inputs, targets, rows), (unmixed, labels, same_rows) in zip(mixed, plain, strict=True):
        assert rows == same_rows
        assert targets.shape == (len(rows), 50)
        assert torch.equal(labels, torch.tensor(rows))
        weight = targets[torch.arange(len(rows)), labels].view(-1, 1, 1, 1)
        torch.testing.assert_close(inputs, weight * unmixed + (1 - weight) * unmixed.flip(0))
    assert batches(mixing=TransformConfig(mixup_alpha=1.0), **settings)[0][0].equal(mixed[0][0])


def test_fits_on_gpu_is_false_on_a_cpu():
    assert not fits_on_gpu(numbered(3), torch.device("cpu"))


@pytest.mark.parametrize(("free", "fits"), [(4 * 300, True), (4 * 300 - 1, False)])
def test_photos_fit_a_gpu_with_four_times_their_size_free(monkeypatch, free, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**9))
    photos = numbered(100)
    assert photos.pixels.nbytes == 300
    assert fits_on_gpu(photos, torch.device("cuda")) is fits
