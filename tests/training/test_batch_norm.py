"""Training batch norm on single samples is refused."""

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pets_core.config.rates import RateSlice
from pets_core.config.train import TrainConfig
from pets_core.data.loading.batches import global_batches
from pets_core.errors import PetsError
from pets_core.targets.classes.objective import SingleLabel
from pets_core.training.batch_norm import check_batch_norm, smallest_micro_batch
from pets_core.training.groups import freeze_to, set_train_mode
from pets_core.training.memory import num_micro_batches
from pets_core.training.prepared import prepare


@given(st.integers(1, 200), st.integers(1, 70), st.integers(1, 9), st.integers(0, 9))
def test_smallest_micro_batch_matches_the_loader(num_rows, batch_size, num_ranks, micro):
    passes = [
        len(part)
        for rows in global_batches(num_rows, batch_size, seed=None, epoch=0)
        for rank in range(num_ranks)
        for share in [rows[len(rows) * rank // num_ranks : len(rows) * (rank + 1) // num_ranks]]
        for part in torch.tensor_split(
            torch.tensor(share), num_micro_batches(len(rows), num_ranks, micro)
        )
    ]
    assert smallest_micro_batch(num_rows, batch_size, num_ranks, micro) == min(passes)
    assert max(passes) <= (micro or batch_size)


def check(model, first_group=0, *, num_rows=96, num_processes=1, micro=None, **settings):
    config = TrainConfig.model_validate({"batch_size": 64, "batch_norm": "train"} | settings)
    freeze_to(model, first_group)
    set_train_mode(model, config.batch_norm)
    check_batch_norm(
        model, config, num_rows=num_rows, num_processes=num_processes,
        micro_batch_size=config.micro_batch_size if micro is None else micro,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, r"train.batch_size = 1, 96 .* 1 process .*raise train.batch_size"),
        ({"batch_size": 2, "num_rows": 97}, r"train.batch_size = 2, 97 training samples"),
        ({"batch_size": 6, "num_processes": 4}, r"train.batch_size = 6, 96 .* 4 processes"),
        (
            {"batch_size": 8, "micro_batch_size": 1},
            r"= 8 and train.micro_batch_size = 1, .*change train.micro_batch_size",
        ),
        ({"batch_size": 3, "micro_batch_size": 2}, r"train.micro_batch_size = 2, "),
        (
            {"batch_size": 16, "micro": 1},
            r"micro_batch_size = 1 \(the largest that fits in memory\)",
        ),
        ({"batch_size": 1, "batch_norm": "sync"}, r"train.batch_norm = sync needs 2 samples"),
        (
            {"batch_size": 3, "num_processes": 4, "batch_norm": "sync"},
            r"sync needs 1 sample in each .* 4 processes a pass may hold only 0: ",
        ),
    ],
)
def test_micro_batch_of_one_sample_is_refused(tiny_model, settings, message):
    with pytest.raises(PetsError, match=message):
        check(tiny_model, **settings)
    check(tiny_model, **settings | {"batch_norm": "frozen"})


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2},
        {"batch_size": 64, "num_rows": 65},
        {"batch_size": 16, "micro_batch_size": 4},
        {"batch_size": 4, "num_processes": 4, "batch_norm": "sync"},
    ],
)
def test_micro_batch_of_two_samples_is_accepted(tiny_model, settings):
    check(tiny_model, **settings)


def test_frozen_batch_norm_accepts_any_batch_size(tiny_model):
    check(tiny_model, first_group=-1, batch_size=1)


def test_batch_norm_in_the_head_needs_two_samples_in_frozen_epochs(tiny_model):
    tiny_model.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(PetsError, match=r"needs 2 samples"):
        check(tiny_model, first_group=-1, batch_size=1)


def test_model_without_batch_norm_accepts_any_batch_size():
    check_batch_norm(
        nn.LayerNorm(4), TrainConfig(batch_norm="train", batch_size=1),
        num_rows=9, num_processes=1, micro_batch_size=0,
    )  # fmt: skip


def test_phase_is_refused_before_its_first_step(tiny_model, tiny_loader):
    with pytest.raises(PetsError, match=r"train.micro_batch_size = 1, "):
        prepare(
            tiny_model, SingleLabel(), tiny_loader,
            TrainConfig(batch_norm="train", batch_size=64, micro_batch_size=1),
            Accelerator(cpu=True, mixed_precision="no"), 0, RateSlice(1e-3),
        )  # fmt: skip
