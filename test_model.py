"""Renders photos with PyNET: the test photos of a data set, and measures them, or your own photos.

    python test_model.py [orig=true | small=true]
    python test_model.py images_dir=my_photos [depth_dir=my_depth] [orig=true | small=true]

Each run has a folder in results/full-resolution/; index.html there shows it.
"""

import concurrent.futures
import math
import os
import signal
import sys
import warnings

import numpy as np

import load_dataset
import utils
from support import (
    checkpoints,
    dataset_files,
    depth_networks,
    devices,
    focus_maps,
    image_metrics,
    own_photos,
    results_page,
    scripts,
    training_log,
)
from support.renderer import Renderer
from utils import DataError, Parameter, UsageError, tf

BORDER = 32  # pixels cut off on every side before the metrics
LEVELS_WITH_METRICS = (1, 2, 3)
THREADS = 2  # one reads, measures and writes photos while the network renders that of the other

PARAMETERS = (
    Parameter("level", int, 1, "level to render; 4 to 7 are too small for the metrics", minimum=1, maximum=7),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("restore_iter", int, None, "iteration of the level to use", minimum=1, default_text="last saved"),
    Parameter("use_gpu", bool, True, "false hides the GPU"),
    Parameter("precision", utils.PRECISIONS, "float32", "of the feature maps; float32 is exact"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with test/"),
    Parameter("val_size", int, 0, "test on the last N pairs of train/; as in training where that is known", minimum=0),
    Parameter("small", bool, False, "use the small network's weights in models/small/"),
    Parameter("images_dir", str, None, "own photos to render instead: a folder or a file", default_text="none"),
    Parameter("depth_dir", str, None, "depth maps of images_dir: a folder or a file",
              default_text="those inside the photos, or made by depth_model"),
    Parameter("depth_model", str, depth_networks.DEFAULT,
              f"depth network for own photos without a depth map: a file, or {' or '.join(depth_networks.NAMED)}"),
    Parameter("depth_is", tuple(depth_networks.OUTPUTS), "inverse", "what the numbers of depth_dir mean"),
    Parameter("max_side", int, None, "longer side in pixels at which own photos are computed",
              minimum=own_photos.SMALLEST_SIDE, default_text=f"{own_photos.LEARNED_SIDE}, for photos larger than "
              f"{own_photos.LARGEST_SIDE}"),
    Parameter("focus", str, None, "X,Y as shares of width and height: what is in focus in own photos",
              default_text="what is near around the middle"),
    Parameter("aperture", float, 1.0, "own photos: 0 leaves all in focus, 2 doubles every disc", minimum=0),
    Parameter("detail", bool, None, "level 1 with the photo's detail in focus; false gives the network's bare picture",
              default_text="true for own photos"),
    Parameter("out", str, None, "folder of the results", default_text=f"{utils.FULL_RESOLUTION}/<run>/"),
)
FOR_DATA_SETS = "dataset_dir", "val_size"
FOR_OWN_PHOTOS = "depth_dir", "depth_model", "depth_is", "max_side", "focus", "aperture"
USAGE = "python test_model.py [name=value ...]"


def main(argv):
    """Renders all photos as the arguments say. Returns the exit status: 1 if one could not be read or written."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    check_arguments(settings)
    if not settings.images_dir:
        training_log.follow_val_size(settings)
        dataset_files.check_photos(settings.dataset_dir, "train" if settings.val_size else "test")
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata; what cannot be read is an error all the same
    signal.signal(signal.SIGTERM, stop)
    left_out = FOR_DATA_SETS if settings.images_dir else FOR_OWN_PHOTOS
    run = results_page.describe_run(settings, *checkpoints.find_weights(settings), left_out)
    utils.prepare_folders(run.folder)
    find = own_photos.find_photos_to_render if settings.images_dir else find_test_photos
    early = settings.images_dir and not depth_networks.needs_tensorflow(settings.depth_model)
    expected = training_log.takes_maps(settings)
    found = find(settings, expected) if early else None  # what is missing is said before the long start of TensorFlow
    devices.start_tensorflow(settings.use_gpu, settings.precision)
    takes_maps = checkpoints.takes_maps(checkpoints.network_of(run.prefix))
    if not early or takes_maps != expected:
        found = find(settings, takes_maps)
    renderer = Renderer(run.prefix, settings.level, settings.precision)
    renderer.check_maps(settings, found[0])
    return render_all(settings, run, renderer, *found)


def stop(number, frame):
    """Ends the process on a signal as Ctrl-C does, with the page of what was rendered."""
    raise SystemExit(128 + number)


def check_arguments(settings):
    """Raises UsageError for arguments that do not go together."""
    checkpoints.check_weights(settings)
    use = "a data set; leave images_dir out" if settings.images_dir else "own photos, but images_dir is missing"
    for name in FOR_DATA_SETS if settings.images_dir else FOR_OWN_PHOTOS:
        if name in settings.given:
            raise UsageError(f"{name}: is for {use}")
    if settings.detail and settings.level > 1:
        raise UsageError(f"detail=true: is for level 1; the pictures of level {settings.level} are too small for it")
    if settings.detail is None:
        settings.detail = bool(settings.images_dir) and settings.level == 1
    depth_networks.check_name(settings.depth_model)
    if settings.focus:
        settings.focus = focus_maps.parse_focus(settings.focus)
    if "depth_is" in settings.given and not settings.depth_dir:
        raise UsageError("depth_is: is for the maps in depth_dir=; those inside photos say what they are")
    if settings.depth_dir and os.path.realpath(settings.images_dir) == os.path.realpath(settings.depth_dir):
        raise UsageError(f"depth_dir={settings.depth_dir}: is where the photos are; give the folder of the depth maps")
    out = settings.out and os.path.realpath(settings.out)
    if out and out in (os.path.realpath(folder) for folder in (settings.images_dir, settings.depth_dir) if folder):
        raise UsageError(f"out={settings.out}: is where the photos or their depth maps are; give another folder")


def find_test_photos(settings, use_depth):
    """Returns (pairs of the data set, []), without targets where the level is too small to be measured."""
    pairs = dataset_files.find_test_photos(settings.dataset_dir, use_depth, settings.val_size)
    if settings.level not in LEVELS_WITH_METRICS:
        print(f"Level {settings.level} renders at 1/{2 ** (settings.level - 1)} of the photo's size, "
              "which is too small for SSIM and MS-SSIM: no metrics")
        pairs = [pair._replace(bokeh=None) for pair in pairs]
    elif not any(pair.bokeh for pair in pairs):
        utils.say(f"No metrics: {settings.dataset_dir} has no targets in test/bokeh/; val_size=N measures on the last "
                  "N pairs of train/")
    return pairs, []


def render_all(settings, run, renderer, pairs, problems):
    """Renders the photos and shows the results; `problems` are those already known. Returns the exit status."""
    iteration = checkpoints.iteration_of(run.prefix)  # None for released and small weights
    card, place = training_log.card_rows(settings.level, iteration), settings.images_dir or settings.dataset_dir
    data = f"Data: {len(pairs)} photo{'s' * (len(pairs) != 1)} of {place}"
    for line in filter(None, [f"Weights: {run.prefix}", card.get("Origin"), data]):
        utils.say(line)
    futures, total = [], len(pairs) + len(problems)
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        for pair in pairs:
            futures.append(pool.submit(render_photo, settings, run, renderer, pair))
        for number, future in enumerate(futures, 1):
            try:
                result = future.result()
                utils.say(f"{number}/{len(pairs)} {result.path} {results_page.metrics_text(result.metrics)}")
            except DataError as error:
                problems.append(str(error))
                utils.warn(error, kind="error")
    finally:  # a run that is stopped shows what it has
        pool.shutdown(cancel_futures=True)
        results = [future.result() for future in futures if not future.cancelled() and not future.exception()]
        if results:
            results_page.show_page(run, card | {"TensorFlow": tf.__version__}, results, problems, total)
    means = results_page.mean_metrics([result.metrics for result in results])
    if means:
        print(f"Mean: {results_page.metrics_text(means)}")
    if means and iteration and not settings.detail:  # the level's curve is that of its bare pictures
        try:
            training_log.write_test_means(settings.level, iteration, results_page.curve_name(settings, run), means)
        except (OSError, DataError) as error:
            utils.warn(error)
    if len(results) < total:
        print(f"error: {total - len(results)} of {total} photos could not be rendered", file=sys.stderr)
    return 1 if problems else 0


def render_photo(settings, run, renderer, pair):
    """Reads, renders, measures and writes a photo. Returns its `results_page.Result`; DataError for whatever fails."""
    path = run.folder / (pair.name + run.suffix)
    try:
        return _render_photo(settings, renderer, path, pair)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: it or its small pictures could not be written ({error.strerror or error})") from None
    except (MemoryError, tf.errors.ResourceExhaustedError, tf.errors.AbortedError):  # the last is oneDNN's
        raise DataError(f"{pair.photo}: does not fit into the device's memory; use_gpu=false renders on the CPU, "
                        "max_side= makes own photos smaller") from None
    except Exception as error:  # of one photo, whatever it is: the others are rendered
        raise DataError(f"{pair.photo}: {type(error).__name__}: {utils.first_line(error)}") from error


def _render_photo(settings, renderer, path, pair):
    metrics, target, info = {}, None, {}
    if settings.images_dir:
        seen, computed, photo = own_photos.load_input(pair, settings.max_side, settings.depth_is)
        seen = renderer.refocus(seen, settings.focus, settings.aperture, pair.photo)
        picture = renderer.render_own(seen, computed, photo, settings.detail, pair.photo)
        size, info, picture = photo.size, picture.info, np.asarray(picture)
    else:
        seen, size = load_dataset.load_input(pair), pair.size
        seen = renderer.refocus(seen, name=pair.photo) if pair.kind == "depth" else seen
        target = load_dataset.load_target(pair, settings.level) if pair.bokeh else None
        photo = load_dataset.read(pair, "photo") if settings.detail else None
        with renderer.lock:  # measuring, too, so that it need not wait for the network again
            image = (np.float32(renderer.render_own(seen, size, photo, name=pair.photo)) / 255 if settings.detail
                     else renderer.render_whole(seen, size, pair.photo))
            metrics = measure(image, target) if pair.bokeh else {}
        picture = utils.to_uint8(image)
    utils.write_image(path, picture, info)
    kind = "focus" if settings.focus and renderer.kind else renderer.kind
    pictures = results_page.write_thumbnails(path, seen, picture, target, kind, info.get("icc_profile"))
    return results_page.Result(pair.name, path, size, metrics, pictures)


def measure(image, target):
    """Returns PSNR in dB, SSIM and MS-SSIM of a rendered photo without its border; NaN where it is too small for one.

    image: float32 (height, width, 3) in [0, 1]; target: uint8 of the same shape.
    """
    metrics = {"PSNR": (image_metrics.psnr, 1), "SSIM": (image_metrics.ssim, utils.SSIM_SIDE),
               "MS-SSIM": (image_metrics.ms_ssim, utils.MS_SSIM_SIDE)}
    image, target = (tf.constant(np.float32(whole[np.newaxis, BORDER:-BORDER, BORDER:-BORDER]))
                     for whole in (image, target))
    return {name: float(metric(image, target / 255)[0]) if min(image.shape[1:3]) >= smallest_side else math.nan
            for name, (metric, smallest_side) in metrics.items()}


if __name__ == "__main__":
    sys.exit(scripts.run(main))
