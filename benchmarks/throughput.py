"""Training photos per second of our training loop, of fastai and of the limit.

    python benchmarks/throughput.py [FOLDER] [--size 160] [--batch 64] [--photos 1280]
                                    [--precision no bf16] [--no-fastai] [--compile]

The limit is the same model, precision and optimizer on tensors in memory. Ours and the limit run
alternately in one process, three times; medians are printed. The first epoch of ours includes the
time to decode its photos. In our loop, batch norms are folded into the convolutions, also while
both are trained; in the limit, they are not. fastai runs two epochs in a separate process; the
better one is printed. Unfrozen epochs have a quarter of the photos.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import peer

ROUNDS = 3


def ours_and_limit(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return photos per second of our first and later epochs and of the limit, by phase."""
    import torch

    from pets_core.config.rates import RateSlice
    from pets_core.data.loading.decoded import DecodedPhotos
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.history import History
    from pets_core.training.loop import train_epoch
    from pets_core.training.prepared import prepare, release
    from pets_core.training.schedule import OneCycle

    rank = PhotoRank(peer.request("train", arguments))
    config = rank.config
    built = rank.model()
    start = time.perf_counter()
    photos = rank.photos("train", built.card)
    decoding = (time.perf_counter() - start) / len(photos)
    results: dict[str, Any] = {"decoded_per_second": 1 / decoding}
    for phase, first_group, count in (
        ("frozen", -1, arguments["photos"]),
        ("unfrozen", 0, arguments["photos"] // 4),
    ):
        rows = slice(0, min(count, len(photos)))
        some = DecodedPhotos(photos.pixels[rows], photos.targets[rows], photos.ids[rows])
        rank.photos = lambda split, card, some=some: some  # type: ignore[method-assign]
        loader = rank.train_loader(built)
        prepared = prepare(
            built.model, rank.objective(built), loader, config.train, rank.accelerator, first_group,
            RateSlice(1e-4, uniform=True),
        )  # fmt: skip
        batch = next(iter(loader.epoch(0)))

        def epoch(prepared: Any = prepared, loader: Any = loader) -> None:
            schedule = OneCycle(100 * loader.num_batches)
            train_epoch(prepared, loader, History(), schedule)

        plain = torch.nn.Sequential(built.model.body, built.model.head)
        if config.train.compile:
            plain.compile()

        def forward(inputs: torch.Tensor, plain: Any = plain) -> torch.Tensor:
            with rank.accelerator.autocast():
                return plain(inputs)

        def limit(
            prepared: Any = prepared,
            batch: Any = batch,
            loader: Any = loader,
            forward: Any = forward,
        ) -> None:
            for _ in range(loader.num_batches):
                logits = forward(batch.inputs)
                loss = torch.nn.functional.cross_entropy(logits, batch.targets)
                prepared.accelerator.backward(loss)
                prepared.optimizer.step()
                prepared.optimizer.zero_grad()
            float(loss)

        limit()
        seconds = [(peer.timed(limit), peer.timed(epoch)) for _ in range(ROUNDS)]
        in_memory = (
            loader.num_batches * len(batch.inputs) / float(np.median([s for s, _ in seconds]))
        )
        first = seconds[0][1] + decoding * len(some)
        results[phase] = {
            "limit": in_memory,
            "first": len(some) / first,
            "later": len(some) / float(np.median([own for _, own in seconds[1:]])),
        }
        release(prepared)
    return results


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return photos per second of fastai's better epoch of two, without validation."""
    from fastai.callback.core import Callback

    class TimeEpochs(Callback):
        def before_train(self) -> None:
            self.epoch_start = time.perf_counter()

        def after_train(self) -> None:
            self.epochs.append(time.perf_counter() - self.epoch_start)

    results = {}
    for phase, count in (("frozen", arguments["photos"]), ("unfrozen", arguments["photos"] // 4)):
        learner = peer.fastai_learner(
            arguments, evaluate_on="valid", precision=arguments["precision"], limit=count
        )
        if phase == "unfrozen":
            learner.unfreeze()
        timer = TimeEpochs()
        timer.epochs = []
        learner.add_cb(timer)
        # fastai drops the last, smaller batch.
        num_photos = count // arguments["batch"] * arguments["batch"]
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(2, 1e-4)
        results[phase] = num_photos / min(timer.epochs)
    return results


def main() -> None:
    """Measure all sides and print a table per precision."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--photos", type=int, default=1280, help="photos per frozen epoch")
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"], help="no, bf16, fp16")
    parser.add_argument("--backbone", default=peer.BACKBONE, help="any timm model with --no-fastai")
    parser.add_argument("--weights", default="auto", help="use none without access to the hub")
    parser.add_argument("--no-fastai", action="store_true", help="only ours and the limit")
    parser.add_argument("--compile", action="store_true", help="compile ours and the limit")
    peer.run(parser, _measure, ours=ours_and_limit, fastai=fastai)


def _measure(options: argparse.Namespace, work: Path) -> None:
    for precision in options.precision:
        _compare(options, work / precision, precision)


def _compare(options: argparse.Namespace, work: Path, precision: str) -> None:
    work.mkdir()
    arguments = peer.arguments(options, work, mixed_precision=precision, compile=options.compile)
    arguments |= {"photos": options.photos, "precision": precision}
    arguments["config"]["model"] |= {"backbone": options.backbone, "weights": options.weights}
    theirs = None if options.no_fastai else peer.run_side(__file__, "fastai", arguments)
    own = peer.run_side(__file__, "ours", arguments)
    print(f"{precision}: {own['decoded_per_second']:.0f} photos/s decoding, once")
    for phase in ("frozen", "unfrozen"):
        limit, first, later = (own[phase][key] for key in ("limit", "first", "later"))
        line = f"  {phase:9s} limit {limit:6.1f}   ours {first:6.1f} ({first / limit:.2f}), "
        line += f"later epochs {later:6.1f} ({later / limit:.2f})"
        if theirs:
            line += f"   fastai {theirs[phase]:6.1f} (ours {later / theirs[phase]:.1f} x)"
        print(line, flush=True)


if __name__ == "__main__":
    main()
