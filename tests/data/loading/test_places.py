"""Coordinates are transformed by the same maps as the pixels of their photo."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pets_core.config.train import TransformConfig
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader, transform_coordinates
from pets_core.data.loading.transforms import Augment, CenterCrop, transform_box, transform_points

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIDE, SIZE = 96, 80
NO_LIGHTING = {"max_lighting": 0.0, "probability": 1.0}


def coordinate_photo() -> torch.Tensor:
    """Photo, (1, R, R, 3), whose red channel encodes x and whose green channel encodes y."""
    centres = (np.arange(SIDE) * 2 + 1) / SIDE - 1
    across, down = np.meshgrid(centres, centres)
    colours = np.stack([across, down, np.zeros_like(across)], 2)
    return torch.from_numpy(np.rint((colours[None] + 1) / 2 * 255).astype(np.uint8))


def sample_coordinates(inputs: torch.Tensor, position: torch.Tensor) -> list[float]:
    """Return the photo coordinates encoded at a position of an input, (1, 3, S, S)."""
    grid = position.view(1, 1, 1, 2)
    seen = torch.nn.functional.grid_sample(inputs[:, :2], grid, align_corners=False)
    return (seen.flatten() * 2 - 1).tolist()


transforms = st.fixed_dictionaries(
    {
        "flip": st.booleans(),
        "max_rotate_degrees": st.floats(0, 180),
        "max_zoom": st.floats(1, 2),
        "max_warp": st.floats(0, 0.3),
        "min_crop_area": st.sampled_from([1.0, 0.5]),
    }
)
inner = st.floats(-0.8, 0.8)


@settings(max_examples=200)
@given(x=inner, y=inner, options=transforms, seed=st.integers(0, 2**32))
def test_point_follows_its_pixel_under_augmentation(x, y, options, seed):
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHTING | options))
    arguments = {"seed": seed, "rows": slice(0, 1), "global_size": 1}
    inputs = transform(coordinate_photo(), **arguments)
    maps = transform.maps(SIDE, **arguments)
    moved = transform_points(torch.tensor([[x, y]]), torch.linalg.inv(maps))
    # A point outside the crop is not visible.
    if moved.abs().max() < 1 - 2 / SIZE:
        # Tolerance of a pixel: under a warp, an input pixel covers several photo pixels.
        assert sample_coordinates(inputs, moved) == pytest.approx([x, y], abs=2 * 2 / SIDE)


@given(x=inner, y=inner, size=st.sampled_from([96, 95, 80, 71]))
def test_point_follows_its_pixel_under_a_crop(x, y, size):
    crop = CenterCrop(size, MEAN, STD)
    inputs, maps = crop(coordinate_photo()), crop.maps(SIDE, rows=slice(0, 1))
    moved = transform_points(torch.tensor([[x, y]]), torch.linalg.inv(maps))
    if moved.abs().max() < 1 - 2 / size:
        assert sample_coordinates(inputs, moved) == pytest.approx([x, y], abs=2 / 255)


@given(
    coordinates=st.lists(inner, min_size=4, max_size=4), options=transforms, seed=st.integers(0, 99)
)
def test_transform_and_inverse_cancel(coordinates, options, seed):
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHTING | options))
    maps = transform.maps(SIDE, seed=seed, rows=slice(0, 1), global_size=1)
    points = torch.tensor([coordinates])
    moved = transform_points(points, torch.linalg.inv(maps))
    assert torch.allclose(transform_points(moved, maps), points, atol=1e-3)


def test_mirrored_box_has_ordered_corners():
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    box = torch.tensor([[-0.5, -0.25, 0.75, 0.5]])
    assert transform_box(box, mirror).tolist() == [[-0.75, -0.25, 0.5, 0.5]]


@given(
    corners=st.lists(inner, min_size=4, max_size=4), options=transforms, seed=st.integers(0, 99),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
def test_transformed_box_contains_its_points(corners, options, seed, shares):
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = torch.tensor([[xs[0], ys[0], xs[1], ys[1]]])
    inside = torch.tensor(
        [[xs[0] + shares[0] * (xs[1] - xs[0]), ys[0] + shares[1] * (ys[1] - ys[0])]]
    )
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHTING | options))
    maps = torch.linalg.inv(transform.maps(SIDE, seed=seed, rows=slice(0, 1), global_size=1))
    x0, y0, x1, y1 = transform_coordinates(box, maps, "box")[0]
    x, y = transform_coordinates(inside, maps, "points")[0]
    tolerance = 1e-3
    assert x0 - tolerance <= x <= x1 + tolerance
    assert y0 - tolerance <= y <= y1 + tolerance


@pytest.mark.parametrize("targets", ["points", "box"])
def test_transformed_coordinates_are_independent_of_world_size(targets):
    count, width = 11, 2 if targets == "points" else 4
    random = np.random.default_rng(0)
    coordinates = np.sort(random.uniform(-0.5, 0.5, (count, width)), axis=1).astype(np.float32)
    photos = DecodedPhotos(
        random.integers(0, 256, (count, 32, 32, 3), np.uint8),
        coordinates,
        [str(n) for n in range(count)],
    )
    transform = Augment(28, MEAN, STD, TransformConfig())

    def moved(world_size):
        found = {}
        for rank in range(world_size):
            loader = PhotoLoader(
                photos, transform, BatchSampler(count, 4, 3, rank, world_size),
                device=torch.device("cpu"), targets=targets,
            )  # fmt: skip
            for batch in loader.epoch(1):
                found |= dict(zip(batch.ids, batch.targets.tolist(), strict=True))
        return found

    single = moved(1)
    assert len(single) == count
    # With five ranks, one gets no row of a batch of four.
    for number in (2, 3, 5):
        parallel = moved(number)
        for photo, position in single.items():
            assert parallel[photo] == pytest.approx(position, abs=1e-5)
    assert not np.allclose([single[str(n)] for n in range(count)], coordinates), (
        "the coordinates are transformed"
    )


def test_batch_maps_invert_the_coordinates():
    photos = DecodedPhotos(
        np.zeros((3, 32, 32, 3), np.uint8), np.full((3, 2), 0.5, np.float32), ["a", "b", "c"]
    )
    loader = PhotoLoader(
        photos, CenterCrop(24, MEAN, STD), BatchSampler(3, 3, None), device=torch.device("cpu"),
        targets="points",
    )  # fmt: skip
    (batch,) = loader.epoch(0)
    assert batch.targets[0].tolist() == pytest.approx([0.5 * 32 / 24] * 2)
    assert transform_coordinates(batch.targets, batch.maps, "points")[0].tolist() == pytest.approx(
        [0.5] * 2
    )
