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
ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # onnxruntime's, the first that there is computes
PREVIEWED, PREVIEW_SIZE = 6, (480, 360)  # photos on the contact sheet, spread evenly over all, and their pixels

OUTPUTS = {  # what a network may give: how that becomes inverse depth, which is large where something is near
    "inverse": lambda values: values,
    "depth": np.negative,
    "distance": np.reciprocal,
    "log_depth": lambda values: np.exp(-values),
}


class Preset(NamedTuple):
    """What a network wants and gives, as PARAMETERS say; `size` is (height, width).

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
    "none": Preset(),
    "midas_v21_small": Preset(**IMAGENET, size=(256, 256)),
    "depth_anything_v2": Preset(**IMAGENET, size=(518, 518), fit=max, multiple=14),
    "megadepth": Preset(range=(0, 1), output="log_depth", size=(384, 512), fit=None),
}

PARAMETERS = (
    Parameter("model", str, utils.REQUIRED, "depth network: .onnx, .tflite, a SavedModel folder, .keras or .h5"),
    Parameter("images_dir", str, None, "folder of photos, or one photo", default_text="none"),
    Parameter("depth_dir", str, None, "folder for the depth maps of images_dir", default_text="none"),
    Parameter("dataset_dir", str, None, "data set whose train/ and test/ get original_depth/", default_text="none"),
    Parameter("preset", tuple(PRESETS), "none", "range, mean, std, output, size and multiple of a known network"),
    Parameter("range", str, None, "what the pixel values 0 and 255 become, as low,high",
              default_text="0,1; 0,255 if the network takes unquantised whole numbers"),
    Parameter("mean", str, "0,0,0", "then subtracted from R,G,B"),
    Parameter("std", str, "1,1,1", "R,G,B are then divided by these"),
    Parameter("output", tuple(OUTPUTS), "inverse",
              "what the network gives: large = near, small = near, a distance, or the logarithm of one"),
    Parameter("size", int, None, "longer side of the input, if the network takes any size", 1,
              default_text="512, or the preset's"),
    Parameter("multiple", int, 32, "both sides are rounded to multiples of this", 1),
    Parameter("preview", str, None, "contact sheet to write, as FILE.png or FILE.jpg", default_text="none"),
)
USAGE = ("python -m tools.make_depth_maps model=FILE (images_dir=PHOTOS depth_dir=FOLDER | dataset_dir=FOLDER) "
         "[name=value ...]")


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
    preset, sheet = read_preset(settings), pathlib.Path(settings.preview or "")
    if settings.preview and (sheet.exists() or sheet.suffix.lower() not in (".png", ".jpg")):
        raise UsageError(f"preview={sheet}: must be a new file that ends in .png or .jpg")
    warnings.simplefilter("ignore")  # Pillow's about odd metadata, TFLite's about its successor; errors are raised
    photos = find_photos(settings)
    folders = {path.parent.resolve() for path in (*photos, *photos.values())}
    if settings.preview and sheet.parent.resolve() in folders:
        raise UsageError(f"preview={sheet}: must not lie among the photos or the depth maps")
    # Training takes a data set's photos as they lie in the file, so their depth maps have to lie as they do.
    decode = functools.partial(load_dataset.read_image, mode="RGB") if settings.dataset_dir else own_photos.read_photo
    kept = sum(depth.exists() for depth in photos.values())
    network = open_network(pathlib.Path(settings.model), preset) if kept < len(photos) else None
    previewed = {}
    if settings.preview:
        previewed = dict(list(photos.items())[::math.ceil(len(photos) / PREVIEWED)])
        make_depth_maps(previewed, decode, network, preset)
        write_preview(sheet, previewed, decode)
    make_depth_maps({path: photos[path] for path in photos if path not in previewed}, decode, network, preset)
    failed = sum(not depth.exists() for depth in photos.values())
    print(f"Depth maps: {len(photos) - kept - failed} made, {kept} kept, {failed} photos failed")
    return 1 if failed else 0


# The arguments, and the photos that they name ------------------------------------------------------------------------


def read_preset(settings):
    """Returns the `Preset` that the arguments name, changed by those that are given beside it."""
    given = {name: getattr(settings, name) for name in settings.given & {"output", "multiple"}}
    for name, count in (("range", 2), ("mean", 3), ("std", 3)):
        if name in settings.given:
            given[name] = _numbers(name, getattr(settings, name), count)
    if settings.size:
        given |= {"size": (settings.size, settings.size), "fit": min}
    return PRESETS[settings.preset]._replace(**given)


def _numbers(name, text, count):
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or name == "std" and min(numbers) <= 0:
        above = " above 0" if name == "std" else ""
        raise UsageError(f"{name}={text}: must be {count} numbers{above} with commas between them")
    return numbers


def find_photos(settings):
    """Makes the folders of the depth maps. Returns {photo: its depth map, which may be missing}."""
    given = [name for name in ("images_dir", "depth_dir", "dataset_dir") if getattr(settings, name)]
    if given not in (["images_dir", "depth_dir"], ["dataset_dir"]):
        raise UsageError(f"{' and '.join(given) or 'images_dir'}: write either images_dir=PHOTOS depth_dir=FOLDER or "
                         "dataset_dir=FOLDER, which is for a data set")
    if settings.images_dir:
        folders = {settings.images_dir: pathlib.Path(settings.depth_dir)}
    else:
        splits = [pathlib.Path(settings.dataset_dir) / split for split in ("train", "test")]
        photos, maps = load_dataset.PHOTOS.name, load_dataset.MAPS["depth"].name
        folders = {split / photos: split / maps for split in splits if (split / photos).is_dir()}
    if not folders:
        raise DataError(f"{settings.dataset_dir}: has no train/original/ or test/original/, which hold the photos")
    photos, suffixes = {}, {}
    if settings.dataset_dir:  # those that training looks for
        suffixes = {"suffixes": load_dataset.SUFFIXES, "depth_suffixes": load_dataset.SUFFIXES}
    for images_dir, depth_dir in folders.items():
        utils.prepare_folders(depth_dir)
        pairs, without = own_photos.find_pairs(images_dir, depth_dir, **suffixes)
        if any(pair.photo.samefile(pair.map) for pair in pairs):
            raise UsageError(f"depth_dir={depth_dir}: holds the photos; name another folder for the depth maps")
        photos |= {pair.photo: pair.map for pair in pairs}
        photos |= {path: depth_dir / f"{path.stem}.png" for path in without}
    return photos


# From the photo to the depth map -------------------------------------------------------------------------------------


def make_depth_maps(photos, decode, network, preset):
    """Writes those depth maps of {photo: depth map} that do not exist yet, and names the photos that fail."""
    missing = {path: depth for path, depth in photos.items() if not depth.exists()}
    progress = utils.ProgressLine(0, len(missing), "depth maps:")
    for number, (path, depth) in enumerate(missing.items(), 1):
        try:
            image = decode(path)
            utils.write_image(depth, depth_map(inverse_depth(image, network, preset, path), image.size))
        except DataError as error:
            utils.warn(str(error), kind="error")
        progress.update(number, depth.name)
    progress.clear()


def inverse_depth(image, network, preset, path):
    """Returns what the network sees in a Pillow RGB image: float32 (height, width), large where something is near.

    Raises DataError, which names `path`, where it fails, or gives more than one channel, NaN or infinite values.
    """
    try:
        outputs = network.run(prepare(image, network, preset))
    except Exception as error:  # whatever a stranger's network raises
        raise DataError(f"{path}: the network fails on it ({first_line(error)[:300]})") from None
    values = np.squeeze(np.float32(outputs[0]))
    if len(outputs) != 1 or values.ndim != 2:
        shapes = [output.shape for output in outputs]
        raise DataError(f"{path}: the network gives {shapes}; a depth network gives one channel, (1, height, width)")
    inverse = OUTPUTS[preset.output](values)
    if not np.isfinite(inverse).all():
        raise DataError(f"{path}: the network gives NaN or infinite values; do preset=, mean=, std=, output= fit it?")
    return inverse


def prepare(image, network, preset):
    """Makes a Pillow RGB image the batch of one that the network takes: its size, layout, type and value range."""
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


def depth_map(values, size):
    """Returns inverse depth, float32 of any shape and scale, as uint8 at half the `size`, (width, height), of a photo.

    The 1st percentile becomes 0 and the 99th 255; what lies beyond is clipped, so that a few odd pixels do not take all
    the contrast. A constant becomes 0.
    """
    low, high = np.percentile(values, PERCENTILES)
    scaled = np.clip((values - low) / ((high - low) or 1), 0, 1)
    half = tuple(max(1, side // 2) for side in size)
    return utils.to_uint8(Image.fromarray(np.float32(scaled)).resize(half, Image.Resampling.BICUBIC))


def write_preview(sheet, photos, decode):
    """Writes a contact sheet of {photo: depth map}, without those that cannot be read, and prints what it shows."""
    rows = {}
    for path, depth in photos.items():
        try:
            pictures = decode(path), Image.open(depth).convert("RGB")
        except Exception:  # a photo that is damaged, or whose depth map is missing, or not an image
            continue
        rows[path.name] = np.hstack([ImageOps.pad(picture, PREVIEW_SIZE, color="white") for picture in pictures])
    if rows:
        utils.write_image(sheet, np.vstack(list(rows.values())))
        print(f"Preview: {sheet} shows {', '.join(rows)} beside their depth maps: near must be bright", flush=True)


# Networks ------------------------------------------------------------------------------------------------------------


def open_network(path, preset):
    """Loads a network and tries it on a picture of noise. Raises DataError where it is none, or does not fit."""
    load = load_saved_model if path.is_dir() else LOADERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; docs/depth_maps.md names networks and where they are")
    if load is None:
        raise DataError(f"{path}: must be a {', '.join(LOADERS)} file or a SavedModel folder")
    if load is not load_onnx:
        devices.start_tensorflow()
    try:
        network = load(path)
    except Exception as error:  # a reader of foreign files raises anything
        raise DataError(f"{path}: cannot be loaded ({first_line(error)[:300]})") from None
    shape = network.shape
    if len(shape) != 4 or shape[0] not in (1, None) or 3 not in (shape[1], shape[3]):
        raise DataError(f"{path}: takes {shape}; a depth network takes one RGB image, (1, height, width, 3) or "
                        "(1, 3, height, width)")
    inverse_depth(Image.effect_noise((512, 384), 16).convert("RGB"), network, preset, path)
    print(f"Network: {path}, takes {shape} {np.dtype(network.dtype).name}", flush=True)
    return network


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
    print(f"onnxruntime computes with {session.get_providers()[0]}")
    return Network(lambda batch: session.run(None, {tensor.name: batch}), tuple(shape), dtype)


def load_tflite(path):
    """Loads a .tflite file as a `Network`. Quantised numbers q have the value scale * (q - zero point)."""
    interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=load_dataset.processors())
    detail = interpreter.get_input_details()[0]

    def run(batch):
        interpreter.resize_tensor_input(detail["index"], batch.shape)  # does nothing where it has that size
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], batch)
        interpreter.invoke()
        outputs = []
        for output in interpreter.get_output_details():
            values, (scale, zero_point) = interpreter.get_tensor(output["index"]), output["quantization"]
            outputs.append((np.float32(values) - zero_point) * np.float32(scale) if scale else values)
        return outputs

    shape = tuple(None if length < 0 else int(length) for length in detail["shape_signature"])
    quantisation = detail["quantization"] if detail["quantization"][0] else None
    return Network(run, shape, detail["dtype"], quantisation)


def load_saved_model(path):
    """Loads a SavedModel folder as a `Network`: its signature serving_default."""
    loaded = tf.saved_model.load(str(path))
    name, spec = next(iter(loaded.signatures["serving_default"].structured_input_signature[1].items()))

    def run(batch):  # through `loaded`, which holds the variables
        outputs = loaded.signatures["serving_default"](**{name: tf.constant(batch)})
        return [output.numpy() for output in outputs.values()]

    return Network(run, tuple(spec.shape), spec.dtype.as_numpy_dtype)


def load_keras(path):
    """Loads a Keras file as a `Network`. Code in the file (Lambda layers) is not run, and makes it unreadable."""
    keras_model = tf.keras.models.load_model(path, compile=False)
    tensor = keras_model.inputs[0]
    return Network(lambda batch: [output.numpy() for output in tf.nest.flatten(keras_model(batch, training=False))],
                   tuple(tensor.shape), tf.as_dtype(tensor.dtype).as_numpy_dtype)


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".keras": load_keras, ".h5": load_keras, ".hdf5": load_keras}


if __name__ == "__main__":
    sys.exit(utils.run(main))
