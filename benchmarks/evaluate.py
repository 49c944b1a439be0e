"""Evaluation: throughput compared with fastai and the limit, and the cost of a large report.

    python benchmarks/evaluate.py [FOLDER] [--only photos report] [--size 160] [--precision no bf16]
                                  [--rows 100000] [--classes 1000]

**photos**: photos per second of our prediction of the test list (the stage's loader and
`predict_split`, median of three passes), of fastai's `get_preds` for the same photos and backbone
(better of two passes), and of the limit: our model on a batch in memory. Ours is printed with
decoding of the JPEGs, as in the first evaluation of a data set, and without, as in later ones.

**report**: evaluation of generated predictions, in a separate process: seconds, peak memory and
size of `report.html`. Once for test photos, with a tenth as many validation photos for temperature
and label errors; once for validation photos, which are all searched for label errors.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import peer

from pets_core.evaluation.predictions import VALID_PREDICTIONS, PredictionsInfo, write_predictions
from pets_core.records.base import Split
from pets_core.records.dataset import ClassInfo
from pets_core.targets.classes.target import CLASSES

ROUNDS = 3


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return photos per second of our prediction, with and without decoding, and of the limit."""
    import torch

    from pets_core.evaluation.predict import predict_split
    from pets_core.runtime.photo_rank import PhotoRank

    rank = PhotoRank(peer.request("predict", arguments))
    built = rank.model()
    built.model.eval().requires_grad_(False)
    start = time.perf_counter()
    photos = rank.photos("test", built.card)
    decoding = time.perf_counter() - start
    loader = rank.eval_loader(photos, built.card.center_crop())
    batch = next(iter(loader.epoch(0)))

    def limit() -> None:
        with torch.no_grad(), rank.accelerator.autocast():
            for _ in range(loader.num_batches):
                logits = built.model(batch.inputs)
        float(logits.sum())

    def predict() -> None:
        predict_split(built.model, loader, accelerator=rank.accelerator)

    limit()
    seconds = [(peer.timed(limit), peer.timed(predict)) for _ in range(ROUNDS)]
    in_memory, own = (float(value) for value in np.median(seconds, axis=0))
    return {
        "photos": len(photos),
        "limit": loader.num_batches * len(batch.inputs) / in_memory,
        "first": len(photos) / (decoding + own),
        "later": len(photos) / own,
    }


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return photos per second of the better of two calls of `get_preds`."""
    learner = peer.fastai_learner(arguments, evaluate_on="test", precision=arguments["precision"])

    def predict() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.get_preds()

    seconds = min(peer.timed(predict) for _ in range(2))
    return {"later": len(learner.dls.valid_ds) / seconds}


def report(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return seconds, peak memory and page size of an evaluation of stored predictions."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.targets.evaluate import evaluate, find_prediction_files

    run = Path(arguments["work"])
    config = PipelineConfig(store=str(run / "store"))
    before = _peak_gb()
    start = time.perf_counter()
    found = evaluate(config, str(run), find_prediction_files(arguments["predictions"]))
    return {
        "seconds": time.perf_counter() - start,
        "before_gb": before,
        "peak_gb": _peak_gb(),
        "page_mb": Path(found.file("report.html")).stat().st_size / 1e6,
        "error_rate": found.primary.value,
        "num_label_issues": found.num_label_issues,
    }


def _peak_gb() -> float:
    """Return the peak GB of this process; `getrusage` would include the parent before a fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024 / 1e9


def main() -> None:
    """Run the selected benchmarks and print the results."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=("photos", "report"),
                        default=["photos", "report"])  # fmt: skip
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"], help="no, bf16, fp16")
    parser.add_argument("--no-fastai", action="store_true", help="only ours and the limit")
    parser.add_argument("--rows", type=int, default=100_000, help="predictions in the report")
    parser.add_argument("--classes", type=int, default=1_000, help="classes in the report")
    peer.run(parser, _measure, ours=ours, fastai=fastai, report=report)


def _measure(options: argparse.Namespace, work: Path) -> None:
    if "photos" in options.only:
        for precision in options.precision:
            _compare(options, work / precision, precision)
    if "report" in options.only:
        _report(options, work)


def _compare(options: argparse.Namespace, work: Path, precision: str) -> None:
    work.mkdir()
    arguments = peer.arguments(options, work, mixed_precision=precision)
    arguments["precision"] = precision
    arguments["config"]["evaluate"]["batch_size"] = options.batch
    theirs = None if options.no_fastai else peer.run_side(__file__, "fastai", arguments)
    own = peer.run_side(__file__, "ours", arguments)
    limit, first, later = (own[key] for key in ("limit", "first", "later"))
    line = f"{precision:4s} {own['photos']} photos: limit {limit:6.1f}/s   ours {later:6.1f}/s "
    line += f"({later / limit:.2f}), with decoding {first:6.1f}/s ({first / limit:.2f})"
    if theirs:
        peers = theirs["later"]
        line += f"   fastai {peers:6.1f}/s (ours {later / peers:.1f} x, {first / peers:.1f} x)"
    print(line, flush=True)


def _report(options: argparse.Namespace, work: Path) -> None:
    for split in ("test", "valid"):
        predictions = work / split / "predictions.parquet"
        generate(predictions, split, options.rows, options.classes)
        if split == "test":
            generate(predictions.with_name(VALID_PREDICTIONS), "valid", options.rows // 10,
                 options.classes)  # fmt: skip
        arguments = {"work": str(work / f"run-{split}"), "predictions": str(predictions)}
        done = peer.run_side(__file__, "report", arguments)
        print(
            f"report of {options.rows:,} {split} predictions, {options.classes:,} classes: "
            f"{done['seconds']:.1f} s, {done['peak_gb']:.2f} GB peak memory "
            f"({done['before_gb']:.2f} GB after the imports), page {done['page_mb']:.2f} MB; "
            f"error rate {done['error_rate']:.3f}, {done['num_label_issues']} label issues",
            flush=True,
        )


def generate(path: Path, split: Split, rows: int, classes: int) -> None:
    """Store predictions of a simulated model that is correct in 90% of cases."""
    random = np.random.default_rng(0)
    names = tuple(
        ClassInfo(name=f"class {index:04d}", species=("cat", "dog")[index % 2])
        for index in range(classes)
    )
    targets = random.integers(0, classes, rows)
    logits = random.standard_normal((rows, classes), dtype=np.float32)
    # A class is confused with its neighbour, as similar breeds are.
    predicted = np.where(random.random(rows) < 0.9, targets, (targets + 1) % classes)
    logits[np.arange(rows), predicted] += 9
    info = PredictionsInfo(
        vocabulary=names, split=split, model_url="no-model", backbone="generated", image_size=224,
        dataset_url="no-data", dataset_name="generated", dataset_fingerprint="0" * 64,
    )  # fmt: skip
    ids = [f"photo-{split}-{index}" for index in range(rows)]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    write_predictions(str(path), CLASSES, info, ids, targets, probabilities)


if __name__ == "__main__":
    main()
