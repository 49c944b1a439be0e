"""Settings of evaluation, of the gate, and of prediction and embedding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pets_core.config.base import NAME_PATTERN, Settings

__all__ = [
    "BatchConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "GateConfig",
]


class EvaluateConfig(Settings):
    """How the trained model is judged."""

    split: Literal["auto", "test", "valid"] = "auto"
    """Which photos to judge on. auto: test where the data set has one, else valid."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Photos in one forward pass of a process."""
    tta_views: Annotated[int, Field(ge=0, le=64)] = 0
    """Augmented views of each photo that the prediction is averaged over, besides the plain one
    (fastai's TTA, whose default is 4); each costs another forward pass."""
    most_confused_min_count: Annotated[int, Field(ge=1)] = 1
    """Pairs of breeds confused fewer times than this are left out of the most-confused table."""
    threshold: Literal["shared", "per_tag"] = "shared"
    """How probable a tag must be to be given, chosen by the F1 of the validation photos of the run
    that trains the model, which keeps it. per_tag: a threshold for each, for which few photos of a
    tag are too few."""
    embeddings: bool = False
    """Store the pooled features of each photo with its prediction."""


class GateConfig(Settings):
    """Conditions a model must meet to be promoted.

    An alias is a name that points at one model of a data set; that model is the champion.
    """

    promote: bool = False
    """Point the alias at a model that passes, and end a run whose model does not as Rejected."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] = "champion"
    """The alias; every run is compared with the model it points at."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of classes: highest error rate to pass, share."""
    min_score: float | None = None
    """Of tags and boxes: lowest primary metric to pass: F1 per photo, mean IoU, 0 to 1."""
    max_value: Annotated[float, Field(ge=0)] | None = None
    """Of numbers, keypoints and ratings: highest primary metric to pass: RMSE in their unit, mean
    distance as a share of the photo's side."""
    min_improvement: float = 0.0
    """By how much the primary metric must be better than the champion's on the same samples, in its
    unit (of error rates a share); below 0: by how much it may be worse."""
    max_drop_per_class: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of classes and tags: how much less of any may be found than by the champion, share of its
    photos."""
    allow_unseen_classes: bool = False
    """Let a model pass although some of its classes have no evaluated photo."""

    @property
    def is_configured(self) -> bool:
        """Whether any setting besides the alias differs from its default."""
        return self != GateConfig(alias=self.alias)


class BatchConfig(Settings):
    """How a batch of photos without labels is predicted."""

    part_photos: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Photos of one file of predictions: as many are lost when a machine dies."""
    num_tasks: Annotated[int, Field(ge=1, le=1000)] = 1
    """Flow runs that launch.deployment is asked for at once."""


class EmbedConfig(Settings):
    """How near-duplicates are told by their embeddings."""

    min_similarity: Annotated[float, Field(gt=0, lt=1)] = 0.94
    """Photos whose embeddings have a cosine of at least this are near-duplicates; every model has a
    scale of its own."""
