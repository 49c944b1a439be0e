"""Compare error rate and duration of fine-tuning with fastai, on the listed test photos.

    python benchmarks/accuracy.py [FOLDER] [--size 160] [--epochs 2] [--seeds 3]
    python benchmarks/accuracy.py --no-fastai --size 224 --freeze-epochs 3 --epochs 12
                                  --set "train.lr_max=slice(1e-5, 1e-3)" --seeds 1 [--held-out]

`fine_tune(2, 3e-3)` means one frozen and two unfrozen epochs. Both sides train on the same photos
with their own defaults. Seconds are those of training, with validation after each epoch; ours
include decoding the photos for the first seed. --held-out evaluates on photos held out of trainval,
to choose settings: the last 30% of each breed's numbers, since neighbouring numbers are often one
animal.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import peer
import yaml


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate as `pets train` and `pets evaluate` do."""
    from pets_core.records.inference import PredictResult
    from pets_core.records.training import TrainResult
    from pets_core.runtime import worker
    from pets_core.targets.evaluate import evaluate

    request = peer.request("train", arguments)
    start = time.perf_counter()
    trained = worker.run(request)
    seconds = time.perf_counter() - start
    assert isinstance(trained, TrainResult)
    prediction = peer.request("predict", arguments)
    predicted = worker.run(prediction.model_copy(update={"model_url": trained.model_url}))
    assert isinstance(predicted, PredictResult)
    report = evaluate(request.config, request.run_url, predicted)
    curve = [(epoch.train_loss, epoch.valid_loss, epoch.valid_metric) for epoch in trained.epochs]
    return {"error": report.primary.value, "seconds": seconds, "curve": curve}


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train with `fine_tune` and evaluate on the same photos."""
    from fastai.torch_core import set_seed

    train = arguments["config"]["train"]
    set_seed(train["seed"])
    learner = peer.fastai_learner(arguments, evaluate_on="test")
    start = time.perf_counter()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(train["epochs"], train["base_lr"], freeze_epochs=train["freeze_epochs"])
    seconds = time.perf_counter() - start
    return {"error": float(learner.recorder.values[-1][-1]), "seconds": seconds, "curve": []}


def main() -> None:
    """Train with each seed on both sides and print the errors."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of trainings")
    parser.add_argument("--freeze-epochs", type=int, default=1, help="frozen epochs")
    parser.add_argument("--epochs", type=int, default=2, help="unfrozen epochs")
    parser.add_argument("--base-lr", type=float, default=3e-3)
    parser.add_argument("--set", nargs="*", default=[], metavar="GROUP.NAME=VALUE", help="for ours")
    parser.add_argument("--backbone", default=peer.BACKBONE, help="for ours")
    parser.add_argument("--held-out", action="store_true", help="evaluate on photos of trainval")
    parser.add_argument("--no-fastai", action="store_true")
    peer.run(parser, _compare, ours=ours, fastai=fastai)


def _compare(options: argparse.Namespace, work: Path) -> None:
    arguments = peer.arguments(
        options, work, held_out=options.held_out, freeze_epochs=options.freeze_epochs,
        epochs=options.epochs, base_lr=options.base_lr,
    )  # fmt: skip
    values = arguments["config"]
    values["model"]["backbone"] = options.backbone
    for setting in options.set:
        name, value = setting.split("=", 1)
        if name == "train.seed":
            raise SystemExit("--set train.seed: use --seeds")
        group, field = name.split(".")
        values[group][field] = yaml.safe_load(value)
    sides = ["ours"] if options.no_fastai or options.held_out else ["ours", "fastai"]
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(options.seeds):
        values["train"]["seed"] = seed
        for side in sides:
            result = peer.run_side(__file__, side, arguments)
            results[side].append(result)
            print(
                f"seed {seed} {side}: {result['error']:.2%} in {result['seconds']:.0f} s",
                flush=True,
            )
            for number, (train_loss, valid_loss, error) in enumerate(result["curve"]):
                valid = f"valid {valid_loss:.4f}, {error:.2%}" if valid_loss is not None else ""
                print(f"    epoch {number}: train {train_loss:.4f} {valid}", flush=True)
    for side, found in results.items():
        errors = [result["error"] for result in found]
        spread = f" +- {statistics.stdev(errors):.2%}" if len(errors) > 1 else ""
        seconds = statistics.mean(result["seconds"] for result in found)
        print(f"{side}: error {statistics.mean(errors):.2%}{spread}, {seconds:.0f} s")
    if "fastai" in results:
        ratio = statistics.mean(
            theirs["seconds"] / own["seconds"]
            for own, theirs in zip(results["ours"], results["fastai"], strict=True)
        )
        print(f"fastai takes {ratio:.1f} times as long")


if __name__ == "__main__":
    main()
