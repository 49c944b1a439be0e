"""Model of 0.1 million parameters whose random head gives different outputs per photo."""

from collections.abc import Sequence
from pathlib import Path

import torch

from pets_core.config.pipeline import PipelineConfig
from pets_core.models.package import create_model, save_model
from pets_core.records.dataset import ClassInfo, NumberInfo
from pets_core.records.evaluation import Metric
from pets_core.registry.aliases import Candidate, promote

__all__ = ["promote_model", "write_tiny_model"]


def write_tiny_model(
    folder: Path,
    classes: Sequence[str] = (),
    *,
    targets: str = "class",
    numbers: Sequence[str] = (),
    seed: int = 0,
) -> str:
    """Write a model that is the same in each call with the same arguments, and return its URL."""
    config = PipelineConfig.model_validate(
        {"model": {"backbone": "test_byobnet", "weights": "none", "image_size": 64}}
    )
    torch.manual_seed(seed)
    built = create_model(
        config, tuple(ClassInfo(name=name) for name in classes), "f", targets=targets,
        numbers=tuple(NumberInfo(name=name, mean=0, std=1) for name in numbers),
    )  # fmt: skip
    torch.nn.init.normal_(built.model.head[-1].weight)
    save_model(str(folder), built.card, built.model.state_dict())
    return str(folder)


def promote_model(store: Path, run_id: str, model_url: str | None = None) -> None:
    """Point the champion of the data set cats at a model, by default that of a run of the store."""
    candidate = Candidate(
        run_id=run_id, model_url=model_url or f"store:runs/{run_id}/model", predictions_url="p",
        dataset_name="cats", dataset_fingerprint="f", split="test", tta_views=0, backbone="b",
        num_rows=1, metric=Metric(name="error rate", value=0.1),
        evaluated_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    promote(str(store), "champion", candidate)
