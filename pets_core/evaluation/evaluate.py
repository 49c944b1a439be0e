"""Judge a model on a split: predictions, confusion matrix, most confused, report."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from pets_core import storage
from pets_core.data.decoded import DecodedPhotos
from pets_core.evaluation import plots
from pets_core.evaluation.interpret import confusion_counts, most_confused, per_class
from pets_core.evaluation.report import ReportContext, Thumbnail, render_report
from pets_core.launch import WorkRequest
from pets_core.models.package import TrainedModel
from pets_core.objectives import SingleLabel
from pets_core.records import EvalReport, Split

__all__ = ["Scores", "evaluate"]

_NUM_TOP_LOSSES = 16
_THUMBNAIL_PIXELS = 160


class Scores:
    """What a model said of N photos of C classes.

    Attributes:
        probabilities: float32 (N, C).
        losses: Cross-entropy of each photo, nats, float32 (N,).
        predictions: Most probable class, int64 (N,).
        targets: True class, int64 (N,).
    """

    def __init__(self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> None:
        tensor, objective = torch.from_numpy(logits), SingleLabel()
        self.targets = targets
        self.probabilities: npt.NDArray[np.float32] = objective.activation(tensor).numpy()
        self.losses: npt.NDArray[np.float32] = torch.nn.functional.cross_entropy(
            tensor, torch.from_numpy(targets), reduction="none"
        ).numpy()
        self.predictions: npt.NDArray[np.int64] = self.probabilities.argmax(1)

    @property
    def error_rate(self) -> float:
        """Share of photos whose most probable class is wrong."""
        return float((self.predictions != self.targets).mean())


def evaluate(
    built: TrainedModel,
    photos: DecodedPhotos,
    split: Split,
    logits: npt.NDArray[np.float32],
    *,
    request: WorkRequest,
    seconds: float,
) -> EvalReport:
    """Judge the predictions of a split, and store everything under `<run>/evaluation`.

    Args:
        built: The model.
        photos: Of the split.
        split: Its name.
        logits: Of the photos, (N, C).
        request: Settings, data set, and where to store.
        seconds: That predicting took.
    """
    started = time.monotonic()
    scores = Scores(logits, photos.labels)
    folder = storage.join(request.run_url, "evaluation")
    names = [c.name for c in built.card.classes]
    counts = confusion_counts(scores.targets, scores.predictions, len(names))
    pairs = most_confused(counts, names, request.config.evaluate.most_confused_min_count)
    report = EvalReport(
        model_url=request.model_url or "",
        split=split,
        num_rows=len(photos),
        error_rate=scores.error_rate,
        loss=float(scores.losses.mean()),
        most_confused=tuple(pairs),
        predictions_url=storage.join(folder, "predictions.parquet"),
        confusion_url=storage.join(folder, "confusion.parquet"),
        confusion_plot_url=storage.join(folder, "confusion.png"),
        report_url=storage.join(folder, "report.html"),
        photos_per_second=len(photos) / seconds,
        seconds=seconds + time.monotonic() - started,
    )
    picture = plots.confusion_matrix(counts, names)
    _write_predictions(report.predictions_url, photos.ids, scores, names)
    _write_confusion(report.confusion_url, counts, names)
    storage.write_bytes(report.confusion_plot_url, picture)
    page = _page(report, request, built, counts, picture, _top_losses(photos, scores, names))
    storage.write_bytes(report.report_url, page.encode())
    return report


def _page(
    report: EvalReport,
    request: WorkRequest,
    built: TrainedModel,
    counts: npt.NDArray[np.int64],
    picture: bytes,
    top_losses: list[Thumbnail],
) -> str:
    manifest = request.manifest
    assert manifest is not None
    return render_report(
        ReportContext(
            title=f"{manifest.name}: {report.split}",
            run_id=request.run_url.rsplit("/", 1)[-1],
            backbone=built.card.backbone,
            dataset_name=manifest.name,
            dataset_fingerprint=manifest.fingerprint,
            split=report.split,
            num_rows=report.num_rows,
            error_rate=report.error_rate,
            loss=report.loss,
            classes=per_class(counts, built.card.classes),
            most_confused=report.most_confused,
            confusion_png=picture,
            top_losses=top_losses,
            training=request.training,
            training_png=_picture_of(request.run_url, "training.png"),
            lr_png=_picture_of(request.run_url, "lr_find/curve.png"),
            generated_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            settings_yaml=yaml.safe_dump(request.config.model_dump(mode="json"), sort_keys=False),
        )
    )


def _write_predictions(url: str, ids: list[str], scores: Scores, names: Sequence[str]) -> None:
    probabilities = pa.FixedSizeListArray.from_arrays(
        pa.array(scores.probabilities.reshape(-1)), len(names)
    )
    table = pa.table(
        {
            "id": ids,
            "actual": [names[i] for i in scores.targets.tolist()],
            "predicted": [names[i] for i in scores.predictions.tolist()],
            "probability": scores.probabilities.max(1),
            "loss": scores.losses,
            "probabilities": probabilities,
        }
    )
    with storage.writing(url) as file:
        pq.write_table(table, file)


def _write_confusion(url: str, counts: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    rows, columns = np.nonzero(counts)
    table = pa.table(
        {
            "actual": [names[i] for i in rows.tolist()],
            "predicted": [names[i] for i in columns.tolist()],
            "count": counts[rows, columns],
        }
    )
    with storage.writing(url) as file:
        pq.write_table(table, file)


def _top_losses(photos: DecodedPhotos, scores: Scores, names: Sequence[str]) -> list[Thumbnail]:
    worst = np.argsort(-scores.losses, kind="stable")[:_NUM_TOP_LOSSES]
    return [
        Thumbnail(
            jpeg=_thumbnail(pixels),
            photo_id=photos.ids[i],
            actual=names[int(scores.targets[i])],
            predicted=names[int(scores.predictions[i])],
            probability=float(scores.probabilities[i].max()),
            loss=float(scores.losses[i]),
        )
        for i, pixels in zip(worst.tolist(), photos.read(worst), strict=True)
    ]


def _thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _picture_of(run_url: str, name: str) -> bytes | None:
    url = storage.join(run_url, name)
    return storage.read_bytes(url) if storage.exists(url) else None
