"""Depth networks of every kind of file, which copy one channel of the photo: its depth map is known, that channel."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import utils

HEIGHT, WIDTH = 64, 96  # of the networks' inputs where they are fixed
GREEN = 1  # the channel that is copied
WHOLE_IMAGE = [1, HEIGHT, WIDTH, 3]


def write_network(path):
    """Writes the network that the name of the file stands for; without an ending it is a SavedModel."""
    {".tflite": write_tflite, "": write_saved_model, ".keras": write_keras, ".h5": write_keras,
     ".onnx": write_onnx}[path.suffix](path)
    return path


def copy_channel(batch, axis=-1):
    return tf.gather(tf.cast(batch, tf.float32), [GREEN], axis=axis)


def convolve(batch):  # the same, by an operation that can be quantised
    return tf.nn.conv2d(batch, tf.reshape(tf.one_hot(GREEN, 3), [1, 1, 3, 1]), 1, "SAME")


SHARPEN = np.float32(np.random.default_rng(0).uniform(-0.2, 0.4, (3, 3, 3, 1)))  # any kernel


def first_two(batch):
    return batch[..., :2]


FUNCTIONS = {  # what a network computes, and the shapes of its inputs
    "copy": (copy_channel, WHOLE_IMAGE),
    "free": (copy_channel, [None, None, None, 3]),
    "nchw": (functools.partial(copy_channel, axis=1), [1, 3, HEIGHT, WIDTH]),
    "rank_3": (lambda batch: copy_channel(batch)[..., 0], [None, HEIGHT, WIDTH, 3]),
    "whole_numbers": (copy_channel, WHOLE_IMAGE, tf.uint8),
    "sharpen": (lambda batch: tf.nn.relu(tf.nn.conv2d(batch, SHARPEN, 1, "SAME")), WHOLE_IMAGE),
    "uint8": (convolve, WHOLE_IMAGE), "int8": (convolve, WHOLE_IMAGE),
    "logarithm": (lambda batch: tf.math.log(copy_channel(batch)), WHOLE_IMAGE),
    "two_channels": (first_two, WHOLE_IMAGE),
    "classes": (lambda batch: tf.ones([1, 5]) * tf.reduce_mean(batch), WHOLE_IMAGE),
    "two_outputs": (lambda batch: {"a": batch[..., :1], "b": batch[..., 1:2]}, WHOLE_IMAGE),
    "rgbd": (lambda batch: batch[..., 3:], [1, HEIGHT, WIDTH, 4]),
    "batch_of_4": (copy_channel, [4, HEIGHT, WIDTH, 3]),
}
KERAS_FUNCTIONS = {"copy": (1, WHOLE_IMAGE), "free": (1, [None, None, None, 3]), "two_channels": (2, WHOLE_IMAGE)}


def concrete_function(name):
    module = tf.Module()
    if name == "no_signature":
        return module, None
    function, *shapes = FUNCTIONS[name]
    dtype = next((item for item in shapes if isinstance(item, tf.DType)), tf.float32)
    module.call = tf.function(function, autograph=False, input_signature=[
        tf.TensorSpec(shape, dtype) for shape in shapes if not isinstance(shape, tf.DType)])
    return module, module.call.get_concrete_function()


def write_saved_model(path):
    module, function = concrete_function(path.name)
    tf.saved_model.save(module, str(path), signatures=function)


def write_tflite(path):
    module, function = concrete_function(path.stem)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if path.stem in ("uint8", "int8"):
        low = {"uint8": 0, "int8": -1}[path.stem]
        random = np.random.default_rng(0)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([np.float32(random.uniform(low, 1, WHOLE_IMAGE))] for _ in range(5))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(path.stem)
    path.write_bytes(converter.convert())


def write_keras(path):
    maps, shape = KERAS_FUNCTIONS[path.stem]
    convolution = tf.keras.layers.Conv2D(maps, 1, use_bias=False)
    keras_model = tf.keras.Sequential([tf.keras.Input(shape[1:]), convolution])
    convolution.set_weights([np.eye(3, dtype=np.float32)[GREEN:GREEN + 1, :, np.newaxis].repeat(maps, -1)[np.newaxis]])
    keras_model.save(path)


CHANNELS_FIRST = [1, 3, HEIGHT, WIDTH]
ONNX_NETWORKS = {  # what is computed, as (operation, its other inputs, its attributes), and the input's shape and type
    "copy": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST),
    "nhwc": ([("Gather", [[GREEN]], {"axis": 3})], WHOLE_IMAGE),
    "free": ([("Gather", [[GREEN]], {"axis": 1})], ["batch", 3, "height", "width"]),
    "free_nhwc": ([("Gather", [[GREEN]], {"axis": 3})], [1, "height", "width", 3]),
    "all_free": ([("Gather", [[GREEN]], {"axis": 1})], ["batch", "channels", "height", "width"]),
    "rank_3": ([("Gather", [GREEN], {"axis": 1})], CHANNELS_FIRST),
    "half": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST, np.float16),
    "whole_numbers": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST, np.uint8),
    "sides_of_14": ([("Gather", [[GREEN]], {"axis": 1}), ("SpaceToDepth", [], {"blocksize": 14}),  # as a transformer
                     ("DepthToSpace", [], {"blocksize": 14})], ["batch", 3, "height", "width"]),
    "depth_anything_v2_small": ([("Gather", [[GREEN]], {"axis": 1}), ("SpaceToDepth", [], {"blocksize": 14}),
                                 ("DepthToSpace", [], {"blocksize": 14}), ("Gather", [0], {"axis": 1})],
                                ["batch", 3, "height", "width"]),
    "negative_logarithm": ([("Gather", [[GREEN]], {"axis": 1}), ("Log", [], {}), ("Neg", [], {})],
                           ["batch", 3, "height", "width"]),
    "sharpen": ([("Conv", [SHARPEN.transpose(3, 2, 0, 1)], {"pads": [1, 1, 1, 1]}), ("Relu", [], {})], CHANNELS_FIRST),
    "two_channels": ([("Gather", [[0, 1]], {"axis": 1})], CHANNELS_FIRST),
    "views": ([("Gather", [GREEN], {"axis": 2})], ["batch", "views", 3, HEIGHT, WIDTH]),
    "empty": ([("Gather", [[GREEN]], {"axis": 1}), ("Gather", [np.int64([])], {"axis": 2})], CHANNELS_FIRST),
    "huge": ([("Gather", [[GREEN]], {"axis": 1})], [1, 3, 100000, 100000]),
    "with_confidence": ([("Gather", [[GREEN]], {"axis": 1})], CHANNELS_FIRST),
    "two_inputs": ([("Gather", [[GREEN]], {"axis": 1}), ("Add", ["other"], {})], CHANNELS_FIRST),
}


def write_onnx(path):
    onnx = pytest.importorskip("onnx", reason="the tests make ONNX networks: pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="reads ONNX networks: pip install onnx onnxruntime")
    operations, shape, dtype = (*ONNX_NETWORKS[path.stem], np.float32)[:3]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, constants, name = [], [], "pixel_values"
    inputs = [onnx.helper.make_tensor_value_info(name, kind, shape)]
    for index, (operation, others, attributes) in enumerate(operations):
        names = [other if isinstance(other, str) else f"constant{index}" for other in others]
        constants += [onnx.numpy_helper.from_array(np.asarray(other), f"constant{index}") for other in others
                      if not isinstance(other, str)]
        inputs += [onnx.helper.make_tensor_value_info(other, kind, None) for other in others if isinstance(other, str)]
        nodes.append(onnx.helper.make_node(operation, [name, *names], [f"result{index}"], **attributes))
        name = f"result{index}"
    nodes.append(onnx.helper.make_node("Identity", [name], ["predicted_depth"]))
    outputs = [onnx.helper.make_tensor_value_info("predicted_depth", kind, None)]
    if path.stem == "with_confidence":
        nodes.append(onnx.helper.make_node("Neg", [name], ["confidence"]))
        outputs.insert(0, onnx.helper.make_tensor_value_info("confidence", kind, None))
    graph = onnx.helper.make_graph(nodes, "network", inputs, outputs, constants)
    opset = onnx.helper.make_opsetid("", 14)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


# Photos -----------------------------------------------------------------------------------------------------------


def smooth_photo(size, seed=0):
    """A photo of soft waves, different in each channel, uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width] / max(size)

    def wave():
        across, down = random.uniform(0.5, 2.5, 2)
        return np.sin(2 * np.pi * (across * x + down * y) + random.uniform(0, 6))
    return utils.to_uint8(0.5 + np.dstack([wave() + wave() + wave() for _ in range(3)]) / 7)


def read_map(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.float64(image)


def expected_map(photo, channel=GREEN):
    """The channel at half size, from its 1st to its 99th percentile."""
    image = Image.fromarray(photo[..., channel])
    half = np.float64(image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC))
    low, high = np.percentile(half, (1, 99))
    return 255 * np.clip((half - low) / (high - low), 0, 1)


def displacement(image, reference):
    """How far `image` lies to the right of `reference` and below it, in pixels: least squares on the gradients."""
    inside = np.s_[2:-2, 2:-2]
    slopes = np.stack([-part[inside].ravel() for part in np.gradient(reference)[::-1]], axis=1)
    return np.linalg.lstsq(slopes, (image - reference)[inside].ravel(), rcond=None)[0]
