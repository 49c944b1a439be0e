"""Records of predictions and of embeddings."""

from __future__ import annotations

from pets_core.records.base import Record, renamed

__all__ = [
    "BaselinePredictions",
    "BatchPlan",
    "BatchSummary",
    "EmbedResult",
    "NearDuplicates",
    "PartsResult",
    "PredictResult",
]


class BaselinePredictions(Record):
    """Predictions of a baseline, such as the linear probe.

    Attributes:
        name: Name to show.
        predictions_url: Predictions of the evaluation split.
        valid_url: Predictions of the validation split, if that is another one.
    """

    name: str
    predictions_url: str
    valid_url: str | None = None


class PredictResult(Record):
    """Result of the predict stage.

    Attributes:
        targets: Kind of target.
        model_url: Folder of the model.
        predictions_url: Predictions of the evaluation split.
        valid_url: Predictions of the validation split; equals `predictions_url` if that is the
            evaluation split.
        champion_url: The champion's predictions of the evaluation split, if this stage made them.
        champion_error: Why the champion cannot predict the split.
        maps_url: Activation maps of the photos with the largest loss.
        baselines: Predictions of the nearest neighbours, then of the linear probe.
        photos_per_second: Throughput on the evaluation split.
    """

    targets: str = "class"
    model_url: str
    predictions_url: str
    valid_url: str | None = None
    champion_url: str | None = None
    champion_error: str | None = renamed("champion_error", "champion_refused", None)
    maps_url: str | None = None
    baselines: tuple[BaselinePredictions, ...] = ()
    photos_per_second: float


class EmbedResult(Record):
    """File with the embeddings of all photos of a data set.

    Attributes:
        embeddings_url: URL of the file.
        num_photos: Number of photos in the file.
        photos_per_second: Throughput, including decoding of photos that are not cached.
    """

    embeddings_url: str
    num_photos: int
    photos_per_second: float


class NearDuplicates(Record):
    """Near-duplicates by embedding, compared with those by perceptual hash.

    A photo counts as found by both if both methods find a duplicate in a later split, or both find
    one in the photo's own split.

    Attributes:
        url: File with one row per photo found by embedding.
        embeddings_url: Embeddings that were searched.
        num_photos: Number of photos searched.
        min_similarity: Minimum cosine similarity of near-duplicates.
        num_both: Photos found by embedding and by perceptual hash.
        num_only_embedding: Photos found only by embedding.
        num_only_hash: Photos found only by perceptual hash.
        num_leaking: Photos found by embedding whose duplicate is in a later split.
        num_leaking_only_embedding: Photos among `num_leaking` that the hash does not find.
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


class BatchPlan(Record):
    """Plan of a batch prediction of photos without labels.

    Attributes:
        model_url: Folder of the model.
        url: Folder of the results.
        num_photos: Number of photos.
        num_parts: Number of files of predictions.
    """

    model_url: str
    url: str
    num_photos: int
    num_parts: int


class PartsResult(Record):
    """Parts predicted by one task, without those that already existed.

    Attributes:
        num_photos: Number of photos in these parts.
        num_parts: Number of parts.
    """

    num_photos: int
    num_parts: int


class BatchSummary(Record):
    """Summary of a batch prediction.

    Attributes:
        model_url: Folder of the model.
        url: Folder of the results.
        num_photos: Number of photos, each counted once.
        num_unreadable: Number of photos that cannot be read.
        num_skipped: Number of other files of the source; skipped.parquet lists them.
        counts: Number of photos per predicted label, most frequent first; empty for kinds without
            labels.
        unreadable: The first unreadable photos and the reasons; unreadable.parquet lists all.
        photos_per_second: Throughput of the last prediction, including reading and decoding.
    """

    model_url: str
    url: str
    num_photos: int
    num_unreadable: int
    num_skipped: int = 0
    counts: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    photos_per_second: float
