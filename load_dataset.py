"""The EBB! photos: what one training pair looks like, and how pairs stream to the network.

    DATASET/{train,test}/original/7.jpg         the photo with everything in focus, about 1024 x 1536
    DATASET/{train,test}/original_depth/7.png   its depth map, 8 bits, half that size, bright = near
    DATASET/{train,test}/bokeh/7.jpg            the photo with a shallow depth of field, as large as the original

Files belong together by name. Images are decoded in threads while the network trains, outside of Python's lock, so that
memory does not grow with the number of photos. Whole photos are Pillow's work. Of a training pair only what the patch
needs is decoded and resized, by TensorFlow, in a third of the time and to the very same pixels.
"""

import collections
import concurrent.futures
import functools
import io
import os
import pathlib
import re
import sys
import threading
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from utils import DataError

PATCH = 512  # height and width of a training patch, in pixels of the photo at half size
WEIGHT_BITS = 22  # behind the point in the weights of Pillow's resize
DRAW_EVERY = 1000  # iterations for which one random draw of train_size photos serves
MARGIN = 16  # pixels of the photo that are decoded around a patch, see `read_window`
SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG")  # by content, whatever the file name says
MODES = {  # of Pillow that are read as "RGB" and as "L": 8 bits for each channel
    "RGB": ("RGB", "L", "P", "RGBA"),
    "L": ("L", "P", "RGB", "RGBA", "LA"),
}
LEAST_RESEMBLANCE = 0.5  # of photo and bokeh photo, see `resemblance`
LEAST_CONTRAST = 4.0  # standard deviation of what `resemblance` compares, 0-255, below which it means nothing
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises on bad files


class Pair(NamedTuple):
    """The files of one photo. `bokeh` is None where there is no target, `size` is the photo's (width, height)."""

    name: str
    photo: pathlib.Path
    depth: pathlib.Path
    bokeh: Optional[pathlib.Path]
    size: tuple


# Which files there are -----------------------------------------------------------------------------------------------


def find_training_pairs(dataset_dir, split):
    """All pairs of a split, checked by their headers: whole, of matching sizes and large enough for a patch.

    Args:
      dataset_dir: the folder that holds train/ and test/.
      split: "train" or "test".

    Returns:
      `Pair`s in numeric order.

    Raises:
      DataError: lists every problem of the split, by file.
    """
    return _raise_problems(*survey(dataset_dir, split, for_training=True))


def find_test_photos(dataset_dir):
    """All pairs of the test split, of any size; those without a file in bokeh/ have `bokeh=None`. Errors as above."""
    return _raise_problems(*survey(dataset_dir, "test", for_training=False))


def survey(dataset_dir, split, for_training):
    """(pairs, problems) of a split by the files' headers. `pairs` are those without problems, problems name a file."""
    folder = pathlib.Path(dataset_dir) / split
    problems = []
    photos = _images_by_name(folder / "original", problems)
    depths = _images_by_name(folder / "original_depth", problems)
    bokehs = _images_by_name(folder / "bokeh", problems) if for_training or (folder / "bokeh").is_dir() else {}
    if not (photos and depths and (bokehs or not for_training)):
        return [], problems
    candidates = []
    for name in photos.keys() | (depths.keys() | bokehs.keys() if for_training else set()):
        files = {"original": photos.get(name), "original_depth": depths.get(name), "bokeh": bokehs.get(name)}
        needed = files if for_training else ("original", "original_depth")
        missing = [kind for kind in needed if not files[kind]]
        problems += [f"{folder / kind / name}.{'png' if kind == 'original_depth' else 'jpg'}: is missing"
                     for kind in missing]
        if not missing:
            candidates.append(Pair(name, *files.values(), size=None))
    with concurrent.futures.ThreadPoolExecutor(4 * _processors()) as pool:  # waits for the disk more than it computes
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
    """The network's input for a whole photo: uint8 (height / 2, width / 2, 4), RGB and depth, 0-255.

    The photo is halved with Pillow's bicubic filter, odd sizes are rounded down. DataError names a damaged file.
    """
    return _with_depth(read_image(pair.photo, "RGB", pair.size), pair)


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
      input: uint8 (512, 512, 4), RGB and depth.
      target: uint8 (s, s, 3), RGB, s = 1024 / 2^(level - 1).

    Raises:
      DataError: a file is damaged; it names the file.
    """
    window = _window(pair.size, left, top)
    if any(side % 2 for side in pair.size):  # scaled by a little more than 2, which moves every pixel
        photo = read_image(pair.photo, "RGB", pair.size)
        halved = np.asarray(_resize(photo, photo.width // 2, photo.height // 2))[top:top + PATCH, left:left + PATCH]
    else:
        photo = read_window(pair.photo, pair.size, window)
        halved = _cut(shrink(photo, 2), left - window.left // 2, top - window.top // 2, PATCH)
    bokeh = read_window(pair.bokeh, pair.size, window)
    square = _cut(bokeh, 2 * left - window.left, 2 * top - window.top, 2 * PATCH)
    target = shrink(square, 2 ** (level - 1))
    if resemblance(halved, target) < LEAST_RESEMBLANCE:
        raise DataError(f"{pair.photo}: does not resemble {pair.bokeh}; one of them is damaged or of another scene")
    depth = read_image(pair.depth, "L", (pair.size[0] // 2, pair.size[1] // 2))
    return _stack_channels(halved, _cut(np.asarray(depth)[..., np.newaxis], left, top, PATCH)), target


def resemblance(photo, bokeh):
    """How much two RGB images of one view look alike from far: the correlation of their means over a grid of 16 x 16.

    The images are Pillow's or uint8 arrays, each of a size of its own. Those of one scene are above 0.9, those of
    different scenes around 0; 1 where there is too little contrast to tell. It finds what a JPEG decoder does not: bits
    that flipped, which turn the rest of the picture into something else.
    """
    images = [np.asarray(image) for image in (photo, bokeh)]
    grid = min(16, *images[0].shape[:2], *images[1].shape[:2])
    far = [_grid_means(image, grid).ravel() for image in images]
    deviations = [values.std() for values in far]
    if max(deviations) < LEAST_CONTRAST:
        return 1.0
    product = np.mean((far[0] - far[0].mean()) * (far[1] - far[1].mean()))
    return float(product / max(deviations[0] * deviations[1], LEAST_CONTRAST ** 2))


def _grid_means(image, grid):
    """float32 (grid, grid, 3): means over the cells of a grid, from 8 of the rows of pixels that a cell has."""
    height, width = (side // grid for side in image.shape[:2])
    rows = image[:grid * height, :grid * width].reshape(grid, height, grid * width, 3)[:, ::-(-height // 8)]
    return rows.mean(1, dtype=np.float32).reshape(grid, grid, width, 3).mean(2)


def target_side(level):
    """Height and width of a training target of `level`: 1024 for level 1, 16 for level 7."""
    return 2 * PATCH >> (level - 1)


def read_image(path, mode, size=None):
    """Decodes a whole image file as Pillow's "RGB" or "L".

    DataError where it is damaged, of a format that `find_training_pairs` rejects, or not of the (width, height) given.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            wrong = _wrong_format(image, mode)
            if wrong or size and image.size != size:
                raise DataError(f"{path}: {wrong or f'is {_size_text(image.size)}, not {_size_text(size)}'}")
            if image.format == "PNG":
                with Image.open(path, formats=FORMATS) as whole:
                    whole.verify()  # decoding alone does not look at the checksums
            return image.convert(mode)
    except UNREADABLE as error:
        raise DataError(f"{path}: is damaged ({_reason(error)})") from None


def _wrong_format(image, mode):
    """Why an opened image cannot serve as a photo ("RGB") or a depth map ("L"); None if it can."""
    if image.mode not in MODES[mode]:
        return f"has the pixel format {image.mode}; convert it to 8-bit {'grey' if mode == 'L' else 'RGB'}"
    if image.format == "PNG" and getattr(image, "is_animated", False):
        return "is an animation"
    return None


def _with_depth(photo, pair):
    half = _resize(photo, photo.width // 2, photo.height // 2)
    return np.dstack([half, read_image(pair.depth, "L", half.size)])


def _resize(image, width, height):
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


# What a patch needs of a photo ---------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A rectangle of a photo, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def _window(size, left, top):
    """Around a patch; of one size wherever it lies, because `shrink` is compiled for each size."""
    starts, lengths = [], []
    for side, start in zip(size, (left, top)):
        lengths.append(min(side, 2 * (PATCH + MARGIN)))
        starts.append(min(max(2 * start - MARGIN, 0), side - lengths[-1]))
    return Window(*starts, *lengths)


def read_window(path, size, window):
    """Decodes a `Window` of an RGB image file of the given (width, height): uint8 (window.height, window.width, 3).

    The pixels are those that `read_image` gives, but for the outermost ones of the window: where it ends inside of the
    photo, the decoder does not know the colours beyond. Errors as `read_image`.
    """
    import tensorflow as tf  # here, because wrong arguments and files are answered before TensorFlow is imported

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            usual = (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
        if usual:
            box = [window.top, window.left, window.height, window.width]
            return tf.io.decode_and_crop_jpeg(content, box, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    except (*UNREADABLE, tf.errors.OpError):
        pass  # Pillow knows better words
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    return np.asarray(read_image(path, "RGB", size).crop(box))


def shrink(image, factor):
    """Pillow's bicubic `resize` to 1 / factor of both sides, to the very same pixels in a fraction of the time.

    Args:
      image: uint8 (height, width, 3), both sides multiples of the factor and at least four times as large.
      factor: 1, 2, 4 ... 64.

    Returns:
      uint8 (height / factor, width / factor, 3).
    """
    if factor == 1:
        return image
    import tensorflow as tf

    with tf.device("CPU"):
        return _compiled_shrink(factor, image.shape)(tf.constant(image)).numpy()


@functools.cache
def _compiled_shrink(factor, shape):
    """`shrink` for images of one shape, as a function that XLA compiles when it is first called."""
    import tensorflow as tf

    height, width, channels = shape

    def shrink_both_axes(image):
        narrow = _shrink_axis(image, factor)  # first the rows, as Pillow does: in between it rounds to 8 bits
        small = _shrink_axis(tf.reshape(narrow, (1, height, -1)), factor)
        return tf.reshape(small, (height // factor, width // factor, channels))

    compiled = tf.function(shrink_both_axes, jit_compile=True, autograph=False)
    return compiled.get_concrete_function(tf.TensorSpec(shape, tf.uint8))


def _shrink_axis(image, factor):
    """Shrinks the middle one of three axes. All sums are of whole numbers below 2^31, as in Pillow's Resample.c."""
    import tensorflow as tf

    def weighted_sum(pixels, weights):
        return tf.reduce_sum(tf.cast(pixels, tf.int32) * weights[:, np.newaxis], axis=-2)

    first, second, inner = (_bicubic_weights(factor, place) for place in range(3))
    borders = [weighted_sum(pixels, weights)[:, np.newaxis] for pixels, weights in (
        (image[:, :len(first)], first), (image[:, :len(second)], second),
        (image[:, -len(second):], second[::-1]), (image[:, -len(first):], first[::-1]))]
    outer_size, size, inner_size = image.shape
    blocks = tf.reshape(image, (outer_size, -1, factor // 2, inner_size))  # a result spans 8 and starts 2 after the last
    inside = sum(weighted_sum(blocks[:, 1 + place:1 + place + 2 * (size // factor - 4):2], weights)
                 for place, weights in enumerate(np.split(inner, 8)))
    sums = tf.concat([*borders[:2], inside, *borders[2:]], axis=1)
    rounded = tf.bitwise.right_shift(sums + (1 << WEIGHT_BITS - 1), WEIGHT_BITS)
    return tf.cast(tf.clip_by_value(rounded, 0, 255), tf.uint8)


def _bicubic_weights(factor, place):
    """int32: the weights of the pixels that result number `place` of an axis depends on, 2^22 stands for 1.

    These are the pixels up to 2 factor away from the result's middle, those beyond the border left out. The filter is
    Keys' cubic convolution with a = -1/2 (IEEE Trans. ASSP 29, 1981), scaled to sum up to 1.
    """
    pixels = np.arange(max(0, (2 * place - 3) * factor // 2), (2 * place + 5) * factor // 2)
    x = np.abs((pixels + 0.5) / factor - (place + 0.5))
    weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights *= 2 ** WEIGHT_BITS / weights.sum()
    return np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)


def _cut(image, left, top, side):
    return image[top:top + side, left:left + side]


def _stack_channels(*images):
    """One copy of images (height, width, channels) with the channels of all; one by one, which numpy does fastest."""
    channels = [image[..., channel] for image in images for channel in range(image.shape[2])]
    stacked = np.empty((*channels[0].shape, len(channels)), np.uint8)
    for number, channel in enumerate(channels):
        stacked[..., number] = channel
    return stacked


# Streams of batches --------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """inputs uint8 (images, 512, 512, 4), targets uint8 (images, s, s, 3), and the photos' names."""

    inputs: np.ndarray
    targets: np.ndarray
    names: list


class DamagedPhotos:
    """Names each damaged photo once on stderr; DataError when they are more than 1% of the photos (and more than 1)."""

    def __init__(self, count):
        self._limit = max(1, count // 100)
        self._seen = set()
        self._lock = threading.Lock()

    def add(self, error):
        with self._lock:
            if str(error) in self._seen:
                return
            self._seen.add(str(error))
            if len(self._seen) > self._limit:
                raise DataError(f"{error}; with it {len(self._seen)} photos are damaged, too many to go on: "
                                "python -m tools.check_dataset lists them all") from None
        print(f"warning: {error}; it is left out from now on ({len(self._seen)} damaged so far)", file=sys.stderr)


def training_batches(pairs, level, batch_size, train_size, first, last, seed=0):
    """Yields the `Batch`es of iterations `first` to `last`, decoded ahead in parallel.

    Which photos are in a batch, and their patches, quarter turns and flips, depends on the seed, the level, the
    iteration and the list of pairs only. The next pair takes the place of one that is damaged.

    Raises:
      DataError: too many photos are damaged (see `DamagedPhotos`).
    """
    damaged = DamagedPhotos(len(pairs))

    def draws():
        for iteration in range(first, last + 1):
            chosen = _photos_of_batch(len(pairs), level, batch_size, train_size, iteration, seed)
            for place, index in enumerate(chosen):
                yield index, [seed, level, iteration, place]

    def load(draw):
        index, entropy = draw
        for pair in pairs[index:] + pairs[:index]:
            random = np.random.default_rng(entropy)
            try:
                patch, target = load_patch(pair, level, *_random_corner(pair, random))
            except DataError as error:
                damaged.add(error)
                continue
            return pair.name, *_augment(patch, target, random)
        raise DataError("all training photos are damaged")

    yield from _batches(load, draws(), batch_size)


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
            damaged.add(error)
            return None

    yield from _batches(load, pairs, batch_size)


def stream(load, items, ahead):
    """Yields load(item) for every item, in order, while up to `ahead` more are loaded in threads."""
    with concurrent.futures.ThreadPoolExecutor(_processors()) as pool:
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
    for part in stream(load, items, ahead=batch_size + _processors()):
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


def _augment(patch, target, random):
    """Random quarter turns and an up-down flip, the same for both."""
    turns, flip = random.integers(4), random.integers(2)
    turned = [np.rot90(image, turns) for image in (patch, target)]
    return [_stack_channels(np.flipud(image) if flip else image) for image in turned]


def _processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
