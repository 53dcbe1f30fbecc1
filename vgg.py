"""VGG-19 features for the perceptual (content) loss, from MatConvNet's imagenet-vgg-verydeep-19.mat.

The network is that of Simonyan and Zisserman, arXiv:1409.1556. The file is a MATLAB 5 file with a cell array `layers`
of structs. Two layouts are in use, which differ in the order of the structs' fields: fields are found by name. Kernels
are stored width x height x in x out.
"""

import hashlib
import pathlib

import numpy as np
import scipy.io
import tensorflow as tf

from utils import DataError, warn

MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet's photos, subtracted from the input
BLOCKS = ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))  # convolutions and feature maps between two poolings
CONTENT_LAYER = "relu5_4"
DOWNLOAD = "http://www.vlfeat.org/matconvnet/models/imagenet-vgg-verydeep-19.mat"
SHA256 = "abdb57167f82a2a1fbab1e1c16ad9373411883f262a1a37ee5db2e6fb0044695"


def load_vgg19(path):
    """Reads the 16 convolutions of the .mat file; the fully connected layers are left out.

    Returns {"conv1_1": (kernel, bias), ...}: constant float32 tensors, (height, width, in, out) and (out,).
    Raises DataError where the file is missing, unreadable, or not this network.
    """
    if not pathlib.Path(path).is_file():
        raise DataError(f"{path}: no such file; python -m tools.download what=vgg19 fetches it from {DOWNLOAD}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != SHA256:  # SciPy's reader can crash on a damaged file
        warn(f"{path}: is not the file of {DOWNLOAD}; where it is damaged, Python can crash")
    try:
        layers = scipy.io.loadmat(str(path), variable_names=["layers"], squeeze_me=False)["layers"]
        stored = {str(layer["name"][0, 0][0]): layer for layer in layers.ravel()}  # MATLAB's scalars are 1 x 1 arrays
        return {name: _kernel_and_bias(stored[name], shape) for name, shape in _convolutions()}
    except Exception as error:  # a damaged file makes SciPy's reader fail in a dozen ways
        raise DataError(f"{path}: is not MatConvNet's VGG-19 ({' '.join(str(error).split()) or type(error).__name__}); "
                        f"get it from {DOWNLOAD}") from None


def vgg19_features(vgg, images, layer=CONTENT_LAYER):
    """Returns the features of RGB images: float32 (images, height / s, width / s, maps), s = 2^(block - 1), rounded up.

    Args:
      vgg: what `load_vgg19` returned.
      images: float32 (images, height, width, 3), RGB, 0-255, of any size.
      layer: "relu1_1" to "relu5_4".
    """
    x = images - tf.constant(MEAN_RGB)
    for name, _ in _convolutions():
        if name.endswith("_1") and name != "conv1_1":
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        kernel, bias = vgg[name]
        x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
        if name.replace("conv", "relu") == layer:
            return x
    raise ValueError(f"{layer}: VGG-19 has no such layer")


def _convolutions():
    """Yields ("conv1_1", (3, 3, 3, 64)) ... in the order of computation."""
    channels = 3
    for block, (count, maps) in enumerate(BLOCKS, 1):
        for index in range(1, count + 1):
            yield f"conv{block}_{index}", (3, 3, channels, maps)
            channels = maps


def _kernel_and_bias(layer, shape):
    kernel, bias = layer["weights"][0, 0].ravel()
    if kernel.shape != shape or bias.size != shape[-1]:
        raise ValueError(f"{layer['name'][0, 0][0]} has a kernel of {kernel.shape}, not {shape}")
    if not (np.isfinite(kernel).all() and kernel.any() and np.isfinite(bias).all()):
        raise ValueError(f"the weights of {layer['name'][0, 0][0]} are 0 or not finite")
    kernel = np.transpose(kernel, (1, 0, 2, 3))  # width x height -> height x width
    return tf.constant(kernel, tf.float32), tf.constant(bias.ravel(), tf.float32)
