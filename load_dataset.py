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
import functools
import hashlib
import itertools
import os
import pathlib
import tempfile
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageStat, PngImagePlugin

import utils
from utils import DataError

PATCH_SIZE = 512  # height and width of a training patch, in pixels of the photo at half size
DRAW_EVERY = 1000  # iterations for which one random draw of train_size photos serves
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


def load_patch(pair, level, left, top, patch_size=PATCH_SIZE, cache_dir=None):
    """Loads a training pair: the input's patch at (left, top) and the matching square of the bokeh photo.

    Args:
      level: of the network, 1-7.
      left, top: of the patch, in pixels of the photo at half size.
      patch_size: p, height and width of the patch, a multiple of 32.
      cache_dir: folder for decoded pictures, see `kept_array`.

    Returns:
      input: uint8 (p, p, channels), RGB and the map, if any. Equals this part of `load_input`.
      target: uint8 (s, s, 3), RGB, s = 2p / 2^(level - 1); cut out first, then resized.

    Raises DataError on a damaged file.
    """
    patch = left, top, left + patch_size, top + patch_size
    square = tuple(2 * edge for edge in patch)
    if cache_dir:
        input = np.array(kept_array(cache_dir, pair, ("photo", "map"), load_input)[top:patch[3], left:patch[2]])
        bokeh = kept_array(cache_dir, pair, ("bokeh",), lambda pair: np.asarray(read(pair, "bokeh")))
        target = Image.fromarray(bokeh[square[1]:square[3], square[0]:square[2]])
    else:
        photo = read(pair, "photo")
        if photo.width % 2 == photo.height % 2 == 0 and photo.width >= photo.height:
            photo = photo.resize((patch_size, patch_size), Image.Resampling.BICUBIC, box=square)  # the same, faster
        else:  # odd sides have another scale; Pillow 13 may begin tall photos with the columns and round differently
            photo = halve(photo).crop(patch)
        input = stack(photo, pair.map and read(pair, "map").crop(patch))
        target = read(pair, "bokeh").crop(square)
    return input, np.asarray(resize(target, (target_side(level, patch_size),) * 2))


def kept_array(cache_dir, pair, fields, make):
    """Returns make(pair), an array of pixels, from a file in cache_dir, of which only what is used is read.

    The file is made where it is missing or cut off. Its name has time and size of the pair's files: where these are
    replaced, it is another. Without space on the disk the array is made each time.
    """
    try:
        facts = [(os.path.abspath(path), path.stat().st_mtime_ns, path.stat().st_size)
                 for path in (getattr(pair, field) for field in fields) if path]
        kept = pathlib.Path(cache_dir, f"{hashlib.sha256(repr(facts).encode('utf-8', 'replace')).hexdigest()[:32]}.npy")
        return np.load(kept, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        array = make(pair)
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=cache_dir) as folder:
            np.save(f"{folder}/array.npy", array)
            os.replace(f"{folder}/array.npy", kept)
    except OSError:
        warn_once(f"cache_dir={cache_dir}: is full or cannot be written; what it lacks is decoded each time")
    return array


warn_once = functools.cache(utils.warn)


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
    """Raises DataError where the Pillow image of a map has colours."""
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


def training_batches(pairs, level, batch_size, train_size, first, last, seed=0, patch_size=PATCH_SIZE, indices=None,
                     cache_dir=None):
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
                return pair.name, *augment(*load_patch(pair, level, left, top, patch_size, cache_dir), random)
            except DataError as error:
                damaged.add(pair, error)
        raise DataError("all training photos are damaged")

    yield from _batches(load, draws, len(indices))


def test_batches(pairs, level, batch_size, patch_size=PATCH_SIZE, damaged=None, cache_dir=None):
    """Yields `Batch`es with the patch in the middle of every pair, in order; the last may be smaller.

    `damaged`: the `DamagedPhotos` that counts what cannot be read and is left out, by default one of this call.
    """
    damaged = damaged or DamagedPhotos(len(pairs))

    def load(pair):
        left, top = ((side // 2 - patch_size) // 2 for side in pair.size)
        try:
            return pair.name, *load_patch(pair, level, left, top, patch_size, cache_dir)
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
