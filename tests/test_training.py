"""train_model.py: losses, metrics, Adam and the variables that move are the original's.

What a whole run leaves behind is in test_end_to_end.py.
"""

import math
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import model
import train_model

LEARNING_RATE = 5e-5
LOSS_TOLERANCES = (1e-6, 2e-4, 5e-3, 5e-3)  # relative: before the first update, the second, the third, after it
GRADIENT_TOLERANCE = 1e-2  # relative, of a variable's L2 norm
ADAM_TOLERANCE = 3e-5  # relative: in float32 1 - 0.999 is 5e-5 off, of which the root halves the effect


# Losses and metrics --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_pair(reference):
    pair = reference("loss_pair.npz")
    return tf.constant(pair["output"]), tf.constant(pair["target"])


@pytest.fixture(scope="module")
def loss_terms(reference):
    return {name: pytest.approx(value, rel=1e-4) for name, value in reference("losses.json")["loss_terms"].items()}


@pytest.mark.parametrize("level", [7, 6, 5, 4, 3, 2])
def test_loss_of_the_upper_levels_is_100_times_the_mean_absolute_error(loss_pair, loss_terms, level):
    assert float(train_model.loss(level, *loss_pair)) == loss_terms["upper_levels_loss"]


def test_loss_of_level_1_adds_l1_content_and_ssim(loss_pair, loss_terms, vgg19):
    assert float(train_model.loss(1, *loss_pair, vgg19)) == loss_terms["level_1_loss"]


def test_loss_of_level_1_without_vgg_leaves_the_content_term_out(loss_pair, reference):
    terms = reference("losses.json")["loss_terms"]
    expected = 10 * terms["l1"] + 10 * (1 - terms["ssim"])
    assert float(train_model.loss(1, *loss_pair, None)) == pytest.approx(expected, rel=1e-4)


def test_metrics_of_level_1_equal_the_reference(loss_pair, loss_terms, vgg19):
    found = {name: float(value) for name, value in train_model.metrics(1, *loss_pair, vgg19).items()}
    assert found == {"loss": loss_terms["level_1_loss"], "content": loss_terms["content"], "mse": loss_terms["mse"],
                     "l1": loss_terms["l1"], "ms-ssim": loss_terms["ms_ssim"]}


def test_metrics_of_level_7_have_the_same_content_mse_and_l1_and_no_ms_ssim(loss_pair, loss_terms, vgg19):
    found = {name: float(value) for name, value in train_model.metrics(7, *loss_pair, vgg19).items()}
    assert found == {"loss": loss_terms["upper_levels_loss"], "content": loss_terms["content"],
                     "mse": loss_terms["mse"], "l1": loss_terms["l1"]}


@pytest.mark.parametrize("piece", [1, 2, 5])
def test_psnr_is_that_of_the_mse_of_the_whole_batch_in_whatever_pieces_it_is_computed(loss_pair, reference, piece):
    def evaluation_step(outputs, targets):
        return train_model.metrics(7, outputs, targets), outputs

    output, target = (tf.concat([images, images[:1] / 2], axis=0) for images in loss_pair)
    batch = types.SimpleNamespace(inputs=output, targets=target, names=list("123456")[:len(output)])
    found, outputs = train_model.evaluate_batch(evaluation_step, batch, piece)
    errors = np.float64(output) - np.float64(target)
    assert found["psnr"] == pytest.approx(-10 * math.log10(np.mean(errors ** 2)), rel=1e-6)
    assert found["l1"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
    np.testing.assert_array_equal(outputs, output)


def test_psnr_of_the_reference_pair(loss_pair, loss_terms):
    batch = types.SimpleNamespace(inputs=loss_pair[0], targets=loss_pair[1], names=["0"] * len(loss_pair[0]))
    found, _ = train_model.evaluate_batch(lambda output, target: (train_model.metrics(7, output, target), output), batch, 9)
    assert found["psnr"] == loss_terms["psnr"]


@pytest.mark.parametrize("level", [3, 2, 1])
def test_without_vgg_the_metrics_have_no_content_and_levels_3_to_1_have_ms_ssim(loss_pair, loss_terms, level):
    found = train_model.metrics(level, *loss_pair)
    assert set(found) == {"loss", "mse", "l1", "ms-ssim"}
    assert float(found["ms-ssim"]) == loss_terms["ms_ssim"]


# Training steps ------------------------------------------------------------------------------------------------------


class AdamThatMeasures(train_model.Adam):
    """Notes the L2 norms of the gradients that it was given last."""

    def __init__(self, variables):
        super().__init__(variables)
        self.norms = [tf.Variable(math.nan) for _ in variables]

    def apply(self, gradients, iteration, learning_rate):
        for norm, gradient in zip(self.norms, gradients):
            norm.assign(tf.norm(gradient))
        super().apply(gradients, iteration, learning_rate)


@pytest.fixture(scope="module", params=[7, 5, 2, 1], ids="level_{}".format)
def trajectory(request, pynet_to_train, seed_1_weights, vgg19, reference):
    """Three updates on one batch, as the original network did them for losses.json.

    Has the losses before each update and after the last, the {name: gradient norm} before the first, the
    {name: largest change}, and what is expected of them.
    """
    level, batches = request.param, reference("training_batches.npz")
    inputs, targets = batches[f"input_{level}"], batches[f"target_{level}"]
    for name, value in seed_1_weights.items():
        pynet_to_train.variables[name].assign(value)
    network = model.network_for_level(pynet_to_train, level)
    adam = AdamThatMeasures(train_model.trained_variables(network))
    division = train_model.divide_batch(len(inputs))
    step = train_model.make_training_step(network, level, vgg19, adam, LEARNING_RATE, division)

    losses = [step(inputs, targets, 1).loss]
    names = {id(variable): name for name, variable in pynet_to_train.variables.items()}
    norms = {names[id(variable)]: float(norm) for variable, norm in zip(adam.variables, adam.norms)}
    losses += [step(inputs, targets, iteration).loss for iteration in (2, 3)]
    output = network(np.float32(inputs) / 255)
    losses.append(float(train_model.loss(level, output, np.float32(targets) / 255, vgg19)))
    moved = {name: np.abs(variable.numpy() - seed_1_weights[name]).max()
             for name, variable in pynet_to_train.variables.items()}
    return types.SimpleNamespace(losses=losses, norms=norms, moved=moved,
                                 expected=reference("losses.json")["training"][str(level)])


@pytest.fixture(scope="module")
def without_gradient(reference):
    """Names of the biases in front of an instance normalisation, which takes every constant away again."""
    table = reference("variables.csv")
    return {row["name"] for row, following in zip(table, table[1:])
            if row["role"] == "bias" and following["role"] == "shift"}


def test_losses_before_each_update_and_after_the_last_equal_the_reference(trajectory):
    expected_losses = trajectory.expected["losses"]
    for loss, expected, tolerance in zip(trajectory.losses, expected_losses, LOSS_TOLERANCES, strict=True):
        assert loss == pytest.approx(expected, rel=tolerance)


def test_gradient_norm_of_every_variable_equals_the_reference(trajectory, reference, without_gradient):
    table = reference("variables.csv")
    expected = {table[int(index)]["name"]: norm for index, norm in trajectory.expected["gradient_norms"].items()}
    assert trajectory.norms.keys() == expected.keys()
    for name in expected.keys() - without_gradient:
        assert trajectory.norms[name] == pytest.approx(expected[name], rel=GRADIENT_TOLERANCE), name


def test_biases_in_front_of_an_instance_normalisation_have_no_gradient_but_rounding(trajectory, without_gradient):
    found = [norm for name, norm in trajectory.norms.items() if name in without_gradient]
    others = [norm for name, norm in trajectory.norms.items() if name not in without_gradient]
    assert len(found) >= 14 and max(found) < 1e-3 * np.median(others)


def test_exactly_the_variables_of_the_level_move(trajectory, reference):
    table = reference("variables.csv")
    of_the_level = {table[int(index)]["name"] for index in trajectory.expected["gradient_norms"]}
    assert {name for name, change in trajectory.moved.items() if change > 0} == of_the_level


def test_no_variable_moves_further_than_adam_steps(trajectory):
    assert max(trajectory.moved.values()) < 3.1 * LEARNING_RATE


# Adam ----------------------------------------------------------------------------------------------------------------


GRADIENTS = np.array([  # of three updates: large, small, changing, so tiny that epsilon decides, absent
    [3.0, -1e-3, 0.5, 1e-8, 1e-9, -2e-9, 1e-10, 0.0],
    [3.0, -2e-3, -0.5, 2e-8, 1e-9, 1e-9, 1e-10, 0.0],
    [-3.0, -1e-6, 0.1, 1e-8, -1e-9, 1e-9, 0.0, 0.0]], np.float32)


def adam_in_closed_form(gradients, learning_rate, epsilon=1e-8):
    """How far each update moves, in float64: lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + epsilon)."""
    m = s = np.zeros(gradients.shape[1])
    for t, gradient in enumerate(gradients.astype(np.float64), 1):
        m, s = 0.9 * m + 0.1 * gradient, 0.999 * s + 0.001 * gradient ** 2
        yield learning_rate * math.sqrt(1 - 0.999 ** t) / (1 - 0.9 ** t) * m / (np.sqrt(s) + epsilon)


@pytest.mark.parametrize("learning_rate", [5e-5, 0.1])
def test_three_updates_of_adam_equal_the_closed_form(learning_rate):
    variable = tf.Variable(tf.zeros(GRADIENTS.shape[1]))
    adam = train_model.Adam([variable])
    expected = np.zeros(GRADIENTS.shape[1])
    for t, (gradient, change) in enumerate(zip(GRADIENTS, adam_in_closed_form(GRADIENTS, learning_rate)), 1):
        adam.apply([tf.constant(gradient)], tf.constant(t, tf.int64), learning_rate)
        expected -= change
        np.testing.assert_allclose(variable.numpy(), expected, rtol=ADAM_TOLERANCE)


@pytest.mark.parametrize("other_form", [
    lambda g: list(adam_in_closed_form(g, 1, epsilon=1e-7))[0],  # Keras' epsilon
    lambda g: g[0] / (np.abs(g[0].astype(np.float64)) + 1e-8)])  # the paper's first form: epsilon beside another root
def test_the_gradients_of_that_test_tell_other_forms_of_adam_apart(other_form):
    [first, *_] = adam_in_closed_form(GRADIENTS, 1)
    assert np.abs(other_form(GRADIENTS) / np.where(first, first, 1) - 1)[4] > 0.1


def test_every_variable_has_moments_of_its_own():
    variables = [tf.Variable([0.0]), tf.Variable([0.0, 0.0])]
    adam = train_model.Adam(variables)
    for t, gradients in enumerate(([[1.0], [1.0, 0.0]], [[0.0], [1.0, 1.0]]), 1):
        adam.apply([tf.constant(gradient) for gradient in gradients], tf.constant(t, tf.int64), 1.0)
    columns = np.array([[1, 1, 0], [0, 1, 1]], np.float32)
    expected = -np.sum(list(adam_in_closed_form(columns, 1.0)), axis=0)
    found = np.concatenate([variable.numpy() for variable in variables])
    np.testing.assert_allclose(found, expected, rtol=ADAM_TOLERANCE)


# Visual crops --------------------------------------------------------------------------------------------------------


def test_visual_crop_shows_input_output_and_target_side_by_side():
    random = np.random.default_rng(0)
    patch, target = (random.integers(0, 256, (512, 512, channels), np.uint8) for channels in (4, 3))
    output = random.uniform(-0.08, 1.08, (512, 512, 3)).astype(np.float32)
    left, middle, right = np.split(train_model.visual_crop(patch, output, target), 3, axis=1)
    np.testing.assert_array_equal(left, patch[..., :3])
    np.testing.assert_array_equal(middle, np.round(255 * np.clip(output, 0, 1)))
    np.testing.assert_array_equal(right, target)


def test_visual_crop_of_a_small_level_shows_its_pixels_as_squares():
    target = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    crop = train_model.visual_crop(np.zeros((512, 512, 4), np.uint8), target / np.float32(255), target)
    squares = target.repeat(32, axis=0).repeat(32, axis=1)
    np.testing.assert_array_equal(crop, np.hstack([np.zeros((512, 512, 3)), squares, squares]))


def test_visual_crop_of_level_1_has_the_size_of_its_target():
    patch = np.random.default_rng(0).integers(0, 256, (512, 512, 4), np.uint8)
    target = np.zeros((1024, 1024, 3), np.uint8)
    crop = train_model.visual_crop(patch, np.float32(target), target)
    enlarged = Image.fromarray(patch[..., :3]).resize((1024, 1024), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop, np.hstack([np.asarray(enlarged), target, target]))
