"""train_model.py: losses, gradients and updates of four levels are the original network's, on its own batches.

The slowest tests, in a file of their own: two files are tested at a time.
"""

import functools
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import assign

import model
import train_model
from support import updates

LEARNING_RATE = 5e-5
LOSS_TOLERANCES = (1e-6, 2e-4, 5e-3, 5e-3)  # relative: before the first update, the second, the third, after it
GRADIENT_NORM_TOLERANCE = 3e-2  # relative: where an L1 error is nearly 0, rounding decides which sign its gradient has
SMALLEST_COSINE = 0.995  # of a gradient with the reference's: an angle of 6 degrees


class AdamThatKeeps(train_model.Adam):
    """Keeps the gradients that it was given last."""

    def __init__(self, variables):
        super().__init__(variables)
        self.gradients = [tf.Variable(tf.zeros_like(variable)) for variable in variables]

    def apply(self, gradients, iteration, learning_rate):
        for kept, gradient in zip(self.gradients, gradients, strict=True):
            kept.assign(gradient)
        super().apply(gradients, iteration, learning_rate)


@pytest.fixture(scope="module", params=[7, 5, 2, 1], ids="level_{}".format)
def trajectory(request, pynet, seed_1_weights, vgg19, reference):
    """Three updates on one batch, as the original network did them for losses.json.

    Has the losses before each update and after the last, the {name: gradient} before the first, the
    {name: largest change}, and what is expected of them.
    """
    level, batches = request.param, reference("training_batches.npz")
    inputs, targets = batches[f"input_{level}"], batches[f"target_{level}"]
    network = model.network_for_level(pynet, level)
    adam = AdamThatKeeps(train_model.trained_variables(network))
    update = functools.partial(train_model.differentiate, network, level, vgg19, adam.variables)
    step = updates.make_training_step(update, adam, updates.divide_batch(len(inputs)))

    losses = [step(inputs, targets, 1, LEARNING_RATE).loss]
    names = {id(variable): name for name, variable in pynet.variables.items()}
    gradients = {names[id(variable)]: kept.numpy() for variable, kept in zip(adam.variables, adam.gradients)}
    losses += [step(inputs, targets, iteration, LEARNING_RATE).loss for iteration in (2, 3)]
    output = network(np.float32(inputs) / 255)
    losses.append(float(train_model.loss(level, output, np.float32(targets) / 255, vgg19)))
    moved = {name: np.abs(variable.numpy() - seed_1_weights[name]).max() for name, variable in pynet.variables.items()}
    yield types.SimpleNamespace(level=level, losses=losses, gradients=gradients, moved=moved,
                                expected=reference("losses.json")["training"][str(level)])
    assign(pynet, seed_1_weights)


@pytest.fixture(scope="module")
def without_gradient(reference):
    """Names of the biases in front of an instance normalisation, which takes every constant away again."""
    table = reference("variables.csv")
    return {row["name"] for row, following in zip(table, table[1:])
            if row["role"] == "bias" and following["role"] == "shift"}


@pytest.mark.paper
def test_losses_before_each_update_and_after_the_last_equal_the_reference(trajectory):
    expected_losses = trajectory.expected["losses"]
    for loss, expected, tolerance in zip(trajectory.losses, expected_losses, LOSS_TOLERANCES, strict=True):
        assert loss == pytest.approx(expected, rel=tolerance)


@pytest.mark.paper
def test_gradient_norm_of_every_variable_equals_the_reference(trajectory, reference, without_gradient):
    table = reference("variables.csv")
    expected = {table[int(index)]["name"]: norm for index, norm in trajectory.expected["gradient_norms"].items()}
    assert trajectory.gradients.keys() == expected.keys()
    for name in expected.keys() - without_gradient:
        norm = np.linalg.norm(trajectory.gradients[name])
        assert norm == pytest.approx(expected[name], rel=GRADIENT_NORM_TOLERANCE), name


@pytest.mark.paper
def test_gradients_have_the_direction_of_the_reference(trajectory, reference):
    """gradients.npz has those of some small variables, of the same weights and batch, computed in float64."""
    stored = {name.partition("/")[2]: gradient for name, gradient in reference("gradients.npz").items()
              if name.startswith(f"level_{trajectory.level}/")}
    assert len(stored) >= 6
    for name, expected in stored.items():
        found = trajectory.gradients[name]
        cosine = np.vdot(found, expected) / np.linalg.norm(found) / np.linalg.norm(expected)
        assert found.shape == expected.shape and cosine > SMALLEST_COSINE, name


@pytest.mark.paper
def test_biases_in_front_of_an_instance_normalisation_have_no_gradient_but_rounding(trajectory, without_gradient):
    norms = {name: np.linalg.norm(gradient) for name, gradient in trajectory.gradients.items()}
    found = [norm for name, norm in norms.items() if name in without_gradient]
    others = [norm for name, norm in norms.items() if name not in without_gradient]
    assert len(found) >= 14 and max(found) < 1e-3 * np.median(others)


@pytest.mark.paper
def test_exactly_the_variables_of_the_level_move_and_none_further_than_adam_steps(trajectory, reference):
    table = reference("variables.csv")
    of_the_level = {table[int(index)]["name"] for index in trajectory.expected["gradient_norms"]}
    assert {name for name, change in trajectory.moved.items() if change > 0} == of_the_level
    assert max(trajectory.moved.values()) < 3.1 * LEARNING_RATE
