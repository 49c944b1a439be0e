"""Device and precision of a rank, and settings refused on it; GPUs are mocked."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from pets_core.config.launch import LaunchConfig
from pets_core.config.pipeline import PipelineConfig
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.runtime.stages import _warn_of_small_batches
from pets_core.training import devices
from pets_core.training.devices import (
    check_devices,
    choose_device,
    count_ranks,
    resolve_precision,
)
from pets_core.training.sharding import sharding_plugin

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Mock a machine: the number of GPUs that torch sees, and whether an NVIDIA GPU exists."""

    def mock_machine(
        *, num_gpus=0, nvidia=False, mps=False, cuda="13.2", capability=(9, 0)
    ) -> None:
        if nvidia:
            # A container may have a GPU other than the first.
            (tmp_path / "nvidia3").touch()
        (tmp_path / "nvidiactl").touch()
        monkeypatch.setattr(devices, "_DEVICES", tmp_path)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: capability >= (8, 0)
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", cuda)

    return mock_machine


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"num_gpus": 2, "nvidia": True}, CUDA), ({"mps": True}, MPS), ({}, CPU)],
)
def test_gpu_is_chosen_if_there_is_one(machine, settings, expected):
    machine(**settings)
    assert choose_device(LaunchConfig()) == expected


def test_several_ranks_on_an_apple_machine_use_the_cpu(machine):
    machine(mps=True)
    assert choose_device(LaunchConfig(num_processes=1)) == MPS
    assert choose_device(LaunchConfig(num_processes=2)) == CPU


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("13.2", r"install driver 580 or newer for CUDA 13\.2"),
        ("12.8", r"install driver 525 or newer for CUDA 12\.8"),
        (None, r"this is a CPU-only build; install a CUDA build"),
    ],
)
def test_gpu_that_torch_cannot_use_is_an_error(machine, cuda, message):
    """With an old driver, a training would run on the CPU for days."""
    machine(nvidia=True, cuda=cuda)
    with pytest.raises(PetsError, match=message):
        choose_device(LaunchConfig())


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_not_an_error(machine, monkeypatch, hidden):
    machine(nvidia=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose_device(LaunchConfig()) == CPU


def test_missing_required_gpu_is_an_error(machine):
    machine()
    with pytest.raises(PetsError, match=r"launch\.require_gpu = true, but torch finds no GPU"):
        choose_device(LaunchConfig(require_gpu=True))


@pytest.mark.parametrize(
    ("device", "capability", "is_sharded", "expected"),
    [
        (CUDA, (9, 0), False, "bf16"),
        (CUDA, (7, 5), False, "fp16"),
        (CUDA, (7, 5), True, "no"),
        (CUDA, (6, 1), False, "no"),
        (MPS, (0, 0), False, "no"),
    ],
)
def test_auto_precision_follows_the_hardware(machine, device, capability, is_sharded, expected):
    machine(num_gpus=1, capability=capability)
    assert resolve_precision("auto", device, is_sharded=is_sharded) == expected


@pytest.mark.parametrize("device", [CPU, MPS])
def test_fp16_needs_an_nvidia_or_amd_gpu(device):
    with pytest.raises(PetsError, match=r"fp16 needs an NVIDIA or AMD GPU"):
        resolve_precision("fp16", device)


def check(device, *, launch=None, num_ranks=2, trains=True, **train):
    check_devices(
        LaunchConfig.model_validate(launch or {}), TrainConfig.model_validate(train), device,
        num_ranks=num_ranks, trains=trains,
    )  # fmt: skip


@pytest.mark.parametrize("trains", [True, False])
def test_more_ranks_than_gpus_are_refused(machine, trains):
    machine(num_gpus=2)
    with pytest.raises(PetsError, match=r"num_processes = 3, but this machine has 2 GPUs"):
        check(CUDA, launch={"num_processes": 3}, trains=trains)
    check(CUDA, launch={"num_processes": 2}, trains=trains)


def test_a_batch_smaller_than_the_number_of_ranks_is_refused():
    with pytest.raises(PetsError, match=r"train\.batch_size = 7 is less than the 8 processes"):
        check(CPU, num_ranks=8, batch_size=7)
    check(CPU, num_ranks=8, batch_size=8)
    check(CPU, num_ranks=8, batch_size=7, trains=False)


@pytest.mark.parametrize("device", [CPU, MPS])
def test_synchronised_batch_norm_needs_cuda(machine, device):
    machine(num_gpus=2)
    with pytest.raises(PetsError, match=r"batch_norm = sync works on NVIDIA and AMD GPUs only"):
        check(device, batch_norm="sync")
    check(CUDA, batch_norm="sync")


def test_a_sharded_model_needs_a_micro_batch_size_on_gpus(machine):
    machine(num_gpus=2)
    sharded = {"shard_model": True}
    with pytest.raises(PetsError, match=r"shard_model = true needs train\.micro_batch_size"):
        check(CUDA, launch=sharded)
    check(CUDA, launch=sharded, micro_batch_size=8)
    check(CUDA, launch=sharded, num_ranks=1)
    check(CPU, launch=sharded)


@pytest.mark.parametrize(
    ("device", "num_gpus", "num_rows", "warns"),
    [(CUDA, 8, 3000, True), (CUDA, 8, 2559, False), (CUDA, 2, 3000, False), (CPU, 8, 3000, False)],
)
def test_small_batch_per_gpu_is_a_warning(device, num_gpus, num_rows, warns):
    """But not with few photos, which need small batches."""
    warnings = []
    rank = SimpleNamespace(
        accelerator=SimpleNamespace(device=device, num_processes=num_gpus),
        request=SimpleNamespace(config=PipelineConfig(train={"batch_size": 64})),
        warn=warnings.append,
    )  # fmt: skip
    _warn_of_small_batches(rank, num_rows)
    expected = "train.batch_size = 64 gives each GPU 8 samples per step, .* set 256 or more"
    assert len(warnings) == warns
    assert all(re.search(expected, message) for message in warnings)


def test_weights_of_a_sharded_model_stay_fp32():
    """Accelerate calls this on GPUs only, so tests with CPU ranks do not cover it."""
    plugin = sharding_plugin()
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy()


@pytest.mark.parametrize(
    ("launch", "device", "expected"),
    [
        ({}, CUDA, 4),
        ({}, CPU, 1),
        ({"num_processes": 2, "num_machines": 3, "rdzv_endpoint": "host:1"}, CPU, 6),
    ],
)
def test_number_of_ranks_follows_gpus_and_machines(machine, launch, device, expected):
    machine(num_gpus=4)
    assert count_ranks(LaunchConfig.model_validate(launch), device) == expected
