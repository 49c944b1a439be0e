"""Shared parts of the training benchmarks: photos, a fastai learner, one process per side."""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.dataset import read_photo_table, read_photo_tables
from pets_core.data.ingest.commit import ingest
from pets_core.records.dataset import DatasetManifest
from pets_core.runtime.launcher import worker_environment
from pets_core.runtime.request import WorkRequest

__all__ = [
    "BACKBONE",
    "REAL",
    "arguments",
    "command_line",
    "fastai_learner",
    "free_port",
    "prepare_photos",
    "request",
    "run",
    "run_side",
    "timed",
]

REAL = Path(__file__).parents[2] / "shared/data/oxford-iiit-pet-256px"
BACKBONE = "tf_efficientnet_lite0"
_RANK_SIDES = ("ours", "checkpoints")


def prepare_photos(
    source: str, work: Path, *, held_out: bool = False, limit: int | None = None, **train: Any
) -> PipelineConfig:
    """Ingest a source for ours and write its photos as files for fastai; neither is timed.

    Args:
        source: URL of the photos.
        work: Empty folder for store, cache and files.
        held_out: Use the last 30% of each breed's numbers in trainval as test photos instead of the
            test list.
        limit: Number of photos of trainval to train on, the same number of each breed. Validation
            uses 74 others, or the held-out photos.
        train: Settings of `train`.

    Returns:
        Configuration of ours.
    """
    values = {
        "store": str(work / "store"), "cache_dir": str(work / "cache"),
        "source": {"url": source}, "train": train,
    }  # fmt: skip
    config = PipelineConfig.model_validate(values)
    if held_out or limit:
        photos = _trainval(ingest(config))
        splits = _split_by_number(photos, limit) if held_out else _split_by_rank(photos, limit or 0)
        table = work / "photos.parquet"
        columns = ["image", "label", "split"]
        photos.assign(split=splits).dropna(subset="split")[columns].to_parquet(table)
        values["source"] = {"url": str(table), "split_column": "split", "name": "part"}
        config = PipelineConfig.model_validate(values)
    manifest = ingest(config)
    (work / "manifest.json").write_text(manifest.model_dump_json())
    (work / "photos").mkdir()
    with (work / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "label", "split"))
        for split, info in manifest.splits.items():
            for shard in info.shards:
                table = read_photo_table(manifest.shard_url(shard), ["id", "image", "target_text"])
                for row in table.to_pylist():
                    name = row["id"].replace("/", "-")
                    (work / "photos" / name).write_bytes(row["image"]["bytes"])
                    writer.writerow((name, row["target_text"], split))
    return config


def _trainval(manifest: DatasetManifest) -> pd.DataFrame:
    """Return the photos of trainval, sorted by breed and number."""
    columns = ["id", "image", "target_text"]
    urls = [*manifest.files("train"), *manifest.files("valid")]
    photos = read_photo_tables(urls, columns).to_pandas()
    photos["number"] = photos.id.str.extract(r"(\d+)$", expand=False).astype(int)
    photos = photos.rename(columns={"target_text": "label"})
    return photos.sort_values(["label", "number"], ignore_index=True)


def _split_by_number(photos: pd.DataFrame, limit: int | None) -> pd.Series[str]:
    """Return splits: the last 30% of each breed's numbers for test, `limit` others to train on."""
    breeds = photos.groupby("label")
    quantile = breeds.cumcount() / breeds.number.transform("size")
    splits = quantile.lt(0.7).map({True: "train", False: "test"})
    return splits.where(splits.eq("test") | _alternate_breeds(photos).le(limit or len(photos)))


def _split_by_rank(photos: pd.DataFrame, limit: int) -> pd.Series[str]:
    """Return splits: `limit` photos of all breeds to train on, and 74 to validate on."""
    rank = _alternate_breeds(photos)
    split = pd.Series("train", index=photos.index).where(rank <= limit)
    return split.mask(rank > len(photos) - 74, "valid")


def _alternate_breeds(photos: pd.DataFrame) -> pd.Series[float]:
    """Rank the photos from 1, alternating between breeds, lowest numbers first."""
    return photos.groupby("label").cumcount().rank(method="first")


def request(
    stage: Literal["lr-find", "predict", "train"], arguments: dict[str, Any]
) -> WorkRequest:
    """Create the request of a stage on the photos of `prepare_photos`; each seed has its run."""
    work = Path(arguments["work"])
    config = PipelineConfig.model_validate(arguments["config"])
    return WorkRequest(
        stage=stage,
        config=config,
        manifest=DatasetManifest.model_validate_json((work / "manifest.json").read_text()),
        run_url=str(work / f"run-{config.train.seed}"),
        base_lr=config.train.base_lr,
    )


def command_line(doc: str) -> argparse.ArgumentParser:
    """Create a parser with the common arguments: photos, their size and the batch size."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("source", nargs="?", default=str(REAL))
    parser.add_argument("--size", type=int, default=160, help="side of the photos, pixels")
    parser.add_argument("--batch", type=int, default=64, help="photos per step")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--arguments", type=json.loads, help=argparse.SUPPRESS)
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace, Path], object],
    **sides: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    """Parse the command line and run a benchmark, or one side in a process of `run_side`.

    Args:
        parser: Parser of `command_line`.
        measure: The benchmark; takes the options and a temporary folder.
        sides: Function of each side, which takes the arguments that `run_side` passes.
    """
    options = parser.parse_args()
    if options.side:
        print(json.dumps(sides[options.side](options.arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        measure(options, Path(name))


def arguments(options: argparse.Namespace, work: Path, **settings: Any) -> dict[str, Any]:
    """Prepare the photos and return the arguments of a side: work, config, size and batch.

    Args:
        options: Options of `command_line`.
        work: Empty folder.
        settings: Keyword arguments of `prepare_photos`.
    """
    config = prepare_photos(options.source, work, batch_size=options.batch, **settings)
    values = config.model_dump(mode="json")
    values["model"]["image_size"] = options.size
    return {"work": str(work), "config": values, "size": options.size, "batch": options.batch}


def free_port() -> int:
    """Return a port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fastai_learner(
    arguments: dict[str, Any], *, evaluate_on: str, precision: str = "no", limit: int | None = None
) -> Any:
    """Create a typical fastai learner with our backbone's weights.

    Resizes, then applies fastai's default augmentation to the batch (flip, rotate, zoom, warp,
    lighting), with its default head, optimizer and two worker processes.

    Args:
        arguments: Arguments of the side, as `arguments` returns them.
        evaluate_on: Split to validate on.
        precision: no or bf16.
        limit: Number of photos to train on (default: all).
    """
    import torch
    from fastai.vision import all as fastai

    from pets_core.models.backbones import create_body

    work, size, batch = Path(arguments["work"]), arguments["size"], arguments["batch"]
    fastai.default_device(torch.cuda.is_available())
    frame = pd.read_csv(work / "photos.csv")
    frame = frame[frame.split.isin(("train", evaluate_on))]
    vocabulary = sorted(frame.label.unique())
    if limit:
        training = frame[frame.split == "train"].sample(limit, random_state=0)
        frame = pd.concat([training, frame[frame.split != "train"].head(batch)])
    frame["is_valid"] = frame.split != "train"
    weights = work / "backbone.pth"
    if not weights.exists():
        torch.save(create_body(BACKBONE, "auto", size).state_dict(), weights)
    loaders = fastai.ImageDataLoaders.from_df(
        frame, work / "photos", fn_col="name", label_col="label", valid_col="is_valid",
        y_block=fastai.CategoryBlock(vocab=vocabulary), bs=batch,
        item_tfms=fastai.Resize(round(size / 0.875)), batch_tfms=fastai.aug_transforms(size=size),
    )  # fmt: skip
    learner = fastai.vision_learner(
        loaders, BACKBONE, metrics=fastai.error_rate,
        pretrained_cfg_overlay={"file": str(weights)},
    )  # fmt: skip
    return learner.to_bf16() if precision == "bf16" else learner


def run_side(script: str, side: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a new process, which prints its result in JSON as the last line.

    Sides that run as ranks get the environment of ranks, the others that of the user.
    """
    user = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment = worker_environment() if side in _RANK_SIDES else user
    command = [sys.executable, script, "--side", side, "--arguments", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def timed(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call of `work`, until the GPU is idle."""
    import torch

    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
