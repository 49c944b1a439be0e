"""Settings of evaluation, gate, batch prediction and embeddings."""

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
    """How the trained model is evaluated."""

    split: Literal["auto", "test", "valid"] = "auto"
    """Split to evaluate on. auto: test if the data set has one, otherwise valid."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Photos per forward pass of a process."""
    tta_views: Annotated[int, Field(ge=0, le=64)] = 0
    """Augmented views of each photo to average the prediction over, in addition to the plain photo
    (fastai's TTA, whose default is 4). Each view costs one forward pass."""
    most_confused_min_count: Annotated[int, Field(ge=1)] = 1
    """Minimum number of confusions of a pair of classes in the most-confused table."""
    threshold: Literal["shared", "per_tag"] = "shared"
    """Probability from which a tag is predicted. The training run chooses it by F1 on the
    validation photos and stores it with the model. shared: one threshold for all tags. per_tag: one
    threshold per tag, which is unreliable for tags with few photos."""
    baselines: bool = True
    """Compare the trained model with a linear probe and the nearest neighbours, both on features of
    the pretrained backbone, before fine-tuning. Costs a forward pass over the evaluated photos and
    a second model folder."""
    embeddings: bool = False
    """Store the pooled features of each photo with its prediction."""


class GateConfig(Settings):
    """Conditions a model must meet to be promoted.

    An alias is a name that points at one model of a data set; that model is the champion.
    """

    promote: bool = False
    """Point the alias at a model that passes. If the model does not pass, the run ends in state
    Rejected."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] = "champion"
    """Alias to promote to. Every run is compared with the model that the alias points at."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Classes: maximum error rate to pass, share."""
    min_score: float | None = None
    """Tags and boxes: minimum primary metric to pass (F1 per photo, mean IoU), 0 to 1."""
    max_value: Annotated[float, Field(ge=0)] | None = None
    """Numbers, keypoints and ratings: maximum primary metric to pass (RMSE in the target's unit;
    mean distance as a share of the photo's side)."""
    min_improvement: float = 0.0
    """Minimum improvement of the primary metric over the champion on the same samples, in the unit
    of the metric (error rate: a share). Below 0: the metric may be worse by this much."""
    max_drop_per_class: Annotated[float, Field(ge=0, le=1)] | None = None
    """Classes and tags: maximum drop of the recall of any class or tag below the champion's,
    share."""
    allow_unseen_classes: bool = False
    """Let a model pass even if some of its classes have no evaluated photo."""

    @property
    def is_configured(self) -> bool:
        """Whether any setting other than the alias differs from its default."""
        return self != GateConfig(alias=self.alias)


class BatchConfig(Settings):
    """How a batch of photos without labels is predicted."""

    part_photos: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Photos per file of predictions. At most this many are predicted again after a crash of a
    machine."""
    num_tasks: Annotated[int, Field(ge=1, le=1000)] = 1
    """Flow runs of launch.deployment at the same time."""


class EmbedConfig(Settings):
    """How embeddings are used to find near-duplicates."""

    min_similarity: Annotated[float, Field(gt=0, lt=1)] = 0.94
    """Minimum cosine similarity of the embeddings of near-duplicates. The scale differs between
    models."""
