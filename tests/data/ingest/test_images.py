"""Bytes to pixels: any file gives upright RGB or an UnreadablePhotoError."""

import io
import random
import struct
import sys

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from PIL import Image, ImageCms

from pets_core.data.ingest import images
from pets_core.data.ingest.images import (
    PAD_COLOR,
    decode,
    decode_sized,
    inspect,
    open_rgb,
    read_orientation,
    upright_points,
)
from pets_core.data.sources import formats
from pets_core.data.sources.formats import (
    NO_DECODER,
    UnreadablePhotoError,
    has_decodable_suffix,
    is_clearly_not_photo,
    may_be_photo,
    remedy_by_suffix,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 128, 0), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **keywords) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **keywords)
    return buffer.getvalue()


def near(pixel, colour, tolerance=4) -> bool:
    return max(abs(int(a) - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


def read_error(data: bytes) -> UnreadablePhotoError:
    with pytest.raises(UnreadablePhotoError) as caught:
        open_rgb(data)
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value


def left_half_red(width=40, height=20) -> Image.Image:
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
    data = encode(left_half_red(), "JPEG", exif=exif, quality=95)
    image = open_rgb(data)
    upright = (40, 20) if orientation < 5 else (20, 40)
    assert image.size == upright
    assert inspect(data).size == upright
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
    image = open_rgb(data)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert near(image.getpixel((4, 3)), RED)


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 77, 77), ("1", 1, 255)])
def test_grey_becomes_rgb(mode, value, grey):
    image = open_rgb(encode(Image.new(mode, (8, 6), value), "PNG"))
    assert image.getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(file_format):
    values = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    image = open_rgb(encode(Image.fromarray(values), file_format))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 1, 0x7F, 0xFF]


def test_transparency_is_composited_over_white():
    rgba = Image.new("RGBA", (4, 1), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    image = open_rgb(encode(rgba, "PNG"))
    assert image.getpixel((0, 0)) == RED
    assert image.getpixel((1, 0)) == WHITE
    assert near(image.getpixel((2, 0)), (127, 127, 127))


def test_a_transparent_palette_colour_is_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    image = open_rgb(encode(palette, "PNG", transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


def test_transparent_grey_is_white():
    image = open_rgb(encode(Image.new("LA", (2, 2), (0, 0)), "PNG"))
    assert image.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_used(file_format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN)]
    keywords = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **keywords)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert near(open_rgb(data).getpixel((4, 3)), RED)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_photo_is_damaged(file_format, share):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(pixels), file_format)
    assert read_error(data[: int(len(data) * share)]).reason in ("damaged", "not_an_image")


@pytest.mark.parametrize(
    ("head", "expected"),
    [(b"MATLAB 5.0", "a MATLAB file"), (b"\x00\x05\x16\x07", "an AppleDouble file"),
     (b"PK\x03\x04", "a zip archive"), (b"<!DOCTYPE html>", "markup"), (b"?", "of no known type"),
     ("Ein Kätzchen\n".encode() * 300, "text"),
     (b"\xd0\xcf\x11\xe0", "a thumbnail cache or an Office file")],
)  # fmt: skip
def test_type_of_a_non_image_file_is_named(head, expected):
    error = read_error(head if expected == "text" else head + bytes(300))
    assert (error.reason, error.detail) == ("not_an_image", expected)


@pytest.mark.parametrize("size", [(8, 6), (500, 300), (64, 2000)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_inspect_returns_size_and_thumbnail(size, file_format):
    """The size is that of the stored photo, even if a large JPEG is decoded at a reduced scale."""
    info = inspect(encode(left_half_red(*size), file_format))
    assert info.size == size
    assert (info.thumbnail.shape, info.thumbnail.dtype) == ((32, 32), np.uint8)
    assert abs(int(info.thumbnail[16, 4]) - 76) < 8
    assert abs(int(info.thumbnail[16, 28]) - 75) < 8


def test_a_thumbnail_is_upright():
    """The left half is white; orientation 6 rotates it to the top."""
    image = Image.new("L", (400, 200))
    image.paste(255, (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = inspect(encode(image, "JPEG", exif=exif)).thumbnail
    assert thumbnail[:12].min() > 240
    assert thumbnail[-12:].max() < 15


def test_inspection_decodes_all_of_a_jpeg():
    """A truncation near the end of the file is detected at a reduced scale too."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    data = encode(Image.fromarray(pixels), "JPEG")
    with pytest.raises(UnreadablePhotoError, match="damaged"):
        inspect(data[: int(len(data) * 0.98)])


def test_zero_bytes_are_empty():
    assert read_error(b"").reason == "empty"


@pytest.mark.parametrize("data", [b"x", b"a text file named .jpg\n" * 50, b"<html>", b"\0" * 4096])
def test_other_files_are_not_images(data):
    assert read_error(data).reason == "not_an_image"


@pytest.mark.parametrize(("width", "height"), [(20_000, 6_000), (20_000, 20_000)])
def test_decompression_bomb_is_refused_before_decoding(width, height, monkeypatch):
    """The first exceeds only our limit, the second Pillow's limit too."""
    data = encode(Image.new("1", (width, height)), "PNG")
    monkeypatch.setattr(images, "_orientation", None)
    error = read_error(data)
    assert error.reason == "too_many_pixels"


def test_damaged_photo_gives_pixels_or_unreadable_photo_error(capfd):
    """Decoders raise arbitrary exceptions; only UnreadablePhotoError may propagate."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    rng, num_refused = random.Random(0), 0
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
                num_refused += 1
    assert num_refused > 100


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError])
def test_any_decoder_exception_is_reported_as_damage(monkeypatch, jpeg, error):
    def fail(_):
        raise error("odd")

    monkeypatch.setattr(images, "_orientation", fail)
    assert read_error(jpeg()).reason == "damaged"


@pytest.mark.parametrize("at_least", [16, 50, 64, 100, 127, 300, 1000])
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (400, 101)])
def test_reduced_jpeg_has_at_least_the_requested_size(at_least, size):
    data = encode(Image.new("RGB", size, RED), "JPEG")
    image = open_rgb(data, at_least=at_least)
    assert min(image.size) >= min(at_least, *size)
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.05)


def test_large_jpeg_is_reduced():
    data = encode(Image.new("RGB", (800, 800), RED), "JPEG")
    assert open_rgb(data, at_least=100).size == (100, 100)


def test_decode_stretches_to_a_square():
    pixels = decode(encode(left_half_red(80, 20), "PNG"), 32)
    assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
    assert near(pixels[16, 8], RED)
    assert near(pixels[16, 24], GREEN)


@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_decode_keeps_the_pixels_of_a_photo_of_the_target_size(resize):
    source = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    data = encode(Image.fromarray(source), "PNG")
    np.testing.assert_array_equal(decode(data, 32, resize), source)


def test_crop_is_the_largest_centred_square():
    """Left and right quarters are red, the middle is green."""
    photo = Image.new("RGB", (80, 40), RED)
    photo.paste(GREEN, (20, 0, 60, 40))
    pixels, size = decode_sized(encode(photo, "PNG"), 20, "crop")
    # Antialiasing blends the outer columns with their neighbours.
    assert (pixels[:, 1:-1] == np.array(GREEN)).all()
    assert size == (80, 40), "of the whole photo"


@pytest.mark.parametrize(("width", "height"), [(80, 40), (40, 80)])
def test_pad_shows_the_whole_photo_between_borders(width, height):
    pixels = decode(encode(Image.new("RGB", (width, height), RED), "PNG"), 20, "pad")
    if width < height:
        pixels = pixels.transpose(1, 0, 2)
    assert (pixels[5:15] == np.array(RED)).all()
    assert (pixels[:5] == np.array(PAD_COLOR)).all()
    assert (pixels[15:] == np.array(PAD_COLOR)).all()


@pytest.mark.parametrize(
    ("name", "photo"),
    [("a.jpg", True), ("A.JPEG", True), ("a.png", True), ("a.webp", True), ("a.tif", True),
     ("a.mat", False), ("a", False), ("a.txt", False), ("._a.jpg", False), (".jpg", False)],
)  # fmt: skip
def test_decodable_suffixes(name, photo):
    assert has_decodable_suffix(name) == photo


@pytest.mark.parametrize(
    ("path", "detail", "expected"),
    [("a.txt", "of no known type", True), ("README", "text", True),
     ("a.mp4", "of no known type", True),
     ("Thumbs.db", "a thumbnail cache or an Office file", True), ("a.jpg", "text", False),
     ("a.jpg.crdownload", "of no known type", False), ("a", "of no known type", False)],
)  # fmt: skip
def test_clearly_not_photo_depends_on_name_and_type(path, detail, expected):
    assert is_clearly_not_photo(path, detail) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("x/a.jpg", True), ("x/a", True), ("x.y/a", True), ("a.mat", False), ("x/._a.jpg", False)],
)
def test_names_that_may_be_photos(path, expected):
    assert may_be_photo(path) == expected


def test_postscript_is_never_executed():
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(UnreadablePhotoError, match="not_an_image"):
        open_rgb(script)
    assert not has_decodable_suffix("drawing.eps")


def tiff(values) -> bytes:
    return encode(Image.fromarray(np.asarray(values)), "TIFF")


@pytest.mark.parametrize(
    ("kind", "values", "levels"),
    [
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 100, 255], [0, 100, 255]),
        (np.float32, [0, 257, 65_535], [0, 1, 255]),
        (np.float32, [-0.02, 0.5, 1.0002], [0, 128, 255]),
        (np.int32, [0, 1, 255], [0, 1, 255]),
        (np.int32, [0, 2_570, 65_535], [0, 10, 255]),
    ],
)
def test_32_bit_grey_is_scaled_by_the_smallest_fitting_range(kind, values, levels):
    image = open_rgb(tiff(np.array([values], kind)))
    assert np.asarray(image)[0, :, 1].tolist() == levels


def test_tiff_levels_with_white_as_zero_are_inverted():
    for values in (np.uint16([[0, 65_535]]), np.float32([[0, 1]])):
        data = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
        assert np.asarray(open_rgb(data))[0, :, 0].tolist() == [255, 0]


def test_error_of_an_unsupported_tiff_names_the_cause():
    assert "64-bit floats" in read_error(b"II*\0" + bytes(200)).detail


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_and_size_are_read_from_every_format(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(left_half_red(40, 20), file_format, exif=exif)
    info = inspect(data)
    assert (info.orientation, info.size) == (6, (20, 40))
    assert read_orientation(data) == 6
    assert open_rgb(data).size == (20, 40)


@pytest.mark.parametrize(
    "values",
    [np.float32([0, np.nan]), np.float32([0, np.inf]),
     np.float32([0, 80_000]), np.float32([-0.2, 1]), np.int32([-1, 5]), np.int32([0, 65_536])],
    ids=str,
)  # fmt: skip
def test_values_outside_every_range_are_refused(values):
    error = read_error(tiff(values[None]))
    assert error.reason == "values_out_of_range"
    assert "65,535" in error.detail


@settings(deadline=None, max_examples=60)
@example(np.full((3, 4), 1.0625, np.float32), np.float32)
@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 65_535, width=32)),
    st.sampled_from([np.float32, np.int32]),
)
def test_scaling_keeps_order_and_never_wraps(values, kind):
    values = values.astype(kind)
    levels = np.asarray(open_rgb(tiff(values)))[:, :, 0]
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(levels.ravel()[order].astype(int)) >= 0).all()
    # Floats may exceed a range by a tenth.
    ranges, slack = ((1, 255, 65_535), 0.1) if kind is np.float32 else ((255, 65_535), 0.0)
    white = next(r for r in ranges if values.max() <= r * (1 + slack))
    expected = (values.astype(float) * 255 / white).clip(0, 255)
    assert np.abs(levels - expected).max() <= 0.5 + 1e-6


def exif_with(entries: list[tuple[int, int, int, bytes]], order: str = "<", count=None) -> bytes:
    """EXIF of (tag, type, count, 4 bytes) entries; `count` falsifies the size of the directory."""
    byte_order = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}IH", 8, len(entries) if count is None else count)
    for tag, kind, number, value in entries:
        directory += struct.pack(f"{order}HHI", tag, kind, number) + value
    return b"Exif\0\0" + byte_order + directory + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "broken",
    [
        (0x011A, 10, 1, b"\xff\xff\xff\x7f"),  # a rational beyond the end
        (0x011A, 5, 1, bytes(4)),  # a rational that overlaps the header
        (0x8769, 4, 1, b"\xff\xff\xff\x7f"),  # a directory beyond the end
        (0x8825, 99, 7, bytes(4)),  # an unknown type
        (0x010F, 2, 2**31, bytes(4)),  # a text of 2 GiB
        (0x927C, 7, 3, b"\x01\x02\x03\x04"),
    ],
)
def test_orientation_is_read_from_broken_exif(order, broken):
    orientation = (0x0112, 3, 1, struct.pack(f"{order}HH", 6, 0))
    for entries in ([orientation, broken], [broken, orientation]):
        body = exif_with(entries, order)
        data = encode(left_half_red(40, 20), "JPEG", quality=95)
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        data = data[:2] + segment + data[2:]
        image = open_rgb(data)
        assert image.size == (20, 40)
        assert near(image.getpixel((10, 3)), RED)
        assert (inspect(data).orientation, read_orientation(data)) == (6, 6)


def test_orientation_is_read_when_pillow_cannot_parse_exif(monkeypatch):
    def fail(_):
        raise SyntaxError("broken")

    exif = Image.Exif()
    exif[0x0112] = 8
    data = encode(left_half_red(40, 20), "JPEG", exif=exif, quality=95)
    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert open_rgb(data).size == (20, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_coordinates_are_rotated_like_pixels(orientation):
    """The corners of a red rectangle, located by colour in the upright photo."""
    stored = Image.new("RGB", (40, 24), GREEN)
    stored.paste(RED, (8, 16, 12, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = open_rgb(encode(stored, "PNG", exif=exif))
    rows, columns = np.nonzero(np.asarray(upright)[:, :, 0] == 255)
    x0, y0, x1, y1 = upright_points([8, 16, 12, 20], stored.size, orientation)
    assert sorted([x0, x1]) == [columns.min(), columns.max() + 1]
    assert sorted([y0, y1]) == [rows.min(), rows.max() + 1]


@pytest.mark.parametrize("value", [0, 9, 77, 65_535])
def test_invalid_orientation_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert open_rgb(encode(left_half_red(40, 20), "PNG", exif=exif)).size == (40, 20)


P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)
SRGB = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
)
"""Primaries in XYZ (D50); columns are red, green, blue."""


def display_p3() -> bytes:
    """Pillow's sRGB profile with the primaries and the name of Display P3."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name, other = ("sRGB built-in".encode("utf-16-be"), "Display P3 v0".encode("utf-16-be"))
    assert name in profile
    data = bytearray(profile.replace(name, other))
    for entry in range(int.from_bytes(data[128:132], "big")):
        tag, start = data[132 + 12 * entry : 136 + 12 * entry], 136 + 12 * entry
        if tag in (b"rXYZ", b"gXYZ", b"bXYZ"):
            offset = int.from_bytes(data[start : start + 4], "big") + 8
            column = P3[:, "rgb".index(chr(tag[0]))]
            data[offset : offset + 12] = struct.pack(">3i", *(column * 65_536).round().astype(int))
    return bytes(data)


def p3_to_srgb(colour) -> tuple[int, ...]:
    """Convert with the matrices, independently of the library."""
    encoded = np.array(colour) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = (np.linalg.inv(SRGB) @ P3 @ linear).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple((encoded * 255).round().astype(int).tolist())


@pytest.mark.parametrize(
    ("file_format", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P")]
)
def test_a_wide_gamut_profile_is_converted_to_srgb(file_format, mode):
    colour = (200, 100, 60)
    assert not near(p3_to_srgb(colour), colour, tolerance=9)
    photo = Image.new("RGB", (32, 32), colour)
    photo = photo.quantize(4) if mode == "P" else photo.convert(mode)
    data = encode(photo, file_format, icc_profile=display_p3())
    assert near(open_rgb(data).getpixel((5, 5)), p3_to_srgb(colour))
    assert near(decode(data, 16)[5, 5], p3_to_srgb(colour))


@pytest.mark.parametrize(
    "profile",
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        b"not a profile",
        display_p3()[:200],
    ],
    ids=["sRGB", "LAB", "none", "cut short"],
)
def test_other_profiles_are_ignored(profile):
    colour = (200, 100, 60)
    data = encode(Image.new("RGB", (32, 32), colour), "PNG", icc_profile=profile)
    assert open_rgb(data).getpixel((5, 5)) == colour


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)


@pytest.fixture
def without_plugins(monkeypatch):
    """Simulate an installation without pillow-heif and pillow-jxl-plugin."""
    for package in formats._PLUGINS:
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    for suffix, name in list(Image.EXTENSION.items()):
        if name in ("HEIF", "JXL"):
            monkeypatch.delitem(Image.EXTENSION, suffix)
    for cached in (formats.photo_formats, formats._photo_suffixes):
        cached.cache_clear()
    yield
    for cached in (formats.photo_formats, formats._photo_suffixes):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("data", "extra"),
    [(HEIC, "heif"), (b"\xff\x0a" + bytes(99), "jxl"), (b"FUJIFILMCCD-RAW", "rawpy")],
)
def test_error_of_a_format_without_decoder_names_the_package(without_plugins, data, extra):
    """The file name is ignored, as phones write HEIC into files named .jpg."""
    error = read_error(data)
    assert error.reason == NO_DECODER
    assert extra in error.detail


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("IMG_1.HEIC", "heif"), ("a.heif", "heif"), ("a.jxl", "jxl"), ("a.NEF", "rawpy"),
     ("a.dng", "rawpy"), ("a.jpg", None), ("a.txt", None), ("a", None)],
)  # fmt: skip
def test_suffixes_without_a_decoder_have_a_remedy(without_plugins, name, remedy):
    found = remedy_by_suffix(name)
    assert found is None if remedy is None else remedy in found


@pytest.mark.parametrize(
    ("package", "file_format"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")]
)
def test_an_installed_decoder_reads_its_photos(package, file_format):
    pytest.importorskip(package)
    assert has_decodable_suffix(f"a.{'heic' if file_format == 'HEIF' else 'jxl'}")
    image = open_rgb(encode(left_half_red(64, 32), file_format, quality=95))
    assert image.size == (64, 32)
    assert near(image.getpixel((8, 16)), RED, tolerance=12)
