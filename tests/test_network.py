"""model.py: the network is the original's, number for number."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import load_dataset
import model

LEVELS = (7, 6, 5, 4, 3, 2, 1)
TOLERANCE = 2e-5  # of outputs in [0, 1]


@pytest.fixture(scope="module")
def expected(reference):
    return reference("outputs_seed1_64x96.npz")


@pytest.fixture(scope="module")
def variables_table(reference):
    return reference("variables.csv")


def role_of(variables_table):
    return {row["name"]: row["role"] for row in variables_table}


def all_outputs(pynet, image):
    """{level: output}, all of them in one pass."""
    return keras.Model(pynet.input, pynet.outputs)(image)


# Outputs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_output_of_every_level_equals_the_original_networks(pynet, expected, level):
    output = model.network_for_level(pynet, level)(expected["input"])
    np.testing.assert_allclose(output, expected[f"level_{level}"], rtol=0, atol=TOLERANCE)


def test_network_built_for_a_fixed_size_has_the_same_outputs(fixed_size_pynet_and_start, seed_1_weights, expected):
    fixed_size_pynet, _ = fixed_size_pynet_and_start
    for name, value in seed_1_weights.items():
        fixed_size_pynet.variables[name].assign(value)
    outputs = all_outputs(fixed_size_pynet, expected["input"])
    for level in LEVELS:
        np.testing.assert_allclose(outputs[level], expected[f"level_{level}"], rtol=0, atol=TOLERANCE)


def test_images_of_a_batch_do_not_influence_each_other(pynet, expected):
    random = np.random.default_rng(0).random((1, 64, 96, 4), np.float32)
    output = model.network_for_level(pynet, 5)(np.concatenate([random, expected["input"]]))
    np.testing.assert_allclose(output[1:], expected["level_5"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("height, width", [(32, 32), (96, 160)])
def test_any_multiple_of_32_is_rendered_at_the_size_of_the_level(pynet, height, width):
    image = np.random.default_rng(0).random((1, height, width, 4), np.float32)
    for level, output in all_outputs(pynet, image).items():
        assert output.shape == (1, 2 * height >> (level - 1), 2 * width >> (level - 1), 3)
        assert np.all(np.abs(output - 0.5) <= np.float32(0.58))  # NaN is no number that this holds for


def test_level_7_of_32_x_32_pixels_is_what_one_pixel_makes_of_the_shift(pynet, seed_1_weights, variables_table):
    """Instance normalisation leaves of a single pixel the shift only, so that this output can be written down."""
    head = next(place for place, row in enumerate(variables_table) if row["shape"] == "3x3x512x3")
    kernel, bias = (seed_1_weights[variables_table[place]["name"]] for place in (head, head + 1))
    last_shift = next(row["name"] for row in reversed(variables_table[:head]) if row["role"] == "shift")
    shift = seed_1_weights[last_shift]
    expected = 0.58 * np.tanh(np.where(shift > 0, shift, 0.2 * shift) @ kernel[1, 1] + bias) + 0.5
    output = model.network_for_level(pynet, 7)(np.random.default_rng(0).random((1, 32, 32, 4), np.float32))
    np.testing.assert_allclose(output[0, 0, 0], expected, rtol=0, atol=TOLERANCE)


# Variables -----------------------------------------------------------------------------------------------------------


def test_440_variables_have_the_originals_names_shapes_and_order(pynet, variables_table):
    assert len(variables_table) == 440
    built = [(name, "x".join(map(str, variable.shape))) for name, variable in pynet.variables.items()]
    assert built == [(row["name"], row["shape"]) for row in variables_table]


def test_47551791_parameters(pynet):
    assert sum(np.prod(variable.shape) for variable in pynet.variables.values()) == 47_551_791


@pytest.mark.parametrize("level", [7, 5, 2, 1])
def test_network_for_a_level_trains_the_variables_that_its_output_depends_on(pynet, reference, level):
    names = {id(variable): name for name, variable in pynet.variables.items()}
    trained = [names[id(variable.value)] for variable in model.network_for_level(pynet, level).trainable_variables]
    listed = reference("losses.json")["training"][str(level)]["gradient_norms"]
    table = list(pynet.variables)
    assert sorted(trained) == sorted(table[int(index)] for index in listed)


def test_networks_of_all_levels_together_hold_every_variable_once(pynet):
    seen = {id(variable.value) for level in LEVELS
            for variable in model.network_for_level(pynet, level).trainable_variables}
    assert seen == {id(variable) for variable in pynet.variables.values()}


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_network_for_a_level_has_no_layer_of_a_level_below_it(pynet, level):
    found = {int(number) for layer in model.network_for_level(pynet, level).layers
             for number in re.findall(r"level_(\d)", layer.name)}
    assert found == set(range(level, 8))


@pytest.mark.parametrize("level", [7, 6, 5, 4])
def test_upsamplers_of_a_level_are_computed_for_the_level_below_only(pynet, level):
    def upsamplers(network):
        return [layer.name for layer in network.layers if re.match(rf"level_{level}_upsampler", layer.name)]
    assert upsamplers(model.network_for_level(pynet, level)) == []
    assert upsamplers(model.network_for_level(pynet, level - 1)) != []


def test_layer_names_say_level_and_role_and_are_unique(pynet):
    names = [layer.name for level in LEVELS for layer in model.network_for_level(pynet, level).layers]
    roles = "conv|norm|relu|sum|concat|pool|upsampler|head|tanh|output"
    odd = {name for name in names if not re.fullmatch(rf"(encoder_[1-4]|level_[1-7])_.*({roles}).*", name)}
    assert odd == {"photo_and_depth", "space_to_depth"}
    for level in LEVELS:
        names = [layer.name for layer in model.network_for_level(pynet, level).layers]
        assert len(names) == len(set(names))


def test_summary_lists_every_layer_and_the_parameters_of_the_level(pynet, reference, capsys):
    network = model.network_for_level(pynet, 7)
    network.summary(line_length=200)
    text = capsys.readouterr().out
    assert [layer.name for layer in network.layers if layer.name not in text] == []
    table = reference("variables.csv")
    listed = reference("losses.json")["training"]["7"]["gradient_norms"]
    parameters = sum(np.prod([int(n) for n in table[int(index)]["shape"].split("x")]) for index in listed)
    assert f"{parameters:,}" in text


# What layers compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 3e-2), ("mixed_float16", 3e-3)])
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_convolution_and_its_gradients_equal_keras(activation, precision, tolerance):
    settings = {"padding": "same", "activation": activation, "bias_initializer": "random_normal", "dtype": precision}
    ours, keras_layer = (kind(6, 5, **settings) for kind in (model.Convolution, keras.layers.Conv2D))
    assert_same_values_and_gradients(ours, keras_layer, (2, 5, 6, 4), tolerance=tolerance)


@pytest.mark.parametrize("size, maps, columns", [(7, 6, load_dataset.PATCH // 4), (5, 128, 6)])
def test_convolution_arranged_for_a_cpu_equals_keras(size, maps, columns):
    settings = {"padding": "same", "bias_initializer": "random_normal"}
    ours, keras_layer = (kind(maps, size, **settings) for kind in (model.Convolution, keras.layers.Conv2D))
    assert_same_values_and_gradients(ours, keras_layer, (2, 5, columns, 4))
    operations = tf.function(ours).get_concrete_function(tf.TensorSpec((2, 5, columns, 4))).graph.get_operations()
    convolutions = [operation for operation in operations if operation.type == "Conv2D"]
    assert len(convolutions) == 2 or convolutions[0].get_attr("padding") == b"EXPLICIT"  # it is indeed arranged


@pytest.mark.parametrize("images", [1, 3, model.MOST_IMAGES_APART + 1])
@pytest.mark.parametrize("mean, deviation", [(0, 1), (5, 3), (0, 1e-2)])
def test_instance_normalisation_and_its_gradients_equal_keras(images, mean, deviation):
    kinds = model.InstanceNormalization, keras.layers.GroupNormalization
    layers = (kind(groups=-1, gamma_initializer="random_normal", beta_initializer="random_normal") for kind in kinds)
    assert_same_values_and_gradients(*layers, (images, 12, 10, 6), mean, deviation)


@pytest.mark.parametrize("images", [1, 3, model.MOST_IMAGES_APART + 1])
def test_instance_normalisation_keeps_small_differences_of_large_values(images):
    x = np.float32(np.random.default_rng(0).normal(100, 0.1, (images, 12, 10, 6)))
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((1, 2), keepdims=True)) / np.sqrt(exact.var((1, 2), keepdims=True) + 1e-3)
    np.testing.assert_allclose(model.InstanceNormalization(groups=-1)(x), expected, rtol=0, atol=1e-3)


def assert_same_values_and_gradients(layer, expected, shape, mean=0, deviation=1, tolerance=1e-5):
    """Compares a layer, compiled for known shapes and for any number of images, with another. The tolerance is a fraction of
    the largest value."""
    random = np.random.default_rng(0)
    x = np.float32(random.normal(mean, deviation, shape))
    expected.build(shape)
    layer.build(shape)
    layer.set_weights(expected.get_weights())
    dy = np.float32(random.normal(size=expected(x).shape))
    wanted = values_and_gradients(expected)(x, dy)
    for images in (shape[0], None):
        signature = [tf.TensorSpec((images, *array.shape[1:])) for array in (x, dy)]
        for found, value in zip(tf.function(values_and_gradients(layer), signature)(x, dy), wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=0, atol=tolerance * np.abs(value).max())


def values_and_gradients(layer):
    """A function of input and output's gradient that gives float32 [output, gradient of the input, of the weights ...]."""
    def differentiate(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x := tf.convert_to_tensor(x))
            y = tf.cast(layer(x), tf.float32)
        return [y, *tape.gradient(y, [x, *(weight.value for weight in layer.weights)], dy)]
    return differentiate


# Start values --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(pynet_and_start):
    return pynet_and_start[1]


@pytest.fixture(scope="module")
def fixed_size_pynet_and_start():
    pynet = model.build_pynet(64, 96, seed=0)
    return pynet, {name: variable.numpy() for name, variable in pynet.variables.items()}


def kernels(start, variables_table):
    roles = role_of(variables_table)
    return {name: value for name, value in start.items() if roles[name] in ("kernel", "transposed_kernel")}


def test_kernels_start_truncated_normal_with_deviation_001(start, variables_table):
    """Cut at two deviations, which leaves 0.88 of the deviation, a fifth of it within a quarter of a deviation."""
    for name, kernel in kernels(start, variables_table).items():
        assert np.abs(kernel).max() <= 0.02
        if kernel.size >= 20_000:
            assert kernel.std() == pytest.approx(0.0088, rel=0.02), name
            assert kernel.mean() == pytest.approx(0, abs=0.0003), name
            assert np.mean(np.abs(kernel) < 0.0025) == pytest.approx(0.2068, abs=0.015), name


def test_biases_start_at_001_scales_at_1_shifts_at_0(start, variables_table):
    values = {"bias": np.float32(0.01), "scale": 1, "shift": 0}
    for name, role in role_of(variables_table).items():
        if role in values:
            assert np.all(start[name] == values[role]), name


def test_no_two_kernels_start_alike(start, variables_table):
    starts = [kernel.ravel()[:81].tobytes() for kernel in kernels(start, variables_table).values()]
    assert len(set(starts)) == len(starts)


def test_same_seed_gives_the_same_weights_whatever_the_size(start, fixed_size_pynet_and_start):
    for name, value in fixed_size_pynet_and_start[1].items():
        np.testing.assert_array_equal(value, start[name])


def test_another_seed_gives_other_kernels(start, variables_table):
    other = model.build_pynet(seed=1).variables
    for name, kernel in kernels(start, variables_table).items():
        assert np.mean(kernel == other[name].numpy()) < 0.01, name
