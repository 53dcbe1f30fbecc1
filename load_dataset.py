"""The EBB! photos: what is a training pair, and in which order do pairs come?

    DATASET/{train,test}/original/7.jpg         the photo with everything in focus, about 1024 x 1536
    DATASET/{train,test}/original_depth/7.png   its depth map, 8 bits, half that size, bright = near
    DATASET/{train,test}/bokeh/7.jpg            the photo with a shallow depth of field, as large as the original

A data set for networks that see focus maps has original_focus/ in place of original_depth/: MAPS below lists the kinds.
Files belong together by name. The network sees the photo at half size. Pillow decodes and resizes in threads while the
network trains, so memory does not grow with the number of photos.
"""

import collections
import concurrent.futures
import difflib
import itertools
import os
import pathlib
import re
import threading
import unicodedata
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageStat, PngImagePlugin

import utils
from utils import DataError

PATCH_SIZE = 512  # height and width of a training patch, in pixels of the photo at half size
DRAW_EVERY = 1000  # iterations for which one random draw of train_size photos serves
SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_SUFFIXES = (".jfif", ".mpo", ".webp", ".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".gif", ".bmp", ".jxl",
                  ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")  # of photos, too
FORMATS = ("JPEG", "PNG")  # by content, whatever the file name says
MODES = {"RGB": ("RGB", "L", "P", "RGBA"), "L": ("L", "P", "RGB", "RGBA", "LA")}  # 8-bit modes, read as RGB and grey
Image.MAX_IMAGE_PIXELS = 2 ** 27  # Pillow refuses pictures of more than twice as many; phones make 200 megapixels
PngImagePlugin.MAX_TEXT_CHUNK = 2 ** 24  # bytes of a colour profile or text in a PNG, 1 MB without this
TOO_LARGE = f"has more than {2 * Image.MAX_IMAGE_PIXELS // 10 ** 6} megapixels, which is too large"
MAX_COLOUR = 4  # mean difference of the channels of a grey picture that is stored as RGB, of 255; JPEG makes 1 or 2


class Folder(NamedTuple):
    """A folder of a split, and the pictures in it: Pillow's mode, and 1 / scale of the photo's width and height."""

    name: str
    mode: str
    channels: int
    scale: int


PHOTOS, TARGETS = Folder("original", "RGB", channels=3, scale=1), Folder("bokeh", "RGB", channels=3, scale=1)
MAPS = {  # what the network may see beside the photo, at the size of its input; a data set has one kind, or none
    "depth": Folder("original_depth", "L", channels=1, scale=2),  # bright = near
    "focus": Folder("original_focus", "L", channels=1, scale=2),  # bright = sharp
}


def folders(kind):
    """Returns {field of `Pair`: `Folder`} of a data set with a kind of map, a key of MAPS, or with None."""
    return {"photo": PHOTOS} | ({"map": MAPS[kind]} if kind else {}) | {"bokeh": TARGETS}


def input_channels(kind):
    """Returns the number of channels of the network's input: red, green, blue and those of the kind of map, if any."""
    return PHOTOS.channels + (MAPS[kind].channels if kind else 0)


class Pair(NamedTuple):
    """The files of one photo: no `bokeh` where there is no target, no `map` and no `kind` of it without maps.
    `size` is the photo's (width, height)."""

    name: str
    photo: pathlib.Path
    map: pathlib.Path | None
    bokeh: pathlib.Path | None
    size: tuple
    kind: str | None = "depth"


# Which pairs there are -----------------------------------------------------------------------------------------------


def find_training_set(dataset_dir, use_depth=True, patch_size=PATCH_SIZE, val_size=0):
    """Returns (training pairs, test pairs), two lists of `Pair`s in numeric order.

    Photos must be at least twice as large as the patches. Where val_size is not 0, the last val_size pairs of train/
    are the test pairs, instead of test/.

    Raises DataError with a list of all files that are missing, unreadable or of a wrong size, or where val_size leaves
    nothing to train with.
    """
    kind = find_kind(dataset_dir) if use_depth else None
    train, problems = survey(dataset_dir, "train", True, kind, patch_size)
    test, test_problems = ([], []) if val_size else survey(dataset_dir, "test", True, kind, patch_size)
    _raise_problems(problems + test_problems, dataset_dir)
    if val_size >= len(train):
        raise DataError(f"val_size={val_size}: must be less than the {len(train)} pairs in {dataset_dir}'s train/")
    return (train[:-val_size], train[-val_size:]) if val_size else (train, test)


def find_test_photos(dataset_dir, use_depth=True, val_size=0):
    """Returns the `Pair`s to render, of any size; those of test/ need no target. Raises DataError as above."""
    if val_size:
        return find_training_set(dataset_dir, use_depth, 1, val_size)[1]
    pairs, problems = survey(dataset_dir, "test", False, find_kind(dataset_dir) if use_depth else None)
    _raise_problems(problems, dataset_dir)
    return pairs


def find_kind(dataset_dir):
    """Returns which of MAPS a data set has, by its folders; "depth" where it has none. DataError where it has two."""
    found = {kind: place for kind, folder in MAPS.items() for split in SPLITS
             if (place := pathlib.Path(dataset_dir) / split / folder.name).is_dir()}
    if len(found) > 1:
        raise DataError(f"{' and '.join(map(str, found.values()))}: a data set has one kind of map; remove one of them")
    return next(iter(found), "depth")


def list_files(dataset_dir, split, kind):
    """Lists the files of a split, "train" or "test". This is the place for another layout, such as a table of files.

    Returns {field of `Pair`: {name without suffix: path}} and {path that is left out: reason}.
    """
    place = pathlib.Path(dataset_dir) / split
    found = {field: images_by_name(place / folder.name) for field, folder in folders(kind).items()}
    left_out = collections.ChainMap(*(reasons for _, reasons in found.values()))
    return {field: images for field, (images, _) in found.items()}, left_out


def survey(dataset_dir, split, for_training, kind="depth", patch_size=PATCH_SIZE):
    """Checks names and headers of the files of a split, with a `kind` of map, a key of MAPS, or with None.

    Where it is for_training, every photo needs a target, and must be large enough for a patch.
    Returns (the `Pair`s without a problem in numeric order, a list of problems as texts that name a file or folder).
    """
    files, left_out = list_files(dataset_dir, split, kind)
    problems = [f"{path}: {reason}" for path, reason in left_out.items()]
    required = {field: pathlib.Path(dataset_dir) / split / folder.name for field, folder in folders(kind).items()
                if for_training or field != "bokeh"}
    empty = [place for field, place in required.items() if not files[field]]
    if empty:
        return [], problems + [f"{place}: no such folder, or no .jpg or .png in it" for place in empty]
    names = set().union(*files.values()) if for_training else set(files["photo"])
    names -= set(map(name_of, left_out))
    whole = set(files["photo"]).intersection(*(files[field] for field in required))
    unmatched = {field: [name for name in files[field] if name not in whole] for field in required}
    pairs = []
    for name in sorted(names, key=numeric_order):
        missing = {field: place for field, place in required.items() if name not in files[field]}
        problems += [f"{place / name}: no .jpg or .png of this name{nearest(name, unmatched[field])}"
                     for field, place in missing.items()]
        if not missing:
            paths = {field: files.get(field, {}).get(name) for field in ("photo", "map", "bokeh")}
            pairs.append(Pair(name, **paths, size=None, kind=kind))
    smallest = 2 * patch_size if for_training else 2
    with concurrent.futures.ThreadPoolExecutor(4 * processors()) as pool:  # they mostly wait for the disk
        checked = list(pool.map(lambda pair: _check_headers(pair, smallest), pairs))
    problems += [problem for _, found in checked for problem in found]
    return [pair for pair, found in checked if not found], sorted(problems, key=numeric_order)


def images_by_name(folder, suffixes=SUFFIXES):
    """Returns {name: path} of the pictures in a folder, in numeric order, and {path: reason} of those left out.

    A name is without suffix and as people see it: composed (Unicode's NFC), with escapes where it is no UTF-8. Hidden
    files, and files that are no pictures by their suffix, are ignored.
    """
    images, left_out = {}, {}
    for path in sorted(pathlib.Path(folder).glob("[!.]*"), key=lambda path: numeric_order(path.name)):
        name, suffix = name_of(path), path.suffix.lower()
        if suffix in suffixes and not path.is_file():
            left_out[path] = "is no file, or a link to a file that is missing"
        elif suffix in suffixes and name in images:
            left_out[path] = f"has the same name as {images[name].name}; keep one"
        elif suffix in suffixes:
            images[name] = path
        elif suffix in OTHER_SUFFIXES:
            left_out[path] = "is of a format that is not read here; save it as JPEG or PNG"
    return images, left_out


def name_of(path):
    """Returns a file's name without suffix as people see it: composed, and with escapes for bytes that are no UTF-8."""
    return unicodedata.normalize("NFC", path.stem).encode("utf-8", "backslashreplace").decode()


def nearest(name, others):
    """Returns "; the nearest is 7_depth" for 7 where this is among `others`, names without a counterpart, else ""."""
    pattern = re.compile(rf"(?<![0-9]){re.escape(name)}(?![0-9])", re.IGNORECASE)
    near = list(filter(pattern.search, others)) or (len(others) < 100 and difflib.get_close_matches(name, others))
    return f"; the nearest is {near[0]}" if near else ""


def _check_headers(pair, smallest):
    """Returns the pair with its size, and the list of what is wrong with it."""
    problems = []
    for field in folders(pair.kind):
        try:
            image = getattr(pair, field) and read(pair, field, decode=False)
            pair = pair._replace(size=image.size) if field == "photo" else pair
        except DataError as error:
            problems.append(str(error))
    if pair.size and min(pair.size) < smallest:
        problems.append(f"{pair.photo}: is {size_text(pair.size)}, must be {smallest} x {smallest} or more")
    return pair, problems


def _raise_problems(problems, dataset_dir):
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with the data set"
        check = "python -m tools.check_dataset, with the same dataset_dir=, use_depth= and val_size=, says what to do"
        raise DataError("\n  ".join([count, *problems, check]))


def numeric_order(text):
    """Returns a sort key that puts 9.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", text)  # text, number, text, number, ... text
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


# One pair ------------------------------------------------------------------------------------------------------------


def load_input(pair):
    """Returns the network's input for a whole photo: uint8 (height / 2, width / 2, channels), RGB and the map, if any.

    Sizes are rounded down. Raises DataError on a damaged file.
    """
    return stack(halve(read(pair, "photo")), pair.map and read(pair, "map"))


def load_target(pair, level):
    """Returns the whole bokeh photo at the size of a level's output: uint8, height and width / 2^(level - 1), RGB."""
    bokeh = read(pair, "bokeh")
    return np.asarray(resize(bokeh, (bokeh.width >> (level - 1), bokeh.height >> (level - 1))))


def load_patch(pair, level, left, top, patch_size=PATCH_SIZE):
    """Loads a training pair: the input's patch at (left, top) and the matching square of the bokeh photo.

    Args:
      level: of the network, 1-7.
      left, top: of the patch, in pixels of the photo at half size.
      patch_size: p, height and width of the patch, a multiple of 32.

    Returns:
      input: uint8 (p, p, channels), RGB and the map, if any. Equals this part of `load_input`.
      target: uint8 (s, s, 3), RGB, s = 2p / 2^(level - 1); cut out first, then resized.

    Raises DataError on a damaged file.
    """
    patch = left, top, left + patch_size, top + patch_size
    square = tuple(2 * edge for edge in patch)
    photo = read(pair, "photo")
    if photo.width % 2 == photo.height % 2 == 0 and photo.width >= photo.height:
        photo = photo.resize((patch_size, patch_size), Image.Resampling.BICUBIC, box=square)  # the same pixels, faster
    else:  # odd sides have another scale; Pillow 13 may begin tall photos with the columns, which rounds differently
        photo = halve(photo).crop(patch)
    input = stack(photo, pair.map and read(pair, "map").crop(patch))
    target = resize(read(pair, "bokeh").crop(square), (target_side(level, patch_size),) * 2)
    return input, np.asarray(target)


def target_side(level, patch_size=PATCH_SIZE):
    """Returns height and width of a training target: for patches of 512, 1024 at level 1 and 16 at level 7."""
    return 2 * patch_size >> (level - 1)


def read(pair, field, decode=True):
    """Returns the "photo", "map" or "bokeh" of a pair as a Pillow image, see `read_image`."""
    folder = folders(pair.kind)[field]
    size = pair.size and tuple(side // folder.scale for side in pair.size)
    return read_image(getattr(pair, field), folder.mode, size, decode)


def read_image(path, mode, size=None, decode=True):
    """Returns a JPEG or PNG as a Pillow image of mode "RGB" or "L"; without `decode` its header only.

    What is transparent becomes white. Raises DataError where the file is damaged, too large, of a pixel format that is
    not in MODES, not of the (width, height) given, or in colours where it must be grey.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if decode and image.format == "PNG":
                Image.open(path).verify()  # compares checksums, which decoding does not
            if decode:
                image.load()
    except Image.DecompressionBombError:
        raise DataError(f"{path}: {TOO_LARGE}") from None
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"{path}: is damaged ({error})") from None
    if image.mode not in MODES[mode]:
        wanted = "grey" if mode == "L" else "RGB"
        raise DataError(f"{path}: has the pixel format {image.mode}; convert it to 8-bit {wanted}")
    if size and image.size != size:
        raise DataError(f"{path}: is {size_text(image.size)}, must be {size_text(size)}")
    if not decode or image.mode == mode:
        return image
    if mode == "L":
        check_grey(image, path)
    return (on_white(image) if mode == "RGB" else image).convert(mode)


def check_grey(image, path):
    """Raises DataError where a Pillow image, which is to be a map, has colours."""
    red, green, blue = image.convert("RGB").split()
    if max(ImageStat.Stat(ImageChops.difference(red, other)).mean[0] for other in (green, blue)) > MAX_COLOUR:
        raise DataError(f"{path}: is in colours; a depth map must be grey, bright where something is near")


def on_white(image):
    """Returns a Pillow image with what is transparent in white, since there may be anything in its colours."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def halve(image):
    """Resizes a Pillow image to half its size, rounded down."""
    return resize(image, (image.width // 2, image.height // 2))


def resize(image, size):
    """Resizes a Pillow image to (width, height) with the bicubic filter that the original used."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def stack(photo, map):
    """Returns uint8 (height, width, channels) of two Pillow images of one size, the photo alone where `map` is None."""
    return np.dstack([np.asarray(image) for image in (photo, map) if image])


def size_text(size):
    """Returns "1536 x 1024" for (1536, 1024)."""
    return f"{size[0]} x {size[1]}"


# Batches -------------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """Inputs uint8 (images, p, p, channels), targets uint8 (images, s, s, 3), and the names of the photos."""

    inputs: np.ndarray
    targets: np.ndarray
    names: list


def augment(input, target, random):
    """Turns a training pair by random quarter turns and flips it up-down at random, both images alike.

    This is the place for other augmentation, such as colour jitter.

    Args:
      input: uint8 (p, p, channels), RGB and the map, if any.
      target: uint8 (s, s, 3).
      random: the NumPy Generator of this pair.

    Returns (input, target) of the same shapes and types, in memory of their own.
    """
    turns, flip = random.integers(4), random.integers(2)
    return _turn(input, turns, flip), _turn(target, turns, flip)


def _turn(image, turns, flip):
    pixels = np.ascontiguousarray(image).view(f"V{image.itemsize * image.shape[2]}")  # copied whole, twice as fast
    turned = np.rot90(pixels, turns)
    return (np.flipud(turned) if flip else turned).copy().view(image.dtype)


def training_batches(pairs, level, batch_size, train_size, first, last, seed=0, patch_size=PATCH_SIZE, indices=None):
    """Yields the `Batch`es of iterations `first` to `last`, decoded ahead in threads.

    Which photos are in a batch, and their patches, quarter turns and flips, depends on the arguments and the number of
    the iteration only. `indices`, a range, are the images of each batch to load, None for all. The next pair replaces a
    damaged one; DataError where these are too many (see `DamagedPhotos`).
    """
    damaged = DamagedPhotos(len(pairs))
    indices = range(batch_size) if indices is None else indices
    draws = ((photo, [seed, level, iteration, index])
             for iteration in range(first, last + 1)
             for index, photo in enumerate(_photos_of_batch(len(pairs), level, batch_size, train_size, iteration, seed))
             if index in indices)

    def load(draw):
        photo, entropy = draw
        for pair in pairs[photo:] + pairs[:photo]:
            random = np.random.default_rng(entropy)
            left, top = (int(random.integers(side // 2 - patch_size + 1)) for side in pair.size)
            try:
                return pair.name, *augment(*load_patch(pair, level, left, top, patch_size), random)
            except DataError as error:
                damaged.add(pair, error)
        raise DataError("all training photos are damaged")

    yield from _batches(load, draws, len(indices))


def test_batches(pairs, level, batch_size, patch_size=PATCH_SIZE, damaged=None):
    """Yields `Batch`es with the patch in the middle of every pair, in order; the last may be smaller.

    `damaged`: the `DamagedPhotos` that counts what cannot be read and is left out, by default one of this call.
    """
    damaged = damaged or DamagedPhotos(len(pairs))

    def load(pair):
        left, top = ((side // 2 - patch_size) // 2 for side in pair.size)
        try:
            return pair.name, *load_patch(pair, level, left, top, patch_size)
        except DataError as error:
            return damaged.add(pair, error)

    yield from _batches(load, pairs, batch_size)


class DamagedPhotos:
    """Names each damaged photo once on stderr. Raises DataError at more than max(1, 1% of the photos)."""

    def __init__(self, count):
        self._limit, self._seen, self._lock = max(1, count // 100), set(), threading.Lock()

    def add(self, pair, error):
        with self._lock:
            if pair.name in self._seen:
                return
            self._seen.add(pair.name)
            count = len(self._seen)
        if count > self._limit:
            raise DataError(f"{error}; with it {count} photos are damaged, too many to go on: "
                            "python -m tools.check_dataset lists them all") from None
        utils.warn(f"{error}; it is left out from now on ({count} damaged so far)")


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
    """Yields `Batch`es of what load(item) gives for the items: (name, input, target), or None, which is left out."""
    loaded = filter(None, stream(load, items, ahead=batch_size + processors()))
    while images := list(itertools.islice(loaded, batch_size)):
        names, inputs, targets = zip(*images)
        batch = Batch(*(np.stack(arrays, dtype=np.uint8, casting="no") for arrays in (inputs, targets)), list(names))
        del images, inputs, targets  # before the next ones are waited for
        yield batch


def _photos_of_batch(count, level, batch_size, train_size, iteration, seed):
    """Returns the numbers of the photos of a batch. For every 1000 iterations `train_size` of all `count` photos are
    drawn; they are gone through in random order, each once before any comes again."""
    draw, index = divmod(iteration - 1, DRAW_EVERY)
    drawn = np.random.default_rng([seed, level, draw]).permutation(count)[:train_size]
    start, stop = index * batch_size, (index + 1) * batch_size
    first_pass, last_pass = start // len(drawn), (stop - 1) // len(drawn)
    passes = [np.random.default_rng([seed, level, draw, number]).permutation(drawn)
              for number in range(first_pass, last_pass + 1)]
    return np.concatenate(passes)[start - first_pass * len(drawn):][:batch_size]


def processors():
    """Returns how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
