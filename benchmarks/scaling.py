"""Cost of ranks, checkpoints and kills, each with a reference for comparison.

    python benchmarks/scaling.py [FOLDER] [--size 160] [--batch 64] [--photos 960]
                                 [--only ranks reduce checkpoints kill model]

ranks: photos per second of one rank, of two, and of two independent trainings with half the batch
each (the limit of the machine without communication), one thread each; bytes sent per step. reduce:
seconds of an all-reduce alone. checkpoints: seconds that training waits, compared with Accelerate's
save_state. kill: a rank is killed during training; seconds until training reaches the same step.
model: not measured; speed on GPUs computed from the volume of the gradients. The overhead of
Prefect is measured by benchmarks/overhead.py.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import peer

from pets_core.progress import Progress
from pets_core.records.training import TrainResult
from pets_core.runtime.failures import WorkerError
from pets_core.runtime.launcher import launch
from pets_core.runtime.request import WorkRequest

SECTIONS = ("ranks", "reduce", "checkpoints", "kill", "model")
GPUS_A_MACHINE = 8
PHOTOS_A_GPU, NVLINK_GB_PER_SECOND = 64, 200
ASSUMED_SPEEDS = {"resnet50": (0.102, 2500), "vit_base": (0.346, 1000)}
"""GB of fp32 gradients, and assumed photos per second of one GPU that trains in bf16."""


def ranks(options: argparse.Namespace, work: Path) -> None:
    """Print the throughput of one rank, two ranks and two independent trainings."""
    arguments = _arguments(options, work, freeze_epochs=2, epochs=2, frozen_on_features=False)
    one = _speeds([_request(arguments, "one", num_processes=1, num_threads=1)])
    sent = _loopback_bytes()
    two = _speeds([_request(arguments, "two", num_processes=2, num_threads=1)])
    sent = _loopback_bytes() - sent
    wide = _speeds([_request(arguments, "wide", num_processes=1, num_threads=2)])
    arguments["config"]["train"]["batch_size"] = options.batch // 2
    names = ("left", "right")
    independent = _speeds([_request(arguments, n, num_processes=1, num_threads=1) for n in names])
    for phase in ("frozen", "unfrozen"):
        print(
            f"ranks {phase:9s} 1 rank {one[phase]:6.1f} photos/s   2 ranks {two[phase]:6.1f} "
            f"({two[phase] / one[phase] / 2:.2f} of twice)   2 independent trainings "
            f"{independent[phase]:6.1f} (2 ranks: {two[phase] / independent[phase]:.2f} of it)   "
            f"1 rank of 2 threads {wide[phase]:6.1f}",
            flush=True,
        )
    num_bytes = _gradient_bytes(options)
    steps = 2 * -(-options.photos // options.batch)
    print(
        f"ranks: two sent {sent / steps / 1e6:.1f} MB per unfrozen step, "
        f"{sent / steps / num_bytes:.2f} times the {num_bytes / 1e6:.1f} MB of gradients",
        flush=True,
    )


def _speeds(requests: list[WorkRequest]) -> dict[str, float]:
    """Return the total photos per second of concurrent trainings, in each phase's second epoch."""
    with ThreadPoolExecutor(len(requests)) as pool:
        results = list(pool.map(lambda request: launch(request, TrainResult), requests))
    return {
        phase: sum(result.epochs[number].photos_per_second for result in results)
        for phase, number in (("frozen", 1), ("unfrozen", 3))
    }


def _loopback_bytes() -> int:
    """Return the total bytes sent over the loopback interface so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (counters,) = [line.split(":")[1] for line in lines if line.split(":")[0].strip() == "lo"]
    return int(counters.split()[8])


def _gradient_bytes(options: argparse.Namespace) -> int:
    from pets_core.models.backbones import create_body

    body = create_body(peer.BACKBONE, "none", options.size)
    return 4 * sum(parameter.numel() for parameter in body.parameters())


def reduce(options: argparse.Namespace, work: Path) -> None:
    """Print the seconds of an all-reduce of all gradients, with gloo on loopback."""
    from torch import multiprocessing

    num_bytes = _gradient_bytes(options)
    for world_size in (2, 4):
        file = work / f"reduced-{world_size}"
        multiprocessing.spawn(
            _reduce, (world_size, num_bytes, peer.free_port(), str(file)), nprocs=world_size
        )
        seconds = float(file.read_text())
        volume = 2 * (world_size - 1) / world_size * num_bytes
        print(
            f"reduce {world_size} ranks: {num_bytes / 1e6:.1f} MB in {1e3 * seconds:.1f} ms, "
            f"each rank sends {volume / 1e6:.1f} MB: {volume / seconds / 1e9:.2f} GB/s",
            flush=True,
        )


def _reduce(rank: int, world_size: int, num_bytes: int, port: int, file: str) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    gradients = torch.zeros(num_bytes // 4)
    seconds = []
    for _ in range(20):
        distributed.barrier()
        start = time.perf_counter()
        distributed.all_reduce(gradients)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        Path(file).write_text(str(statistics.median(seconds)))
    distributed.barrier()
    distributed.destroy_process_group()


def checkpoints(options: argparse.Namespace, work: Path) -> None:
    """Print how long training waits for a checkpoint, and how long writing takes."""
    arguments = _arguments(options, work, freeze_epochs=0, epochs=2)
    found = peer.run_side(__file__, "checkpoints", arguments | {"run": str(work / "checkpoints")})
    print(
        f"checkpoints {found['bytes'] / 1e6:.0f} MB: training waits {1e3 * found['copy']:.1f} ms, "
        f"written in {1e3 * found['write']:.0f} ms   Accelerate's save_state: training waits "
        f"{1e3 * found['save_state']:.0f} ms ({found['save_state'] / found['copy']:.0f} x)\n"
        f"checkpoints whenever the writer is idle: {1e3 * found['often']:.0f} ms per step, without "
        f"{1e3 * found['never']:.0f} ms (ratio {found['often'] / found['never']:.3f})",
        flush=True,
    )


def measure_checkpoints(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of each part, in one rank."""
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.checkpoint import Checkpoints, Snapshot
    from pets_core.training.loop import fit
    from pets_core.training.schedule import fine_tune_phases
    from pets_core.training.state import TrainState

    rank = PhotoRank(peer.request("train", arguments))
    built = rank.model()
    loader = rank.train_loader(built)
    times: dict[str, list[float]] = {"copy": [], "write": []}
    last: list[tuple[TrainState, Any, Snapshot]] = []
    steps = {}
    snapshot, write = TrainState.snapshot, Checkpoints._write

    def timed_snapshot(state: TrainState, optimizer: Any, seconds: float) -> Snapshot:
        start = time.perf_counter()
        result = snapshot(state, optimizer, seconds)
        times["copy"].append(time.perf_counter() - start)
        last[:] = [(state, optimizer, result)]
        return result

    def timed_write(self: Checkpoints, snapshot: Snapshot) -> None:
        start = time.perf_counter()
        write(self, snapshot)
        times["write"].append(time.perf_counter() - start)

    TrainState.snapshot, Checkpoints._write = timed_snapshot, timed_write  # type: ignore[method-assign]
    for name, interval in (("never", 10**6), ("often", 1)):
        config = rank.config.train.model_copy(
            update={"checkpoint_steps": interval, "checkpoint_seconds": 0}
        )
        store = Checkpoints(f"{arguments['run']}/{name}", {})
        history = fit(
            built.model, rank.objective(built), loader, None,
            fine_tune_phases(config, 1e-3, len(built.model.layer_groups())), config,
            accelerator=rank.accelerator, checkpoints=store,
        )  # fmt: skip
        store.wait()
        steps[name] = history.epochs[1].seconds / loader.num_batches
    state, optimizer, last_snapshot = last[0]
    prepared = rank.accelerator.prepare(state.model, optimizer)
    start = time.perf_counter()
    rank.accelerator.save_state(f"{arguments['run']}/accelerate")
    save_state = time.perf_counter() - start
    del prepared
    medians = {name: statistics.median(found) for name, found in times.items()}
    num_bytes = sum(tensor.nbytes for tensor in last_snapshot.tensors.values())
    return {**medians, **steps, "save_state": save_state, "bytes": num_bytes}


def kill(options: argparse.Namespace, work: Path) -> None:
    """Kill a rank during training and print the seconds until training reaches the same step."""
    for interval in (5, 20):
        folder = work / f"every-{interval}"
        folder.mkdir()
        arguments = _arguments(
            options,
            folder,
            freeze_epochs=0,
            epochs=50,
            checkpoint_steps=interval,
            checkpoint_seconds=0,
        )
        request = _request(arguments, "killed", num_processes=2, num_threads=1)
        watch = _Watch(2 * interval + interval // 2, rank=True)
        with suppress(WorkerError):
            launch(request, TrainResult, on_progress=watch)
        end = time.monotonic()
        step, killed_at = max(watch.times.items())
        next_watch = _Watch(step, rank=False)
        with suppress(WorkerError):
            launch(request, TrainResult, on_progress=next_watch)
        first, first_at = min(next_watch.times.items())
        first_seen, first_seen_at = min(watch.times.items())
        pace = (killed_at - first_seen_at) / (step - first_seen)
        print(
            f"kill of a rank after step {step}, checkpoints every {interval} "
            f"({interval * pace:.0f} s): all ranks ended {end - killed_at:.1f} s later; next "
            f"attempt at step {first} {first_at - killed_at:.1f} s later, same step reached "
            f"{max(next_watch.times.values()) - killed_at:.1f} s later",
            flush=True,
        )


def model(options: argparse.Namespace, work: Path) -> None:
    """Print the share of the ideal speed of N GPUs, without and with overlap of the reduction."""
    del options, work
    for name, (gigabytes, speed) in ASSUMED_SPEEDS.items():
        computing = PHOTOS_A_GPU / speed
        print(f"model: {name}, {gigabytes} GB of gradients, assumed {speed} photos/s per GPU")
        for gigabits in (25, 100, 400):
            row = []
            for num_gpus in (8, 16, 32, 64):
                seconds = _reduction_seconds(gigabytes, num_gpus, gigabits / 8)
                # The backward pass takes two thirds of a step.
                exposed = max(seconds - computing * 2 / 3, 0)
                shares = (computing / (computing + wait) for wait in (seconds, exposed))
                row.append(f"{num_gpus} GPUs {' to '.join(f'{share:.2f}' for share in shares)}")
            print(f"model: {gigabits:3d} Gbit/s between machines: {', '.join(row)}")


def _reduction_seconds(gigabytes: float, num_gpus: int, between: float) -> float:
    """Return seconds of a ring all-reduce in, then between machines (Patarasu and Yuan 2009)."""
    inside, machines = min(num_gpus, GPUS_A_MACHINE), max(num_gpus // GPUS_A_MACHINE, 1)
    seconds = 2 * (inside - 1) / inside * gigabytes / NVLINK_GB_PER_SECOND
    return seconds + 2 * (machines - 1) / machines * gigabytes / between


class _Watch:
    """Progress callback that records the time of each step and kills a process after one.

    Args:
        last_step: Step after which to kill.
        rank: Kill one rank; otherwise the launcher, which ends all ranks.
    """

    def __init__(self, last_step: int, *, rank: bool) -> None:
        self.times: dict[int, float] = {}
        self._last_step, self._rank, self._has_killed = last_step, rank, False

    def __call__(self, progress: Progress) -> None:
        if (progress.stage, progress.unit) != ("train", "steps") or self._has_killed:
            return
        self.times[progress.done] = time.monotonic()
        if progress.done >= self._last_step:
            self._has_killed = True
            _, launcher, *ranks = _descendants(os.getpid())
            os.kill(ranks[-1] if self._rank else launcher, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return the descendants of a process: its fork server, the launcher, the ranks."""
    lists = sorted(Path("/proc").glob(f"{pid}/task/*/children"))
    children = [int(child) for file in lists for child in file.read_text().split()]
    return [found for child in children for found in (child, *_descendants(child))]


def _arguments(options: argparse.Namespace, work: Path, **train: Any) -> dict[str, Any]:
    """Return the arguments of `peer.request` for a training on a part of the photos."""
    arguments = peer.arguments(options, work, limit=options.photos, mixed_precision="no", **train)
    arguments["config"]["model"]["backbone"] = peer.BACKBONE
    arguments["config"]["train"]["base_lr"] = 1e-3
    return arguments


def _request(arguments: dict[str, Any], name: str, **launch_settings: Any) -> WorkRequest:
    request = peer.request("train", arguments)
    launch_config = request.config.launch.model_copy(update=launch_settings)
    return request.model_copy(
        update={
            "config": request.config.model_copy(update={"launch": launch_config}),
            "run_url": f"{arguments['work']}/run-{name}",
        }
    )


def main() -> None:
    """Run the selected sections."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--photos", type=int, default=960, help="photos to train on")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    peer.run(parser, _measure, checkpoints=measure_checkpoints)


def _measure(options: argparse.Namespace, work: Path) -> None:
    for section in options.only:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            globals()[section](options, Path(folder))


if __name__ == "__main__":
    main()
