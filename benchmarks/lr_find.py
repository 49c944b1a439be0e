"""Seconds of a learning-rate sweep of 100 steps, ours against fastai's, frozen body.

    python benchmarks/lr_find.py [FOLDER] [--size 160] [--batch 64] [--steps 100]

Both sweep from 1e-7 to 10 over the same photos, and are not stopped where the loss diverges; ours
decodes its photos first, which is counted. Each runs in a process of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import peer


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the finder with model and decoded photos at hand, and of decoding them."""
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training import lr_finder

    lr_finder._DIVERGED = float("inf")
    rank = PhotoRank(peer.request("lr-find", arguments))
    config = rank.config
    built = rank.model()
    began = time.perf_counter()
    loader = rank.train_loader(built)
    decoded = time.perf_counter()
    curve = lr_finder.lr_find(
        built.model, rank.objective(built), loader, config.lr_find, config.train,
        accelerator=rank.accelerator,
    )  # fmt: skip
    ended = time.perf_counter()
    return {"steps": len(curve.losses), "seconds": ended - began, "decoding": decoded - began}


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `learn.lr_find()`."""
    learner = peer.fastai_learner(
        Path(arguments["work"]), arguments["size"], arguments["batch"], "no", judge_on="valid"
    )
    began = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.lr_find(num_it=arguments["steps"], stop_div=False, show_plot=False)
    seconds = time.perf_counter() - began
    return {"steps": len(learner.recorder.losses), "seconds": seconds}


def main() -> None:
    """Measure both and print them."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    options = peer.parse(parser, ours=ours, fastai=fastai)
    if options is None:
        return
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        values = peer.prepare_photos(
            options.source, Path(name), batch_size=options.batch, mixed_precision="no"
        ).model_dump(mode="json")
        values["model"]["image_size"] = options.size
        values["lr_find"] |= {"start_lr": 1e-7, "end_lr": 10, "num_steps": options.steps}
        arguments = {
            "work": name, "config": values, "size": options.size, "batch": options.batch,
            "steps": options.steps,
        }  # fmt: skip
        theirs = peer.run_side(__file__, "fastai", arguments)
        own = peer.run_side(__file__, "ours", arguments)
    assert own["steps"] == theirs["steps"], (own, theirs)
    print(
        f"{own['steps']} steps: ours {own['seconds']:.1f} s (decoding {own['decoding']:.1f} s), "
        f"fastai {theirs['seconds']:.1f} s, {theirs['seconds'] / own['seconds']:.1f} times as long"
    )


if __name__ == "__main__":
    main()
