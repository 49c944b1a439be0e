"""What crosses the border between two stages: ids, counts, hashes and URLs, never tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from pets_core.errors import PetsError

__all__ = [
    "UNTOLD_TRAINING",
    "BatchPlan",
    "BatchSummary",
    "Calibration",
    "Champion",
    "ClassChange",
    "ClassInfo",
    "ClassMeasures",
    "Comparison",
    "ConfusedPair",
    "DatasetManifest",
    "DatasetPlan",
    "EmbedResult",
    "EpochMetrics",
    "EvalReport",
    "LRSuggestion",
    "LabelIssue",
    "LeftOut",
    "NearDuplicates",
    "NumberInfo",
    "PartsResult",
    "PredictResult",
    "Record",
    "ShardInfo",
    "ShardPlan",
    "ShardRecord",
    "Share",
    "Split",
    "SplitInfo",
    "SplitReport",
    "SweepResult",
    "Targets",
    "TrainResult",
    "Trial",
    "Verdict",
    "choose_evaluation_split",
    "unseen_text",
]

Split = Literal["train", "valid", "test"]
Targets = Literal["class", "tags", "numbers", "points", "box"]
"""What is learnt of a photo: its class; any number of tags; numbers; or places on it, x and y in
turn, from -1 at its left and upper edge to 1 at the others, of points or of a box's corners."""

_MAX_UNSEEN_NAMED = 20
UNTOLD_TRAINING = (
    "Whether the model was trained on some of these photos cannot be told: it, or the version of "
    "the data set it was trained on, is not in the store."
)


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassInfo(Record):
    """One label of the vocabulary; its place in `DatasetManifest.classes` is its index."""

    name: str
    species: str | None = None


class NumberInfo(Record):
    """One number that is learnt of each photo, and how it is spread over the training photos.

    Attributes:
        name: What it is.
        unit: What it is told in; empty: none.
        mean: Over the training photos.
        std: Standard deviation of the same.
        low: Least of the same.
        high: Greatest of the same.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    @property
    def text(self) -> str:
        """Its name, with its unit where it has one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


class ShardInfo(Record):
    """One Parquet file, by its name among the data set's shards."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


class SplitInfo(Record):
    """The shards of one split and its photos of each class or tag, in their order."""

    num_rows: int
    class_counts: tuple[int, ...]
    shards: tuple[ShardInfo, ...]

    @property
    def class_range(self) -> list[int | str]:
        """The fewest and the most photos of a class or tag; nothing where there is none."""
        return [min(self.class_counts), max(self.class_counts)] if self.class_counts else ["", ""]


class ShardPlan(Record):
    """A shard to be written: its photos are a row group of the plan's files, by its `index`."""

    index: int
    split: Split
    prefix: str
    """Its photos' hashes begin with these bits."""
    key: str
    """Hash of all that shapes the shard; equal keys mean equal shards."""
    num_photos: int
    num_bytes: int
    done: bool
    """Whether a shard of this key is in the store already."""


class DatasetPlan(Record):
    """All that is decided before the first shard is written."""

    name: str
    source_url: str
    root: str
    """Folder of the data set with all its versions."""
    plan_url: str
    """The names of the files with the photos begin with it."""
    left_out_url: str
    classes: tuple[ClassInfo, ...]
    targets: Targets = "class"
    numbers: tuple[NumberInfo, ...] = ()
    contract_version: int
    parent: str | None
    """Fingerprint of the newest version so far."""
    shards: tuple[ShardPlan, ...]
    warnings: tuple[str, ...] = ()
    """What is odd about the source, a sentence each."""

    @property
    def pending(self) -> tuple[ShardPlan, ...]:
        """The shards that are still to be written."""
        return tuple(shard for shard in self.shards if not shard.done)


class LeftOut(Record):
    """A row of quarantine.parquet: a file, or a listed photo, that is not in the data set.

    Attributes:
        id: Of the photo.
        path: Of the file; empty: there is none.
        reason: A short code.
        detail: What was found, or what to do.
        label: The class that the source gives the photo; empty: none.
    """

    id: str
    path: str
    reason: str
    detail: str
    label: str = ""


class ShardRecord(Record):
    """A shard that was written; `shard` is None when no photo of it could be used."""

    key: str
    shard: ShardInfo | None
    class_counts: dict[int, int]
    left_out: tuple[LeftOut, ...]
    num_read: int
    """Photos taken from the source; the others came from an earlier version's shards."""
    num_narrow: int = 0
    """Of these, photos whose grey levels span less than a quarter of the range."""


class DatasetManifest(Record):
    """A committed, immutable version of a data set. Its presence in the folder is the commit."""

    schema_version: int = 2
    name: str
    fingerprint: str
    url: str
    source_url: str
    classes: tuple[ClassInfo, ...]
    """What `source.targets` chooses from: classes or tags; none where numbers are learnt."""
    targets: Targets = "class"
    numbers: tuple[NumberInfo, ...] = ()
    splits: dict[Split, SplitInfo]
    num_quarantined: int
    quarantine_reasons: dict[str, int]
    lost_of_classes: dict[str, tuple[int, int]] = {}
    """Photos left out and photos in all, of each class that lost at least half of its photos."""
    warnings: tuple[str, ...] = ()
    """What is odd about the source, a sentence each."""
    narrow_fraction: float = 0.0
    """Share of the photos read whose grey levels span less than a quarter of the range."""
    duplicates: dict[str, int] = {}
    """Photos with a (near-)duplicate: exact, near, leaking (the other is in a later split), and
    conflicting (the other has another label)."""
    contract_version: int = 1
    parent: str | None = None
    created_at: str = ""
    """UTC, ISO 8601."""

    @property
    def contents(self) -> str:
        """What is learnt of the photos, in words."""
        if self.numbers:
            return ", ".join(info.name for info in self.numbers)
        return f"{len(self.classes)} {'tags' if self.targets == 'tags' else 'classes'}"

    def shard_url(self, shard: ShardInfo) -> str:
        """Where a shard lies; versions share their shards."""
        return f"{self.url.rstrip('/').rsplit('/', 1)[0]}/shards/{shard.path}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in index order."""
        return tuple(c.name for c in self.classes)

    @property
    def num_rows(self) -> int:
        """Photos of all splits."""
        return sum(s.num_rows for s in self.splits.values())

    def evaluation_split(self, wanted: Literal["auto", "test", "valid"]) -> Split:
        """The split to judge on; errors as `choose_evaluation_split`."""
        return choose_evaluation_split(wanted, self.splits)


def choose_evaluation_split(
    wanted: Literal["auto", "test", "valid"], present: Collection[Split]
) -> Split:
    """The split to judge on; auto prefers test.

    Raises:
        PetsError: No such split is present.
    """
    candidates: tuple[Split, ...] = ("test", "valid") if wanted == "auto" else (wanted,)
    for split in candidates:
        if split in present:
            return split
    raise PetsError(
        f"evaluate.split = {wanted}: the photos are split into {', '.join(present)} only. Set or "
        "raise source.valid_fraction or source.test_fraction, or set evaluate.split = auto"
    )


def unseen_text(names: Sequence[str]) -> str:
    """Name the classes or tags that no evaluated photo has; empty where there are none."""
    if not names:
        return ""
    num_more = len(names) - _MAX_UNSEEN_NAMED
    more = f" and {num_more} more" if num_more > 0 else ""
    return f"without an evaluated photo: {', '.join(names[:_MAX_UNSEEN_NAMED])}{more}"


class Run(Record):
    """The folder of a run, and the data set that it began with."""

    DATASET: ClassVar[str] = "dataset.json"

    url: str
    manifest: DatasetManifest


class LRSuggestion(Record):
    """Learning rates read off the range test.

    Attributes:
        minimum: By fastai's rule of that name, as the next three; None where the curve yields no
            suggestion.
        steepest: As above.
        valley: As above.
        slide: As above.
        chosen: The suggestion that the settings name; `train.base_lr` where there is none.
        suggestion: Name of the suggestion that the settings choose.
        num_steps: Optimizer steps before the loss diverged.
        seconds: Of the whole stage.
        curve_url: Rates and losses, Parquet.
        plot_url: Picture of the curve.
    """

    minimum: float | None = None
    steepest: float | None = None
    valley: float | None = None
    slide: float | None = None
    chosen: float
    suggestion: str
    num_steps: int
    seconds: float
    curve_url: str
    plot_url: str


class EpochMetrics(Record):
    """What one epoch came to; validation figures are None where no validation split exists."""

    phase: Literal["frozen", "unfrozen"]
    epoch: int
    train_loss: float
    valid_loss: float | None = None
    # Runs that began before objectives named their errors are gone on with.
    valid_error: Annotated[
        float | None, Field(validation_alias=AliasChoices("valid_error", "valid_error_rate"))
    ] = None
    metric: str = "error rate"
    """What `valid_error` is: a share of the samples, or an error in the targets' units."""
    seconds: float
    photos_per_second: float

    @property
    def error_text(self) -> str:
        """The validation error as people write it; empty where there is none."""
        if self.valid_error is None:
            return ""
        return f"{self.valid_error:.1%}" if self.is_share else f"{self.valid_error:.4g}"

    @property
    def is_share(self) -> bool:
        """Whether the error is a share."""
        return self.metric.endswith("error rate")


class TrainResult(Record):
    """A finished training; `model_url` is that of the best or of the last weights."""

    model_url: str
    last_model_url: str
    best_model_url: str | None = None
    history_url: str
    plot_url: str
    base_lr: float
    mixed_precision: str
    device: str
    num_processes: int
    num_steps: int
    epochs: tuple[EpochMetrics, ...]
    seconds: float

    def kept(self, keep: Literal["last", "best"]) -> EpochMetrics:
        """What the epoch came to whose weights are the model, `train.keep` being as given."""
        judged = [epoch for epoch in self.epochs if epoch.valid_loss is not None]
        if keep == "best" and judged:
            return min(judged, key=lambda epoch: epoch.valid_loss or 0.0)
        return self.epochs[-1]


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


class EmbedResult(Record):
    """The embeddings of all photos of a data set, in a file.

    Attributes:
        embeddings_url: The file.
        num_photos: In it.
        photos_per_second: Of them, decoding included where it had not been done before.
    """

    embeddings_url: str
    num_photos: int
    photos_per_second: float


class NearDuplicates(Record):
    """Photos that are (nearly) another one by their embedding, beside those the hash found.

    A photo counts as found by both where both have a like of it in a later split, or both in its
    own.

    Attributes:
        url: File with a row for each photo that the embedding found.
        embeddings_url: What they were found in.
        num_photos: In that.
        min_similarity: Least cosine of two that are alike.
        num_both: Photos that the embedding found and the perceptual hash, too.
        num_only_embedding: Photos that only the embedding found.
        num_only_hash: Photos that only the perceptual hash found.
        num_leaking: Of those that the embedding found: the other is in a later split.
        num_leaking_only_embedding: Of these, what the hash did not find.
    """

    url: str
    embeddings_url: str
    num_photos: int
    min_similarity: float
    num_both: int
    num_only_embedding: int
    num_only_hash: int
    num_leaking: int
    num_leaking_only_embedding: int


class Trial(Record):
    """Settings that a sweep tried, and what came of them.

    Attributes:
        number: In the order in which trials were asked for.
        backbone: Of the model.
        base_lr: Peak rate of the head in the frozen epochs.
        error_rates: Share of the validation photos taken for another class, of each seed.
        error_rate: Their mean; None where the trial failed.
        seconds: All its trainings took.
        model_urls: The models, of each seed.
        fault: Why it failed.
    """

    number: int
    backbone: str
    base_lr: float
    error_rates: tuple[float, ...] = ()
    error_rate: float | None = None
    seconds: float = 0.0
    model_urls: tuple[str, ...] = ()
    fault: str = ""


class SweepResult(Record):
    """All trials of a sweep, the best first.

    Attributes:
        url: This record in the store.
        trials: Of least mean validation error first, those that failed last.
    """

    url: str
    trials: tuple[Trial, ...]


class BatchPlan(Record):
    """Photos without labels that a model is to look at, in parts.

    Attributes:
        model_url: The model.
        url: Folder of the results.
        num_photos: How many.
        num_parts: Files their predictions lie in.
    """

    model_url: str
    url: str
    num_photos: int
    num_parts: int


class PartsResult(Record):
    """Parts that were predicted now, others having been there before.

    Attributes:
        num_photos: In them.
        num_parts: How many.
    """

    num_photos: int
    num_parts: int


class BatchSummary(Record):
    """What a model saw on many photos.

    Attributes:
        model_url: The model.
        url: Folder of the results.
        num_photos: All, each there once.
        num_unreadable: Of them, those that could not be looked at.
        num_skipped: Other files of the source, which skipped.parquet lists.
        breeds: Photos of each breed that was seen, most frequent first.
        unreadable: The first of those that could not be looked at, and why; unreadable.parquet has
            all.
        photos_per_second: Of what was predicted last, reading and decoding included.
    """

    model_url: str
    url: str
    num_photos: int
    num_unreadable: int
    num_skipped: int = 0
    breeds: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
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
