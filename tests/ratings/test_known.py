"""Indices of users and items with training ratings."""

import numpy as np
import pyarrow as pa

from pets_core.ratings.known import index_known


def test_only_ids_with_training_ratings_have_an_index():
    known = index_known(np.array([3, 1, 3], np.int32), num=5)
    assert known.num == 2
    assert known.indices.tolist() == [0, 1, 0, 2, 0]
    assert known.num_cold(np.array([0, 0, 1, 3, 4], np.int32)) == 2
    assert known.vocabulary(id=pa.array(list("abcde"))).to_pydict() == {
        "id": ["", "b", "d"],
        "num_ratings": [0, 1, 2],
    }
