"""Entry point of a rank: read the request, run its stage, and write the result on rank 0.

Started by `pets_core.runtime.agent`; does not need Prefect.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import torch
from accelerate.tracking import get_available_trackers
from pydantic import BaseModel
from torch.distributed import DistError

from pets_core import storage
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.models.backbones import body_groups, create_body, num_features
from pets_core.models.package import load_model

# Imported here, so that forks of this process do not import them again.
from pets_core.runtime import photo_stages, ratings_stages, stages  # noqa: F401
from pets_core.runtime.failures import to_failure, write_failure
from pets_core.runtime.photo_rank import PhotoRank
from pets_core.runtime.rank import Rank, forward_warnings
from pets_core.runtime.ratings_rank import RatingsRank
from pets_core.runtime.request import (
    CheckResult,
    RatingsRequest,
    Request,
    WorkRequest,
    parse_request,
)
from pets_core.runtime.signals import die_with_parent, hard_exit
from pets_core.runtime.stage_table import STAGES
from pets_core.training.devices import resolve_device
from pets_core.training.interruption import Interrupted
from pets_core.training.optimizer import check_optimizer

__all__ = ["main", "run", "work"]

_CONNECTION_LOST = re.compile(r"(?i)connection (closed|reset|refused)|broken pipe|gloo.*timed out")
"""Messages of gloo's RuntimeError when another rank has exited."""


def check(request: WorkRequest) -> CheckResult:
    """Check folders, device, tracker and model; raise the first error before other work starts."""
    settings, launch = request.config.model, request.config.launch
    storage.check_writable(storage.absolute(request.config.store), "store")
    storage.check_writable(storage.absolute(request.config.cache_dir), "cache_dir")
    train = request.config.train
    device, precision, _ = resolve_device(launch, train, trains=request.model_url is None)
    _check_tracker(train.log_with)
    model: torch.nn.Module
    if request.model_url:
        model = load_model(request.model_url).model
    else:
        model = create_body(
            settings.backbone, settings.weights, settings.image_size, drop_path=settings.drop_path
        )
        num_features(model, settings.image_size)
        num_groups = len(body_groups(model)) + 1
        _check_group("freeze_to", train.freeze_to, num_groups)
        if train.unfreeze_to is not None:
            _check_group("unfreeze_to", train.unfreeze_to, num_groups)
            _check_order(train, num_groups)
        check_optimizer(train.optimizer, device)
    return CheckResult(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        device=device.type,
        mixed_precision=precision,
    )


def _check_tracker(log_with: str) -> None:
    """Raise an error if the tracker is not installed: Accelerate would silently log nothing."""
    if log_with != "none" and log_with not in {str(t) for t in get_available_trackers()}:
        raise PetsError(
            f"train.log_with = {log_with}: its package is not installed; run "
            f"pip install 'pets-pipeline[{log_with}]'"
        )


def _check_group(setting: str, first: int, num_groups: int) -> None:
    if not -num_groups <= first < num_groups:
        raise PetsError(
            f"train.{setting} = {first}: the model has {num_groups} layer groups, the last of "
            f"which is the head; set a value from {-num_groups} to {num_groups - 1}"
        )


def _check_order(train: TrainConfig, num_groups: int) -> None:
    """Refuse to freeze layer groups after the frozen epochs that these have trained."""
    assert train.unfreeze_to is not None
    has_both = train.num_frozen_epochs > 0 and train.num_unfrozen_epochs > 0
    if has_both and train.unfreeze_to % num_groups > train.freeze_to % num_groups:
        raise PetsError(
            f"train.unfreeze_to = {train.unfreeze_to} is after train.freeze_to = "
            f"{train.freeze_to}: fewer layer groups would be trained after unfreezing than before. "
            "Lower unfreeze_to"
        )


def run(request: Request, failures: Path | None = None) -> BaseModel | None:
    """Run the stage of a request; return its record on rank 0, None on the others."""
    if request.stage == "check":
        return check(request)
    kind = RatingsRank if isinstance(request, RatingsRequest) else PhotoRank
    rank: Rank[Any, Any] = kind(request, failures)  # type: ignore[arg-type]
    stage = resolve_name(f"pets_core.runtime.{STAGES[request.stage].run}")
    return _finish(rank, lambda: stage(rank))


def _finish(rank: Rank[Any, Any], stage: Callable[[], BaseModel | None]) -> BaseModel | None:
    try:
        result = stage()
    except Interrupted as reason:
        rank.warn(f"training was interrupted: {reason}; the next attempt resumes from there")
        raise
    # Without a barrier some gloo runs abort at exit.
    rank.accelerator.wait_for_everyone()
    rank.accelerator.end_training()
    return result


def main() -> NoReturn:
    """Run one of several ranks, started by torch elastic."""
    die_with_parent(signal.SIGKILL)
    hard_exit(work(Path(sys.argv[1])))


def work(path: Path) -> int:
    """Run a request and write result.json or failure-<rank>.json to its folder.

    Returns:
        Exit code of the process.
    """
    # Not in the constructor of `Rank`, which may be called in a process that does other work.
    forward_warnings()
    try:
        result = run(parse_request(path.read_text(encoding="utf-8")), path.parent)
    except Interrupted:
        return 1
    except Exception as error:  # noqa: BLE001 - recorded for the launcher
        rank = int(os.environ.get("RANK", "0"))
        is_cut_off = isinstance(error, DistError) or bool(_CONNECTION_LOST.search(str(error)))
        failure = to_failure(error, rank, is_cut_off=is_cut_off)
        write_failure(failure, path.parent, str(rank))
        return 1
    if result is not None:
        storage.write_bytes(
            str(path.with_name("result.json")), result.model_dump_json().encode(), "TMPDIR"
        )
    return 0


if __name__ == "__main__":
    main()
