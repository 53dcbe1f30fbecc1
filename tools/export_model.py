"""Writes a level of PyNET for use without this repository: python -m tools.export_model level=1 format=tflite out=FILE

The exported model takes the photo and the depth map as they are decoded, both at half the photo's size. Scaling, padding
to what the network takes, cutting back and clipping are inside. It is made of built-in layers and operations only: a
SavedModel, a Keras file and a TFLite file each load where this repository is not. Before the file gets its name it is
loaded and compared with the network.
"""

import math
import pathlib
import sys
import tempfile
import warnings

import numpy as np
from PIL import Image

import utils
from tools import make_demo_dataset
from utils import DataError, Parameter, UsageError

FORMATS = ("saved_model", "tflite", "keras")
PRECISIONS = ("float32", "float16")
LARGEST_DIFFERENCE = 1e-4  # of any pixel from the network's, where 1 is white
LOWEST_PSNR = 50.0  # in dB, of float16
FLOAT16_LARGEST = 65504.0  # what is beyond becomes infinite
SMALLEST_SIDE = 32  # pixels of the input, one pixel of level 7
TRIAL_SIZE = 88, 120  # height and width of the photo that the file is tried with, where it takes any

PARAMETERS = (
    Parameter("level", int, 1, "level to export", 1, 7),
    Parameter("orig", bool, False, "use the released weights in models/original/"),
    Parameter("restore_iter", int, None, "iteration of the level to use", 1, default_text="last saved"),
    Parameter("format", FORMATS, "saved_model", "saved_model, tflite or keras"),
    Parameter("precision", PRECISIONS, "float32",
              "float32, or float16 to store the weights of a tflite file in half the space"),
    Parameter("height", int, None, "of the inputs in pixels, half the photo's", SMALLEST_SIDE, 8192, default_text="any"),
    Parameter("width", int, None, "of the inputs in pixels, half the photo's", SMALLEST_SIDE, 8192, default_text="any"),
    Parameter("out", str, utils.REQUIRED, "file to write (a folder for saved_model); must not exist"),
)
USAGE = "python -m tools.export_model out=PATH [name=value ...]"


def main(argv):
    """Exports as the arguments say. Returns the exit status: 1 if the exported model does not keep what it promises."""
    settings = utils.parse_arguments(argv, PARAMETERS, USAGE)
    check(settings)
    out = pathlib.Path(settings.out)
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists, and nothing is overwritten; name another, or remove it")
    prefix = utils.find_original() if settings.orig else utils.find_checkpoint(settings.level, settings.restore_iter)[0]
    utils.prepare_folders(out.parent)
    tf = utils.start_tensorflow(use_gpu=False)  # the GPU rounds otherwise than the exported file does here
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        partial = pathlib.Path(folder) / out.name
        network = restore(settings.level, prefix)
        print(f"Weights: {prefix}")
        try:
            write(network, settings, partial)
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{out}: could not be written ({str(error).splitlines()[0]})") from None
        compare(network, settings, partial)
        partial.rename(out)
    print(f"{out}: level {settings.level} as {settings.format}, {size_on_disk(out) / 1e6:.1f} MB")


def check(settings):
    """UsageError where arguments exclude each other."""
    if settings.precision == "float16" and settings.format != "tflite":
        raise UsageError(f"precision=float16: is for format=tflite; {settings.format} keeps float32")
    if (settings.height is None) != (settings.width is None):
        raise UsageError("height, width: give both, or none for any size")
    if settings.format == "keras" and not settings.out.endswith(".keras"):
        raise UsageError(f"out={settings.out}: is to end in .keras, or Keras does not load it")
    if settings.orig and settings.restore_iter:
        raise UsageError("restore_iter: the released weights (orig=true) have no iterations; leave one of the two out")


def restore(level, prefix):
    """The network of a level with the weights of a checkpoint."""
    import model
    if not utils.takes_depth(prefix):
        raise DataError(f"{prefix}: is of a network without depth maps (use_depth=false); only those with can be exported")
    pynet = model.build_pynet(seed=None)
    utils.restore_checkpoint(pynet.variables, prefix)
    return model.network_for_level(pynet, level)


# The model -----------------------------------------------------------------------------------------------------------


def with_photo_and_depth(network, level, height=None, width=None, for_tflite=False):
    """The network of a level, from what a user has to what a user wants, of built-in Keras layers and operations.

    Args:
      network: what `model.network_for_level` returned.
      level: 1-7.
      height, width: of the inputs in pixels, None for any.
      for_tflite: normalise with operations on four axes, which phone GPUs take. Not a built-in layer.

    Returns:
      A `keras.Model` with the inputs `photo` (images, height, width, 3) and `depth` (images, height, width, 1), float32,
      0-255, and the output `image`, float32 (images, height / s, width / s, 3), s = 2^(level - 2), in [0, 1].
    """
    from tensorflow import keras
    photo = keras.Input((height, width, 3), name="photo")
    depth = keras.Input((height, width, 1), name="depth")
    features = keras.Model(network.get_layer("space_to_depth").output, network.output, name="pynet")
    features = rebuilt(features, four_axes_normalisation() if for_tflite else keras.layers.GroupNormalization.from_config)
    x = keras.ops.concatenate([photo, depth], axis=-1) / 255.0
    y = features(space_to_depth(pad(x)))
    y = keras.ops.clip(cut_back(y, x, level), 0.0, 1.0)
    return keras.Model({"photo": photo, "depth": depth}, {"image": y}, name=f"pynet_level_{level}")


def space_to_depth(x):
    """As `model.SpaceToDepth`, which Keras could not load elsewhere: (images, 2h, 2w, c) -> (images, h, w, 4c)."""
    from keras import ops
    return ops.concatenate([x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)], axis=-1)


def pad(x):
    """Continues images by reflection, to the right and below, to multiples of 32 (`test_model.pad_by_reflection`)."""
    from keras import ops
    from model import INPUT_MULTIPLE
    if None in x.shape[1:3]:
        return _pad_any(_pad_any(x, 1), 2)
    below, right = (-side % INPUT_MULTIPLE for side in x.shape[1:3])
    return ops.pad(x, [(0, 0), (0, below), (0, right), (0, 0)], "reflect") if below or right else x


def _pad_any(x, axis):
    """The same along one axis of unknown length.

    Keras has no built-in operation that gives a length which is only known at run time, so that the pixels are counted.
    """
    from keras import ops
    from model import INPUT_MULTIPLE
    last = _count(_pixels(x, axis))[-1]
    place = _count(ops.repeat(_pixels(x, axis, 0, INPUT_MULTIPLE), INPUT_MULTIPLE)) % ops.maximum(2 * last, 1)
    return ops.take(x, ops.minimum(place, 2 * last - place), axis=axis)


def cut_back(y, x, level):
    """Cuts the network's output y to where its input x was before the padding."""
    from keras import ops
    if None not in x.shape[1:3]:
        height, width = ((2 * side) >> (level - 1) for side in x.shape[1:3])
        return y if y.shape[1:3] == (height, width) else y[:, :height, :width]
    step = max(1, 2 ** (level - 2))
    for axis in (1, 2):
        pixels = _pixels(x, axis, step - 1, step)  # as many as there are whole steps
        y = ops.take(y, _count(ops.repeat(pixels, 2) if level == 1 else pixels), axis=axis)
    return y


def _pixels(x, axis, first=0, step=1):
    """Every `step`-th pixel along an axis of the first image."""
    return x[0, first::step, 0, 0] if axis == 1 else x[0, 0, first::step, 0]


def _count(pixels):
    """0, 1, 2 ... for each of them."""
    from keras import ops
    return ops.cumsum(ops.ones_like(pixels, dtype="int32")) - 1


def rebuilt(features, normalisation):
    """A copy with the same weights, whose instance normalisations are what normalisation(configuration) gives. The layers
    of model.py, which Keras could not load elsewhere, become their Keras parents."""
    from tensorflow import keras

    def copy(layer):
        if isinstance(layer, keras.layers.GroupNormalization):
            return normalisation(layer.get_config())
        kind = type(layer)
        return (kind.__base__ if kind.__module__ == "model" else kind).from_config(layer.get_config())

    copied = keras.models.clone_model(features, clone_function=copy)
    copied.set_weights(features.get_weights())
    return copied


def four_axes_normalisation():
    """Makes instance normalisations from a configuration of Keras' GroupNormalization, which works on a fifth axis for its
    groups. TFLite's GPU delegate takes four."""
    from tensorflow import keras
    from keras import ops

    class InstanceNormalization(keras.layers.Layer):
        def __init__(self, name, epsilon):
            super().__init__(name=name)
            self.epsilon = epsilon

        def build(self, shape):
            self.gamma = self.add_weight(name="gamma", shape=shape[-1:])
            self.beta = self.add_weight(name="beta", shape=shape[-1:])

        def call(self, x):
            mean = ops.mean(x, axis=(1, 2), keepdims=True)
            centred = x - mean
            variance = ops.mean(centred * centred, axis=(1, 2), keepdims=True)
            return centred * (ops.rsqrt(variance + self.epsilon) * self.gamma) + self.beta

    return lambda configuration: InstanceNormalization(configuration["name"], configuration["epsilon"])


# The files -----------------------------------------------------------------------------------------------------------


def write(network, settings, path):
    """Writes the exported model in the format that is asked for."""
    model = with_photo_and_depth(network, settings.level, settings.height, settings.width, settings.format == "tflite")
    if settings.format == "keras":
        model.save(path)
    elif settings.format == "saved_model":
        write_saved_model(model, path)
    else:
        write_tflite(model, path, settings.precision)


def write_saved_model(model, folder):
    """Writes a SavedModel whose signature `serving_default` takes photo and depth, and gives image."""
    def render(photo, depth):
        return model({"photo": photo, "depth": depth}, training=False)

    save_function(render, model, folder, variables=[variable.value for variable in model.variables])


def write_tflite(model, path, precision):
    """Writes a TFLite file for one image at a time. Fails where TFLite's own operations do not suffice."""
    import tensorflow as tf
    values = [variable.numpy() for variable in model.trainable_variables]

    def render(photo, depth):
        weights = [tf.constant(value) for value in values]  # variables would be left without a value in the TFLite file
        return model.stateless_call(weights, [], {"photo": photo, "depth": depth}, training=False)[0]

    saved_model = path.with_name(path.name + ".saved_model")
    save_function(render, model, saved_model, images=1)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if precision == "float16":
        check_float16(values)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())


def save_function(render, model, folder, images=None, variables=()):
    """Writes render(photo, depth) as a SavedModel, with the tf.Variables that it uses.

    It takes the sizes that `model` takes, and so many images, or any number (None).
    """
    import tensorflow as tf
    module = tf.Module()
    module.weights = list(variables)
    module.render = tf.function(render, autograph=False, input_signature=[
        tf.TensorSpec([images, *model.input[name].shape[1:]], tf.float32, name=name) for name in ("photo", "depth")])
    tf.saved_model.save(module, str(folder), signatures=module.render)


def check_float16(values):
    """DataError if a weight is too large for float16, where it would become infinite."""
    largest = max(float(np.abs(value).max()) for value in values)
    if not largest <= FLOAT16_LARGEST:
        raise DataError(f"a weight is {largest:g}, and float16 ends at {FLOAT16_LARGEST:g}: use precision=float32")


# The comparison ------------------------------------------------------------------------------------------------------


def compare(network, settings, path):
    """Prints how far the exported model is from the network on a photo. DataError if that is beyond the promise."""
    import test_model
    photo_and_depth = trial_photo(settings.height or TRIAL_SIZE[0], settings.width or TRIAL_SIZE[1])
    height, width = photo_and_depth.shape[:2]
    expected = test_model.make_renderer(network, settings.level)(photo_and_depth, (2 * width, 2 * height))
    inputs = np.float32(photo_and_depth[np.newaxis])
    found = load(path, settings.format)(inputs[..., :3], inputs[..., 3:])[0]
    difference = np.abs(np.float64(found) - expected)
    mean_square = np.mean(difference ** 2)
    psnr = -10 * math.log10(mean_square) if mean_square else math.inf
    measured = f"largest difference to the network {difference.max():.2g}, PSNR {psnr:.1f} dB"
    print(f"Loaded and tried on a photo of {width} x {height}: {measured}")
    if settings.precision == "float16" and not psnr >= LOWEST_PSNR:
        raise DataError(f"{settings.out}: not written, since float16 is too coarse for these weights ({measured}, and "
                        f"{LOWEST_PSNR:g} dB is the least): use precision=float32")
    if settings.precision == "float32" and not difference.max() <= LARGEST_DIFFERENCE:
        raise DataError(f"{settings.out}: not written, since it does not compute what the network does ({measured}, and "
                        f"{LARGEST_DIFFERENCE:g} is the most)")


def trial_photo(height, width):
    """A synthetic scene as the network takes it: uint8 (height, width, 4), photo and depth."""
    photo, depth, _ = make_demo_dataset.make_scene((2 * width, 2 * height), seed=0)
    return np.dstack([Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC), depth])


def load(path, kind):
    """Loads an exported model as a user would. Gives render(photo, depth) on float32 arrays of one image."""
    import tensorflow as tf
    if kind == "keras":
        keras_model = tf.keras.models.load_model(path)
        return lambda photo, depth: keras_model({"photo": photo, "depth": depth})["image"].numpy()
    if kind == "saved_model":
        render = tf.saved_model.load(str(path)).signatures["serving_default"]
        return lambda photo, depth: render(photo=tf.constant(photo), depth=tf.constant(depth))["image"].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter announces that it will move to another package
        interpreter = tf.lite.Interpreter(str(path))
    return lambda photo, depth: interpreter.get_signature_runner()(photo=photo, depth=depth)["image"]


def size_on_disk(path):
    """In bytes, of a file or a folder with all that is in it."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


if __name__ == "__main__":
    sys.exit(utils.run(main))
