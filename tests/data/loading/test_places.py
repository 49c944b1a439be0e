"""Places move with the photo they are on, by the very map that moves its pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pets_core.config.train import TransformConfig
from pets_core.data.loading.decoded import DecodedPhotos
from pets_core.data.loading.loader import PhotoLoader, transform_coordinates
from pets_core.data.loading.transforms import Augment, CenterCrop, transform_box, transform_points

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIDE, SIZE = 96, 80
NO_LIGHT = {"max_lighting": 0.0, "probability": 1.0}


def photo_of_its_places() -> torch.Tensor:
    """A photo, (1, R, R, 3), the red of whose pixels says where they are across, the green down."""
    centres = (np.arange(SIDE) * 2 + 1) / SIDE - 1
    across, down = np.meshgrid(centres, centres)
    colours = np.stack([across, down, np.zeros_like(across)], 2)
    return torch.from_numpy(np.rint((colours[None] + 1) / 2 * 255).astype(np.uint8))


def shown_at(inputs: torch.Tensor, place: torch.Tensor) -> list[float]:
    """Which place of the photo is seen at a place of an input, (1, 3, S, S)."""
    grid = place.view(1, 1, 1, 2)
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
@given(x=inner, y=inner, chosen=transforms, seed=st.integers(0, 2**32))
def test_point_follows_its_pixel_under_augmentation(x, y, chosen, seed):
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHT | chosen))
    drawn = {"seed": seed, "rows": slice(0, 1), "global_size": 1}
    inputs = transform(photo_of_its_places(), **drawn)
    maps = transform.maps(SIDE, **drawn)
    moved = transform_points(torch.tensor([[x, y]]), torch.linalg.inv(maps))
    # What was cropped away is nowhere to be seen.
    if moved.abs().max() < 1 - 2 / SIZE:
        # Within a pixel: where the photo is seen from aside, one of the input spans several.
        assert shown_at(inputs, moved) == pytest.approx([x, y], abs=2 * 2 / SIDE)


@given(x=inner, y=inner, size=st.sampled_from([96, 95, 80, 71]))
def test_point_follows_its_pixel_under_a_crop(x, y, size):
    crop = CenterCrop(size, MEAN, STD)
    inputs, maps = crop(photo_of_its_places()), crop.maps(SIDE, rows=slice(0, 1))
    moved = transform_points(torch.tensor([[x, y]]), torch.linalg.inv(maps))
    if moved.abs().max() < 1 - 2 / size:
        assert shown_at(inputs, moved) == pytest.approx([x, y], abs=2 / 255)


@given(places=st.lists(inner, min_size=4, max_size=4), chosen=transforms, seed=st.integers(0, 99))
def test_transform_and_inverse_cancel(places, chosen, seed):
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHT | chosen))
    maps = transform.maps(SIDE, seed=seed, rows=slice(0, 1), global_size=1)
    points = torch.tensor([places])
    there = transform_points(points, torch.linalg.inv(maps))
    assert torch.allclose(transform_points(there, maps), points, atol=1e-3)


def test_mirrored_box_has_ordered_corners():
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))[None]
    box = torch.tensor([[-0.5, -0.25, 0.75, 0.5]])
    assert transform_box(box, mirror).tolist() == [[-0.75, -0.25, 0.5, 0.5]]


@given(
    corners=st.lists(inner, min_size=4, max_size=4), chosen=transforms, seed=st.integers(0, 99),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
def test_transformed_box_contains_its_points(corners, chosen, seed, shares):
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = torch.tensor([[xs[0], ys[0], xs[1], ys[1]]])
    inside = torch.tensor(
        [[xs[0] + shares[0] * (xs[1] - xs[0]), ys[0] + shares[1] * (ys[1] - ys[0])]]
    )
    transform = Augment(SIZE, MEAN, STD, TransformConfig(**NO_LIGHT | chosen))
    maps = torch.linalg.inv(transform.maps(SIDE, seed=seed, rows=slice(0, 1), global_size=1))
    x0, y0, x1, y1 = transform_coordinates(box, maps, "box")[0]
    x, y = transform_coordinates(inside, maps, "points")[0]
    near = 1e-3
    assert x0 - near <= x <= x1 + near
    assert y0 - near <= y <= y1 + near


@pytest.mark.parametrize("targets", ["points", "box"])
def test_transformed_coordinates_are_independent_of_world_size(targets):
    count, width = 11, 2 if targets == "points" else 4
    random = np.random.default_rng(0)
    places = np.sort(random.uniform(-0.5, 0.5, (count, width)), axis=1).astype(np.float32)
    photos = DecodedPhotos(
        random.integers(0, 256, (count, 32, 32, 3), np.uint8),
        places,
        [str(n) for n in range(count)],
    )
    transform = Augment(28, MEAN, STD, TransformConfig())

    def moved(world_size):
        found = {}
        for rank in range(world_size):
            loader = PhotoLoader(
                photos, transform, batch_size=4, seed=3, device=torch.device("cpu"), rank=rank,
                world_size=world_size, targets=targets,
            )  # fmt: skip
            for batch in loader.epoch(1):
                found |= dict(zip(batch.ids, batch.targets.tolist(), strict=True))
        return found

    alone = moved(1)
    assert len(alone) == count
    # Of five ranks, one has nothing of a batch of four.
    for number in (2, 3, 5):
        together = moved(number)
        for photo, place in alone.items():
            assert together[photo] == pytest.approx(place, abs=1e-5)
    assert not np.allclose([alone[str(n)] for n in range(count)], places), "they did move"


def test_batch_maps_invert_the_coordinates():
    photos = DecodedPhotos(
        np.zeros((3, 32, 32, 3), np.uint8), np.full((3, 2), 0.5, np.float32), ["a", "b", "c"]
    )
    loader = PhotoLoader(
        photos, CenterCrop(24, MEAN, STD), batch_size=3, seed=None, device=torch.device("cpu"),
        targets="points",
    )  # fmt: skip
    (batch,) = loader.epoch(0)
    assert batch.targets[0].tolist() == pytest.approx([0.5 * 32 / 24] * 2)
    assert transform_coordinates(batch.targets, batch.maps, "points")[0].tolist() == pytest.approx(
        [0.5] * 2
    )
