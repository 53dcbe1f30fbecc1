"""Writes a level of PyNET for use without this repository: python -m tools.export_model level=1 out=pynet

The exported model takes the photo and the depth map as they are decoded, both at half the photo's size. Scaling,
padding to what the network takes, cutting back and clipping are inside. It is made of built-in layers and operations
only. Before the file gets its name it is loaded and compared with the network.
"""

import functools
import importlib.util
import pathlib
import signal
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image

import utils
from load_dataset import MAPS, PHOTOS
from support import checkpoints, devices, image_metrics, renderer, scripts
from utils import DataError, Parameter, UsageError, first_line, tf

FORMATS = {"": "saved_model", ".tflite": "tflite", ".keras": "keras", ".onnx": "onnx"}  # by the ending of the file
FIXED_SIZE = ("tflite", "keras")  # the others take photos of any size
CHANNELS = {"photo": PHOTOS.channels, "depth": MAPS["depth"].channels}  # of the inputs of what is exported
LARGEST_DIFFERENCE = 1e-4  # of any pixel from the network's, where 1 is white
LOWEST_PSNR = 50.0  # in dB, of float16
SMALLEST_SIDE = 32  # pixels of the input, one pixel of level 7
TRIAL_SIZE = 88, 120  # height and width of the photo that formats for any size are tried with

PARAMETERS = (
    Parameter("level", int, 1, "level to export", minimum=1, maximum=7),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("small", bool, False, "use the weights of models/small/"),
    Parameter("restore_iter", int, None, "iteration of the level to use", minimum=1, default_text="last saved"),
    Parameter("format", tuple(FORMATS.values()), None, "format of the file", default_text="as the ending of out says"),
    Parameter("precision", ("float32", "float16"), "float32", "of the weights in the file; float16 for tflite only"),
    Parameter("height", int, None, "of the inputs, in pixels",
              minimum=SMALLEST_SIDE, maximum=8192, default_text="required for tflite and keras"),
    Parameter("width", int, None, "of the inputs, in pixels",
              minimum=SMALLEST_SIDE, maximum=8192, default_text="required for tflite and keras"),
    Parameter("out", str, utils.REQUIRED,
              "FILE.onnx, FILE.tflite, FILE.keras, or the folder of a SavedModel; must not exist"),
)
USAGE = "python -m tools.export_model out=PATH [name=value ...]"


def main(argv):
    """Exports as the arguments say. Raises DataError if the exported model does not compute what the network does."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the half file is deleted then, too
    out = pathlib.Path(settings.out)
    settings.format = find_format(settings.format, out)
    check_arguments(settings)
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists, and nothing is overwritten; name another, or remove it")
    prefix, _ = checkpoints.find_weights(settings)
    utils.prepare_folders(out.parent)
    devices.start_tensorflow(use_gpu=False)  # a GPU would round differently from the exported file on the CPU
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        partial = pathlib.Path(checkpoints.plain_path(folder)) / f"model{out.suffix}"
        network = restore(settings.level, prefix)
        utils.say(f"Weights: {prefix}")
        try:
            write(network, settings, partial)
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{out}: could not be written ({first_line(error)})") from None
        compare(network, settings, partial)
        partial.rename(out)
    utils.say(f"{out}: level {settings.level} as {settings.format}")


def find_format(wanted, out):
    """Returns the format that the ending of `out` says. Raises UsageError where another one is wanted."""
    found = FORMATS.get(out.suffix.lower(), "saved_model")
    if wanted not in (None, found):
        endings = ", ".join(filter(None, FORMATS))
        raise UsageError(f"out={out}: is {found} by its ending, not {wanted}; the endings are {endings}")
    return found


def check_arguments(settings):
    """Raises UsageError for arguments that do not go together, DataError where packages are missing."""
    checkpoints.check_weights(settings)
    if settings.precision == "float16" and settings.format != "tflite":
        raise UsageError(f"precision=float16: is for tflite; {settings.format} keeps float32")
    sides = [side for side in (settings.height, settings.width) if side is not None]
    if sides and settings.format not in FIXED_SIZE:
        raise UsageError(f"height, width: are for {' and '.join(FIXED_SIZE)}; {settings.format} takes any size")
    if len(sides) < 2 and settings.format in FIXED_SIZE:
        raise UsageError(f"height, width: must be given for {settings.format}, which takes one size: "
                         "the height and width of the inputs in pixels")
    for package in ("tf2onnx", "onnxruntime") if settings.format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise DataError(f"{package} is missing: pip install tf2onnx onnxruntime")


def restore(level, prefix):
    """Returns the network of a level with the weights of a checkpoint. Raises DataError if it takes no depth maps."""
    import model
    network = checkpoints.network_of(prefix)
    if not checkpoints.takes_maps(network):
        raise DataError(f"{prefix}: is of a network without depth maps, which cannot be exported")
    pynet = model.build_pynet(seed=None, **network)
    checkpoints.restore_checkpoint(pynet.variables, prefix)
    return model.network_for_level(pynet, level)


# The model -----------------------------------------------------------------------------------------------------------


def render(features, level, photo, depth):
    """Renders photos, float32 (images, height, width, 3), with depth maps, (images, height, width, 1), both 0-255.

    Takes tensors, also of unknown size, and symbolic Keras tensors. `features` are of `built_in_features`.
    Returns float32 (images, height / s, width / s, 3), s = 2^(level - 2), in [0, 1].
    """
    from keras import ops

    from model import INPUT_MULTIPLE
    x = ops.concatenate([photo, depth], axis=-1) / 255.0
    height, width = ops.shape(x)[1:3]
    # of positive numbers only, because tf2onnx takes the remainder of a negative one as C does
    below, right = ((INPUT_MULTIPLE - side % INPUT_MULTIPLE) % INPUT_MULTIPLE for side in (height, width))
    fits = None not in photo.shape[1:3] and below == right == 0  # then without operations that do nothing
    if not fits:
        x = ops.pad(x, [(0, 0), (0, below), (0, right), (0, 0)], "reflect")
    # as model.SpaceToDepth, which Keras could not load elsewhere: (images, 2h, 2w, c) -> (images, h, w, 4c)
    y = features(ops.concatenate([x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], axis=-1))
    if not fits:
        y = y[:, :(2 * height) // 2 ** (level - 1), :(2 * width) // 2 ** (level - 1)]
    return ops.clip(y, 0.0, 1.0)


def built_in_features(network):
    """Returns a copy of a level's network without its space-to-depth, in which Keras' own layers replace model.py's."""
    import model
    built_in = {model.Convolution: tf.keras.layers.Conv2D,
                model.InstanceNormalization: tf.keras.layers.GroupNormalization}

    def copy(layer):
        return built_in.get(type(layer), type(layer)).from_config(layer.get_config())

    features = tf.keras.Model(network.get_layer("space_to_depth").output, network.output, name="pynet")
    copied = tf.keras.models.clone_model(features, clone_function=copy)
    copied.set_weights(features.get_weights())
    return copied


def normalise(layer, x):
    """Computes an instance normalisation on four axes. Keras' own uses a fifth, which phone GPUs do not take."""
    from keras import ops
    centred = x - ops.mean(x, axis=(1, 2), keepdims=True)
    variance = ops.mean(centred * centred, axis=(1, 2), keepdims=True)
    return centred * (ops.rsqrt(variance + layer.epsilon) * layer.gamma) + layer.beta


# The files -----------------------------------------------------------------------------------------------------------


def write(network, settings, path):
    """Writes the exported model in the format that is asked for: inputs `photo` and `depth`, output `image`."""
    features = built_in_features(network)
    if settings.format == "keras":
        write_keras(features, settings, path)
        return
    for layer in features.layers:
        if isinstance(layer, tf.keras.layers.GroupNormalization):
            layer.call = functools.partial(normalise, layer)
    shape = [1 if settings.format == "tflite" else None, settings.height, settings.width]
    signature = [tf.TensorSpec([*shape, channels], tf.float32, name) for name, channels in CHANNELS.items()]
    function = tf.function(lambda photo, depth: {"image": render(features, settings.level, photo, depth)},
                           input_signature=signature, autograph=False)
    if settings.format == "onnx":
        import tf2onnx
        tf2onnx.convert.from_function(function, signature, output_path=path)
        return
    module = tf.Module()
    module.weights, module.render = [variable.value for variable in features.variables], function
    saved_model = path if settings.format == "saved_model" else path.with_name("saved_model")
    tf.saved_model.save(module, str(saved_model), signatures=function)
    if settings.format == "tflite":
        path.write_bytes(to_tflite(saved_model, settings.precision))


def write_keras(features, settings, path):
    """Writes a Keras file."""
    inputs = {name: tf.keras.Input((settings.height, settings.width, channels), name=name)
              for name, channels in CHANNELS.items()}
    image = render(features, settings.level, **inputs)
    tf.keras.Model(inputs, {"image": image}, name=f"pynet_level_{settings.level}").save(path)


def to_tflite(saved_model, precision):
    """Returns the content of a TFLite file. Fails where TFLite's own operations do not suffice."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


# The comparison ------------------------------------------------------------------------------------------------------


def compare(network, settings, path):
    """Prints how far the exported model is from the network on a photo. Raises DataError if that is too far."""
    height, width = settings.height or TRIAL_SIZE[0], settings.width or TRIAL_SIZE[1]
    inputs = trial_photo(height, width)
    expected = renderer.make_renderer(network, settings.level)(inputs, (2 * width, 2 * height))
    batch = np.float32(inputs[np.newaxis])
    found = load(path, settings.format)(*np.split(batch, [PHOTOS.channels], -1))[0]
    difference = np.abs(found - expected).max()
    psnr = float(image_metrics.psnr(found[np.newaxis], expected[np.newaxis])[0])
    measured = f"largest difference from the network {difference:.2g}, PSNR {psnr:.1f} dB"
    print(f"Loaded and tried on a photo of {width} x {height}: {measured}")
    close = psnr >= LOWEST_PSNR if settings.precision == "float16" else difference <= LARGEST_DIFFERENCE
    if not close:
        raise DataError(f"{settings.out}: not written, it does not compute what the network does ({measured})")


def trial_photo(height, width):
    """Returns random smooth colours and depths as the network takes them, uint8 (height, width, channels)."""
    noise = np.random.default_rng(0).integers(0, 256, (sum(CHANNELS.values()), 9, 12), np.uint8)
    return np.dstack([Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC) for channel in noise])


def load(path, kind):
    """Loads an exported model as a user would. Returns render(photo, depth) for float32 arrays of one image."""
    if kind == "keras":
        keras_model = tf.keras.models.load_model(path)
        return lambda photo, depth: keras_model({"photo": photo, "depth": depth})["image"].numpy()
    if kind == "saved_model":
        signature = tf.saved_model.load(str(path)).signatures["serving_default"]
        return lambda photo, depth: signature(photo=tf.constant(photo), depth=tf.constant(depth))["image"].numpy()
    if kind == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda photo, depth: session.run(["image"], {"photo": photo, "depth": depth})[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter announces that it will move to another package
        interpreter = tf.lite.Interpreter(str(path))
    return lambda photo, depth: interpreter.get_signature_runner()(photo=photo, depth=depth)["image"]


if __name__ == "__main__":
    sys.exit(scripts.run(main))
