"""Evaluation: photos a second beside fastai and the limit, and what a large report costs.

    python benchmarks/evaluate.py [FOLDER] [--only photos report] [--size 160] [--precision no bf16]
                                  [--rows 100000] [--classes 1000]

**photos**: our prediction of the test list (the stage's own loader and `predict_split`) against
fastai's `get_preds` of the same photos with the same backbone, better of two passes each, and
against the limit: our model on a batch that is in memory. Ours is told once with decoding the
JPEGs, as the first evaluation of a data set pays it, and once without, as every later one.

**report**: `review` of drawn predictions, in a process of its own: seconds, the process's peak of
memory, and the size of `report.html`. Once of test photos, with a tenth as many validation photos
besides, for temperature and label errors; once of validation photos, in all of which label errors
are looked for.
"""

from __future__ import annotations

import argparse
import tempfile
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
    """Photos a second of our prediction, with and without decoding, and of the limit."""
    import torch

    from pets_core.evaluation.predict import predict_split
    from pets_core.runtime.photo_rank import PhotoRank

    rank = PhotoRank(peer.request("predict", arguments))
    built = rank.model()
    built.model.eval().requires_grad_(False)
    began = time.perf_counter()
    photos = rank.photos("test", built.card)
    decoding = time.perf_counter() - began
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
    """Photos a second of the better of two calls of `get_preds`."""
    learner = peer.fastai_learner(
        Path(arguments["work"]), arguments["size"], arguments["batch"], arguments["precision"],
        judge_on="test",
    )  # fmt: skip

    def predict() -> None:
        with learner.no_bar(), learner.no_logging():
            learner.get_preds()

    seconds = min(peer.timed(predict) for _ in range(2))
    return {"later": len(learner.dls.valid_ds) / seconds}


def report(arguments: dict[str, Any]) -> dict[str, Any]:
    """Seconds, peak of memory and size of the page for predictions that are stored already."""
    from pets_core.config.pipeline import PipelineConfig
    from pets_core.targets.evaluate import evaluate, find_prediction_files

    run = Path(arguments["work"])
    config = PipelineConfig(store=str(run / "store"))
    before = _peak_gb()
    began = time.perf_counter()
    found = evaluate(config, str(run), find_prediction_files(arguments["predictions"]))
    return {
        "seconds": time.perf_counter() - began,
        "before_gb": before,
        "peak_gb": _peak_gb(),
        "page_mb": Path(found.file("report.html")).stat().st_size / 1e6,
        "error_rate": found.primary.value,
        "num_label_issues": found.num_label_issues,
    }


def _peak_gb() -> float:
    """Of this process alone: `getrusage` counts what it was forked from, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024 / 1e9


def main() -> None:
    """Measure what is asked for and print it."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=("photos", "report"),
                        default=["photos", "report"])  # fmt: skip
    parser.add_argument("--precision", nargs="+", default=["no", "bf16"], help="no, bf16, fp16")
    parser.add_argument("--no-fastai", action="store_true", help="ours and the limit alone")
    parser.add_argument("--rows", type=int, default=100_000, help="predictions of the report")
    parser.add_argument("--classes", type=int, default=1_000, help="their classes")
    options = peer.parse(parser, ours=ours, fastai=fastai, report=report)
    if options is None:
        return
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        if "photos" in options.only:
            for precision in options.precision:
                _compare(options, Path(name) / precision, precision)
        if "report" in options.only:
            _report(options, Path(name))


def _compare(options: argparse.Namespace, work: Path, precision: str) -> None:
    work.mkdir()
    values = peer.prepare_photos(
        options.source, work, batch_size=options.batch, mixed_precision=precision
    ).model_dump(mode="json")
    values["model"]["image_size"] = options.size
    values["evaluate"]["batch_size"] = options.batch
    arguments = {
        "work": str(work), "config": values, "size": options.size, "batch": options.batch,
        "precision": precision,
    }  # fmt: skip
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
        draw(predictions, split, options.rows, options.classes)
        if split == "test":
            draw(predictions.with_name(VALID_PREDICTIONS), "valid", options.rows // 10,
                 options.classes)  # fmt: skip
        arguments = {"work": str(work / f"run-{split}"), "predictions": str(predictions)}
        done = peer.run_side(__file__, "report", arguments)
        print(
            f"report of {options.rows:,} {split} predictions of {options.classes:,} classes: "
            f"{done['seconds']:.1f} s, {done['peak_gb']:.2f} GB at the peak "
            f"({done['before_gb']:.2f} GB after the imports), page of {done['page_mb']:.2f} MB; "
            f"error rate {done['error_rate']:.3f}, {done['num_label_issues']} label issues",
            flush=True,
        )


def draw(path: Path, split: Split, rows: int, classes: int) -> None:
    """Store predictions as of a model that is right nine times of ten."""
    random = np.random.default_rng(0)
    names = tuple(
        ClassInfo(name=f"class {index:04d}", species=("cat", "dog")[index % 2])
        for index in range(classes)
    )
    targets = random.integers(0, classes, rows)
    logits = random.standard_normal((rows, classes), dtype=np.float32)
    # A class is confused with its neighbour, as breeds are.
    said = np.where(random.random(rows) < 0.9, targets, (targets + 1) % classes)
    logits[np.arange(rows), said] += 9
    info = PredictionsInfo(
        classes=names, split=split, model_url="no-model", backbone="drawn", image_size=224,
        dataset_url="no-data", dataset_name="drawn", dataset_fingerprint="0" * 64,
    )  # fmt: skip
    ids = [f"photo-{split}-{index}" for index in range(rows)]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = odds / odds.sum(1, keepdims=True)
    write_predictions(str(path), CLASSES, info, ids, targets, probabilities)


if __name__ == "__main__":
    main()
