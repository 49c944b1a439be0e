"""JPEG decoding on the device; torchvision's CPU decoder replaces nvJPEG."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pets_core.data.ingest.images import decode, is_plain_jpeg, open_rgb
from pets_core.data.loading import loader as loader_module
from pets_core.data.loading.batches import BatchSampler
from pets_core.data.loading.decoded import DecodedPhotos, EncodedPhotos
from pets_core.data.loading.jpeg import decode_squares
from pets_core.data.loading.loader import PhotoLoader
from pets_core.data.loading.transforms import CenterCrop

# torchvision 0.29 deprecates its decoder for TorchCodec, each release of which fits one torch.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

CPU, SIDE = torch.device("cpu"), 32


def picture(number: int, width: int = 100, height: int = 75) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(picture(1), exif=exif)


def with_profile(name: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()
    return encoded(picture(1), icc_profile=profile)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(picture(1)), True),
        (encoded(picture(1).convert("L")), True),
        (encoded(picture(1), progressive=True), True),
        (with_profile("sRGB"), True),
        (encoded(picture(1).convert("CMYK")), False),
        (rotated(), False),
        (encoded(picture(1), "PNG"), False),
        (encoded(picture(1))[:20], False),
        (b"", False),
    ],
)
def test_plain_jpegs_are_upright_and_need_no_profile(data, expected):
    assert is_plain_jpeg(data) == expected


@pytest.mark.parametrize("size", [(100, 75), (40, 300), (32, 32), (20, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_squares_match_pillow(size, mode):
    photos = [encoded(picture(number, *size).convert(mode), quality=95) for number in range(3)]
    for resize in ("crop", "pad"):
        for photo, square in zip(photos, decode_squares(photos, SIDE, CPU, resize), strict=True):
            expected = decode(photo, SIDE, resize).astype(int)
            assert np.abs(square.numpy().astype(int) - expected).mean() < 6, resize
    squares = decode_squares(photos, SIDE, CPU)
    assert squares.shape == (3, SIDE, SIDE, 3)
    assert squares.dtype == torch.uint8
    for photo, square in zip(photos, squares.numpy(), strict=True):
        full = open_rgb(photo)
        stretched = np.asarray(full.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        assert np.abs(square.astype(int) - stretched.astype(int)).mean() < 1
        # decode() reads large JPEGs at a reduced scale.
        assert np.abs(square.astype(int) - decode(photo, SIDE).astype(int)).mean() < 4


@pytest.fixture
def photos() -> DecodedPhotos:
    """Two decoded photos, then encoded ones: JPEGs, one of them rotated, and a PNG."""
    files = [encoded(picture(number)) for number in range(4)]
    files += [rotated(), encoded(picture(5), "PNG"), encoded(picture(6))]
    pixels = np.stack([decode(file, SIDE) for file in files[:2]])
    rest = files[2:]
    stored = EncodedPhotos(
        np.frombuffer(b"".join(rest), np.uint8), np.cumsum([len(file) for file in rest])
    )
    return DecodedPhotos(pixels, np.arange(7), [str(n) for n in range(7)], stored)


def batches(photos: DecodedPhotos) -> torch.Tensor:
    crop = CenterCrop(SIDE, (0.0,) * 3, (1.0,) * 3)
    loader = PhotoLoader(photos, crop, BatchSampler(len(photos), 4, 3), device=CPU)
    found = list(loader.epoch(0))
    order = np.concatenate([batch.rows for batch in found])
    return torch.cat([batch.inputs for batch in found])[torch.from_numpy(order.argsort())]


def test_photo_order_is_independent_of_the_decoder(photos, monkeypatch):
    expected, decoded = batches(photos), []
    monkeypatch.setattr(loader_module, "decodes_jpegs", lambda device: True)

    def counting(files, size, device, resize):
        decoded.extend(files)
        return decode_squares(files, size, device, resize)

    monkeypatch.setattr(loader_module, "decode_squares", counting)
    found = batches(photos)
    assert len(decoded) == 3, "neither the rotated JPEG nor the PNG"
    assert (found - expected).abs().mean((1, 2, 3)).max() < 4 / 255
    for row in (0, 1, 4, 5):
        assert torch.equal(found[row], expected[row])


def test_failing_gpu_decoder_warns_once_and_falls_back_to_the_cpu(photos, monkeypatch):
    expected = batches(photos)
    monkeypatch.setattr(loader_module, "decodes_jpegs", lambda device: True)

    def refuse(*_):
        raise RuntimeError("nvJPEG: unsupported")

    monkeypatch.setattr(loader_module, "decode_squares", refuse)
    with pytest.warns(UserWarning, match="decoded on the CPU: nvJPEG: unsupported") as warned:
        found = batches(photos)
    assert len(warned) == 1
    assert torch.equal(found, expected)
