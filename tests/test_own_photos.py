"""support/own_photos.py: every common kind of file is read upright and in its colours; what cannot be read is named.

The tests of test_model.py with own photos put a network in PyNET's place that gives the photo back.
"""

import os
import pathlib
import re
import shutil
import struct
import types
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
import tensorflow as tf
from conftest import newest_result
from depth_network_files import expected_map
from PIL import Image, ImageCms, PngImagePlugin

import load_dataset
import model
import test_model
import utils
from support import checkpoints, dataset_files, depth_networks, devices, embedded_depth, own_photos, renderer
from utils import DataError

SIZE = WIDTH, HEIGHT = 96, 80
HALF = WIDTH // 2, HEIGHT // 2
TO_STORE = {  # Pillow's transpositions that turn an upright image into what EXIF's orientation 1 to 8 turns back
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION, DATE, SHOT, SHOT_DATE, MAKER = 0x0112, 0x0132, 0x8769, 0x9003, 0x010F


def colours(size=SIZE):
    """uint8 (height, width, 3): no two corners alike, no edges that JPEG would blur."""
    x, y = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    return np.uint8(np.round(np.dstack([x, y, (255 - x + y) / 2])))


def write_png_16(path, pixels):
    """Writes (height, width, 1 to 4) numbers as a 16-bit PNG (RFC 2083), which Pillow does for grey only."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks))


def write_tiff_16(path, pixels):
    """Writes (height, width, 1 or 3) numbers as an uncompressed little-endian 16-bit TIFF 6.0."""
    height, width, channels = pixels.shape
    start = 8 + 2 + 9 * 12 + 4 + 8
    tags = [(256, width), (257, height), (258, 16 if channels == 1 else start - 8), (259, 1),
            (262, 1 if channels == 1 else 2), (273, start), (277, channels), (278, height), (279, 2 * pixels.size)]
    entries = b"".join(struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
                       for tag, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 9) + entries + bytes(4) + struct.pack("<4H", 16, 16, 16, 0)
                     + pixels.astype("<u2").tobytes())


def in_16_bits(*channels):
    return np.dstack([colours(), np.full((HEIGHT, WIDTH), 255)])[..., list(channels)].astype(np.uint32) * 257


def upright():
    return Image.fromarray(colours())


GREY = np.asarray(upright().convert("L").convert("RGB"))
PALETTE = np.asarray(upright().quantize(256).convert("RGB"))
FIRST_CHANNEL = np.dstack([colours()[..., 0]] * 3)
KINDS = {  # file name: (how to write it, the pixels expected, how far off a lossy format may be)
    "rgb.jpg": (lambda path: upright().save(path, quality=95), colours(), 6),
    "upper.JPEG": (lambda path: upright().save(path, quality=95), colours(), 6),
    "phone.jpg": (lambda path: upright().save(path, format="MPO", save_all=True, append_images=[upright()], quality=95),
                  colours(), 6),
    "phone.mpo": (lambda path: upright().save(path, save_all=True, append_images=[upright()], quality=95),
                  colours(), 6),
    "browser.jfif": (lambda path: upright().save(path, format="JPEG", quality=95), colours(), 6),
    "phone.avif": (lambda path: upright().save(path, quality=95), colours(), 8),
    "phone.heic": (lambda path: upright().save(path, quality=95), colours(), 8),
    "rgb.png": (lambda path: upright().save(path), colours(), 0),
    "rgb.webp": (lambda path: upright().save(path, lossless=True), colours(), 0),
    "plain.tif": (lambda path: upright().save(path), colours(), 0),
    "lzw.tiff": (lambda path: upright().save(path, compression="tiff_lzw"), colours(), 0),
    "pages.tif": (lambda path: upright().save(path, save_all=True, append_images=[upright().rotate(9)]), colours(), 0),
    "grey.png": (lambda path: upright().convert("L").save(path), GREY, 0),
    "grey.jpg": (lambda path: upright().convert("L").save(path, quality=95), GREY, 6),
    "grey_alpha.png": (lambda path: upright().convert("LA").save(path), GREY, 0),
    "bits.png": (lambda path: upright().convert("1").save(path), np.asarray(upright().convert("1").convert("RGB")), 0),
    "palette.png": (lambda path: upright().quantize(256).save(path), PALETTE, 0),
    "cmyk.tif": (lambda path: upright().convert("CMYK").save(path), colours(), 0),
    "cmyk.jpg": (lambda path: upright().convert("CMYK").save(path, quality=95), colours(), 8),
    "grey_16.png": (lambda path: write_png_16(path, in_16_bits(0)), FIRST_CHANNEL, 0),
    "rgb_16.png": (lambda path: write_png_16(path, in_16_bits(0, 1, 2)), colours(), 0),
    "rgba_16.png": (lambda path: write_png_16(path, in_16_bits(0, 1, 2, 3)), colours(), 0),
    "grey_16.tif": (lambda path: write_tiff_16(path, in_16_bits(0)), FIRST_CHANNEL, 0),
    "rgb_16.tif": (lambda path: write_tiff_16(path, in_16_bits(0, 1, 2)), colours(), 0),
}


# Reading photos ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_photo_is_read_in_its_colours(tmp_path, name):
    image_format, package = own_photos.REQUIREMENTS.get(pathlib.Path(name).suffix, ("JPEG", None))
    if image_format not in embedded_depth.phone_formats():
        pytest.skip(f"{package} is not installed")
    write, expected, tolerance = KINDS[name]
    write(tmp_path / name)
    photo = own_photos.read_photo(tmp_path / name)
    assert (photo.mode, photo.size) == ("RGB", SIZE)
    assert np.abs(np.asarray(photo, int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_photo_is_turned_upright_as_exif_says(tmp_path, suffix, mode):
    image = Image.fromarray(np.uint16(in_16_bits(0)[..., 0])) if mode == "I;16" else upright().convert(mode)
    expected = FIRST_CHANNEL if mode == "I;16" else np.asarray(image.convert("RGB"))
    exif, path = Image.Exif(), tmp_path / f"a{suffix}"
    for exif[ORIENTATION], turn in TO_STORE.items():
        (image if turn is None else image.transpose(turn)).save(path, exif=exif)
        np.testing.assert_array_equal(np.asarray(own_photos.read_photo(path)), expected, f"{exif[ORIENTATION]}")


def test_of_the_metadata_only_the_profile_and_the_dates_are_kept(tmp_path):
    exif = Image.Exif()
    exif[DATE], exif[MAKER], exif[ORIENTATION] = "2020:01:02 03:04:05", "Maker", 6
    exif.get_ifd(SHOT)[SHOT_DATE] = "2019:05:06 07:08:09"
    upright().save(tmp_path / "a.jpg", exif=exif, icc_profile=SRGB)
    info = own_photos.read_photo(tmp_path / "a.jpg").info
    kept = Image.Exif()
    kept.load(info["exif"])
    assert set(info) == {"icc_profile", "exif"} and info["icc_profile"] == SRGB
    assert kept[DATE] == "2020:01:02 03:04:05" and kept.get_ifd(SHOT) == {SHOT_DATE: "2019:05:06 07:08:09"}
    assert set(kept) == {DATE, SHOT}


def test_only_a_profile_of_rgb_reaches_the_result(tmp_path):
    grey = SRGB[:16] + b"GRAY" + SRGB[20:]
    Image.new("L", SIZE, 55).save(tmp_path / "a.png", icc_profile=grey)
    photo = own_photos.read_photo(tmp_path / "a.png")
    assert np.all(np.asarray(photo) == 55) and photo.info == {}


@pytest.mark.parametrize("mode, profile", [("RGB", b"nonsense"), ("L", b"nonsense"), ("L", SRGB), ("CMYK", SRGB)])
def test_profile_that_is_damaged_does_not_cost_the_photo(tmp_path, mode, profile):
    upright().convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
    photo = own_photos.read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo, upright().convert(mode).convert("RGB"))
    assert photo.info == ({"icc_profile": SRGB} if profile == SRGB else {})


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_does_not_cost_the_photo(tmp_path, suffix):
    upright().save(tmp_path / f"a{suffix}", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    assert own_photos.read_photo(tmp_path / f"a{suffix}").size == SIZE


@pytest.mark.parametrize("name, change, reason", [
    ("a.jpg", lambda data: data[:len(data) - 400], "truncated"),
    ("a.png", lambda data: data[:len(data) // 2], "damaged"),
    ("a.tif", lambda data: data[:len(data) // 2], "damaged"),
    ("a.webp", lambda data: data[:len(data) // 2], "damaged"),
    ("a.jpg", lambda data: b"hello", "no JPEG, PNG, WebP or TIFF"),
    ("a.png", lambda data: b"", "no JPEG, PNG, WebP or TIFF")])
def test_damaged_photo_is_named_with_the_reason(tmp_path, name, change, reason):
    upright().save(tmp_path / name)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{reason}"):
        own_photos.read_photo(tmp_path / name)


@pytest.mark.parametrize("suffix, package", [(".heic", "pillow-heif"), (".avif", "pillow>=11.3")])
def test_package_that_a_phones_format_needs_is_named_where_it_is_missing(tmp_path, monkeypatch, suffix, package):
    monkeypatch.setattr(embedded_depth, "phone_formats", lambda: ("JPEG",))
    (tmp_path / f"a{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=f'a{suffix}: needs {package}: pip install "{package}", or save it as JPEG'):
        own_photos.read_photo(tmp_path / f"a{suffix}")


def test_photo_of_floats_is_refused_because_its_white_is_unknown(tmp_path):
    Image.fromarray(np.float32(colours()[..., 0])).save(tmp_path / "floats.tif")
    with pytest.raises(DataError, match=r"floats\.tif: .*pixel format F; save it with 8 or 16 bits"):
        own_photos.read_photo(tmp_path / "floats.tif")


def test_hidden_colours_under_full_transparency_become_white(tmp_path):
    red = np.full((HEIGHT, WIDTH, 4), (255, 0, 0, 255), np.uint8)
    red[:, ::2, 3] = 0
    Image.fromarray(red).save(tmp_path / "a.png")
    Image.fromarray(red).quantize(16).save(tmp_path / "palette.png")
    for name in ("a.png", "palette.png"):
        pixels = np.asarray(own_photos.read_photo(tmp_path / name))
        assert np.all(pixels[:, ::2] == 255) and np.all(pixels[:, 1::2] == (255, 0, 0)), name
    np.testing.assert_array_equal(load_dataset.read_image(tmp_path / "a.png", "RGB"), pixels)


def test_png_with_much_text_and_a_large_profile_is_read_and_what_is_written_opens_everywhere(tmp_path, capsys):
    profile = SRGB + bytes(2 ** 21)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2 ** 21, zip=True)
    upright().save(tmp_path / "a.png", icc_profile=profile, pnginfo=text)
    upright().save(tmp_path / "a.tif", icc_profile=profile)
    np.testing.assert_array_equal(load_dataset.read_image(tmp_path / "a.png", "RGB"), colours())
    for name in ("a.png", "a.tif"):
        photo = own_photos.read_photo(tmp_path / name)
        np.testing.assert_array_equal(photo, colours())
        assert photo.info == {} and f"{name}: its colour profile of 2.0 MB is left out" in capsys.readouterr().err


def test_photo_of_200_megapixels_is_read_and_one_of_400_is_too_large_not_damaged(tmp_path):
    def header(width, height):
        chunk = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
        path = tmp_path / f"{width}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
                         + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert load_dataset.read_image(header(16320, 12240), "RGB", decode=False).size == (16320, 12240)
    for read in (own_photos.read_photo, lambda path: load_dataset.read_image(path, "RGB")):
        with pytest.raises(DataError, match=r"20000\.png: has more than 268 megapixels, which is too large$"):
            read(header(20000, 20000))


# Finding photos and depth maps ---------------------------------------------------------------------------------------


def test_photos_are_found_by_their_suffix_in_numeric_order(tmp_path):
    for name in ("10.jpg", "9.PNG", "b.TIFF", "a.tif", "c.webp", "d.jpeg", "notes.txt", ".hidden.jpg", "e.gif"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = own_photos.find_photos(tmp_path)
    assert list(found) == ["9", "10", "a", "b", "c", "d"] and found["9"] == tmp_path / "9.PNG"
    assert own_photos.find_photos(tmp_path / "a.tif") == {"a": tmp_path / "a.tif"}


@pytest.mark.parametrize("names, place, says", [
    ([], "nowhere", "nowhere: no such file or folder"), ([], "", "no photo found"),
    (["a.txt"], "a.txt", r"a\.txt: no photo found"),
    (["a.cr2"], "", r"no photo found(.|\n)*a\.cr2: is of a format that is not read here")])
def test_folder_that_cannot_be_used_is_named(tmp_path, names, place, says):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=says):
        own_photos.find_photos(tmp_path / place)


def test_depth_maps_belong_to_photos_by_name_whatever_their_suffix(tmp_path):
    for folder, names in (("photos", ("2.jpg", "10.png", "3.tif")), ("depth", ("10.npy", "2.png", "other.png"))):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    photos, depth = tmp_path / "photos", tmp_path / "depth"
    pairs, without_depth = own_photos.find_pairs(photos, depth)
    assert [(pair.photo.name, pair.map.name) for pair in pairs] == [("2.jpg", "2.png"), ("10.png", "10.npy")]
    assert without_depth == [photos / "3.tif"]
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        own_photos.find_pairs(photos, tmp_path / "nowhere")
    [pair], without_depth = own_photos.find_pairs(photos / "3.tif", depth / "other.png")  # of any name
    assert (pair.name, pair.map.name, without_depth) == ("3", "other.png", [])
    pairs, without_depth = own_photos.find_pairs(photos, None, use_depth=False)
    assert [pair.map for pair in pairs] == [None] * 3 and not without_depth


# Depth maps ----------------------------------------------------------------------------------------------------------


RAMP = np.linspace(0, 1, HALF[0] * HALF[1]).reshape(HALF[::-1])  # 0 top left, 1 bottom right
SCALED = 255 * np.clip((RAMP - 0.01) / 0.98, 0, 1)  # by the 1st and 99th percentile


def save_depth(path, numbers):
    np.save(path, numbers) if path.suffix == ".npy" else Image.fromarray(numbers).save(path)


def test_8_bit_depth_map_of_the_right_size_stays_as_it_is(tmp_path):
    save_depth(tmp_path / "a.png", np.uint8(50 + 100 * RAMP))
    np.testing.assert_array_equal(own_photos.read_depth_map(tmp_path / "a.png", HALF), np.uint8(50 + 100 * RAMP))


@pytest.mark.parametrize("name, numbers", [
    ("a.png", np.uint16(1000 + 3000 * RAMP)), ("a.tif", np.uint16(65535 * RAMP)), ("a.tif", np.float32(7 * RAMP - 3)),
    ("a.tif", np.int32(1e9 * RAMP)), ("a.npy", 1e-6 * RAMP), ("a.npy", np.float16(RAMP)),
    ("a.npy", RAMP[None, ..., None]), ("a.npy", np.int64(1e12 * RAMP)),
    ("a.npy", np.where(RAMP == 0, np.nan, RAMP)), ("a.npy", 1e300 * (RAMP - 0.5))])
def test_other_numbers_are_scaled_by_the_1st_and_99th_percentile(tmp_path, name, numbers):
    save_depth(tmp_path / name, numbers)
    depth = own_photos.read_depth_map(tmp_path / name, HALF)
    assert depth.dtype == np.uint8 and (depth.min(), depth.max()) == (0, 255)
    np.testing.assert_allclose(depth, SCALED, atol=0.75)


def test_one_far_pixel_does_not_take_the_contrast_of_the_others(tmp_path):
    numbers = np.float32(RAMP)
    numbers[7, 7] = -1e6
    save_depth(tmp_path / "a.npy", numbers)
    depth = own_photos.read_depth_map(tmp_path / "a.npy", HALF)
    numbers[7, 7] = 0
    np.testing.assert_allclose(depth, 255 * np.clip((numbers - 0.01) / 0.98, 0, 1), atol=1)


@pytest.mark.parametrize("depth_is, numbers", [
    ("inverse", 3 + 2 * RAMP), ("depth", 9 - 2 * RAMP), ("distance", 1 / (0.1 + RAMP)),
    ("log_depth", -np.log(1 + RAMP))])
def test_numbers_of_every_meaning_become_inverse_depth_bright_where_near(tmp_path, depth_is, numbers):
    assert depth_is in depth_networks.OUTPUTS
    save_depth(tmp_path / "a.npy", numbers)
    np.testing.assert_allclose(own_photos.read_depth_map(tmp_path / "a.npy", HALF, depth_is), SCALED, atol=0.75)


def test_8_bit_map_with_dark_for_near_is_inverted_and_nothing_else(tmp_path):
    save_depth(tmp_path / "a.png", np.uint8(50 + 100 * RAMP))
    found = own_photos.read_depth_map(tmp_path / "a.png", HALF, "depth")
    np.testing.assert_array_equal(found, 255 - np.uint8(50 + 100 * RAMP))


def test_pfm_and_npz_are_read_whatever_an_arrays_suffix_says(tmp_path):
    values = np.float32(RAMP)
    (tmp_path / "a.pfm").write_bytes(f"Pf\n{HALF[0]} {HALF[1]}\n-1.0\n".encode() + values[::-1].astype("<f4").tobytes())
    np.savez(tmp_path / "one.npz", values)
    np.savez_compressed(tmp_path / "two.npz", depth=values, focal_length=np.float32(7))
    (tmp_path / "named.npy").write_bytes((tmp_path / "one.npz").read_bytes())
    for name in ("a.pfm", "one.npz", "two.npz", "named.npy"):
        np.testing.assert_allclose(own_photos.read_depth_map(tmp_path / name, HALF), SCALED, atol=0.75, err_msg=name)


def test_map_of_another_shape_than_the_photo_is_named(tmp_path, capsys):
    save_depth(tmp_path / "a.png", np.uint8(255 * RAMP))
    own_photos.read_depth_map(tmp_path / "a.png", (HALF[0], HALF[1] // 2))
    assert "a.png: is 48 x 40, of another shape than the photo, and is stretched" in capsys.readouterr().err
    own_photos.read_depth_map(tmp_path / "a.png", (2 * HALF[0], 2 * HALF[1] - 1))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("size", [(96, 80), (12, 10), (256, 256), (49, 41)])
def test_depth_map_of_any_size_is_resized_to_half_the_photos(tmp_path, size):
    x, y = np.meshgrid(*(np.arange(side) / side + 0.5 / side for side in size))
    save_depth(tmp_path / "a.npy", x + y)
    depth = own_photos.read_depth_map(tmp_path / "a.npy", HALF)
    x, y = np.meshgrid(*(np.arange(side) / side + 0.5 / side for side in HALF))
    low, high = 0.14, 1.86  # of the sum of two numbers from 0 to 1, 1% are less than one and 1% more than the other
    expected = np.clip((x + y - low) / (high - low), 0, 1)
    np.testing.assert_allclose(depth, 255 * expected, atol=255 * 2 / min(*size, *HALF))


def test_depth_map_of_one_value_is_read(tmp_path):
    save_depth(tmp_path / "a.npy", np.full((4, 5), 3.5))
    assert np.all(own_photos.read_depth_map(tmp_path / "a.npy", HALF) == 0)


@pytest.mark.parametrize("name, content, says", [
    ("a.npy", b"damaged", "is damaged, or no PNG"),
    ("a.png", b"damaged", r"is damaged, or no PNG, .* \(unknown content\)"),
    ("a.npy", np.zeros((40, 48, 3)), "one number for each pixel"), ("a.npy", np.zeros((2, 2), complex), "one number"),
    ("a.npy", np.full((40, 48), np.nan), "no finite number"), ("a.npy", np.zeros((48, 40)), "lies on its side"),
    ("a.npy", np.array([[{}]], dtype=object), "is damaged, or no PNG"), ("a.npy", np.zeros((0, 5)), "one number"),
    ("a.png", colours(HALF), "is in colours; a depth map must be grey"),
    ("a.npz", {"x": np.zeros((4, 5)), "y": np.zeros(3)}, "it holds x, y; name the depth map in it depth"),
    ("a.npz", {"x": np.zeros(2 ** 29, bool)}, "it is too large"),
    ("a.png", np.zeros((8200, 8200), bool), "has 8200 x 8200 pixels, too many for a depth map")])
def test_depth_map_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, content, says):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif isinstance(content, dict):
        np.savez_compressed(tmp_path / name, **content)
    else:
        save_depth(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{says}"):
        own_photos.read_depth_map(tmp_path / name, HALF)


# The network's input -------------------------------------------------------------------------------------------------


def write_photo(folder, name, size=SIZE):
    """Writes FOLDER/original/NAME.png and its depth map, and gives its `Pair`."""
    photo, depth = folder / f"original/{name}.png", folder / f"original_depth/{name}.png"
    utils.write_image(photo, colours(size))
    utils.write_image(depth, colours((size[0] // 2, size[1] // 2))[..., 0])
    return load_dataset.Pair(name, photo, depth, bokeh=None, size=None)


@pytest.mark.parametrize("size", [(96, 80), (131, 97)])
@pytest.mark.parametrize("use_depth", [True, False])
def test_photo_gives_the_input_that_it_gives_as_a_part_of_the_data_set(tmp_path, size, use_depth):
    pair = write_photo(tmp_path / "test", "1", size)
    [in_data_set] = dataset_files.find_test_photos(tmp_path, use_depth)
    array, found_size, photo = own_photos.load_input(pair if use_depth else pair._replace(map=None, kind=None))
    np.testing.assert_array_equal(array, load_dataset.load_input(in_data_set))
    assert found_size == size and array.shape[2] == 3 + use_depth and photo.info == {}


def test_max_side_makes_larger_photos_smaller(tmp_path):
    pair = write_photo(tmp_path, "1", (800, 240))
    for max_side, size in ((None, (800, 240)), (900, (800, 240)), (400, (400, 120))):
        array, found_size, _ = own_photos.load_input(pair, max_side)
        assert found_size == size and array.shape == (size[1] // 2, size[0] // 2, 4)
    with pytest.raises(DataError, match=r"1\.png: is 200 x 60 with max_side=200; .* at least 64 pixels"):
        own_photos.load_input(pair, max_side=200)


def test_photo_that_is_too_small_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1\.png: is 63 x 200; each side must have at least 64 pixels"):
        own_photos.load_input(write_photo(tmp_path, "1", (63, 200)))


# Rendering -----------------------------------------------------------------------------------------------------------


def give_the_photo_back(network, level):
    def render(photo, size):
        image = Image.fromarray(photo[..., :3]).resize(size, Image.Resampling.BICUBIC)
        return np.float32(image) / 255
    return render


@pytest.fixture
def rendering(workplace, call, monkeypatch):
    """rendering("images_dir=photos", ...) runs test_model.py with a network that gives the photo back: a `Call`."""
    pathlib.Path("weights.index").write_bytes(b"checksums")
    monkeypatch.setattr(checkpoints, "find_weights", lambda _: ("weights", "_level_1_orig.png"))
    monkeypatch.setattr(renderer, "make_renderer", give_the_photo_back)
    monkeypatch.setattr(model, "build_pynet", lambda **_: types.SimpleNamespace(variables={}))
    monkeypatch.setattr(model, "network_for_level", lambda *_: None)
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: None)
    monkeypatch.setattr(checkpoints, "network_of", lambda _: {"channels": 4, "width_multiplier": 1.0})
    monkeypatch.setattr(checkpoints, "restore_checkpoint", lambda *_: None)
    return lambda *arguments: call(test_model, *(arguments or ("images_dir=photos", "depth_dir=depth")))


def add_photo(name, write=None, size=SIZE, depth=True):
    """Writes photos/`name`, by default a PNG, and a depth map for it."""
    for folder in ("photos", "depth"):
        os.makedirs(folder, exist_ok=True)
    path = pathlib.Path("photos") / name
    write(path) if write else Image.fromarray(colours(size)).save(path)
    if depth:
        Image.fromarray(np.uint8(255 * np.linspace(0, 1, 35).reshape(5, 7))).resize(size).save(f"depth/{path.stem}.png")


def result_of(name):
    with Image.open(newest_result(f"{name}_level_1_orig.png")) as image:
        return np.asarray(image)


def test_names_that_would_steer_a_terminal_are_shown_with_escapes(rendering):
    add_photo("a\nb\x1b[2J.png")
    done = rendering()
    assert done.status == 0 and "\x1b" not in done.out + done.err
    assert "/a\\nb\\x1b[2J_level_1_orig.png" in done.out


def test_all_that_can_be_rendered_is_upright_in_its_colours_and_the_rest_is_named(rendering):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    add_photo("turned.jpg", lambda path: upright().transpose(TO_STORE[6]).save(path, exif=exif, quality=95))
    add_photo("long.png", size=(65, 1301))
    add_photo("a 'b\" <i> #1 %41 ?&.png")
    add_photo("Фото 写真.png")
    add_photo("half.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 half"))
    add_photo("tiny.png", size=(63, 200))
    add_photo("without.png", depth=False)
    add_photo("raw.CR2", lambda path: path.write_bytes(b"whatever"), depth=False)
    add_photo("notes.txt", lambda path: path.write_bytes(b"whatever"), depth=False)
    done = rendering()
    assert done.status == 1
    errors = done.err.splitlines()
    for name, says in {"half.jpg": "damaged", "tiny.png": "is 63 x 200; each side", "raw.CR2": "save it as JPEG",
                       "without.png": "has no depth map in depth; python -m tools.make_depth_maps makes it"}.items():
        assert sum(f"photos/{name}: " in line and says in line for line in errors) == 1, name
    assert errors[-1] == "error: 4 of 8 photos could not be rendered" and len(errors) == 6  # one: nothing is fetched
    assert result_of("long").shape == (1301, 65, 3)
    for name in ("turned", "a 'b\" <i> #1 %41 ?&", "Фото 写真"):
        assert np.abs(result_of(name).astype(int) - colours()).mean() < 3


def test_what_is_left_out_is_named_with_the_reason_and_the_rest_is_rendered(rendering):
    for name in ("5.jpg", "5.png", "7.png", "near.png"):
        add_photo(name, depth=name != "near.png")
    os.symlink("nowhere.png", "photos/link.png")
    os.mkfifo("photos/pipe.png")
    pathlib.Path("photos/old.bmp").write_bytes(b"whatever")
    upright().convert("L").save("depth/NEAR-depth.png")
    done = rendering()
    assert done.status == 1 and result_of("5").shape == result_of("7").shape == (HEIGHT, WIDTH, 3)
    for name, says in {"5.png": "has the same name as 5.jpg; keep one", "link.png": "a link to a file that is missing",
                       "pipe.png": "is no file", "old.bmp": "save it as JPEG or PNG",
                       "near.png": "has no depth map in depth; the nearest is NEAR-depth.png"}.items():
        assert sum(f"photos/{name}: " in line and says in line for line in done.err.splitlines()) == 1, name


def test_names_belong_together_as_people_see_them_and_need_not_be_utf_8(rendering):
    add_photo("a.png")
    composed, decomposed = (unicodedata.normalize(form, "Caf\u00e9") for form in ("NFC", "NFD"))
    os.rename("photos/a.png", f"photos/{decomposed}.png")
    os.rename("depth/a.png", f"depth/{composed}.png")
    for folder in (b"photos", b"depth"):
        with open(folder + b"/\xff\xfe.png", "wb") as copy:
            copy.write(pathlib.Path(f"photos/{decomposed}.png").read_bytes() if folder == b"photos" else
                       pathlib.Path(f"depth/{composed}.png").read_bytes())
    done = rendering()
    assert done.status == 0, done.err
    assert result_of(composed).shape == result_of("\\udcff\\udcfe").shape == (HEIGHT, WIDTH, 3)


def test_without_depth_dir_the_depth_maps_inside_the_photos_are_used(rendering):
    from test_embedded_depth import dynamic_depth, gdepth  # which takes from this file
    add_photo("a.jpg", lambda path: path.write_bytes(gdepth()), depth=False)
    add_photo("b.jpg", lambda path: path.write_bytes(dynamic_depth()), depth=False)
    add_photo("damaged.jpg", lambda path: path.write_bytes(gdepth(image=b"no image")), depth=False)
    add_photo("without.jpg", lambda path: upright().save(path))
    done = rendering("images_dir=photos")
    assert done.status == 1
    assert "Depth maps: inside a.jpg, b.jpg, damaged.jpg\n" in done.out
    assert done.err.splitlines()[1:] == [  # after the line that no depth network could be fetched
        "error: photos/without.jpg: has no depth map inside, and depth_dir=FOLDER is not given; "
        "python -m tools.make_depth_maps makes it",
        "error: photos/damaged.jpg: the depth map in it is damaged (no PNG or JPEG)",
        "error: 2 of 4 photos could not be rendered"]
    for name in "ab":
        assert np.abs(result_of(name).astype(int) - colours()).mean() < 3
    done = rendering()  # whose depth_dir= has none of a, b and damaged
    assert "Depth maps: inside a.jpg, b.jpg, damaged.jpg\n" in done.out and "error: 1 of 4 photos" in done.err


def test_photos_without_depth_maps_are_one_line_with_their_number_before_tensorflow_starts(rendering, monkeypatch):
    monkeypatch.setattr(devices, "start_tensorflow", lambda *_: pytest.fail("started TensorFlow"))
    for number in range(5):
        add_photo(f"{number}.jpg", lambda path: upright().save(path), depth=False)
    done = rendering("images_dir=photos", "depth_dir=depth", "depth_is=distance")
    assert done.status == 1 and done.err == (
        "error: photos: 5 photos (0.jpg, 1.jpg, 2.jpg ...) have no depth map in depth; "
        "python -m tools.make_depth_maps makes them\n")


def test_photos_without_any_depth_map_are_one_line(rendering):
    for name in ("a.jpg", "b.jpg"):
        add_photo(name, lambda path: upright().save(path))
    done = rendering("images_dir=photos")
    assert done.status == 1 and done.err.count("\n") == 1
    assert done.err.startswith("error: models/depth/depth_anything_v2_small.onnx: could not be fetched; put the file ")


# Depth maps of a depth network ---------------------------------------------------------------------------------------


@pytest.fixture
def depth_network(rendering, network_file):
    """A stand-in for the depth network in models/depth/: the path of its file."""
    path = pathlib.Path("models/depth/depth_anything_v2_small.onnx")
    path.parent.mkdir()
    shutil.copy(network_file(path.name), path)
    return path


def test_photos_without_a_map_get_one_from_the_depth_network_which_is_kept(rendering, depth_network):
    add_photo("a.png", depth=False)
    add_photo("b.png", size=(300, 200), depth=False)
    done = rendering("images_dir=photos")
    assert (done.status, done.err) == (0, "")
    assert "Depth maps: 2 of depth_anything_v2_small in results/depth_maps/depth_anything_v2_small/\n" in done.out
    kept = sorted(pathlib.Path("results/depth_maps/depth_anything_v2_small").iterdir())
    assert [path.name[:2] for path in kept] == ["a_", "b_"]
    np.testing.assert_allclose(np.float64(Image.open(kept[0])), expected_map(colours()), atol=4)
    depth_network.unlink()
    assert rendering("images_dir=photos").status == 0
    add_photo("a.png", size=(300, 200), depth=False)  # another photo of the same name
    assert "models/depth/depth_anything_v2_small.onnx: could not be fetched" in rendering("images_dir=photos").err


def test_two_networks_of_one_file_name_do_not_share_their_maps(rendering, network_file):
    add_photo("a.png", depth=False)
    pathlib.Path("other").mkdir()
    shutil.copy(network_file("free.onnx"), "copy.onnx")
    shutil.copy(network_file("sharpen.onnx"), "other/copy.onnx")
    for network in ("copy.onnx", "other/copy.onnx", "copy.onnx"):
        assert rendering("images_dir=photos", f"depth_model={network}").status == 0
    first, second = pathlib.Path("results/depth_maps").glob("copy-????????/a_*.png")
    assert first.read_bytes() != second.read_bytes()


def test_maps_of_the_network_are_kept_in_depth_dir_beside_those_that_are_there(rendering, depth_network):
    add_photo("a.png")
    add_photo("b.png", depth=False)
    there = pathlib.Path("depth/a.png").read_bytes()
    assert rendering().status == 0
    np.testing.assert_allclose(np.float64(Image.open("depth/b.png")), expected_map(colours()), atol=4)
    assert pathlib.Path("depth/a.png").read_bytes() == there and not pathlib.Path("results/depth_maps").exists()


def test_no_network_is_opened_where_maps_are_there(rendering, monkeypatch):
    from test_embedded_depth import gdepth
    monkeypatch.setattr(depth_networks, "open_network", lambda *_: pytest.fail("opened a depth network"))
    add_photo("a.png")
    add_photo("b.jpg", lambda path: path.write_bytes(gdepth()), depth=False)
    assert rendering().status == 0
    add_photo("c.png", depth=False)
    assert "c.png: has no depth map in depth" in rendering("images_dir=photos", "depth_dir=depth", "depth_is=depth").err


def test_without_a_connection_one_line_says_which_file_to_put_where_and_the_others_are_rendered(rendering):
    add_photo("a.png")
    for name in ("b.png", "c.png"):
        add_photo(name, depth=False)
    done = rendering()
    assert done.status == 1 and result_of("a").shape == (HEIGHT, WIDTH, 3)
    [line] = [line for line in done.err.splitlines() if "could not be fetched" in line]
    assert line.startswith("error: models/depth/depth_anything_v2_small.onnx: could not be fetched; put the file there")
    assert "about 99 MB, licence Apache-2.0\n" in done.out and not list(pathlib.Path("models/depth").iterdir())


def test_damaged_photo_without_a_map_is_named_and_the_others_are_rendered(rendering, depth_network):
    add_photo("a.png", depth=False)
    add_photo("b.png", lambda path: path.write_bytes(b"half"), depth=False)
    done = rendering("images_dir=photos")
    assert done.status == 1 and result_of("a").shape == (HEIGHT, WIDTH, 3)
    assert done.err.count("photos/b.png: is damaged") == 1 and "1 of 2 photos could not be rendered" in done.err


def test_profile_and_date_travel_into_the_result(rendering):
    exif = Image.Exif()
    exif[DATE] = "2020:01:02 03:04:05"
    add_photo("a.jpg", lambda path: upright().save(path, exif=exif, icc_profile=SRGB))
    assert rendering().status == 0
    with Image.open(newest_result("a_level_1_orig.png")) as image:
        assert image.info["icc_profile"] == SRGB and image.getexif()[DATE] == "2020:01:02 03:04:05"


@pytest.mark.parametrize("error", [MemoryError(), tf.errors.AbortedError(None, None, "oneDNN could not")])
def test_photo_that_does_not_fit_into_memory_is_named_and_the_others_are_rendered(rendering, monkeypatch, error):
    def full(network, level):
        def render(photo, size):
            if size[0] > 200:
                raise error
            return give_the_photo_back(network, level)(photo, size)
        return render
    add_photo("a.png", size=(200, 200))
    add_photo("b.png")
    monkeypatch.setattr(renderer, "make_renderer", full)
    done = rendering()
    assert done.status == 1 and "photos/a.png: does not fit into the device's memory" in done.err
    assert "Traceback" not in done.err and result_of("b").shape == (HEIGHT, WIDTH, 3)


def test_photos_of_any_size_come_out_at_their_own(rendering):
    for name, size in {"a": (1800, 90), "b": SIZE, "panorama": (4001, 70), "c": (2101, 1401)}.items():
        add_photo(f"{name}.png", size=size)
        for arguments in ([], ["max_side=1400"] if name != "panorama" else ["detail=false"]):
            assert rendering(f"images_dir=photos/{name}.png", f"depth_dir=depth/{name}.png", *arguments).status == 0
            assert result_of(name).shape == (*reversed(size), 3)
