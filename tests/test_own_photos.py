"""Own photos: every common kind of file is rendered upright, in its colours and at its size; what cannot be is named.

Most tests put a network in PyNET's place that gives the photo back, so that a result can be compared with its photo.
"""

import os
import pathlib
import re
import struct
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

import load_dataset
import model
import test_model
import utils
from tools import make_demo_dataset
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
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks))


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


def write_half_transparent(path):
    rgba = np.dstack([colours(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rgba[HEIGHT // 2:, :, 3] = 0
    Image.fromarray(rgba).save(path)


def in_16_bits(*channels):
    return np.dstack([colours(), np.full((HEIGHT, WIDTH), 255)])[..., list(channels)].astype(np.uint32) * 257


def upright():
    return Image.fromarray(colours())


GREY = np.asarray(upright().convert("L").convert("RGB"))
FIRST_CHANNEL = np.dstack([colours()[..., 0]] * 3)
ON_WHITE = np.concatenate([colours()[:HEIGHT // 2], np.full((HEIGHT // 2, WIDTH, 3), 255, np.uint8)])
KINDS = {  # file name: (how to write it, the pixels expected, how far off a lossy format may be)
    "rgb.jpg": (lambda path: upright().save(path, quality=95), colours(), 6),
    "upper.JPEG": (lambda path: upright().save(path, quality=95), colours(), 6),
    "phone.jpg": (lambda path: upright().save(path, format="MPO", save_all=True, append_images=[upright()], quality=95),
                  colours(), 6),
    "rgb.png": (lambda path: upright().save(path), colours(), 0),
    "rgb.webp": (lambda path: upright().save(path, lossless=True), colours(), 0),
    "plain.tif": (lambda path: upright().save(path), colours(), 0),
    "lzw.tiff": (lambda path: upright().save(path, compression="tiff_lzw"), colours(), 0),
    "pages.tif": (lambda path: upright().save(path, save_all=True, append_images=[upright().rotate(180)]), colours(), 0),
    "grey.png": (lambda path: upright().convert("L").save(path), GREY, 0),
    "grey.jpg": (lambda path: upright().convert("L").save(path, quality=95), GREY, 6),
    "grey_alpha.png": (lambda path: upright().convert("LA").save(path), GREY, 0),
    "bits.png": (lambda path: upright().convert("1").save(path), np.asarray(upright().convert("1").convert("RGB")), 0),
    "palette.png": (lambda path: upright().quantize(256).save(path), np.asarray(upright().quantize(256).convert("RGB")), 0),
    "transparent.png": (write_half_transparent, ON_WHITE, 0),
    "transparent.tif": (write_half_transparent, ON_WHITE, 0),
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
    write, expected, tolerance = KINDS[name]
    write(tmp_path / name)
    photo = load_dataset.read_own_photo(tmp_path / name)
    assert (photo.mode, photo.size) == ("RGB", SIZE)
    assert np.abs(np.asarray(photo, int) - expected).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", TO_STORE)
def test_photo_is_turned_upright_as_exif_says(tmp_path, orientation, suffix, mode):
    image = Image.fromarray(np.uint16(in_16_bits(0)[..., 0])) if mode == "I;16" else upright().convert(mode)
    expected = FIRST_CHANNEL if mode == "I;16" else np.asarray(image.convert("RGB"))
    turn = TO_STORE[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (image if turn is None else image.transpose(turn)).save(tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_dataset.read_own_photo(tmp_path / f"a{suffix}")), expected)


def test_of_the_metadata_only_the_profile_and_the_dates_are_kept(tmp_path):
    exif = Image.Exif()
    exif[DATE], exif[MAKER], exif[ORIENTATION] = "2020:01:02 03:04:05", "Maker", 6
    exif.get_ifd(SHOT)[SHOT_DATE] = "2019:05:06 07:08:09"
    upright().save(tmp_path / "a.jpg", exif=exif, icc_profile=SRGB)
    info = load_dataset.read_own_photo(tmp_path / "a.jpg").info
    kept = Image.Exif()
    kept.load(info["exif"])
    assert set(info) == {"icc_profile", "exif"} and info["icc_profile"] == SRGB
    assert kept[DATE] == "2020:01:02 03:04:05" and kept.get_ifd(SHOT) == {SHOT_DATE: "2019:05:06 07:08:09"}
    assert set(kept) == {DATE, SHOT}


def linear_grey_profile():
    """The bytes of a grey ICC profile (ICC.1:2001-04) whose numbers are proportional to light."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50
    curve = b"curv" + bytes(4) + struct.pack(">I", 0) + bytes(4)  # no entries: the identity
    tags = struct.pack(">I", 2) + b"wtpt" + struct.pack(">2I", 156, 20) + b"kTRC" + struct.pack(">2I", 176, 12)
    body = tags + white + curve
    header = struct.pack(">I", 128 + len(body)) + bytes(4) + struct.pack(">I", 0x02100000) + b"mntrGRAYXYZ " + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def test_profile_of_grey_is_applied_and_does_not_reach_the_result(tmp_path):
    Image.new("L", SIZE, 55).save(tmp_path / "a.png", icc_profile=linear_grey_profile())
    photo = load_dataset.read_own_photo(tmp_path / "a.png")
    light = 55 / 255  # as sRGB, IEC 61966-2-1
    assert np.abs(np.asarray(photo) - 255 * (1.055 * light ** (1 / 2.4) - 0.055)).max() < 1.5 and photo.info == {}


@pytest.mark.parametrize("mode, profile", [("RGB", b"nonsense"), ("L", b"nonsense"), ("L", SRGB), ("CMYK", SRGB)])
def test_profile_that_is_damaged_does_not_cost_the_photo(tmp_path, mode, profile):
    upright().convert(mode).save(tmp_path / "a.tif", icc_profile=profile)
    photo = load_dataset.read_own_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo, upright().convert(mode).convert("RGB"))
    assert photo.info == ({"icc_profile": SRGB} if profile == SRGB else {})


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_does_not_cost_the_photo(tmp_path, suffix):
    upright().save(tmp_path / f"a{suffix}", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    assert load_dataset.read_own_photo(tmp_path / f"a{suffix}").size == SIZE


@pytest.mark.parametrize("name, change, reason", [
    ("a.jpg", lambda data: data[:len(data) - 400], "truncated"),
    ("a.png", lambda data: data[:len(data) // 2], "damaged"),
    ("a.png", lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "damaged"),  # PNG has checksums
    ("a.tif", lambda data: data[:len(data) // 2], "damaged"),
    ("a.webp", lambda data: data[:len(data) // 2], "damaged"),
    ("a.jpg", lambda data: b"hello", "no JPEG, PNG, WebP or TIFF"),
    ("a.png", lambda data: b"", "no JPEG, PNG, WebP or TIFF")])
def test_damaged_photo_is_named_with_the_reason(tmp_path, name, change, reason):
    upright().save(tmp_path / name)
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{reason}"):
        load_dataset.read_own_photo(tmp_path / name)


def test_photo_of_floats_is_refused_as_its_white_is_unknown(tmp_path):
    Image.fromarray(np.float32(colours()[..., 0])).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: has the pixel format F; save it with 8 or 16 bits"):
        load_dataset.read_own_photo(tmp_path / "a.tif")


# Finding photos and depth maps ---------------------------------------------------------------------------------------


def test_photos_are_found_by_their_suffix_in_numeric_order(tmp_path):
    for name in ("10.jpg", "9.PNG", "b.TIFF", "a.tif", "c.webp", "d.jpeg", "notes.txt", ".hidden.jpg", "e.gif"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = load_dataset.find_own_photos(tmp_path)
    assert list(found) == ["9", "10", "a", "b", "c", "d"] and found["9"] == tmp_path / "9.PNG"
    assert load_dataset.find_own_photos(tmp_path / "a.tif") == {"a": tmp_path / "a.tif"}


@pytest.mark.parametrize("names, place, says", [
    ([], "nowhere", "nowhere: no such folder or photo"), ([], "", "holds no photo"),
    (["a.txt"], "a.txt", r"a\.txt: is no photo"), (["a.jpg", "a.png"], "", r"a\.png: goes by the same name as a\.jpg"),
    (["a\nb.jpg"], "", r"cannot be printed")])
def test_folder_that_cannot_be_used_is_named(tmp_path, names, place, says):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=says):
        load_dataset.find_own_photos(tmp_path / place)


# Depth maps ----------------------------------------------------------------------------------------------------------


RAMP = np.linspace(0, 1, HALF[0] * HALF[1]).reshape(HALF[::-1])  # 0 top left, 1 bottom right


def save_depth(path, numbers):
    np.save(path, numbers) if path.suffix == ".npy" else Image.fromarray(numbers).save(path)


def test_8_bit_depth_map_of_the_right_size_stays_as_it_is(tmp_path):
    save_depth(tmp_path / "a.png", np.uint8(50 + 100 * RAMP))
    np.testing.assert_array_equal(load_dataset.read_depth_map(tmp_path / "a.png", HALF), np.uint8(50 + 100 * RAMP))


@pytest.mark.parametrize("name, numbers", [
    ("a.png", np.uint16(1000 + 3000 * RAMP)), ("a.tif", np.uint16(65535 * RAMP)), ("a.tif", np.float32(7 * RAMP - 3)),
    ("a.tif", np.int32(1e9 * RAMP)), ("a.npy", 1e-6 * RAMP), ("a.npy", np.float16(RAMP)), ("a.npy", RAMP[None, ..., None]),
    ("a.npy", np.int64(1e12 * RAMP)), ("a.npy", np.where(RAMP == 0, np.nan, RAMP)), ("a.npy", 1e300 * (RAMP - 0.5))])
def test_other_numbers_are_spread_from_0_to_255(tmp_path, name, numbers):
    save_depth(tmp_path / name, numbers)
    depth = load_dataset.read_depth_map(tmp_path / name, HALF)
    assert depth.dtype == np.uint8 and (depth.min(), depth.max()) == (0, 255)
    np.testing.assert_allclose(depth, 255 * RAMP, atol=0.75)


@pytest.mark.parametrize("size", [(96, 80), (12, 10), (256, 256), (49, 41)])
def test_depth_map_of_any_size_is_resized_to_half_the_photos(tmp_path, size):
    x, y = np.meshgrid(*(np.arange(side) / side + 0.5 / side for side in size))
    save_depth(tmp_path / "a.npy", x + y)
    depth = load_dataset.read_depth_map(tmp_path / "a.npy", HALF)
    x, y = np.meshgrid(*(np.arange(side) / side + 0.5 / side for side in HALF))
    np.testing.assert_allclose(depth, 255 * (x + y) / 2, atol=255 * 1.5 / min(*size, *HALF))


def test_depth_map_of_one_value_is_read(tmp_path):
    save_depth(tmp_path / "a.npy", np.full((4, 5), 3.5))
    assert np.all(load_dataset.read_depth_map(tmp_path / "a.npy", HALF) == 0)


@pytest.mark.parametrize("name, content, says", [
    ("a.npy", b"damaged", "no readable depth map"), ("a.png", b"damaged", "no PNG, TIFF"),
    ("a.npy", np.zeros((40, 48, 3)), "one number for each pixel"), ("a.npy", np.zeros((2, 2), complex), "one number"),
    ("a.npy", np.full((40, 48), np.nan), "no finite number"), ("a.npy", np.zeros((48, 40)), "lies on its side"),
    ("a.npy", np.array([[{}]], dtype=object), "no readable depth map"), ("a.npy", np.zeros((0, 5)), "one number")])
def test_depth_map_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, content, says):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{says}"):
        load_dataset.read_depth_map(tmp_path / name, HALF)


# Rendering -----------------------------------------------------------------------------------------------------------


def give_the_photo_back(network, level):
    def render(photo, size):
        image = Image.fromarray(photo[..., :3]).resize(size, Image.Resampling.BICUBIC)
        return np.float32(image) / 255
    return render


@pytest.fixture
def rendering(workplace, call, monkeypatch):
    """rendering("images_dir=photos", ...) runs test_model.py with a network that gives the photo back: a `Call`."""
    monkeypatch.setattr(test_model, "find_weights", lambda _: ("weights", "_level_1_orig.png"))
    monkeypatch.setattr(test_model, "make_renderer", give_the_photo_back)
    monkeypatch.setattr(model, "build_pynet", lambda **_: types.SimpleNamespace(variables={}))
    monkeypatch.setattr(model, "network_for_level", lambda *_: None)
    monkeypatch.setattr(utils, "restore_checkpoint", lambda *_: None)
    return lambda *arguments: call(test_model, *(arguments or ("images_dir=photos", "depth_dir=depth")))


def add_photo(name, write=None, size=SIZE, depth=True):
    """Writes photos/`name`, by default a PNG, and a depth map for it."""
    for folder in ("photos", "depth"):
        os.makedirs(folder, exist_ok=True)
    path = pathlib.Path("photos") / name
    write(path) if write else Image.fromarray(colours(size)).save(path)
    if depth:
        Image.fromarray(np.uint8(255 * np.linspace(0, 1, 35).reshape(5, 7))).resize(size).save(f"depth/{path.stem}.png")
    return path


def result_of(name):
    with Image.open(utils.FULL_RESOLUTION / f"{name}_level_1_orig.png") as image:
        return np.asarray(image)


def test_all_that_can_be_rendered_is_upright_in_its_colours_and_the_rest_is_named(rendering):
    for number, (name, (write, _, _)) in enumerate(KINDS.items()):
        add_photo(f"{number}_{name}", write)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    add_photo("turned.jpg", lambda path: upright().transpose(TO_STORE[6]).save(path, exif=exif, quality=95))
    add_photo("long.png", size=(65, 1301))
    add_photo("a 'b\" <i> #1 %41 ?&.png")
    add_photo("Фото 写真.png")
    add_photo("half.jpg", lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 half"))
    add_photo("text.jpg", lambda path: path.write_text("hello"))
    add_photo("tiny.png", size=(63, 200))
    add_photo("without.png", depth=False)
    done = rendering()
    assert done.status == 1
    errors = done.err.splitlines()
    for name in ("half.jpg", "text.jpg", "tiny.png", "without.png"):
        assert sum(f"photos/{name}: " in line for line in errors) == 1
    assert errors[-1] == f"error: 4 of {len(KINDS) + 8} photos could not be rendered" and len(errors) == 5
    for number, (name, (_, expected, tolerance)) in enumerate(KINDS.items()):
        halved = Image.fromarray(expected).resize(HALF, Image.Resampling.BICUBIC).resize(SIZE, Image.Resampling.BICUBIC)
        result = result_of(f"{number}_{name.partition('.')[0]}").astype(int)
        assert result.shape == (HEIGHT, WIDTH, 3) and np.abs(result - np.asarray(halved)).mean() <= tolerance / 2
    assert result_of("long").shape == (1301, 65, 3)
    for name in ("turned", "a 'b\" <i> #1 %41 ?&", "Фото 写真"):
        assert np.abs(result_of(name).astype(int) - colours()).mean() < 3


def test_profile_and_date_travel_into_the_result(rendering):
    exif = Image.Exif()
    exif[DATE] = "2020:01:02 03:04:05"
    add_photo("a.jpg", lambda path: upright().save(path, exif=exif, icc_profile=SRGB))
    assert rendering().status == 0
    with Image.open(utils.FULL_RESOLUTION / "a_level_1_orig.png") as image:
        assert image.info["icc_profile"] == SRGB and image.getexif()[DATE] == "2020:01:02 03:04:05"


def test_missing_depth_map_names_the_photo_and_the_command_that_makes_it(rendering, monkeypatch):
    monkeypatch.setattr(utils, "start_tensorflow", lambda *_: pytest.fail("asked for TensorFlow"))
    add_photo("a.png", depth=False)
    done = rendering("images_dir=photos", "depth_dir=my depth")
    assert done.status == 1 and done.err == (
        "error: photos/a.png: has no depth map in my depth; python -m tools.make_depth_maps model=FILE "
        "images_dir=photos 'depth_dir=my depth' makes it\n")


def test_single_photo_with_a_depth_map_of_any_name(rendering):
    add_photo("a.png")
    os.rename("depth/a.png", "depth/near.png")
    assert rendering("images_dir=photos/a.png", "depth_dir=depth/near.png").status == 0
    assert result_of("a").shape == (HEIGHT, WIDTH, 3)


def test_16_bit_tiff_in_which_0_is_white_is_refused_because_it_would_be_read_inverted(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(path, tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0 and image.mode.startswith("I;16")
    with pytest.raises(utils.DataError, match="0 is white"):
        load_dataset.read_own_photo(path)


def test_photos_of_formats_that_are_not_read_are_named_and_the_others_rendered(rendering):
    add_photo("a.png")
    for name in ("IMG_1.HEIC", "b.avif", "notes.txt"):
        (pathlib.Path("photos") / name).write_bytes(b"whatever")
    done = rendering()
    assert done.status == 1 and result_of("a").shape == (HEIGHT, WIDTH, 3)
    for name in ("IMG_1.HEIC", "b.avif"):
        assert f"{name}: is of a format that is not read; save it as JPEG, PNG, WebP or TIFF" in done.err
    assert "notes.txt" not in done.err


def test_photo_that_does_not_fit_into_memory_is_named_and_the_others_are_rendered(rendering, monkeypatch):
    def full(*_):
        raise MemoryError
    add_photo("a.png")
    add_photo("b.png")
    monkeypatch.setattr(test_model, "make_renderer", lambda *_: full)
    done = rendering()
    assert done.status == 1 and "Traceback" not in done.err
    assert all(f"photos/{name}.png: does not fit into the device's memory" in done.err for name in "ab")


def test_photo_larger_than_those_of_ebb_gets_a_notice_and_max_side_makes_it_smaller(rendering):
    add_photo("a.png", size=(1800, 90))
    add_photo("b.png")
    assert re.search(r"Notice: photos/a\.png is 1800 x 90; .*1024 x 1536.* max_side=1536", rendering().out)
    done = rendering("images_dir=photos", "depth_dir=depth", "max_side=1400")
    assert done.status == 0 and "Notice" not in done.out
    assert result_of("a").shape == (70, 1400, 3) and result_of("b").shape == (HEIGHT, WIDTH, 3)


def test_photo_that_max_side_makes_too_small_is_named(rendering):
    add_photo("a.png", size=(800, 64))
    done = rendering("images_dir=photos", "depth_dir=depth", "max_side=400")
    assert done.status == 1 and "a.png: is 800 x 64, 400 x 32 with max_side=400; each side needs at least 64" in done.err


@pytest.mark.parametrize("arguments, says", [
    (["depth_dir=depth"], "images_dir: is missing"),
    (["images_dir=photos", "depth_dir=depth", "dataset_dir=ebb_dataset"], "images_dir: .*dataset_dir"),
    (["images_dir=photos", "depth_dir=./photos/"], "depth_dir=./photos/: is where the photos are"),
    (["max_side=1000"], "max_side: .*images_dir"),
    (["images_dir=photos", "depth_dir=depth", "max_side=63"], "max_side=63: .*64 or more")])
def test_arguments_that_do_not_go_together_are_a_wrong_call(call, workplace, arguments, says):
    done = call(test_model, *arguments)
    assert (done.status, done.out) == (2, "") and re.match(f"error: {says}", done.err) and done.err.count("\n") == 1


def test_older_result_that_looks_different_is_kept_under_another_name(rendering):
    for brightness in (10, 10, 200, 100):
        add_photo("a.png", lambda path: Image.new("RGB", SIZE, (brightness,) * 3).save(path))
        done = rendering()
        assert done.status == 0
    kept = {path.name: np.asarray(Image.open(path))[0, 0, 0] for path in utils.FULL_RESOLUTION.glob("*.png")}
    assert kept == {"a_level_1_orig.png": 100, "a_level_1_orig.older-1.png": 10, "a_level_1_orig.older-2.png": 200}
    assert "the older one is now a_level_1_orig.older-2.png" in done.out


# The same as through the data set ------------------------------------------------------------------------------------


def test_own_photos_give_the_pixels_that_they_give_as_a_data_set(workplace, call, pynet, seed_1_checkpoint,
                                                                 link_checkpoint, monkeypatch):
    monkeypatch.setattr(model, "build_pynet", lambda **_: pynet)
    link_checkpoint(seed_1_checkpoint, utils.ORIGINAL / "pynet_bokeh_level_0")
    for number, size in enumerate([(192, 128), (131, 97)]):
        photo, depth, _ = make_demo_dataset.make_scene(size, number)
        utils.write_image(workplace / "ebb_dataset/test/original" / f"{number}.jpg", photo)
        utils.write_image(workplace / "ebb_dataset/test/original_depth" / f"{number}.png", depth)
    assert call(test_model, "orig=true").status == 0
    utils.FULL_RESOLUTION.rename("as_data_set")
    folder = "ebb_dataset/test"
    assert call(test_model, "orig=true", f"images_dir={folder}/original", f"depth_dir={folder}/original_depth").status == 0
    for number in (0, 1):
        name = f"{number}_level_1_orig.png"
        own, other = (np.asarray(Image.open(place / name)) for place in (utils.FULL_RESOLUTION, workplace / "as_data_set"))
        np.testing.assert_array_equal(own, other)
