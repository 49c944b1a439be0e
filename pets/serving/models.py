"""Served models: one for photos, one for ratings, and the slot that follows an alias."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from pets.model import ModelReference, find_model
from pets.serving.batcher import Batcher
from pets.serving.settings import Device

if TYPE_CHECKING:
    from pets_core.inference.predict import DecodedPhoto, Photo, Prediction
    from pets_core.ratings.recommend import Recommendation

__all__ = ["ModelSlot", "PhotoModel", "Predicted", "RatingModel", "open_served"]

_LOGGER = logging.getLogger(__name__)
_MAX_BATCH = 32
_LARGE_PIXELS = 8_000_000
_LARGE_PHOTO = threading.Lock()
"""Held while a large photo is decoded, which takes up to 1.5 GB."""


class _Item(NamedTuple):
    photo: DecodedPhoto
    num_top: int
    wants_map: bool


class Predicted(NamedTuple):
    """A prediction, and the photo with its activation map as a JPEG, if it was requested."""

    prediction: Prediction
    activation: bytes | None


class PhotoModel:
    """A model that predicts photos.

    Args:
        reference: The model.
        device: Device of the model.
        on_batch: Called with the number of photos of each batch, in the model's thread.
    """

    def __init__(
        self, reference: ModelReference, device: Device, on_batch: Callable[[int], None]
    ) -> None:
        from pets_core.inference.predict import open_model

        self.reference, self._on_batch = reference, on_batch
        self._predictor = open_model(reference.url, device)
        self._warm_up()
        self._batcher: Batcher[_Item, Predicted] = Batcher(self._run, _MAX_BATCH)

    def _warm_up(self) -> None:
        """Predict a grey photo: the first forward pass of a model takes longer than others."""
        import numpy as np

        from pets_core.inference.predict import DecodedPhoto

        side = self._predictor.card.resize_to
        grey = DecodedPhoto("", np.full((side, side, 3), 128, np.uint8), (side, side))
        self._predictor.predict_decoded([grey])

    @property
    def info(self) -> dict[str, Any]:
        """The card, whether activation maps can be requested, and the geometry of coordinates."""
        from pets_core.records.target_spec import target_spec

        card = self._predictor.card
        return {
            "geometry": target_spec(card.targets).geometry,
            "has_maps": self._predictor.explain is not None,
            "card": card.model_dump(mode="json"),
        }

    def decode(self, photo: Photo) -> DecodedPhoto:
        """Decode a photo for `predict`; may be called by several threads."""
        with _LARGE_PHOTO if _needs_much_memory(photo.read()) else contextlib.nullcontext():
            return self._predictor.decode(photo)

    async def predict(
        self, photos: Sequence[DecodedPhoto], num_top: int, *, wants_maps: bool
    ) -> list[Predicted]:
        """Predict photos, together with those of other requests.

        Args:
            photos: Decoded photos; unreadable ones get a prediction with their error.
            num_top: Number of classes or tags to list for each photo.
            wants_maps: Whether to compute activation maps, if the model has them.
        """
        return await self._batcher.submit([_Item(each, num_top, wants_maps) for each in photos])

    def _run(self, items: Sequence[_Item]) -> list[Predicted]:
        self._on_batch(len(items))
        most = max(item.num_top for item in items)
        found = self._predictor.predict_decoded([item.photo for item in items], most)
        return [
            Predicted(
                prediction.model_copy(update={"top": prediction.top[: item.num_top]}),
                self._explain(item),
            )
            for item, prediction in zip(items, found, strict=True)
        ]

    def _explain(self, item: _Item) -> bytes | None:
        explain, pixels = self._predictor.explain, item.photo.pixels
        if not item.wants_map or explain is None or pixels is None:
            return None
        try:
            return explain(pixels)
        except Exception:
            # The predictions of the batch belong to other requests, too.
            _LOGGER.exception("An activation map failed")
            return None

    def close(self) -> None:
        """End the model's thread and free the model. No photos may be predicted any more."""
        self._batcher.close()
        # The batcher refers to this object, so that the garbage collector would free it later.
        del self._predictor


class RatingModel:
    """A model that recommends items.

    Args:
        reference: The model.
    """

    def __init__(self, reference: ModelReference) -> None:
        from pets_core.ratings.recommend import Recommender

        self.reference = reference
        self._recommender = Recommender(reference.url)
        self.info = {"ratings": self._recommender.card.model_dump(mode="json")}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def recommend(
        self, user: str | None, count: int, min_ratings: int
    ) -> list[Recommendation]:
        """Return the best items for a user.

        Raises:
            PetsError: The user is unknown, or no item remains.
        """
        loop = asyncio.get_running_loop()
        arguments = (user, count, min_ratings)
        return await loop.run_in_executor(self._thread, self._recommender.recommend, *arguments)

    def close(self) -> None:
        """End the model's thread."""
        self._thread.shutdown(wait=False)


def _needs_much_memory(photo: bytes) -> bool:
    """Whether decoding takes over 100 MB; JPEGs are decoded at a reduced scale."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(photo)) as image:
            return image.format != "JPEG" and image.width * image.height > _LARGE_PIXELS
    except Exception:  # noqa: BLE001 - the decoder states what is wrong
        return False


def open_served(
    reference: ModelReference, device: Device, on_batch: Callable[[int], None]
) -> PhotoModel | RatingModel:
    """Open a model of any kind of target.

    Raises:
        PetsError: The model is missing or damaged.
    """
    from pets_core.ratings.card import is_recommender

    if is_recommender(reference.url):
        return RatingModel(reference)
    return PhotoModel(reference, device, on_batch)


class ModelSlot:
    """The model that new requests use. It changes when the alias moves.

    Args:
        model: Model, data set with alias, or run, as for `pets.load`.
        store: Store of aliases and runs.
        load: Opens a model.
    """

    def __init__(
        self,
        model: str,
        store: str | None,
        load: Callable[[ModelReference], PhotoModel | RatingModel],
    ) -> None:
        self._model, self._store, self._load = model, store, load
        self._users: dict[PhotoModel | RatingModel, int] = {}
        self.current: PhotoModel | RatingModel = load(find_model(model, store))

    @contextlib.contextmanager
    def use(self) -> Iterator[PhotoModel | RatingModel]:
        """Yield the current model, which stays open until the end of the block."""
        model = self.current
        self._users[model] = self._users.get(model, 0) + 1
        try:
            yield model
        finally:
            self._users[model] -= 1
            self._close_unused(model)

    async def follow(self, seconds: float, on_update: Callable[[bool], None]) -> None:
        """Look every few seconds whether the alias points at another model, and open it.

        Requests continue with the current model while the next one is opened, and if that fails.

        Args:
            seconds: Time between two looks.
            on_update: Called after a new model was opened (True) or could not be opened (False).
        """
        last_error = ""
        while self.current.reference.alias:
            await asyncio.sleep(seconds)
            try:
                found = await asyncio.to_thread(find_model, self._model, self._store)
                if found == self.current.reference:
                    last_error = ""
                    continue
                model = await asyncio.to_thread(self._load, found)
            except Exception as error:  # noqa: BLE001 - the store, the network, the model
                if str(error) != last_error:
                    last_error = str(error)
                    _LOGGER.warning("%s is not updated: %s", self._model, last_error)
                on_update(False)
                continue
            last_error = ""
            self._replace(model)
            # Otherwise this variable would keep the model after the next one.
            del model
            on_update(True)

    def _replace(self, model: PhotoModel | RatingModel) -> None:
        previous, self.current = self.current, model
        self._close_unused(previous)
        _LOGGER.info("%s now points at %s", self._model, model.reference.printable().url)

    def _close_unused(self, model: PhotoModel | RatingModel) -> None:
        if model is not self.current and not self._users.get(model):
            self._users.pop(model, None)
            model.close()
