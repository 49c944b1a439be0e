"""Kind of target `class`: one class per photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core.config.train import TrainConfig
from pets_core.data.dataset import list_column
from pets_core.errors import PetsError
from pets_core.evaluation.compare import Labels, ScoredSamples
from pets_core.evaluation.gallery import Gallery, Picture, fetch_photos
from pets_core.evaluation.predictions import (
    Predictions,
    PredictionsInfo,
    raise_for_rows,
)
from pets_core.evaluation.tables import issues_csv
from pets_core.models.card import ModelCard
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import BUILT_IN_SPECS
from pets_core.targets.base import (
    NUM_GALLERY_PHOTOS,
    DecodedOutputs,
    Evaluation,
    Evaluator,
    Target,
    label_issues_section,
    top_labels,
)
from pets_core.targets.classes.calibration import Calibration, calibrate
from pets_core.targets.classes.confusion import (
    cluster_order,
    confusion_counts,
    confusion_table,
    most_confused,
)
from pets_core.targets.classes.labels import label_issues
from pets_core.targets.classes.metrics import bootstrap_share, class_table, species_table, top_k
from pets_core.targets.classes.predictions import ClassPredictions

if TYPE_CHECKING:
    import torch

    from pets_core.targets.objective import Objective

__all__ = ["CLASSES", "Classes", "ClassesEvaluator"]

_NUM_PAIRS, _PHOTOS_A_PAIR = 10, 8
_NUM_HIGHLIGHTS = 3
_SIDE = 160


class ClassesEvaluator(Evaluator):
    """Evaluates predicted classes; label errors and temperature scaling need `validation`."""

    predictions: ClassPredictions
    validation: ClassPredictions | None

    def __init__(
        self,
        predictions: Predictions,
        validation: Predictions | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        own = None if validation is None else ClassPredictions.of(validation)
        super().__init__(ClassPredictions.of(predictions), own, *args, **kwargs)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Confusion matrix, (C, C)."""
        predictions = self.predictions
        num_classes = len(predictions.names)
        return confusion_counts(predictions.targets, predictions.predicted, num_classes)

    def score(self) -> ScoredSamples:
        """Return the error rate; the score of a photo is 1 if misclassified, else 0."""
        predictions = self.predictions
        wrong = predictions.wrong
        share = bootstrap_share(int(wrong.sum()), len(predictions))
        return ScoredSamples(
            metric=Metric(name="error rate", unit="%", **share.model_dump()),
            ids=predictions.ids,
            scores=wrong.astype(np.float64),
            model_url=self.info.model_url,
            labels=Labels(
                predictions.names, np.arange(len(predictions)), predictions.targets, ~wrong
            ),
        )

    def evaluate(self) -> Evaluation:
        """Return confusion matrix, confused pairs, classes, calibration, gallery, label issues."""
        from pets_core.plots.calibration import reliability_diagram
        from pets_core.plots.confusion import confusion_matrix

        predictions, counts = self.predictions, self._counts
        calibration = calibrate(predictions, self.validation)
        issues = label_issues(self.validation) if self.validation else None
        min_count = self.config.most_confused_min_count
        pairs = most_confused(counts, predictions.names, min_count)
        order = cluster_order(counts)
        bins, classes = calibration.bins, class_table(predictions, counts)
        if classes["species"].isna().all():
            classes = classes.drop(columns="species")
        tables = {
            "confusion": confusion_table(counts, predictions.names),
            "most_confused": pairs,
            "classes": classes,
        }
        species = species_table(counts, [info.species for info in self.info.vocabulary])
        if species is not None:
            tables["species"] = species
        return Evaluation(
            metrics=self._metrics(calibration),
            details=(f"{(~predictions.wrong).sum():,} of {len(predictions):,} photos correct.",),
            highlights=_highlights(pairs),
            sections=_sections(predictions, tables, calibration, issues),
            tables=tables,
            figures={
                "confusion": confusion_matrix(
                    counts[np.ix_(order, order)], [predictions.names[i] for i in order]
                ),
                "reliability": reliability_diagram(bins.counts, bins.confidence, bins.accuracy),
            },
            gallery=self._gallery(pairs, issues),
            files={} if issues is None else {"label_fixes.csv": issues_csv(issues)},
            num_label_issues=None if issues is None else len(issues),
            task=f"predicts one of {len(predictions.names)} classes",
        )

    def _metrics(self, calibration: Calibration) -> list[Metric]:
        losses = self.predictions.losses
        assert losses is not None
        return [
            *(
                Metric(name=f"top-{k} accuracy", value=share, higher_is_better=True, unit="%")
                for k, share in top_k(self.predictions).items()
                if k > 1
            ),
            Metric(name="cross-entropy", value=float(losses.mean(dtype=np.float64)), unit="nats"),
            Metric(name="expected calibration error", value=calibration.bins.ece, unit="%"),
        ]

    def _gallery(self, pairs: Any, issues: Any) -> Gallery:
        """Return photos with top losses, confident errors, confused pairs and label issues."""
        predictions, losses = self.predictions, self.predictions.losses
        assert losses is not None
        errors = np.flatnonzero(predictions.wrong)
        confident = errors[np.argsort(-predictions.confidence[errors], kind="stable")]
        worst = np.argsort(-losses, kind="stable")
        parts = {
            "top-losses": [self._picture(row) for row in worst[:NUM_GALLERY_PHOTOS]],
            "confident-errors": [self._picture(row) for row in confident[:NUM_GALLERY_PHOTOS]],
            "confused-pairs": [
                self._picture(row, group=f"{pair.actual}, predicted {pair.predicted}")
                for pair in pairs[:_NUM_PAIRS].itertuples()
                for row in self._rows_of_pair(pair.actual, pair.predicted)
            ],
        }
        if issues is not None:
            parts["label-issues"] = [
                self._picture(row, self.validation) for row in self.validation_rows(issues["id"])
            ]
        return fetch_photos(parts, self.info.dataset_url, _SIDE, maps_url=self.maps_url)

    def _rows_of_pair(self, actual: str, predicted: str) -> NDArray[np.int64]:
        """Return the rows of a confused pair, highest confidence first."""
        predictions, names = self.predictions, self.predictions.names
        own = predictions.targets == names.index(actual)
        rows = np.flatnonzero(own & (predictions.predicted == names.index(predicted)))
        return rows[np.argsort(-predictions.confidence[rows], kind="stable")][:_PHOTOS_A_PAIR]

    def _picture(
        self, row: int, predictions: ClassPredictions | None = None, group: str = ""
    ) -> Picture:
        predictions = predictions or self.predictions
        names, losses = predictions.names, predictions.losses
        assert losses is not None
        predicted = names[int(predictions.predicted[row])]
        return Picture(
            photo_id=predictions.ids[row],
            actual=names[int(predictions.targets[row])],
            predicted=f"{predicted}, {predictions.confidence[row]:.0%}",
            detail=f"loss {losses[row]:.2f}",
            is_correct=not predictions.wrong[row],
            group=group,
        )


def _highlights(pairs: Any) -> Highlights:
    return Highlights(
        title="Most confused",
        columns=("actual", "predicted", "photos", "share"),
        rows=tuple(
            (pair.actual, pair.predicted, str(pair.count), f"{pair.share:.0%}")
            for pair in pairs[:_NUM_HIGHLIGHTS].itertuples(index=False, name="Pair")
        ),
    )


def _sections(
    predictions: ClassPredictions, tables: Any, calibration: Calibration, issues: Any
) -> list[Section]:
    return [
        Section(
            key="most-confused", title="Confused pairs", table="most_confused", percent=("share",),
            max_rows=_NUM_PAIRS,
            text="Misclassified photos by actual and predicted class, most frequent first.",
            description="Confused pairs of classes, most frequent first",
        ),
        *_confusion_sections(predictions, "species" in tables),
        *_photo_sections(),
        *([] if issues is None else [_label_section(len(issues))]),
        Section(
            key="classes", title="Classes", table="classes", percent=("precision", "recall", "f1"),
            text="All classes, lowest recall first.",
            description="Precision, recall and F1 of each class",
        ),
        Section(
            key="calibration", title="Calibration", figure="reliability",
            figure_alt="Accuracy against confidence, in 15 bins",
            text=_calibration_text(calibration), description="Accuracy against confidence",
        ),
    ]  # fmt: skip


def _confusion_sections(predictions: ClassPredictions, has_species: bool) -> list[Section]:
    sections = [
        Section(
            key="confusion-matrix", title="Confusion matrix", figure="confusion",
            figure_alt=f"Confusion matrix of {len(predictions.names)} classes; the tables of "
            "confused pairs and of classes hold its numbers",
            text="Rows: actual class. Columns: predicted class. The diagonal is correct. Classes "
            "that are often confused are adjacent. Darker cells hold a larger share of the actual "
            "class's photos.",
            description=f"{len(predictions)} {predictions.info.split} photos",
        ),
        Section(
            key="confusion-table", title="Confusion table", table="confusion", percent=("share",),
            description="All non-zero cells of the confusion matrix", in_report=False,
        ),
    ]  # fmt: skip
    if has_species:
        sections.append(
            Section(
                key="species", title="Species", table="species",
                text="Rows: actual species. Columns: predicted species. Cells: number of photos.",
                description="Confusion matrix of species",
            )
        )  # fmt: skip
    return sections


def _photo_sections() -> list[Section]:
    return [
        Section(
            key="top-losses", title="Top losses", gallery="top-losses",
            text="Photos with the highest loss. The map below a photo, if computed, shows which "
            "regions support the prediction (Grad-CAM): red most, blue least.",
            description="Photos with the highest loss",
        ),
        Section(
            key="confident-errors", title="Confident errors", gallery="confident-errors",
            text="Wrong predictions with the highest probability.",
            description="Wrong predictions with the highest probability",
        ),
        Section(
            key="confused-pairs", title="Photos of confused pairs", gallery="confused-pairs",
            text=f"The {_NUM_PAIRS} most frequent pairs, with up to {_PHOTOS_A_PAIR} photos each.",
            description="Photos of the most confused pairs",
        ),
    ]  # fmt: skip


def _label_section(count: int) -> Section:
    return label_issues_section(
        count,
        found="a probable label error (confident learning). Review them, remove the rows of "
        "label_fixes.csv whose current label (given) is correct, and ingest with "
        "--source.label_fixes set to the file.",
        none="No probable label errors in the validation photos.",
        description="Probable label errors",
    )


def _calibration_text(calibration: Calibration) -> str:
    scaled = ""
    if calibration.temperature is not None:
        scaled = (
            f" After temperature scaling (T = {calibration.temperature:.2f}, fitted on the "
            f"validation photos): {calibration.ece_after:.1%}."
        )
    return (
        "Accuracy of predictions by their confidence. Expected calibration error: "
        f"{calibration.bins.ece:.1%}.{scaled}"
    )


class Classes(Target):
    """One class of a vocabulary per photo; outputs are probabilities."""

    name = "class"
    spec = BUILT_IN_SPECS["class"]
    has_maps = True
    metric = "error rate"
    metric_range = (0.0, 1.0)
    has_labels = True
    evaluator = ClassesEvaluator
    output_column = "probabilities"

    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return the objective with softmax and cross-entropy."""
        from pets_core.targets.classes.objective import SingleLabel, balanced_weights

        weights = None
        if config.class_weights == "balanced":
            weights = balanced_weights(class_counts).to(device)
        return SingleLabel(config.label_smoothing, weights)

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return columns actual, predicted, its probability, loss, and all probabilities."""
        return pa.schema(
            [("actual", pa.string()), ("predicted", pa.string()), ("probability", pa.float32()),
             ("loss", pa.float32()), ("probabilities", pa.list_(pa.float32(), info.num_outputs))]
        )  # fmt: skip

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns of `schema`."""
        names = np.array(info.names, dtype=object)
        predicted = outputs.argmax(1)
        own = np.take_along_axis(outputs, targets[:, None].astype(np.int64), 1)[:, 0]
        losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
        return {
            "actual": pa.array(names[targets], pa.string()),
            "predicted": pa.array(names[predicted], pa.string()),
            "probability": pa.array(outputs.max(1)),
            "loss": pa.array(losses, pa.float32()),
            "probabilities": list_column(outputs),
        }

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return class indices, int64 (N,)."""
        index_of = {name: index for index, name in enumerate(info.names)}
        actual = table["actual"].to_pylist()
        if unknown := [name for name in actual if name not in index_of]:
            raise PetsError(
                f"{url}: actual class {unknown[0]!r} is not among its {len(index_of)} classes: "
                "predict again"
            )
        return np.array([index_of[name] for name in actual], np.int64)

    def check(self, url: str, predictions: Predictions) -> None:
        """Check that outputs are probabilities."""
        sums = predictions.outputs.sum(1, dtype=np.float64)
        # A sum of 1 implies that all values are finite.
        bad = ~(np.abs(sums - 1) < 1e-3) | (predictions.outputs.min(1) < 0)
        assert predictions.losses is not None
        raise_for_rows(
            url, predictions, bad | ~np.isfinite(predictions.losses),
            "probabilities that are not finite, or do not add up to 1",
            "Predict again; if the model returns NaN, train again with a lower train.base_lr",
        )  # fmt: skip

    def batch_columns(self, predicted: DecodedOutputs) -> dict[str, pa.Array]:
        """Return predicted, its probability, and all probabilities in class index order."""
        names = np.array([info.name for info in predicted.card.vocabulary], dtype=object)
        outputs = predicted.outputs
        return {
            "predicted": pa.array(names[outputs.argmax(1)], pa.string()),
            "probability": pa.array(outputs.max(1, initial=0)),
            "probabilities": list_column(outputs),
        }

    def count_labels(self, part: pa.Table) -> dict[str, int]:
        """Return the number of predictions of each class."""
        return Counter(part["predicted"].drop_null().to_pylist())

    def to_prediction(self, predicted: DecodedOutputs, num_top: int) -> dict[str, Any]:
        """Return the fields label (the predicted class), probability and top."""
        top = top_labels(predicted, max(num_top, 1))
        return {"label": top[0][0], "probability": top[0][1], "top": top[:num_top]}


CLASSES = Classes()
