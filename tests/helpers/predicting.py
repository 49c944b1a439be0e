"""Predictions of photos at paths or URLs."""

from collections.abc import Iterator, Sequence
from functools import partial

from pets_core.inference.predict import Photo, Prediction, open_model, read_photo

__all__ = ["predict_photos"]


def predict_photos(
    model_url: str, photos: Sequence[str], *, num_top: int = 3
) -> Iterator[Prediction]:
    """Predict photos as `pets predict` does."""
    named = (Photo(photo, partial(read_photo, photo)) for photo in photos)
    yield from open_model(model_url).predict(named, num_top)
