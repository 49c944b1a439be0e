"""What ranks, checkpoints and kills cost, each beside what it is compared with.

    python benchmarks/scaling.py [FOLDER] [--size 160] [--batch 64] [--photos 960]
                                 [--only ranks reduce checkpoints kill model]

ranks: photos a second of one rank, of two, and of two trainings that know nothing of each other and
take half the batch each (what the machine can do without communication), one thread each. reduce:
bytes that a step sends, and seconds of an all-reduce alone. checkpoints: what training waits for,
beside Accelerate's save_state. kill: a rank is killed while it trains; seconds until training is as
far as it was. model: nothing measured; what the volume that `ranks` measures means on GPUs.
benchmarks/overhead.py tells what Prefect costs.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
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
"""GB of gradients in fp32, and photos a second that one GPU is assumed to train on in bf16."""


def ranks(options: argparse.Namespace, work: Path) -> None:
    """Throughput of one rank, two ranks, and two trainings apart."""
    arguments = _arguments(options, work, freeze_epochs=2, epochs=2)
    one = _speeds([_request(arguments, "one", num_processes=1, num_threads=1)])
    sent = _loopback_bytes()
    two = _speeds([_request(arguments, "two", num_processes=2, num_threads=1)])
    sent = _loopback_bytes() - sent
    wide = _speeds([_request(arguments, "wide", num_processes=1, num_threads=2)])
    arguments["config"]["train"]["batch_size"] = options.batch // 2
    both = ("left", "right")
    apart = _speeds([_request(arguments, n, num_processes=1, num_threads=1) for n in both])
    for phase in ("frozen", "unfrozen"):
        print(
            f"ranks {phase:9s} 1 rank {one[phase]:6.1f} photos/s   2 ranks {two[phase]:6.1f} "
            f"({two[phase] / one[phase] / 2:.2f} of twice)   2 trainings apart {apart[phase]:6.1f} "
            f"(2 ranks: {two[phase] / apart[phase]:.2f} of it)   1 rank of 2 threads "
            f"{wide[phase]:6.1f}",
            flush=True,
        )
    num_bytes = _gradient_bytes(options)
    steps = 2 * -(-options.photos // options.batch)
    print(
        f"ranks sent {sent / steps / 1e6:.1f} MB in an unfrozen step of two, the gradients are "
        f"{num_bytes / 1e6:.1f} MB: {sent / steps / num_bytes:.2f} times that",
        flush=True,
    )


def _speeds(requests: list[WorkRequest]) -> dict[str, float]:
    """Photos a second of trainings that run at once, in each phase's second epoch, added up."""
    with ThreadPoolExecutor(len(requests)) as pool:
        results = list(pool.map(lambda request: launch(request, TrainResult), requests))
    return {
        phase: sum(result.epochs[number].photos_per_second for result in results)
        for phase, number in (("frozen", 1), ("unfrozen", 3))
    }


def _loopback_bytes() -> int:
    """Sent over this machine's loopback interface so far, in all."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (numbers,) = [line.split(":")[1] for line in lines if line.split(":")[0].strip() == "lo"]
    return int(numbers.split()[8])


def _gradient_bytes(options: argparse.Namespace) -> int:
    from pets_core.models.backbones import create_body

    body = create_body(peer.BACKBONE, "none", options.size)
    return 4 * sum(parameter.numel() for parameter in body.parameters())


def reduce(options: argparse.Namespace, work: Path) -> None:
    """Seconds of an all-reduce of all gradients, over gloo on loopback."""
    from torch import multiprocessing

    num_bytes = _gradient_bytes(options)
    for world_size in (2, 4):
        file = work / f"reduced-{world_size}"
        multiprocessing.spawn(
            _reduce, (world_size, num_bytes, _free_port(), str(file)), nprocs=world_size
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
        began = time.perf_counter()
        distributed.all_reduce(gradients)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        Path(file).write_text(str(statistics.median(seconds)))
    distributed.barrier()
    distributed.destroy_process_group()


def checkpoints(options: argparse.Namespace, work: Path) -> None:
    """What training waits for, and how long a checkpoint takes to write."""
    arguments = _arguments(options, work, freeze_epochs=0, epochs=2)
    found = peer.run_side(__file__, "checkpoints", arguments | {"run": str(work / "checkpoints")})
    print(
        f"checkpoints {found['bytes'] / 1e6:.0f} MB: training waits {1e3 * found['copy']:.1f} ms, "
        f"written in {1e3 * found['write']:.0f} ms   Accelerate's save_state: training waits "
        f"{1e3 * found['save_state']:.0f} ms ({found['save_state'] / found['copy']:.0f} x)\n"
        f"checkpoints whenever the writer is idle: {1e3 * found['often']:.0f} ms a step, without "
        f"{1e3 * found['never']:.0f} ms (ratio {found['often'] / found['never']:.3f})",
        flush=True,
    )


def measure_checkpoints(arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each part, in one rank."""
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.checkpoint import Checkpoints, Snapshot
    from pets_core.training.loop import fit
    from pets_core.training.schedule import fine_tune_phases
    from pets_core.training.state import TrainState

    rank = PhotoRank(peer.request("train", arguments))
    built = rank.model()
    loader = rank.train_loader(built)
    times: dict[str, list[float]] = {"copy": [], "write": []}
    kept: list[tuple[TrainState, Any, Snapshot]] = []
    steps = {}
    snapshot, write = TrainState.snapshot, Checkpoints._write

    def timed_snapshot(state: TrainState, optimizer: Any, seconds: float) -> Snapshot:
        began = time.perf_counter()
        taken = snapshot(state, optimizer, seconds)
        times["copy"].append(time.perf_counter() - began)
        kept[:] = [(state, optimizer, taken)]
        return taken

    def timed_write(self: Checkpoints, taken: Snapshot) -> None:
        began = time.perf_counter()
        write(self, taken)
        times["write"].append(time.perf_counter() - began)

    TrainState.snapshot, Checkpoints._write = timed_snapshot, timed_write  # type: ignore[method-assign]
    for name, interval in (("never", 10**6), ("often", 1)):
        config = rank.config.train.model_copy(
            update={"checkpoint_steps": interval, "checkpoint_seconds": 0}
        )
        store = Checkpoints(f"{arguments['run']}/{name}", {})
        history = fit(
            built.model, rank.objective(built), loader, None,
            fine_tune_phases(config, 1e-3), config,
            accelerator=rank.accelerator, checkpoints=store,
        )  # fmt: skip
        store.wait()
        steps[name] = history.epochs[1].seconds / loader.num_batches
    state, optimizer, taken = kept[0]
    prepared = rank.accelerator.prepare(state.model, optimizer)
    began = time.perf_counter()
    rank.accelerator.save_state(f"{arguments['run']}/accelerate")
    save_state = time.perf_counter() - began
    del prepared
    medians = {name: statistics.median(found) for name, found in times.items()}
    num_bytes = sum(tensor.nbytes for tensor in taken.tensors.values())
    return {**medians, **steps, "save_state": save_state, "bytes": num_bytes}


def kill(options: argparse.Namespace, work: Path) -> None:
    """A rank killed in the middle of training: seconds until training is as far as it was."""
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
        ended = time.monotonic()
        step, killed_at = max(watch.times.items())
        again = _Watch(step, rank=False)
        with suppress(WorkerError):
            launch(request, TrainResult, on_progress=again)
        first, first_at = min(again.times.items())
        begun, begun_at = min(watch.times.items())
        pace = (killed_at - begun_at) / (step - begun)
        print(
            f"kill of a rank after step {step}, checkpoints every {interval} "
            f"({interval * pace:.0f} s): all ranks gone {ended - killed_at:.1f} s later; next "
            f"attempt at step {first} {first_at - killed_at:.1f} s later, as far as before "
            f"{max(again.times.values()) - killed_at:.1f} s later",
            flush=True,
        )


def model(options: argparse.Namespace, work: Path) -> None:
    """Share of the ideal speed that N GPUs reach: with reduction after, or during, the backward."""
    del options, work
    for name, (gigabytes, speed) in ASSUMED_SPEEDS.items():
        computing = PHOTOS_A_GPU / speed
        print(f"model: {name}, {gigabytes} GB of gradients, {speed} photos/s of a GPU assumed")
        for gigabits in (25, 100, 400):
            row = []
            for num_gpus in (8, 16, 32, 64):
                seconds = _reduction_seconds(gigabytes, num_gpus, gigabits / 8)
                # The backward pass takes two thirds of a step.
                exposed = max(seconds - computing * 2 / 3, 0)
                shares = (computing / (computing + waited) for waited in (seconds, exposed))
                row.append(f"{num_gpus} GPUs {' to '.join(f'{share:.2f}' for share in shares)}")
            print(f"model: {gigabits:3d} Gbit/s between machines: {', '.join(row)}")


def _reduction_seconds(gigabytes: float, num_gpus: int, between: float) -> float:
    """Ring all-reduce in a machine, then between machines (Patarasu and Yuan 2009)."""
    inside, machines = min(num_gpus, GPUS_A_MACHINE), max(num_gpus // GPUS_A_MACHINE, 1)
    seconds = 2 * (inside - 1) / inside * gigabytes / NVLINK_GB_PER_SECOND
    return seconds + 2 * (machines - 1) / machines * gigabytes / between


class _Watch:
    """Notes when each step was told of, and ends the training after one.

    Args:
        last_step: The one.
        rank: Kill one rank; else the launcher, and with it all.
    """

    def __init__(self, last_step: int, *, rank: bool) -> None:
        self.times: dict[int, float] = {}
        self._last_step, self._rank, self._over = last_step, rank, False

    def __call__(self, progress: Progress) -> None:
        if (progress.stage, progress.unit) != ("train", "steps") or self._over:
            return
        self.times[progress.done] = time.monotonic()
        if progress.done >= self._last_step:
            self._over = True
            _, launcher, *ranks = _below(os.getpid())
            os.kill(ranks[-1] if self._rank else launcher, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    """The processes below one: its fork server, the launcher, the ranks."""
    lists = sorted(Path("/proc").glob(f"{pid}/task/*/children"))
    children = [int(child) for file in lists for child in file.read_text().split()]
    return [found for child in children for found in (child, *_below(child))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _arguments(options: argparse.Namespace, work: Path, **train: Any) -> dict[str, Any]:
    """What `peer.request` asks for: a training on a part of the photos."""
    settings = {"batch_size": options.batch, "mixed_precision": "no"} | train
    config = peer.prepare_photos(options.source, work, limit=options.photos, **settings)
    values = config.model_dump(mode="json")
    values["model"] |= {"image_size": options.size, "backbone": peer.BACKBONE}
    values["train"]["base_lr"] = 1e-3
    return {"work": str(work), "config": values}


def _request(arguments: dict[str, Any], name: str, **launching: Any) -> WorkRequest:
    request = peer.request("train", arguments)
    launching = request.config.launch.model_copy(update=launching)
    return request.model_copy(
        update={
            "config": request.config.model_copy(update={"launch": launching}),
            "run_url": f"{arguments['work']}/run-{name}",
        }
    )


def main() -> None:
    """Measure what is asked for."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--photos", type=int, default=960, help="to train on")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    options = peer.parse(parser, checkpoints=measure_checkpoints)
    if options is None:
        return
    for section in options.only:
        with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
            globals()[section](options, Path(name))


if __name__ == "__main__":
    main()
