"""How any photo with its depth map becomes the network's input.

A photo of any common format is read upright, in its colours, with 8 bits for each channel. A depth map of any size and
number type is brought to half the photo's size, 8 bits, bright = near.
"""

import hashlib
import io
import os
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

import load_dataset
import utils
from load_dataset import Pair, size_text
from support import dataset_files, depth_networks, embedded_depth
from support.depth_networks import OUTPUTS, PERCENTILES
from support.embedded_depth import ORIENTATION
from utils import DataError, first_line, warn

HEIF, AVIF = ("HEIF", "pillow-heif"), ("AVIF", "pillow>=11.3")  # formats and the packages that read them
REQUIREMENTS = {".heic": HEIF, ".heif": HEIF, ".hif": HEIF, ".avif": AVIF}
PATHS = str, os.PathLike
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", *REQUIREMENTS)
DEPTH_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz", ".pfm", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "WEBP", "TIFF")  # by content, beside those of phones
DEPTH_FORMATS = ("PNG", "TIFF", "JPEG", "WEBP", "PPM")  # PPM is PFM, too
MAX_NAMED = 3  # photos without a depth map; of more, their number
MAX_DEPTH_PIXELS = 2 ** 26  # of a depth map; its numbers take several times 8 bytes each
MAX_PROFILE = 2 ** 20  # bytes of a colour profile; Pillow, as it comes, opens no PNG with a larger one
MODES_OF_NUMBERS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow, with one channel of more than 8 bits
SMALLEST_SIDE = 64  # pixels of a photo's shorter side
LEARNED_SIDE, LARGEST_SIDE = 1536, 1920  # longer side of the photos of EBB!: usual, and above what any of them has
ASPECT_TOLERANCE = 0.05  # between a depth map and its photo
DATE_TAG, EXIF_TAGS = 0x0132, 0x8769  # EXIF 2.32: date and time of change; where the tags of the shot lie
SHOT_DATE_TAGS = (0x9003, 0x9004, 0x9010, 0x9011, 0x9012)  # taken, digitised, and the offsets from UTC of all three
PROFILE_SPACE = slice(16, 20)  # ICC.1: bytes of a colour profile that name its colour space


def find_photos(images_dir, suffixes=SUFFIXES):
    """Returns {name without suffix: path} of the photos in a folder, or of a single file, in numeric order.

    Photos that are left out are named with the reason; other files and hidden ones are ignored. Raises DataError where
    there is no photo.
    """
    photos, left_out = _find_files(images_dir, suffixes)
    if not photos:
        raise DataError("\n  ".join([f"{images_dir}: no photo found ({', '.join(suffixes)})", *left_out]))
    for text in left_out:
        warn(text)
    return photos


def find_pairs(images_dir, depth_dir, use_depth=True, suffixes=SUFFIXES, depth_suffixes=DEPTH_SUFFIXES):
    """Finds photos and their depth maps, which have the same name but for the suffix.

    Both are folders, or a single photo and its depth map of any name. Without depth_dir, depth maps inside the photos
    are used; these `Pair`s have the photo's path as `map`. Raises DataError as in `find_photos`.
    Returns a list of `Pair`s with neither target nor size, and a list of the paths of photos without a depth map.
    """
    photos, kind = find_photos(images_dir, suffixes), "depth" if use_depth else None
    if not use_depth:
        depths = dict.fromkeys(photos)
    elif not depth_dir:
        depths = {name: path for name, path in photos.items() if embedded_depth.contains(path)}
    elif len(photos) == 1 and pathlib.Path(depth_dir).is_file():
        depths = dict.fromkeys(photos, pathlib.Path(depth_dir))
    else:
        depths, left_out = _find_files(depth_dir, depth_suffixes)
        for text in left_out:
            warn(text)
    pairs = [Pair(name, path, depths[name], None, None, kind) for name, path in photos.items() if name in depths]
    return pairs, [path for name, path in photos.items() if name not in depths]


def _find_files(place, suffixes):
    """Returns {name: path} of the files in a folder, or of one file, and a list of texts about those left out."""
    place = pathlib.Path(place)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    if place.is_file():
        return {dataset_files.name_of(place): place} if place.suffix.lower() in suffixes else {}, []
    files, left_out = dataset_files.images_by_name(place, suffixes)
    return files, [f"{path}: {reason}" for path, reason in left_out.items()]


def find_photos_to_render(settings, use_depth):
    """Finds the photos that test_model.py is to render.

    Returns (`Pair`s, a text for each photo that cannot be rendered). Raises DataError where none can.
    """
    images_dir, depth_dir = settings.images_dir, settings.depth_dir
    pairs, without_depth = find_pairs(images_dir, depth_dir, use_depth)
    maps, failed = find_missing_maps(settings, pairs, without_depth) if without_depth else ({}, {})
    without_depth = [path for path in without_depth if path not in maps and path not in failed]
    pairs += [Pair(dataset_files.name_of(path), path, depth, None, None) for path, depth in maps.items()]
    pairs.sort(key=lambda pair: dataset_files.numeric_order(pair.name))
    place = f"in {depth_dir}" if depth_dir else "inside, and depth_dir=FOLDER is not given"
    used, files = {pair.map for pair in pairs}, pathlib.Path(depth_dir or images_dir).glob("[!.]*")
    others = [path.name for path in sorted(files) if depth_dir and path not in used]
    missing = [f"{path}: has no depth map {place}{dataset_files.nearest(path.stem, others)}; "
               "python -m tools.make_depth_maps makes it" for path in without_depth]
    shown = [*failed.values(), *missing]
    if len(missing) > MAX_NAMED:
        names = ", ".join(path.name for path in without_depth[:MAX_NAMED])
        shown = [*failed.values(), f"{images_dir}: {len(missing)} photos ({names} ...) have no depth map {place}; "
                            "python -m tools.make_depth_maps makes them"]
    if not pairs:
        raise DataError("\n  ".join(shown))
    for problem in shown:
        warn(problem, kind="error")
    inside = [pair.photo.name for pair in pairs if pair.map == pair.photo]
    if inside:
        utils.say(f"Depth maps: inside {', '.join(inside)}")
    return pairs, [*failed.values(), *missing, *_find_files(images_dir, SUFFIXES)[1]]


def find_missing_maps(settings, pairs, photos):
    """Finds the depth maps of photos that have none in depth_dir=: those inside them, or a depth network's.

    Returns {path of a photo: its depth map} and {path of a photo that failed: why}. Raises DataError where the network
    cannot be used, unless there are photos that can be rendered without it, such as `pairs`.
    """
    inside = {path: path for path in photos if settings.depth_dir and embedded_depth.contains(path)}
    others = [path for path in photos if path not in inside]
    if not others or settings.depth_is != "inverse":  # in one folder, the numbers of all maps have one meaning
        return inside, {}
    try:
        made, failed = make_depth_maps(others, settings.depth_model, settings.depth_dir)
    except DataError as error:
        if not pairs and not inside:
            raise
        warn(str(error), kind="error")
        return inside, {}
    return inside | made, failed


def make_depth_maps(photos, model, depth_dir=None):
    """Makes the depth maps of photos with a depth network, see `depth_networks.open_network`.

    They are kept in depth_dir, or in results/depth_maps/ under the photo's name and checksum, since photos of several
    folders may have one name. Those that an earlier call made are taken.
    Returns {path of a photo: its depth map} and {path of a photo that failed: why}. Raises DataError where the network
    cannot be used.
    """
    folder = pathlib.Path(depth_dir or utils.RESULTS / "depth_maps" / _folder_of_network(model))
    maps = {}
    for path in photos:
        checksum = "" if depth_dir else "_" + hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        maps[path] = folder / f"{dataset_files.name_of(path)}{checksum}.png"
    missing, failed = [path for path in photos if not maps[path].is_file()], {}
    to_depth = depth_networks.open_network(model) if missing else None
    progress = utils.ProgressLine(0, len(missing), "depth maps:")
    for number, path in enumerate(missing, 1):
        try:
            utils.write_image(maps[path], to_depth(read_photo(path), path))
        except (DataError, OSError) as error:
            failed[path] = str(error)
            del maps[path]
        progress.update(number, path.name)
    progress.clear()
    utils.say(f"Depth maps: {len(maps)} of {model} in {folder}/")
    return maps, failed


def _folder_of_network(model):
    """Returns a name for a depth network's maps: its own where it is known, else another for each file that it was."""
    if model in depth_networks.NAMED:
        return model
    path = pathlib.Path(model)
    facts = os.path.realpath(path), path.stat().st_size, path.stat().st_mtime_ns
    return f"{path.stem}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"


def load_input(pair, max_side=None, depth_is="inverse"):
    """Makes the network's input of a photo, as `load_dataset.load_input` does of one in the data set.

    pair.photo and pair.map are paths, Pillow images or arrays, see `as_photo` and `as_depth_map`. A photo with a longer
    side than `max_side`, in pixels, is made smaller; by default one of more than LARGEST_SIDE, to LEARNED_SIDE.
    `depth_is` is that of `read_depth_map`. Raises DataError where the photo or its depth map is damaged or too small.

    Returns:
      input: uint8 (height / 2, width / 2, channels), RGB and depth, 0-255; RGB alone without depth.
      size: (width, height) at which the photo is rendered.
      photo: the upright photo as a Pillow image of its own size; `info` as `read_photo` says.
    """
    photo = as_photo(pair.photo)
    size = _computed_size(photo.size, max_side)
    if min(size) < SMALLEST_SIDE:
        resized = f" with max_side={max_side}" if max_side else ""
        raise DataError(f"{name_of(pair.photo)}: is {size_text(size)}{resized}; each side must have at least "
                        f"{SMALLEST_SIDE} pixels")
    half = load_dataset.halve(load_dataset.resize(photo, size))
    if pair.map is None:
        depth = None
    elif pair.map is pair.photo:
        depth = _fit_to_photo(embedded_depth.read(pair.photo), half.size, f"{pair.photo}: the depth map in it")
    else:
        depth = as_depth_map(pair.map, half.size, depth_is)
    return load_dataset.stack(half, None if depth is None else Image.fromarray(depth)), size, photo


def holds_depth(photo):
    """Returns whether a photo is the path of a file with a depth map inside."""
    return isinstance(photo, PATHS) and embedded_depth.contains(photo)


def _computed_size(size, max_side):
    """Returns the (width, height) at which a photo of `size` is rendered."""
    if max(size) <= (max_side or LARGEST_SIDE):
        return size
    scale = max_side / max(size) if max_side else max(LEARNED_SIDE / max(size), min(1, SMALLEST_SIDE / min(size)))
    return tuple(max(1, round(side * scale)) for side in size)


def name_of(photo):
    """Returns how messages call a photo: by its path, if it has one."""
    return photo if isinstance(photo, PATHS) else "the picture"


def _unreadable(path, formats, error):
    """Returns a DataError for the `error` that a file raises, without Python's name of the open file."""
    reason = "unknown content" if isinstance(error, UnidentifiedImageError) else first_line(error)
    return DataError(f"{path}: is damaged, or no {formats} ({reason})")


# Photos --------------------------------------------------------------------------------------------------------------


def as_photo(photo):
    """Returns `read_photo` of a path, and the same of a Pillow image or an array, uint8 (height, width, 3)."""
    if isinstance(photo, PATHS):
        return read_photo(pathlib.Path(photo))
    return _upright_rgb(photo if isinstance(photo, Image.Image) else Image.fromarray(photo), "the picture")


def read_photo(path):
    """Decodes any photo as an upright 8-bit Pillow image of mode "RGB".

    EXIF's orientation is applied, and what is transparent becomes white. Of 16 bits the upper 8 are taken, of several
    pages or frames the first, of a phone's portrait the sharp original where the file holds it. The image's `info` has
    at most "icc_profile" (of RGB) and "exif" (dates and no more). Raises DataError where the file is damaged, too
    large, or no photo of 8 or 16 bits.
    """
    try:
        # A file, not a path: Pillow 13 maps uncompressed TIFFs into memory before turning them, and mixes up the sides.
        with open(path, "rb") as file, Image.open(file, formats=(*FORMATS, *embedded_depth.phone_formats())) as image:
            original = embedded_depth.sharp_original(path) if image.format in ("JPEG", "MPO") else None
            stored = image
            if original:
                stored = Image.open(io.BytesIO(original), formats=("JPEG",))
                stored.getexif().setdefault(ORIENTATION, image.getexif().get(ORIENTATION, 1))
            stored.load()
            return _upright_rgb(stored, path)
    except Image.DecompressionBombError:
        raise DataError(f"{path}: {load_dataset.TOO_LARGE}") from None
    except Exception as error:  # Pillow raises many kinds
        image_format, package = REQUIREMENTS.get(path.suffix.lower(), ("JPEG", None))
        if image_format not in embedded_depth.phone_formats():
            raise DataError(f'{path}: needs {package}: pip install "{package}", or save it as JPEG') from None
        raise _unreadable(path, "JPEG, PNG, WebP or TIFF of 8 or 16 bits", error) from None


def _upright_rgb(image, name):
    upright, dates = _apply_exif(image)
    photo = _convert_to_rgb(upright)
    profile = image.info.get("icc_profile") or b""
    photo.info = {"icc_profile": profile} if profile[PROFILE_SPACE] == b"RGB " else {}
    if len(profile) > MAX_PROFILE:
        warn(f"{name}: its colour profile of {len(profile) / 2 ** 20:.1f} MB is left out")
        photo.info = {}
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
    return load_dataset.on_white(image).convert("RGB")


# Depth maps ----------------------------------------------------------------------------------------------------------


def read_depth_map(path, size, depth_is="inverse"):
    """Reads a depth map of any size as uint8 (height, width), bright = near, resized to `size`, (width, height).

    Args:
      depth_is: what its numbers mean, a key of `depth_networks.OUTPUTS`.

    8-bit inverse depth is kept, 8-bit depth inverted. Other numbers are scaled so that the 1st percentile of inverse
    depth becomes 0 and the 99th 255; NaN and infinity count as far. Raises DataError where the file is damaged, too
    large, in colours, or on its side.
    """
    try:
        depth = _load_array(path) if path.suffix.lower() in (".npy", ".npz") else _read_depth_image(path)
    except DataError:
        raise
    except Exception as error:  # Pillow and NumPy raise many kinds
        raise _unreadable(path, "PNG, TIFF, JPEG, WebP, PFM, .npy or .npz", error) from None
    return _to_inverse_depth(depth, size, f"{path}:", depth_is)


def as_depth_map(depth, size, depth_is="inverse"):
    """Returns `read_depth_map` of a path, and the same of a Pillow image or an array of numbers, (height, width)."""
    if isinstance(depth, PATHS):
        return read_depth_map(pathlib.Path(depth), size, depth_is)
    if isinstance(depth, Image.Image):
        depth = _numbers(depth, "the depth map")
    return _to_inverse_depth(depth, size, "the depth map", depth_is)


def _to_inverse_depth(depth, size, name, depth_is):
    shape, depth = depth.shape, np.squeeze(depth)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "biuf":
        raise DataError(f"{name} holds {depth.dtype} of shape {shape}; a depth map has one number for each pixel")
    if depth.size > MAX_DEPTH_PIXELS:
        raise DataError(f"{name} has {size_text(depth.shape[::-1])} pixels, too many for a depth map")
    if depth.dtype == np.uint8 and depth_is in ("inverse", "depth"):
        return _fit_to_photo(depth if depth_is == "inverse" else 255 - depth, size, name)
    return _fit_to_photo(_scale_to_255(depth, name, depth_is), size, name)


def _load_array(path):
    """Returns the array of a .npy file, or of an .npz file the one that is named depth, or the only one."""
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)  # whatever its suffix says
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = ["depth"] if "depth" in loaded.files else loaded.files
        if len(names) != 1:
            raise ValueError(f"it holds {', '.join(names) or 'nothing'}; name the depth map in it depth")
        if loaded.zip.getinfo(f"{names[0]}.npy").file_size > 8 * MAX_DEPTH_PIXELS:
            raise ValueError("it is too large")
        return loaded[names[0]]


def _read_depth_image(path):
    with open(path, "rb") as file, Image.open(file, formats=DEPTH_FORMATS) as image:
        if image.width * image.height > MAX_DEPTH_PIXELS:
            raise DataError(f"{path}: has {size_text(image.size)} pixels, too many for a depth map")
        return _numbers(image, path)


def _numbers(image, name):
    if image.mode in MODES_OF_NUMBERS:
        return np.array(image)
    load_dataset.check_grey(image, name)
    return np.array(image.convert("L"))


def _scale_to_255(depth, name, depth_is):
    """Returns float32 0-255 of numbers of any range, 255 where something is near."""
    with np.errstate(all="ignore"):
        inverse = OUTPUTS[depth_is](depth.astype(np.float64))
    finite = inverse[np.isfinite(inverse)]
    if not finite.size:
        raise DataError(f"{name} holds no finite number")
    low, high = np.percentile(finite, PERCENTILES)
    if low == high:
        low, high = finite.min(), finite.max()
    inverse = np.where(np.isfinite(inverse), inverse, low)
    return np.float32(255 * np.clip((inverse - low) / ((high - low) or 1), 0, 1))


def _fit_to_photo(depth, size, name):
    """Resizes uint8 or float32 0-255 to uint8 of `size`. Raises DataError where it lies on its side."""
    (height, width), (photo_width, photo_height) = depth.shape, size
    aspect, photo_aspect = width / height, photo_width / photo_height
    if abs(aspect * photo_aspect - 1) < ASPECT_TOLERANCE and (width - height) * (photo_width - photo_height) < 0:
        raise DataError(f"{name} is {size_text((width, height))} and lies on its side: the upright photo is "
                        f"{size_text(size)} at half size; turn the depth map")
    if abs(aspect / photo_aspect - 1) > ASPECT_TOLERANCE:
        warn(f"{name} is {size_text((width, height))}, of another shape than the photo, and is stretched to fit it")
    resized = np.asarray(load_dataset.resize(Image.fromarray(depth), size))
    return np.uint8(np.clip(np.round(resized), 0, 255))
