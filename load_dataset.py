"""The EBB! photos: what one training pair looks like, and how pairs stream to the network.

    DATASET/{train,test}/original/7.jpg         the photo with everything in focus, about 1024 x 1536
    DATASET/{train,test}/original_depth/7.png   its depth map, 8 bits, half that size, bright = near
    DATASET/{train,test}/bokeh/7.jpg            the photo with a shallow depth of field, as large as the original

Files belong together by name. Images are decoded in threads while the network trains, outside Python's lock, so that
memory does not grow with the number of photos. Whole photos are Pillow's work. Of a training pair only what the patch
needs is decoded and halved, by TensorFlow, to the very same pixels.
"""

import collections
import concurrent.futures
import functools
import io
import os
import pathlib
import re
import struct
import threading
import tokenize
import zlib
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

import utils
from utils import DataError

PATCH = 512  # height and width of a training patch, in pixels of the photo at half size
WEIGHT_BITS = 22  # fractional bits of the integer weights in Pillow's filters
MARGIN = 16  # pixels of the photo decoded around a patch; the filters and the decoder see some beyond its edge
DRAW_EVERY = 1000  # iterations for which one random draw of train_size photos serves
SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")  # by content, whatever the file name says
MODES = {  # of Pillow that are read as "RGB" and as "L": 8 bits for each channel
    "RGB": ("RGB", "L", "P", "RGBA"),
    "L": ("L", "P", "RGB", "RGBA", "LA"),
}
LEAST_RESEMBLANCE = 0.7  # of photo and bokeh photo, see `resemblance`
LEAST_CONTRAST, MUCH_CONTRAST = 8.0, 16.0  # of 64 x 64 pixel means, 0-255: where resemblance starts to mean something
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


class Pair(NamedTuple):
    """The files of one photo. `bokeh` is None where there is no target, `depth` where the network takes no depth maps;
    `size` is the photo's (width, height)."""

    name: str
    photo: pathlib.Path
    depth: Optional[pathlib.Path]
    bokeh: Optional[pathlib.Path]
    size: tuple


# Which files there are -----------------------------------------------------------------------------------------------


def find_training_pairs(dataset_dir, split, use_depth=True):
    """All pairs of a split, checked by their headers: whole, of matching sizes and large enough for a patch.

    Args:
      dataset_dir: the folder that holds train/ and test/.
      split: "train" or "test".
      use_depth: whether depth maps are needed; else `original_depth/` is not looked at.

    Returns:
      `Pair`s in numeric order.

    Raises:
      DataError: lists every problem of the split, by file.
    """
    return _raise_problems(*survey(dataset_dir, split, for_training=True, use_depth=use_depth))


def find_training_set(dataset_dir, use_depth=True):
    """(training pairs, test pairs), checked as in `find_training_pairs`; DataError lists the problems of both."""
    train, train_problems = survey(dataset_dir, "train", True, use_depth)
    test, test_problems = survey(dataset_dir, "test", True, use_depth)
    return _raise_problems((train, test), train_problems + test_problems)


def find_test_photos(dataset_dir, use_depth=True):
    """All pairs of the test split, of any size; those without a file in bokeh/ have `bokeh=None`. Errors as above."""
    return _raise_problems(*survey(dataset_dir, "test", for_training=False, use_depth=use_depth))


def survey(dataset_dir, split, for_training, use_depth=True):
    """(pairs, problems) of a split by the files' headers. `pairs` are those without problems, problems name a file."""
    folder = pathlib.Path(dataset_dir) / split
    problems = []
    photos = _images_by_name(folder / "original", problems)
    depths = _images_by_name(folder / "original_depth", problems) if use_depth else {}
    bokehs = _images_by_name(folder / "bokeh", problems) if for_training or (folder / "bokeh").is_dir() else {}
    if not (photos and (depths or not use_depth) and (bokehs or not for_training)):
        return [], problems
    candidates = []
    for name in photos.keys() | (depths.keys() | bokehs.keys() if for_training else set()):
        files = {"original": photos.get(name), "original_depth": depths.get(name), "bokeh": bokehs.get(name)}
        needed = ["original", *["original_depth"] * use_depth, *["bokeh"] * for_training]
        missing = [kind for kind in needed if not files[kind]]
        problems += [f"{folder / kind / name}.{'png' if kind == 'original_depth' else 'jpg'}: is missing"
                     for kind in missing]
        if not missing:
            candidates.append(Pair(name, *files.values(), size=None))
    with concurrent.futures.ThreadPoolExecutor(4 * processors()) as pool:  # waits for the disk more than it computes
        checked = list(pool.map(lambda pair: _check_headers(pair, for_training), candidates))
    pairs = [pair for pair, found in checked if not found]
    problems += [problem for _, found in checked for problem in found]
    return sorted(pairs, key=lambda pair: _numeric_order(pair.name)), sorted(problems, key=_numeric_order)


def _raise_problems(pairs, problems):
    if not problems:
        return pairs
    lines = [f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the data set", *problems]
    if any("original_depth" in problem and ("missing" in problem or "no such" in problem) for problem in problems):
        lines.append("EBB! comes without depth maps; the README says how to make them (Downloads)")
    if any(os.path.join("test", "bokeh") in problem for problem in problems):
        lines.append("EBB! publishes no test targets: move some pairs of train/ to test/ for the metrics in training")
    raise DataError("\n  ".join(lines))


def _images_by_name(folder, problems):
    """{name without suffix: path} of the images in a folder."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return {}
    images = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in images:
            problems.append(f"{path}: goes by the same name as {images[path.stem].name}; keep one")
        images[path.stem] = path
    if not images:
        problems.append(f"{folder}: holds no .jpg, .jpeg or .png")
    return images


def _check_headers(pair, for_training):
    """The pair with its size, and the list of what is wrong with it."""
    problems, sizes = [], {}
    for path in filter(None, (pair.photo, pair.depth, pair.bokeh)):
        try:
            with Image.open(path, formats=FORMATS) as image:
                sizes[path] = image.size
                wrong = _wrong_format(image, "L" if path == pair.depth else "RGB")
                problems += [f"{path}: {wrong}"] if wrong else []
        except UNREADABLE as error:
            problems.append(f"{path}: is not a readable JPEG or PNG ({_reason(error)})")
    size = sizes.get(pair.photo)
    if not size:
        return pair, problems
    half = size[0] // 2, size[1] // 2
    if sizes.get(pair.depth, half) != half:
        problems.append(f"{pair.depth}: is {_size_text(sizes[pair.depth])}, half of {pair.photo} is {_size_text(half)}")
    if sizes.get(pair.bokeh, size) != size:
        problems.append(f"{pair.bokeh}: is {_size_text(sizes[pair.bokeh])}, {pair.photo} is {_size_text(size)}")
    smallest = 2 * PATCH if for_training else 2
    if min(size) < smallest:
        problems.append(f"{pair.photo}: is {_size_text(size)}, at least {_size_text((smallest, smallest))} is needed")
    return pair._replace(size=size), problems


def _numeric_order(text):
    parts = re.split(r"([0-9]+)", text)  # text, number, text, number, ... text
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _reason(error):
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _size_text(size):
    return f"{size[0]} x {size[1]}"


# One photo -----------------------------------------------------------------------------------------------------------


def load_input(pair):
    """The network's input for a whole photo: uint8 (height / 2, width / 2, 4), 0-255, RGB and depth (or RGB alone).

    The photo is halved with Pillow's bicubic filter, odd sizes are rounded down. DataError names a damaged file.
    """
    return _with_depth(read_image(pair.photo, "RGB", pair.size), pair.depth,
                       lambda path, size: read_image(path, "L", size))


def load_target(pair, level):
    """The whole bokeh photo at the size of `level`'s output: uint8 (height / s, width / s, 3), s = 2^(level - 1)."""
    bokeh = read_image(pair.bokeh, "RGB", pair.size)
    return np.asarray(_resize(bokeh, bokeh.width >> (level - 1), bokeh.height >> (level - 1)))


def load_patch(pair, level, left, top):
    """A training pair: the input's patch at (left, top) and the matching square of the bokeh photo.

    Args:
      pair: a `Pair` with a target.
      level: of the network, 1-7.
      left, top: of the patch, in pixels of the photo at half size.

    Returns:
      input: uint8 (512, 512, 4), RGB and depth; (512, 512, 3) without depth.
      target: uint8 (s, s, 3), RGB, s = 1024 / 2^(level - 1).

    Raises:
      DataError: a file is damaged; it names the file.
    """
    parts, target = load_parts(pair, level, left, top)
    return _stack_channels(parts), target


def load_parts(pair, level, left, top):
    """`load_patch` with the input in parts, [photo (512, 512, 3), depth (512, 512, 1) if any]; none need be contiguous."""
    photo, depth, bokeh = contents = [path and _content(path) for path in (pair.photo, pair.depth, pair.bokeh)]
    _check_contents(pair, *contents)
    parts = [_halved_patch(photo, pair, left, top)]
    if pair.depth:
        depth = np.asarray(_decode(depth, pair.depth, "L", (pair.size[0] // 2, pair.size[1] // 2)))
        parts.append(_cut(depth, left, top, PATCH)[..., np.newaxis])
    return parts, _target(bokeh, pair, level, left, top)


def _is_halved_by_shrink(size):
    width, height = size
    return width % 2 == height % 2 == 0 and height <= 2 * width


def _halved_patch(content, pair, left, top):
    if not _is_halved_by_shrink(pair.size):
        width, height = pair.size
        return _cut(np.asarray(_resize(_decode(content, pair.photo, "RGB"), width // 2, height // 2)), left, top, PATCH)
    window = _window(pair.size, left, top)
    halved = shrink(_decode_window(content, pair.photo, window), 2)
    return _cut(halved, left - window.left // 2, top - window.top // 2, PATCH)


def _target(content, pair, level, left, top):
    window = _window(pair.size, left, top)
    square = _cut(np.asarray(_decode_window(content, pair.bokeh, window)),
                  2 * left - window.left, 2 * top - window.top, 2 * PATCH)
    return square if level == 1 else shrink(square, 2 ** (level - 1))


def _check_contents(pair, photo, depth, bokeh):
    """DataError if a file's content is damaged, or photo and bokeh photo do not resemble each other.

    Contents that were once found sound in this process are known by their checksums.
    """
    checksums = tuple(zlib.crc32(content) for content in (photo, depth or b"", bokeh))
    if checksums in _sound_contents:
        return
    if pair.depth:
        _decode(depth, pair.depth, "L", (pair.size[0] // 2, pair.size[1] // 2), verify=True)
    eighths = [_decode_eighth(photo, pair.photo, pair.size), _decode_eighth(bokeh, pair.bokeh, pair.size)]
    if resemblance(*eighths, cell=8) < LEAST_RESEMBLANCE:
        raise DataError(f"{pair.photo}: does not resemble {pair.bokeh}; one of them is damaged or of another scene")
    _sound_contents.add(checksums)


_sound_contents = set()  # the (photo, depth, bokeh) checksums that `_check_contents` has passed


def resemblance(photo, bokeh, cell=64):
    """How much two Pillow RGB images of one size look alike from far: the correlation of their means over square cells.

    `cell`: its side in pixels, 64 for whole photos, 8 for photos decoded at an eighth of their size.
    Pairs of one scene are well above 0.8, photos of different scenes around 0. Where one has too little contrast to tell
    it is 1, but 0 if the other has plenty. It finds what a JPEG decoder does not: bits that flipped, which turn the rest
    of the picture into something else.
    """
    far = [np.asarray(image.reduce(cell), np.float32).ravel() for image in (photo, bokeh)]
    low, high = sorted(float(values.std()) for values in far)
    if low < LEAST_CONTRAST:
        return 0.0 if high > MUCH_CONTRAST else 1.0
    return float(np.corrcoef(*far)[0, 1])


def target_side(level):
    """Height and width of a training target of `level`: 1024 for level 1, 16 for level 7."""
    return 2 * PATCH >> (level - 1)


def read_image(path, mode, size=None):
    """Decodes a whole image file as Pillow's "RGB" or "L".

    DataError where it is damaged, of a format that `find_training_pairs` rejects, or not of the (width, height) given.
    """
    return _decode(_content(path), path, mode, size, verify=True)


def _content(path):
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: is damaged ({_reason(error)})") from None


def _decode(content, path, mode, size=None, verify=False, draft=False):
    """`read_image` from a file's content. `verify` looks at a PNG's checksums, which decoding alone does not.

    `draft` decodes a JPEG at an eighth of its size, in half the time.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            wrong = _wrong_format(image, mode)
            if wrong or size and image.size != size:
                raise DataError(f"{path}: {wrong or f'is {_size_text(image.size)}, not {_size_text(size)}'}")
            if verify and image.format == "PNG":
                with Image.open(io.BytesIO(content), formats=FORMATS) as whole:
                    whole.verify()
            if draft:
                image.draft(None, (1, 1))
            return image.convert(mode)
    except UNREADABLE as error:
        raise DataError(f"{path}: is damaged ({_reason(error)})") from None


def _decode_eighth(content, path, size):
    image = _decode(content, path, "RGB", size, verify=True, draft=True)
    return image.reduce(8) if image.size == size else image


def _wrong_format(image, mode):
    """Why an opened image cannot serve as a photo ("RGB") or a depth map ("L"); None if it can."""
    if image.mode not in MODES[mode]:
        return f"has the pixel format {image.mode}; convert it to 8-bit {'grey' if mode == 'L' else 'RGB'}"
    if image.format == "PNG" and getattr(image, "is_animated", False):
        return "is an animation"
    return None


def _with_depth(photo, depth, read_depth):
    """The photo at half size, stacked with read_depth(depth, its size); alone where `depth` is None."""
    half = _resize(photo, photo.width // 2, photo.height // 2)
    return np.dstack([half, read_depth(depth, half.size)]) if depth else np.asarray(half)


def _resize(image, width, height):
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


# Own photos ----------------------------------------------------------------------------------------------------------


OWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".bmp", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf")
OWN_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # by content; JPEG with the MPO of phones, which has a preview behind it
OWN_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr")  # with 8 bits or 1
GREY_16_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg", ".webp")
SMALLEST_OWN = 64  # pixels of a photo's shorter side
SIDEWAYS_TOLERANCE = 0.05  # of the aspect, for a depth map that was made of a photo before it was turned upright
UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are no UTF-8
WHITE_OR_BLACK = 262  # TIFF 6.0: PhotometricInterpretation, 0 where 0 is white
DATE_TAG, EXIF_TAGS = 0x0132, 0x8769  # EXIF 2.32: date and time of change; where the tags of the shot lie
SHOT_DATE_TAGS = (0x9003, 0x9004, 0x9010, 0x9011, 0x9012)  # taken, digitised, and the offsets from UTC of all three
UNREADABLE_OWN = (*UNREADABLE, EOFError, LookupError, OverflowError, MemoryError, TypeError, struct.error, zlib.error,
                  tokenize.TokenError)  # what Pillow and NumPy raised on a few thousand damaged files


def find_own_photos(images_dir):
    """{name without suffix: path} of the photos in a folder, or of a single file, in numeric order.

    Photos are .jpg, .jpeg, .png, .webp, .tif and .tiff in either case; other files and hidden ones are passed over.

    Raises:
      DataError: there is no such folder or file, it holds no photo, or photos go by the same name.
    """
    return _own_files(images_dir, OWN_SUFFIXES, "photo")


def find_own_pairs(images_dir, depth_dir):
    """The photos of `images_dir` with their depth maps, and the paths of those that have none. With None as `depth_dir` none
    needs one.

    Each of the two is a folder or a single file; the depth map has the photo's name, but for the suffix (that of a single
    photo may be any file). Returns ([`Pair` with neither target nor size], [path]). DataError as in `find_own_photos`,
    and where two depth maps go by the same name.
    """
    photos = find_own_photos(images_dir)
    if depth_dir is None:
        return [Pair(name, path, depth=None, bokeh=None, size=None) for name, path in photos.items()], []
    if not pathlib.Path(depth_dir).exists():
        return [], list(photos.values())
    depths = _own_files(depth_dir, DEPTH_SUFFIXES, "depth map", may_be_empty=True)
    if len(photos) == 1 and pathlib.Path(depth_dir).is_file():
        depths = {name: depth for name in photos for depth in depths.values()}
    pairs = [Pair(name, path, depths[name], bokeh=None, size=None) for name, path in photos.items() if name in depths]
    return pairs, [path for name, path in photos.items() if name not in depths]


def _own_files(place, suffixes, what, may_be_empty=False):
    folder = pathlib.Path(place)
    if not folder.exists():
        raise DataError(f"{place}: no such folder or {what}")
    paths = [folder] if folder.is_file() else [path for path in folder.iterdir() if not path.name.startswith(".")]
    files, problems = {}, []
    for path in sorted(paths, key=lambda path: _numeric_order(path.name)):
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if UNPRINTABLE.search(path.name):
            problems.append(f"{ascii(str(path))}: has a name that cannot be printed; rename it")
        elif path.stem in files:
            problems.append(f"{path}: goes by the same name as {files[path.stem].name}; rename one of the two")
        files[path.stem] = path
    if not files and not may_be_empty:
        problems.append(f"{place}: {'is' if folder.is_file() else 'holds'} no {what} ({', '.join(suffixes)})")
    if problems:
        raise DataError("\n  ".join(problems))
    return files


def passed_over(images_dir):
    """The files of a folder whose endings are those of photos in formats that are not read, such as phones' HEIC."""
    folder = pathlib.Path(images_dir)
    return sorted(path for path in (folder.iterdir() if folder.is_dir() else ()) if path.suffix.lower() in OTHER_SUFFIXES)


def header_size(path):
    """(width, height) of a photo as its header says, before EXIF's orientation; None where it cannot be read."""
    try:
        with Image.open(path, formats=OWN_FORMATS) as image:
            return image.size
    except UNREADABLE_OWN:
        return None


def load_own_input(pair, max_side=None):
    """The network's input for an own photo, made as `load_input` does it from a photo of the data set.

    Args:
      pair: of `find_own_pairs`.
      max_side: the photo is made smaller where a side of it is longer, in pixels.

    Returns:
      input: uint8 (height / 2, width / 2, 4), RGB and depth, 0-255; RGB alone without depth.
      size: (width, height) of the upright photo that is rendered.
      info: its colour profile and EXIF dates, see `read_own_photo`.

    Raises:
      DataError: the photo or its depth map is damaged, or too small; it names the file and the reason.
    """
    photo = read_own_photo(pair.photo)
    size, info = photo.size, photo.info
    if max_side and max(size) > max_side:
        photo = _resize(photo, *(max(1, round(side * max_side / max(size))) for side in size))
    if min(photo.size) < SMALLEST_OWN:
        scaled = f", {_size_text(photo.size)} with max_side={max_side}" if photo.size != size else ""
        raise DataError(f"{pair.photo}: is {_size_text(size)}{scaled}; each side needs at least {SMALLEST_OWN} pixels")
    return _with_depth(photo, pair.depth, read_depth_map), photo.size, info


def read_depth_map(path, size):
    """Reads a depth map of any size as uint8 (height, width), bright = near; `size` is the (width, height) wanted.

    8 bits stay as they are. Other numbers (16 bits, float) are spread so that the least becomes 0 and the greatest 255;
    those that are not finite count as the least. Resized with Pillow's bicubic filter.

    Raises:
      DataError: the file is damaged, holds no numbers of one channel, or lies on its side; it names the file.
    """
    try:
        depth = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _depth_pixels(path)
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no PNG, TIFF, JPEG, WebP or .npy depth map, or its beginning is damaged") from None
    except UNREADABLE_OWN as error:
        raise DataError(f"{path}: is no readable depth map ({_reason(error)})") from None
    shape = np.shape(depth)
    depth = np.squeeze(depth)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {depth.dtype} of shape {shape}; a depth map has one number for each pixel")
    height, width = depth.shape
    if _lies_on_its_side((width, height), size):
        raise DataError(f"{path}: is {_size_text((width, height))} and lies on its side, its photo turned upright by EXIF "
                        f"is {_size_text(size)} at half size; turn the depth map")
    if depth.dtype != np.uint8:
        depth = _spread(depth, path)
    resized = np.asarray(_resize(Image.fromarray(depth), *size))
    return resized if resized.dtype == np.uint8 else np.uint8(np.clip(np.round(resized), 0, 255))


def _depth_pixels(path):
    with open(path, "rb") as file, Image.open(file, formats=OWN_FORMATS) as image:
        if image.mode in (*GREY_16_BIT_MODES, "I", "F"):
            return np.array(image)
        if image.mode not in OWN_MODES:
            raise ValueError(f"it has the pixel format {image.mode}")
        return np.array(image.convert("L"))


def _lies_on_its_side(size, wanted):
    """Whether width and height are swapped: one is upright, the other not, and turned they would fit."""
    ratio, wanted_ratio = size[0] / size[1], wanted[0] / wanted[1]
    return (ratio - 1) * (wanted_ratio - 1) < 0 and abs(ratio * wanted_ratio - 1) < SIDEWAYS_TOLERANCE


def _spread(depth, path):
    """Numbers of any range as float32 0-255."""
    depth = depth.astype(np.float64)
    finite = depth[np.isfinite(depth)]
    if not finite.size:
        raise DataError(f"{path}: holds no finite number")
    least, greatest = finite.min(), finite.max()
    depth = np.clip(np.where(np.isfinite(depth), depth, least), least, greatest)
    return np.float32(255 * ((depth - least) / ((greatest - least) or 1)))


def read_own_photo(path):
    """Decodes any photo as an upright 8-bit Pillow image, mode "RGB".

    EXIF's orientation is applied. Of 16 bits the upper 8 are taken. Transparent parts are laid on white. CMYK and grey go
    through their colour profile where they bring one. Of several pages or frames it is the first.

    Returns:
      A Pillow image whose `info` holds at most "icc_profile" (of its RGB) and "exif" (the photo's dates and no more).

    Raises:
      DataError: the file is damaged, or no photo of 8 or 16 bits; it names the file and the reason.
    """
    try:
        # A file and not a path: Pillow 13 maps uncompressed TIFFs into memory before it turns them, and mixes up the sides.
        with open(path, "rb") as file, Image.open(file, formats=OWN_FORMATS) as image:
            if image.format == "PNG":
                with Image.open(path, formats=OWN_FORMATS) as whole:
                    whole.verify()  # decoding alone does not look at the checksums
            image.load()
            if image.mode not in OWN_MODES + GREY_16_BIT_MODES:
                raise DataError(f"{path}: has the pixel format {image.mode}; save it with 8 or 16 bits, as RGB or grey")
            if image.mode in GREY_16_BIT_MODES and getattr(image, "tag_v2", {}).get(WHITE_OR_BLACK) == 0:
                # Pillow would give it inverted
                raise DataError(f"{path}: is a TIFF of 16 bits in which 0 is white; save it with black as 0")
            upright, dates = _apply_exif(image)
            photo, profile = _to_rgb(upright), upright.info.get("icc_profile")
    except Image.DecompressionBombError:
        raise DataError(f"{path}: has more pixels than Pillow decodes; make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no JPEG, PNG, WebP or TIFF of 8 or 16 bits, or its beginning is damaged") from None
    except UNREADABLE_OWN as error:
        raise DataError(f"{path}: is damaged ({_reason(error)})") from None
    photo, profile = _to_rgb_profile(upright, photo, profile)
    photo.info = {name: value for name, value in (("icc_profile", profile), ("exif", dates)) if value}
    return photo


def _to_rgb(image):
    """An image of any of the modes above as "RGB", its transparent parts on white."""
    if image.mode in GREY_16_BIT_MODES:
        image = Image.fromarray(np.uint8(np.asarray(image) >> 8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_rgb_profile(image, photo, profile):
    """(photo, profile) for the RGB `photo` made of `image`: a profile of CMYK or grey is applied, one of RGB kept."""
    if not profile:
        return photo, None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        if space == "RGB":
            return photo, profile
        if space == "GRAY" and image.mode in ("1", "L", "LA", "La", *GREY_16_BIT_MODES):
            image = photo.getchannel(0)
        if image.mode == {"CMYK": "CMYK", "GRAY": "L"}.get(space):
            photo = ImageCms.profileToProfile(image, opened, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        pass  # a damaged profile: the photo is read as if it had none
    return photo, None


def _apply_exif(image):
    """(the image upright, EXIF with its dates only); where its EXIF is damaged it is taken as it is."""
    try:
        return ImageOps.exif_transpose(image), _exif_dates(image)
    except UNREADABLE_OWN:
        return image, None


def _exif_dates(image):
    """The dates among a photo's EXIF tags, as bytes of EXIF; None where it has none."""
    tags, dates = image.getexif(), Image.Exif()
    shot = {tag: value for tag, value in tags.get_ifd(EXIF_TAGS).items() if tag in SHOT_DATE_TAGS}
    if DATE_TAG in tags:
        dates[DATE_TAG] = tags[DATE_TAG]
    if shot:
        dates[EXIF_TAGS] = shot
    return dates.tobytes() if len(dates) else None


# What a patch needs of a photo ---------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A rectangle of a photo, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def _window(size, left, top):
    """Around a patch; of one size wherever it lies, because `shrink` is compiled for each size."""
    lengths = [min(side, 2 * (PATCH + MARGIN)) for side in size]
    starts = [min(max(2 * start - MARGIN, 0), side - length)
              for start, side, length in zip((left, top), size, lengths)]
    return Window(*starts, *lengths)


def _decode_window(content, path, window):
    """Decodes a `Window` of a sound RGB image file: uint8 (window.height, window.width, 3), an array or a tensor.

    The pixels are Pillow's, but for the outermost ones: where the window ends inside of the photo, the decoder does not
    know the colours beyond.
    """
    import tensorflow as tf  # here, because wrong arguments and files are answered before TensorFlow is imported

    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        is_usual = (image.format, image.mode) == ("JPEG", "RGB")
    if is_usual:
        box = [window.top, window.left, window.height, window.width]
        try:
            return tf.io.decode_and_crop_jpeg(content, box, channels=3, dct_method="INTEGER_ACCURATE")
        except tf.errors.OpError:
            pass  # Pillow is more patient with some damages
    rows, columns = np.s_[window.top:window.top + window.height], np.s_[window.left:window.left + window.width]
    return np.asarray(_decode(content, path, "RGB"))[rows, columns]


def shrink(image, factor):
    """Pillow's bicubic `resize` to 1 / factor of both sides, to the very same pixels in a third to a half of the time.

    Args:
      image: uint8 (height, width, 3), an array or a tensor; both sides multiples of the factor, and at least 5 of it.
      factor: a power of 2, 2 or more.

    Returns:
      uint8 (height / factor, width / factor, 3). Pillow begins with the rows, as here, unless height > 2 width.
    """
    import tensorflow as tf
    with tf.device("CPU"):
        return _compiled_shrink(tuple(image.shape), factor)(tf.convert_to_tensor(image)).numpy()


def compile_ahead(pairs, level):
    """Begins in a thread to compile what `load_patch` needs for the first of the pairs at a level, while something else
    is prepared; `load_patch` itself waits for it, or compiles what is missing."""
    shapes = [((2 * PATCH, 2 * PATCH, 3), 2 ** (level - 1))] if level > 1 else []
    if _is_halved_by_shrink(pairs[0].size):
        window = _window(pairs[0].size, 0, 0)
        shapes.append(((window.height, window.width, 3), 2))

    def compile_all():
        for shape, factor in shapes:
            _compiled_shrink(shape, factor)

    threading.Thread(target=compile_all).start()


_compiling = threading.Lock()


def _compiled_shrink(shape, factor):
    """`shrink` compiled by XLA for images of one shape, once for all threads."""
    with _compiling:
        return _compile_shrink(shape, factor)


@functools.cache
def _compile_shrink(shape, factor):
    import tensorflow as tf

    def shrink_both_sides(image):
        narrow = _weigh(image, factor)
        return tf.reshape(_weigh(tf.reshape(narrow, (1, shape[0], -1)), factor), (shape[0] // factor, -1, 3))

    function = tf.function(shrink_both_sides, jit_compile=True, autograph=False)
    compiled = function.get_concrete_function(tf.TensorSpec(shape, tf.uint8))
    with tf.device("CPU"):
        compiled(tf.zeros(shape, tf.uint8))  # the first call is what compiles
    return compiled


def _weigh(image, factor):
    """One pass of Pillow's `resize`, along the middle axis: uint8 (n, length, m) to uint8 (n, length / factor, m).

    A result is a sum over the 4 factor pixels around it, and thus over four blocks of `factor` pixels. The pixels of a
    block are taken in segments: the segments are added up first, place by place, then the places of the sum.
    """
    import tensorflow as tf
    rows, length, columns = image.shape
    weights, span = _bicubic_weights(length, factor), 4 * factor
    segment = {2: 1, 4: 1, 8: 4}.get(factor, 16)  # the quickest of 1, 2, 4 ... factor

    def weigh(first, count, weights):
        """`count` results from the one whose pixels begin at `first`."""
        sums = 0
        for place in range(0, span, segment):
            start, within = first + place - place % factor, place % factor
            blocks = tf.reshape(image[:, start:start + count * factor], (rows, count, factor, columns))
            pixels = tf.cast(blocks[:, :, within:within + segment], tf.int32)
            sums += pixels * weights[place:place + segment, np.newaxis]
        return sum(sums[:, :, place] for place in range(segment))

    last, inner = length - span, factor // 2
    totals = tf.concat([  # the first and the last two have fewer pixels around them, and so other weights
        *(weigh(0, 1, weights[result, :span]) for result in (0, 1)),
        weigh(inner, length // factor - 4, weights[2, inner:inner + span]),
        *(weigh(last, 1, weights[result, last:]) for result in (-2, -1))], 1)
    rounded = tf.bitwise.right_shift(totals + (1 << WEIGHT_BITS - 1), WEIGHT_BITS)
    return tf.cast(tf.clip_by_value(rounded, 0, 255), tf.uint8)


def _bicubic_weights(length, factor):
    """Pillow's: int32 (length / factor, length), the weights of all pixels for each result, in units of
    2^-WEIGHT_BITS.

    The filter is Keys' cubic convolution with a = -1/2 (IEEE Trans. ASSP 29, 1981), stretched by the factor; the
    weights of a result are normalised to a sum of 1, then rounded.
    """
    results, pixels = np.ogrid[:length // factor, :length]
    x = np.abs((pixels + 0.5) / factor - (results + 0.5))
    keys = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    weights = keys / keys.sum(1, keepdims=True) * 2 ** WEIGHT_BITS
    return np.int32(np.trunc(weights + np.copysign(0.5, weights)))


def _cut(image, left, top, side):
    return image[top:top + side, left:left + side]


def _stack_channels(images):
    """One contiguous copy of images (height, width, channels) with the channels of all."""
    if len(images) == 1 and images[0].strides[1:] == (images[0].shape[2], 1):  # whole rows
        return images[0].copy()
    channels = [image[..., channel] for image in images for channel in range(image.shape[2])]
    stacked = np.empty((*channels[0].shape, len(channels)), np.uint8)
    for number, channel in enumerate(channels):  # one by one, which numpy does fastest
        stacked[..., number] = channel
    return stacked


# Streams of batches --------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """inputs uint8 (images, 512, 512, 4; 3 without depth), targets uint8 (images, s, s, 3), and the photos' names."""

    inputs: np.ndarray
    targets: np.ndarray
    names: list


class DamagedPhotos:
    """Names each damaged photo once on stderr; DataError when they are more than 1% of the photos (and more than 1)."""

    def __init__(self, count):
        self._limit = max(1, count // 100)
        self._seen = set()
        self._lock = threading.Lock()

    def add(self, pair, error):
        with self._lock:
            if pair.name in self._seen:
                return
            self._seen.add(pair.name)
            if len(self._seen) > self._limit:
                raise DataError(f"{error}; with it {len(self._seen)} photos are damaged, too many to go on: "
                                "python -m tools.check_dataset lists them all") from None
        utils.warn(f"{error}; it is left out from now on ({len(self._seen)} damaged so far)")


def training_batches(pairs, level, batch_size, train_size, first, last, seed=0, places=None):
    """Yields the `Batch`es of iterations `first` to `last`, decoded ahead in parallel.

    `places` is the range of each batch to load, None for all of it.

    Which photos are in a batch, and their patches, quarter turns and flips, depends on the arguments and the number of
    the iteration only. The next pair takes the place of one that is damaged.

    Raises:
      DataError: too many photos are damaged (see `DamagedPhotos`).
    """
    damaged = DamagedPhotos(len(pairs))
    places = range(batch_size) if places is None else places

    def draws():
        for iteration in range(first, last + 1):
            chosen = _photos_of_batch(len(pairs), level, batch_size, train_size, iteration, seed)
            for place in places:
                yield chosen[place], [seed, level, iteration, place]

    def load(draw):
        index, entropy = draw
        for pair in pairs[index:] + pairs[:index]:
            random = np.random.default_rng(entropy)
            try:
                parts, target = load_parts(pair, level, *_random_corner(pair, random))
            except DataError as error:
                damaged.add(pair, error)
                continue
            return pair.name, *_augment(parts, target, random)
        raise DataError("all training photos are damaged")

    yield from _batches(load, draws(), len(places))


def test_batches(pairs, level, batch_size, damaged=None):
    """Yields `Batch`es with the patch in the middle of every pair, in order; the last may be smaller.

    `damaged`: the `DamagedPhotos` that counts and leaves out what cannot be read; without it that is a DataError.
    """
    def load(pair):
        left, top = (side // 2 - PATCH >> 1 for side in pair.size)
        try:
            return pair.name, *load_patch(pair, level, left, top)
        except DataError as error:
            if damaged is None:
                raise
            damaged.add(pair, error)
            return None

    yield from _batches(load, pairs, batch_size)


def stream(load, items, ahead):
    """Yields load(item) for every item, in order, while up to `ahead` more are loaded in threads."""
    with concurrent.futures.ThreadPoolExecutor(processors()) as pool:
        pending = collections.deque()
        try:
            for item in items:
                pending.append(pool.submit(load, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(load, items, batch_size):
    parts = []
    for part in stream(load, items, ahead=batch_size + processors()):
        parts += [part] if part else []
        if len(parts) == batch_size:
            yield _batch(parts)
            parts = []
    if parts:
        yield _batch(parts)


def _batch(parts):
    names, inputs, targets = zip(*parts)
    return Batch(np.stack(inputs), np.stack(targets), list(names))


def _photos_of_batch(count, level, batch_size, train_size, iteration, seed):
    """Indices of the photos of a batch. For every 1000 iterations `train_size` of all `count` photos are drawn; they
    are gone through in random order, each once before any comes again."""
    window, place = divmod(iteration - 1, DRAW_EVERY)
    drawn = np.random.default_rng([seed, level, window]).permutation(count)[:train_size]
    start, stop = place * batch_size, (place + 1) * batch_size
    first_pass, last_pass = start // len(drawn), (stop - 1) // len(drawn)
    passes = [np.random.default_rng([seed, level, window, number]).permutation(drawn)
              for number in range(first_pass, last_pass + 1)]
    return np.concatenate(passes)[start - first_pass * len(drawn):][:batch_size]


def _random_corner(pair, random):
    left, top = (int(random.integers(side // 2 - PATCH + 1)) for side in pair.size)
    return left, top


def _augment(parts, target, random):
    """(input, target) with random quarter turns and an up-down flip, the same for both."""
    turns, flip = random.integers(4), random.integers(2)
    turned = [np.rot90(image, turns) for image in (*parts, target)]
    *parts, target = [np.flipud(image) if flip else image for image in turned]
    return _stack_channels(parts), _stack_channels([target])


def processors():
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
