"""Random predictions of each kind of target, and files of them."""

import numpy as np

from pets_core.evaluation.predictions import Predictions, PredictionsInfo, write_predictions
from pets_core.targets.registry import get_target
from pets_core.targets.tags.target import binary_cross_entropy

__all__ = ["draw_classes", "draw_numbers", "draw_tags", "write_drawn"]

_COORDINATES = {"points": ["eye x", "eye y"], "box": ["xmin", "ymin", "xmax", "ymax"]}


def draw_classes(
    num_rows: int = 60, *, off: float = 0.1, seed: int = 0, predicted_by: int = 0, **about
) -> Predictions:
    """Draw predicted classes, of which a fraction `off` is wrong.

    Args:
        num_rows: Number of photos.
        off: Fraction of wrong predictions.
        seed: Seed of the targets.
        predicted_by: Seed of the predictions, which differs between models of the same photos.
        about: Fields of the metadata, or `names`.
    """
    names = about.pop("names", [f"class {number}" for number in range(4)])
    targets = np.arange(num_rows) % len(names)
    random = np.random.default_rng((seed, predicted_by))
    wrong = random.random(num_rows) < off
    predicted = np.where(wrong, (targets + 1) % len(names), targets)
    odds = random.uniform(0.01, 0.1, (num_rows, len(names)))
    odds[np.arange(num_rows), predicted] = random.uniform(0.8, 1, num_rows)
    probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    losses = -np.log(probabilities[np.arange(num_rows), targets])
    info = _info("class", vocabulary=[{"name": name} for name in names], **about)
    return Predictions(info, _ids(num_rows), targets, probabilities, losses)


def draw_tags(
    num_rows: int = 60, *, off: float = 0.1, seed: int = 0, predicted_by: int = 0, **about
) -> Predictions:
    """Draw predicted tags, of which a fraction `off` is wrong. Arguments: see `draw_classes`."""
    names = about.pop("names", [f"tag {number}" for number in range(4)])
    targets = np.random.default_rng(seed).random((num_rows, len(names))) < 0.4
    random = np.random.default_rng((seed, predicted_by))
    predicted = targets ^ (random.random(targets.shape) < off)
    probabilities = np.where(predicted, 0.85, 0.15) + random.uniform(-0.1, 0.1, targets.shape)
    probabilities = probabilities.astype(np.float32)
    info = _info("tags", vocabulary=[{"name": name} for name in names], **about)
    losses = binary_cross_entropy(targets, probabilities)
    return Predictions(info, _ids(num_rows), targets, probabilities, losses)


def draw_numbers(
    targets: str = "numbers", num_rows: int = 60, *, off: float = 0.1, seed: int = 0,
    predicted_by: int = 0, **about,
) -> Predictions:  # fmt: skip
    """Draw predicted numbers, keypoints or boxes with errors of about `off`.

    Args:
        targets: numbers, points or box.
        num_rows: Number of photos.
        off: Standard deviation of the errors.
        seed: Seed of the targets.
        predicted_by: Seed of the predictions, which differs between models of the same photos.
        about: Fields of the metadata, or `names` and `units`.
    """
    names = about.pop("names", _COORDINATES.get(targets, ["age", "weight"]))
    units = about.pop("units", [""] * len(names))
    actual = np.random.default_rng(seed).uniform(-0.9, 0.9, (num_rows, len(names)))
    if targets == "box":
        actual = np.concatenate([-np.abs(actual[:, :2]), np.abs(actual[:, 2:]) + 0.05], 1)
    noise = np.random.default_rng((seed, predicted_by)).normal(0, off, actual.shape)
    numbers = [
        {"name": name, "unit": unit, "mean": 0.1, "std": 0.5}
        for name, unit in zip(names, units, strict=True)
    ]
    info = _info(targets, **({"numbers": numbers} | about))
    predicted = (actual + noise).astype(np.float32)
    return Predictions(info, _ids(num_rows), actual.astype(np.float32), predicted)


def write_drawn(url: str, predictions: Predictions, embeddings: np.ndarray | None = None) -> str:
    """Write predictions as a rank does and return the URL."""
    kind, outputs = get_target(predictions.info.targets), predictions.outputs
    write_predictions(
        url, kind, predictions.info, predictions.ids, predictions.targets, outputs, embeddings
    )
    return url


def _info(targets: str, **about) -> PredictionsInfo:
    fields = {
        "targets": targets, "split": "test", "model_url": "a/model", "backbone": "resnet34",
        "image_size": 64, "dataset_url": "nowhere/pets/f", "dataset_name": "pets",
        "dataset_fingerprint": "f",
    }  # fmt: skip
    return PredictionsInfo.model_validate(fields | about)


def _ids(num_rows: int) -> list[str]:
    return [f"photo-{row}" for row in range(num_rows)]
