"""How any photo with its depth map becomes the network's input.

A photo of any common format is read upright, in its colours, with 8 bits for each channel. A depth map of any size and
number type is brought to half the photo's size, 8 bits, bright = near.
"""

import pathlib

import numpy as np
from PIL import Image, ImageOps

import load_dataset
from load_dataset import Pair, size_text
from support import embedded_depth
from utils import DataError, warn

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".jpg", ".jpeg", ".webp")
UNSUPPORTED_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".bmp", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # by content; JPEG with the MPO of phones, which has a preview behind it
MODES_OF_NUMBERS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow, with one channel of more than 8 bits
SMALLEST_SIDE = 64  # pixels of a photo's shorter side
SIDEWAYS_TOLERANCE = 0.05  # of the aspect, for a depth map that was made of a photo before it was turned upright
DATE_TAG, EXIF_TAGS = 0x0132, 0x8769  # EXIF 2.32: date and time of change; where the tags of the shot lie
SHOT_DATE_TAGS = (0x9003, 0x9004, 0x9010, 0x9011, 0x9012)  # taken, digitised, and the offsets from UTC of all three
PROFILE_SPACE = slice(16, 20)  # ICC.1: bytes of a colour profile that name its colour space


def find_photos(images_dir, suffixes=SUFFIXES):
    """Returns {name without suffix: path} of the photos in a folder, or of a single file, in numeric order.

    Other files and hidden ones are ignored. Raises DataError where there is no photo, or two have the same name.
    """
    photos = _find_files(images_dir, suffixes)
    if not photos:
        raise DataError(f"{images_dir}: no photo found ({', '.join(suffixes)})")
    return photos


def find_pairs(images_dir, depth_dir, use_depth=True, suffixes=SUFFIXES, depth_suffixes=DEPTH_SUFFIXES):
    """Finds photos and their depth maps, which have the same name but for the suffix.

    Both are folders, or a single photo and its depth map of any name. Without depth_dir, depth maps inside the photos
    are used; these `Pair`s have the photo's path as `map`. Raises DataError as in `find_photos`.
    Returns a list of `Pair`s with neither target nor size, and a list of the paths of photos without a depth map.
    """
    photos = find_photos(images_dir, suffixes)
    if not use_depth:
        depths = dict.fromkeys(photos)
    elif not depth_dir:
        depths = {name: path for name, path in photos.items() if embedded_depth.contains(path)}
    elif len(photos) == 1 and pathlib.Path(depth_dir).is_file():
        depths = dict.fromkeys(photos, pathlib.Path(depth_dir))
    else:
        depths = _find_files(depth_dir, depth_suffixes)
    kind = "depth" if use_depth else None
    pairs = [Pair(name, path, depths[name], None, None, kind) for name, path in photos.items() if name in depths]
    return pairs, [path for name, path in photos.items() if name not in depths]


def _find_files(place, suffixes):
    place, files = pathlib.Path(place), {}
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    paths = [place] if place.is_file() else place.glob("[!.]*")
    for path in sorted(paths, key=lambda path: load_dataset.numeric_order(path.name)):
        if path.suffix.lower() not in suffixes or not path.is_file():
            continue
        if path.stem in files:
            raise DataError(f"{path}: has the same name as {files[path.stem].name}; rename one of the two")
        files[path.stem] = path
    return files


def find_photos_to_render(settings, use_depth):
    """Finds the photos that test_model.py is to render.

    Returns (`Pair`s, a text for each photo that cannot be rendered). Raises DataError where none can.
    """
    images_dir, depth_dir = settings.images_dir, settings.depth_dir
    pairs, without_depth = find_pairs(images_dir, depth_dir, use_depth)
    place = f"in {depth_dir}" if depth_dir else "inside, and depth_dir=FOLDER is not given"
    problems = [f"{path}: has no depth map {place}; python -m tools.make_depth_maps makes it" for path in without_depth]
    problems += [f"{path}: is of a format that cannot be read; save it as JPEG, PNG, WebP or TIFF"
                 for path in sorted(pathlib.Path(images_dir).glob("*")) if path.suffix.lower() in UNSUPPORTED_SUFFIXES]
    if not pairs:
        raise DataError("\n  ".join(problems))
    for problem in problems:
        warn(problem, kind="error")
    if use_depth and not depth_dir:
        print("Depth maps: inside", ", ".join(pair.photo.name for pair in pairs))
    return pairs, problems


def load_input(pair, max_side=None):
    """Makes the network's input of a photo, as `load_dataset.load_input` does of one in the data set.

    A photo with a longer side than `max_side`, in pixels, is made smaller. Raises DataError where the photo or its
    depth map is damaged or too small.

    Returns:
      input: uint8 (height / 2, width / 2, channels), RGB and depth, 0-255; RGB alone without depth.
      size: (width, height) of the upright photo that is rendered.
      info: its colour profile and EXIF dates, see `read_photo`.
    """
    photo = read_photo(pair.photo)
    info = photo.info
    if max_side and max(photo.size) > max_side:
        scale = max_side / max(photo.size)
        photo = load_dataset.resize(photo, tuple(max(1, round(side * scale)) for side in photo.size))
    if min(photo.size) < SMALLEST_SIDE:
        resized = f" with max_side={max_side}" if max_side else ""
        raise DataError(f"{pair.photo}: is {size_text(photo.size)}{resized}; each side must have at least "
                        f"{SMALLEST_SIDE} pixels")
    half = load_dataset.halve(photo)
    if pair.map == pair.photo:
        depth = _fit_to_photo(embedded_depth.read(pair.photo), half.size, f"{pair.photo}: the depth map in it")
    else:
        depth = pair.map and read_depth_map(pair.map, half.size)
    return load_dataset.stack(half, None if depth is None else Image.fromarray(depth)), photo.size, info


# Photos --------------------------------------------------------------------------------------------------------------


def read_photo(path):
    """Decodes any photo as an upright 8-bit Pillow image of mode "RGB".

    EXIF's orientation is applied. Of 16 bits the upper 8 are taken, of several pages or frames the first. The image's
    `info` holds at most "icc_profile" (of RGB) and "exif" (dates and no more). Raises DataError where the file is
    damaged, or no photo of 8 or 16 bits.
    """
    try:
        # A file, not a path: Pillow 13 maps uncompressed TIFFs into memory before turning them, and mixes up the sides.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            image.load()
            upright, dates = _apply_exif(image)
            photo = _convert_to_rgb(upright)
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{path}: is damaged, or no JPEG, PNG, WebP or TIFF of 8 or 16 bits ({error})") from None
    profile = image.info.get("icc_profile") or b""
    photo.info = {"icc_profile": profile} if profile[PROFILE_SPACE] == b"RGB " else {}
    if dates:
        photo.info["exif"] = dates
    return photo


def _apply_exif(image):
    """Returns the image upright, and EXIF bytes with its dates only; the image as it is where its EXIF is damaged."""
    try:
        tags, dates = image.getexif(), Image.Exif()
        if DATE_TAG in tags:
            dates[DATE_TAG] = tags[DATE_TAG]
        shot = {tag: value for tag, value in tags.get_ifd(EXIF_TAGS).items() if tag in SHOT_DATE_TAGS}
        if shot:
            dates[EXIF_TAGS] = shot
        return ImageOps.exif_transpose(image), dates.tobytes() if len(dates) else None
    except Exception:  # Pillow raises many kinds
        return image, None


def _convert_to_rgb(image):
    if image.mode in ("I", "F"):
        raise ValueError(f"pixel format {image.mode}; save it with 8 or 16 bits, as RGB or grey")
    if image.mode in MODES_OF_NUMBERS:
        image = Image.fromarray(np.uint8(np.asarray(image) >> 8))
    return image.convert("RGB")


# Depth maps ----------------------------------------------------------------------------------------------------------


def read_depth_map(path, size):
    """Reads a depth map of any size as uint8 (height, width), bright = near, resized to `size`, (width, height).

    8-bit values are kept. Other numbers (16 bits, float) are scaled so that the least becomes 0 and the greatest 255;
    NaN and infinity count as the least. Raises DataError where it is damaged, has several channels, or is on its side.
    """
    try:
        depth = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_depth_image(path)
    except Exception as error:  # Pillow and NumPy raise many kinds
        raise DataError(f"{path}: is damaged, or no PNG, TIFF, JPEG, WebP or .npy depth map ({error})") from None
    shape, depth = depth.shape, np.squeeze(depth)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {depth.dtype} of shape {shape}; a depth map has one number for each pixel")
    return _fit_to_photo(depth if depth.dtype == np.uint8 else _scale_to_255(depth, path), size, f"{path}:")


def _read_depth_image(path):
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        return np.array(image if image.mode in MODES_OF_NUMBERS else image.convert("L"))


def _scale_to_255(depth, path):
    """Returns float32 0-255 of numbers of any range."""
    depth = depth.astype(np.float64)
    finite = depth[np.isfinite(depth)]
    if not finite.size:
        raise DataError(f"{path}: holds no finite number")
    least, greatest = finite.min(), finite.max()
    depth = np.where(np.isfinite(depth), depth, least)
    return np.float32(255 * ((depth - least) / ((greatest - least) or 1)))


def _fit_to_photo(depth, size, name):
    """Resizes uint8 or float32 0-255 to uint8 of `size`. Raises DataError where it lies on its side."""
    (height, width), (photo_width, photo_height) = depth.shape, size
    fits_when_turned = abs((width / height) * (photo_width / photo_height) - 1) < SIDEWAYS_TOLERANCE
    if fits_when_turned and (width - height) * (photo_width - photo_height) < 0:
        raise DataError(f"{name} is {size_text((width, height))} and lies on its side: the upright photo is "
                        f"{size_text(size)} at half size; turn the depth map")
    resized = np.asarray(load_dataset.resize(Image.fromarray(depth), size))
    return np.uint8(np.clip(np.round(resized), 0, 255))
