"""Use a trained model."""

from __future__ import annotations

import glob
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pets.store import resolve_cache_dir, resolve_store
from pets_core import storage
from pets_core.config.base import NAME_PATTERN
from pets_core.errors import PetsError
from pets_core.models.card import CARD, ModelCard, read_card

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from pets_core.inference.predict import Photo, Prediction, Predictor

__all__ = ["Model", "ModelReference", "find_model", "load"]

_ALIAS = "champion"


def load(model: str | PathLike[str], *, store: str | None = None) -> Model:
    """Load a model for prediction.

    Args:
        model: A model folder or an ONNX file, path or URL; `<data set>@<alias>` or the name of a
            data set, whose alias is then `champion`; a run: `latest`, its id, a start of it, or its
            name; or hf://org/name[@revision], a model that `pets push` uploaded.
        store: Store of aliases and runs. Default: the variable PETS_STORE, or `pets-store`.

    Raises:
        PetsError: There is no such model.
    """
    return Model(find_model(fspath(model), store).url)


class ModelReference(NamedTuple):
    """A model found by its folder, alias or run.

    Attributes:
        url: Model folder or ONNX file.
        alias: `<data set>@<alias>`; empty unless the model was found by its alias.
        run_id: Run that evaluated the model; empty unless the model was found by its alias.
    """

    url: str
    alias: str = ""
    run_id: str = ""

    def printable(self) -> ModelReference:
        """Return the reference without the query and the password of a URL."""
        return self._replace(url=storage.without_secrets(self.url))


def find_model(model: str, store: str | None = None) -> ModelReference:
    """Find a model; arguments and errors are those of `load`."""
    from pets_core.hub.address import is_hub_address, parse_address
    from pets_core.registry.aliases import absolute, aliases, current
    from pets_core.runtime.run_list import find_run_folder, load_report
    from pets_core.runtime.runs import is_run

    if is_hub_address(model):
        from pets_core.hub.models import pull_model_once

        return ModelReference(pull_model_once(parse_address(model), resolve_cache_dir()).url)
    root = resolve_store(store)
    if model.endswith(".onnx") or _is_model(storage.absolute(model)):
        return ModelReference(storage.absolute(model))
    name, at, alias = model.rpartition("@")
    dataset, alias = (name, alias) if at else (model, _ALIAS)
    if re.fullmatch(NAME_PATTERN, dataset):
        known = aliases(root, dataset)
        version = current(root, dataset, alias) if alias in known else None
        if version is not None:
            url = absolute(root, version.model.model_url)
            return ModelReference(url, f"{dataset}@{alias}", version.model.run_id)
        if at:
            raise PetsError(
                f"{model}: data set {dataset} has no alias {alias} in {root}. Its aliases: "
                f"{', '.join(known) or 'none'}"
            )
    if "/" in model and not is_run(storage.absolute(model)):
        # States why it is not a model folder.
        read_card(model)
    try:
        url = find_run_folder(root, model)
    except PetsError as error:
        raise PetsError(f"{model} is not a model folder or an alias. {error}") from error
    report = load_report(url)
    found = report.model_url if report else storage.join(url, "model")
    if not _is_model(found):
        raise PetsError(f"{url}: the run has no model")
    return ModelReference(found)


def _is_model(url: str) -> bool:
    return storage.exists(storage.join(url, CARD))


class Model:
    """A trained model.

    Attributes:
        url: Model folder or ONNX file.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def __repr__(self) -> str:
        return f"Model({self.url!r})"

    @property
    def card(self) -> ModelCard:
        """Card of the model: backbone, input size, labels, data set."""
        return self._predictor.card

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes or tags, by index."""
        return tuple(info.name for info in self.card.vocabulary)

    @cached_property
    def _predictor(self) -> Predictor:
        from pets_core.inference.predict import open_model

        return open_model(self.url)

    def predict(self, images: Any, *, top: int = 3) -> list[Prediction]:
        """Predict images.

        Args:
            images: One image, or several in a list, a generator or an array (B, H, W, 3). An image
                is a path, a URL, a folder (all photos in it), a pattern such as `photos/*.jpg`,
                encoded bytes, a PIL image, or an array uint8 (H, W, 3) or (H, W).
            top: Number of classes or tags to list for each image.

        Returns:
            One prediction per image, in order; that of an unreadable image has an `error`.

        Raises:
            PetsError: A pattern or folder has no photo, or an image has another type.
        """
        if top < 1:
            raise PetsError(f"top = {top}: must be at least 1")
        return list(self._predictor.predict(_photos(images), top))


def _photos(images: Any) -> Iterator[Photo]:
    """Yield the photos of any input of `Model.predict`."""
    from pets_core.inference.predict import Photo

    if isinstance(images, (str, PathLike)):
        yield from _photos_at(fspath(images))
    elif isinstance(images, (bytes, bytearray, memoryview)):
        yield Photo(f"{len(images)} bytes", partial(bytes, images))
    elif hasattr(images, "save") and hasattr(images, "mode"):
        yield Photo(getattr(images, "filename", "") or "PIL image", partial(_encode, images))
    elif hasattr(images, "__array__"):
        yield from _photos_of_array(images)
    elif isinstance(images, Iterable):
        for image in images:
            yield from _photos(image)
    else:
        raise PetsError(
            f"{type(images).__name__} is no image: use a path, a URL, bytes, a PIL image, an array "
            "(H, W, 3) of uint8, or a list of them"
        )


def _photos_at(place: str) -> Iterator[Photo]:
    from pets_core.data.sources.formats import may_be_photo
    from pets_core.inference.predict import Photo, read_photo

    found: Sequence[str] = [place]
    if not storage.is_url(place) and Path(place).is_dir():
        files = sorted(str(path) for path in Path(place).rglob("*") if path.is_file())
        found = [file for file in files if may_be_photo(file)]
    elif not storage.is_url(place) and glob.has_magic(place) and not Path(place).exists():
        found = sorted(glob.glob(place, recursive=True))  # noqa: PTH207 - absolute patterns, too
    if not found:
        raise PetsError(f"{place}: there is no photo")
    for each in found:
        yield Photo(each, partial(read_photo, each))


def _photos_of_array(images: Any) -> Iterator[Photo]:
    import numpy as np

    from pets_core.inference.predict import Photo

    array: NDArray[Any] = np.asarray(images)
    is_batch = array.ndim == 4
    for index, pixels in enumerate(array if is_batch else [array]):
        _check_array(pixels)
        name = f"array {index}" if is_batch else "array"
        yield Photo(name, partial(_encode_array, pixels))


def _check_array(pixels: NDArray[Any]) -> None:
    is_grey = pixels.ndim == 2
    is_colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if str(pixels.dtype) != "uint8" or not (is_grey or is_colour):
        shape = ", ".join(map(str, pixels.shape))
        raise PetsError(
            f"an array of {pixels.dtype} ({shape}) is no image: use uint8 (H, W, 3) or (H, W), "
            "values from 0 to 255"
        )


def _encode_array(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    return _encode(Image.fromarray(pixels))


def _encode(image: Image.Image) -> bytes:
    """Return an image without loss, with its EXIF orientation and colour profile.

    Raises:
        UnreadablePhotoError: Its file is damaged, or Pillow cannot write its mode.
    """
    from pets_core.data.sources.formats import UnreadablePhotoError

    encoded = io.BytesIO()
    exif, profile = image.info.get("exif"), image.info.get("icc_profile")
    keywords = {"exif": exif} if exif else {}
    try:
        stored = image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image
        file_format = "TIFF" if image.mode in ("F", "I") else "PNG"
        stored.save(encoded, file_format, icc_profile=profile, **keywords)
    except Exception as error:
        # Pillow reads a file lazily, and its decoders raise any error.
        raise UnreadablePhotoError("damaged", str(error)) from error
    return encoded.getvalue()
