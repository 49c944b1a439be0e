"""Every setting of where ratings come from; how models of them are trained is set as of photos."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pets_core.config import NAME_PATTERN, Settings

__all__ = ["RatingsSourceConfig"]


class RatingsSourceConfig(Settings):
    """Where the ratings come from and how they are split."""

    url: str | None = None
    """Path or fsspec URL of a table with a row a rating: CSV, TSV or Parquet, or MovieLens' u.data
    (no header: user, item, rating, time). Empty: the built-in sample."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set; empty: the last part of the URL, of u.data its folder's."""
    items_url: str | None = None
    """Path or URL of a table with the items' titles: columns for the item and title, as MovieLens'
    movies.csv, or its u.item. Empty: items are told by their ids."""
    user_column: str = "auto"
    """Column with the users' ids, numbers or text. auto: userId, user_id or user."""
    item_column: str = "auto"
    """Column with the items' ids. auto: movieId, movie_id, itemId, item_id or item."""
    rating_column: str = "auto"
    """Column with the ratings, numbers. auto: rating."""
    time_column: str | None = "auto"
    """Column with the times of the ratings: whole numbers as they are, such as seconds since 1970,
    or dates. auto: timestamp or time, where there is one; empty: times are left out."""
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
