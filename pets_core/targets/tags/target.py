"""Kind of target `tags`: any number of tags per photo."""

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
from pets_core.evaluation.gallery import Picture, fetch_photos
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

_EPSILON = float(np.finfo(np.float32).eps)
_NUM_HIGHLIGHTS = 5
_SIDE = 160


def binary_cross_entropy(
    targets: NDArray[np.bool_], probabilities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the binary cross-entropy of each photo in nats, averaged over its tags, (N,).

    Probabilities are clipped to avoid infinite losses of values that were rounded to 0 or 1.

    Args:
        targets: Actual tags of each photo, (N, C).
        probabilities: (N, C).
    """
    of_target = np.where(targets, probabilities, 1 - probabilities)
    losses: NDArray[np.float32] = -np.log(of_target.clip(_EPSILON)).mean(1).astype(np.float32)
    return losses


class TagsEvaluator(Evaluator):
    """Evaluates predicted tags at thresholds that maximise F1 of the validation photos."""

    @property
    def tags(self) -> list[str]:
        """Vocabulary of tags."""
        return self.info.names

    @cached_property
    def thresholds(self) -> Thresholds:
        """Thresholds of an earlier evaluation or of the model, or else chosen on `validation`."""
        # An earlier attempt of this run may have chosen thresholds with other settings.
        model_url = None if self.is_run_model else self.info.model_url
        for folder in filter(None, (self.evaluation_url, model_url)):
            if stored := read_thresholds(folder, self.tags):
                return stored
        if self.validation is None:
            return Thresholds.default(self.tags)
        return choose_thresholds(
            self.validation.targets, self.validation.outputs, self.tags, self.config.threshold
        )

    @cached_property
    def _predicted(self) -> NDArray[np.bool_]:
        """Predicted tags of each photo, (N, C)."""
        return self.thresholds.apply(self.predictions.outputs)

    @cached_property
    def _losses(self) -> NDArray[np.float32]:
        return binary_cross_entropy(self.predictions.targets, self.predictions.outputs)

    def score(self) -> ScoredSamples:
        """Return the F1 of each photo's tags, with their mean as the primary metric."""
        predictions = self.predictions
        scores = photo_f1(predictions.targets, self._predicted)
        rows, tags = np.nonzero(predictions.targets)
        labels = Labels(self.tags, rows, tags, self._predicted[rows, tags])
        return self.summarize(TAGS, scores, unit="%", labels=labels)

    def evaluate(self) -> Evaluation:
        """Return the metrics of each tag, thresholds, top losses and label issues."""
        predictions, validation, thresholds = self.predictions, self.validation, self.thresholds
        table = tag_table(
            self.tags, predictions.targets, predictions.outputs, self._predicted, thresholds.values
        )
        tables, figures = {"tags": table}, {}
        if validation is not None:
            from pets_core.plots.tags import threshold_curve as plot_thresholds

            curve: Any = threshold_curve(validation.targets, validation.outputs)
            tables["thresholds"] = curve
            scores = {"micro F1": curve.micro_f1, "macro F1": curve.macro_f1,
                      "accuracy_multi": curve.accuracy_multi}  # fmt: skip
            figures["thresholds"] = plot_thresholds(curve.thresholds, scores, thresholds.values)
        issues = None if validation is None else tag_issues(validation)
        num_untagged = int((~predictions.targets.any(1)).sum())
        data = thresholds.model_dump_json(indent=2).encode()
        return Evaluation(
            metrics=self._metrics(table),
            details=(
                f"{len(self.tags)} tags; {num_untagged:,} photos have none.",
                f"Thresholds: {_threshold_text(thresholds)}.",
            ),
            highlights=_highlights(table),
            sections=_sections(thresholds, issues, has_curve=validation is not None),
            tables=tables,
            figures=figures,
            gallery=self._gallery(issues),
            files={
                THRESHOLDS: data,
                **({} if issues is None else {"label_issues.csv": issues_csv(issues)}),
            },
            model_files={THRESHOLDS: data} if validation is not None else {},
            num_label_issues=None if issues is None else len(issues),
            task=f"predicts any of {len(self.tags)} tags",
        )

    def _metrics(self, table: Any) -> list[Metric]:
        targets, predicted = self.predictions.targets, self._predicted
        micro = micro_f1_interval(targets, predicted)
        shares = {
            "macro F1": f1_scores(targets, predicted)[1],
            "mAP": float(table["average_precision"].mean()),
            "exact match": exact_match(targets, predicted),
            "accuracy_multi": accuracy_multi(targets, predicted),
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
        predicted = self.thresholds.apply(values)
        ranked = [i for i in np.argsort(-values, kind="stable") if predicted[i]]
        loss = binary_cross_entropy(actual[None], values[None])[0]
        return Picture(
            photo_id=predictions.ids[row],
            actual=", ".join(self.tags[i] for i in np.flatnonzero(actual)) or "no tag",
            predicted=", ".join(f"{self.tags[i]} {values[i]:.0%}" for i in ranked) or "no tag",
            detail=f"loss {loss:.3f}",
            is_correct=bool((predicted == actual).all()),
        )


def _threshold_text(thresholds: Thresholds) -> str:
    if not thresholds.num_photos:
        return "0.5 for each tag (no validation photos to choose them on)"
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
            key="tags", title="Tags", table="tags", text="All tags, lowest F1 first.",
            percent=("average_precision", "precision", "recall", "f1"),
            description="Metrics of each tag",
        )
    ]  # fmt: skip
    if has_curve:
        sections.append(
            Section(
                key="thresholds", title="Thresholds", figure="thresholds",
                figure_alt="F1 and accuracy by threshold",
                text="A tag is predicted if its probability is at least its threshold: "
                f"{_threshold_text(thresholds)}, to maximise F1. A lower threshold predicts more "
                "wrong tags; a higher one misses more.",
                description="Metrics by threshold",
            )
        )  # fmt: skip
    sections.append(
        Section(
            key="top-losses", title="Top losses", gallery="top-losses",
            text="Photos with the highest loss.", description="Photos with the highest loss",
        )
    )  # fmt: skip
    if issues is not None:
        sections.append(
            label_issues_section(
                len(issues),
                found="a probable error in the tags (confident learning), listed in "
                "label_issues.csv. Correct wrong tags in the source and ingest again.",
                none="No probable errors in the tags of the validation photos.",
                description="Probable errors in tags",
            )
        )
    return sections


class Tags(Target):
    """Any number of tags of a vocabulary per photo; outputs are independent probabilities."""

    name = "tags"
    spec = BUILT_IN_SPECS["tags"]
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
        """Return the objective with sigmoid and binary cross-entropy."""
        from pets_core.targets.tags.objective import MultiLabel

        return MultiLabel(config.label_smoothing)

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns actual (names), loss and probabilities."""
        return pa.schema(
            [("actual", pa.list_(pa.string())), ("loss", pa.float32()),
             ("probabilities", pa.list_(pa.float32(), info.num_outputs))]
        )  # fmt: skip

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns of `schema`."""
        has, names = targets > 0, info.names
        actual = [[names[i] for i in np.flatnonzero(row)] for row in has]
        return {
            "actual": pa.array(actual, pa.list_(pa.string())),
            "loss": pa.array(binary_cross_entropy(has, outputs)),
            "probabilities": list_column(outputs),
        }

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the actual tags of each photo, bool (N, C)."""
        index_of = {tag: index for index, tag in enumerate(info.names)}
        targets = np.zeros((table.num_rows, len(index_of)), np.bool_)
        for row, tags in enumerate(table["actual"].to_pylist()):
            for tag in tags or ():
                if tag not in index_of:
                    raise PetsError(
                        f"{url}: actual tag {tag!r} is not among its {len(index_of)} tags: predict "
                        "again"
                    )
                targets[row, index_of[tag]] = True
        return targets

    def check(self, url: str, predictions: Predictions) -> None:
        """Check that outputs are probabilities."""
        values = predictions.outputs
        # The negated condition also rejects NaN.
        raise_for_rows(
            url, predictions, np.asarray(~((values >= 0) & (values <= 1)).all(1)),
            "probabilities that are not finite, or not from 0 to 1",
            "Predict again; if the model returns NaN, train again with a lower train.base_lr",
        )  # fmt: skip

    def read_decision(self, card: ModelCard, model_url: str) -> Thresholds:
        """Return the thresholds in the model's folder; 0.5 for each tag if it has none.

        Raises:
            PetsError: The file is damaged, or its tags differ from the model's.
        """
        tags = [info.name for info in card.vocabulary]
        return read_thresholds(model_url, tags) or Thresholds.default(tags)

    def parse_decision(self, data: str | None) -> Thresholds | None:
        """Parse the thresholds from the metadata of an ONNX file."""
        return Thresholds.model_validate_json(data) if data else None

    def _apply_thresholds(self, predicted: DecodedOutputs) -> NDArray[np.bool_]:
        tags = [info.name for info in predicted.card.vocabulary]
        decision = predicted.decision
        thresholds = decision if isinstance(decision, Thresholds) else Thresholds.default(tags)
        return thresholds.apply(predicted.outputs)

    def batch_columns(self, predicted: DecodedOutputs) -> dict[str, pa.Array]:
        """Return predicted, a list of tags, and all probabilities in tag index order."""
        names = [info.name for info in predicted.card.vocabulary]
        flags = self._apply_thresholds(predicted)
        tags = [[names[i] for i in np.flatnonzero(row)] for row in flags]
        return {
            "predicted": pa.array(tags, pa.list_(pa.string())),
            "probabilities": list_column(predicted.outputs),
        }

    def count_labels(self, part: pa.Table) -> dict[str, int]:
        """Return the number of predictions of each tag."""
        return Counter(tag for tags in part["predicted"].drop_null().to_pylist() for tag in tags)

    def to_prediction(self, predicted: DecodedOutputs, num_top: int) -> dict[str, Any]:
        """Return the fields top and tags (the predicted tags, most probable first)."""
        flags, outputs = self._apply_thresholds(predicted)[0], predicted.outputs[0]
        best = np.argsort(-outputs, kind="stable").tolist()
        tags = tuple(predicted.card.vocabulary[i].name for i in best if flags[i])
        return {"top": top_labels(predicted, num_top), "tags": tags}


TAGS = Tags()
