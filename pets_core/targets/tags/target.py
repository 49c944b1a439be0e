"""Any number of tags a photo: the kind `tags`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import plots
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.evaluation.compare import Labels, ScoredSamples
from pets_core.evaluation.gallery import Picture, fetch_photos
from pets_core.evaluation.predictions import (
    Predictions,
    PredictionsInfo,
    list_column,
    refuse_rows,
)
from pets_core.evaluation.tables import issues_csv
from pets_core.models.card import ModelCard
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import BUILT_IN
from pets_core.targets.base import (
    NUM_GALLERY_PHOTOS,
    Evaluation,
    Evaluator,
    Predicted,
    Target,
    label_issues_section,
    top_labels,
    valid_notes,
)
from pets_core.targets.tags.labels import tag_issues
from pets_core.targets.tags.metrics import (
    accuracy_multi,
    exact_match,
    f1_scores,
    micro_f1_interval,
    photo_f1,
    tag_table,
)
from pets_core.targets.tags.thresholds import (
    THRESHOLDS,
    Thresholds,
    choose_thresholds,
    read_thresholds,
    threshold_curve,
)

if TYPE_CHECKING:
    import torch

    from pets_core.targets.objective import Objective

__all__ = ["TAGS", "Tags", "TagsEvaluator", "binary_cross_entropy"]

_LEAST = float(np.finfo(np.float32).eps)
_NUM_HIGHLIGHTS = 5
_SIDE = 160


def binary_cross_entropy(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean over each photo's tags, nats: (N, C) twice to (N,).

    A probability of 0 or 1 is what rounding made of one near it.
    """
    of_target = np.where(targets, probabilities, 1 - probabilities)
    losses: NDArray[np.float32] = -np.log(of_target.clip(_LEAST)).mean(1).astype(np.float32)
    return losses


class TagsEvaluator(Evaluator):
    """Evaluates predicted tags at thresholds that maximise F1 on the validation photos."""

    @property
    def tags(self) -> list[str]:
        """The vocabulary."""
        return self.info.names

    @cached_property
    def thresholds(self) -> Thresholds:
        """The model's own thresholds; where it has none, those that validation photos give."""
        # Those of an earlier attempt of this run may have been chosen by another setting.
        known = None if self.is_own else read_thresholds(self.info.model_url, self.tags)
        if known is not None:
            return known
        if self.validation is None:
            return Thresholds.halves(self.tags)
        return choose_thresholds(
            self.validation.targets, self.validation.outputs, self.tags, self.config.threshold
        )

    @cached_property
    def _given(self) -> NDArray[np.bool_]:
        """Which tags each photo is given, (N, C)."""
        return self.thresholds.given(self.predictions.outputs)

    @cached_property
    def _losses(self) -> NDArray[np.float32]:
        return binary_cross_entropy(self.predictions.targets, self.predictions.outputs)

    def score(self) -> ScoredSamples:
        """Return the F1 of each photo's tags."""
        predictions = self.predictions
        scores = photo_f1(predictions.targets, self._given)
        rows, tags = np.nonzero(predictions.targets)
        labels = Labels(self.tags, rows, tags, self._given[rows, tags])
        return self.summarize(TAGS, scores, unit="%", labels=labels)

    def evaluate(self) -> Evaluation:
        """Return the metrics of each tag, the thresholds, photos and label issues."""
        predictions, validation, thresholds = self.predictions, self.validation, self.thresholds
        table = tag_table(
            self.tags, predictions.targets, predictions.outputs, self._given, thresholds.values
        )
        tables, figures = {"tags": table}, {}
        if validation is not None:
            import pandas as pd

            curve = threshold_curve(validation.targets, validation.outputs)
            tables["thresholds"] = pd.DataFrame(curve.model_dump())
            scores = {"micro F1": curve.micro_f1, "macro F1": curve.macro_f1,
                      "accuracy_multi": curve.accuracy_multi}  # fmt: skip
            figures["thresholds"] = plots.threshold_curve(
                curve.thresholds, scores, thresholds.values
            )
        issues = None if validation is None else tag_issues(validation)
        num_untagged = int((~predictions.targets.any(1)).sum())
        data = thresholds.model_dump_json(indent=2).encode()
        return Evaluation(
            metrics=self._metrics(table),
            details=(
                f"{len(self.tags)} tags; {num_untagged:,} photos have none.",
                f"Thresholds: {_threshold_text(thresholds)}.",
            ),
            notes=valid_notes(self.info),
            highlights=_highlights(table),
            sections=_sections(thresholds, issues, has_curve=validation is not None),
            tables=tables,
            figures=figures,
            gallery=self._gallery(issues),
            files={} if issues is None else {"label_issues.csv": issues_csv(issues)},
            model_files={THRESHOLDS: data} if validation is not None else {},
            num_label_issues=None if issues is None else len(issues),
            task=f"gives any of {len(self.tags)} tags",
        )

    def _metrics(self, table: Any) -> list[Metric]:
        targets, given = self.predictions.targets, self._given
        micro = micro_f1_interval(targets, given)
        shares = {
            "macro F1": f1_scores(targets, given)[1],
            "mAP": float(table["average_precision"].mean()),
            "exact match": exact_match(targets, given),
            "accuracy_multi": accuracy_multi(targets, given),
        }
        return [
            Metric(name="micro F1", higher_is_better=True, unit="%", **micro.model_dump()),
            *(
                Metric(name=name, value=value, higher_is_better=True, unit="%")
                for name, value in shares.items()
                if np.isfinite(value)
            ),
            Metric(
                name="binary cross-entropy",
                value=float(self._losses.mean(dtype=np.float64)),
                unit="nats",
            ),
        ]

    def _gallery(self, issues: Any) -> Any:
        worst = np.argsort(-self._losses, kind="stable")[:NUM_GALLERY_PHOTOS]
        parts = {"top-losses": [self._picture(row) for row in worst]}
        if issues is not None:
            parts["label-issues"] = [
                self._picture(row, self.validation) for row in self.validation_rows(issues["id"])
            ]
        return fetch_photos(parts, self.info.dataset_url, _SIDE)

    def _picture(self, row: int, predictions: Predictions | None = None) -> Picture:
        predictions = predictions or self.predictions
        values, actual = predictions.outputs[row], predictions.targets[row]
        given = self.thresholds.given(values)
        chosen = [i for i in np.argsort(-values, kind="stable") if given[i]]
        loss = binary_cross_entropy(actual[None], values[None])[0]
        return Picture(
            photo_id=predictions.ids[row],
            actual=", ".join(self.tags[i] for i in np.flatnonzero(actual)) or "no tag",
            predicted=", ".join(f"{self.tags[i]} {values[i]:.0%}" for i in chosen) or "no tag",
            detail=f"loss {loss:.3f}",
            is_correct=bool((given == actual).all()),
        )


def _threshold_text(thresholds: Thresholds) -> str:
    if not thresholds.num_photos:
        return "0.5 for each tag, for there were no validation photos to choose them on"
    chosen = f"chosen on {thresholds.num_photos:,} validation photos"
    if thresholds.kind == "per_tag":
        return f"one for each tag, {chosen}"
    return f"{thresholds.values[0]:.2f} for all tags, {chosen}"


def _highlights(table: Any) -> Highlights:
    known = table[table["support"] > 0][:_NUM_HIGHLIGHTS]
    return Highlights(
        title="Lowest F1",
        columns=("tag", "photos", "F1", "precision", "recall"),
        rows=tuple(
            (tag.name, str(tag.support),
             *("-" if np.isnan(x) else f"{x:.1%}" for x in (tag.f1, tag.precision, tag.recall)))
            for tag in known.itertuples(index=False, name="Tag")
        ),
    )  # fmt: skip


def _sections(thresholds: Thresholds, issues: Any, *, has_curve: bool) -> list[Section]:
    sections = [
        Section(
            key="tags", title="Tags", table="tags", text="Every tag, lowest F1 first.",
            percent=("average_precision", "precision", "recall", "f1"),
            description="Metrics of every tag",
        )
    ]  # fmt: skip
    if has_curve:
        sections.append(
            Section(
                key="thresholds", title="Thresholds", figure="thresholds",
                figure_alt="F1 and accuracy over the threshold",
                text="A tag is given where its probability is at least its threshold: "
                f"{_threshold_text(thresholds)}, by F1. Below it, photos get tags that they do not "
                "have; above it, they lack some.",
                description="Scores over the threshold",
            )
        )  # fmt: skip
    sections.append(
        Section(
            key="top-losses", title="Top losses", gallery="top-losses",
            text="The photos of greatest loss.", description="The photos of greatest loss",
        )
    )  # fmt: skip
    if issues is not None:
        sections.append(
            label_issues_section(
                len(issues),
                found="tags are probably wrong, by confident learning; label_issues.csv lists "
                "them. Correct those that are wrong in the source, and ingest again.",
                none="No tags of the validation photos look wrong.",
                description="Tags that are probably wrong",
            )
        )
    return sections


class Tags(Target):
    """Any number of tags of a vocabulary a photo. Outputs are probabilities, each by itself."""

    name = "tags"
    spec = BUILT_IN["tags"]
    metric = "F1 per photo"
    metric_range = (0.0, 1.0)
    higher_is_better = True
    has_labels = True
    evaluator = TagsEvaluator
    output_column = "probabilities"

    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return sigmoid and binary cross-entropy."""
        from pets_core.targets.tags.objective import MultiLabel

        return MultiLabel(config.label_smoothing)

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Columns actual (names), loss and probabilities."""
        return pa.schema(
            [("actual", pa.list_(pa.string())), ("loss", pa.float32()),
             ("probabilities", pa.list_(pa.float32(), info.num_outputs))]
        )  # fmt: skip

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns."""
        has, names = targets > 0, info.names
        actual = [[names[i] for i in np.flatnonzero(row)] for row in has]
        return {
            "actual": pa.array(actual, pa.list_(pa.string())),
            "loss": pa.array(binary_cross_entropy(has, outputs)),
            "probabilities": list_column(outputs),
        }

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return which tags each photo has, bool (N, C)."""
        index = {tag: place for place, tag in enumerate(info.names)}
        targets = np.zeros((table.num_rows, len(index)), np.bool_)
        for row, tags in enumerate(table["actual"].to_pylist()):
            for tag in tags or ():
                if tag not in index:
                    raise PetsError(
                        f"{url}: {tag!r} is actual, but not among its {len(index)} tags"
                    )
                targets[row, index[tag]] = True
        return targets

    def check(self, url: str, predictions: Predictions) -> None:
        """Refuse outputs that are no probabilities."""
        values = predictions.outputs
        # Written so that NaN is bad, too.
        refuse_rows(
            url, predictions, np.asarray(~((values >= 0) & (values <= 1)).all(1)),
            "probabilities that are not finite, or not from 0 to 1",
            "Predict again; of a model that gives NaN, lower its train.base_lr",
        )  # fmt: skip

    def read_decision(self, card: ModelCard, model_url: str) -> Thresholds:
        """Return the model's thresholds; one half where it has none."""
        tags = [info.name for info in card.classes]
        return read_thresholds(model_url, tags) or Thresholds.halves(tags)

    def decision_of(self, data: str | None) -> Thresholds | None:
        """Return the thresholds in an ONNX file."""
        return Thresholds.model_validate_json(data) if data else None

    def _given(self, predicted: Predicted) -> NDArray[np.bool_]:
        tags = [info.name for info in predicted.card.classes]
        decision = predicted.decision
        thresholds = decision if isinstance(decision, Thresholds) else Thresholds.halves(tags)
        return thresholds.given(predicted.outputs)

    def batch_columns(self, predicted: Predicted) -> dict[str, pa.Array]:
        """Return predicted, a list of tags, and all probabilities in the model's order."""
        names = [info.name for info in predicted.card.classes]
        given = [[names[i] for i in np.flatnonzero(row)] for row in self._given(predicted)]
        return {
            "predicted": pa.array(given, pa.list_(pa.string())),
            "probabilities": list_column(predicted.outputs),
        }

    def count_labels(self, part: pa.Table) -> dict[str, int]:
        """Return how often each tag was predicted."""
        return Counter(tag for tags in part["predicted"].drop_null().to_pylist() for tag in tags)

    def to_prediction(self, predicted: Predicted, num_top: int) -> dict[str, Any]:
        """Return top, and tags: those that are given, the most probable first."""
        given, outputs = self._given(predicted)[0], predicted.outputs[0]
        best = np.argsort(-outputs, kind="stable").tolist()
        tags = tuple(predicted.card.classes[i].name for i in best if given[i])
        return {"top": top_labels(predicted, num_top), "tags": tags}


TAGS = Tags()
