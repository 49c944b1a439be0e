"""Seconds and suggestions of a learning-rate range test of 100 steps, ours and fastai's.

    python benchmarks/lr_find.py [FOLDER] [--size 160] [--batch 64] [--steps 100]

All raise the rate from 1e-7 to 10 on the same photos and do not stop when the loss diverges. Ours
runs on features, which are computed first; again on the cached features; and with the whole model
on augmented photos, as fastai does. The seconds of ours include decoding the photos the first time.
Each side runs in a separate process.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import peer


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of the LR finder with its input, and its suggestion `steepest`."""
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training import lr_finder

    lr_finder._DIVERGED = float("inf")
    rank = PhotoRank(peer.request("lr-find", arguments))
    config = rank.config
    built = rank.model()
    start = time.perf_counter()
    model, loader = rank.finder_inputs(built)
    curve = lr_finder.lr_find(
        model, rank.objective(built), loader, config.lr_find, config.train,
        accelerator=rank.accelerator,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    steepest = lr_finder.read_suggestions(curve, config.lr_find).steepest
    return {"steps": len(curve.losses), "seconds": seconds, "steepest": steepest}


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of `learn.lr_find()`."""
    learner = peer.fastai_learner(arguments, evaluate_on="valid")
    start = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.lr_find(num_it=arguments["steps"], stop_div=False, show_plot=False)
    seconds = time.perf_counter() - start
    return {"steps": len(learner.recorder.losses), "seconds": seconds}


def main() -> None:
    """Measure all sides and print their seconds."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    peer.run(parser, _measure, ours=ours, fastai=fastai)


def _measure(options: argparse.Namespace, work: Path) -> None:
    arguments = peer.arguments(options, work, mixed_precision="no")
    arguments["steps"] = options.steps
    settings = arguments["config"]["lr_find"]
    settings |= {"start_lr": 1e-7, "end_lr": 10, "num_steps": options.steps}
    theirs = peer.run_side(__file__, "fastai", arguments)
    for name in ("on features", "on cached features", "with the whole model"):
        settings["on_features"] = name != "with the whole model"
        own = peer.run_side(__file__, "ours", arguments)
        assert own["steps"] == theirs["steps"], (own, theirs)
        print(
            f"{name}: {own['steps']} steps in {own['seconds']:.1f} s, steepest "
            f"{own['steepest']:.2e}; fastai {theirs['seconds']:.1f} s, "
            f"{theirs['seconds'] / own['seconds']:.1f} times as long"
        )


if __name__ == "__main__":
    main()
