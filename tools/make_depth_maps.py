"""Makes the depth maps that PyNET needs, with any monocular depth network that you have:

    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small images_dir=my_photos depth_dir=my_depth
    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small dataset_dir=ebb_dataset/

The network is a TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one channel. A depth
map is an 8-bit grey PNG of half the photo's width and height, rounded down, bright = near. Photos that have one keep it.
"""

import contextlib
import functools
import itertools
import math
import os
import pathlib
import shlex
import sys
import warnings
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import load_dataset
import utils
from utils import DataError, Parameter, UsageError

PERCENTILES = 1, 99  # of the network's output: what becomes 0 and 255; what lies outside is clipped
CONSTANT = 1e-6  # an output whose percentiles differ by less, relative to their size, has rounding for contrast
MID_GREY = 0.5  # the depth map of a constant output

# Input of a network that takes any size: the photo's shape, about as many pixels as 512 x 384, in whole multiples of 32
# (as MiDaS does for its larger networks: run.py of isl-org/MiDaS).
FREE_PIXELS, FREE_MULTIPLE = 512 * 384, 32

OUTPUTS = {  # what a network may give: how that becomes inverse depth, which is large where something is near
    "inverse": lambda values: values,
    "depth": np.negative,
    "distance": np.reciprocal,
}
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
PREVIEW_SUFFIXES = (".png", ".jpg")
AHEAD = 4  # photos that are read, and depth maps that are written, while the network computes

PREVIEWED = 6  # photos on the contact sheet, spread evenly over all
PREVIEW_SIZE, LABEL_HEIGHT, FONT_SIZE, GAP = (480, 320), 24, 16, 8  # of each picture on it, in pixels


class Normalisation(NamedTuple):
    """What a network wants and gives: pixels 0-255 become low-high (`range`), then (x - mean) / std for R, G and B.

    range: None leaves it to the type of the network's input. output: one of OUTPUTS.
    """

    range: Optional[tuple]
    mean: tuple
    std: tuple
    output: str


# ImageNet's mean and standard deviation, as in MiDaS' own transforms (isl-org/MiDaS).
PRESETS = {"midas_v21_small": Normalisation((0.0, 1.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "inverse")}

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED, "depth network: .tflite, a SavedModel folder, .keras or .h5"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", str, None, f"range, mean, std and output of a known network: {', '.join(PRESETS)}",
              default_text="none"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "is subtracted from R,G,B then"),
    Parameter("std", str, "1,1,1", "R,G,B are divided by it then"),
    Parameter("output", str, "inverse", "what the network gives: inverse (large = near), depth (small = near) or distance "
              "(small = near, and 1 / distance is taken)"),
    Parameter("preview", str, None, "contact sheet to write, photos beside their depth maps: FILE.png or .jpg",
              default_text="none"),
)
USAGE = ("python -m tools.make_depth_maps model=FILE (images_dir=PHOTOS depth_dir=FOLDER | dataset_dir=FOLDER) "
         "[name=value ...]")


class Photo(NamedTuple):
    """A photo, its depth map's file, and whether there is a depth map already."""

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
    quantisation: Optional[tuple] = None


def main(argv):
    """Makes the depth maps that the arguments ask for. Returns the exit status: 1 if a photo got none."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    normalisation = read_normalisation(settings)
    check_arguments(settings)
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what cannot be read is an error all the same
    load = find_loader(pathlib.Path(settings.model))
    photos = find_photos(settings)
    check_folders(settings, photos)
    kept = sum(photo.done for photo in photos)
    print(f"Photos: {len(photos)}, of which {kept} have a depth map and keep it", flush=True)
    failed = make_depth_maps(settings, photos, normalisation, load)
    print(f"Depth maps: {len(photos) - kept - failed} made, {kept} kept")
    if failed:
        print(f"error: {failed} of {len(photos)} photos got no depth map", file=sys.stderr)
        return 1
    print(f"Next: {next_command(settings)}")
    return 0


def make_depth_maps(settings, photos, normalisation, load):
    """Makes the depth maps that are missing, the preview's first. Returns how many photos failed, each of them named."""
    handful = photos[::math.ceil(len(photos) / PREVIEWED)] if settings.preview else []
    first = [photo for photo in handful if not photo.done]
    todo = first + [photo for photo in photos if not photo.done and photo not in first]
    decode = make_decoder(settings)
    network = open_network(settings.model, load, normalisation) if todo else None
    progress = utils.ProgressLine(0, len(todo), "depth maps:")
    results = enumerate(run_pipeline(todo, decode, network, normalisation), 1)
    failed = report(itertools.islice(results, len(first)), progress)
    if settings.preview:
        progress.clear()
        write_preview(pathlib.Path(settings.preview), handful, decode)
    failed += report(results, progress)
    progress.clear()
    return failed


def report(results, progress):
    """Says how far it is, and what went wrong. Returns how many photos failed."""
    failed = 0
    for number, (photo, error) in results:
        if error:
            progress.clear()
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
        progress.update(number, photo.depth.name)
    return failed


# The arguments -------------------------------------------------------------------------------------------------------


def read_normalisation(settings):
    """The `Normalisation` that the arguments ask for; UsageError where they are wrong."""
    by_hand = settings.given & set(Normalisation._fields)
    if settings.preset is not None:
        if settings.preset not in PRESETS:
            raise UsageError(f"preset={settings.preset}: is to be {', '.join(PRESETS)} (or leave it out and give range=, "
                             "mean=, std= and output= by hand)")
        if by_hand:
            raise UsageError(f"{min(by_hand)}: preset={settings.preset} sets it; leave one of the two out")
        return PRESETS[settings.preset]
    if settings.output not in OUTPUTS:
        raise UsageError(f"output={settings.output}: is to be inverse, depth or distance")
    span = _numbers("range", settings.range, 2) if settings.range else None
    if span and span[0] >= span[1]:
        raise UsageError(f"range={settings.range}: the first number, which 0 becomes, is to be the smaller one")
    mean, std = _numbers("mean", settings.mean, 3), _numbers("std", settings.std, 3)
    if min(std) <= 0:
        raise UsageError(f"std={settings.std}: is to be above 0")
    return Normalisation(span, mean, std, settings.output)


def _numbers(name, text, count):
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise UsageError(f"{name}={text}: is to be {count} numbers with commas between them, like "
                         f"{'0,1' if count == 2 else '0.485,0.456,0.406'}")
    return values


def check_arguments(settings):
    """UsageError for arguments that do not go together."""
    if settings.dataset_dir and (settings.images_dir or settings.depth_dir):
        raise UsageError("dataset_dir: its depth maps go to its own folders; images_dir and depth_dir are not for it")
    if not settings.dataset_dir and not settings.images_dir:
        raise UsageError("images_dir: is missing; write images_dir=PHOTOS depth_dir=FOLDER, or dataset_dir=FOLDER")
    if not settings.dataset_dir and not settings.depth_dir:
        raise UsageError("depth_dir: is missing; write depth_dir=FOLDER (folder for the depth maps)")
    if settings.preview and not settings.preview.lower().endswith(PREVIEW_SUFFIXES):
        raise UsageError(f"preview={settings.preview}: is to end in {' or '.join(PREVIEW_SUFFIXES)}")


def find_loader(path):
    """The function that loads the kind of network that `path` is; DataError if it is none. Needs no TensorFlow."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder (the README names networks and where they are, Depth maps)")
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return load_saved_model
    if path.is_file() and path.suffix.lower() == ".tflite":
        return load_tflite
    if path.is_file() and path.suffix.lower() in KERAS_SUFFIXES:
        return load_keras
    raise DataError(f"{path}: is no .tflite file, no SavedModel folder (with saved_model.pb) and no .keras or .h5 file")


def next_command(settings):
    """What the user will want to do with the depth maps."""
    if settings.dataset_dir:
        return "python -m tools.check_dataset " + shlex.quote(f"dataset_dir={settings.dataset_dir}")
    weights = [] if utils.saved_iterations(1) or not any(utils.ORIGINAL.glob("*.index")) else ["orig=true"]
    return "python test_model.py " + shlex.join(
        [*weights, f"images_dir={settings.images_dir}", f"depth_dir={settings.depth_dir}"])


# The photos ----------------------------------------------------------------------------------------------------------


def find_photos(settings):
    """All `Photo`s that the arguments name, in numeric order; DataError if there are none."""
    if settings.images_dir:
        photos = load_dataset.find_own_photos(settings.images_dir)
        return _pair(photos, pathlib.Path(settings.depth_dir), load_dataset.DEPTH_SUFFIXES)
    dataset = pathlib.Path(settings.dataset_dir)
    splits = [dataset / split for split in ("train", "test") if (dataset / split / "original").is_dir()]
    if not splits:
        raise DataError(f"{dataset}: holds neither train/original/ nor test/original/")
    photos = []
    for split in splits:
        found = load_dataset.find_own_photos(split / "original")
        readable = {name: path for name, path in found.items() if path.suffix.lower() in load_dataset.SUFFIXES}
        if not readable:
            raise DataError(f"{split / 'original'}: holds no photo that training reads ({', '.join(load_dataset.SUFFIXES)})")
        photos += _pair(readable, split / "original_depth", load_dataset.SUFFIXES)
    return photos


def _pair(found, folder, suffixes):
    """`Photo`s of {name: path}, whose depth maps are in `folder`, with any of `suffixes`, or will be."""
    there = {path.stem for path in folder.iterdir() if path.suffix.lower() in suffixes} if folder.is_dir() else set()
    return [Photo(path, folder / f"{name}.png", name in there) for name, path in found.items()]


def check_folders(settings, photos):
    """Sees to it that nothing that is there gets mixed up or lost, and that what will be written can be."""
    sources, targets = ({path.parent.resolve() for path in paths}
                        for paths in zip(*[(photo.path, photo.depth) for photo in photos]))
    if sources & targets:
        raise UsageError(f"depth_dir={settings.depth_dir}: holds the photos; name another folder for the depth maps")
    utils.prepare_folders(*sorted({photo.depth.parent for photo in photos}))
    if not settings.preview:
        return
    preview = pathlib.Path(settings.preview)
    if preview.resolve().parent in sources | targets:
        raise UsageError(f"preview={preview}: would be taken for a photo or a depth map there; name another folder")
    if preview.exists():
        raise DataError(f"{preview}: is there already, and nothing is overwritten; delete it, or name another file")
    utils.prepare_folders(preview.parent)


def make_decoder(settings):
    """The function that decodes a photo's file as a Pillow RGB image.

    Photos of a data set are decoded as training decodes them, which does not turn them upright: their depth maps have to
    lie as they do.
    """
    if settings.dataset_dir:
        return functools.partial(load_dataset.read_image, mode="RGB")
    return load_dataset.read_own_photo


def run_pipeline(photos, decode, network, normalisation):
    """Yields (photo, DataError or None) as each depth map is written, in order.

    Photos are read, and depth maps written, in threads; the network computes in the one that iterates. DataError is raised
    where a depth map cannot be written, since the next ones could not either.
    """
    def read(photo):
        try:
            image = decode(photo.path)
            if min(image.size) < 2:
                raise DataError(f"{photo.path}: is {image.width} x {image.height}, too small for a depth map of half that")
            return photo, image.size, prepare(image, network, normalisation)
        except DataError as error:
            return photo, None, error

    def compute(photo, size, batch):
        if isinstance(batch, DataError):
            return photo, size, batch
        try:
            return photo, size, inverse_depth(one_channel(network, batch), normalisation.output)
        except DataError as error:
            return photo, size, DataError(f"{photo.path}: {error}")

    def write(item):
        photo, size, values = item
        if isinstance(values, DataError):
            return photo, values
        try:
            utils.write_image(photo.depth, depth_map(values, (size[0] // 2, size[1] // 2)))
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{photo.depth}: cannot be written ({reason}); the same command goes on there") from None
        return photo, None

    computed = (compute(*item) for item in load_dataset.stream(read, photos, AHEAD))
    yield from load_dataset.stream(write, computed, AHEAD)


# Into the network and out of it --------------------------------------------------------------------------------------


def prepare(image, network, normalisation):
    """A Pillow RGB image as the batch of one that the network takes: its size, layout, type and value range.

    The image is resized with Pillow's bicubic filter, whose pixel areas are aligned at the borders.
    """
    height, width = input_size(network, image.size)
    pixels = np.float64(image.resize((width, height), Image.Resampling.BICUBIC))
    low, high = normalisation.range or _usual_range(network)
    values = (low + pixels * ((high - low) / 255) - normalisation.mean) / normalisation.std
    if network.quantisation:
        scale, zero_point = network.quantisation
        values = values / scale + zero_point
    if np.issubdtype(network.dtype, np.integer):
        limits = np.iinfo(network.dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    values = values.astype(network.dtype)
    return values.transpose(2, 0, 1)[np.newaxis] if _channels_first(network.shape) else values[np.newaxis]


def input_size(network, photo_size):
    """(height, width) that a photo of (width, height) gets for the network: its own, or where that is free one of the
    photo's shape with about FREE_PIXELS pixels, in multiples of FREE_MULTIPLE."""
    shape = network.shape[2:] if _channels_first(network.shape) else network.shape[1:3]
    scale = math.sqrt(FREE_PIXELS / math.prod(photo_size))
    free = [max(1, round(side * scale / FREE_MULTIPLE)) * FREE_MULTIPLE for side in photo_size[::-1]]
    return tuple(fixed or side for fixed, side in zip(shape, free))


def one_channel(network, batch):
    """What the network gives for a batch of one, as float32 (height, width); DataError where that is no single channel."""
    try:
        outputs = network.run(batch)
    except Exception as error:  # whatever a stranger's network raises
        raise DataError(f"the network fails on an input of {_shape_text(batch.shape)} ({_first_line(error)})") from None
    if len(outputs) != 1:
        raise DataError(f"the network gives {len(outputs)} outputs ({', '.join(_shape_text(o.shape) for o in outputs)}); "
                        "one of one channel is needed")
    values = np.float32(outputs[0])
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    elif values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3 or values.shape[0] != 1 or min(values.shape[1:]) < 2:
        raise DataError(f"the network gives {_shape_text(outputs[0].shape)}; a depth network gives one channel, "
                        "1 x height x width x 1 (or 1 x 1 x height x width, or 1 x height x width)")
    return values[0]


def inverse_depth(values, output):
    """What the network gave as values that are large where something is near; `output` is one of OUTPUTS.

    DataError where there are NaN or infinite values, or distances of 0 or less.
    """
    if not np.isfinite(values).all():
        raise DataError("the network gives NaN or infinite values; are preset=, range=, mean= and std= right for it?")
    if output == "distance" and values.min() <= 0:
        raise DataError(f"the network gives {values.min():g}, which is no distance; output=depth turns its values round "
                        "without dividing by them")
    return OUTPUTS[output](values)


def depth_map(values, size):
    """Inverse depth, float32 (h, w) of any scale and offset, as uint8 (height, width) for a `size` of (width, height).

    The 1st percentile becomes 0 and the 99th 255; what lies beyond is clipped, so that a few odd pixels do not take all
    the contrast. Where these two are the same, the smallest and the largest value are taken; a constant becomes 128.
    """
    low, high = np.percentile(values, PERCENTILES)
    if _same(low, high):
        low, high = float(values.min()), float(values.max())
    scaled = np.full_like(values, MID_GREY) if _same(low, high) else np.clip((values - low) / (high - low), 0, 1)
    image = Image.fromarray(np.float32(scaled))
    return utils.to_uint8(image.resize(size, Image.Resampling.BICUBIC))


def _same(low, high):
    return high - low <= CONSTANT * max(abs(low), abs(high))


def _usual_range(network):
    return (0, 255) if np.issubdtype(network.dtype, np.integer) and not network.quantisation else (0, 1)


def _channels_first(shape):
    return shape[3] != 3


# Networks ------------------------------------------------------------------------------------------------------------


def open_network(path, load, normalisation):
    """Loads a network, quietly, and tries it on a grey picture. DataError in one line where it does not fit."""
    utils.start_tensorflow()
    with quiet():
        try:
            network = load(pathlib.Path(path))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # a reader of foreign files raises anything
            raise DataError(f"{path}: cannot be read as a network ({_first_line(error)})") from None
        try:
            check_input(network)
            one_channel(network, prepare(Image.new("RGB", (512, 384), "grey"), network, normalisation))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    print(f"Network: {path}, takes {_shape_text(network.shape[1:])} {np.dtype(network.dtype).name}"
          + (" (TFLite computes on the CPU)" if load is load_tflite else ""), flush=True)
    return network


def check_input(network):
    """DataError unless the network takes one RGB image of numbers."""
    shape = network.shape
    if len(shape) != 4 or shape[0] not in (1, None) or 3 not in (shape[1], shape[3]):
        raise DataError(f"the network takes {_shape_text(shape)}; a depth network takes one RGB image, "
                        "1 x height x width x 3 (or 1 x 3 x height x width)")
    if not (np.issubdtype(network.dtype, np.floating) or np.issubdtype(network.dtype, np.integer)):
        raise DataError(f"the network takes values of type {np.dtype(network.dtype).name}, not numbers")


def load_tflite(path):
    """A `Network` of a .tflite file. Quantised inputs and outputs are q with the value scale * (q - zero point)."""
    import tensorflow as tf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its successor, which TensorFlow 2.16 does not have
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=load_dataset.processors())
    detail = _only(interpreter.get_input_details())

    def run(batch):
        interpreter.resize_tensor_input(detail["index"], batch.shape)  # does nothing where it has that size
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], batch)
        interpreter.invoke()
        return [_dequantised(interpreter.get_tensor(output["index"]), _quantisation(output))
                for output in interpreter.get_output_details()]

    shape = tuple(None if length < 0 else int(length) for length in detail["shape_signature"])
    return Network(run, shape, detail["dtype"], _quantisation(detail))


def _quantisation(detail):
    """(scale, zero point) of a TFLite tensor, None where it is not quantised (its scale is 0 then)."""
    scale, zero_point = detail["quantization"]
    return (scale, zero_point) if scale else None


def _dequantised(values, quantisation):
    if not quantisation:
        return values
    scale, zero_point = quantisation
    return (np.float32(values) - zero_point) * np.float32(scale)


def load_saved_model(path):
    """A `Network` of a SavedModel folder: its signature serving_default, or the only one."""
    import tensorflow as tf
    loaded = tf.saved_model.load(str(path))
    names = list(loaded.signatures)
    if "serving_default" not in names and len(names) != 1:
        raise DataError(f"has the signatures {', '.join(names) or '(none)'}; serving_default or only one is needed")
    signature = "serving_default" if "serving_default" in names else names[0]
    name, spec = _only(list(loaded.signatures[signature].structured_input_signature[1].items()))

    def run(batch):  # through `loaded`, which holds the variables
        return [output.numpy() for output in loaded.signatures[signature](**{name: tf.constant(batch)}).values()]

    return Network(run, _known_shape(spec.shape), spec.dtype.as_numpy_dtype)


def load_keras(path):
    """A `Network` of a Keras file. Code of its own in the file (Lambda layers) is not run, and makes it unreadable."""
    import tensorflow as tf
    keras_model = tf.keras.models.load_model(path, compile=False)
    tensor = _only(keras_model.inputs)
    shape = _known_shape(tf.TensorShape(tensor.shape))
    predict = tf.function(lambda batch: keras_model(batch, training=False), autograph=False, reduce_retracing=True)
    return Network(lambda batch: [output.numpy() for output in tf.nest.flatten(predict(tf.constant(batch)))], shape,
                   tf.as_dtype(tensor.dtype).as_numpy_dtype)


def _only(inputs):
    if not inputs or len(inputs) != 1:
        raise DataError(f"takes {len(inputs or ())} inputs; a depth network takes one RGB image")
    return inputs[0]


def _known_shape(shape):
    if shape.rank is None:
        raise DataError("does not say what shape its input has; export it with one")
    return tuple(shape.as_list())


@contextlib.contextmanager
def quiet():
    """Keeps what the libraries write to stderr while a network is loaded; TF_CPP_MIN_LOG_LEVEL=0 brings it back."""
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


def _shape_text(shape):
    return " x ".join("any" if length is None else str(length) for length in shape) or "a single number"


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


# The preview ---------------------------------------------------------------------------------------------------------


def write_preview(path, photos, decode):
    """Writes a contact sheet of the photos that have a depth map, photo | depth map, and says where it is."""
    rows = [row for row in (preview_row(photo, decode) for photo in photos) if row]
    if not rows:
        print(f"{path}: not written, there is no depth map to show")
        return
    sheet = Image.new("RGB", (max(row.width for row in rows) + 2 * GAP,
                              sum(row.height + GAP for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    utils.write_image(path, np.asarray(sheet))
    print(f"Preview: {path} (near things are to be bright, and edges where the photo has them)", flush=True)


def preview_row(photo, decode):
    """A Pillow image: the photo's name, below it photo | depth map at the same size; None where one cannot be read."""
    try:
        picture = decode(photo.path)
        with Image.open(photo.depth) as image:
            depth = image.convert("RGB")
    except (DataError, *load_dataset.UNREADABLE):
        return None
    picture.thumbnail(PREVIEW_SIZE, Image.Resampling.LANCZOS)
    row = Image.new("RGB", (2 * PREVIEW_SIZE[0] + GAP, LABEL_HEIGHT + picture.height), "white")
    ImageDraw.Draw(row).text((0, 0), f"{photo.path.name} | depth map, bright = near", "black",
                             ImageFont.load_default(FONT_SIZE))
    row.paste(picture, (0, LABEL_HEIGHT))
    row.paste(depth.resize(picture.size, Image.Resampling.LANCZOS), (PREVIEW_SIZE[0] + GAP, LABEL_HEIGHT))
    return row


if __name__ == "__main__":
    sys.exit(utils.run(main))
