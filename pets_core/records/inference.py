"""Records of batch prediction and of embeddings."""

from __future__ import annotations

from pets_core.records.base import Record

__all__ = [
    "BatchPlan",
    "BatchSummary",
    "EmbedResult",
    "NearDuplicates",
    "PartsResult",
]


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
        counts: Photos of each label that was predicted, most frequent first; none of kinds without
            labels.
        unreadable: The first of those that could not be looked at, and why; unreadable.parquet has
            all.
        photos_per_second: Of what was predicted last, reading and decoding included.
    """

    model_url: str
    url: str
    num_photos: int
    num_unreadable: int
    num_skipped: int = 0
    counts: dict[str, int]
    unreadable: tuple[tuple[str, str], ...]
    photos_per_second: float
