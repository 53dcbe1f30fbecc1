"""Renders photos with PyNET: the test photos of a data set, and measures them, or your own photos.

    python test_model.py [orig=true]
    python test_model.py images_dir=my_photos depth_dir=my_depth [orig=true]

Reading, the network, and measuring and writing overlap, each photo goes through the network once.
"""

import collections
import concurrent.futures
import datetime
import filecmp
import functools
import itertools
import math
import os
import shlex
import sys
import warnings
from typing import NamedTuple, Optional

import numpy as np

import load_dataset
import utils
from tools import results_page, training_record
from utils import DataError, Parameter, UsageError

BORDER = 32  # pixels cut off on every side before the metrics
SMALLEST_FOR_SSIM = 11  # its Gaussian window
SMALLEST_FOR_MS_SSIM = 11 * 2 ** 4  # the same window at the coarsest of five scales
METRICS = ("PSNR", "SSIM", "MS-SSIM")
LEVELS_WITH_METRICS = (1, 2, 3)
EBB_SIDE, EBB_LONGEST_SIDE = 1536, 1700  # pixels of the longer side of EBB!'s photos, mostly and at most
READ_AHEAD, FINISH_BEHIND = 2, 1  # photos; what waits in memory before and after the network

PARAMETERS = (
    Parameter("level", int, 1, "level to render; 4 to 7 are too small for the metrics", 1, 7),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("restore_iter", int, None, "iteration of the level to use", 1, default_text="last saved"),
    Parameter("use_gpu", bool, True, "false hides the GPU"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; float32 is exact"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with test/"),
    Parameter("images_dir", str, None, "own photos to render instead: a folder or a file", default_text="none"),
    Parameter("depth_dir", str, None, "depth maps of the own photos: a folder or a file", default_text="none"),
    Parameter("max_side", int, None, "longest side in pixels; larger own photos are made smaller",
              load_dataset.SMALLEST_OWN, default_text="as they are"),
)
USAGE = "python test_model.py [name=value ...]"


class Scene(NamedTuple):
    """One photo as it was read. `size` is its (width, height), `info` what its result is to carry on."""

    input: np.ndarray  # uint8 (height / 2, width / 2, 4), RGB and depth; RGB alone without depth
    size: tuple
    target: Optional[np.ndarray]  # uint8, of the result's shape
    info: dict


def main(argv):
    """Renders all photos as the arguments say. Returns the exit status: 1 if one could not be read or written."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    check_combination(settings)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what cannot be read is an error all the same
    prefix, suffix = find_weights(settings)
    utils.prepare_folders(utils.FULL_RESOLUTION)
    use_depth = utils.takes_depth(prefix)
    pairs, problems = find_own_photos(settings, use_depth) if settings.images_dir else (
        find_test_photos(settings, use_depth), [])
    utils.start_tensorflow(settings.use_gpu, settings.precision)
    return render_all(settings, pairs, problems, prefix, suffix, use_depth)


def check_combination(settings):
    """UsageError for arguments that do not go together."""
    if settings.orig and settings.restore_iter:
        raise UsageError("restore_iter: the released weights (orig=true) have no iterations; leave one of the two out")
    if settings.depth_dir and not settings.images_dir:
        raise UsageError("images_dir: is missing; own photos are rendered with images_dir=FOLDER depth_dir=FOLDER")
    if settings.images_dir and settings.depth_dir and os.path.realpath(settings.images_dir) == os.path.realpath(
            settings.depth_dir):
        raise UsageError(f"depth_dir={settings.depth_dir}: is where the photos are; depth maps need a place of their own")
    if settings.images_dir and "dataset_dir" in settings.given:
        raise UsageError("images_dir: renders own photos, dataset_dir the test photos of a data set; leave one of them out")
    if settings.max_side and not settings.images_dir:
        raise UsageError("max_side: is for own photos (images_dir); those of a data set are rendered as they are")


def find_test_photos(settings, use_depth):
    """The test photos of the data set, without their targets where the level is too small to be measured."""
    pairs = load_dataset.find_test_photos(settings.dataset_dir, use_depth)
    with_target = sum(pair.bokeh is not None for pair in pairs)
    print(f"Data: {len(pairs)} test photos in {settings.dataset_dir}, {with_target} with a target")
    if settings.level not in LEVELS_WITH_METRICS:
        print(f"Level {settings.level} renders at 1/{2 ** (settings.level - 1)} of the photo's size, "
              "which is too small for SSIM and MS-SSIM: no metrics")
        pairs = [pair._replace(bokeh=None) for pair in pairs]
    return pairs


def find_own_photos(settings, use_depth):
    """(own photos that can be rendered, list of a text for each one that has no depth map); DataError where none has one."""
    problems = [f"{path}: is of a format that is not read; save it as JPEG, PNG, WebP or TIFF"
                for path in load_dataset.passed_over(settings.images_dir)]
    if use_depth and not settings.depth_dir:
        raise DataError("this network takes depth maps: say where they are with depth_dir=FOLDER (python -m "
                        "tools.make_depth_maps makes them)")
    depth_dir = settings.depth_dir if use_depth else None
    pairs, without_depth = load_dataset.find_own_pairs(settings.images_dir, depth_dir)
    places = " ".join(shlex.quote(f"{name}={getattr(settings, name)}") for name in ("images_dir", "depth_dir"))
    remedy = f"python -m tools.make_depth_maps model=FILE {places} makes it"
    problems += [f"{photo}: has no depth map in {depth_dir}; {remedy}" for photo in without_depth]
    if not pairs:
        raise DataError("\n  ".join(problems))
    maps = f" with a depth map in {depth_dir}" if use_depth else "; this network takes no depth maps"
    print(f"Data: {len(pairs)} photos in {settings.images_dir}{maps}")
    for problem in problems:
        utils.say(f"error: {problem}", file=sys.stderr)
    say_which_are_large(pairs, settings.max_side)
    return pairs, problems


def say_which_are_large(pairs, max_side):
    """Tells before the long wait that the blur of large photos will look small."""
    sizes = {pair.photo: load_dataset.header_size(pair.photo) for pair in pairs}
    large = [path for path, size in sizes.items() if size and min(max(size), max_side or math.inf) > EBB_LONGEST_SIDE]
    if large:
        width, height = sizes[large[0]]
        others = f" (one of {len(large)} large photos)" if len(large) > 1 else ""
        print(f"Notice: {large[0]} is {width} x {height}{others}; the blur was learned on photos of 1024 x {EBB_SIDE} "
              f"pixels and does not grow with the photo, so it looks weaker: max_side={EBB_SIDE} renders at that size")


def find_weights(settings):
    """The prefix of the checkpoint, and what the names of the results end in."""
    if settings.orig:
        return utils.find_original(), f"_level_{settings.level}_orig.png"
    if not settings.restore_iter and not utils.saved_iterations(settings.level) and any(utils.ORIGINAL.glob("*.index")):
        raise DataError(f"{utils.MODELS}/ holds no checkpoint of level {settings.level} of your own; orig=true uses the "
                        "released weights")
    prefix, iteration = utils.find_checkpoint(settings.level, settings.restore_iter)
    return prefix, f"_level_{settings.level}_iteration_{iteration}.png"


def render_all(settings, pairs, problems, prefix, suffix, use_depth):
    """Renders and measures photo by photo. `problems` holds a text for each photo that is already known to be left out."""
    import model
    pynet = model.build_pynet(seed=None, precision=settings.precision, use_depth=use_depth)
    utils.restore_checkpoint(pynet.variables, prefix)
    print(f"Weights: {prefix}")
    iteration = utils.iteration_of(prefix)  # none of the released weights
    card = training_record.card_text(settings.level, iteration)
    if card:
        print(card)
    read = functools.partial(read_photo, level=settings.level, max_side=settings.max_side)
    render = make_renderer(model.network_for_level(pynet, settings.level), settings.level)
    finish = functools.partial(finish_photo, suffix=suffix)

    results, total = [], len(pairs) + len(problems)
    try:
        for number, result in enumerate(render_overlapped(pairs, read, render, finish), 1):
            if isinstance(result, DataError):
                problems.append(str(result))
                utils.say(f"error: {result}", file=sys.stderr)
                continue
            results.append(result)
            print(f"{number}/{len(pairs)} {result_text(result)}", flush=True)
    finally:  # a run that is stopped shows what it has
        if results:
            show_page(page_heading(settings, prefix) | ({"Training": card} if card else {}), results, problems, total)
    means = mean_metrics([result.metrics for result in results])
    if iteration and means:
        record_means(settings.level, iteration, means)
    if len(results) < total:
        print(f"error: {total - len(results)} of {total} photos could not be rendered", file=sys.stderr)
    return 1 if problems else 0


def show_page(heading, results, problems, total):
    """Writes the page of the results and says where it is; a page that cannot be written is a problem."""
    try:
        page = results_page.write_page(utils.FULL_RESOLUTION, heading, results, METRICS, problems, total)
        utils.say(f"Look at them: {page}")
    except OSError as error:
        problems.append(f"{utils.FULL_RESOLUTION}/index.html: could not be written ({error.strerror or error})")
        utils.say(f"error: {problems[-1]}", file=sys.stderr)


def render_overlapped(pairs, read, render, finish):
    """Yields finish(pair, scene, image) for every pair, in order.

    read(pair) and finish(...) run in threads, the network in this one. A `read` that gives a DataError is passed on.
    """
    with concurrent.futures.ThreadPoolExecutor(FINISH_BEHIND) as pool:
        finishing = collections.deque()
        for pair, scene in load_dataset.stream(lambda pair: (pair, read(pair)), pairs, READ_AHEAD):
            image = None
            if not isinstance(scene, DataError):
                try:
                    image = render(scene.input, scene.size)
                except MemoryError:
                    scene = DataError(f"{pair.photo}: does not fit into the device's memory; use_gpu=false renders on the "
                                      "CPU, max_side= makes own photos smaller")
            finishing.append(pool.submit(finish, pair, scene, image))
            del scene, image
            if len(finishing) > FINISH_BEHIND:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()


def read_photo(pair, level, max_side):
    """The `Scene` of a pair, of an own photo where the pair's size is not known yet; a DataError where it has none."""
    try:
        if pair.size is None:
            photo, size, info = load_dataset.load_own_input(pair, max_side)
        else:
            photo, size, info = load_dataset.load_input(pair), pair.size, {}
        if not min(size) >> (level - 1):
            return DataError(f"{pair.photo}: is {size[0]} x {size[1]}, too small for level {level}")
        return Scene(photo, size, load_dataset.load_target(pair, level) if pair.bokeh else None, info)
    except DataError as error:
        return error


def finish_photo(pair, scene, image, suffix):
    """Measures a rendered photo and writes it: the `results_page.Result`, or a DataError where that failed.

    image: float32 (height, width, 3) in [0, 1]; suffix: what the names of the results end in.
    """
    if image is None:
        return scene
    path = utils.FULL_RESOLUTION / (pair.name + suffix)
    picture = utils.to_uint8(image)
    metrics = measure(image, scene.target) if scene.target is not None else {}
    try:
        older = write_result(path, picture, scene.info)
        pictures = results_page.write_thumbnails(path, scene.input, picture, scene.target)
    except OSError as error:
        return DataError(f"{path}: it or its small pictures could not be written ({error.strerror or error})")
    return results_page.Result(pair.name, path, scene.size, metrics, pictures, older)


def write_result(path, picture, info):
    """Writes a picture. An older one of that name that looks different is renamed; returns its new path or None."""
    new = path.with_name(f".{path.stem}.new.png")
    utils.write_image(new, picture, info)
    older = None
    if path.exists():
        if filecmp.cmp(new, path, shallow=False):
            new.unlink()
            return None
        numbered = (path.with_name(f"{path.stem}.older-{number}.png") for number in itertools.count(1))
        older = next(name for name in numbered if not name.exists())
        path.rename(older)
    new.replace(path)
    return older


def result_text(result):
    """results/full-resolution/7_level_1_orig.png: PSNR 23.41 dB ... (the older one is now ...older-1.png)"""
    text = str(result.path) + (": " + metrics_text(result.metrics) if result.metrics else "")
    return text + (f" (the older one is now {result.older.name})" if result.older else "")


def page_heading(settings, prefix):
    """{what: value} of the run, as texts, for the page of the results."""
    import tensorflow as tf
    photos = settings.images_dir or settings.dataset_dir
    rows = {"Weights": prefix, "Level": settings.level, "Photos": photos, "Depth maps": settings.depth_dir,
            "Longest side": settings.max_side, "Precision": settings.precision, "TensorFlow": tf.__version__,
            "Date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M")}
    return {what: str(value) for what, value in rows.items() if value is not None}


def make_renderer(network, level):
    """Returns render(photo, size): one pass of the network over a whole photo.

    photo: uint8 (height / 2, width / 2, 4), RGB and depth; size: (width, height) of the photo in pixels.
    Gives float32 (height / s, width / s, 3), s = 2^(level - 1), clipped to [0, 1]. Where the photo's size is no multiple
    of 64 the input is continued by reflection to the right and below, and the result cut back.
    """
    import tensorflow as tf
    from model import INPUT_MULTIPLE

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([1, None, None, network.input_shape[-1]], tf.uint8)])
    def run_network(photo):
        return tf.clip_by_value(network(tf.cast(photo, tf.float32) / 255, training=False), 0.0, 1.0)

    def render(photo, size):
        width, height = size
        padded = pad_by_reflection(photo, *(math.ceil(side / (2 * INPUT_MULTIPLE)) * INPUT_MULTIPLE
                                            for side in (height, width)))
        try:
            return run_network(padded[np.newaxis])[0, :height >> (level - 1), :width >> (level - 1)].numpy()
        except tf.errors.ResourceExhaustedError:
            raise MemoryError from None

    return render


def pad_by_reflection(image, height, width):
    """Continues an image (h, w, channels) to the right and below by its mirror image, to (height, width, channels)."""
    return np.pad(image, [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)], "reflect")


def measure(image, target):
    """PSNR in dB, SSIM and MS-SSIM of a rendered photo, without its border; NaN where it is too small for one.

    image: float32 (height, width, 3) in [0, 1]; target: uint8 of the same shape.
    """
    inside = slice(BORDER, -BORDER)
    image, target = image[inside, inside], target[inside, inside]
    smallest = min(image.shape[:2])
    psnr, ssim, ms_ssim = _metrics()
    return {
        "PSNR": float(psnr(image, target)) if smallest > 0 else math.nan,
        "SSIM": float(ssim(image, target)) if smallest >= SMALLEST_FOR_SSIM else math.nan,
        "MS-SSIM": float(ms_ssim(image, target)) if smallest >= SMALLEST_FOR_MS_SSIM else math.nan,
    }


@functools.cache
def _metrics():
    """PSNR, SSIM and MS-SSIM as graphs that serve photos of every size: they are traced once."""
    import tensorflow as tf
    signature = [tf.TensorSpec([None, None, 3], tf.float32), tf.TensorSpec([None, None, 3], tf.uint8)]

    def graph(metric):
        return tf.function(lambda image, target: metric(image[None], tf.cast(target, tf.float32)[None] / 255, 1.0)[0],
                           input_signature=signature, autograph=False)

    return [graph(metric) for metric in (tf.image.psnr, tf.image.ssim, tf.image.ssim_multiscale)]


def metrics_text(values):
    """PSNR 23.41 dB, SSIM 0.8651, MS-SSIM 0.9123; metrics that are NaN are named as too small for it."""
    text = []
    for name in METRICS:
        unit = " dB" if name == "PSNR" else ""
        text.append(f"{name} too small a photo" if math.isnan(values[name]) else
                    f"{name} {values[name]:.{2 if unit else 4}f}{unit}")
    return ", ".join(text)


def mean_metrics(found):
    """Prints and returns the means over the photos that have a target; {} where none has."""
    measured = [values for values in found if values]
    if not measured:
        print(f"{len(found)} photos rendered, none measured")
        return {}
    means = results_page.mean_metrics(measured, METRICS)
    print(f"mean of {len(measured)} photos: {metrics_text(means)}")
    return means


def record_means(level, iteration, means):
    """Adds the means to the level's curves."""
    above = (training_record.read_card(level) or {}).get("iterations_above", 0)
    folder = training_record.CURVES / f"level_{level}" / "test"
    try:
        training_record.write_curves(folder, above, iteration, [], {f"full resolution/{n}": v for n, v in means.items()}, [])
    except (OSError, DataError) as error:
        utils.warn(str(error))


if __name__ == "__main__":
    sys.exit(utils.run(main))
