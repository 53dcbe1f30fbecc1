"""How does a depth network of any kind make a depth map?

The network is an ONNX or TFLite file, a SavedModel folder or a Keras file that takes an RGB image and gives one
channel. A depth map is 8-bit grey at half the photo's width and height, rounded down, bright = near.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import load_dataset
import utils
from support import checkpoints, devices, downloads
from utils import DataError, UsageError, first_line, tf

PERCENTILES = 1, 99  # of inverse depth: what becomes 0 and 255; what lies outside is clipped
ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # onnxruntime's, the first that there is computes
MAX_PIXELS = 2 ** 22  # of a network's input; the largest known takes 1536 x 1536
MAX_STRETCH = 4  # longest side of an input in relation to the preset's size, for photos that are very long
SAFE_KERAS = 3, 11, 3  # before it, loading a .h5 file ran the code in it (CVE-2025-9905)

OUTPUTS = {  # what a network may give: how that becomes inverse depth, which is large where something is near
    "inverse": lambda values: values,
    "depth": np.negative,
    "distance": np.reciprocal,
    "log_depth": lambda values: np.exp(-values),
}


class Preset(NamedTuple):
    """What a network takes and gives.

    range: what the pixel values 0 and 255 become; None is 0 to 1, or 0 to 255 for unquantised whole numbers.
    mean, std: of R, G and B, which are subtracted and divided by after that.
    output: what the network gives, a key of OUTPUTS.
    size, fit: (height, width) of an input of free size. The photo's shape is kept, within that size (min) or around it
      (max); None stretches the photo to it.
    multiple: free sides are rounded to multiples of this.
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
DEFAULT = "depth_anything_v2_small"
NAMED = {DEFAULT: "depth_anything_v2", "midas_v21_small": "midas_v21_small"}  # in downloads.DOWNLOADS: their presets


class Network(NamedTuple):
    """A depth network of any kind.

    run: takes a batch of one image as an array of `dtype`, gives {name: array} of the outputs.
    shape: of the input; None for a length that is free.
    dtype: of the input, a NumPy type.
    quantisation: (scale, zero point) where the input's whole numbers q stand for scale * (q - zero point); else None.
    """

    run: Callable
    shape: tuple
    dtype: Any
    quantisation: tuple | None = None


# From a photo to its depth map ---------------------------------------------------------------------------------------


def needs_tensorflow(name):
    """Returns whether a network, a name in NAMED or a path, is computed with TensorFlow."""
    return name not in NAMED and pathlib.Path(name).suffix.lower() != ".onnx"


def check_name(name):
    """Raises UsageError where a depth network is neither a file nor a known name."""
    if name not in NAMED and not os.path.exists(name):
        raise UsageError(f"depth_model={name}: must be a file, or {' or '.join(NAMED)}")


def open_network(name, preset=None, output_name=None):
    """Loads a network, prints what it takes, and tries it on a picture of noise.

    Args:
      name: a name in NAMED, of a network that is fetched where it is not in models/depth/; or the path of a .onnx,
        .tflite, .keras or .h5 file or a SavedModel folder.
      preset: the `Preset` that goes with it; None takes that of the name.
      output_name: the output to take, where there are several; None takes the one with "depth" in its name.

    Returns make_depth_map(image, name): of a Pillow RGB image, uint8 (height / 2, width / 2), rounded down. It raises
    DataError, which begins with `name`, where the network fails or gives something else than a depth map.
    Raises DataError where the file is no depth network.
    """
    path = downloads.fetch(name) if name in NAMED else pathlib.Path(name)
    preset = preset or PRESETS[NAMED.get(name, "none")]
    network = load_network(path)
    inverse_depth(Image.effect_noise((512, 384), 16).convert("RGB"), path, network, preset, output_name)
    utils.say(f"Network: {path}, takes {network.shape} {np.dtype(network.dtype).name}")
    return functools.partial(make_depth_map, network=network, preset=preset, output_name=output_name)


def make_depth_map(image, name, network, preset, output_name=None):
    """Returns the depth map of a Pillow RGB image, see `open_network`."""
    return depth_map(inverse_depth(image, name, network, preset, output_name), image.size)


def inverse_depth(image, name, network, preset, output_name=None):
    """Returns what the network sees in a Pillow RGB image: float32 (height, width), large where something is near.

    Raises DataError, which begins with `name`, where it fails, or gives no single channel, NaN or infinite values.
    """
    batch = prepare(image, name, network, preset)
    try:
        outputs = {output: np.asarray(values) for output, values in network.run(batch).items()}
    except Exception as error:  # whatever a stranger's network raises
        raise DataError(f"{name}: the network fails on it ({first_line(error)[:300]})") from None
    shapes = ", ".join(f"{output} {values.shape}" for output, values in sorted(outputs.items()))
    chosen = [output_name] if output_name else [output for output in outputs if "depth" in output.lower()]
    chosen = list(outputs) if len(outputs) == 1 and not output_name else chosen
    if len(chosen) != 1 or chosen[0] not in outputs:
        raise DataError(f"{name}: the network gives {shapes}; output_name=NAME must choose one of them")
    values = np.squeeze(outputs[chosen[0]])
    if values.ndim != 2 or not values.size or values.dtype.kind in "OSUc":  # objects, texts, complex numbers
        raise DataError(f"{name}: the network gives {shapes}; a depth network gives one channel, (1, height, width)")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = OUTPUTS[preset.output](np.float32(values))
    if not np.isfinite(inverse).all():
        raise DataError(f"{name}: the network gives NaN or infinite values; do preset=, mean=, std=, output= fit it?")
    return inverse


def prepare(image, name, network, preset):
    """Makes a Pillow RGB image the batch of one that the network takes: its size, layout, type and value range."""
    height, width = input_size(network, image.size, preset)
    if height * width > MAX_PIXELS:
        raise DataError(f"{name}: the network's input would have {width} x {height} pixels; at most "
                        f"{MAX_PIXELS >> 20} million are computed")
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
        scales = [min(preset.fit(scales), MAX_STRETCH * max(preset.size) / max(photo_size))] * 2
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


# Networks ------------------------------------------------------------------------------------------------------------


def load_network(path):
    """Loads a network of any kind as a `Network`. Raises DataError where it is none, or does not take one RGB image."""
    load = load_saved_model if path.is_dir() else LOADERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; docs/depth_maps.md names networks and where they are")
    if load is None:
        raise DataError(f"{path}: must be a {', '.join(LOADERS)} file or a SavedModel folder")
    if load is not load_onnx:
        devices.start_tensorflow()
    try:
        network = load(path)
    except DataError:
        raise
    except Exception as error:  # a reader of foreign files raises anything
        raise DataError(f"{path}: cannot be loaded ({first_line(error)[:300]})") from None
    shape, run = network.shape, network.run
    if len(shape) == 5 and shape[1] in (1, None):  # networks that take several views of a scene
        shape = shape[:1] + shape[2:]
        network = network._replace(shape=shape, run=lambda batch: run(batch[:, np.newaxis]))
    if len(shape) != 4 or shape[0] not in (1, None) or 3 not in (shape[1], shape[3]):
        raise DataError(f"{path}: takes {shape}; a depth network takes one RGB image, (1, height, width, 3) or "
                        "(1, 3, height, width)")
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
    if 3 not in shape and len(shape) in (4, 5) and not shape[-3]:
        shape[-3] = 3  # exporters of PyTorch's networks, which are NCHW, may leave all axes open
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind)).type
    utils.say(f"onnxruntime computes with {session.get_providers()[0]}")
    names = [output.name for output in session.get_outputs()]
    return Network(lambda batch: dict(zip(names, session.run(names, {tensor.name: batch}))), tuple(shape), dtype)


def load_tflite(path):
    """Loads a .tflite file as a `Network`. Quantised numbers q have the value scale * (q - zero point)."""
    # As bytes, which it verifies: a path to a damaged file ends the process.
    interpreter = tf.lite.Interpreter(model_content=path.read_bytes(), num_threads=load_dataset.processors())
    detail = interpreter.get_input_details()[0]

    def run(batch):
        interpreter.resize_tensor_input(detail["index"], batch.shape)  # does nothing where it has that size
        interpreter.allocate_tensors()
        interpreter.set_tensor(detail["index"], batch)
        interpreter.invoke()
        outputs = {}
        for output in interpreter.get_output_details():
            values, (scale, zero_point) = interpreter.get_tensor(output["index"]), output["quantization"]
            outputs[output["name"]] = (np.float32(values) - zero_point) * np.float32(scale) if scale else values
        return outputs

    shape = tuple(None if length < 0 else int(length) for length in detail["shape_signature"])
    quantisation = detail["quantization"] if detail["quantization"][0] else None
    return Network(run, shape, detail["dtype"], quantisation)


def load_saved_model(path):
    """Loads a SavedModel folder as a `Network`: its signature serving_default."""
    loaded = tf.saved_model.load(checkpoints.plain_path(path))
    name, spec = next(iter(loaded.signatures["serving_default"].structured_input_signature[1].items()))

    def run(batch):  # through `loaded`, which holds the variables
        outputs = loaded.signatures["serving_default"](**{name: tf.constant(batch)})
        return {name: output.numpy() for name, output in outputs.items()}

    return Network(run, tuple(spec.shape), spec.dtype.as_numpy_dtype)


def load_keras(path):
    """Loads a Keras file as a `Network`. Code in the file (Lambda layers) is not run, and makes it unreadable.

    Raises DataError with a Keras that would run it.
    """
    import keras
    if tuple(map(int, re.findall(r"\d+", keras.__version__)[:3])) < SAFE_KERAS:
        safe = ".".join(map(str, SAFE_KERAS))
        raise DataError(f"{path}: Keras {keras.__version__} may run code in such a file: pip install 'keras>={safe}'")
    keras_model = keras.models.load_model(path, compile=False)
    tensor, names = keras_model.inputs[0], getattr(keras_model, "output_names", ["output"])

    def run(batch):
        outputs = tf.nest.flatten(keras_model(batch, training=False))
        return {name: output.numpy() for name, output in zip(names, outputs)}

    return Network(run, tuple(tensor.shape), tf.as_dtype(tensor.dtype).as_numpy_dtype)


LOADERS = {".onnx": load_onnx, ".tflite": load_tflite, ".keras": load_keras, ".h5": load_keras, ".hdf5": load_keras}
