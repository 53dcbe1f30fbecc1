"""PyNET, the network that renders the bokeh: seven levels, from 1/32 of its input (7) to twice its input (1).

The wiring follows the supplementary figure and the released network of "Rendering Natural Camera Bokeh Effect with Deep
Learning" (Ignatov, Patel, Timofte, CVPRW 2020, arXiv:2006.05698). Each level takes the upsampled features of the level
above and adds detail. Levels 2 and 1 only bring the result of level 3 to the size of the input and of the photo.
"""

import contextlib
from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

FIRST_KERNEL = "generator/Variable"  # in checkpoints; its shape is 3 x 3 x (2 x 2 pixels' channels) x 32 maps
INPUT_MULTIPLE = 32  # of height and width: level 7 works at 1/32 of the input, each level below at twice that
LEAKY_RELU_SLOPE = 0.2  # that of Keras' "leaky_relu" too, which exported networks use
INSTANCE_NORM_EPSILON = 1e-3
BIAS_START = 0.01
KERNEL_DEVIATION = 0.01  # of kernel_start="paper"
HE_GAIN, HE_HEAD_GAIN = 0.7, 0.3 * 0.7  # of kernel_start="he": less than 1, because sums and concatenations add up
MAX_LOOPED_IMAGES = 8  # larger batches are normalised in one call


class PyNET(NamedTuple):
    """The whole network: `outputs[level]` and `variables[checkpoint name]`, all 440 of them, in checkpoint order."""

    input: keras.KerasTensor
    outputs: dict
    variables: dict


def build_pynet(height=None, width=None, seed=0, precision="float32", channels=4, width_multiplier=1.0,
                kernel_start="paper"):
    """Builds all seven levels.

    Args:
      height, width: size of the input in pixels, multiples of 32; None where it is not known yet.
      seed: of the random kernels; biases start at 0.01. None starts kernels at zero, for weights that are restored.
      precision: of the feature maps: "float32", "bfloat16" or "float16" (mixed precision, arXiv:1710.03740). Variables,
        statistics and heads, and so input and outputs, are float32 in each.
      channels: of the input. Only the kernels of the first convolution depend on them.
      width_multiplier: share of the paper's feature maps, 1 or less (width multiplier, arXiv:1704.04861).
      kernel_start: "paper" (truncated normal, deviation 0.01), or "he": He's (arXiv:1502.01852) where no normalisation
        follows. `support.starts` goes on from there.
    Returns a `PyNET`. Its input is float32 (images, height, width, channels) in [0, 1]: RGB and depth in the paper. Its
    outputs are float32 (images, height / s, width / s, 3), s = 2^(level - 2), in (-0.08, 1.08).
    """
    with _policy(precision):
        image = keras.Input((height, width, channels), name="input", dtype="float32")
        return _build(_Layers(seed, width_multiplier, kernel_start), image)


def describe(shape):
    """Returns a network's {"channels", "width_multiplier"} by the shape of its FIRST_KERNEL, {} where that is wrong."""
    if len(shape) != 4 or shape[2] % 4:
        return {}
    return {"channels": shape[2] // 4, "width_multiplier": shape[3] / 32}


def network_for_level(pynet, level):
    """Returns the `keras.Model` from the input to the output of `level`, with only the layers that this needs."""
    return keras.Model(pynet.input, pynet.outputs[level], name=f"pynet_level_{level}")


def variables_of_level(pynet, level):
    """Returns {checkpoint name: tf.Variable} of what the outputs of `level` and of the levels above it depend on."""
    outputs = [pynet.outputs[above] for above in range(level, 8)]
    used = {id(weight.value) for weight in keras.Model(pynet.input, outputs).weights}
    return {name: variable for name, variable in pynet.variables.items() if id(variable) in used}


# The paper's figure, block by block ----------------------------------------------------------------------------------


def _build(layers, image):
    outputs = {}

    e1 = layers.block(SpaceToDepth(name="space_to_depth")(image), 3, 32, "encoder_1", normalised=False)
    e2 = layers.block(_pool(e1, "encoder_2"), 3, 64, "encoder_2")
    e3 = layers.block(_pool(e2, "encoder_3"), 3, 128, "encoder_3")
    e4 = layers.block(_pool(e3, "encoder_4"), 3, 256, "encoder_4")

    outputs[7], ta, tb = _level_7(layers, e4)
    outputs[6], ta, tb = _level_6(layers, e4, ta, tb)
    outputs[5], ta, tb = _level_5(layers, e3, ta, tb)
    outputs[4], ta, tb = _level_4(layers, e2, ta, tb)
    outputs[3], j = _level_3(layers, e1, ta, tb)
    outputs[2], z = _level_2(layers, j)
    outputs[1] = _level_1(layers, z)
    return PyNET(image, outputs, layers.checkpoint_variables())


def _level_7(layers, e4):
    a = layers.block(_pool(e4, "level_7"), 3, 512, "level_7_a")
    b = _sum(layers.block(a, 3, 512, "level_7_b"), a, "level_7_b")
    c = _sum(layers.block(b, 3, 512, "level_7_c"), b, "level_7_c")
    d = layers.block(c, 3, 512, "level_7_d")
    ta, tb = layers.upsample_twice(d, 256, "level_7")
    return layers.head(d, "level_7"), ta, tb


def _level_6(layers, e4, ta, tb):
    """Its maps can be changed alone; ta and tb go to level 5, which says how many it needs."""
    a = _concatenate([e4, ta], "level_6_a")
    b = layers.block(a, 3, 256, "level_6_b")
    c = _sum(layers.block(b, 3, 256, "level_6_c"), b, "level_6_c")
    d = _sum(layers.block(c, 3, 256, "level_6_d"), c, "level_6_d")
    e = _concatenate([layers.block(d, 3, 256, "level_6_e"), tb], "level_6_e")
    f = layers.block(e, 3, 256, "level_6_f")
    ta, tb = layers.upsample_twice(f, 128, "level_6")
    return layers.head(f, "level_6"), ta, tb


def _level_5(layers, e3, ta, tb):
    """The first sum needs as many maps in e3 and ta as two branches have: 2 x 128."""
    a = _concatenate([e3, ta], "level_5_a")
    b = _sum(layers.block(a, 5, 128, "level_5_b"), a, "level_5_b")
    c = _sum(layers.block(b, 5, 128, "level_5_c"), b, "level_5_c")
    d = _sum(layers.block(c, 5, 128, "level_5_d"), c, "level_5_d")
    e = _concatenate([layers.block(d, 5, 128, "level_5_e"), e3, tb], "level_5_e")
    f = layers.block(e, 3, 128, "level_5_f")
    ta, tb = layers.upsample_twice(f, 64, "level_5")
    return layers.head(f, "level_5"), ta, tb


def _level_4(layers, e2, ta, tb):
    """The sums need 3n = 2n + 64 maps: three branches of n, and two of n with e2. So n is 64, unless e2 changes too."""
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
    z = layers.head_convolution(k, "level_2")
    return _output(z, "level_2"), z


def _level_1(layers, z):
    """Upsamples z, the three maps of level 2 before their tanh; so this is part of the head, and float32."""
    m = layers.upsample(z, 3, "level_1_upsampler", dtype="float32")
    return layers.head(m, "level_1")


# Layers that hold variables ------------------------------------------------------------------------------------------


class _Layers:
    """Makes the layers that hold variables, and remembers them in the order in which the checkpoint numbers them."""

    def __init__(self, seed, width_multiplier, kernel_start):
        self._seed, self._width_multiplier, self._kernel_start = seed, width_multiplier, kernel_start
        self._made = []

    def block(self, x, largest, maps, name, normalised=True):
        """B(largest, maps): for kernel sizes 3, 5 ... `largest` a branch of two convolutions, concatenated."""
        branches = []
        for size in range(3, largest + 1, 2):
            branch = x
            for index in (1, 2):
                branch = self._convolution_and_relu(branch, maps, size, f"{name}_{size}x{size}", index, normalised)
            branches.append(branch)
        return _concatenate(branches, f"{name}_branches")

    def upsample(self, x, maps, name, dtype=None):
        """T(maps): a transposed convolution that doubles the size."""
        fan_in = x.shape[-1] * 9 / 4  # a quarter of a 3x3 kernel's weights meets each pixel of the output
        x = self._apply(x, keras.layers.Conv2DTranspose(
            self._scaled(maps), 3, strides=2, padding="same", use_bias=False, name=name, dtype=dtype,
            kernel_initializer=self._initializer(HE_GAIN, fan_in)))
        return _leaky_relu(x, f"{name}_relu", dtype)

    def upsample_twice(self, x, maps, level):
        """Two separate upsamplers: the first feeds the start of the level below, the second its end."""
        return self.upsample(x, maps, f"{level}_upsampler_a"), self.upsample(x, maps, f"{level}_upsampler_b")

    def head_convolution(self, x, level):
        return self._convolution(x, 3, 3, f"{level}_head", gain=HE_HEAD_GAIN, dtype="float32")

    def head(self, x, level):
        return _output(self.head_convolution(x, level), level)

    def checkpoint_variables(self):
        """Returns {name: tf.Variable}, under the names that TensorFlow 1 gave when it built the original graph."""
        weights = [weight.value for layer in self._made for weight in (
            (layer.beta, layer.gamma) if isinstance(layer, InstanceNormalization) else layer.weights)]
        return {"generator/Variable" + (f"_{index}" if index else ""): weight for index, weight in enumerate(weights)}

    def _convolution_and_relu(self, x, maps, size, name, index, normalised):
        if not normalised:
            return self._convolution(x, maps, size, f"{name}_conv_{index}", gain=HE_GAIN, activation="leaky_relu")
        x = self._convolution(x, maps, size, f"{name}_conv_{index}")
        x = self._apply(x, InstanceNormalization(
            epsilon=INSTANCE_NORM_EPSILON, name=f"{name}_norm_{index}", dtype="float32"))
        return _leaky_relu(x, f"{name}_relu_{index}")

    def _convolution(self, x, maps, size, name, gain=None, dtype=None, activation=None):
        return self._apply(x, Convolution(
            self._scaled(maps), size, padding="same", name=name, dtype=dtype, activation=activation,
            kernel_initializer=self._initializer(gain, x.shape[-1] * size * size),
            bias_initializer=keras.initializers.Constant(BIAS_START)))

    def _initializer(self, gain, fan_in):
        """`gain`: of He's start, None where a normalisation follows, which makes the scale meaningless."""
        if self._seed is None:
            return "zeros"
        seed = 1000 * self._seed + len(self._made)  # another one for each layer, the same in every run
        if self._kernel_start == "paper" or gain is None:
            return keras.initializers.TruncatedNormal(stddev=KERNEL_DEVIATION, seed=seed)
        he = (2 / (1 + LEAKY_RELU_SLOPE ** 2) / fan_in) ** 0.5  # equation 15 of arXiv:1502.01852
        return keras.initializers.RandomNormal(stddev=gain * he, seed=seed)

    def _scaled(self, maps):
        return round(maps * self._width_multiplier) if maps >= 32 else maps  # T(8), T(3) and the heads stay

    def _apply(self, x, layer):
        self._made.append(layer)
        return layer(x)


@contextlib.contextmanager
def _policy(precision):
    """Keras' layers that are made inside of it compute in `precision`, with variables of float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _leaky_relu(x, name, dtype=None):
    return keras.layers.LeakyReLU(LEAKY_RELU_SLOPE, name=name, dtype=dtype)(x)


def _pool(x, name):
    return keras.layers.MaxPooling2D(2, name=f"{name}_pool")(x)


def _concatenate(parts, name):
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate(name=f"{name}_concat")(parts)


def _sum(x, skip, name):
    return keras.layers.Add(name=f"{name}_sum")([x, skip])


def _output(z, level):
    """0.58 tanh(z) + 0.5: a little more than [0, 1], so that black and white are reached with a gradient left."""
    return keras.layers.Rescaling(0.58, 0.5, name=f"{level}_output", dtype="float32")(
        keras.layers.Activation("tanh", name=f"{level}_tanh", dtype="float32")(z))


# Layers that Keras does not give, or gives slower ---------------------------------------------------------------------


@keras.utils.register_keras_serializable("pynet")
class SpaceToDepth(keras.layers.Layer):
    """(images, 2h, 2w, c) -> (images, h, w, 4c): each 2x2 square of pixels becomes one with four times the channels."""

    def call(self, x):
        return tf.nn.space_to_depth(x, 2)


@keras.utils.register_keras_serializable("pynet")
class Convolution(keras.layers.Conv2D):
    """Keras' Conv2D. Stride 1 with bias takes fewer operations; a leaky ReLU is fused, and its input not kept."""

    def call(self, x):
        plain = (self.strides, self.dilation_rate, self.padding, self.groups) == ((1, 1), (1, 1), "same", 1)
        if not plain or not self.use_bias or self.data_format != "channels_last":
            return super().call(x)
        kernel, bias = tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias)
        if self.activation is keras.activations.leaky_relu:
            return _convolve_and_activate(x, kernel, bias)
        return self.activation(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))


@tf.custom_gradient
def _convolve_and_activate(x, kernel, bias):
    """Convolution, bias and leaky ReLU, which TensorFlow computes at once on CPUs.

    The gradient needs only the output, which has the sign of the sum before the ReLU.
    """
    y = tf.nn.leaky_relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias), LEAKY_RELU_SLOPE)

    def gradient(dy):
        dz = tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=LEAKY_RELU_SLOPE)
        dx = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=keras.ops.shape(x), filter=kernel, out_backprop=dz, strides=(1, 1, 1, 1), padding="SAME")
        dkernel = tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=kernel.shape, out_backprop=dz, strides=(1, 1, 1, 1), padding="SAME")
        return dx, dkernel, tf.raw_ops.BiasAddGrad(out_backprop=dz)

    return y, gradient


@keras.utils.register_keras_serializable("pynet")
class InstanceNormalization(keras.layers.GroupNormalization):
    """Instance normalisation (arXiv:1607.08022): Keras' GroupNormalization with one channel to a group.

    A few images take TensorFlow's fused kernel of batch normalisation, which in training is the same, one after the
    other; many, or an unknown number, take it together, as one image whose channels are the maps of all.
    """

    def __init__(self, groups=-1, **options):
        super().__init__(groups=groups, **options)

    def call(self, x):
        if self.groups != x.shape[-1] or self.axis != -1 or not (self.scale and self.center):
            return super().call(x)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if x.shape[0] and x.shape[0] <= MAX_LOOPED_IMAGES:
            return tf.concat([self._normalise(image, gamma, beta) for image in tf.split(x, x.shape[0])], 0)
        images, height, width, maps = keras.ops.shape(x)
        as_one = tf.reshape(tf.transpose(x, (1, 2, 0, 3)), (1, height, width, images * maps))
        y = self._normalise(as_one, tf.tile(gamma, [images]), tf.tile(beta, [images]))
        return tf.transpose(tf.reshape(y, (height, width, images, maps)), (2, 0, 1, 3))

    def _normalise(self, x, gamma, beta):
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=self.epsilon, is_training=True).y
