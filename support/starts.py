"""What do levels begin with under kernel_start="he", besides random kernels? What is tedious to learn.

A network learns brightness first, then blue against orange, and red against green last; and levels 2 and 1 find little
of the photo's detail in the few maps that reach them. docs/lab_notes.md has the trials.
"""

import numpy as np

from utils import LazyModule, UsageError, tf

model = LazyModule("model")

BINOMIAL = np.outer((1, 2, 1), (1, 2, 1)) / 16  # turns repeated pixels into a bilinear enlargement
BRIGHTNESS_MAPS = 4  # one for each pixel of the 2x2 square that the first block sees as one
RAISED = 1.3  # black is -1.3 before the tanh


def begin_level(pynet, level):
    """Sets what `level` begins with, once the levels above it are restored. Levels 6 to 4 begin at random.

    Raises UsageError, from level 7 on, where a layer that any level sets is not the one that is expected.
    """
    begin = {7: _begin_as_input, 3: _begin_as_photo, 2: _begin_as_sharp_level_3, 1: _begin_as_level_2}.get(level)
    if not begin:
        return
    for misfit in _misfits(pynet):
        raise UsageError(f"kernel_start=he: sets the start of {misfit}; train with kernel_start=paper "
                         "from level 7 on, or change support/starts.py")
    begin(_layers(pynet), pynet.input.shape[-1])


def frozen_layers(pynet, level):
    """Returns the prefixes of the names of the layers that `level` does not train, a tuple.

    A first block that began as the input is trained at levels 2 and 1; before, it would lose the photo's detail.
    """
    fits = level > 2 and not any(misfit.startswith("encoder_1_") for misfit in _misfits(pynet))
    return ("encoder_1_",) if fits and _shows_input(_layers(pynet), pynet.input.shape[-1]) else ()


def _misfits(pynet):
    """Yields which of the layers that are set are missing, of another class, or have other kernels or inputs."""
    layers = {layer.name: layer for layer in tf.keras.Model(pynet.input, list(pynet.outputs.values())).layers}
    squares, maps = 4 * pynet.input.shape[-1], getattr(layers.get("encoder_1_3x3_conv_1"), "filters", None)
    convolution, transposed = "Convolution", "Conv2DTranspose"
    for name, kind, inputs, outputs in (
            ("encoder_1_3x3_conv_1", convolution, squares, maps), ("encoder_1_3x3_conv_2", convolution, maps, maps),
            ("level_3_j_3x3_conv_1", convolution, maps and 4 * maps, maps),
            ("level_3_j_3x3_conv_2", convolution, maps, maps), ("level_3_head", convolution, maps, 3),
            ("level_2_upsampler", transposed, 8, maps), ("level_2_head", convolution, 8, 3),
            ("level_1_upsampler", transposed, 3, 3), ("level_1_head", convolution, 3, 3)):
        layer = layers.get(name)
        found = layer and (type(layer).__name__, *(layer.weights[0].shape if layer.weights else ()))
        if found != (kind, 3, 3, inputs, outputs):
            yield f"{name}, which must be ({kind}, 3, 3, {inputs}, {outputs}), not {found or 'missing'}"
    joined, shown = (layers.get(name) for name in ("level_3_i_concat", "encoder_1_3x3_conv_2"))
    if not (joined and shown) or joined.input[-1] is not shown.output:
        yield "level_3_j_3x3_conv_1, whose last inputs must be the maps of encoder_1_3x3_conv_2"


def _begin_as_input(get_layer, channels):
    """Level 7: the first block, e1, shows mean colours and depth of each 2x2 square, and each pixel's brightness."""
    for convolution, weights in zip(_block(get_layer, "encoder_1"), _input_weights(get_layer, channels), strict=True):
        _pass_on(convolution, weights, rest=0)


def _shows_input(get_layer, channels):
    """Whether the first block is still as it began."""
    pairs = zip(_block(get_layer, "encoder_1"), _input_weights(get_layer, channels), strict=True)
    return all(np.allclose(convolution.kernel[..., :weights.shape[1]], _at_centre(weights), rtol=0, atol=1e-6)
               for convolution, weights in pairs)


def _input_weights(get_layer, channels):
    """Returns the centres of the first block's two kernels where it is the input, each (inputs, maps)."""
    filters, maps = get_layer("encoder_1_3x3_conv_1").filters, channels + BRIGHTNESS_MAPS
    weights = np.zeros((4, channels, maps))  # of the square's pixels and their channels
    weights[..., :channels] = np.eye(channels) / 4
    weights[range(4), :3, range(channels, maps)] = 1 / 3
    return weights.reshape(4 * channels, maps)[:, :filters], np.eye(filters, min(maps, filters))


def _begin_as_photo(get_layer, channels):
    """Level 3: its last block, j, and the head pass the first block's maps on."""
    if not _shows_input(get_layer, channels):
        return
    first, second = _block(get_layer, "level_3_j")
    inputs, passed = first.kernel.shape[2], min(channels + BRIGHTNESS_MAPS, first.filters)
    _pass_on(first, np.eye(inputs, passed, first.filters - inputs))  # the last inputs are e1
    _pass_on(second, np.eye(first.filters, passed))
    _pass_on(get_layer("level_3_head"), 2 * np.eye(first.filters, 3), bias=-1)  # 0.58 tanh(2 x - 1) + 0.5 is nearly x


def _begin_as_sharp_level_3(get_layer, channels):
    """Level 2: what level 3 shows, enlarged, and how the brightness of each pixel differs from the mean of its square.

    Block j passes the brightness on in four of its maps. What level 3 had learned in these is discarded.
    """
    above, bias = get_layer("level_3_head").get_weights()
    shown = np.tile(np.transpose(np.sum(above, (0, 1))), (2, 2, 1, 1))  # pixels of the square, colours, maps of j
    first, second = _block(get_layer, "level_3_j")
    if _shows_input(get_layer, channels) and first.filters >= channels + BRIGHTNESS_MAPS:
        inputs, maps = first.kernel.shape[2], slice(channels, channels + BRIGHTNESS_MAPS)
        _pass_on(first, np.eye(inputs, BRIGHTNESS_MAPS, first.filters - inputs - channels), channels, rest=0)
        kernel = second.kernel.numpy()
        kernel[:, :, maps] = 0  # no other map is made from them
        second.kernel.assign(kernel)
        _pass_on(second, np.eye(first.filters, BRIGHTNESS_MAPS, -channels), channels, rest=0)
        shown[..., maps] = 2 * (np.eye(4) - 1 / 4).reshape(2, 2, 1, 4)  # 2, because 2 x - 1 is shown
    upsampler, head = get_layer("level_2_upsampler"), get_layer("level_2_head")
    upsampling, kernel = upsampler.kernel.numpy(), np.zeros(head.kernel.shape, np.float32)
    upsampling[:, :, :6] = 0  # a bilinear kernel would mix in 0 at the border
    upsampling[:2, :2, :6] = np.concatenate([shown, -shown], 2)  # the leaky ReLU lets one of the two through
    kernel[1, 1, :6] = np.concatenate([np.eye(3), -np.eye(3)]) / (1 + model.LEAKY_RELU_SLOPE)  # and some of the other
    upsampler.kernel.assign(upsampling)
    head.set_weights([kernel, bias])


def _begin_as_level_2(get_layer, channels):
    """Level 1: what level 2 shows, enlarged bilinearly. Its maps are raised, so that black passes the leaky ReLU."""
    raised = np.full(3, RAISED, np.float32)  # black becomes 0, which the head also sees outside the picture
    get_layer("level_2_head").bias.assign_add(raised)
    upsampling = np.zeros((3, 3, 3, 3), np.float32)
    upsampling[:2, :2] = np.eye(3)
    get_layer("level_1_upsampler").kernel.assign(upsampling)
    get_layer("level_1_head").set_weights([np.multiply.outer(BINOMIAL, np.eye(3)), -raised])


def lower_level_2(pynet, level):
    """Takes back how `_begin_as_level_2` raised level 2, for a level above 1 that starts from weights of level 1.

    With the raised maps level 2 itself would be far too bright. Level 1 then has none of the bias that undid it.
    """
    level_1, level_2 = (_layers(pynet)(f"level_{number}_head").bias for number in (1, 2))
    if level > 1 and np.allclose(level_1, -RAISED, rtol=0, atol=0.1):
        level_2.assign_add(level_1)
        level_1.assign(tf.zeros_like(level_1))


def _layers(pynet):
    return tf.keras.Model(pynet.input, list(pynet.outputs.values())).get_layer


def _block(get_layer, name):
    return get_layer(f"{name}_3x3_conv_1"), get_layer(f"{name}_3x3_conv_2")


def _pass_on(convolution, weights, first_map=0, bias=0, rest=0.1):
    """Leaves the share `rest` of some maps' kernels, and adds `weights`, (inputs, maps), to their centre."""
    kernel, biases = convolution.get_weights()
    maps = slice(first_map, first_map + weights.shape[1])
    kernel[..., maps] = rest * kernel[..., maps] + _at_centre(weights)
    biases[maps] = bias
    convolution.set_weights([kernel, biases])


def _at_centre(weights):
    kernel = np.zeros((3, 3, *weights.shape))
    kernel[1, 1] = weights
    return kernel
