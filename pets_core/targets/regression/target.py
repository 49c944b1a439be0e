"""Kind of target `numbers`: one or several numbers per photo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pets_core.config.train import TrainConfig
from pets_core.data.dataset import list_column
from pets_core.errors import PetsError
from pets_core.evaluation.compare import ScoredSamples
from pets_core.evaluation.gallery import Gallery, Picture, fetch_photos
from pets_core.evaluation.intervals import bootstrap_interval
from pets_core.evaluation.predictions import (
    Predictions,
    PredictionsInfo,
    raise_for_rows,
)
from pets_core.evaluation.tables import issues_csv
from pets_core.models.card import ModelCard
from pets_core.records.dataset import NumberInfo
from pets_core.records.evaluation import Highlights, Metric, Section
from pets_core.records.target_spec import BUILT_IN_SPECS
from pets_core.targets.base import (
    NUM_GALLERY_PHOTOS,
    DecodedOutputs,
    Evaluation,
    Evaluator,
    Target,
    label_issues_section,
)
from pets_core.targets.regression.labels import number_issues
from pets_core.targets.regression.metrics import (
    have_one_unit,
    mean_baseline,
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
    """Evaluates predicted numbers: RMSE and MAE, compared with predicting the mean."""

    @property
    def numbers(self) -> Sequence[NumberInfo]:
        """Predicted numbers, D."""
        return self.info.numbers

    @cached_property
    def baseline(self) -> Floats:
        """Baseline predictions, the mean of the training photos, (N, D)."""
        return mean_baseline(self.numbers, len(self.predictions))

    @property
    def error_unit(self) -> str:
        """Unit of errors over all numbers: their common one, or SD (standard deviations)."""
        return self.numbers[0].unit if have_one_unit(self.numbers) else "SD"

    def errors(self, predicted: NDArray[Any]) -> Floats:
        """Return errors in `error_unit`, (N, D)."""
        actual = self.predictions.targets
        if have_one_unit(self.numbers):
            return np.asarray(predicted.astype(np.float64) - actual)
        return standard_errors(self.numbers, actual, predicted)

    def score(self) -> ScoredSamples:
        """Return the RMSE; the score of a photo is the mean squared error of its numbers."""
        mse = np.square(self.errors(self.predictions.outputs)).mean(1)
        baseline = rmse(self.errors(self.baseline))
        return self.summarize(NUMBERS, mse, unit=self.error_unit, baseline=baseline, is_root=True)

    def evaluate(self) -> Evaluation:
        """Return the errors of each number, residuals, worst photos and label issues."""
        from pets_core.plots.regression import residuals

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
                "residuals": residuals(labels, units, predictions.targets, predictions.outputs)
            },
            gallery=self._gallery(issues),
            files={} if issues is None else {"label_issues.csv": issues_csv(issues)},
            num_label_issues=None if issues is None else issues["id"].nunique(),
            task=f"predicts {', '.join(number.text for number in numbers[:_NUM_NAMED])}",
            pipeline_tag="image-feature-extraction",
        )

    def issues(self) -> Any:
        """Return a DataFrame of probable label errors; None without validation photos."""
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
        # Compare each number with its own baseline, since their scales differ.
        known = table[table["baseline_rmse"] > 0]
        if ((known["rmse"] / known["baseline_rmse"]) ** 2).sum() >= len(known):
            notes.append(
                "The model is no better than always predicting the mean of the training photos."
            )
        return notes

    # Coordinates override the following attributes to draw on photos.

    legend = ""

    @cached_property
    def photo_errors(self) -> Floats:
        """Error of each photo by which the worst are found, (N,)."""
        errors = standard_errors(self.numbers, self.predictions.targets, self.predictions.outputs)
        return np.sqrt(np.square(errors).mean(1))  # type: ignore[no-any-return]

    def format_error(self, row: int) -> str:
        """Format the error of a photo."""
        if len(self.numbers) > 1:
            return f"{self.photo_errors[row]:.2f} standard deviations"
        predictions = self.predictions
        error = predictions.outputs[row, 0] - predictions.targets[row, 0]
        return f"{error:+.4g} {self.numbers[0].unit}".rstrip()

    def format_values(self, values: NDArray[Any]) -> str:
        """Format the values of a photo, such as "length 3.2 cm; and 2 more".

        At most `_NUM_NAMED` values are shown; a single value has no name.
        """
        is_single = len(self.numbers) == 1
        shown = [
            f"{'' if is_single else f'{number.name} '}{value:.4g} {number.unit}".rstrip()
            for number, value in zip(self.numbers[:_NUM_NAMED], values, strict=False)
        ]
        more = len(values) - len(shown)
        return "; ".join([*shown, f"and {more} more"] if more > 0 else shown)

    def draw(self, predictions: Predictions, row: int, jpeg: bytes) -> bytes:
        """Draw the targets on the photo of a row; numbers leave it unchanged."""
        return jpeg

    def _gallery(self, issues: Any) -> Gallery:
        worst = np.argsort(-self.photo_errors, kind="stable")[:NUM_GALLERY_PHOTOS]
        details = {row: self.format_error(row) for row in worst.tolist()}
        gallery = self._part("worst-errors", self.predictions, details)
        if issues is None or self.validation is None:
            return gallery
        first = issues.drop_duplicates("id")[:NUM_GALLERY_PHOTOS]
        rows = zip(self.validation_rows(first["id"]), first["quality"], strict=True)
        details = {row: f"quality {quality:.2f}" for row, quality in rows}
        return {**gallery, **self._part("label-issues", self.validation, details)}

    def _part(self, name: str, predictions: Predictions, details: dict[int, str]) -> Gallery:
        """Return one part of the gallery, given the rows and their detail text."""
        pictures = [
            Picture(
                photo_id=predictions.ids[row],
                actual=self.format_values(predictions.targets[row]),
                predicted=self.format_values(predictions.outputs[row]),
                detail=detail,
            )
            for row, detail in details.items()
        ]
        row_of = {predictions.ids[row]: row for row in details}
        return fetch_photos(
            {name: pictures}, self.info.dataset_url, _SIDE,
            draw=lambda photo_id, jpeg: self.draw(predictions, row_of[photo_id], jpeg),
        )  # fmt: skip

    def _sections(self, issues: Any) -> list[Section]:
        from pets_core.plots.regression import MAX_RESIDUALS

        more = len(self.numbers) - MAX_RESIDUALS
        sections = [
            Section(
                key="numbers", title="Errors", table="numbers",
                text="Errors of each number. Baseline: always predict the mean of the training "
                "photos.",
                description="Errors of each number and of the baseline",
            ),
            Section(
                key="residuals", title="Residuals", figure="residuals",
                figure_alt="Predicted against actual values, and residuals",
                text="Left: predicted against actual values; the dashed line marks equality. "
                f"Right: residuals.{f' {more} more numbers are not shown.' if more > 0 else ''}",
                description="Predicted against actual values",
            ),
            Section(
                key="worst-errors", title="Worst errors", gallery="worst-errors",
                text=f"Photos with the largest error.{self.legend}",
                description="Photos with the largest error",
            ),
        ]  # fmt: skip
        if issues is not None:
            sections.append(
                label_issues_section(
                    issues["id"].nunique(),
                    found="a probable error in the target (outliers of the residuals), listed in "
                    "label_issues.csv. Correct wrong targets in the source and ingest again.",
                    none="No probable errors in the targets of the validation photos.",
                    description="Probable errors in targets",
                )
            )
        return sections


def _highlights(table: Any) -> Highlights:
    return Highlights(
        title="MAE and baseline (always predict the mean)",
        columns=("number", "MAE", "baseline", "unit"),
        rows=tuple(
            (row.name, f"{row.mae:.4g}", f"{row.baseline_mae:.4g}", row.unit)
            for row in table[:_NUM_HIGHLIGHTS].itertuples(index=False, name="Number")
        ),
    )


class Numbers(Target):
    """One or several numbers per photo; outputs are numbers in the targets' units."""

    name = "numbers"
    spec = BUILT_IN_SPECS["numbers"]
    suggestion = "minimum"
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
        """Return the regression objective, scaled by mean and std of the training photos."""
        import torch

        from pets_core.targets.regression.objective import Regression, widen_range

        numbers = card.numbers
        return Regression(
            widen_range(card.y_range) if card.y_range else None,
            loss=config.number_loss,
            mean=torch.tensor([info.mean for info in numbers], device=device),
            std=torch.tensor([info.std for info in numbers], device=device),
            unit=numbers[0].unit,
            has_one_unit=have_one_unit(numbers),
        )

    def decode(self, card: ModelCard, logits: Tensor, maps: Tensor | None = None) -> Tensor:
        """Decode logits to numbers, clamped to the range of the card, if any."""
        numbers = super().decode(card, logits)
        return numbers.clamp(*card.y_range) if card.y_range else numbers

    def schema(self, info: PredictionsInfo) -> pa.Schema:
        """Return the columns actual and predicted, lists of D numbers."""
        numbers = pa.list_(pa.float32(), info.num_outputs)
        return pa.schema([("actual", numbers), ("predicted", numbers)])

    def to_columns(
        self, info: PredictionsInfo, targets: NDArray[Any], outputs: NDArray[np.float32]
    ) -> dict[str, pa.Array]:
        """Return the columns of `schema`."""
        return {
            "actual": list_column(targets.astype(np.float32)), "predicted": list_column(outputs)
        }  # fmt: skip

    def from_columns(self, info: PredictionsInfo, url: str, table: pa.Table) -> NDArray[Any]:
        """Return the numbers of each photo, float32 (N, D)."""
        column = table["actual"].combine_chunks()
        # Flattening skips null lists, which would shift the numbers of all later photos.
        if column.null_count:
            raise PetsError(f"{url}: {column.null_count} samples have no actual: predict again")
        values = column.flatten().to_numpy(zero_copy_only=False)
        targets: NDArray[np.float32] = values.reshape(-1, info.num_outputs)
        return targets

    def check(self, url: str, predictions: Predictions) -> None:
        """Check that targets and outputs are finite."""
        for values, column, remedy in (
            (predictions.targets, "actual", "Correct the numbers of the source and ingest again"),
            (predictions.outputs, "predicted",
             "Predict again; if the model returns NaN, train again with a lower train.base_lr"),
        ):  # fmt: skip
            bad = np.asarray(~np.isfinite(values).all(1))
            raise_for_rows(url, predictions, bad, f"{column} numbers that are not finite", remedy)

    def values(self, predicted: DecodedOutputs) -> NDArray[np.float64]:
        """Return outputs in the units shown to users, (N, D)."""
        return predicted.outputs.astype(np.float64)

    def batch_columns(self, predicted: DecodedOutputs) -> dict[str, pa.Array]:
        """Return a column `predicted_<name>` for each number; coordinates are in pixels."""
        values = self.values(predicted)
        return {
            f"predicted_{info.name}": pa.array(values[:, index])
            for index, info in enumerate(predicted.card.numbers)
        }

    def to_prediction(self, predicted: DecodedOutputs, num_top: int) -> dict[str, Any]:
        """Return the field numbers, by name; coordinates are in pixels."""
        names = (info.name for info in predicted.card.numbers)
        return {"numbers": dict(zip(names, self.values(predicted)[0].tolist(), strict=True))}


NUMBERS = Numbers()
