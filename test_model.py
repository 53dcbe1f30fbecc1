"""Renders photos with PyNET: the test photos of a data set, and measures them, or your own photos.

    python test_model.py [orig=true | small=true]
    python test_model.py images_dir=my_photos [depth_dir=my_depth] [orig=true | small=true]

The results are in results/full-resolution/; index.html shows them.
"""

import concurrent.futures
import datetime
import functools
import math
import os
import pathlib
import re
import sys
import threading
import warnings

import numpy as np
from PIL import Image

import load_dataset
import utils
from support import (
    checkpoints,
    dataset_files,
    depth_networks,
    detail,
    devices,
    focus_maps,
    image_metrics,
    own_photos,
    results_page,
    training_log,
)
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
    Parameter("val_size", int, 0, "pairs at the end of train/ to test on, instead of test/", minimum=0),
    Parameter("small", bool, False, "use the small network's weights in models/small/"),
    Parameter("images_dir", str, None, "own photos to render instead: a folder or a file", default_text="none"),
    Parameter("depth_dir", str, None, "their depth maps: a folder or a file",
              default_text="those inside the photos, or made by depth_model"),
    Parameter("depth_model", str, depth_networks.DEFAULT,
              f"depth network for own photos without a depth map: a file, or {' or '.join(depth_networks.NAMED)}"),
    Parameter("depth_is", tuple(depth_networks.OUTPUTS), "inverse", "what the numbers of depth_dir mean"),
    Parameter("max_side", int, None, "longer side in pixels at which the network computes own photos",
              minimum=own_photos.SMALLEST_SIDE, default_text=f"{own_photos.LEARNED_SIDE}, for photos larger than "
              f"{own_photos.LARGEST_SIDE}"),
    Parameter("focus", str, None, "X,Y as shares of width and height: what is in focus in own photos",
              default_text="what is near around the middle"),
    Parameter("aperture", float, 1.0, "own photos: 0 leaves all in focus, 2 doubles every disc", minimum=0),
    Parameter("detail", bool, True, "own photos keep their own detail in focus; false is the network's bare picture"),
)
FOR_DATA_SETS = "dataset_dir", "val_size"
FOR_OWN_PHOTOS = "depth_dir", "depth_model", "depth_is", "max_side", "focus", "aperture", "detail"
USAGE = "python test_model.py [name=value ...]"


def main(argv):
    """Renders all photos as the arguments say. Returns the exit status: 1 if one could not be read or written."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    check_arguments(settings)
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata; what cannot be read is an error all the same
    prefix, suffix = find_weights(settings)
    utils.prepare_folders(utils.FULL_RESOLUTION)
    devices.start_tensorflow(settings.use_gpu, settings.precision)
    network = checkpoints.network_of(prefix)
    find = own_photos.find_photos_to_render if settings.images_dir else find_test_photos
    pairs, problems = find(settings, checkpoints.takes_maps(network))
    renderer = Renderer(prefix, settings.level, settings.precision)
    say_what_is_in_focus(settings, renderer, pairs)
    return render_all(settings, pairs, problems, renderer, prefix, suffix)


def check_arguments(settings):
    """Raises UsageError for arguments that do not go together, DataError without a data set."""
    check_weights(settings)
    use = "a data set; leave images_dir out" if settings.images_dir else "own photos, but images_dir is missing"
    for name in FOR_DATA_SETS if settings.images_dir else FOR_OWN_PHOTOS:
        if name in settings.given:
            raise UsageError(f"{name}: is for {use}")
    if settings.depth_model not in depth_networks.NAMED and not os.path.exists(settings.depth_model):
        raise UsageError(f"depth_model={settings.depth_model}: must be a file, or {' or '.join(depth_networks.NAMED)}")
    if settings.focus:
        settings.focus = parse_focus(settings.focus)
    if "depth_is" in settings.given and not settings.depth_dir:
        raise UsageError("depth_is: is for the maps in depth_dir=; those inside photos say what they are")
    if settings.depth_dir and os.path.realpath(settings.images_dir) == os.path.realpath(settings.depth_dir):
        raise UsageError(f"depth_dir={settings.depth_dir}: is where the photos are; give the folder of the depth maps")
    folder, split = settings.dataset_dir, "train" if settings.val_size else "test"
    if not settings.images_dir and not dataset_files.list_files(folder, split, kind=None)[0]["photo"]:
        raise DataError(f"{folder}: no such folder, or no photos in {split}/; images_dir=FOLDER renders your own")


def parse_focus(text):
    """Returns (x, y) of "0.5,0.3", shares of width and height. Raises UsageError where it is no point of the photo."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+),([0-9]*\.?[0-9]+)", text)
    point = tuple(map(float, match.groups())) if match else (math.inf,)
    if max(point) > 1:
        raise UsageError(f"focus={text}: must be X,Y from 0 to 1, shares of the photo's width and height from its top "
                         "left corner, such as 0.5,0.4")
    return point


def check_weights(settings):
    """Raises UsageError where more than one kind of weights is asked for."""
    weights = [name for name in ("orig", "small", "restore_iter") if getattr(settings, name)]
    if len(weights) > 1:
        raise UsageError(f"{weights[-1]}: orig=true, small=true and restore_iter= choose weights; give only one")


def find_weights(settings):
    """Returns the prefix of the checkpoint, and what the names of the results end in. Raises DataError without one."""
    if settings.orig:
        return checkpoints.find_published(utils.ORIGINAL), f"_level_{settings.level}_orig.png"
    if settings.small:
        return checkpoints.find_published(utils.SMALL), f"_level_{settings.level}_small.png"
    try:
        prefix, iteration = checkpoints.find_checkpoint(settings.level, settings.restore_iter)
    except DataError as error:
        raise DataError(f"{error}; orig=true takes the released weights, small=true the small network's") from None
    return prefix, f"_level_{settings.level}_iteration_{iteration}.png"


def find_test_photos(settings, use_depth):
    """Returns (pairs of the data set, []), without targets where the level is too small to be measured."""
    pairs = dataset_files.find_test_photos(settings.dataset_dir, use_depth, settings.val_size)
    if settings.level not in LEVELS_WITH_METRICS:
        print(f"Level {settings.level} renders at 1/{2 ** (settings.level - 1)} of the photo's size, "
              "which is too small for SSIM and MS-SSIM: no metrics")
        pairs = [pair._replace(bokeh=None) for pair in pairs]
    return pairs, []


def say_what_is_in_focus(settings, renderer, pairs):
    """Prints where maps are not what the network was trained on. Raises DataError where it cannot use them."""
    renderer.check_focus(settings.focus, settings.aperture)
    kinds = {pair.kind for pair in pairs} - {None}
    if not settings.images_dir and renderer.kind == "depth" and kinds == {"focus"}:
        raise DataError(f"{settings.dataset_dir}: has focus maps, and the network was trained on depth maps; test it "
                        "on a data set with original_depth/")
    if not settings.images_dir and renderer.kind == "focus" and kinds == {"depth"}:
        print("Note: the network was trained on focus maps; they are made of the depth maps, with what is near around "
              "the middle in focus")
    if settings.focus and renderer.kind == "depth":
        print("Note: the network was trained on depth maps; focus= gives it the distance from the focus instead, which "
              "is a trick that it was not trained for")


def render_all(settings, pairs, problems, renderer, prefix, suffix):
    """Renders the photos and shows the results; `problems` are those already known. Returns the exit status."""
    iteration = checkpoints.iteration_of(prefix)  # None for released and small weights
    data = f"Data: {len(pairs)} photo{'s' * (len(pairs) != 1)} of {settings.images_dir or settings.dataset_dir}"
    origin = training_log.card_rows(settings.level, iteration).get("Origin")
    print(*filter(None, [f"Weights: {prefix}", origin, data]), sep="\n")
    render_one = functools.partial(render_photo, settings, renderer, suffix)
    results, total = [], len(pairs) + len(problems)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            for number, result in enumerate(pool.map(render_one, pairs), 1):
                if isinstance(result, str):
                    problems.append(result)
                    utils.warn(result, kind="error")
                    continue
                results.append(result)
                print(f"{number}/{len(pairs)} {result.path}", results_page.metrics_text(result.metrics), flush=True)
        finally:  # a run that is stopped shows what it has
            if results:
                show_page(settings, results, problems, total, prefix, suffix)
    means = results_page.mean_metrics([result.metrics for result in results])
    if means:
        print(f"Mean: {results_page.metrics_text(means)}")
    if means and iteration:
        try:
            training_log.write_test_means(settings.level, iteration, f"test_{run_name(settings)}", means)
        except (OSError, DataError) as error:
            utils.warn(error)
    if len(results) < total:
        print(f"error: {total - len(results)} of {total} photos could not be rendered", file=sys.stderr)
    return 1 if problems else 0


def render_photo(settings, renderer, suffix, pair):
    """Reads, renders, measures and writes a photo. Returns its `results_page.Result`, or a text if that fails."""
    path = utils.FULL_RESOLUTION / (pair.name + suffix)
    try:
        metrics, target = {}, None
        if settings.images_dir:
            seen, computed, photo = own_photos.load_input(pair, settings.max_side, settings.depth_is)
            seen = renderer.refocus(seen, settings.focus, settings.aperture)
            picture = renderer.render_own(seen, computed, photo, settings.detail)
            info, picture = picture.info, np.asarray(picture)
        else:
            seen, photo, info = load_dataset.load_input(pair), pair, {}
            seen = renderer.refocus(seen) if pair.kind == "depth" else seen
            target = load_dataset.load_target(pair, settings.level) if pair.bokeh else None
            image = renderer.render_whole(seen, pair.size)
            metrics = measure(image, target) if pair.bokeh else {}
            picture = utils.to_uint8(image)
        utils.write_image(path, picture, info)
        pictures = results_page.write_thumbnails(path, seen, picture, target, pair.kind)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path}: it or its small pictures could not be written ({error.strerror or error})"
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return (f"{pair.photo}: does not fit into the device's memory; use_gpu=false renders on the CPU, "
                "max_side= makes own photos smaller")
    return results_page.Result(pair.name, path, photo.size, metrics, pictures)


class Renderer:
    """Renders photos of any kind with a network that is loaded once; several threads may use it.

        render = test_model.Renderer("small")
        render("photo.jpg", "depth.png").save("bokeh.png")

    Args:
      weights: "small", "orig" (the released weights in models/original/), or the prefix of a checkpoint.
      level: 1-7; the pictures of the levels above 1 are halved in size for each, without the photo's detail.
      precision: of the feature maps: "float32", "bfloat16" or "float16".
      depth_model: depth network for photos without a depth map, see `depth_networks.open_network`, loaded when needed.

    Raises DataError where the checkpoint is missing or damaged.
    """

    def __init__(self, weights="small", level=1, precision="float32", depth_model=depth_networks.DEFAULT):
        import model  # here, because it imports TensorFlow at its top
        published = {"small": utils.SMALL, "orig": utils.ORIGINAL}
        prefix = checkpoints.find_published(published[weights]) if weights in published else weights
        network = checkpoints.network_of(prefix)
        pynet = model.build_pynet(seed=None, precision=precision, **network)
        checkpoints.restore_checkpoint(pynet.variables, prefix)
        self.level, self.kind = level, training_log.map_kind(prefix)
        self.depth_model, self._to_depth = depth_model, None
        self._render, self._lock = make_renderer(model.network_for_level(pynet, level), level), threading.Lock()

    def __call__(self, photo, depth=None, depth_is="inverse", side=None, with_detail=True, focus=None, aperture=1.0):
        """Renders one photo. Returns a Pillow image of its size, with its colour profile and dates in `info`.

        Args:
          photo: path, Pillow image, or array, uint8 (height, width, 3), RGB.
          depth: its depth map, of any size: path, Pillow image, or array of numbers, (height, width). None takes the
            one inside the photo file, or has the depth network make one.
          depth_is: what the numbers of `depth` mean: "inverse" (bright = near), "depth", "distance" or "log_depth".
          side: longer side in pixels at which the network computes; by default 1536 for photos larger than 1920.
          with_detail: what is in focus keeps the photo's own detail; False gives the network's bare picture.
          focus, aperture: what is in focus, and how much the rest is blurred, see `refocus`.

        Raises DataError where photo or depth map cannot be used, UsageError where the network has no say in the focus.
        """
        if not self.kind:
            depth = None
        elif depth is None:
            depth = self.find_depth(photo)
        pair = own_photos.Pair("photo", photo, depth, bokeh=None, size=None)
        seen, size, photo = own_photos.load_input(pair, side, depth_is)
        return self.render_own(self.refocus(seen, focus, aperture), size, photo, with_detail)

    def find_depth(self, photo):
        """Returns the photo's path where a depth map is inside it; else what the depth network makes of the photo."""
        if own_photos.holds_depth(photo):
            return photo
        with self._lock:
            self._to_depth = self._to_depth or depth_networks.open_network(self.depth_model)
        return self._to_depth(own_photos.as_photo(photo), own_photos.name_of(photo))

    def check_focus(self, focus, aperture):
        """Raises UsageError where the network does not obey a focus or an aperture, see `refocus`."""
        if focus and not self.kind:
            raise UsageError("focus: the network takes no map, so it decides by itself what is in focus")
        if aperture != 1 and self.kind != "focus":
            raise UsageError("aperture: is for networks that were trained on focus maps, as small=true is")

    def refocus(self, seen, focus=None, aperture=1.0):
        """Puts the map that the network takes in place of the depth map in its input, uint8 (height, width, channels).

        A network that was trained on focus maps gets that of `focus_maps.refocus`. Others take depth maps, and blur
        what is dark: with a focus, they get the distance from its depth, which moves the focus though it is a trick.
        """
        self.check_focus(focus, aperture)
        if self.kind == "focus":
            return np.dstack([seen[..., :3], focus_maps.refocus(seen[..., 3], focus, aperture)])
        if focus:
            at_focus = focus_maps.depth_in_focus(seen[..., 3], focus)
            return np.dstack([seen[..., :3], focus_maps.focus_map(seen[..., 3], at_focus, strength=1)])
        return seen

    def render_own(self, seen, size, photo, with_detail=True):
        """Renders what `own_photos.load_input` gave. Returns a Pillow image, as `__call__` says."""
        framed, frame = detail.add_frame(seen, self.level)
        image = self.render_whole(framed, tuple(side + 2 * frame for side in size))
        image = Image.fromarray(utils.to_uint8(image[tuple(
            slice(frame >> (self.level - 1), (frame + side) >> (self.level - 1)) for side in reversed(size))]))
        return detail.finish(image, seen, photo, self.level, with_detail)

    def render_whole(self, seen, size):
        """Returns what the network makes of an input, see `make_renderer`. Raises DataError where it is not finite."""
        if not min(size) >> (self.level - 1):
            raise DataError(f"a photo of {load_dataset.size_text(size)} is too small for level {self.level}")
        with self._lock:
            image = self._render(seen, size)
        if not np.isfinite(image).all():
            raise DataError("the network's picture is not finite; its weights are damaged, or try precision=float32")
        return image


def make_renderer(network, level):
    """Returns render(photo, size) -> image, which passes a whole photo through the network.

    photo: uint8 (height / 2, width / 2, channels), the network's input; size: (width, height) of the photo in pixels.
    image: float32 (height / s, width / s, 3), s = 2^(level - 1), clipped to [0, 1].
    Where the photo's size is no multiple of 64 the input is continued by reflection, and the image cut back.
    """
    from model import INPUT_MULTIPLE

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([1, None, None, network.input_shape[-1]], tf.uint8)])
    def run_network(photo):
        output = network(tf.cast(photo, tf.float32) / 255, training=False)
        return tf.clip_by_value(output, 0.0, 1.0)

    def render(photo, size):
        width, height = size
        right, below = (math.ceil(side / 2 / INPUT_MULTIPLE) * INPUT_MULTIPLE - side // 2 for side in size)
        padded = np.pad(photo, [(0, below), (0, right), (0, 0)], "reflect")
        return run_network(padded[np.newaxis])[0, :height >> (level - 1), :width >> (level - 1)].numpy()

    return render


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


def show_page(settings, results, problems, total, prefix, suffix):
    """Writes the page of the results and prints where it is."""
    rows = {"Weights": prefix, "Photos": settings.images_dir or settings.dataset_dir, "Depth maps": settings.depth_dir,
            "Last pairs of train/": settings.val_size, "Level": settings.level, "Longest side": settings.max_side,
            "Precision": settings.precision, "TensorFlow": tf.__version__,
            "Date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}"}
    heading = {what: value for what, value in rows.items() if value}
    heading |= training_log.card_rows(settings.level, checkpoints.iteration_of(prefix))
    run = f"{suffix.removesuffix('.png').lstrip('_')}_{run_name(settings)}"
    try:
        page = results_page.write_page(utils.FULL_RESOLUTION, run, heading, results, problems, total)
        utils.say(f"Look at them: {page}")
    except OSError as error:
        problems.append(f"{utils.FULL_RESOLUTION}/index.html: could not be written ({error.strerror or error})")
        utils.warn(problems[-1], kind="error")


def run_name(settings):
    """Returns what the numbers of a checkpoint depend on: "ebb_dataset_float32", "ebb_dataset_val_294_bfloat16"."""
    photos = pathlib.Path(settings.images_dir or settings.dataset_dir).resolve().stem
    return f"{photos}{f'_val_{settings.val_size}' if settings.val_size else ''}_{settings.precision}"


if __name__ == "__main__":
    sys.exit(utils.run(main))
