"""The EBB! photos: what one training pair looks like, and how pairs stream to the network.

    DATASET/{train,test}/original/7.jpg         the photo with everything in focus, about 1024 x 1536
    DATASET/{train,test}/original_depth/7.png   its depth map, 8 bits, half that size, bright = near
    DATASET/{train,test}/bokeh/7.jpg            the photo with a shallow depth of field, as large as the original

Files belong together by name. Images are decoded in threads while the network trains (Pillow works outside Python's
lock), so that memory does not grow with the number of photos. TensorFlow is not needed here.
"""

import collections
import concurrent.futures
import os
import pathlib
import re
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

from utils import DataError

PATCH = 512  # height and width of a training patch, in pixels of the photo at half size
DRAW_EVERY = 1000  # iterations for which one random draw of train_size photos serves
SUFFIXES = (".jpg", ".jpeg", ".png")
PHOTO_MODES = ("RGB", "L", "P", "RGBA")  # of Pillow: 8 bits for each channel, and what turns into RGB without loss
DEPTH_MODES = ("L", "P", "RGB", "RGBA", "LA")
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
    return _find_pairs(pathlib.Path(dataset_dir) / split, for_training=True)


def find_test_photos(dataset_dir):
    """All pairs of the test split, of any size; those without a file in bokeh/ have `bokeh=None`. Errors as above."""
    return _find_pairs(pathlib.Path(dataset_dir) / "test", for_training=False)


def _find_pairs(folder, for_training):
    problems = []
    photos = _images_by_name(folder / "original", problems)
    depths = _images_by_name(folder / "original_depth", problems)
    bokehs = _images_by_name(folder / "bokeh", problems) if for_training or (folder / "bokeh").is_dir() else {}
    if problems:
        raise DataError(_problem_list(folder, problems))
    candidates = []
    for name in sorted(photos.keys() | (depths.keys() | bokehs.keys() if for_training else set()), key=_numeric_order):
        files = {"original": photos.get(name), "original_depth": depths.get(name), "bokeh": bokehs.get(name)}
        needed = files if for_training else ("original", "original_depth")
        missing = [kind for kind in needed if not files[kind]]
        problems += [f"{kind}/{name}: is missing" for kind in missing]
        if not missing:
            candidates.append(Pair(name, *files.values(), size=None))
    with concurrent.futures.ThreadPoolExecutor(4 * _processors()) as pool:
        pairs = list(pool.map(lambda pair: _check_headers(pair, for_training, problems), candidates))
    if problems:
        raise DataError(_problem_list(folder, sorted(problems, key=_numeric_order)))
    return pairs


def _images_by_name(folder, problems):
    """{name without suffix: path} of the images in a folder."""
    if not folder.is_dir():
        problems.append(f"{folder.name}/: no such folder")
        return {}
    images = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in images:
            problems.append(f"{folder.name}/{path.name}: goes by the same name as {images[path.stem].name}; keep one")
        images[path.stem] = path
    if not images:
        problems.append(f"{folder.name}/: holds no .jpg, .jpeg or .png")
    return images


def _check_headers(pair, for_training, problems):
    """Returns the pair with its size; adds to `problems` what is wrong with it."""
    def problem(path, text):
        problems.append(f"{path.parent.name}/{path.name}: {text}")

    headers = {}
    for path in filter(None, (pair.photo, pair.depth, pair.bokeh)):
        try:
            with Image.open(path) as image:
                headers[path] = image.size, image.mode
        except UNREADABLE as error:
            problem(path, f"is not a readable image ({str(error).splitlines()[0]})")
    for path, (_, mode) in headers.items():
        modes = DEPTH_MODES if path == pair.depth else PHOTO_MODES
        if mode not in modes:
            problem(path, f"has the pixel format {mode}; convert it to 8-bit {'grey' if path == pair.depth else 'RGB'}")
    if pair.photo not in headers:
        return pair
    size = width, height = headers[pair.photo][0]
    if pair.depth in headers and headers[pair.depth][0] != (width // 2, height // 2):
        problem(pair.depth, f"is {_size_text(headers[pair.depth][0])}, "
                            f"half of the photo is {_size_text((width // 2, height // 2))}")
    if pair.bokeh in headers and headers[pair.bokeh][0] != size:
        problem(pair.bokeh, f"is {_size_text(headers[pair.bokeh][0])}, the photo is {_size_text(size)}")
    if for_training and min(size) < 2 * PATCH:
        problem(pair.photo, f"is {_size_text(size)}, too small for patches of {2 * PATCH} x {2 * PATCH}")
    if min(size) < 2:
        problem(pair.photo, f"is {_size_text(size)}, too small to be halved")
    return pair._replace(size=size)


def _problem_list(folder, problems):
    lines = [f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    lines += [f"  {folder.name}/{problem}" for problem in problems]
    if any("original_depth/" in problem and ("missing" in problem or "no such" in problem) for problem in problems):
        lines.append("  EBB! comes without depth maps; the README says how to make them (Downloads)")
    if folder.name == "test" and any("bokeh/" in problem for problem in problems):
        lines.append("  EBB! publishes no test targets: move some pairs of train/ to test/ for the metrics in training")
    return "\n".join(lines)


def _numeric_order(text):
    parts = re.split(r"([0-9]+)", text)  # text, number, text, number, ... text
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _size_text(size):
    return f"{size[0]} x {size[1]}"


# One photo -----------------------------------------------------------------------------------------------------------


def load_input(pair):
    """The network's input for a whole photo: uint8 (height / 2, width / 2, 4), RGB and depth, 0-255.

    The photo is halved with Pillow's bicubic filter, odd sizes are rounded down. DataError names a damaged file.
    """
    photo = read_image(pair.photo, "RGB")
    return _with_depth(_resize(photo, photo.width // 2, photo.height // 2), pair)


def load_target(pair, level):
    """The whole bokeh photo at the size of `level`'s output: uint8 (height / s, width / s, 3), s = 2^(level - 1)."""
    bokeh = read_image(pair.bokeh, "RGB")
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
    patch = load_input(pair)[top:top + PATCH, left:left + PATCH]
    bokeh = read_image(pair.bokeh, "RGB").crop((2 * left, 2 * top, 2 * (left + PATCH), 2 * (top + PATCH)))
    side = target_side(level)
    return patch, np.asarray(_resize(bokeh, side, side))


def target_side(level):
    """Height and width of a training target of `level`: 1024 for level 1, 16 for level 7."""
    return 2 * PATCH >> (level - 1)


def read_image(path, mode):
    """Decodes a whole image file as Pillow's "RGB" or "L"; DataError where it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert(mode)
    except UNREADABLE as error:
        raise DataError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None


def _with_depth(half, pair):
    depth = read_image(pair.depth, "L")
    if depth.size != half.size:
        raise DataError(f"{pair.depth}: is {_size_text(depth.size)}, half of the photo is {_size_text(half.size)}")
    return np.dstack([half, depth])


def _resize(image, width, height):
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


# Streams of batches --------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """inputs uint8 (images, 512, 512, 4), targets uint8 (images, s, s, 3), and the photos' names."""

    inputs: np.ndarray
    targets: np.ndarray
    names: list


def training_batches(pairs, level, batch_size, train_size, first, last, seed=0):
    """Yields the `Batch`es of iterations `first` to `last`, decoded ahead in parallel.

    Which photos are in a batch, and their patches, quarter turns and flips, depends on the seed, the level, the
    iteration and the list of pairs only.
    """
    def draws():
        for iteration in range(first, last + 1):
            chosen = _photos_of_batch(len(pairs), level, batch_size, train_size, iteration, seed)
            for place, index in enumerate(chosen):
                yield pairs[index], np.random.default_rng([seed, level, iteration, place])

    def load(draw):
        pair, random = draw
        return pair.name, *_augment(*load_patch(pair, level, *_random_corner(pair, random)), random)

    yield from _batches(load, draws(), batch_size)


def test_batches(pairs, level, batch_size):
    """Yields `Batch`es with the patch in the middle of every pair, in order; the last may be smaller."""
    def load(pair):
        left, top = (side // 2 - PATCH >> 1 for side in pair.size)
        return pair.name, *load_patch(pair, level, left, top)

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
        parts.append(part)
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
    patch, target = np.rot90(patch, turns), np.rot90(target, turns)
    return (np.flipud(patch), np.flipud(target)) if flip else (patch, target)


def _processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
