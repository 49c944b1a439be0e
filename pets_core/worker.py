"""The entry of one rank: reads a request, composes the parts, and rank 0 writes the result.

Started by `pets_core.elastic`; runs with no Prefect installed.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Literal, NoReturn

import torch
from accelerate.tracking import get_available_trackers
from pydantic import BaseModel
from torch import Tensor
from torch.distributed import DistError

from pets_core import storage
from pets_core.elastic import die_with_parent, leave
from pets_core.errors import PetsError
from pets_core.evaluation import plots
from pets_core.evaluation.evaluate import evaluate
from pets_core.evaluation.predict import predict_views
from pets_core.failures import RankFailure
from pets_core.launch import CheckResult, WorkRequest
from pets_core.models.backbones import body_groups, create_body, num_features
from pets_core.models.package import ModelCard, load_model, save_model
from pets_core.rank import Rank, write_down
from pets_core.records import EvalReport, LRSuggestion, TrainResult
from pets_core.training.history import steps_table
from pets_core.training.interruption import Interrupted
from pets_core.training.loop import fit
from pets_core.training.lr_finder import lr_find, suggest, trimmed, write_curve
from pets_core.training.precision import resolve_precision
from pets_core.training.schedule import fine_tune_phases
from pets_core.training.sharding import whole

__all__ = ["main", "run", "work"]

_MODEL = "model"
_CUT_OFF = re.compile(r"(?i)connection (closed|reset|refused)|broken pipe|gloo.*timed out")
"""What gloo says in a plain RuntimeError when another rank is gone."""


def check(request: WorkRequest) -> CheckResult:
    """Build or load the model once, weights and all, so that a fault shows before any work."""
    settings, launch = request.config.model, request.config.launch
    storage.check_writable(storage.absolute(request.config.store), "store")
    storage.check_writable(storage.absolute(request.config.cache_dir), "cache_dir")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    num_gpus = torch.cuda.device_count()
    if num_gpus and launch.num_processes != "auto" and launch.num_processes > num_gpus:
        raise PetsError(
            f"launch.num_processes = {launch.num_processes}: this machine has {num_gpus} GPUs; "
            "set auto or at most that"
        )
    precision = resolve_precision(request.config.train.mixed_precision, device)
    if request.config.train.batch_norm == "sync" and device.type == "cpu":
        raise PetsError("train.batch_norm = sync works on GPUs only; on CPUs set frozen or train")
    _check_tracker(request.config.train.log_with)
    model: torch.nn.Module
    if request.model_url:
        model = load_model(request.model_url).model
    else:
        model = create_body(settings.backbone, settings.weights, settings.image_size)
        num_features(model, settings.image_size)
        _check_groups(request.config.train.freeze_to, len(body_groups(model)) + 1)
    return CheckResult(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device.type,
        mixed_precision=precision,
    )


def _check_tracker(log_with: str) -> None:
    """Accelerate leaves out a tracker whose package is missing, and does not say so."""
    if log_with != "none" and log_with not in {str(t) for t in get_available_trackers()}:
        raise PetsError(
            f"train.log_with = {log_with}: its package is not installed: "
            f"pip install 'pets-pipeline[{log_with}]'"
        )


def _check_groups(freeze_to: int, num_groups: int) -> None:
    if not -num_groups <= freeze_to < num_groups:
        raise PetsError(
            f"train.freeze_to = {freeze_to}: the model has {num_groups} layer groups, the head the "
            f"last of them; choose from {-num_groups} to {num_groups - 1}"
        )


def find_lr(rank: Rank) -> LRSuggestion | None:
    """Run the range test on the new head and store its curve and picture."""
    started, config = time.monotonic(), rank.config
    _check_validation(rank)
    built = rank.model()
    loader = rank.train_loader(built.card)
    with rank.watchdog:
        curve = lr_find(
            built.model,
            rank.objective(),
            loader,
            config.lr_find,
            config.train,
            accelerator=rank.accelerator,
            on_progress=rank.report,
        )
    if not rank.accelerator.is_main_process:
        return None
    suggestions = vars(suggest(*trimmed(curve)))
    chosen = suggestions[config.lr_find.suggestion]
    folder = storage.join(rank.request.run_url, "lr_find")
    curve_url, plot_url = storage.join(folder, "curve.parquet"), storage.join(folder, "curve.png")
    write_curve(curve_url, curve)
    picture = plots.lr_curve(
        curve.rates, curve.losses, curve.smoothed, suggestions, config.lr_find.suggestion
    )
    storage.write_bytes(plot_url, picture)
    return LRSuggestion(
        **suggestions,
        chosen=chosen,
        suggestion=config.lr_find.suggestion,
        num_steps=len(curve.rates),
        seconds=time.monotonic() - started,
        curve_url=curve_url,
        plot_url=plot_url,
    )


def train(rank: Rank) -> TrainResult | None:
    """Train by the recipe and store model, history and pictures."""
    started, config = time.monotonic(), rank.config
    assert rank.request.base_lr is not None
    _check_validation(rank)
    rank.accelerator.init_trackers("pets", config.model_dump(mode="json")["train"])
    built = rank.model()
    loader = rank.train_loader(built.card)
    valid = rank.photos("valid", built.card) if "valid" in rank.manifest.splits else None
    checkpoints = rank.checkpoints()
    with rank.interruption() as gate, rank.watchdog:
        history = fit(
            built.model,
            rank.objective(),
            loader,
            rank.eval_loader(valid, built.card.center_crop()) if valid else None,
            fine_tune_phases(config.train, rank.request.base_lr),
            config.train,
            accelerator=rank.accelerator,
            checkpoints=checkpoints,
            gate=gate,
            on_progress=rank.report,
        )
    checkpoints.wait()
    weights = {name: whole(value) for name, value in built.model.state_dict().items()}
    if not rank.accelerator.is_main_process:
        return None
    run = rank.request.run_url
    history_url, plot_url = storage.join(run, "history.parquet"), storage.join(run, "training.png")
    last_url, best_url = _save_models(rank, built.card, weights, history.best.weights)
    storage.write_bytes(history_url, steps_table(history.steps))
    storage.write_bytes(plot_url, plots.training_curves(history.steps, history.epochs))
    return TrainResult(
        model_url=storage.join(run, _MODEL),
        last_model_url=last_url,
        best_model_url=best_url,
        history_url=history_url,
        plot_url=plot_url,
        base_lr=rank.request.base_lr,
        mixed_precision=rank.precision,
        device=_device_name(rank.accelerator.device),
        num_processes=rank.accelerator.num_processes,
        num_steps=len(history.steps),
        epochs=tuple(history.epochs),
        seconds=time.monotonic() - started,
    )


def _save_models(
    rank: Rank, card: ModelCard, last: dict[str, Tensor], best: dict[str, Tensor]
) -> tuple[str, str | None]:
    """Store the last weights and the best; those that `train.keep` asks for are the model."""
    keep, run = rank.config.train.keep, rank.request.run_url
    if keep == "best" and not best:
        raise PetsError("no epoch had a finite validation loss: lower train.base_lr")
    last_url = storage.join(run, _MODEL if keep == "last" else "last")
    save_model(last_url, card, last)
    if not best:
        return last_url, None
    best_url = storage.join(run, _MODEL if keep == "best" else "best")
    save_model(best_url, card, best)
    return last_url, best_url


def _check_validation(rank: Rank) -> None:
    """Refuse settings that need validation photos where there are none."""
    config = rank.config.train
    wanted = {
        "train.keep = best": config.keep == "best",
        f"train.early_stopping_epochs = {config.early_stopping_epochs}": (
            config.early_stopping_epochs > 0
        ),
    }
    for setting, needed in wanted.items():
        if needed and "valid" not in rank.manifest.splits:
            raise PetsError(
                f"{setting} needs validation photos, and the data set has none: raise "
                "source.valid_fraction"
            )


def judge(rank: Rank) -> EvalReport | None:
    """Evaluate a stored model on one split and store predictions, pictures and report."""
    config, model_url = rank.config, rank.request.model_url
    assert model_url is not None
    built = load_model(model_url)
    if built.card.classes != rank.manifest.classes:
        raise PetsError(
            f"the model {model_url} knows {len(built.card.classes)} classes and the data set "
            f"{len(rank.manifest.classes)}, not the same ones in the same order: evaluate on a "
            "data set with the model's vocabulary"
        )
    rank.place(built)
    split = rank.manifest.evaluation_split(config.evaluate.split)
    photos = rank.photos(split, built.card)
    plain = rank.eval_loader(photos, built.card.center_crop())
    augmented = rank.eval_loader(photos, built.card.view(config.transform))
    started = time.monotonic()
    with rank.watchdog:
        logits = predict_views(
            built.model,
            plain,
            augmented,
            config.evaluate.tta_views,
            accelerator=rank.accelerator,
            on_progress=rank.report,
        )
    if not rank.accelerator.is_main_process:
        return None
    seconds = time.monotonic() - started
    return evaluate(built, photos, split, logits, request=rank.request, seconds=seconds)


_STAGES = {"lr-find": find_lr, "train": train, "evaluate": judge}


def run(request: WorkRequest) -> BaseModel | None:
    """Do what a request asks for; only rank 0 has a record to return."""
    if request.stage == "check":
        return check(request)
    rank = Rank(request)
    try:
        result = _STAGES[request.stage](rank)
    except Interrupted as reason:
        rank.warn(f"training was {reason}, and goes on from there with the next attempt")
        raise
    # Without a barrier some gloo runs abort at exit.
    rank.accelerator.wait_for_everyone()
    rank.accelerator.end_training()
    return result


def main() -> NoReturn:
    """Run as one rank among others, which the launcher started."""
    die_with_parent(signal.SIGKILL)
    leave(work(Path(sys.argv[1])))


def work(path: Path) -> int:
    """Do what a request asks for; leave result.json or failure-<rank>.json beside it.

    Returns:
        Exit code of the process.
    """
    try:
        result = run(WorkRequest.model_validate_json(path.read_text(encoding="utf-8")))
    except Interrupted:
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher must hear of it
        write_down(_failure(error))
        return 1
    if result is not None:
        storage.write_bytes(str(path.with_name("result.json")), result.model_dump_json().encode())
    return 0


def _failure(error: Exception) -> RankFailure:
    kind: Literal["refused", "cut off", "failed"] = "failed"
    if isinstance(error, PetsError):
        kind = "refused"
    elif isinstance(error, DistError) or _CUT_OFF.search(str(error)):
        kind = "cut off"
    return RankFailure(
        rank=int(os.environ.get("RANK", "0")),
        message=str(error) if kind == "refused" else repr(error),
        traceback=traceback.format_exc(),
        kind=kind,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
