"""Renders the test photos of a data set with PyNET and measures the results: python test_model.py [orig=true]."""

import math
import sys

import numpy as np

import load_dataset
import utils
from utils import DataError, Parameter, UsageError

BORDER = 32  # pixels cut off on every side before the metrics
SMALLEST_FOR_SSIM = 11  # its Gaussian window
SMALLEST_FOR_MS_SSIM = 11 * 2 ** 4  # the same window at the coarsest of five scales
METRICS = ("PSNR", "SSIM", "MS-SSIM")
LEVELS_WITH_METRICS = (1, 2, 3)

PARAMETERS = (
    Parameter("level", int, 1, "level to render; 4 to 7 are too small for the metrics", 1, 7),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("restore_iter", int, None, "iteration of the level to use", 1, default_text="last saved"),
    Parameter("use_gpu", bool, True, "false hides the GPU"),
    Parameter("dataset_dir", str, "ebb_dataset/", "folder with test/"),
)
USAGE = "python test_model.py [name=value ...]"


def main(argv):
    """Renders all test photos as the arguments say. Returns the exit status: 1 if a photo could not be read."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    if settings.orig and settings.restore_iter:
        raise UsageError("restore_iter: the released weights (orig=true) have no iterations; leave one of the two out")
    prefix, suffix = find_weights(settings)
    utils.prepare_folders(utils.FULL_RESOLUTION)
    pairs = load_dataset.find_test_photos(settings.dataset_dir)
    with_target = sum(pair.bokeh is not None for pair in pairs)
    print(f"Data: {len(pairs)} test photos in {settings.dataset_dir}, {with_target} with a target")
    if settings.level not in LEVELS_WITH_METRICS:
        print(f"Level {settings.level} renders at 1/{2 ** (settings.level - 1)} of the photo's size, "
              "which is too small for SSIM and MS-SSIM: no metrics")
        pairs = [pair._replace(bokeh=None) for pair in pairs]
    utils.start_tensorflow(settings.use_gpu)
    return render_all(settings, pairs, prefix, suffix)


def find_weights(settings):
    """The prefix of the checkpoint, and what the names of the results end in."""
    if settings.orig:
        return utils.find_original(), f"_level_{settings.level}_orig.png"
    prefix, iteration = utils.find_checkpoint(settings.level, settings.restore_iter)
    return prefix, f"_level_{settings.level}_iteration_{iteration}.png"


def render_all(settings, pairs, prefix, suffix):
    """Renders and measures photo by photo; the next ones are read meanwhile."""
    import model
    pynet = model.build_pynet(seed=None)
    utils.restore_checkpoint(pynet.variables, prefix)
    print(f"Weights: {prefix}")
    render = make_renderer(model.network_for_level(pynet, settings.level), settings.level)

    found, unreadable = [], 0
    for number, (pair, photo, target) in enumerate(load_dataset.stream(
            lambda pair: read_photo(pair, settings.level), pairs, ahead=2), 1):
        if isinstance(photo, DataError):
            print(f"error: {photo}", file=sys.stderr)
            unreadable += 1
            continue
        image = render(photo, pair.size)
        path = utils.FULL_RESOLUTION / (pair.name + suffix)
        utils.write_image(path, utils.to_uint8(image))
        measured = measure(image, target) if target is not None else {}
        found.append(measured)
        print(f"{number}/{len(pairs)} {path}" + (": " + metrics_text(measured) if measured else ""), flush=True)
    print_means(found)
    if unreadable:
        print(f"error: {unreadable} of {len(pairs)} photos could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def read_photo(pair, level):
    """(pair, input, target or None); what cannot be rendered gives (pair, DataError, None), so that the others are."""
    width, height = pair.size
    if not min(width, height) >> (level - 1):
        return pair, DataError(f"{pair.photo}: is {width} x {height}, too small for level {level}"), None
    try:
        target = load_dataset.load_target(pair, level) if pair.bokeh else None
        return pair, load_dataset.load_input(pair), target
    except DataError as error:
        return pair, error, None


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
        return run_network(padded[np.newaxis])[0, :height >> (level - 1), :width >> (level - 1)].numpy()

    return render


def pad_by_reflection(image, height, width):
    """Continues an image (h, w, channels) to the right and below by its mirror image, to (height, width, channels)."""
    return np.pad(image, [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)], "reflect")


def measure(image, target):
    """PSNR in dB, SSIM and MS-SSIM of a rendered photo, without its border; NaN where it is too small for one.

    image: float32 (height, width, 3) in [0, 1]; target: uint8 of the same shape.
    """
    import tensorflow as tf
    inside = slice(BORDER, -BORDER)
    image = tf.constant(image[inside, inside])
    target = tf.constant(np.float32(target[inside, inside]) / 255)
    smallest = min(image.shape[:2])
    return {
        "PSNR": float(tf.image.psnr(image, target, 1.0)) if smallest > 0 else math.nan,
        "SSIM": float(tf.image.ssim(image, target, 1.0)) if smallest >= SMALLEST_FOR_SSIM else math.nan,
        "MS-SSIM": float(tf.image.ssim_multiscale(image[None], target[None], 1.0)[0])
        if smallest >= SMALLEST_FOR_MS_SSIM else math.nan,
    }


def metrics_text(values):
    """PSNR 23.41 dB, SSIM 0.8651, MS-SSIM 0.9123; metrics that are NaN are named as too small for it."""
    text = []
    for name in METRICS:
        unit = " dB" if name == "PSNR" else ""
        text.append(f"{name} too small a photo" if math.isnan(values[name]) else
                    f"{name} {values[name]:.{2 if unit else 4}f}{unit}")
    return ", ".join(text)


def print_means(found):
    """The means over the photos that have a target."""
    measured = [values for values in found if values]
    if not measured:
        print(f"{len(found)} photos rendered, none measured")
        return
    means = {}
    for name in METRICS:
        known = [values[name] for values in measured if not math.isnan(values[name])]
        means[name] = float(np.mean(known)) if known else math.nan
    print(f"mean of {len(measured)} photos: {metrics_text(means)}")


if __name__ == "__main__":
    sys.exit(utils.run(main))
