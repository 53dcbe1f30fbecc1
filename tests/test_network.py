"""model.py: PyNET is the original's, number for number; so are its narrower forms, its layers and its start values."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import model

LEVELS = (7, 6, 5, 4, 3, 2, 1)
TOLERANCE = 2e-5  # of outputs in [0, 1]
PARAMETERS = {1: 47_551_791, 0.5: 11_906_143, 0.25: 2_985_783, 0.125: 751_219}


@pytest.fixture(scope="module")
def expected(reference):
    return reference("outputs_seed1_64x96.npz")


@pytest.fixture(scope="module")
def variables_table(reference):
    return reference("variables.csv")


@pytest.fixture
def images():
    return np.random.default_rng(0).random((2, 64, 96, 4), np.float32)


def all_outputs(pynet, images):
    """{level: output}, all of them in one pass."""
    return keras.Model(pynet.input, pynet.outputs)(images)


def all_layers(pynet):
    return keras.Model(pynet.input, pynet.outputs).layers


# The original's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.paper
def test_output_of_every_level_equals_the_original_networks(pynet, expected):
    for level, output in all_outputs(pynet, expected["input"]).items():
        np.testing.assert_allclose(output, expected[f"level_{level}"], rtol=0, atol=TOLERANCE, err_msg=f"level {level}")


@pytest.mark.paper
def test_level_7_of_32_x_32_pixels_is_what_one_pixel_makes_of_the_shift(pynet, seed_1_weights, variables_table):
    """Instance normalisation leaves of a single pixel the shift only, so that this output can be written down."""
    head = next(index for index, row in enumerate(variables_table) if row["shape"] == "3x3x512x3")
    kernel, bias = (seed_1_weights[variables_table[index]["name"]] for index in (head, head + 1))
    last_shift = next(row["name"] for row in reversed(variables_table[:head]) if row["role"] == "shift")
    shift = seed_1_weights[last_shift]
    expected = 0.58 * np.tanh(np.where(shift > 0, shift, 0.2 * shift) @ kernel[1, 1] + bias) + 0.5
    output = model.network_for_level(pynet, 7)(np.random.default_rng(0).random((1, 32, 32, 4), np.float32))
    np.testing.assert_allclose(output[0, 0, 0], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.paper
def test_440_variables_have_the_originals_names_shapes_and_order(pynet, variables_table):
    assert len(variables_table) == 440
    built = [(name, "x".join(map(str, variable.shape))) for name, variable in pynet.variables.items()]
    assert built == [(row["name"], row["shape"]) for row in variables_table]


@pytest.mark.paper
@pytest.mark.parametrize("level", [7, 5, 2, 1])
def test_network_for_a_level_trains_the_variables_that_the_originals_output_depends_on(pynet, reference, level):
    names = {id(variable): name for name, variable in pynet.variables.items()}
    trained = [names[id(variable.value)] for variable in model.network_for_level(pynet, level).trainable_variables]
    listed = reference("losses.json")["training"][str(level)]["gradient_norms"]
    table = list(pynet.variables)
    assert sorted(trained) == sorted(table[int(index)] for index in listed)


@pytest.mark.paper
@pytest.mark.parametrize("width", PARAMETERS)
def test_a_narrower_network_has_the_same_440_variables_with_a_share_of_the_feature_maps(width, variables_table):
    def scaled(row):  # counts from 32 on; kernel sizes, the input's channels, T(8), T(3) and the heads stay
        return [round(int(n) * width) if int(n) >= 32 else int(n) for n in row["shape"].split("x")]

    variables = model.build_pynet(seed=None, width_multiplier=width).variables
    assert {name: variable.shape.as_list() for name, variable in variables.items()} == {
        row["name"]: scaled(row) for row in variables_table}
    assert sum(np.prod(variable.shape) for variable in variables.values()) == PARAMETERS[width]


# What a level is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(32, 32), (96, 160)])
def test_any_multiple_of_32_is_rendered_at_the_size_of_the_level(small_pynet, height, width):
    image = np.random.default_rng(0).random((1, height, width, 4), np.float32)
    for level, output in all_outputs(small_pynet, image).items():
        assert output.shape == (1, 2 * height >> (level - 1), 2 * width >> (level - 1), 3)
        assert np.all(np.abs(output - 0.5) <= np.float32(0.58))  # NaN is no number that this holds for


def test_images_of_a_batch_do_not_influence_each_other(small_pynet, images):
    together, alone = all_outputs(small_pynet, images), all_outputs(small_pynet, images[1:])
    for level in LEVELS:
        np.testing.assert_allclose(together[level][1:], alone[level], rtol=0, atol=TOLERANCE)


def test_network_built_for_a_fixed_size_has_the_same_weights_and_outputs(small_pynet, images):
    fixed = model.build_pynet(64, 96, seed=1, width_multiplier=0.125, kernel_start="he")
    for name, variable in fixed.variables.items():
        np.testing.assert_array_equal(variable, small_pynet.variables[name])
    outputs = all_outputs(fixed, images)
    for level, expected in all_outputs(small_pynet, images).items():
        np.testing.assert_allclose(outputs[level], expected, rtol=0, atol=TOLERANCE)


def test_networks_of_all_levels_together_hold_every_variable_once(small_pynet):
    seen = {id(variable.value) for level in LEVELS
            for variable in model.network_for_level(small_pynet, level).trainable_variables}
    assert seen == {id(variable) for variable in small_pynet.variables.values()}


@pytest.mark.parametrize("level", LEVELS)
def test_network_for_a_level_computes_no_layer_of_a_level_below_it(small_pynet, level):
    names = [layer.name for layer in model.network_for_level(small_pynet, level).layers]
    assert {int(number) for name in names for number in re.findall(r"level_(\d)", name)} == set(range(level, 8))
    if level > 2:  # the upsamplers are for the level below
        assert not any(name.startswith(f"level_{level}_upsampler") for name in names)
    assert len(names) == len(set(names))


def test_variables_of_a_level_are_those_that_its_output_and_those_of_the_levels_above_depend_on(small_pynet):
    used = set()
    for level in LEVELS:
        used |= {id(weight.value) for weight in model.network_for_level(small_pynet, level).weights}
        assert {id(variable) for variable in model.variables_of_level(small_pynet, level).values()} == used
    assert list(model.variables_of_level(small_pynet, 1)) == list(small_pynet.variables)


def test_layer_names_say_level_and_role(small_pynet):
    roles = "conv|norm|relu|sum|concat|pool|upsampler|head|tanh|output"
    odd = {layer.name for layer in all_layers(small_pynet)
           if not re.fullmatch(rf"(encoder_[1-4]|level_[1-7])_.*({roles}).*", layer.name)}
    assert odd == {"input", "space_to_depth"}


def test_without_depth_maps_only_the_first_kernels_differ(small_pynet):
    bare = model.build_pynet(seed=None, channels=3, width_multiplier=0.125)
    assert bare.input.shape[-1] == 3 and list(bare.variables) == list(small_pynet.variables)
    differing = {name: variable.shape.as_list() for name, variable in bare.variables.items()
                 if variable.shape != small_pynet.variables[name].shape}
    assert differing == {"generator/Variable": [3, 3, 12, 4]}


# What layers compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 3e-2), ("mixed_float16", 3e-3)])
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_convolution_and_its_gradients_equal_keras(activation, precision, tolerance):
    keras.utils.set_random_seed(68)  # no sum is near 0, which bfloat16 could give either sign, and so either slope
    settings = {"padding": "same", "activation": activation, "bias_initializer": "random_normal", "dtype": precision}
    ours, expected = (kind(6, 5, **settings) for kind in (model.Convolution, keras.layers.Conv2D))
    assert_same_values_and_gradients(ours, expected, (2, 5, 6, 4), tolerance=tolerance)


@pytest.mark.parametrize("argument", [
    {"strides": 2}, {"strides": (2, 1)}, {"dilation_rate": 2}, {"padding": "valid"}, {"use_bias": False}, {"groups": 2},
    {"activation": "relu"}, {"kernel_size": (3, 1)}, {"activation": "leaky_relu", "strides": 2},
    {"activation": "leaky_relu", "use_bias": False}], ids=str)
def test_convolution_honours_every_argument_that_keras_takes(argument):
    settings = {"kernel_size": 3, "padding": "same", "bias_initializer": "random_normal"} | argument
    ours, expected = (kind(6, **settings) for kind in (model.Convolution, keras.layers.Conv2D))
    assert_same_values_and_gradients(ours, expected, (2, 7, 6, 4))


@pytest.mark.parametrize("images", [1, 3, model.MAX_LOOPED_IMAGES + 1])
@pytest.mark.parametrize("mean, deviation", [(0, 1), (5, 3), (0, 1e-2)])
def test_instance_normalisation_and_its_gradients_equal_keras(images, mean, deviation):
    kinds = model.InstanceNormalization, keras.layers.GroupNormalization
    layers = (kind(groups=-1, gamma_initializer="random_normal", beta_initializer="random_normal") for kind in kinds)
    assert_same_values_and_gradients(*layers, (images, 12, 10, 6), mean, deviation)


@pytest.mark.parametrize("argument", [
    {"groups": 2}, {"groups": 1}, {"scale": False}, {"center": False}, {"epsilon": 0.5}], ids=str)
def test_instance_normalisation_honours_every_argument_that_keras_takes(argument):
    settings = {"groups": -1} | argument
    if argument.get("scale", True):
        settings["gamma_initializer"] = "random_normal"
    ours, expected = (kind(**settings) for kind in (model.InstanceNormalization, keras.layers.GroupNormalization))
    assert_same_values_and_gradients(ours, expected, (2, 12, 10, 6))


@pytest.mark.parametrize("images", [1, 3, model.MAX_LOOPED_IMAGES + 1])
def test_instance_normalisation_keeps_small_differences_of_large_values(images):
    x = np.float32(np.random.default_rng(0).normal(100, 0.1, (images, 12, 10, 6)))
    exact = x.astype(np.float64)
    expected = (exact - exact.mean((1, 2), keepdims=True)) / np.sqrt(exact.var((1, 2), keepdims=True) + 1e-3)
    np.testing.assert_allclose(model.InstanceNormalization()(x), expected, rtol=0, atol=1e-3)


def assert_same_values_and_gradients(layer, expected, shape, mean=0, deviation=1, tolerance=1e-5):
    """Compares a layer, compiled for known shapes and for any number of images, with another.

    The tolerance is a fraction of the largest value.
    """
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
    """(input, gradient of the output) -> float32 [output, gradient of the input, gradients of the weights ...]."""
    def differentiate(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x := tf.convert_to_tensor(x))
            y = tf.cast(layer(x), tf.float32)
        return [y, *tape.gradient(y, [x, *(weight.value for weight in layer.weights)], dy)]
    return differentiate


# Precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.05), ("float16", 0.01)])
def test_lower_precision_has_float32_variables_and_outputs_and_differs_by_its_rounding(
        precision, tolerance, small_pynet, images):
    other = model.build_pynet(seed=1, precision=precision, width_multiplier=0.125, kernel_start="he")
    assert keras.config.dtype_policy().name == "float32"  # as it was before the network was built
    assert {variable.dtype for variable in other.variables.values()} == {tf.float32}
    found = all_outputs(other, images)
    for level, expected in all_outputs(small_pynet, images).items():
        assert found[level].dtype == tf.float32
        assert 0 < np.abs(found[level] - expected).mean() < tolerance, level


def test_normalisation_and_heads_compute_in_float32_and_convolutions_in_bfloat16():
    layers = all_layers(model.build_pynet(64, 64, seed=None, precision="bfloat16", width_multiplier=0.125))
    computed = {layer.name: layer.compute_dtype for layer in layers}
    del computed["input"]  # the input, which computes nothing
    for name, dtype in computed.items():
        exact = re.search("norm|head|tanh|output$|^level_1_", name)
        assert dtype == ("float32" if exact else "bfloat16"), name


# Start values --------------------------------------------------------------------------------------------------------


def kernels(pynet):
    """{layer's name: kernel} of all convolutions, also transposed ones."""
    return {layer.name: layer.kernel.numpy() for layer in all_layers(pynet) if hasattr(layer, "kernel")}


@pytest.fixture(scope="module")
def paper_start():
    """The small network as it starts with the paper's deviations."""
    return model.build_pynet(seed=0, width_multiplier=0.125)


def test_kernels_start_truncated_normal_with_deviation_001(paper_start):
    """Cut at two deviations, which leaves 0.88 of the deviation, a fifth of it within a quarter of a deviation."""
    found = kernels(paper_start)
    for name, kernel in found.items():
        assert np.abs(kernel).max() <= 0.02, name
    large = [kernel for kernel in found.values() if kernel.size >= 9000]
    assert len(large) >= 10
    for kernel in large:
        assert kernel.std() == pytest.approx(0.0088, rel=0.03)
        assert kernel.mean() == pytest.approx(0, abs=0.0004)
        assert np.mean(np.abs(kernel) < 0.0025) == pytest.approx(0.2068, abs=0.02)


def test_biases_start_at_001_scales_at_1_shifts_at_0(paper_start):
    for layer in all_layers(paper_start):
        if isinstance(layer, model.Convolution):
            assert np.all(layer.bias == np.float32(0.01)), layer.name
        if isinstance(layer, model.InstanceNormalization):
            assert np.all(layer.gamma == 1) and np.all(layer.beta == 0), layer.name


def test_no_two_kernels_start_alike_and_another_seed_gives_others(paper_start):
    other = kernels(model.build_pynet(seed=1, width_multiplier=0.125))
    starts = [kernel.ravel()[:32].tobytes() for kernel in (*kernels(paper_start).values(), *other.values())]
    assert len(set(starts)) == len(starts)


def test_he_start_gives_kernels_that_no_normalisation_follows_the_deviation_of_their_inputs(small_pynet, paper_start):
    """Equation 15 of arXiv:1502.01852 times a gain; a quarter of a transposed convolution's kernel meets each pixel."""
    from_the_paper = kernels(paper_start)
    compared = 0
    for name, kernel in kernels(small_pynet).items():
        if re.match("encoder_1|level_3_[a-j]|.*(head|upsampler)", name):
            inputs = kernel[..., 0, :].size / 4 if "upsampler" in name else kernel[..., 0].size
            deviation = (0.21 if "head" in name else 0.7) * np.sqrt(2 / 1.04 / inputs)
            assert kernel.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * kernel.size)), name
            compared += 1
        else:
            assert kernel.std() == pytest.approx(from_the_paper[name].std(), rel=5 / np.sqrt(2 * kernel.size)), name
    assert compared > 50
