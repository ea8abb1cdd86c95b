"""Reading every kind of image, and resizing as in the encoders' training."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, PngImagePlugin
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from openworldsam.config import load_config
from openworldsam.data.preprocessing import FORMATS, read_image, to_tensor, upright_size
from openworldsam.data.records.labels import read_labels
from openworldsam.modeling.image_encoder import resize_for_sam2
from openworldsam.modeling.prompt_encoders.beit3 import resize_for_beit3

SIZES = [(1, 1), (1, 7), (7, 1), (5, 3), (33, 17), (64, 64), (63, 65), (97, 201), (427, 640), (3, 999), (999, 2)]
Transpose = Image.Transpose
EXIF_OPERATIONS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ORIENTATION_TAG = 274


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noise_tensor(height, width):
    return torch.from_numpy(noise(3, height, width))


def uint8_bilinear(image, size, antialias=False):
    """PyTorch's own uint8 arithmetic."""
    return F.interpolate(image[None], (size, size), mode="bilinear", align_corners=False, antialias=antialias)[
        0
    ].float()


def png(pixels, colour_type):
    """A 16-bit PNG, [H, W, channels]; Pillow writes only the grey ones."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


# Resizing


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [16, 64, 256])
def test_sam2_resize_is_pytorchs_uint8_resize_bit_for_bit(height, width, size):
    image = noise_tensor(height, width)
    assert torch.equal(resize_for_sam2(image, size), uint8_bilinear(image, size))


@pytest.mark.parametrize(("height", "width"), [(427, 640), (1200, 1601), (1023, 1025)])
def test_sam2_resize_is_exact_at_full_size(height, width):
    image = noise_tensor(height, width)
    assert torch.equal(resize_for_sam2(image, 1024), uint8_bilinear(image, 1024))


@pytest.mark.parametrize("size", [96, 224, 480, 768])
def test_sam2_resize_at_other_sides_is_hardly_off(size):
    image = noise_tensor(427, 640)
    difference = (resize_for_sam2(image, size) - uint8_bilinear(image, size)).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.1


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_sam2_resize_with_antialias_is_within_one_level(height, width):
    image = noise_tensor(height, width)
    difference = (resize_for_sam2(image, 32, antialias=True) - uint8_bilinear(image, 32, antialias=True)).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.03


def test_antialias_averages_when_shrinking():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::4] = 200
    mean, inside = 2 * 50 / 255 - 1, slice(2, -2)
    assert not resize_for_sam2(stripes, 16).any()
    assert (resize_for_sam2(stripes, 16, antialias=True)[..., inside] == 50).all()
    assert (resize_for_beit3(stripes, 16)[..., inside] - mean).abs().min() > 0.3
    assert (resize_for_beit3(stripes, 16, antialias=True)[..., inside] - mean).abs().max() < 0.01


def test_sam2_resize_rounds_half_up_by_hand():
    image = torch.tensor([[[0, 1, 4]]] * 3, dtype=torch.uint8)
    assert resize_for_sam2(image, 2)[0].tolist() == [[0, 3]] * 2  # 0.25 and 3.25
    halves = torch.tensor([[[0, 2]]] * 3, dtype=torch.uint8)
    assert resize_for_sam2(halves, 4)[0].tolist() == [[0, 1, 2, 2]] * 4  # 0, 0.5, 1.5, 2


def test_sam2_resize_of_its_own_size_changes_nothing():
    image = noise_tensor(32, 32)
    assert torch.equal(resize_for_sam2(image, 32), image.float())


@pytest.mark.parametrize("resize", [resize_for_sam2, resize_for_beit3])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_gives_float_squares_and_leaves_the_picture(resize, antialias):
    image = noise_tensor(9, 30)
    before = image.clone()
    resized = resize(image, 24, antialias)
    assert (resized.shape, resized.dtype) == ((3, 24, 24), torch.float32)
    assert torch.equal(image, before)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("antialias", [False, True])
def test_beit3_resize_equals_torchvision(height, width, antialias):
    image = noise_tensor(height, width)
    expected = transforms.to_dtype(image, torch.float32, scale=True)
    expected = transforms.resize(expected, [32, 32], InterpolationMode.BICUBIC, antialias=antialias)
    expected = transforms.normalize(expected, [0.5] * 3, [0.5] * 3)
    assert torch.allclose(resize_for_beit3(image, 32, antialias), expected, atol=1e-6)


def test_beit3_resize_is_not_clipped():
    edge = torch.zeros(3, 4, 4, dtype=torch.uint8)
    edge[:, :, 2:] = 255
    resized = resize_for_beit3(edge, 32)
    assert resized.max() > 1.01
    assert resized.min() < -1.01


def test_to_tensor_moves_channels_first():
    image = noise(4, 6, 3)
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((3, 4, 6), torch.uint8)
    assert torch.equal(tensor.permute(1, 2, 0), torch.from_numpy(image))


def test_to_tensor_copies():
    image = noise(4, 6, 3)
    tensor = to_tensor(read_image(image))
    image[:] = 0
    assert np.array_equal(tensor.permute(1, 2, 0), noise(4, 6, 3))


@pytest.mark.parametrize("resize", [resize_for_sam2, resize_for_beit3])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_does_not_depend_on_the_memory_layout(resize, antialias):
    image = noise_tensor(97, 201)
    channels_last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert channels_last.stride() != image.stride()
    assert torch.allclose(resize(channels_last, 64, antialias), resize(image, 64, antialias), rtol=0, atol=1e-5)


# Reading files


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_colour_file_is_read_as_it_is(tmp_path, as_path):
    pixels = noise(6, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(as_path(tmp_path / "a.png")), pixels)


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_grey_is_repeated(tmp_path, extension):
    grey = noise(6, 9)
    file = tmp_path / f"a.{extension}"
    Image.fromarray(grey).save(file)
    assert np.array_equal(read_image(file), np.stack([grey] * 3, axis=2))


def test_alpha_is_dropped_not_blended(tmp_path):
    grey_alpha, colour_alpha = noise(6, 9, 2), noise(6, 9, 4)
    Image.fromarray(grey_alpha, "LA").save(tmp_path / "la.png")
    Image.fromarray(colour_alpha).save(tmp_path / "rgba.png")
    assert np.array_equal(read_image(tmp_path / "la.png"), np.repeat(grey_alpha[:, :, :1], 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "rgba.png"), colour_alpha[:, :, :3])


def palette_file(path, transparency):
    colours = noise(4, 3, seed=5)
    indices = noise(6, 9) % 4
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.flatten().tolist())
    image.save(path, transparency=transparency)
    return colours[indices]


@pytest.mark.parametrize("transparency", [1, bytes([0, 128, 255, 7])])
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_a_palette_with_transparency_gives_its_colours(tmp_path, transparency):
    pixels = palette_file(tmp_path / "p.png", transparency)
    assert np.array_equal(read_image(tmp_path / "p.png"), pixels)


def test_a_palette_with_transparency_warns_of_nothing(tmp_path):
    palette_file(tmp_path / "p.png", bytes([0, 128, 255, 7]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "p.png")


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "PA", "RGBa"])
def test_other_modes_are_converted_as_pillow_does(mode):
    image = Image.fromarray(noise(6, 9, 4)).convert("RGB")
    image = image.convert("RGBA").convert(mode) if mode in ("PA", "RGBa") else image.convert(mode)
    expected = np.asarray(image.convert("RGBA").convert("RGB") if mode == "RGBa" else image.convert("RGB"))
    assert np.array_equal(read_image(image), expected)
    assert expected.any()


def test_cmyk_files(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red.save(tmp_path / "a.jpg", quality=100)
    red.save(tmp_path / "a.tif")
    for file in ("a.jpg", "a.tif"):
        assert np.abs(read_image(tmp_path / file).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize(
    ("deep", "expected"),
    [([0, 257, 514, 32896, 65278, 65535], [0, 1, 2, 128, 254, 255]), ([1000, 1400, 2000, 4000], [4, 5, 8, 16])],
)
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, extension, deep, expected):
    file = tmp_path / f"deep.{extension}"
    Image.fromarray(np.array([deep], dtype=np.uint16)).save(file)
    assert read_image(file).tolist() == [[[value] * 3 for value in expected]]


def test_a_dark_16_bit_grey_stays_dark(tmp_path):
    Image.fromarray(np.array([[0, 100, 200, 255]], dtype=np.uint16)).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png")[0, :, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_and_alpha(tmp_path, colour_type, channels):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 5, channels))
    (tmp_path / "deep.png").write_bytes(png(deep, colour_type))
    colours = deep[:, :, : channels - (colour_type != 2)] / 257
    assert np.abs(read_image(tmp_path / "deep.png") - colours).max() <= 1


def test_32_bit_integers():
    wide = Image.fromarray(np.array([[-5, 0, 32896, 65535, 10**6]], dtype=np.int32))
    narrow = Image.fromarray(np.array([[-5, 0, 128, 255]], dtype=np.int32))
    assert read_image(wide)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert read_image(narrow)[0, :, 0].tolist() == [0, 0, 128, 255]


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif holds floating-point pixels"):
        read_image(tmp_path / "f.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_exif_orientation_is_applied(tmp_path, orientation, mode):
    pixels = {"RGB": noise(4, 7, 3), "L": noise(4, 7), "I;16": noise(4, 7).astype(np.uint16) * 257}[mode]
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    image.save(tmp_path / "turned.png", exif=exif)

    upright = Image.fromarray((pixels / 257 if mode == "I;16" else pixels).astype(np.uint8))
    if orientation > 1:
        upright = upright.transpose(EXIF_OPERATIONS[orientation])
    expected = np.asarray(upright.convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "turned.png"), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        assert np.array_equal(read_image(opened), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientations_change_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    Image.fromarray(noise(4, 7, 3)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), noise(4, 7, 3))


def test_a_camera_jpeg_lying_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 8, 16))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "a.jpg")
    assert upright.shape == (32, 16, 3)
    assert upright[:6].min() > 200 > 50 > upright[12:].max()


def chunked(content, *chunks, before):
    """A PNG with more chunks, (name, data), before that of a name."""
    place = content.index(before) - 4
    added = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return content[:place] + added + content[place:]


XMP = b"<rdf:Description tiff:Orientation%s/>"


@pytest.mark.parametrize("written", [b'="6"', b"='6'", b' = "6"', b">6<"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WebP"])
def test_every_spelling_of_the_orientation_in_xmp(tmp_path, file_format, written):
    packet = b"<x>%s</x>" % XMP % written
    options = {"xmp": packet, "lossless": True}
    if file_format == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    if file_format == "TIFF":
        options = {"tiffinfo": {700: packet}}
    path = tmp_path / "a.image"
    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:, :8] = 200
    Image.fromarray(stored).save(path, file_format, **options)
    for source in (path, Image.open(path)):
        for _ in range(2):  # a PIL image is left as it was
            assert np.abs(read_image(source).astype(int) - np.rot90(stored, -1)).max() < 30
    with Image.open(path) as image:
        assert upright_size(image) == (30, 20)


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("kind", ["EXIF", "XMP element", "XMP attribute", "compressed XMP"])
def test_the_orientation_of_a_png_wherever_it_is(tmp_path, kind, before):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    packet = b"<x>%s</x>" % XMP % (b">6<" if kind == "XMP element" else b'="6"')
    zipped = kind == "compressed XMP"
    text = b"XML:com.adobe.xmp\0" + bytes([zipped]) + b"\0\0\0" + (zlib.compress(packet) if zipped else packet)
    chunk = (b"eXIf", exif.tobytes()[6:]) if kind == "EXIF" else (b"iTXt", text)
    stored = noise(400, 300, 3)  # several IDAT chunks
    path = tmp_path / "a.png"
    path.write_bytes(chunked(encoded(Image.fromarray(stored), "PNG"), chunk, before=before))
    assert np.array_equal(read_image(path), np.rot90(stored, -1))
    with Image.open(path) as image:
        assert upright_size(image) == (300, 400)


def test_the_size_of_an_upright_png_is_read_without_its_pixels(tmp_path):
    content = encoded(Image.fromarray(noise(60, 80, 3)), "PNG")
    with Image.open(io.BytesIO(content)) as image:
        assert upright_size(image) == (60, 80) and image.tile
        assert np.array_equal(read_image(image), noise(60, 80, 3))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_by_the_same_rule(tmp_path, compression, orientation):
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    for dtype in (np.uint8, np.uint16):
        image = Image.fromarray(noise(4, 7).astype(dtype) * (257 if dtype == np.uint16 else 1))
        image.save(tmp_path / "a.tif", exif=exif, compression=compression)
        expected = Image.fromarray(noise(4, 7))
        if orientation > 1:
            expected = expected.transpose(EXIF_OPERATIONS[orientation])
        assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], np.asarray(expected))
        with Image.open(tmp_path / "a.tif") as opened:
            assert upright_size(opened) == (expected.height, expected.width)


def exif_with(*tags, order="<"):
    """An EXIF block of tags (number, type, count, value or offset)."""
    entries = b"".join(struct.pack(f"{order}HHI4s", *tag) for tag in sorted(tags))
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(20)


ODD_TAGS = {
    "a resolution that is a text": (0x011A, 2, 3, b"72\0\0"),
    "a resolution without a value": (0x011A, 7, 1, b"\0\0\0\0"),
    "bytes that are not there": (0x0100, 7, 10**9, b"\x08\0\0\0"),
    "an unknown type": (0x0001, 77, 1, b"\x08\0\0\0"),
    "a thumbnail of no place": (0x0201, 3, 3, b"\xff\xff\xff\xff"),
    "GPS without an end": (0x8825, 4, 1, b"\xff\xff\0\0"),
    "a folder of tags that is itself": (0x8769, 4, 1, b"\x08\0\0\0"),
    "tags of no place": (0xA005, 7, 1, b"\x08\0\0\0"),
    "a rational over zero": (0x0128, 10, 1, b"\x26\0\0\0"),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", ODD_TAGS.values(), ids=ODD_TAGS)
def test_only_the_orientation_is_read_of_exif(tmp_path, file_format, tag):
    unit = (0x0128, 3, 1, b"\2\0\0\0")
    exif = exif_with((ORIENTATION_TAG, 3, 1, b"\6\0\0\0"), tag, *([unit] if tag[0] == 0x011A else []))
    Image.fromarray(noise(4, 7, 3)).save(tmp_path / "a", file_format, exif=exif)
    assert read_image(tmp_path / "a").shape == (7, 4, 3)


@pytest.mark.parametrize("tag", ODD_TAGS.values(), ids=ODD_TAGS)
def test_odd_tags_of_a_tiff_harm_nothing(tmp_path, recwarn, tag):
    content = encoded(Image.fromarray(noise(4, 7, 3)), "TIFF")
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = [content[place : place + 12] for place in range(start + 2, start + 2 + 12 * count, 12)]
    odd = [(ORIENTATION_TAG, 3, 1, b"\6\0\0\0"), *([] if tag[0] in (0x100, 0x201) else [tag])]
    entries += [struct.pack("<HHI4s", *entry) for entry in odd]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    head = content[:4] + struct.pack("<I", len(content)) + content[8:]
    (tmp_path / "a.tif").write_bytes(head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(20))
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(noise(4, 7, 3), -1))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (exif_with((ORIENTATION_TAG, 3, 1, b"\0\6\0\0"), order=">"), (7, 4, 3)),
        (exif_with((ORIENTATION_TAG, 4, 1, b"\0\0\0\6"), order=">"), (7, 4, 3)),
        (exif_with((ORIENTATION_TAG, 2, 1, b"\6\0\0\0")), (4, 7, 3)),
        (exif_with((ORIENTATION_TAG, 3, 1, b"\6\0\0\0"))[:20], (4, 7, 3)),
        (b"Exif\0\0nothing", (4, 7, 3)),
    ],
)
def test_exif_of_either_byte_order_and_damaged(tmp_path, content, shape):
    Image.fromarray(noise(4, 7, 3)).save(tmp_path / "a.jpg", exif=content)
    assert read_image(tmp_path / "a.jpg").shape == shape


# Damage and misuse


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_by_name(tmp_path, file_format):
    content = encoded(Image.fromarray(noise(60, 80, 3)), file_format)
    file = tmp_path / "cut.img"
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.img is not a readable image"):
        read_image(file)


def test_a_png_with_a_broken_chunk_is_refused_by_name(tmp_path):
    content = encoded(Image.fromarray(noise(60, 80, 3)), "PNG")
    start = content.index(b"IDAT") + 4
    half = struct.unpack(">I", content[start - 8 : start - 4])[0] // 2
    first = struct.pack(">I", half) + content[start - 4 : start + half]
    checksum = struct.pack(">I", zlib.crc32(content[start - 4 : start + half]))
    (tmp_path / "broken.png").write_bytes(content[: start - 8] + first + checksum + bytes(40))
    with pytest.raises(ValueError, match=r"broken\.png is not a readable image"):
        read_image(tmp_path / "broken.png")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_truncated_pil_image_is_refused(file_format):
    content = encoded(Image.fromarray(noise(60, 80, 3)), file_format)
    with pytest.raises(ValueError):
        read_image(Image.open(io.BytesIO(content[: len(content) // 2])))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_a_picture_or_a_value_error(tmp_path, file_format):
    random = np.random.default_rng(0)
    whole = encoded(Image.fromarray(noise(15, 20, 3)), file_format)
    damaged = [whole[:length] for length in range(0, len(whole), 1 + len(whole) // 40)]
    for _ in range(60):
        content = bytearray(whole)
        for place in random.integers(0, min(len(content), 300), 3):
            content[place] = random.integers(256)
        damaged.append(bytes(content))
    refused = 0
    for content in damaged:
        (tmp_path / "damaged").write_bytes(content)
        try:
            picture = read_image(tmp_path / "damaged")
        except ValueError:
            refused += 1
        else:
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3
    assert refused


@pytest.mark.parametrize("content", [b"", b"no picture\n" * 20, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_is_no_picture_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_content_decides_and_not_the_suffix(tmp_path, file_format):
    Image.fromarray(noise(6, 9, 3)).save(tmp_path / "a.pdf.txt", file_format)
    assert read_image(tmp_path / "a.pdf.txt").shape == (6, 9, 3)


def test_the_first_image_of_several_is_read(tmp_path):
    for file_format in ("MPO", "TIFF", "GIF", "WEBP"):  # a phone's JPEG of several is an MPO
        first, second = (Image.new("RGB", (9, 6), colour) for colour in ("red", "blue"))
        first.save(tmp_path / "many", file_format, save_all=True, append_images=[second])
        assert np.abs(read_image(tmp_path / "many").astype(int) - [255, 0, 0]).max() < 8


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
    "a video": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
    "a PDF": b"%PDF-1.7\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "JPEG XL": b"\xff\x0a\0",
    "PSD": b"8BPS\0\1",
    "PPM": b"P6 1 1 255 abc",
    "DDS": encoded(Image.fromarray(noise(4, 4, 4)), "DDS"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_formats_are_named_and_never_decoded(tmp_path, monkeypatch, other):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    (tmp_path / "a.png").write_bytes(OTHERS[other])
    with pytest.raises(ValueError, match=rf"a\.png is not a readable image: it is {other}; convert it to one"):
        read_image(tmp_path / "a.png")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe.png", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(ValueError, match=f"{path} is a {kind}, where a file is needed"):
            read_image(path)


@pytest.mark.parametrize("as_path", [str, lambda path: path])
def test_a_missing_file_is_named(tmp_path, as_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg not found"):
        read_image(as_path(tmp_path / "nowhere.jpg"))


@pytest.mark.parametrize(
    ("size", "message"),
    [((8_001, 8_000), "8001 x 8000"), ((13_300, 13_300), "13300 x 13300"), ((60_000, 60_000), "too many")],
)
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_a_pixel_bomb_is_refused_by_its_header(tmp_path, recwarn, size, message, read):
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    small = encoded(Image.new("L", (1, 1)), "PNG")
    (tmp_path / "bomb.png").write_bytes(chunked(small[:8] + small[33:], (b"IHDR", header), before=b"IDAT"))
    with pytest.raises(ValueError, match=rf"bomb\.png has {message}.*the limit is 64,000,000 \(DATALOADER\."):
        read(tmp_path / "bomb.png")
    assert not recwarn.list


def test_the_limit_of_pixels_is_a_config_key(tmp_path):
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.png")
    config = Path(__file__).parents[2] / "configs/tiny.yaml"
    try:
        load_config(config, ["DATALOADER.MAX_PIXELS", "599"])
        for source in (tmp_path / "a.png", Image.fromarray(noise(20, 30, 3))):
            with pytest.raises(ValueError, match=r"has 30 x 20 pixels; the limit is 599 .*or raise the limit"):
                read_image(source)
        with pytest.raises(ValueError, match="MAX_PIXELS is at least 1, got 0"):
            load_config(config, ["DATALOADER.MAX_PIXELS", "0"])
        load_config(config, ["DATALOADER.MAX_PIXELS", "600"])
        assert read_image(tmp_path / "a.png").shape == (20, 30, 3)
        load_config(config, ["DATALOADER.MAX_PIXELS", "200_000_000"])
        assert Image.MAX_IMAGE_PIXELS == 200_000_000  # or Pillow would refuse what is allowed
    finally:
        load_config(config)
        Image.MAX_IMAGE_PIXELS = 89_478_485


@pytest.mark.parametrize("source", [None, 5, b"a.jpg", [[0, 1]], (4, 4)])
def test_other_objects_are_refused_by_type(source):
    with pytest.raises(ValueError, match=f"a path, a PIL image, an array or a tensor, got {type(source).__name__}"):
        read_image(source)


# Arrays and PIL images


def test_arrays():
    colour = noise(6, 9, 4)
    assert np.array_equal(read_image(colour), colour[:, :, :3])
    assert np.array_equal(read_image(colour[:, :, :3]), colour[:, :, :3])
    assert np.array_equal(read_image(colour[:, :, 0]), np.stack([colour[:, :, 0]] * 3, axis=2))


def test_tensors_are_those_of_torchvision():
    picture = noise(6, 9, 4)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    grey = np.repeat(picture[:, :, :1], 3, axis=2)
    for dtype in (torch.uint8, torch.float32, torch.float64):
        made = tensor if dtype == torch.uint8 else tensor.to(dtype) / 255
        for channels, expected in ((4, picture[:, :, :3]), (3, picture[:, :, :3]), (1, grey)):
            assert np.array_equal(read_image(made[:channels]), expected)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(6, 9), r"\[1, H, W\], .* got \[6, 9\]"),
        (torch.zeros(2, 6, 9), r"got \[2, 6, 9\]"),
        (torch.zeros(3, 0, 9), "not empty"),
        (torch.full((3, 6, 9), 255.0), "from 0 to 1; undo its normalization"),
        (torch.full((3, 6, 9), torch.nan), "from 0 to 1"),
        (torch.zeros(3, 6, 9, dtype=torch.int32), "uint8 with values 0..255, got int32"),
    ],
)
def test_other_tensors_are_refused(tensor, message):
    with pytest.raises(ValueError, match=message):
        read_image(tensor)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int64, bool])
def test_arrays_of_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=f"uint8 with values 0..255, got {np.dtype(dtype)}"):
        read_image(np.zeros((4, 4, 3), dtype=dtype))


@pytest.mark.parametrize(
    "shape",
    [(), (3,), (3, 8, 9), (8, 9, 1), (8, 9, 2), (8, 9, 5), (2, 8, 9, 3), (0, 9, 3), (8, 0, 3), (8, 9, 0), (0, 9)],
)
def test_arrays_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="not empty, got"):
        read_image(np.zeros(shape, dtype=np.uint8))


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1],
        lambda a: a[:, :, ::-1],
        lambda a: a[::2, 1::3],
        lambda a: a.transpose(1, 0, 2),
        np.asfortranarray,
    ],
)
def test_arrays_that_are_not_contiguous(view):
    array = view(noise(6, 9, 3))
    image = read_image(array)
    assert np.array_equal(image, array)
    assert torch.equal(to_tensor(image), torch.from_numpy(array.copy()).permute(2, 0, 1))


def test_a_flipped_picture_one_pixel_high():
    array = noise(1, 9, 3)[::-1]
    assert to_tensor(read_image(array)).shape == (3, 1, 9)


def test_the_array_of_a_pil_image_warns_of_nothing():
    array = np.asarray(Image.fromarray(noise(4, 5, 3)))
    assert not array.flags.writeable
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_tensor(read_image(array))
    finally:
        torch.set_warn_always(always)


def test_an_extremely_long_picture():
    array = np.broadcast_to(np.arange(20000, dtype=np.uint32).astype(np.uint8)[:, None, None], (20000, 10, 3))
    image = to_tensor(read_image(array))
    assert image.shape == (3, 20000, 10)
    assert torch.equal(resize_for_sam2(image, 64), uint8_bilinear(image, 64))
    assert resize_for_beit3(image, 32).shape == (3, 32, 32)


def test_a_pil_image_is_left_as_it_was():
    image = Image.fromarray(noise(4, 5, 4))
    assert np.array_equal(read_image(image), noise(4, 5, 4)[:, :, :3])
    assert (image.mode, image.size) == ("RGBA", (5, 4))


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_empty_pil_image_is_refused(size):
    with pytest.raises(ValueError, match="empty"):
        read_image(Image.new("RGB", size))


def test_one_pixel():
    assert to_tensor(read_image(Image.new("RGB", (1, 1), (1, 2, 3)))).flatten().tolist() == [1, 2, 3]
