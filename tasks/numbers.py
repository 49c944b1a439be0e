"""What people look at in the Prefect UI of a model of numbers or of places on photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from pets_core import plots
from pets_core.numbers.gallery import WorstError, read_worst
from pets_core.numbers.records import NumberMeasures, NumbersReport
from pets_core.storage.markdown import literal
from tasks.artifacts.publisher import Publisher, links, photo, picture, within

__all__ = ["publish_numbers"]

_NUM_SHOWN = 6
_LEGEND = {
    "numbers": "",
    "points": " Green circles are where the points are, orange crosses where the model said.",
    "box": " The whole green line is where the box is, the broken orange one where the model said.",
}


@task(name="publish review", cache_policy=NO_CACHE)
def publish_numbers(report: NumbersReport) -> None:
    """Artifacts of the evaluation, the `run-summary` last, so that it comes first in the UI."""
    worst = read_worst(report.file("gallery.parquet"))
    with Publisher(report.url) as publisher:
        rows = [_measures_row(number) for number in report.numbers]
        whole = report.file("numbers.csv")
        publisher.table("numbers", rows, "Errors of each number, beside the mean's", whole)
        publisher.markdown("residuals", _residuals(report), "Predicted beside actual")
        publisher.markdown(
            "worst-errors",
            within(_worst_head(report), _worst_rows(report, worst)),
            "The photos the model was farthest off on",
        )
        publisher.markdown("run-summary", _summary(report), "How the run came out")


def _measures_row(number: NumberMeasures) -> dict[str, object]:
    """Figures as people read them, in columns whose names they know."""
    return {
        "number": number.name,
        "unit": number.unit,
        "MAE": _short(number.mae),
        "MAE of the mean": _short(number.baseline_mae),
        "RMSE": _short(number.rmse),
        "RMSE of the mean": _short(number.baseline_rmse),
        "bias": _short(number.bias),
        "R2": "" if number.r2 is None else round(number.r2, 4),
        "median error": _short(number.median),
        "95% within": _short(number.p95),
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _residuals(report: NumbersReport) -> str:
    drawn = picture(report.file("residuals.png"), "predicted beside actual, and their difference")
    more = len(report.numbers) - plots.MAX_RESIDUALS
    return (
        "# Predicted beside actual\n\nOn the broken line both are the same. To the right, how many "
        f"photos are off by how much.{_places(report)}"
        f"{f' {more} more numbers are not drawn.' if more > 0 else ''}\n\n{drawn}\n\n"
        f"Full size: `{report.file('residuals.png')}`\n"
    )


def _places(report: NumbersReport) -> str:
    if report.targets == "numbers":
        return ""
    return " Places go from -1 at the photo's left and upper edge to 1 at the others."


def _worst_head(report: NumbersReport) -> str:
    return (
        f"# Worst errors\n\nThe photos the model was farthest off on.{_LEGEND[report.targets]}"
        f"{_places(report)}\n\n| photo | said | is | error |\n|---|---|---|---|\n"
    )


def _worst_rows(report: NumbersReport, worst: Sequence[WorstError]) -> Iterator[str]:
    for shown in worst:
        said, true = (_values(report, values) for values in (shown.predicted, shown.actual))
        cells = [f"{photo(shown.jpeg)} {literal(shown.photo_id)}", said, true, _off(report, shown)]
        yield f"| {' | '.join(cells)} |\n"


def _values(report: NumbersReport, values: Sequence[float]) -> str:
    """The first numbers of a photo, by name where there are several; places are drawn, too."""
    pairs = list(zip(report.numbers, values, strict=True))
    said = [f"{value:.2f}" for value in values[:_NUM_SHOWN]]
    if report.targets == "numbers":
        said = [_named(*pair, alone=len(pairs) == 1) for pair in pairs[:_NUM_SHOWN]]
    more = len(pairs) - len(said)
    return "; ".join([*said, f"and {more} more"] if more else said)


def _named(number: NumberMeasures, value: float, *, alone: bool) -> str:
    text = literal(f"{value:.4g} {number.unit}")
    return text if alone else f"{literal(number.name)} {text}"


def _off(report: NumbersReport, shown: WorstError) -> str:
    if shown.iou is not None:
        return f"IoU {shown.iou:.2f}"
    if shown.pixels is not None:
        return f"{shown.pixels:.3g} pixels"
    if report.targets == "points":
        return f"{shown.error:.3g} of half a side"
    if len(report.numbers) > 1:
        return f"{shown.error:.2f} standard deviations"
    return literal(f"{shown.predicted[0] - shown.actual[0]:+.4g} {report.numbers[0].unit}")


def _summary(report: NumbersReport) -> str:
    cautions = "".join(f"**{literal(caution)}**\n\n" for caution in report.cautions)
    return (
        f"# {literal(report.headline)}\n\n{cautions}On {report.num_rows:,} {report.split} photos; "
        f"one who always says the mean of the training photos comes to "
        f"{literal(report.baseline)}. {literal(' '.join(report.details))}\n\n{links(report)}\n"
    )
