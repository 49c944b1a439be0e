"""One or several numbers a photo: the kind `numbers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core import plots
from pets_core.config.train import TrainConfig
from pets_core.errors import PetsError
from pets_core.evaluation.compare import ScoredSamples
from pets_core.evaluation.gallery import Gallery, Picture, fetch_photos
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.evaluation.predictions import (
    Predictions,
    PredictionsInfo,
    list_column,
    refuse_rows,
)
from pets_core.evaluation.tables import issues_csv
from pets_core.models.card import ModelCard
from pets_core.records.dataset import NumberInfo
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import BUILT_IN
from pets_core.targets.base import (
    NUM_GALLERY_PHOTOS,
    Evaluation,
    Evaluator,
    Predicted,
    Target,
    label_issues_section,
    valid_notes,
)
from pets_core.targets.regression.labels import number_issues
from pets_core.targets.regression.metrics import (
    baseline_of,
    have_one_unit,
    number_table,
    rmse,
    standard_errors,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pets_core.targets.objective import Objective

__all__ = ["NUMBERS", "Numbers", "NumbersEvaluator"]

_NUM_NAMED, _NUM_HIGHLIGHTS = 6, 12
_SIDE = 224

Floats = NDArray[np.float64]


class NumbersEvaluator(Evaluator):
    """Evaluates predicted numbers: RMSE and MAE, beside those of always predicting the mean."""

    @property
    def numbers(self) -> Sequence[NumberInfo]:
        """What is predicted, D numbers."""
        return self.info.numbers

    @cached_property
    def baseline(self) -> Floats:
        """The mean of the training photos, (N, D)."""
        return baseline_of(self.numbers, len(self.predictions))

    @property
    def unit(self) -> str:
        """The unit of all numbers; empty where they have none, or several."""
        units = {number.unit for number in self.numbers}
        return next(iter(units)) if len(units) == 1 else ""

    @property
    def has_one_unit(self) -> bool:
        """Whether errors of different numbers can be added."""
        return have_one_unit(self.numbers)

    @property
    def error_unit(self) -> str:
        """The unit of errors over all numbers: standard deviations where they have several."""
        return self.unit if self.has_one_unit else "SD"

    def errors(self, predicted: NDArray[Any]) -> Floats:
        """Return errors of predictions in their unit; of several units in standard deviations."""
        actual = self.predictions.targets
        if self.has_one_unit:
            return np.asarray(predicted.astype(np.float64) - actual)
        return standard_errors(self.numbers, actual, predicted)

    def score(self) -> ScoredSamples:
        """Return the squared error of each photo, the mean over its numbers."""
        squares = np.square(self.errors(self.predictions.outputs)).mean(1)
        baseline = rmse(self.errors(self.baseline))
        return self.summarize(NUMBERS, squares, unit=self.error_unit, baseline=baseline, is_root=True)

    def evaluate(self) -> Evaluation:
        """Return the errors of each number, residuals, the worst photos and label issues."""
        predictions, numbers = self.predictions, self.numbers
        table = number_table(numbers, predictions.targets, predictions.outputs)
        issues = self.issues()
        labels, units = [n.name for n in numbers], [n.unit for n in numbers]
        return Evaluation(
            metrics=self.metrics(),
            notes=self._notes(table),
            highlights=_highlights(table),
            sections=self._sections(issues),
            tables={"numbers": table},
            figures={
                "residuals": plots.residuals(
                    labels, units, predictions.targets, predictions.outputs
                )
            },
            gallery=self._gallery(issues),
            files={} if issues is None else {"label_issues.csv": issues_csv(issues)},
            num_label_issues=None if issues is None else issues["id"].nunique(),
            task=f"predicts {', '.join(number.text for number in numbers[:_NUM_NAMED])}",
            pipeline_tag="image-feature-extraction",
        )

    def issues(self) -> Any:
        """Return the probable label errors, a DataFrame; None where no photos were held out."""
        return None if self.validation is None else number_issues(self.validation)

    def metrics(self) -> list[Metric]:
        """Return the secondary metrics."""
        sizes = np.abs(self.errors(self.predictions.outputs)).mean(1)
        baseline = float(np.abs(self.errors(self.baseline)).mean())
        interval = bootstrap_interval(np.mean, sizes)
        return [
            Metric(name="MAE", unit=self.error_unit, baseline=baseline, **interval.model_dump())
        ]

    def _notes(self, table: Any) -> list[str]:
        notes = []
        # Each number beside its own baseline: grams outweigh years.
        known = table[table["baseline_rmse"] > 0]
        if ((known["rmse"] / known["baseline_rmse"]) ** 2).sum() >= len(known):
            notes.append(
                "The model is no better than always predicting the mean of the training photos."
            )
        return notes + valid_notes(self.info)

    # What photos show: overridden by coordinates, which are drawn.

    legend = ""

    @cached_property
    def photo_errors(self) -> Floats:
        """Return by how much each photo is off, (N,), to find the worst."""
        errors = standard_errors(self.numbers, self.predictions.targets, self.predictions.outputs)
        return np.sqrt(np.square(errors).mean(1))  # type: ignore[no-any-return]

    def detail(self, row: int) -> str:
        """Return how far a photo is off, as text."""
        if len(self.numbers) > 1:
            return f"{self.photo_errors[row]:.2f} standard deviations"
        predictions = self.predictions
        off = predictions.outputs[row, 0] - predictions.targets[row, 0]
        return f"{off:+.4g} {self.numbers[0].unit}".rstrip()

    def text(self, values: NDArray[Any]) -> str:
        """Return the numbers of a photo as text, the first of many."""
        alone = len(self.numbers) == 1
        shown = [
            f"{'' if alone else f'{number.name} '}{value:.4g} {number.unit}".rstrip()
            for number, value in zip(self.numbers[:_NUM_NAMED], values, strict=False)
        ]
        more = len(values) - len(shown)
        return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)

    def draw(self, predictions: Predictions, row: int, jpeg: bytes) -> bytes:
        """Return the photo of a row, drawn on where that shows more."""
        return jpeg

    def _gallery(self, issues: Any) -> Gallery:
        worst = np.argsort(-self.photo_errors, kind="stable")[:NUM_GALLERY_PHOTOS]
        details = {row: self.detail(row) for row in worst.tolist()}
        gallery = self._part("worst-errors", self.predictions, details)
        if issues is None or self.validation is None:
            return gallery
        first = issues.drop_duplicates("id")[:NUM_GALLERY_PHOTOS]
        rows = zip(self.validation_rows(first["id"]), first["quality"], strict=True)
        details = {row: f"quality {quality:.2f}" for row, quality in rows}
        return {**gallery, **self._part("label-issues", self.validation, details)}

    def _part(self, name: str, predictions: Predictions, details: dict[int, str]) -> Gallery:
        """Return a part of the gallery: some rows, each with its detail."""
        pictures = [
            Picture(
                photo_id=predictions.ids[row],
                actual=self.text(predictions.targets[row]),
                predicted=self.text(predictions.outputs[row]),
                detail=detail,
            )
            for row, detail in details.items()
        ]
        place = {predictions.ids[row]: row for row in details}
        return fetch_photos(
            {name: pictures}, self.info.dataset_url, _SIDE,
            draw=lambda photo_id, jpeg: self.draw(predictions, place[photo_id], jpeg),
        )  # fmt: skip

    def _sections(self, issues: Any) -> list[Section]:
        more = len(self.numbers) - plots.MAX_RESIDUALS
        sections = [
            Section(
                key="numbers", title="Errors", table="numbers",
                text="Errors of each number, and of always predicting the training photos' mean "
                "(baseline).",
                description="Errors of each number, beside the baseline's",
            ),
            Section(
                key="residuals", title="Residuals", figure="residuals",
                figure_alt="Predicted over actual values, and their difference",
                text="Predicted over actual values: on the broken line both are the same. To the "
                f"right, the errors.{f' {more} more numbers are not drawn.' if more > 0 else ''}",
                description="Predicted over actual values",
            ),
            Section(
                key="worst-errors", title="Worst errors", gallery="worst-errors",
                text=f"The photos of greatest error.{self.legend}",
                description="The photos of greatest error",
            ),
        ]  # fmt: skip
        if issues is not None:
            sections.append(
                label_issues_section(
                    issues["id"].nunique(),
                    found="target is probably wrong, by outliers of the residuals; "
                    "label_issues.csv lists them. Correct those that are wrong in the source, and "
                    "ingest again.",
                    none="No target of the validation photos looks wrong.",
                    description="Targets that are probably wrong",
                )
            )
        return sections


def _highlights(table: Any) -> Highlights:
    return Highlights(
        title="MAE, and that of always predicting the mean",
        columns=("number", "MAE", "baseline", "unit"),
        rows=tuple(
            (row.name, f"{row.mae:.4g}", f"{row.baseline_mae:.4g}", row.unit)
            for row in table[:_NUM_HIGHLIGHTS].itertuples(index=False, name="Number")
        ),
    )


class Numbers(Target):
    """One or several numbers a photo. Outputs are numbers in the targets' units."""

    name = "numbers"
    spec = BUILT_IN["numbers"]
    suggestion = "valley"
    metric = "RMSE"
    evaluator: ClassVar[type[Evaluator]] = NumbersEvaluator
    output_column = "predicted"

    def objective(
        self,
        card: ModelCard,
        config: TrainConfig,
        class_counts: Sequence[int],
        device: torch.device,
    ) -> Objective:
        """Return regression in standard deviations of the training photos."""
        import torch

        from pets_core.targets.regression.objective import Regression, widened

        numbers = card.numbers
        return Regression(
            widened(card.y_range) if card.y_range else None,
            loss=config.number_loss,
            mean=torch.tensor([info.mean for info in numbers], device=device),
            std=torch.tensor([info.std for info in numbers], device=device),
            unit=numbers[0].unit,
            alike=have_one_unit(numbers),
        )

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Return numbers within the range of the card, if it has one."""
        numbers = super().decode(card, logits)
        return numbers.clamp(*card.y_range) if card.y_range else numbers

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Columns actual and predicted, a list of numbers each."""
        numbers = pa.list_(pa.float32(), info.num_outputs)
        return pa.schema([("actual", numbers), ("predicted", numbers)])

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns."""
        return {
            "actual": list_column(targets.astype(np.float32)), "predicted": list_column(outputs)
        }  # fmt: skip

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the numbers of each photo, float32 (N, D)."""
        column = table["actual"].combine_chunks()
        # Flattening skips them, and the numbers of all later photos would move up.
        if column.null_count:
            raise PetsError(f"{url}: {column.null_count} samples have no actual: predict again")
        values = column.flatten().to_numpy(zero_copy_only=False)
        targets: NDArray[np.float32] = values.reshape(-1, info.num_outputs)
        return targets

    def check(self, url: str, predictions: Predictions) -> None:
        """Refuse numbers that are not finite."""
        for values, what, remedy in (
            (predictions.targets, "actual", "Correct the numbers of the source and ingest again"),
            (predictions.outputs, "predicted",
             "Predict again; of a model that gives NaN, lower its train.base_lr"),
        ):  # fmt: skip
            bad = np.asarray(~np.isfinite(values).all(1))
            refuse_rows(url, predictions, bad, f"{what} numbers that are not finite", remedy)

    def values(self, predicted: Predicted) -> NDArray[np.float64]:
        """Return outputs as people read them, (N, D)."""
        return predicted.outputs.astype(np.float64)

    def batch_columns(self, predicted: Predicted) -> dict[str, pa.Array]:
        """Return a column `predicted_<name>` for each number; coordinates in pixels."""
        values = self.values(predicted)
        return {
            f"predicted_{info.name}": pa.array(values[:, place])
            for place, info in enumerate(predicted.card.numbers)
        }

    def to_prediction(self, predicted: Predicted, num_top: int) -> dict[str, Any]:
        """Return numbers by name; coordinates in pixels."""
        names = (info.name for info in predicted.card.numbers)
        return {"numbers": dict(zip(names, self.values(predicted)[0].tolist(), strict=True))}


NUMBERS = Numbers()
