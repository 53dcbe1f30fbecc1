"""PyNET, the network that renders the bokeh: seven levels of resolution, from 1/32 of its input to twice its input.

The wiring follows the supplementary figure and the released network of "Rendering Natural Camera Bokeh Effect with Deep
Learning" (Ignatov, Patel, Timofte, CVPRW 2020, arXiv:2006.05698). Level 7 is trained first; each level below it takes
the features of the level above, upsampled by transposed convolutions, and adds detail. Levels 2 and 1 are only the two
extra upsamplers that bring the result of level 3 to the size of the input and of the photo.
"""

import contextlib
import itertools
from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

CHANNELS = {True: 4, False: 3}  # with depth: red, green, blue, depth; without: red, green, blue
INPUT_MULTIPLE = 32  # of height and width: level 7 works at 1/32 of the input, each level below at twice that
LEAKY_RELU_SLOPE = 0.2  # that of Keras' "leaky_relu" too, which exported networks use
INSTANCE_NORM_EPSILON = 1e-3
KERNEL_DEVIATION = 0.01
BIAS_START = 0.01
MOST_IMAGES_APART = 8  # that an instance normalisation takes one after the other


class PyNET(NamedTuple):
    """The whole network: `outputs[level]` and `variables[checkpoint name]`, all 440 of them, in checkpoint order."""

    input: keras.KerasTensor
    outputs: dict
    variables: dict


def build_pynet(height=None, width=None, seed=0, precision="float32", use_depth=True):
    """Builds all seven levels.

    Args:
      height, width: size of the input in pixels, multiples of 32; None where it is not known yet.
      seed: of the kernels' random start (truncated normal, deviation 0.01; biases start at 0.01). None starts them at
        zero, which is quicker, for weights that are restored.
      precision: in which the feature maps are computed: "float32", "bfloat16" or "float16" (mixed precision,
        arXiv:1710.03740). Variables, normalisation and heads, and so input and outputs, are float32 in each.
      use_depth: whether the input has the depth map. Only the kernels of the first convolution depend on it.

    Returns:
      A `PyNET`. Its input is float32 (images, height, width, 4): RGB and depth in [0, 1]; or 3: RGB alone. Its outputs are
      float32 (images, height / s, width / s, 3) with s = 2^(level - 2), in (-0.08, 1.08).
    """
    name = "photo_and_depth" if use_depth else "photo"
    with _policy(precision):
        return _build(_Layers(seed), keras.Input((height, width, CHANNELS[use_depth]), name=name, dtype="float32"))


@contextlib.contextmanager
def _policy(precision):
    """Keras' layers that are made inside of it compute in `precision`, with variables of float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _build(layers, image):
    outputs = {}

    e1 = layers.block(SpaceToDepth(name="space_to_depth")(image), 3, 32, "encoder_1", normalised=False)
    e2 = layers.block(_pool(e1, "encoder_2_pool"), 3, 64, "encoder_2")
    e3 = layers.block(_pool(e2, "encoder_3_pool"), 3, 128, "encoder_3")
    e4 = layers.block(_pool(e3, "encoder_4_pool"), 3, 256, "encoder_4")

    outputs[7], ta, tb = _level_7(layers, e4)
    outputs[6], ta, tb = _level_6(layers, e4, ta, tb)
    outputs[5], ta, tb = _level_5(layers, e3, ta, tb)
    outputs[4], ta, tb = _level_4(layers, e2, ta, tb)
    outputs[3], j = _level_3(layers, e1, ta, tb)
    outputs[2], z = _level_2(layers, j)
    outputs[1] = _level_1(layers, z)
    return PyNET(image, outputs, layers.checkpoint_variables())


def network_for_level(pynet, level):
    """The `keras.Model` from the input to the output of `level`: it computes, and trains, only what that level needs."""
    return keras.Model(pynet.input, pynet.outputs[level], name=f"pynet_level_{level}")


def _level_7(layers, e4):
    a = layers.block(_pool(e4, "level_7_pool"), 3, 512, "level_7_a")
    b = _sum(layers.block(a, 3, 512, "level_7_b"), a, "level_7_b")
    c = _sum(layers.block(b, 3, 512, "level_7_c"), b, "level_7_c")
    d = layers.block(c, 3, 512, "level_7_d")
    ta, tb = layers.upsample_twice(d, 256, "level_7")
    return layers.head(d, "level_7"), ta, tb


def _level_6(layers, e4, ta, tb):
    a = _concatenate([e4, ta], "level_6_a")
    b = layers.block(a, 3, 256, "level_6_b")
    c = _sum(layers.block(b, 3, 256, "level_6_c"), b, "level_6_c")
    d = _sum(layers.block(c, 3, 256, "level_6_d"), c, "level_6_d")
    e = _concatenate([layers.block(d, 3, 256, "level_6_e"), tb], "level_6_e")
    f = layers.block(e, 3, 256, "level_6_f")
    ta, tb = layers.upsample_twice(f, 128, "level_6")
    return layers.head(f, "level_6"), ta, tb


def _level_5(layers, e3, ta, tb):
    a = _concatenate([e3, ta], "level_5_a")
    b = _sum(layers.block(a, 5, 128, "level_5_b"), a, "level_5_b")
    c = _sum(layers.block(b, 5, 128, "level_5_c"), b, "level_5_c")
    d = _sum(layers.block(c, 5, 128, "level_5_d"), c, "level_5_d")
    e = _concatenate([layers.block(d, 5, 128, "level_5_e"), e3, tb], "level_5_e")
    f = layers.block(e, 3, 128, "level_5_f")
    ta, tb = layers.upsample_twice(f, 64, "level_5")
    return layers.head(f, "level_5"), ta, tb


def _level_4(layers, e2, ta, tb):
    a = _concatenate([e2, ta], "level_4_a")
    b = _concatenate([layers.block(a, 5, 64, "level_4_b"), e2], "level_4_b")
    c = _sum(layers.block(b, 7, 64, "level_4_c"), b, "level_4_c")
    d = _sum(layers.block(c, 7, 64, "level_4_d"), c, "level_4_d")
    e = _sum(layers.block(d, 7, 64, "level_4_e"), d, "level_4_e")
    f = _concatenate([layers.block(e, 7, 64, "level_4_f"), e2], "level_4_f")
    g = _concatenate([layers.block(f, 5, 64, "level_4_g"), tb], "level_4_g")
    h = layers.block(g, 3, 64, "level_4_h")
    ta, tb = layers.upsample_twice(h, 32, "level_4")
    return layers.head(h, "level_4"), ta, tb


def _level_3(layers, e1, ta, tb):
    """Nothing is normalised from here on: full resolution keeps the photo's own brightness and contrast."""
    a = _concatenate([e1, ta], "level_3_a")
    b = _concatenate([layers.block(a, 5, 32, "level_3_b", normalised=False), e1], "level_3_b")
    c = layers.block(b, 7, 32, "level_3_c", normalised=False)
    d = layers.block(c, 9, 32, "level_3_d", normalised=False)
    e = _sum(layers.block(d, 9, 32, "level_3_e", normalised=False), d, "level_3_e")
    f = _sum(layers.block(e, 9, 32, "level_3_f", normalised=False), e, "level_3_f")
    g = _sum(layers.block(f, 9, 32, "level_3_g", normalised=False), f, "level_3_g")
    h = _concatenate([layers.block(g, 7, 32, "level_3_h", normalised=False), e1], "level_3_h")
    i = _concatenate([layers.block(h, 5, 32, "level_3_i", normalised=False), tb, e1], "level_3_i")
    j = layers.block(i, 3, 32, "level_3_j", normalised=False)
    return layers.head(j, "level_3"), j


def _level_2(layers, j):
    k = layers.upsample(j, 8, "level_2_upsampler")
    z = layers.convolution(k, 3, 3, "level_2_head", dtype="float32")
    return _output(z, "level_2"), z


def _level_1(layers, z):
    """Upsamples z, the three maps of level 2 before their tanh; so this is part of the head, and float32."""
    m = layers.upsample(z, 3, "level_1_upsampler", dtype="float32")
    return layers.head(m, "level_1")


class _Layers:
    """Makes the layers that hold variables, and remembers them in the order in which the checkpoint numbers them."""

    def __init__(self, seed):
        self._seed = seed
        self._made = []

    def convolution(self, x, maps, size, name, dtype=None, activation=None):
        return self._apply(x, Convolution(
            maps, size, padding="same", name=name, dtype=dtype, activation=activation,
            kernel_initializer=self._kernel_start(), bias_initializer=keras.initializers.Constant(BIAS_START)))

    def block(self, x, largest, maps, name, normalised=True):
        """B(largest, maps): for kernel sizes 3, 5 ... `largest` a branch of two convolutions, concatenated."""
        branches = []
        for size in range(3, largest + 1, 2):
            branch, branch_name = x, f"{name}_{size}x{size}"
            for place in (1, 2):
                if normalised:
                    branch = self.convolution(branch, maps, size, f"{branch_name}_conv_{place}")
                    branch = self._instance_norm(branch, f"{branch_name}_norm_{place}")
                    branch = _leaky_relu(branch, f"{branch_name}_relu_{place}")
                else:
                    branch = self.convolution(branch, maps, size, f"{branch_name}_conv_{place}", activation="leaky_relu")
            branches.append(branch)
        return _concatenate(branches, f"{name}_branches")

    def upsample(self, x, maps, name, dtype=None):
        """T(maps): a transposed convolution that doubles the size."""
        x = self._apply(x, keras.layers.Conv2DTranspose(
            maps, 3, strides=2, padding="same", use_bias=False, name=name, dtype=dtype,
            kernel_initializer=self._kernel_start()))
        return _leaky_relu(x, f"{name}_relu", dtype)

    def upsample_twice(self, x, maps, level):
        """Two separate upsamplers: the first feeds the start of the level below, the second its end."""
        return self.upsample(x, maps, f"{level}_upsampler_a"), self.upsample(x, maps, f"{level}_upsampler_b")

    def head(self, x, level):
        return _output(self.convolution(x, 3, 3, f"{level}_head", dtype="float32"), level)

    def checkpoint_variables(self):
        """{name: tf.Variable}, the names being those that TensorFlow 1 gave when it built the original graph."""
        in_order = [variable for layer in self._made for variable in _variables_in_order(layer)]
        return {"generator/Variable" + (f"_{index}" if index else ""): variable
                for index, variable in enumerate(in_order)}

    def _instance_norm(self, x, name):
        return self._apply(x, InstanceNormalization(groups=-1, epsilon=INSTANCE_NORM_EPSILON, name=name, dtype="float32"))

    def _kernel_start(self):
        if self._seed is None:
            return "zeros"
        seed = 1000 * self._seed + len(self._made)  # another one for each layer, the same in every run
        return keras.initializers.TruncatedNormal(stddev=KERNEL_DEVIATION, seed=seed)

    def _apply(self, x, layer):
        self._made.append(layer)
        return layer(x)


def _variables_in_order(layer):
    if isinstance(layer, keras.layers.GroupNormalization):
        weights = layer.beta, layer.gamma
    else:
        weights = layer.weights
    return [weight.value for weight in weights]


def _pool(x, name):
    return keras.layers.MaxPooling2D(2, name=name)(x)


def _leaky_relu(x, name, dtype=None):
    return keras.layers.LeakyReLU(LEAKY_RELU_SLOPE, name=name, dtype=dtype)(x)


def _concatenate(parts, name):
    return parts[0] if len(parts) == 1 else Concatenate(name=f"{name}_concat")(parts)


def _sum(x, skip, name):
    return keras.layers.Add(name=f"{name}_sum")([x, skip])


def _output(z, level):
    """0.58 tanh(z) + 0.5: a little more than [0, 1], so that black and white are reached with a gradient left."""
    return keras.layers.Rescaling(0.58, 0.5, name=f"{level}_output", dtype="float32")(
        keras.layers.Activation("tanh", name=f"{level}_tanh", dtype="float32")(z))


@keras.utils.register_keras_serializable("pynet")
class SpaceToDepth(keras.layers.Layer):
    """(images, 2h, 2w, c) -> (images, h, w, 4c): each 2x2 square of pixels becomes one with four times the channels."""

    def call(self, x):
        return tf.nn.space_to_depth(x, 2)


# The three layers below compute what their Keras parents do. Their graphs, those of the gradients above all, are quicker and
# smaller: building and optimising the graph of a training step is most of the time before the first update.


@keras.utils.register_keras_serializable("pynet")
class Convolution(keras.layers.Conv2D):
    """A convolution with stride 1, zero padding and bias."""

    def call(self, x):
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        if self.activation is keras.activations.leaky_relu:
            return _convolve_and_activate(x, kernel, bias)
        for_cpu = x.dtype == tf.float32 and not tf.config.list_logical_devices("GPU")
        return self.activation(tf.nn.bias_add((_convolve_on_cpu if for_cpu else _convolve)(x, kernel), bias))


def _convolve(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


def _input_gradient(shape, kernel, dy):
    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape, filter=kernel, out_backprop=dy, strides=(1, 1, 1, 1), padding="SAME")


def _kernel_gradient(x, kernel, dy):
    return tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=kernel.shape, out_backprop=dy, strides=(1, 1, 1, 1), padding="SAME")


@tf.custom_gradient
def _convolve_and_activate(x, kernel, bias):
    """Convolution, bias and leaky ReLU. The gradient needs only the output, which has the sign of the sum before it: that
    sum is not kept, and on CPUs TensorFlow computes all three at once."""
    y = tf.nn.leaky_relu(tf.nn.bias_add(_convolve(x, kernel), bias), LEAKY_RELU_SLOPE)

    def gradient(dy):
        dz = tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=LEAKY_RELU_SLOPE)
        dx = _input_gradient(keras.ops.shape(x), kernel, dz)
        return dx, _kernel_gradient(x, kernel, dz), tf.raw_ops.BiasAddGrad(out_backprop=dz)

    return y, gradient


def _convolve_on_cpu(x, kernel):
    """A convolution in float32, arranged so that oneDNN, which TensorFlow computes it with on CPUs, chooses a good kernel.

    Measured with oneDNN 3.3 and 3.7 on AVX-512, two of PyNET's shapes take 1.4 to 1.7 times as long as they need: 7x7 over
    128 columns, as level 4 has in training, both ways; and 5x5 to 128 maps, as in level 5, forward. One column more,
    which is cut off again, avoids the first; the output maps in two parts avoid the second.
    """
    size, columns, maps = kernel.shape[0], x.shape[2], kernel.shape[-1]
    if size == 7 and columns == 128:
        return _convolve_with_more_columns(x, kernel)
    if size == 5 and maps == 128:
        return _convolve_in_parts(x, kernel)
    return _convolve(x, kernel)


@tf.custom_gradient
def _convolve_with_more_columns(x, kernel):
    columns, side = x.shape[2], kernel.shape[0] // 2
    y = tf.nn.conv2d(x, kernel, 1, ((0, 0), (side, side), (side, side + 1), (0, 0)))

    def gradient(dy):
        images, rows, _, channels = keras.ops.shape(x)
        wider = tf.pad(dy, ((0, 0), (0, 0), (0, 1), (0, 0)))
        dx = _input_gradient((images, rows, columns + 1, channels), kernel, wider)
        return dx[:, :, :columns], _kernel_gradient(x, kernel, dy)

    return y[:, :, :columns], gradient


@tf.custom_gradient
def _convolve_in_parts(x, kernel):
    y = tf.concat([_convolve(x, part) for part in tf.split(kernel, 2, -1)], -1)

    def gradient(dy):
        return _input_gradient(keras.ops.shape(x), kernel, dy), _kernel_gradient(x, kernel, dy)

    return y, gradient


@keras.utils.register_keras_serializable("pynet")
class Concatenate(keras.layers.Concatenate):
    """Joins the channels."""

    def call(self, parts):
        return _join(*parts)


@tf.custom_gradient
def _join(*parts):
    """The gradient is cut apart again, at places that are known beforehand; by slices, which are quicker than tf.split."""
    def gradient(dy):
        ends = itertools.accumulate(part.shape[-1] for part in parts)
        return [tf.slice(dy, (0, 0, 0, end - part.shape[-1]), (-1, -1, -1, part.shape[-1]))
                for part, end in zip(parts, ends)]

    return tf.concat(parts, -1), gradient


@keras.utils.register_keras_serializable("pynet")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Instance normalisation (arXiv:1607.08022): a group normalisation with one channel to a group.

    For one image it is what a batch normalisation does in training, of which TensorFlow has a fused kernel. A few images are
    normalised one after the other; more, for which the graph would grow, or an unknown number as one image whose channels
    are the maps of all.
    """

    def call(self, x):
        x, gamma, beta = tf.cast(x, "float32"), tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if x.shape[0] == 1:
            return self._normalise(x, gamma, beta)
        if x.shape[0] and x.shape[0] <= MOST_IMAGES_APART:
            return tf.concat([self._normalise(image, gamma, beta) for image in tf.split(x, x.shape[0])], 0)
        images, height, width, maps = keras.ops.shape(x)
        as_one = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, images * maps))
        y = self._normalise(as_one, tf.tile(gamma, [images]), tf.tile(beta, [images]))
        return tf.transpose(tf.reshape(y, (height, width, images, maps)), (2, 0, 1, 3))

    def _normalise(self, x, gamma, beta):
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=self.epsilon, is_training=True).y
