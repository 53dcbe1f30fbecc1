"""support/starts.py: with kernel_start="he" the levels begin as the input, the photo and the level above, enlarged."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import model
from support import starts
from utils import UsageError


def start(width=0.25, use_depth=True, levels=(7,), seed=1):
    """A network of He's start with what `levels` begin with, one after the other."""
    pynet = model.build_pynet(64, 64, seed, channels=3 + use_depth, width_multiplier=width, kernel_start="he")
    for level in levels:
        starts.begin_level(pynet, level)
    return pynet


def layers(pynet, *names):
    """What some layers give."""
    get_layer = keras.Model(pynet.input, list(pynet.outputs.values())).get_layer
    return keras.Model(pynet.input, [get_layer(name).output for name in names])


def correlation(image, other):
    return np.corrcoef(np.ravel(image), np.ravel(other))[0, 1]


@pytest.fixture
def noise():
    """A photo with detail in every pixel, and a depth map: float32 (1, 64, 64, 4)."""
    return np.random.default_rng(0).random((1, 64, 64, 4), np.float32)


@pytest.fixture
def smooth():
    """A photo with a depth map, without detail finer than two pixels."""
    few_pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    photo = np.asarray(Image.fromarray(few_pixels).resize((64, 64), Image.Resampling.BICUBIC), np.float32) / 255
    return np.dstack([photo, np.full((64, 64), 0.5, np.float32)])[np.newaxis]


def squares_of(images):
    """(1, 64, 64, channels) -> (1, 32, 32, 4 pixels, channels)"""
    return images.reshape(1, 32, 2, 32, 2, -1).swapaxes(2, 3).reshape(1, 32, 32, 4, -1)


@pytest.mark.parametrize("width, use_depth", [(1, True), (0.25, True), (0.25, False), (0.125, True)])
def test_the_first_block_begins_as_the_input_as_far_as_it_has_maps(width, use_depth, noise):
    images = noise if use_depth else noise[..., :3]
    squares = squares_of(images)
    maps = np.concatenate([squares.mean(3), squares[..., :3].mean(4)], -1)[..., :round(32 * width)]
    found = layers(start(width, use_depth), "encoder_1_3x3_conv_2")(images).numpy()
    np.testing.assert_allclose(found[..., :maps.shape[-1]], maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width, use_depth", [(1, True), (0.25, True), (0.125, False)])
def test_level_3_begins_as_the_photo(width, use_depth, smooth):
    images = smooth if use_depth else smooth[..., :3]
    output = model.network_for_level(start(width, use_depth, levels=(7, 3)), 3)(images).numpy()
    photo = squares_of(smooth)[..., :3].mean(3)
    assert np.mean((output - photo) ** 2) < 0.03
    for channel in range(3):
        assert correlation(output[..., channel], photo[..., channel]) > 0.9


@pytest.mark.parametrize("level", [3, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_what_needs_the_input_in_the_first_block_is_left_out_where_that_is_another(level, trained, noise):
    """Level 7 began as in the paper, or the block has been trained since."""
    if trained:
        pynet = start()
        pynet.variables["generator/Variable"].assign_add(np.full((3, 3, 16, 8), 1e-3, np.float32))
    else:
        pynet = model.build_pynet(64, 64, seed=1, width_multiplier=0.25)
    before = layers(pynet, "level_3_j_3x3_conv_2", "level_3_head")(noise)
    starts.begin_level(pynet, level)
    for found, expected in zip(layers(pynet, "level_3_j_3x3_conv_2", "level_3_head")(noise), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("level", [6, 5, 4])
def test_levels_6_to_4_keep_their_random_start(level):
    pynet = start()
    before = {name: variable.numpy() for name, variable in pynet.variables.items()}
    starts.begin_level(pynet, level)
    for name, variable in pynet.variables.items():
        np.testing.assert_array_equal(variable, before[name])


# Levels 2 and 1 ------------------------------------------------------------------------------------------------------


def enlarged(image):
    """Twice as large, also at the border: each pixel becomes a square of four."""
    return np.repeat(np.repeat(image, 2, 1), 2, 2)


def test_level_2_begins_as_the_enlarged_image_of_level_3_where_the_first_block_has_no_maps_for_detail(noise):
    """Exactly where level 3's head looks at one pixel, as here; else it misses the head's small blur."""
    pynet = start(width=0.125, levels=(7, 3))
    head = keras.Model(pynet.input, pynet.outputs[3]).get_layer("level_3_head")
    kernel = np.zeros(head.kernel.shape, np.float32)
    kernel[1, 1] = np.random.default_rng(0).normal(0, 0.5, kernel.shape[2:])
    head.set_weights([kernel, np.float32([0.1, -0.2, 0.3])])
    starts.begin_level(pynet, 2)
    level_3, level_2 = (image.numpy() for image in layers(pynet, "level_3_head", "level_2_head")(noise))
    assert level_3.std() > 0.01 and np.any(level_3 < 0) and np.any(level_3 > 0)
    np.testing.assert_allclose(level_2, enlarged(level_3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width, use_depth", [(1, True), (0.25, True), (0.25, False)])
def test_level_2_begins_as_the_enlarged_level_3_with_the_brightness_of_each_pixel_of_the_photo(width, use_depth, noise):
    """The differences within a square are exact, those of 2 x - 1 before the tanh; its mean is level 3's, nearly."""
    images = noise if use_depth else noise[..., :3]
    pynet = start(width, use_depth, levels=(7, 3))
    level_3 = layers(pynet, "level_3_head")(images).numpy()
    starts.begin_level(pynet, 2)
    level_2 = squares_of(layers(pynet, "level_2_head")(images).numpy())
    assert np.sqrt(np.mean((level_2.mean(3) - level_3) ** 2)) < 0.4 * level_3.std()
    brightness, found = squares_of(images)[..., :3].mean(4), level_2.mean(4)
    difference = brightness - brightness.mean(3, keepdims=True)
    np.testing.assert_allclose(found - found.mean(3, keepdims=True), 2 * difference, rtol=0, atol=1e-4)


def test_level_1_begins_as_the_bilinear_enlargement_of_level_2_with_black_around_it(noise):
    pynet = start(width=0.125, levels=(7, 3, 2))
    level_2 = layers(pynet, "level_2_head")(noise).numpy()
    starts.begin_level(pynet, 1)
    black = -1.3
    assert level_2.min() > black and np.ptp(level_2) > 1  # the leaky ReLU changes nothing, and there is contrast
    expected = tf.image.resize(np.pad(level_2, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=black), (132, 132))
    output = model.network_for_level(pynet, 1)(noise)
    np.testing.assert_allclose(output, 0.58 * np.tanh(expected[:, 2:-2, 2:-2]) + 0.5, rtol=0, atol=1e-5)


def test_level_2_that_starts_from_weights_of_level_1_is_as_bright_as_before_level_1_began(noise):
    pynet = start(width=0.125, levels=(7, 3, 2))
    before = layers(pynet, "level_2_head")(noise).numpy()
    starts.begin_level(pynet, 1)
    starts.lower_level_2(pynet, 1)
    assert np.all(layers(pynet, "level_2_head")(noise).numpy() > before + 1), "level 1 itself needs the raised maps"
    for _ in range(2):  # weights that were lowered once are left as they are
        starts.lower_level_2(pynet, 2)
        np.testing.assert_allclose(layers(pynet, "level_2_head")(noise), before, rtol=0, atol=1e-5)


# Networks that were changed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [7, 1])
@pytest.mark.parametrize("attribute, replacement, name", [
    ("upsample", lambda layers, x, maps, name, dtype=None: layers._convolution(
        keras.layers.UpSampling2D()(x), maps, 3, name, dtype=dtype), "level_2_upsampler"),
    ("head_convolution", lambda layers, x, level: layers._convolution(x, 3, 5, f"{level}_head"), "level_3_head")])
def test_a_network_that_the_start_does_not_fit_is_refused_in_one_line_before_level_7_trains(
        level, attribute, replacement, name, monkeypatch):
    monkeypatch.setattr(model._Layers, attribute, replacement)
    pynet = model.build_pynet(64, 64, seed=1, width_multiplier=0.125, kernel_start="he")
    with pytest.raises(UsageError, match=rf"^kernel_start=he: sets the start of {name}, .*kernel_start=paper"):
        starts.begin_level(pynet, level)


def test_a_network_that_shows_block_j_the_first_block_elsewhere_is_refused(monkeypatch):
    concatenate = model._concatenate
    monkeypatch.setattr(model, "_concatenate", lambda parts, name: concatenate(
        parts[::-1] if name == "level_3_i" else parts, name))
    pynet = model.build_pynet(64, 64, seed=1, width_multiplier=0.125, kernel_start="he")
    with pytest.raises(UsageError, match="^kernel_start=he: sets the start of level_3_j_3x3_conv_1, whose last inputs"):
        starts.begin_level(pynet, 7)
    starts.begin_level(pynet, 6)  # which begins at random, whatever the network


def test_a_first_block_that_is_another_is_trained(monkeypatch):
    convolution = model._Layers._convolution
    monkeypatch.setattr(model._Layers, "_convolution", lambda layers, x, maps, size, name, **options: convolution(
        layers, x, maps, 5 if name.startswith("encoder_1_") else size, name, **options))
    pynet = model.build_pynet(64, 64, seed=1, width_multiplier=0.125)
    assert starts.frozen_layers(pynet, 7) == ()
