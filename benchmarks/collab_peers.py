"""Other libraries on the splits of `benchmarks/collab.py`, which starts this script.

    python benchmarks/collab_peers.py SPLITS.npz

Needs `pip install scikit-surprise lenskit`, and nothing of this project. The last line that it
prints is a JSON list of name, test RMSE and seconds of the fit. The library implicit is not
compared: its models rank items by observed interactions and do not predict ratings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


def surprise_svd(arrays: Arrays) -> tuple[np.ndarray, float]:
    """Return the predictions of Surprise's SVD with its defaults, and the seconds of its fit."""
    from pandas import DataFrame
    from surprise import SVD, Dataset, Reader

    names = ("users", "items", "ratings")
    frame = DataFrame({name: arrays[f"train_{name}"] for name in names})
    reader = Reader(rating_scale=tuple(arrays["y_range"].tolist()))
    data = Dataset.load_from_df(frame, reader).build_full_trainset()
    model, start = SVD(random_state=0), time.monotonic()
    model.fit(data)
    seconds = time.monotonic() - start
    pairs = zip(arrays["test_users"].tolist(), arrays["test_items"].tolist(), strict=True)
    return np.array([model.predict(*pair).est for pair in pairs]), seconds


def lenskit_mf(arrays: Arrays) -> tuple[np.ndarray, float]:
    """Return the predictions of LensKit's biased MF with its defaults, and the seconds of its fit.

    Where it has no prediction, for cold users and items, that of its biases is used.
    """
    from lenskit.als import BiasedMFScorer  # codespell:ignore als
    from lenskit.basic import BiasScorer
    from lenskit.data import ItemList, from_interactions_df
    from pandas import DataFrame

    train = DataFrame(
        {
            "user_id": arrays["train_users"],
            "item_id": arrays["train_items"],
            "rating": arrays["train_ratings"],
        }
    )
    data = from_interactions_df(train)
    model, biases, start = BiasedMFScorer(), BiasScorer(), time.monotonic()
    model.train(data)
    biases.train(data)
    seconds = time.monotonic() - start
    users, items = arrays["test_users"], arrays["test_items"]
    predicted = np.empty(len(users))
    for user in np.unique(users):
        rows = np.flatnonzero(users == user)
        listed = ItemList(item_ids=items[rows])
        scores = np.asarray(model(int(user), listed).scores("numpy"), float)
        other = np.asarray(biases(int(user), listed).scores("numpy"), float)
        predicted[rows] = np.where(np.isfinite(scores), scores, other)
    return predicted.clip(*arrays["y_range"]), seconds


def main() -> None:
    """Fit each library and print the results."""
    arrays = dict(np.load(sys.argv[1]))
    libraries: dict[str, Callable[[Arrays], tuple[np.ndarray, float]]] = {
        "Surprise SVD": surprise_svd,
        "LensKit biased MF": lenskit_mf,
    }
    found: list[dict[str, Any]] = []
    for name, fit in libraries.items():
        predicted, seconds = fit(arrays)
        rmse = float(np.sqrt(np.mean((predicted - arrays["test_ratings"]) ** 2)))
        found.append({"name": name, "rmse": rmse, "seconds": seconds})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
