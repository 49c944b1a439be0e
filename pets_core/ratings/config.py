"""Settings of runs on ratings; those of runs on photos are in `pets_core.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pets_core.config.base import NAME_PATTERN, LocalFolder, Settings
from pets_core.config.evaluate import GateConfig
from pets_core.config.launch import LaunchConfig, check_sharding
from pets_core.config.registry import RegistryConfig
from pets_core.config.run import RunConfig
from pets_core.config.train import LRFindConfig, TrainConfig
from pets_core.records.base import SuggestionName

__all__ = [
    "DEFAULT_WEIGHT_DECAY",
    "WEIGHT_DECAYS",
    "RatingsConfig",
    "RatingsLRFindConfig",
    "RatingsSourceConfig",
    "RatingsTrainConfig",
    "RecommenderConfig",
]

WEIGHT_DECAYS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Weight decays that a search can try."""
DEFAULT_WEIGHT_DECAY = 0.3
"""Weight decay that a search tries first, and the one used without validation ratings."""

Delimiter = Annotated[str, Field(pattern=r"^([!-~\t ]|::|tab)$")]


class RatingsSourceConfig(Settings):
    """Source of the ratings, and how they are split."""

    url: str | None = None
    """Path or fsspec URL of a table with one rating per row: CSV, TSV or Parquet, or MovieLens'
    u.data or ratings.dat (no header: user, item, rating, time). Empty: the built-in sample."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set; empty: the last part of the URL, for u.data the name of its folder."""
    items_url: str | None = None
    """Path or URL of a table with item titles, with columns for item and title, such as MovieLens'
    movies.csv, u.item or movies.dat. Empty: the title of an item is its id."""
    user_column: str = "auto"
    """Column of user ids, numbers or text. auto: userId, user_id or user."""
    item_column: str = "auto"
    """Column of item ids. auto: movieId, movie_id, itemId, item_id, item, asin or
    parent_asin."""
    rating_column: str = "auto"
    """Column of ratings, which must be numbers. auto: rating."""
    time_column: str | None = "auto"
    """Column of rating times: whole numbers, such as seconds since 1970, or dates. auto: timestamp
    or time, if present. Empty: times are not read."""
    column_order: Literal["auto", "user-item", "item-user"] = "auto"
    """Order of the first two columns of a file without a header; rating and time follow. auto: item
    first if the ids are Amazon's (items B0..., users A...), else user first."""
    not_rated: float | None = None
    """Value in the rating column that means "not rated", such as Jester's 99; such rows are
    dropped. Empty: every row is a rating."""
    delimiter: Delimiter | None = None
    """Delimiter of the text table: an ASCII character, :: or tab. Empty: detected (comma,
    semicolon, tab, | or ::)."""
    encoding: str | None = None
    """Encoding of the text table, a Python codec such as utf-8 or cp1252. Empty: detected."""
    quoting: bool | None = None
    """Whether cells of the text table may be enclosed in double quotes; false: quotes are part of
    the text. Empty: detected."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of the ratings in a text table. Empty: detected."""
    items_delimiter: Delimiter | None = None
    """As delimiter, for the table at items_url."""
    items_encoding: str | None = None
    """As encoding, for the table at items_url."""
    items_quoting: bool | None = None
    """As quoting, for the table at items_url."""
    duplicates: Literal["refuse", "last"] = "refuse"
    """How to handle several ratings of one item by one user. refuse: an error. last: keep the
    newest; of equal or missing times, the one in the last row."""
    y_range: tuple[float, float] | None = None
    """Lowest and highest rating of the scale; empty: the minimum and maximum of the ratings."""
    split: Literal["random", "time"] = "random"
    """random: by a hash of user and item. time: the newest ratings are the test split, those before
    them the validation split."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all ratings held out for validation."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all ratings held out for testing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random split, and of the built-in sample."""

    @model_validator(mode="after")
    def _combinations(self) -> RatingsSourceConfig:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction ({self.valid_fraction:g}) + test_fraction "
                f"({self.test_fraction:g}) must stay below 1: lower one"
            )
        if not self.valid_fraction + self.test_fraction:
            raise ValueError(
                "valid_fraction and test_fraction are both 0: raise one, since evaluation needs "
                "held-out ratings"
            )
        if self.y_range and self.y_range[0] >= self.y_range[1]:
            low, high = self.y_range
            raise ValueError(f"y_range = ({low:g}, {high:g}): the first must be below the second")
        if self.split == "time" and self.time_column is None:
            raise ValueError("split = time needs the times of the ratings: set time_column")
        if self.items_url is not None and self.url is None:
            raise ValueError("items_url cannot be used with the built-in sample: set url too")
        return self


class RecommenderConfig(Settings):
    """The rating model."""

    model: Literal["dot", "neural"] = "dot"
    """dot: biases of user and item, plus the dot product of their factors (Koren et al., 2009).
    neural: the same plus a hidden layer over both factors (He et al., 2017)."""
    num_factors: Annotated[int, Field(ge=1, le=4096)] = 50
    """Length of the factor vector (embedding) of a user or an item."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 100
    """Units of the hidden layer of the neural model."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of the hidden layer of the neural model."""
    weight_decays: tuple[Annotated[float, Field(ge=0, lt=10)], ...] = ()
    """Weight decays to try, one training run each; the one with the lowest validation error is
    used. Empty: train.weight_decay, or if that is empty too, a search."""

    @model_validator(mode="after")
    def _check_combinations(self) -> RecommenderConfig:
        decays = [f"{decay:g}" for decay in self.weight_decays]
        if len(set(decays)) < len(decays):
            raise ValueError(f"weight_decays = {', '.join(decays)}: has duplicates: remove them")
        if self.model == "dot" and self.dropout:
            raise ValueError(
                f"dropout = {self.dropout:g} cannot be used with model = dot, which has no hidden "
                "layer: remove it, or set model = neural"
            )
        return self


class RatingsLRFindConfig(LRFindConfig):
    """The learning-rate range test (Smith, 2015)."""

    on_features: Literal[False] = False
    """Fixed: ratings have no features."""
    suggestion: SuggestionName = "valley"
    """Suggestion that training uses if train.base_lr is not set. Factors start near 0, so the loss
    falls late, and the steepest point is often noise before that."""


class RatingsTrainConfig(TrainConfig):
    """The training recipe: one cycle over all parameters, since none is pretrained."""

    recipe: Literal["fine_tune"] = "fine_tune"
    """Fixed: no layer is pretrained, so there is no probe."""
    head: Literal["auto"] = "auto"
    """Fixed: a model of ratings has no pretrained head."""
    freeze_epochs: Literal[0] = 0
    """Fixed: no layer is pretrained, so none is frozen."""
    freeze_to: Literal[-1] = -1
    """Fixed, as freeze_epochs."""
    frozen_on_features: Literal[False] = False
    """Fixed, as freeze_epochs."""
    unfreeze_to: Literal[0] = 0
    """Fixed, as freeze_epochs."""
    batch_norm: Literal["frozen"] = "frozen"
    """Fixed: the model has no batch norm."""
    number_loss: Literal["mse"] = "mse"
    """Fixed: the loss of ratings is the mean squared error."""
    micro_batch_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Maximum ratings in one forward pass of a process; gradients are accumulated to batch_size.
    0: as many as fit in memory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the initial weights and of shuffling."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Number of passes over the training ratings."""
    base_lr: Annotated[float, Field(gt=0, lt=10)] | None = 5e-3
    """Peak learning rate. Empty (null): the suggestion of the LR finder, which reads the training
    loss only, and so suggests rates at which factors overfit."""
    unfrozen_lr_div: Annotated[float, Field(ge=1)] = 1.0
    """Divisor of base_lr that gives the peak learning rate."""
    lr_mult: Annotated[float, Field(ge=1)] = 1.0
    """Divisor of the learning rate of the factors, relative to the following layers."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Ratings per optimizer step, over all processes."""
    weight_decay: Annotated[float, Field(ge=0, lt=10)] | None = None  # type: ignore[assignment]
    """Decoupled weight decay of factors and hidden layers. Empty: a search of 0.01, 0.03, 0.1, 0.3,
    1 and 3, starting at 0.3, for the lowest validation error; each value costs a training. Without
    validation ratings: 0.3."""
    keep: Literal["auto", "last", "best"] = "auto"  # type: ignore[assignment]
    """Weights of the model. last: those of the last epoch. best: those with the lowest validation
    loss. auto: best if there are validation ratings, otherwise last."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Optimizer steps between checkpoints within an epoch, if the last one is at least
    checkpoint_seconds old. A checkpoint is also written after every epoch."""

    @model_validator(mode="after")
    def _check_class_settings(self) -> RatingsTrainConfig:
        is_set = {
            f"label_smoothing = {self.label_smoothing:g}": self.label_smoothing > 0,
            f"class_weights = {self.class_weights}": self.class_weights != "none",
            f"sampling = {self.sampling}": self.sampling != "uniform",
        }
        if any(is_set.values()):
            names = ", ".join(setting for setting, found in is_set.items() if found)
            raise ValueError(f"{names}: only for class targets, not for ratings: remove it")
        return self


class RatingsConfig(Settings):
    """All settings of a run on ratings."""

    store: str = "pets-store"
    """Root of data sets and runs: a path or any fsspec URL (s3://bucket/prefix, gs://...)."""
    cache_dir: LocalFolder = "~/.cache/pets"
    """Local folder for downloads; safe to delete at any time."""
    run: RunConfig = RunConfig()
    ratings: RatingsSourceConfig = RatingsSourceConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    lr_find: RatingsLRFindConfig = RatingsLRFindConfig()
    train: RatingsTrainConfig = RatingsTrainConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
    launch: LaunchConfig = LaunchConfig()

    def resolve_auto(
        self, *, has_validation: bool, weight_decay: float | None = None
    ) -> RatingsConfig:
        """Return a copy with the automatic values resolved for one training.

        Args:
            has_validation: Whether there are validation ratings.
            weight_decay: Weight decay of this training. None: that of the settings, or the default
                without validation ratings.
        """
        train = self.train
        if weight_decay is None:
            weight_decay = train.weight_decay
        keep = train.keep
        if keep == "auto":
            keep = "best" if has_validation else "last"
        update = {
            "weight_decay": DEFAULT_WEIGHT_DECAY if weight_decay is None else weight_decay,
            "keep": keep,
        }
        return self.model_copy(
            update={
                "train": train.model_copy(update=update),
                # One training does not depend on the other weight decays.
                "recommender": self.recommender.model_copy(update={"weight_decays": ()}),
            }
        )

    @model_validator(mode="after")
    def _check_validation_split(self) -> RatingsConfig:
        needs_validation = {
            "recommender.weight_decays": bool(self.recommender.weight_decays),
            "train.keep = best": self.train.keep == "best",
            f"train.early_stopping_epochs = {self.train.early_stopping_epochs}": (
                self.train.early_stopping_epochs > 0
            ),
        }
        if any(needs_validation.values()) and not self.ratings.valid_fraction:
            names = ", ".join(setting for setting, found in needs_validation.items() if found)
            raise ValueError(
                f"{names}: needs validation ratings, but ratings.valid_fraction is 0: raise it"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> RatingsConfig:
        check_sharding(self.launch, self.train)
        return self
