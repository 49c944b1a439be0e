"""The interface of a kind of target, and what its evaluation consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

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
from pets_core.evaluation.predictions import Predictions, PredictionsInfo
from pets_core.models.card import ModelCard
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import TargetSpec

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from pets_core.targets.objective import Objective

__all__ = [
    "NUM_SHOWN",
    "Evaluation",
    "Evaluator",
    "Predicted",
    "Target",
    "issues_section",
    "top_labels",
    "valid_notes",
]

NUM_SHOWN = 16
"""Photos of a part of the gallery."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that an evaluation of predictions writes and shows.

    Attributes:
        metrics: Secondary metrics.
        details: Figures behind the metrics, a sentence each.
        notes: What to know before relying on the model, a sentence each.
        highlights: Where the model is worst.
        sections: Parts of the report, in order.
        tables: Tables by name, as sections refer to them.
        figures: PNGs by name, likewise.
        gallery: Pictures by part, likewise.
        files: Other files for people, by name.
        model_files: Files to keep beside the weights of a model that this run trained, by name.
        num_label_issues: Samples whose label is probably wrong; None: none were looked for.
        task: What the model does, for its card: "names one of 37 classes".
        pipeline_tag: Of model hubs.
    """

    metrics: Sequence[Metric] = ()
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


class Predicted(NamedTuple):
    """What a model predicts of N photos without targets.

    Attributes:
        card: Of the model.
        outputs: Decoded, float32 (N, D).
        sizes: Width and height of each photo, pixels, upright, int64 (N, 2).
        decision: As `Target.read_decision` returns it.
    """

    card: ModelCard
    outputs: NDArray[np.float32]
    sizes: NDArray[np.int64]
    decision: BaseModel | None


class Evaluator(ABC):
    """Evaluates the predictions of one model on one split; no torch.

    Args:
        predictions: To be evaluated.
        validation: Predictions of the validation split by the same model, where there are any.
        config: Settings of the evaluation.
        is_own: Whether this run trained the model, so that files may be kept beside it.
        maps_url: File with activation maps of some photos, if there is one.
    """

    def __init__(
        self,
        predictions: Predictions,
        validation: Predictions | None = None,
        config: EvaluateConfig = EvaluateConfig(),  # noqa: B008 - frozen
        *,
        is_own: bool = False,
        maps_url: str | None = None,
    ) -> None:
        self.predictions, self.validation, self.config = predictions, validation, config
        self.is_own, self.maps_url = is_own, maps_url

    @property
    def info(self) -> PredictionsInfo:
        """Metadata of the predictions."""
        return self.predictions.info

    @abstractmethod
    def score(self) -> ScoredSamples:
        """Return the primary metric, sample by sample."""

    def scored(
        self,
        target: Target,
        scores: NDArray[np.float64],
        *,
        unit: str = "",
        baseline: float | None = None,
        is_root: bool = False,
        labels: Labels | None = None,
    ) -> ScoredSamples:
        """Return scores with the primary metric of a kind: their mean, and its bootstrap interval.

        Args:
            target: The kind.
            scores: Of each sample, (N,).
            unit: Of the metric.
            baseline: The metric of always predicting the mean of the training samples.
            is_root: Whether the metric is the root of the mean.
            labels: What each sample carries, of kinds that have labels.
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
        """Return the rows of the first validation samples that are named, to be shown."""
        assert self.validation is not None
        place = {sample: row for row, sample in enumerate(self.validation.ids)}
        return [place[sample] for sample in islice(ids, NUM_SHOWN)]

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Return the tables, figures, photos and sentences."""


class Target(ABC):
    """A kind of target: what a model predicts of a photo.

    Subclasses describe how predictions are stored (as `PredictionColumns`) and how they are
    evaluated. One instance of each is registered by its name (`pets_core.targets.registry`).

    Attributes:
        name: As `source.targets` has it: of a kind of your own, "module:object".
        spec: How a data set stores its targets.
        suggestion: The suggestion of the learning-rate finder that suits it.
        has_maps: Whether activation maps show where the model looked for its prediction.
        metric: Name of the primary metric.
        higher_is_better: Its direction.
        metric_range: Its bounds, if it has any.
        has_labels: Whether samples carry labels, whose recall is compared with the champion's.
        evaluator: Evaluates predictions.
        output_column: Column of the predictions with the outputs.
    """

    name: ClassVar[str]
    spec: ClassVar[TargetSpec]
    suggestion: ClassVar[Literal["steepest", "valley"]] = "steepest"
    has_maps: ClassVar[bool] = False
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = False
    metric_range: ClassVar[tuple[float, float] | None] = None
    has_labels: ClassVar[bool] = False
    evaluator: ClassVar[type[Evaluator]]
    output_column: ClassVar[str]

    @abstractmethod
    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return loss, activation and validation metric.

        Args:
            card: Of the model.
            config: Loss, smoothing, class weights.
            class_counts: Training photos of each label, of kinds that have labels.
            device: Of the logits.
        """

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return predictions from logits.

        Args:
            card: Of the model.
            logits: (B, D).
            maps: Of kinds with coordinates: from coordinates on the model's view to those on the
                photo, (B, 3, 3); None: the view is the middle of the photo.

        Returns:
            (B, D): probabilities, numbers, or coordinates on the photo from -1 to 1.
        """
        return self.objective(card, TrainConfig(), (), logits.device).activation(logits)

    @abstractmethod
    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns of a file of predictions, besides id and embedding."""

    @abstractmethod
    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return these columns for some samples.

        Args:
            info: Metadata of the file.
            targets: (N,) or (N, D).
            outputs: (N, D), as decoded.
        """

    @abstractmethod
    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the targets of a file, (N,) or (N, D), from its columns without the outputs."""

    @abstractmethod
    def check(self, url: str, predictions: Predictions) -> None:
        """Refuse targets or outputs that cannot be.

        Raises:
            PetsError: Some cannot be, as NaN.
        """

    @abstractmethod
    def batch_columns(self, predicted: Predicted) -> dict[str, pa.Array]:
        """Return the columns of a file of batch predictions, besides photo and error."""

    @abstractmethod
    def to_prediction(self, predicted: Predicted, num_top: int) -> dict[str, Any]:
        """Return the fields of the `Prediction` of one photo.

        Args:
            predicted: Of this photo alone.
            num_top: How many labels to list.
        """

    def count_labels(self, part: pa.Table) -> dict[str, int]:
        """Return how often each label was predicted in a file of batch predictions."""
        return {}

    def read_decision(self, card: ModelCard, model_url: str) -> BaseModel | None:
        """Return what else is needed to decide by a model's outputs, as thresholds, if anything."""
        return None

    def decision_of(self, data: str | None) -> BaseModel | None:
        """Return the same from the metadata of an ONNX file."""
        return None

    def check_comparable(self, model: PredictionsInfo, champion: PredictionsInfo) -> None:
        """Refuse to compare models that predict different things.

        Raises:
            PetsError: They do.
        """
        if champion.targets != model.targets:
            raise PetsError(
                f"it predicts targets = {champion.targets} and this model targets = {model.targets}"
            )
        if champion.names != model.names:
            raise PetsError(
                f"it knows {len(champion.names)} classes and this model {len(model.names)}, not "
                "the same ones in the same order"
            )
        theirs, own = ([info.text for info in of.numbers] for of in (champion, model))
        if theirs != own:
            raise PetsError(f"it predicts {', '.join(theirs)} and this model {', '.join(own)}")


def top_labels(predicted: Predicted, count: int) -> tuple[tuple[str, float], ...]:
    """Return the most probable labels of one photo and their probabilities, in their order."""
    outputs = predicted.outputs[0]
    best = np.argsort(-outputs, kind="stable")[:count]
    return tuple((predicted.card.classes[i].name, float(outputs[i])) for i in best.tolist())


def valid_notes(info: PredictionsInfo, samples: str = "photos") -> list[str]:
    """Return the note on an evaluation of the validation split; none of another split."""
    if info.split != "valid":
        return []
    return [f"There are no test {samples}: what is chosen by these looks better than it is."]


def issues_section(count: int, *, found: str, none: str, description: str) -> Section:
    """Return the section of label issues.

    Args:
        count: Validation photos with one.
        found: What is wrong with them and what to do, after "validation photos whose".
        none: The sentence where there are none.
        description: Of the artifact.
    """
    photos = f"{count} validation photo{'s' if count > 1 else ''}"
    return Section(
        key="label-issues", title="Label issues", gallery="label-issues",
        text=f"{photos} whose {found}" if count else none, description=description,
    )  # fmt: skip
