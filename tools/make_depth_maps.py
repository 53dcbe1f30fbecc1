"""Makes the depth maps that PyNET needs, with any monocular depth network that you have:

    python -m tools.make_depth_maps model=midas.tflite preset=midas_v21_small images_dir=my_photos depth_dir=my_depth
    python -m tools.make_depth_maps model=megadepth.onnx preset=megadepth dataset_dir=ebb_dataset/

The network is an ONNX or TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one
channel. A depth map is an 8-bit grey PNG of half the photo's width and height, rounded down, bright = near. Photos that
have one keep it.
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
from support import devices, own_photos
from utils import DataError, Parameter, UsageError, first_line, tf

PERCENTILES = 1, 99  # of inverse depth: what becomes 0 and 255; what lies outside is clipped
MID_GREY = 0.5  # the depth map of a constant output
ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # onnxruntime's, the first that there is computes
READ_AHEAD = 4  # photos that are read while the network computes
PREVIEWED, PREVIEW_SIZE = 6, (480, 360)  # photos on the contact sheet, spread evenly over all, and their pixels
PREVIEW_SUFFIXES = (".png", ".jpg")

OUTPUTS = {  # what a network may give: how that becomes inverse depth, which is large where something is near
    "inverse": lambda values: values,
    "depth": np.negative,
    "distance": np.reciprocal,
    "log_depth": lambda values: np.exp(-values),
}


class Preset(NamedTuple):
    """What a network wants and gives.

    range: what the pixel values 0 and 255 become; None leaves it to the type of the network's input.
    mean, std: for R, G and B; the network takes (value - mean) / std.
    output: one of OUTPUTS.
    size: (height, width) of its input where the network takes any, rounded to whole multiples of `multiple`.
    fit: the photo's shape is kept, within that size (min) or around it (max); None stretches the photo to that size.
    """

    range: tuple | None = None
    mean: tuple = (0, 0, 0)
    std: tuple = (1, 1, 1)
    output: str = "inverse"
    size: tuple = (512, 512)
    fit: Callable | None = min
    multiple: int = 32


IMAGENET = {"range": (0, 1), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PRESETS = {  # docs/depth_maps.md says where the numbers are from
    "midas_v21_small": Preset(**IMAGENET, size=(256, 256)),
    "depth_anything_v2": Preset(**IMAGENET, size=(518, 518), fit=max, multiple=14),
    "megadepth": Preset(range=(0, 1), output="log_depth", size=(384, 512), fit=None),
}
SET_BY_PRESET = {"range", "mean", "std", "output", "multiple"}  # parameters

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED, "depth network: .onnx, .tflite, a SavedModel folder, .keras or .h5"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", ("none", *PRESETS), "none", "range, mean, std, output, size and multiple of a known network"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "is then subtracted from R,G,B"),
    Parameter("std", str, "1,1,1", "by which R,G,B are then divided"),
    Parameter("output", tuple(OUTPUTS), "inverse",
              "what the network gives: large = near, small = near, a distance, or the logarithm of one"),
    Parameter("size", int, None, "longer side of its input, in pixels, for a network that takes any size", 1,
              default_text="512, or the preset's"),
    Parameter("multiple", int, 32, "both sides are then rounded to multiples of this", 1),
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
    where: what computes it, for the screen; "" where TensorFlow does.
    """

    run: Callable
    shape: tuple
    dtype: Any
    quantisation: tuple | None = None
    where: str = ""


def main(argv):
    """Makes the depth maps that the arguments ask for. Returns the exit status: 1 if a photo got none."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    preset = read_preset(settings)
    check_arguments(settings)
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata; what cannot be read is an error all the same
    load = find_loader(pathlib.Path(settings.model))
    photos = find_photos(settings)
    check_folders(settings, photos)
    missing = [photo for photo in photos if not photo.done]
    print(f"Photos: {len(photos)}, of which {len(photos) - len(missing)} have a depth map and keep it", flush=True)
    failed = make_missing(settings, photos, missing, load, preset)
    print(f"Depth maps: {len(missing) - failed} made, {len(photos) - len(missing)} kept")
    if failed:
        print(f"error: {failed} of {len(photos)} photos got no depth map", file=sys.stderr)
        return 1
    print(f"Next: {next_command(settings)}")
    return 0


def make_missing(settings, photos, missing, load, preset):
    """Makes the depth maps of the photos in `missing`, the preview's first. Returns how many photos got none."""
    decode = functools.partial(load_dataset.read_image, mode="RGB") if settings.dataset_dir else own_photos.read_photo
    network = open_network(settings.model, load, preset) if missing else None
    make = functools.partial(make_depth_maps, decode=decode, network=network, preset=preset)
    if not settings.preview:
        return make(missing)
    previewed = photos[::math.ceil(len(photos) / PREVIEWED)]
    failed = make([photo for photo in missing if photo in previewed])
    write_preview(pathlib.Path(settings.preview), previewed, decode)
    return failed + make([photo for photo in missing if photo not in previewed])


# The arguments -------------------------------------------------------------------------------------------------------


def read_preset(settings):
    """Returns the `Preset` that the arguments name or make up. Raises UsageError where they are wrong."""
    by_hand = settings.given & SET_BY_PRESET
    if settings.preset != "none":
        preset = PRESETS[settings.preset]
        if by_hand:
            raise UsageError(f"{min(by_hand)}: preset={settings.preset} sets it; leave one of the two out")
    else:
        span = _numbers("range", settings.range, 2) if settings.range else None
        mean, std = _numbers("mean", settings.mean, 3), _numbers("std", settings.std, 3)
        if min(std) <= 0:
            raise UsageError(f"std={settings.std}: must be above 0")
        preset = Preset(span, mean, std, settings.output, multiple=settings.multiple)
    return preset._replace(size=(settings.size, settings.size), fit=min) if settings.size else preset


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
    given = [name for name in ("images_dir", "depth_dir", "dataset_dir") if getattr(settings, name)]
    if given not in (["images_dir", "depth_dir"], ["dataset_dir"]):
        raise UsageError(f"{' and '.join(given) or 'images_dir'}: write either images_dir=PHOTOS depth_dir=FOLDER or "
                         "dataset_dir=FOLDER, which is for a data set")
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
    dataset, photos = pathlib.Path(settings.dataset_dir), []
    for folder in filter(pathlib.Path.is_dir, (dataset / "train" / "original", dataset / "test" / "original")):
        paths = {name: path for name, path in own_photos.find_photos(folder).items()
                 if path.suffix.lower() in load_dataset.SUFFIXES}
        photos += _photos(paths, folder.with_name("original_depth"), load_dataset.SUFFIXES)
    if not photos:
        raise DataError(f"{dataset}: holds no {', '.join(load_dataset.SUFFIXES)} in train/original/ or test/original/")
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
        if preview.resolve().parent in sources | targets or preview.exists():
            raise DataError(f"{preview}: exists, or would be taken for a photo or a depth map there; name another file")
        folders.append(preview.parent)
    utils.prepare_folders(*folders)


# From the photo to the depth map -------------------------------------------------------------------------------------


def make_depth_maps(photos, decode, network, preset):
    """Makes depth maps, while the next photos are read in threads. Names the photos that fail and returns their number.

    `decode` returns a photo's file as a Pillow RGB image. Photos of a data set must be decoded as training does, which
    does not turn them upright: their depth maps have to lie as they do.
    """
    def read(photo):
        try:
            image = decode(photo.path)
            return image.size, prepare(image, network, preset)
        except DataError as error:
            return None, error

    failed = 0
    progress = utils.ProgressLine(0, len(photos), "depth maps:")
    results = zip(photos, load_dataset.stream(read, photos, READ_AHEAD))
    for number, (photo, (size, batch)) in enumerate(results, 1):
        error = write_depth_map(photo, size, batch, network, preset) if size else batch
        if error:
            utils.warn(str(error), kind="error")
            failed += 1
        progress.update(number, photo.depth.name)
    progress.clear()
    return failed


def write_depth_map(photo, size, batch, network, preset):
    """Computes and writes the depth map of a photo of (width, height). Returns a DataError where the network fails."""
    try:
        values = inverse_depth(one_channel(network, batch), preset.output)
    except DataError as error:
        return DataError(f"{photo.path}: {error}")
    utils.write_image(photo.depth, depth_map(values, tuple(max(1, side // 2) for side in size)))
    return None


def prepare(image, network, preset):
    """Makes a Pillow RGB image the batch of one that the network takes: its size, layout, type and value range.

    The image is resized with Pillow's bicubic filter, whose pixel areas are aligned at the borders.
    """
    height, width = input_size(network, image.size, preset)
    pixels = np.float64(image.resize((width, height), Image.Resampling.BICUBIC))
    is_integer = np.issubdtype(network.dtype, np.integer)
    low, high = preset.range or ((0, 255) if is_integer and not network.quantisation else (0, 1))
    values = (low + pixels * ((high - low) / 255) - preset.mean) / preset.std
    if network.quantisation:
        scale, zero_point = network.quantisation
        values = values / scale + zero_point
    if is_integer:
        limits = np.iinfo(network.dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    values = values.astype(network.dtype)
    return values[np.newaxis] if network.shape[3] == 3 else values.transpose(2, 0, 1)[np.newaxis]


def input_size(network, photo_size, preset):
    """Returns the (height, width) that a photo of (width, height) gets: the network's own, or else the preset's."""
    shape = network.shape[1:3] if network.shape[3] == 3 else network.shape[2:]
    scales = [length / side for length, side in zip(preset.size, photo_size[::-1])]
    if preset.fit:
        scales = [preset.fit(scales)] * 2
    free = [max(1, round(side * scale / preset.multiple)) * preset.multiple
            for side, scale in zip(photo_size[::-1], scales)]
    return tuple(fixed or side for fixed, side in zip(shape, free))


def one_channel(network, batch):
    """Returns what the network gives for a batch of one, float32 (height, width). Raises DataError on more channels."""
    try:
        outputs = network.run(batch)
    except Exception as error:  # whatever a stranger's network raises
        raise DataError(f"the network fails on {_shape_text(batch.shape)} ({first_line(error)[:300]})") from None
    values = np.squeeze(np.float32(outputs[0]))
    if len(outputs) != 1 or values.ndim != 2:
        shapes = " and ".join(_shape_text(output.shape) for output in outputs)
        raise DataError(f"the network gives {shapes}; a depth network gives one channel, 1 x height x width")
    return values


def inverse_depth(values, output):
    """Returns what the network gave, one of OUTPUTS, as values that are large where something is near.

    Raises DataError where these are NaN or infinite.
    """
    with np.errstate(all="ignore"):
        inverse = OUTPUTS[output](values)
    if not np.isfinite(inverse).all():
        raise DataError("the network gives NaN or infinite values; do preset=, range=, mean=, std= and output= fit it?")
    return inverse


def depth_map(values, size):
    """Returns inverse depth, float32 (h, w) of any scale, as uint8 (height, width) for a `size` of (width, height).

    The 1st percentile becomes 0 and the 99th 255; what lies beyond is clipped, so that a few odd pixels do not take all
    the contrast. A constant becomes 128.
    """
    low, high = np.percentile(values, PERCENTILES)
    scaled = np.full_like(values, MID_GREY) if low == high else np.clip((values - low) / (high - low), 0, 1)
    return utils.to_uint8(Image.fromarray(np.float32(scaled)).resize(size, Image.Resampling.BICUBIC))


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


# Networks ------------------------------------------------------------------------------------------------------------


def find_loader(path):
    """Returns the function that loads the kind of network that `path` is. Raises DataError if it is none."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder (docs/depth_maps.md names networks and where they are)")
    load = load_saved_model if path.is_dir() else LOADERS.get(path.suffix.lower())
    if load is None:
        raise DataError(f"{path}: is no {', '.join(LOADERS)} file and no SavedModel folder")
    return load


def open_network(path, load, preset):
    """Loads a network and tries it on a grey picture. Raises DataError where it does not fit."""
    if load is not load_onnx:
        devices.start_tensorflow()
    try:
        network = load(pathlib.Path(path))
        check_input(network)
        one_channel(network, prepare(Image.new("RGB", (512, 384), "grey"), network, preset))
    except Exception as error:  # a reader of foreign files raises anything
        raise DataError(f"{path}: cannot be used as a depth network ({first_line(error)[:300]})") from None
    shape, kind = _shape_text(network.shape[1:]), np.dtype(network.dtype).name
    print(f"Network: {path}, takes {shape} {kind}{network.where}", flush=True)
    return network


def check_input(network):
    """Raises DataError unless the network takes one RGB image."""
    shape = network.shape
    if len(shape) != 4 or shape[0] not in (1, None) or 3 not in (shape[1], shape[3]):
        raise DataError(f"the network takes {_shape_text(shape)}; a depth network takes one RGB image, "
                        "1 x height x width x 3 or 1 x 3 x height x width")


def load_onnx(path):
    """Loads a .onnx file as a `Network`, on an NVIDIA GPU where there is one and onnxruntime supports it."""
    try:
        import onnxruntime
    except ImportError:
        raise DataError("onnxruntime is missing: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = load_dataset.processors(), 4  # it raises its errors
    providers = [name for name in ONNX_PROVIDERS if name in onnxruntime.get_available_providers()]
    if len(providers) > 1:
        onnxruntime.preload_dlls()  # finds the CUDA libraries that pip installed for TensorFlow
    session = onnxruntime.InferenceSession(str(path), options, providers)
    tensor = session.get_inputs()[0]
    shape = [length if isinstance(length, int) and length > 0 else None for length in tensor.shape]
    if len(shape) == 4 and 3 not in shape and not shape[1]:
        shape[1] = 3  # exporters of PyTorch's networks, which are NCHW, may leave all four open
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind)).type
    return Network(lambda batch: session.run(None, {tensor.name: batch}), tuple(shape), dtype,
                   where=f" (onnxruntime, {session.get_providers()[0]})")


def load_tflite(path):
    """Loads a .tflite file as a `Network`. Quantised numbers q have the value scale * (q - zero point)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its successor, which TensorFlow 2.16 does not have
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=load_dataset.processors())
    detail = interpreter.get_input_details()[0]

    def run(batch):
        interpreter.resize_tensor_input(detail["index"], batch.shape)  # does nothing where it has that size
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], batch)
        interpreter.invoke()
        return [_dequantised(interpreter.get_tensor(output["index"]), output)
                for output in interpreter.get_output_details()]

    shape = tuple(None if length < 0 else int(length) for length in detail["shape_signature"])
    quantisation = detail["quantization"] if detail["quantization"][0] else None
    return Network(run, shape, detail["dtype"], quantisation, " (TFLite computes on the CPU)")


def _dequantised(values, detail):
    scale, zero_point = detail["quantization"]  # a scale of 0 if it is not quantised
    return (np.float32(values) - zero_point) * np.float32(scale) if scale else values


def load_saved_model(path):
    """Loads a SavedModel folder as a `Network`: its signature serving_default."""
    loaded = tf.saved_model.load(str(path))
    if "serving_default" not in loaded.signatures:
        raise DataError("has no signature serving_default")
    name, spec = next(iter(loaded.signatures["serving_default"].structured_input_signature[1].items()))

    def run(batch):  # through `loaded`, which holds the variables
        outputs = loaded.signatures["serving_default"](**{name: tf.constant(batch)})
        return [output.numpy() for output in outputs.values()]

    return Network(run, tuple(spec.shape), spec.dtype.as_numpy_dtype)


def load_keras(path):
    """Loads a Keras file as a `Network`. Code in the file (Lambda layers) is not run, and makes it unreadable."""
    keras_model = tf.keras.models.load_model(path, compile=False)
    tensor = keras_model.inputs[0]
    predict = tf.function(lambda batch: keras_model(batch, training=False), autograph=False, reduce_retracing=True)
    return Network(lambda batch: [output.numpy() for output in tf.nest.flatten(predict(tf.constant(batch)))],
                   tuple(tensor.shape), tf.as_dtype(tensor.dtype).as_numpy_dtype)


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".keras": load_keras, ".h5": load_keras, ".hdf5": load_keras}


def _shape_text(shape):
    return " x ".join("any" if length is None else str(length) for length in shape) or "a single number"


if __name__ == "__main__":
    sys.exit(utils.run(main))
