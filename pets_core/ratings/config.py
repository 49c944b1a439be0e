"""Every setting of a run that learns from ratings; those of photos are in `pets_core.config`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pets_core.config.base import NAME_PATTERN, LocalFolder, Settings
from pets_core.config.evaluate import GateConfig
from pets_core.config.launch import LaunchConfig, check_sharding
from pets_core.config.train import LRFindConfig, TrainConfig

__all__ = [
    "RatingsConfig",
    "RatingsLRFindConfig",
    "RatingsSourceConfig",
    "RatingsTrainConfig",
    "RecommenderConfig",
]

Delimiter = Annotated[str, Field(pattern=r"^([!-~\t ]|::|tab)$")]


class RatingsSourceConfig(Settings):
    """Where the ratings come from and how they are split."""

    url: str | None = None
    """Path or fsspec URL of a table with a row a rating: CSV, TSV or Parquet, or MovieLens' u.data
    or ratings.dat (no header: user, item, rating, time). Empty: the built-in sample."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set; empty: the last part of the URL, of u.data its folder's."""
    items_url: str | None = None
    """Path or URL of a table with the items' titles: columns for the item and title, as MovieLens'
    movies.csv, or its u.item or movies.dat. Empty: an item's title is its id."""
    user_column: str = "auto"
    """Column with the users' ids, numbers or text. auto: userId, user_id or user."""
    item_column: str = "auto"
    """Column with the items' ids. auto: movieId, movie_id, itemId, item_id, item, asin or
    parent_asin."""
    rating_column: str = "auto"
    """Column with the ratings, numbers. auto: rating."""
    time_column: str | None = "auto"
    """Column with the times of the ratings: whole numbers as they are, such as seconds since 1970,
    or dates. auto: timestamp or time, where there is one; empty: times are left out."""
    column_order: Literal["auto", "user-item", "item-user"] = "auto"
    """Order of the first two columns of a file without a header; rating and time follow. auto: item
    first where the ids are Amazon's (items B0..., users A...), else user first."""
    not_rated: float | None = None
    """Value in the rating column that means "not rated", such as Jester's 99; its rows are dropped.
    Empty: every row is a rating."""
    delimiter: Delimiter | None = None
    """Delimiter of the text table: an ASCII character, :: or tab. Empty: detected among comma,
    semicolon, tab, | and ::."""
    encoding: str | None = None
    """Encoding of the text table, a Python codec such as utf-8 or cp1252. Empty: detected."""
    quoting: bool | None = None
    """Whether cells of the text table may stand in double quotes; false: quotes are part of the
    text. Empty: detected."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of the ratings in a text table. Empty: detected."""
    items_delimiter: Delimiter | None = None
    """As delimiter, of the table at items_url."""
    items_encoding: str | None = None
    """As encoding, of the table at items_url."""
    items_quoting: bool | None = None
    """As quoting, of the table at items_url."""
    duplicates: Literal["refuse", "last"] = "refuse"
    """What becomes of several ratings of one item by one user. last: the newest is kept, and where
    times do not tell, the one in the latest row."""
    y_range: tuple[float, float] | None = None
    """Lowest and highest rating of the scale; empty: as found among the ratings."""
    split: Literal["random", "time"] = "random"
    """random: by a hash of user and item. time: the newest ratings are for testing, those before
    them for validation."""
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
                "valid_fraction and test_fraction are both 0, so that nothing could be judged: "
                "raise one"
            )
        if self.y_range and self.y_range[0] >= self.y_range[1]:
            low, high = self.y_range
            raise ValueError(f"y_range ({low:g}, {high:g}) must have its lower end first")
        if self.split == "time" and self.time_column is None:
            raise ValueError("split = time needs time_column: the column with the ratings' times")
        if self.items_url is not None and self.url is None:
            raise ValueError("items_url has no meaning for the built-in sample: set url too")
        return self


class RecommenderConfig(Settings):
    """What is trained on ratings."""

    model: Literal["dot", "neural"] = "dot"
    """dot: the product of a user's and an item's factors, plus a bias of each (Koren and others
    2009). neural: both factors through a hidden layer (He and others 2017)."""
    num_factors: Annotated[int, Field(ge=1, le=4096)] = 50
    """Numbers that a user or an item is told by."""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 100
    """Units of the hidden layer of the neural model."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden units of the neural model dropped in training."""
    weight_decays: tuple[Annotated[float, Field(ge=0, lt=10)], ...] = ()
    """Weight decays to try beside each other, a training each; the one of least validation error is
    taken. Empty: train.weight_decay."""

    @model_validator(mode="after")
    def _told_apart(self) -> RecommenderConfig:
        decays = [f"{decay:g}" for decay in self.weight_decays]
        if len(set(decays)) < len(decays):
            raise ValueError(f"weight_decays = {', '.join(decays)}: one is there twice")
        if self.model == "dot" and self.dropout:
            raise ValueError(
                f"dropout = {self.dropout:g} has no meaning with model = dot, which has no hidden "
                "units: leave it out, or set model = neural"
            )
        return self


class RatingsLRFindConfig(LRFindConfig):
    """The learning-rate range test (Smith 2015)."""

    suggestion: Literal["minimum", "steepest", "valley", "slide"] = "valley"
    """Which suggestion training takes when train.base_lr is not set. Factors begin near 0, so that
    the loss falls late and the steepest place is often noise before it."""


class RatingsTrainConfig(TrainConfig):
    """The recipe: one cycle over everything, for nothing is pretrained."""

    freeze_epochs: Literal[0] = 0
    """No layer is pretrained, so that none is frozen."""
    freeze_to: Literal[-1] = -1
    """The same."""
    batch_norm: Literal["frozen"] = "frozen"
    """There is none."""
    number_loss: Literal["mse"] = "mse"
    """Ratings are judged by it."""
    micro_batch_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Most ratings in one forward pass of a process; gradients are accumulated to batch_size. 0: as
    many as fit."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the weights and the shuffle."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Passes over the training ratings."""
    base_lr: Annotated[float, Field(gt=0, lt=10)] | None = None
    """Peak rate; empty: the LR finder's suggestion."""
    unfrozen_lr_div: Annotated[float, Field(ge=1)] = 1.0
    """How many times smaller than base_lr the peak rate is."""
    lr_mult: Annotated[float, Field(ge=1)] = 1.0
    """How many times smaller the rate of the factors is than that of what follows them."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Ratings in one optimizer step, over all processes."""
    weight_decay: Annotated[float, Field(ge=0, lt=10)] = 0.1
    """Decoupled weight decay of factors, biases and hidden layers: the regulariser."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """A checkpoint is written after every epoch, and within one every so many optimizer steps, if
    the one before is checkpoint_seconds old."""

    @model_validator(mode="after")
    def _nothing_of_classes(self) -> RatingsTrainConfig:
        faults = {
            f"label_smoothing = {self.label_smoothing:g}": self.label_smoothing > 0,
            f"class_weights = {self.class_weights}": self.class_weights != "none",
        }
        if any(faults.values()):
            named = ", ".join(setting for setting, found in faults.items() if found)
            raise ValueError(f"{named} has no meaning for ratings, which are no classes: leave out")
        return self


class RatingsConfig(Settings):
    """All settings of a run that learns from ratings."""

    store: str = "pets-store"
    """Root of data sets and runs: a path or any fsspec URL (s3://bucket/prefix, gs://...)."""
    cache_dir: LocalFolder = "~/.cache/pets"
    """Local folder for downloads; safe to delete at any time."""
    ratings: RatingsSourceConfig = RatingsSourceConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    lr_find: RatingsLRFindConfig = RatingsLRFindConfig()
    train: RatingsTrainConfig = RatingsTrainConfig()
    gate: GateConfig = GateConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _chosen_by_validation(self) -> RatingsConfig:
        faults = {
            "recommender.weight_decays": bool(self.recommender.weight_decays),
            "train.keep = best": self.train.keep == "best",
            f"train.early_stopping_epochs = {self.train.early_stopping_epochs}": (
                self.train.early_stopping_epochs > 0
            ),
        }
        if any(faults.values()) and not self.ratings.valid_fraction:
            named = ", ".join(setting for setting, found in faults.items() if found)
            raise ValueError(
                f"{named}: chosen by validation ratings, of which there are none: raise "
                "ratings.valid_fraction above 0"
            )
        return self

    @model_validator(mode="after")
    def _sharded_training(self) -> RatingsConfig:
        check_sharding(self.launch, self.train)
        return self
