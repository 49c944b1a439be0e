"""Records of predictions and of what is judged by them."""

from __future__ import annotations

from collections.abc import Sequence

from pets_core.records.base import Record, Split, Targets

__all__ = [
    "UNTOLD_TRAINING",
    "Calibration",
    "Champion",
    "ClassChange",
    "ClassMeasures",
    "Comparison",
    "ConfusedPair",
    "EvalReport",
    "LabelIssue",
    "PredictResult",
    "Share",
    "SplitReport",
    "Verdict",
    "unseen_text",
]

_MAX_UNSEEN_NAMED = 20

UNTOLD_TRAINING = (
    "Whether the model was trained on some of these photos cannot be told: it, or the version of "
    "the data set it was trained on, is not in the store."
)


def unseen_text(names: Sequence[str]) -> str:
    """Name the classes or tags that no evaluated photo has; empty where there are none."""
    if not names:
        return ""
    num_more = len(names) - _MAX_UNSEEN_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return f"without an evaluated photo: {', '.join(names[:_MAX_UNSEEN_NAMED])}{more}"


class Share(Record):
    """A share of photos, 0 to 1, and the ends of its 95% confidence interval."""

    value: float
    low: float
    high: float


class ConfusedPair(Record):
    """`count` photos of `actual` were taken for `predicted`: `share` of all of its photos."""

    actual: str
    predicted: str
    count: int
    share: float


class ClassMeasures(Record):
    """How one class did; what has no photos to be told from is None.

    Attributes:
        name: The class.
        species: Its species, where the data set tells.
        support: Its photos in the split.
        correct: How many of them were recognised.
        precision: Share of what was taken for the class that it is.
        recall: Share of the class's photos that was recognised.
        f1: Harmonic mean of both.
        taken_for: The class it was most often mistaken for.
    """

    name: str
    species: str | None = None
    support: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None
    taken_for: str | None = None


class Calibration(Record):
    """How far a model's probabilities can be believed (Guo and others 2017).

    Attributes:
        ece: Expected calibration error: mean gap between confidence and accuracy over 15 bins.
        temperature: What logits are divided by to mend it, fitted on the validation photos; None
            where there are none.
        ece_after: The error with that temperature, on the photos judged.
    """

    ece: float
    temperature: float | None = None
    ece_after: float | None = None


class LabelIssue(Record):
    """A photo whose label is probably wrong, with the model's probability of it and of another."""

    id: str
    label: str
    proposed: str
    label_probability: float
    proposed_probability: float


class ClassChange(Record):
    """A class that more or fewer photos of are recognised than by the champion."""

    name: str
    support: int
    champion_recall: float
    recall: float


class Comparison(Record):
    """A model beside the champion, on the very same photos.

    Attributes:
        champion_url: Its model.
        num_rows: Photos both were judged on.
        num_left_out: Photos of these that one of both was trained on, and that do not count; None
            where it cannot be told whether there are any.
        champion_error_rate: On these.
        error_rate: Of the model, on these.
        only_champion_wrong: Photos that only the champion got wrong.
        only_model_wrong: Photos that only the model got wrong.
        improvement: By how much the error rate is less than the champion's, with the 95% interval.
        p_value: McNemar's exact test, two-sided: how likely a difference as large is by chance.
        better: The first classes with a higher recall, most first.
        worse: The first classes with a lower recall, most first.
        largest_drop: How much the worst of these lost; 0 where none did.
    """

    champion_url: str
    num_rows: int
    num_left_out: int | None = 0
    champion_error_rate: float
    error_rate: float
    only_champion_wrong: int
    only_model_wrong: int
    improvement: Share
    p_value: float
    better: tuple[ClassChange, ...]
    worse: tuple[ClassChange, ...]
    largest_drop: float

    @property
    def outcome(self) -> str:
        """The improvement as people say it."""
        points = 100 * self.improvement.value
        if abs(points) < 0.005:
            return "as good"
        return f"{abs(points):.2f} points {'better' if points > 0 else 'worse'}"

    @property
    def left_out(self) -> str:
        """What is to be said of photos that one of both models was trained on; often nothing."""
        if self.num_left_out is None:
            return (
                "Whether one of both was trained on some of them cannot be told: a model, or the "
                "version of the data set it was trained on, is gone."
            )
        if not self.num_left_out:
            return ""
        return f"{self.num_left_out} more are left out, which one of both was trained on."

    @property
    def chance(self) -> str:
        """The p-value as people write it."""
        return f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"


class Verdict(Record):
    """Whether a model may go out.

    Attributes:
        passed: Whether it may.
        reasons: Every one against it.
        asked: Whether anything was asked of it: a limit, or a champion to beat.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    asked: bool = True

    @property
    def words(self) -> str:
        """The verdict as people say it."""
        if not self.passed:
            return "does not pass the gate"
        return "passes the gate" if self.asked else "no limit is set, and no champion is to beat"


class Champion(Record):
    """The model that a new one is compared with.

    Attributes:
        model_url: The model.
        predictions_url: What it said of the very photos judged, where that is in the store already.
        move: The move of the alias that made it champion.
    """

    model_url: str
    predictions_url: str | None = None
    move: str | None = None


class PredictResult(Record):
    """What a model said of the photos, in files.

    Attributes:
        targets: What was predicted.
        model_url: The model.
        predictions_url: Of the split it is judged on.
        valid_url: Of the validation photos; the same where these are judged.
        champion_url: What the champion said of the photos judged, where it was asked.
        champion_refused: Why it could not be asked.
        maps_url: Where the model looked in the photos of greatest loss.
        photos_per_second: Of the photos judged.
    """

    targets: Targets = "class"
    model_url: str
    predictions_url: str
    valid_url: str | None = None
    champion_url: str | None = None
    champion_refused: str | None = None
    maps_url: str | None = None
    photos_per_second: float


class SplitReport(Record):
    """What there is to say of any model that was judged on one split.

    Attributes:
        model_url: The model.
        split: The photos judged.
        num_rows: How many.
        num_trained_on: Photos judged that the model was trained on; None where that cannot be told.
        predictions_url: All this is computed from.
        url: Folder with all that was made of it.
        photos_per_second: That were predicted.
        seconds: That all this took, predicting left out.
    """

    model_url: str
    split: Split
    num_rows: int
    num_trained_on: int | None = 0
    predictions_url: str
    url: str
    photos_per_second: float
    seconds: float

    @property
    def training_cautions(self) -> list[str]:
        """What is to be known of the photos the model was trained on; often nothing."""
        if self.num_trained_on is None:
            return [UNTOLD_TRAINING]
        if self.num_trained_on:
            return [f"The model was trained on {self.num_trained_on} of these photos."]
        return []

    def file(self, name: str) -> str:
        """URL of what was made of the predictions, by its name."""
        return f"{self.url}/{name}"


class EvalReport(SplitReport):
    """How a model of classes did on one split.

    Attributes:
        error_rate: Share of them taken for another class.
        top_k: Share of photos whose class is among the k most probable, by k.
        loss: Mean cross-entropy, nats.
        calibration: How far the probabilities can be believed.
        most_confused: The first pairs, most frequent first; all are in most_confused.parquet.
        num_label_issues: Photos whose label is probably wrong; None where none could be looked for.
        is_champion: Whether it is the champion itself.
        comparison: Beside the champion, where there is another one that can be compared.
        not_compared: Why there is one that cannot.
        champion_move: The move of the alias that made it champion.
        unseen_classes: The model's classes that no evaluated photo has, in index order.
        verdict: What the gate says.
    """

    error_rate: Share
    top_k: dict[int, float]
    loss: float
    calibration: Calibration
    most_confused: tuple[ConfusedPair, ...]
    num_label_issues: int | None = None
    is_champion: bool = False
    comparison: Comparison | None = None
    not_compared: str | None = None
    champion_move: str | None = None
    unseen_classes: tuple[str, ...] = ()
    verdict: Verdict

    @property
    def cautions(self) -> tuple[str, ...]:
        """Limits of the evaluation that are not among the verdict's reasons; often empty."""
        cautions = [UNTOLD_TRAINING] if self.num_trained_on is None else []
        unseen = unseen_text(self.unseen_classes)
        if unseen and not any(unseen in reason for reason in self.verdict.reasons):
            cautions.append(f"Classes {unseen}.")
        return tuple(cautions)
