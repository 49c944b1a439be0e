"""Interface of a kind of target and of its evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from pets_core.config.evaluate import EvaluateConfig
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.evaluation.compare import Labels, ScoredSamples, reduce_scores
from pets_core.evaluation.gallery import Gallery
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.evaluation.predictions import PredictionColumns, Predictions, PredictionsInfo
from pets_core.models.card import ModelCard
from pets_core.records.base import SuggestionName
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import TargetSpec

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from pets_core.targets.objective import Objective

__all__ = [
    "NUM_GALLERY_PHOTOS",
    "DecodedOutputs",
    "Evaluation",
    "Evaluator",
    "Target",
    "baseline_warnings",
    "label_issues_section",
    "top_labels",
]

NUM_GALLERY_PHOTOS = 16
"""Number of photos in each part of the gallery."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of an evaluation, to be stored and shown.

    Attributes:
        metrics: Secondary metrics.
        baselines: Primary metric of simple predictors by their name. The report warns of those that
            the model does not beat.
        details: Numbers behind the metrics, one sentence each.
        notes: Warnings for users of the model, one sentence each.
        highlights: Short table of the worst results.
        sections: Parts of the report, in order.
        tables: Tables by name; sections refer to the names.
        figures: PNG images by name; sections refer to the names.
        gallery: Pictures by part; sections refer to the parts.
        files: Other files for users, by file name.
        model_files: Files to store in the model folder next to the weights, by file name.
        num_label_issues: Number of samples with a probable label error; None if not checked.
        task: Verb phrase for the model card, such as "predicts one of 37 classes".
        pipeline_tag: Task name of model hubs.
    """

    metrics: Sequence[Metric] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    details: Sequence[str] = ()
    notes: Sequence[str] = ()
    highlights: Highlights | None = None
    sections: Sequence[Section] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    gallery: Gallery = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    model_files: Mapping[str, bytes] = field(default_factory=dict)
    num_label_issues: int | None = None
    task: str = ""
    pipeline_tag: str = "image-classification"


class DecodedOutputs(NamedTuple):
    """Decoded outputs of a model for N unlabelled photos.

    Attributes:
        card: Model card.
        outputs: Decoded outputs, float32 (N, D).
        sizes: Width and height of each upright photo in pixels, int64 (N, 2).
        decision: Decision rule returned by `Target.read_decision`.
    """

    card: ModelCard
    outputs: NDArray[np.float32]
    sizes: NDArray[np.int64]
    decision: BaseModel | None


class Evaluator(ABC):
    """Evaluates the predictions of one model on one split, without importing torch.

    Args:
        predictions: Predictions to evaluate.
        validation: Predictions of the validation split by the same model, if any.
        config: Evaluation settings.
        is_run_model: Whether this run trained the model and may overwrite files in its folder.
        maps_url: File with activation maps of some photos, if any.
        evaluation_url: Folder of an earlier evaluation of this model, whose stored decision rule
            (such as thresholds) is used; None: use the model's, or choose one.
    """

    def __init__(
        self,
        predictions: Predictions,
        validation: Predictions | None = None,
        config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - frozen
        *,
        is_run_model: bool = False,
        maps_url: str | None = None,
        evaluation_url: str | None = None,
    ) -> None:
        self.predictions, self.validation, self.config = predictions, validation, config
        self.is_run_model, self.maps_url = is_run_model, maps_url
        self.evaluation_url = evaluation_url

    @property
    def info(self) -> PredictionsInfo:
        """Metadata of the predictions."""
        return self.predictions.info

    @abstractmethod
    def score(self) -> ScoredSamples:
        """Return the primary metric with the score of each sample."""

    def summarize(
        self,
        target: Target,
        scores: NDArray[np.float64],
        *,
        unit: str = "",
        baseline: float | None = None,
        is_root: bool = False,
        labels: Labels | None = None,
    ) -> ScoredSamples:
        """Return the scores with the primary metric: their mean and its bootstrap interval.

        Args:
            target: Kind of target.
            scores: Score of each sample, (N,).
            unit: Unit of the metric.
            baseline: Metric of always predicting the mean of the training samples.
            is_root: Whether the metric is the square root of the mean.
            labels: Labels of each sample, for kinds with labels.
        """
        interval = bootstrap_interval(partial(reduce_scores, is_root=is_root), scores)
        return ScoredSamples(
            metric=Metric(
                name=target.metric,
                higher_is_better=target.higher_is_better,
                unit=unit,
                baseline=baseline,
                **interval.model_dump(),
            ),
            ids=self.predictions.ids,
            scores=scores,
            model_url=self.info.model_url,
            is_root=is_root,
            labels=labels,
        )

    def validation_rows(self, ids: Iterable[str]) -> list[int]:
        """Return the validation rows of the first `NUM_GALLERY_PHOTOS` ids."""
        assert self.validation is not None
        row_of = {sample: row for row, sample in enumerate(self.validation.ids)}
        return [row_of[sample] for sample in islice(ids, NUM_GALLERY_PHOTOS)]

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Return the secondary metrics, tables, figures, photos and report sections."""


class Target(PredictionColumns):
    """A kind of target, such as classes, tags, numbers or coordinates.

    Subclasses define the training objective, the columns of predictions and the evaluation. Each
    has one instance, which `pets_core.targets.registry` finds by its name.

    Attributes:
        spec: Storage format of the targets in a data set.
        suggestion: Suggestion of the learning-rate finder to use.
        has_maps: Whether activation maps can be computed for the predictions.
        metric: Name of the primary metric.
        higher_is_better: Direction of the primary metric.
        metric_range: Bounds of the primary metric, if any.
        has_labels: Whether samples have labels; their recall is compared with the champion's.
        evaluator: Class that evaluates predictions.
    """

    spec: ClassVar[TargetSpec]
    suggestion: ClassVar[SuggestionName] = "limited"
    has_maps: ClassVar[bool] = False
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = False
    metric_range: ClassVar[tuple[float, float] | None] = None
    has_labels: ClassVar[bool] = False
    evaluator: ClassVar[type[Evaluator]]

    @abstractmethod
    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return the training objective: loss, activation and validation metric.

        Args:
            card: Model card.
            config: Loss, label smoothing and class weights.
            class_counts: Number of training photos of each label, for kinds with labels.
            device: Device of the logits.
        """

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Decode logits to predictions.

        Args:
            card: Model card.
            logits: (B, D).
            maps: For coordinates, homogeneous transforms from the model's view to the photo,
                (B, 3, 3); None if the view is the centre crop of the photo.

        Returns:
            Probabilities, numbers, or photo coordinates from -1 to 1, (B, D).
        """
        return self.objective(card, TrainConfig(), (), logits.device).activation(logits)

    def encode_targets(self, card: ModelCard, targets: NDArray[Any]) -> NDArray[np.float32]:
        """Return targets in the form of model outputs, which the nearest neighbours average.

        Args:
            card: Model card.
            targets: Targets as stored, (N,) or (N, D).

        Returns:
            For one label the probability 1 of its class, otherwise the targets; (N, D).
        """
        values = (
            np.eye(card.num_outputs, dtype=np.float32)[targets] if self.spec.is_label else targets
        )
        outputs: NDArray[np.float32] = values.astype(np.float32, copy=False)
        return outputs

    @abstractmethod
    def batch_columns(self, predicted: DecodedOutputs) -> dict[str, pa.Array]:
        """Return the columns of a batch-prediction file, without photo and error."""

    @abstractmethod
    def to_prediction(self, predicted: DecodedOutputs, num_top: int) -> dict[str, Any]:
        """Return the fields of the `Prediction` of one photo.

        Args:
            predicted: Outputs for this photo only, N = 1.
            num_top: Number of labels to list.
        """

    def count_labels(self, part: pa.Table) -> dict[str, int]:
        """Return the number of predictions of each label in a batch-prediction file."""
        return {}

    def read_decision(self, card: ModelCard, model_url: str) -> BaseModel | None:
        """Return the decision rule stored with a model, such as thresholds; None if it has none."""
        return None

    def parse_decision(self, data: str | None) -> BaseModel | None:
        """Parse the decision rule from the metadata of an ONNX file."""
        return None

    def check_comparable(self, model: PredictionsInfo, champion: PredictionsInfo) -> None:
        """Check that two models predict the same labels or numbers.

        Raises:
            PetsError: Their targets, labels or numbers differ.
        """
        if champion.targets != model.targets:
            raise PetsError(
                f"targets differ (champion: {champion.targets}, model: {model.targets})"
            )
        if champion.names != model.names:
            raise PetsError(
                "labels or their order differ "
                f"(champion: {len(champion.names)} labels, model: {len(model.names)})"
            )
        theirs, own = ([info.text for info in of.numbers] for of in (champion, model))
        if theirs != own:
            raise PetsError(
                f"numbers differ (champion: {', '.join(theirs)}; model: {', '.join(own)})"
            )


def top_labels(predicted: DecodedOutputs, count: int) -> tuple[tuple[str, float], ...]:
    """Return the `count` most probable labels of one photo with their probabilities."""
    outputs = predicted.outputs[0]
    best = np.argsort(-outputs, kind="stable")[:count]
    return tuple((predicted.card.vocabulary[i].name, float(outputs[i])) for i in best.tolist())


def baseline_warnings(metric: Metric, baselines: Mapping[str, float]) -> list[str]:
    """Return a sentence for each baseline that is as good as the model or better.

    Args:
        metric: Primary metric of the model.
        baselines: Value of the same metric for each baseline, by name.
    """
    sign = 1 if metric.higher_is_better else -1
    notes = []
    for name, value in baselines.items():
        if metric.value == value:
            notes.append(f"{metric.name} {metric.format()} is no better than {name}.")
        elif sign * metric.value < sign * value:
            notes.append(
                f"{metric.name} {metric.format()} is worse than {name} ({metric.format(value)})."
            )
    return notes


def label_issues_section(count: int, *, found: str, none: str, description: str) -> Section:
    """Return the report section about label issues.

    Args:
        count: Number of validation photos with an issue.
        found: Issue and remedy: the end of the sentence "N validation photos with ...".
        none: Text if `count` is 0.
        description: Description that the Prefect artifact shows.
    """
    photos = f"{count} validation photo{'s' if count > 1 else ''}"
    return Section(
        key="label-issues", title="Label issues", gallery="label-issues",
        text=f"{photos} with {found}" if count else none, description=description,
    )  # fmt: skip
