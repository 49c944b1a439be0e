"""Bytes to pixels: every odd photo is either upright RGB or one plain refusal."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from pets_core.data import images
from pets_core.data.images import (
    UnreadablePhotoError,
    decode,
    inspect,
    is_photo_name,
    may_be_photo_name,
    open_rgb,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **keywords) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **keywords)
    return buffer.getvalue()


def near(pixel, colour, tolerance=4) -> bool:
    return max(abs(int(a) - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


def refusal(data: bytes) -> UnreadablePhotoError:
    with pytest.raises(UnreadablePhotoError) as caught:
        open_rgb(data)
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value


def half_red_left(width=40, height=20) -> Image.Image:
    image = Image.new("RGB", (width, height), GREEN)
    image.paste(RED, (0, 0, width // 2, height))
    return image


@pytest.mark.parametrize(
    ("orientation", "red_side"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"), (5, "top"), (6, "top"), (7, "bottom"),
     (8, "bottom")],
)  # fmt: skip
def test_exif_rotation_is_undone(orientation, red_side):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(half_red_left(), "JPEG", exif=exif, quality=95)
    image, _ = open_rgb(data)
    upright = (40, 20) if orientation < 5 else (20, 40)
    assert image.size == upright
    info = inspect(data)
    assert (info.format, info.width, info.height) == ("JPEG", *upright)
    middle = {
        "left": (3, upright[1] // 2),
        "right": (upright[0] - 4, upright[1] // 2),
        "top": (upright[0] // 2, 3),
        "bottom": (upright[0] // 2, upright[1] - 4),
    }
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    assert near(image.getpixel(middle[red_side]), RED)
    assert near(image.getpixel(middle[opposite[red_side]]), GREEN)


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "WEBP"), ("RGB", "PPM"),
     ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("P", "GIF"), ("YCbCr", "JPEG")],
)  # fmt: skip
def test_colour_survives_every_mode(mode, file_format):
    keywords = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(Image.new("RGB", (8, 6), RED).convert(mode), file_format, **keywords)
    image, name = open_rgb(data)
    assert (image.mode, image.size, name) == ("RGB", (8, 6), file_format)
    assert near(image.getpixel((4, 3)), RED)


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 77, 77), ("1", 1, 255)])
def test_grey_becomes_rgb(mode, value, grey):
    image, _ = open_rgb(encode(Image.new(mode, (8, 6), value), "PNG"))
    assert image.getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(file_format):
    values = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    image, _ = open_rgb(encode(Image.fromarray(values), file_format))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 0x7F, 0xFF]


def test_transparency_is_laid_over_white():
    rgba = Image.new("RGBA", (4, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    image, _ = open_rgb(encode(rgba, "PNG"))
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((1, 0)) == WHITE
    assert near(image.getpixel((2, 0)), (127, 127, 127))


def test_a_transparent_palette_colour_is_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    image, _ = open_rgb(encode(palette, "PNG", transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


def test_grey_with_transparency():
    image, _ = open_rgb(encode(Image.new("LA", (2, 2), (0, 0)), "PNG"))
    assert image.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(file_format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN)]
    keywords = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **keywords)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert near(open_rgb(data)[0].getpixel((4, 3)), RED)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_photo_cut_short_is_damaged(file_format, share):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(pixels), file_format)
    assert refusal(data[: int(len(data) * share)]).reason in ("damaged", "not_an_image")


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "JPEG"])
def test_the_type_is_told_by_content(file_format):
    """No name is asked for: the published photos hold a GIF and PNGs named .jpg."""
    data = encode(Image.new("P" if file_format == "GIF" else "RGB", (8, 6)), file_format)
    assert inspect(data).format == file_format


@pytest.mark.parametrize(
    ("head", "what"),
    [(b"MATLAB 5.0", "a MATLAB file"), (b"\x00\x05\x16\x07", "an AppleDouble file"),
     (b"PK\x03\x04", "a zip archive"), (b"<!DOCTYPE html>", "markup"), (b"?", "of no known type")],
)  # fmt: skip
def test_what_is_no_image_is_named(head, what):
    error = refusal(head + bytes(300))
    assert (error.reason, error.detail) == ("not_an_image", what)


@pytest.mark.parametrize("size", [(8, 6), (500, 300), (64, 2000)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_photo_is_inspected(size, file_format):
    """The size is the stored photo's, though a large JPEG is decoded at a smaller scale."""
    info = inspect(encode(half_red_left(*size), file_format))
    assert (info.width, info.height) == size
    assert (info.thumbnail.shape, info.thumbnail.dtype) == ((32, 32), np.uint8)
    assert abs(int(info.thumbnail[16, 4]) - 76) < 8
    assert abs(int(info.thumbnail[16, 28]) - 75) < 8


def test_a_thumbnail_is_upright():
    """White left of the stored photo; orientation 6 turns it to the top."""
    image = Image.new("L", (400, 200))
    image.paste(255, (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = inspect(encode(image, "JPEG", exif=exif)).thumbnail
    assert thumbnail[:12].min() > 240
    assert thumbnail[-12:].max() < 15


def test_inspection_decodes_all_of_a_jpeg():
    """A cut far below what the small scale would need is seen."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    with pytest.raises(UnreadablePhotoError, match="damaged"):
        inspect(data[: int(len(data) * 0.98)])


def test_no_bytes_is_empty():
    assert refusal(b"").reason == "empty"


@pytest.mark.parametrize("data", [b"x", b"a text file named .jpg\n" * 50, b"<html>", b"\0" * 4096])
def test_other_files_are_no_image(data):
    assert refusal(data).reason == "not_an_image"


@pytest.mark.parametrize(("width", "height"), [(20_000, 6_000), (20_000, 20_000)])
def test_a_bomb_is_refused_before_it_is_decoded(width, height, monkeypatch):
    """The first is above our bound only, the second above Pillow's too."""
    data = encode(Image.new("1", (width, height)), "PNG")
    monkeypatch.setattr(images.ImageOps, "exif_transpose", None)
    error = refusal(data)
    assert error.reason == "too_many_pixels"


def test_any_damage_gives_pixels_or_one_plain_refusal(capfd):
    """Decoders raise anything on damaged bytes; only our own error may come out."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rng, refused = random.Random(0), 0
    for file_format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "DDS", "AVIF"):
        keywords = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        data = encode(source, file_format, **keywords)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(rng.choice([1, 2, 10])):
                damaged[rng.randrange(min(len(data), rng.choice([64, 512])))] = rng.randrange(256)
            try:
                assert decode(bytes(damaged), 16).shape == (16, 16, 3)
            except UnreadablePhotoError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError])
def test_whatever_a_decoder_raises_is_damage(monkeypatch, jpeg, error):
    def fail(_):
        raise error("odd")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", fail)
    assert refusal(jpeg()).reason == "damaged"


@pytest.mark.parametrize("at_least", [16, 50, 64, 100, 127, 300, 1000])
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (400, 101)])
def test_a_reduced_jpeg_is_at_least_as_large_as_asked(at_least, size):
    data = encode(Image.new("RGB", size, RED), "JPEG")
    image, _ = open_rgb(data, at_least=at_least)
    assert min(image.size) >= min(at_least, *size)
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_a_large_jpeg_is_really_reduced():
    data = encode(Image.new("RGB", (800, 800), RED), "JPEG")
    assert open_rgb(data, at_least=100)[0].size == (100, 100)


def test_decode_stretches_to_a_square():
    pixels = decode(encode(half_red_left(80, 20), "PNG"), 32)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    assert near(pixels[16, 8], RED)
    assert near(pixels[16, 24], GREEN)


def test_decode_keeps_the_pixels_of_a_photo_of_that_size():
    source = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(source), "PNG"), 32), source)


@pytest.mark.parametrize(
    ("name", "photo"),
    [("a.jpg", True), ("A.JPEG", True), ("a.png", True), ("a.webp", True), ("a.tif", True),
     ("a.mat", False), ("a", False), ("a.txt", False), ("._a.jpg", False), (".jpg", False)],
)  # fmt: skip
def test_photo_names(name, photo):
    assert is_photo_name(name) == photo


@pytest.mark.parametrize(
    ("path", "maybe"),
    [("x/a.jpg", True), ("x/a", True), ("x.y/a", True), ("a.mat", False), ("x/._a.jpg", False)],
)
def test_names_that_do_not_speak_against_a_photo(path, maybe):
    assert may_be_photo_name(path) == maybe


def test_postscript_is_never_run():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(UnreadablePhotoError, match="not_an_image"):
        open_rgb(script)
    assert not is_photo_name("drawing.eps")
