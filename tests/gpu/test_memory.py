"""Out-of-memory handling, sharding and communication on a GPU."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from ports import free_port

from pets_core.training.loop import train_step

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu_only")]

LIMITS_GIB = (6.0, 7.3, 8.9, 10.9, 13.0)


@pytest.mark.parametrize("limit", LIMITS_GIB)
def test_batch_that_does_not_fit_is_halved_and_later_steps_fit(parts, limit, record_property):
    total = torch.cuda.get_device_properties(0).total_memory
    if limit * 2**30 > total:
        pytest.skip(f"the GPU has {total / 2**30:.1f} GiB")
    torch.cuda.set_per_process_memory_fraction(limit * 2**30 / total)
    train = parts.loader(parts.photos(512), batch_size=512)
    model = parts.model("vit_base_patch16_224")
    prepared = parts.prepared(model, train, parts.accelerator("bf16"), micro_batch_size=0)
    assert all(weight.grad is None for weight in prepared.model.parameters())
    torch.cuda.reset_peak_memory_stats()
    for epoch in range(4):
        train_step(prepared, next(train.epoch(epoch)))
    parts.synchronize()
    assert 0 < prepared.micro_batch_size < 512
    record_property("micro batch size", prepared.micro_batch_size)
    record_property("peak, GiB", torch.cuda.max_memory_allocated() / 2**30)


@pytest.fixture
def single_rank(monkeypatch) -> Iterator[None]:
    """Set the environment of a single rank, which communicates with NCCL."""
    port = free_port()
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (names | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setitem(os.environ, name, value)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_sharded_model_takes_the_same_steps(parts, single_rank):
    found = []
    for is_sharded in (False, True):
        accelerator = parts.accelerator("bf16", is_sharded=is_sharded)
        train = parts.loader(parts.photos(parts.batch_size))
        model = parts.model()
        if is_sharded:
            model.to(memory_format=torch.contiguous_format)
        prepared = parts.prepared(model, train, accelerator, micro_batch_size=16)
        results = [train_step(prepared, next(train.epoch(0))) for _ in range(3)]
        found.append([(float(loss), float(norm)) for loss, norm in results])
        dist.destroy_process_group()
    for whole, sharded in zip(*found, strict=True):
        assert sharded == pytest.approx(whole, rel=3e-2)
        assert min(sharded) > 0


def test_step_communicates_only_gradients(parts, single_rank):
    train, accelerator = parts.loader(parts.photos(parts.batch_size)), parts.accelerator("bf16")
    prepared = parts.prepared(parts.model(), train, accelerator)
    batch = next(train.epoch(0))
    for _ in range(3):
        train_step(prepared, batch)
    with torch.profiler.profile() as profile:
        train_step(prepared, batch)
    assert {e.name for e in profile.events() if "c10d::" in e.name} == {"c10d::allreduce_"}
