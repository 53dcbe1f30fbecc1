"""Makes the depth maps that PyNET needs, with any monocular depth network that you have:

    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small images_dir=my_photos depth_dir=my_depth
    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small dataset_dir=ebb_dataset/

The network is a TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one channel. A
depth map is an 8-bit grey PNG of half the photo's width and height, rounded down, bright = near. Photos that have one
keep it.
"""

import functools
import math
import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

import load_dataset
import utils
from load_dataset import size_text
from support import devices, own_photos
from utils import DataError, Parameter, UsageError, tf

PERCENTILES = 1, 99  # of the network's output: what becomes 0 and 255; what lies outside is clipped
MID_GREY = 0.5  # the depth map of a constant output

# Input of a network that takes any size: the photo's shape, about as many pixels as 512 x 384, in whole multiples of 32
# (as MiDaS does for its larger networks: run.py of isl-org/MiDaS).
FREE_PIXELS, FREE_MULTIPLE = 512 * 384, 32

READ_AHEAD = 4  # photos that are read while the network computes
PREVIEWED, PREVIEW_SIZE = 6, (480, 360)  # photos on the contact sheet, spread evenly over all, and their pixels
PREVIEW_SUFFIXES = (".png", ".jpg")

OUTPUTS = {  # what a network may give: how that becomes inverse depth, which is large where something is near
    "inverse": lambda values: values,
    "depth": np.negative,
    "distance": np.reciprocal,
}


class Normalisation(NamedTuple):
    """What a network wants and gives: pixels 0-255 become low-high (`range`), then (x - mean) / std for R, G and B.

    range: None leaves it to the type of the network's input. output: one of OUTPUTS.
    """

    range: tuple | None
    mean: tuple
    std: tuple
    output: str


PRESETS = {
    # ImageNet's mean and standard deviation, as in MiDaS' own transforms (isl-org/MiDaS).
    "midas_v21_small": Normalisation((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "inverse"),
}

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED, "depth network: .tflite, a SavedModel folder, .keras or .h5"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", ("none", *PRESETS), "none", "range, mean, std and output of a known network"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "is then subtracted from R,G,B"),
    Parameter("std", str, "1,1,1", "by which R,G,B are then divided"),
    Parameter("output", tuple(OUTPUTS), "inverse",
              "what the network gives: large = near, small = near, or a distance whose reciprocal is taken"),
    Parameter("preview", str, None, "contact sheet to write, photos beside their depth maps: FILE.png or .jpg",
              default_text="none"),
)
USAGE = ("python -m tools.make_depth_maps model=FILE (images_dir=PHOTOS depth_dir=FOLDER | dataset_dir=FOLDER) "
         "[name=value ...]")


class Photo(NamedTuple):
    """A photo, the file of its depth map, and whether it has a depth map already."""

    path: pathlib.Path
    depth: pathlib.Path
    done: bool


class Network(NamedTuple):
    """A depth network of any kind.

    run: takes a batch of one image as an array of `dtype`, gives a list of the outputs as arrays.
    shape: of the input; None for a length that is free.
    dtype: of the input, a NumPy type.
    quantisation: (scale, zero point) where the input's whole numbers q stand for scale * (q - zero point); else None.
    """

    run: Callable
    shape: tuple
    dtype: Any
    quantisation: tuple | None = None


def main(argv):
    """Makes the depth maps that the arguments ask for. Returns the exit status: 1 if a photo got none."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    normalisation = read_normalisation(settings)
    check_arguments(settings)
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata; what cannot be read is an error all the same
    load = find_loader(pathlib.Path(settings.model))
    photos = find_photos(settings)
    check_folders(settings, photos)
    missing = [photo for photo in photos if not photo.done]
    print(f"Photos: {len(photos)}, of which {len(photos) - len(missing)} have a depth map and keep it", flush=True)
    failed = make_missing(settings, photos, missing, load, normalisation)
    print(f"Depth maps: {len(missing) - failed} made, {len(photos) - len(missing)} kept")
    if failed:
        print(f"error: {failed} of {len(photos)} photos got no depth map", file=sys.stderr)
        return 1
    print(f"Next: {next_command(settings)}")
    return 0


def make_missing(settings, photos, missing, load, normalisation):
    """Makes the depth maps of the photos in `missing`, the preview's first. Returns how many photos got none."""
    decode = functools.partial(load_dataset.read_image, mode="RGB") if settings.dataset_dir else own_photos.read_photo
    network = open_network(settings.model, load, normalisation) if missing else None
    make = functools.partial(make_depth_maps, decode=decode, network=network, normalisation=normalisation)
    if not settings.preview:
        return make(missing)
    previewed = photos[::math.ceil(len(photos) / PREVIEWED)]
    failed = make([photo for photo in missing if photo in previewed])
    write_preview(pathlib.Path(settings.preview), previewed, decode)
    return failed + make([photo for photo in missing if photo not in previewed])


# The arguments -------------------------------------------------------------------------------------------------------


def read_normalisation(settings):
    """Returns the `Normalisation` that the arguments ask for. Raises UsageError where they are wrong."""
    if settings.preset != "none":
        by_hand = settings.given & set(Normalisation._fields)
        if by_hand:
            raise UsageError(f"{min(by_hand)}: preset={settings.preset} sets it; leave one of the two out")
        return PRESETS[settings.preset]
    span = _numbers("range", settings.range, 2) if settings.range else None
    if span and span[0] >= span[1]:
        raise UsageError(f"range={settings.range}: the first number, which 0 becomes, must be the smaller one")
    mean, std = _numbers("mean", settings.mean, 3), _numbers("std", settings.std, 3)
    if min(std) <= 0:
        raise UsageError(f"std={settings.std}: must be above 0")
    return Normalisation(span, mean, std, settings.output)


def _numbers(name, text, count):
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UsageError(f"{name}={text}: must be {count} numbers with commas between them, like "
                         f"{'0,1' if count == 2 else '0.485,0.456,0.406'}")
    return values


def check_arguments(settings):
    """Raises UsageError for arguments that do not go together."""
    if settings.dataset_dir and (settings.images_dir or settings.depth_dir):
        raise UsageError("dataset_dir: its depth maps go to its own folders; images_dir and depth_dir are not for it")
    if not settings.dataset_dir and not settings.images_dir:
        raise UsageError("images_dir: is missing; write images_dir=PHOTOS depth_dir=FOLDER, or dataset_dir=FOLDER")
    if not settings.dataset_dir and not settings.depth_dir:
        raise UsageError("depth_dir: is missing; write depth_dir=FOLDER (folder for the depth maps)")
    if settings.preview and not settings.preview.lower().endswith(PREVIEW_SUFFIXES):
        raise UsageError(f"preview={settings.preview}: must end in {' or '.join(PREVIEW_SUFFIXES)}")


def next_command(settings):
    """Returns the command for what the user will want to do with the depth maps."""
    if settings.dataset_dir:
        return "python -m tools.check_dataset " + shlex.quote(f"dataset_dir={settings.dataset_dir}")
    folders = f"images_dir={settings.images_dir}", f"depth_dir={settings.depth_dir}"
    return "python test_model.py " + shlex.join(folders)



# The photos ----------------------------------------------------------------------------------------------------------


def find_photos(settings):
    """Returns all `Photo`s that the arguments name, in numeric order. Raises DataError if there are none."""
    if settings.images_dir:
        photos = own_photos.find_photos(settings.images_dir)
        return _photos(photos, pathlib.Path(settings.depth_dir), own_photos.DEPTH_SUFFIXES)
    dataset = pathlib.Path(settings.dataset_dir)
    splits = [dataset / split for split in ("train", "test") if (dataset / split / "original").is_dir()]
    if not splits:
        raise DataError(f"{dataset}: holds neither train/original/ nor test/original/")
    photos = []
    for split in splits:
        found = own_photos.find_photos(split / "original")
        readable = {name: path for name, path in found.items() if path.suffix.lower() in load_dataset.SUFFIXES}
        if not readable:
            raise DataError(f"{split / 'original'}: holds no {', '.join(load_dataset.SUFFIXES)}, which training reads")
        photos += _photos(readable, split / "original_depth", load_dataset.SUFFIXES)
    return photos


def _photos(paths, folder, suffixes):
    """Returns `Photo`s for {name: path}, whose depth maps are in `folder`, with any of `suffixes`, or will be."""
    there = {path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes} if folder.is_dir() else set()
    return [Photo(path, folder / f"{name}.png", name in there) for name, path in paths.items()]


def check_folders(settings, photos):
    """Raises an error where photos, depth maps and preview would get mixed up, or cannot be written."""
    sources = {photo.path.parent.resolve() for photo in photos}
    targets = {photo.depth.parent.resolve() for photo in photos}
    if sources & targets:
        raise UsageError(f"depth_dir={settings.depth_dir}: holds the photos; name another folder for the depth maps")
    folders = sorted(targets)
    if settings.preview:
        preview = pathlib.Path(settings.preview)
        if preview.resolve().parent in sources | targets:
            raise UsageError(f"preview={preview}: would be taken for a photo or a depth map there; name another folder")
        if preview.exists():
            raise DataError(f"{preview}: exists, and nothing is overwritten; delete it, or name another file")
        folders.append(preview.parent)
    utils.prepare_folders(*folders)


# From the photo to the depth map -------------------------------------------------------------------------------------


def make_depth_maps(photos, decode, network, normalisation):
    """Makes depth maps, while the next photos are read in threads. Names the photos that fail and returns their number.

    `decode` returns a photo's file as a Pillow RGB image. Photos of a data set must be decoded as training does, which
    does not turn them upright: their depth maps have to lie as they do.
    """
    def read(photo):
        try:
            image = decode(photo.path)
            if min(image.size) < 2:
                raise DataError(f"{photo.path}: is {size_text(image.size)}, too small for a depth map of half that")
            return image.size, prepare(image, network, normalisation), None
        except DataError as error:
            return None, None, error

    failed = 0
    progress = utils.ProgressLine(0, len(photos), "depth maps:")
    results = zip(photos, load_dataset.stream(read, photos, READ_AHEAD))
    for number, (photo, (size, batch, error)) in enumerate(results, 1):
        error = error or write_depth_map(photo, size, batch, network, normalisation)
        if error:
            progress.clear()
            utils.warn(str(error), kind="error")
            failed += 1
        progress.update(number, photo.depth.name)
    progress.clear()
    return failed


def write_depth_map(photo, size, batch, network, normalisation):
    """Computes and writes the depth map of a photo of (width, height). Returns a DataError where the network fails."""
    try:
        values = inverse_depth(one_channel(network, batch), normalisation.output)
    except DataError as error:
        return DataError(f"{photo.path}: {error}")
    utils.write_image(photo.depth, depth_map(values, (size[0] // 2, size[1] // 2)))
    return None


def prepare(image, network, normalisation):
    """Makes a Pillow RGB image the batch of one that the network takes: its size, layout, type and value range.

    The image is resized with Pillow's bicubic filter, whose pixel areas are aligned at the borders.
    """
    height, width = input_size(network, image.size)
    pixels = np.float64(image.resize((width, height), Image.Resampling.BICUBIC))
    is_integer = np.issubdtype(network.dtype, np.integer)
    low, high = normalisation.range or ((0, 255) if is_integer and not network.quantisation else (0, 1))
    values = (low + pixels * ((high - low) / 255) - normalisation.mean) / normalisation.std
    if network.quantisation:
        scale, zero_point = network.quantisation
        values = values / scale + zero_point
    if is_integer:
        limits = np.iinfo(network.dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    values = values.astype(network.dtype)
    return values.transpose(2, 0, 1)[np.newaxis] if _channels_first(network.shape) else values[np.newaxis]


def input_size(network, photo_size):
    """Returns the (height, width) that a photo of (width, height) gets for the network.

    It is the network's own. Where that is free the image has the photo's shape, about FREE_PIXELS pixels, and sides
    that are multiples of FREE_MULTIPLE.
    """
    shape = network.shape[2:] if _channels_first(network.shape) else network.shape[1:3]
    scale = math.sqrt(FREE_PIXELS / math.prod(photo_size))
    free = [max(1, round(side * scale / FREE_MULTIPLE)) * FREE_MULTIPLE for side in photo_size[::-1]]
    return tuple(fixed or side for fixed, side in zip(shape, free))


def _channels_first(shape):
    return shape[3] != 3


def one_channel(network, batch):
    """Returns what the network gives for a batch of one, float32 (height, width). Raises DataError on more channels."""
    try:
        outputs = network.run(batch)
    except Exception as error:  # whatever a stranger's network raises
        given = _shape_text(batch.shape)
        raise DataError(f"the network fails on an input of {given} ({_first_line(error)})") from None
    if len(outputs) != 1:
        shapes = ", ".join(_shape_text(output.shape) for output in outputs)
        raise DataError(f"the network gives {len(outputs)} outputs ({shapes}); one of one channel is needed")
    values = np.squeeze(np.float32(outputs[0]))
    if values.ndim != 2:
        raise DataError(f"the network gives {_shape_text(outputs[0].shape)}; a depth network gives one channel, "
                        "1 x height x width x 1 (or 1 x 1 x height x width, or 1 x height x width)")
    return values


def inverse_depth(values, output):
    """Returns what the network gave as values that are large where something is near; `output` is one of OUTPUTS.

    Raises DataError where there are NaN or infinite values, or distances of 0 or less.
    """
    if not np.isfinite(values).all():
        raise DataError("the network gives NaN or infinite values; are preset=, range=, mean= and std= right for it?")
    if output == "distance" and values.min() <= 0:
        raise DataError(f"the network gives {values.min():g}, which is no distance; output=depth inverts its values "
                        "without dividing by them")
    return OUTPUTS[output](values)


def depth_map(values, size):
    """Returns inverse depth, float32 (h, w) of any scale, as uint8 (height, width) for a `size` of (width, height).

    The 1st percentile becomes 0 and the 99th 255; what lies beyond is clipped, so that a few odd pixels do not take all
    the contrast. Where these two are the same, the smallest and the largest value are taken; a constant becomes 128.
    """
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = float(values.min()), float(values.max())
    scaled = np.full_like(values, MID_GREY) if low == high else np.clip((values - low) / (high - low), 0, 1)
    return utils.to_uint8(Image.fromarray(np.float32(scaled)).resize(size, Image.Resampling.BICUBIC))


# Networks ------------------------------------------------------------------------------------------------------------


def find_loader(path):
    """Returns the function that loads the kind of network that `path` is. Raises DataError if it is none."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder (docs/depth_maps.md names networks and where they are)")
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return load_saved_model
    if path.is_file() and path.suffix.lower() in LOADERS:
        return LOADERS[path.suffix.lower()]
    raise DataError(f"{path}: is no SavedModel folder (with saved_model.pb) and no {', '.join(LOADERS)} file")


def open_network(path, load, normalisation):
    """Loads a network and tries it on a grey picture. Raises DataError where it does not fit."""
    devices.start_tensorflow()
    try:
        network = load(pathlib.Path(path))
        check_input(network)
        one_channel(network, prepare(Image.new("RGB", (512, 384), "grey"), network, normalisation))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a reader of foreign files raises anything
        raise DataError(f"{path}: cannot be read as a network ({_first_line(error)})") from None
    print(f"Network: {path}, takes {_shape_text(network.shape[1:])} {np.dtype(network.dtype).name}"
          + (" (TFLite computes on the CPU)" if load is load_tflite else ""), flush=True)
    return network


def check_input(network):
    """Raises DataError unless the network takes one RGB image of numbers."""
    shape = network.shape
    if len(shape) != 4 or shape[0] not in (1, None) or 3 not in (shape[1], shape[3]):
        raise DataError(f"the network takes {_shape_text(shape)}; a depth network takes one RGB image, "
                        "1 x height x width x 3 (or 1 x 3 x height x width)")
    if not np.issubdtype(network.dtype, np.number):
        raise DataError(f"the network takes values of type {np.dtype(network.dtype).name}, not numbers")


def load_tflite(path):
    """Loads a .tflite file as a `Network`. Quantised numbers q have the value scale * (q - zero point)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its successor, which TensorFlow 2.16 does not have
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=load_dataset.processors())
    detail = _only(interpreter.get_input_details())

    def run(batch):
        interpreter.resize_tensor_input(detail["index"], batch.shape)  # does nothing where it has that size
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], batch)
        interpreter.invoke()
        return [_dequantised(interpreter.get_tensor(output["index"]), output)
                for output in interpreter.get_output_details()]

    shape = tuple(None if length < 0 else int(length) for length in detail["shape_signature"])
    return Network(run, shape, detail["dtype"], detail["quantization"] if detail["quantization"][0] else None)


def _dequantised(values, detail):
    scale, zero_point = detail["quantization"]  # a scale of 0 if it is not quantised
    return (np.float32(values) - zero_point) * np.float32(scale) if scale else values


def load_saved_model(path):
    """Loads a SavedModel folder as a `Network`: its signature serving_default, or the only one."""
    loaded = tf.saved_model.load(str(path))
    names = list(loaded.signatures)
    if "serving_default" not in names and len(names) != 1:
        raise DataError(f"has the signatures {', '.join(names) or '(none)'}; serving_default or only one is needed")
    signature = "serving_default" if "serving_default" in names else names[0]
    name, spec = _only(list(loaded.signatures[signature].structured_input_signature[1].items()))

    def run(batch):  # through `loaded`, which holds the variables
        return [output.numpy() for output in loaded.signatures[signature](**{name: tf.constant(batch)}).values()]

    return Network(run, tuple(spec.shape), spec.dtype.as_numpy_dtype)


def load_keras(path):
    """Loads a Keras file as a `Network`. Code in the file (Lambda layers) is not run, and makes it unreadable."""
    keras_model = tf.keras.models.load_model(path, compile=False)
    tensor = _only(keras_model.inputs)
    predict = tf.function(lambda batch: keras_model(batch, training=False), autograph=False, reduce_retracing=True)
    return Network(lambda batch: [output.numpy() for output in tf.nest.flatten(predict(tf.constant(batch)))],
                   tuple(tensor.shape), tf.as_dtype(tensor.dtype).as_numpy_dtype)


LOADERS = {".tflite": load_tflite, ".keras": load_keras, ".h5": load_keras, ".hdf5": load_keras}  # by ending


def _only(inputs):
    if not inputs or len(inputs) != 1:
        raise DataError(f"takes {len(inputs or ())} inputs; a depth network takes one RGB image")
    return inputs[0]


def _shape_text(shape):
    return " x ".join("any" if length is None else str(length) for length in shape) or "a single number"


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# The preview ---------------------------------------------------------------------------------------------------------


def write_preview(path, photos, decode):
    """Writes a contact sheet of the photos that have a depth map, photo | depth map, and prints what it shows."""
    rows = {}
    for photo in photos:
        try:
            pictures = decode(photo.path), Image.open(photo.depth).convert("RGB")
        except Exception:  # a photo that is damaged, or whose depth map is missing, or not an image
            continue
        rows[photo.path.name] = np.hstack([ImageOps.pad(picture, PREVIEW_SIZE, color="white") for picture in pictures])
    if not rows:
        print(f"{path}: not written, there is no depth map to show")
        return
    utils.write_image(path, np.vstack(list(rows.values())))
    print(f"Preview: {path} shows {', '.join(rows)} beside their depth maps (near things must be bright)", flush=True)


if __name__ == "__main__":
    sys.exit(utils.run(main))
