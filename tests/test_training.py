"""train_model.py: losses, metrics and Adam are the original's; where each level starts.

What a whole run leaves behind is in test_end_to_end.py.
"""

import math
import re
import types

import numpy as np
import pytest
import tensorflow as tf
import test_image_metrics
from conftest import QUICK
from PIL import Image

import model
import test_model
import train_model
import utils
from support import checkpoints, starts, updates

ADAM_TOLERANCE = 3e-5  # relative: in float32 1 - 0.999 is 5e-5 off, of which the root halves the effect


# Losses and metrics --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loss_pair(reference):
    pair = reference("loss_pair.npz")
    return tf.constant(pair["output"]), tf.constant(pair["target"])


@pytest.fixture(scope="module")
def loss_terms(reference):
    return {name: pytest.approx(value, rel=1e-4) for name, value in reference("losses.json")["loss_terms"].items()}


@pytest.mark.paper
def test_loss_of_levels_7_to_2_is_100_times_the_mean_absolute_error(loss_pair, loss_terms):
    for level in (7, 6, 5, 4, 3, 2):
        assert float(train_model.loss(level, *loss_pair)) == loss_terms["upper_levels_loss"], level


@pytest.mark.paper
def test_loss_of_level_1_adds_l1_content_and_ssim(loss_pair, loss_terms, vgg19):
    assert float(train_model.loss(1, *loss_pair, vgg19)) == loss_terms["level_1_loss"]


@pytest.mark.paper
def test_loss_of_level_1_without_vgg_leaves_the_content_term_out(loss_pair, reference):
    terms = reference("losses.json")["loss_terms"]
    expected = 10 * terms["l1"] + 10 * (1 - terms["ssim"])
    assert float(train_model.loss(1, *loss_pair, None)) == pytest.approx(expected, rel=1e-4)


def test_metrics_are_the_loss_and_the_references_content_mse_l1_and_ms_ssim(loss_pair, loss_terms, vgg19):
    found = {name: float(value) for name, value in train_model.metrics(1, *loss_pair, vgg19).items()}
    assert found == {"loss": float(train_model.loss(1, *loss_pair, vgg19)), "content": loss_terms["content"],
                     "mse": loss_terms["mse"], "l1": loss_terms["l1"], "ms-ssim": loss_terms["ms_ssim"]}


def test_printed_numbers_of_large_patches_are_those_of_float64():
    pictures = test_image_metrics.pictures(1024, 1024)
    output, target = (tf.constant(picture[np.newaxis]) for picture in pictures)
    found = train_model.metrics(1, output, target)
    luminance, structure = test_image_metrics.float64_index_maps(*pictures)
    difference = np.abs(np.subtract(*pictures, dtype=np.float64))
    expected = {"l1": difference.mean(), "mse": np.square(difference).mean(),
                "ms-ssim": test_image_metrics.float64_ms_ssim(*pictures)}
    expected["loss"] = 10 * expected["l1"] + 10 * (1 - (luminance * structure).mean())
    assert {name: float(value) for name, value in found.items()} == {
        name: pytest.approx(value, rel=2e-5) for name, value in expected.items()}


def test_content_needs_vgg_and_ms_ssim_176_pixels(loss_pair):
    output, target = (images[:, :175, :176] for images in loss_pair)
    assert set(train_model.metrics(3, output, target)) == {"loss", "mse", "l1"}
    output, target = (images[:, :176, :176] for images in loss_pair)
    assert set(train_model.metrics(3, output, target)) == {"loss", "mse", "l1", "ms-ssim"}


@pytest.mark.parametrize("piece", [1, 2, 5])
def test_psnr_is_that_of_the_mse_of_the_whole_batch_in_whatever_pieces_it_is_computed(loss_pair, piece):
    def evaluation_step(outputs, targets):
        return train_model.metrics(7, outputs, targets), outputs

    output, target = (tf.concat([images, images[:1] / 2], axis=0) for images in loss_pair)
    batch = types.SimpleNamespace(inputs=output, targets=target, names=["0", "1", "2"])
    found, outputs = train_model.evaluate_batch(evaluation_step, batch, piece)
    errors = np.float64(output) - np.float64(target)
    assert found["psnr"] == pytest.approx(-10 * math.log10(np.mean(errors ** 2)), rel=1e-6)
    assert found["l1"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-6)
    np.testing.assert_array_equal(outputs, output)


def test_psnr_of_the_reference_pair(loss_pair, loss_terms):
    batch = types.SimpleNamespace(inputs=loss_pair[0], targets=loss_pair[1], names=["0", "1"])
    found, _ = train_model.evaluate_batch(lambda *pair: (train_model.metrics(7, *pair), pair[0]), batch, 9)
    assert found["psnr"] == loss_terms["psnr"]


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


# What a run does with them -------------------------------------------------------------------------------------------


@pytest.fixture
def training(workplace, small_dataset, call):
    """training("level=7", ...) trains the small network on small photos: gives a `Call`."""
    return lambda *arguments: call(train_model, *QUICK, f"dataset_dir={small_dataset}", *arguments)


def test_a_learning_rate_schedule_reaches_the_optimizer_from_the_first_iteration(training, monkeypatch):
    rates = []

    def update(batch, iteration, learning_rate):
        rates.append((iteration, learning_rate))
        return 1.0

    monkeypatch.setattr(updates, "make_update", lambda *_: update)
    monkeypatch.setattr(train_model, "learning_rate_at", lambda iteration, settings: settings.learning_rate / iteration)
    assert training("level=7", "num_train_iters=3", "learning_rate=0.6").status == 0
    assert rates == [(1, 0.6), (2, 0.3), (3, pytest.approx(0.2))]


@pytest.mark.parametrize("level, patch_size, measured", [
    (7, 128, {"mse", "psnr", "l1"}), (3, 64, {"mse", "psnr", "l1"}), (1, 128, {"mse", "psnr", "l1", "ms-ssim"})])
def test_any_patch_size_trains_at_high_and_low_levels(level, patch_size, measured, workplace, small_checkpoint,
                                                      link_checkpoint, tmp_path, call, patches_of_128):
    if level < 7:
        link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(level + 1, 5))
    width = ["width=0.125"] if level == 7 else []
    done = call(train_model, f"level={level}", *width, f"patch_size={patch_size}", "batch_size=1", "vgg_dir=none",
                "num_train_iters=1", f"dataset_dir={patches_of_128}")
    assert done.status == 0, done.err
    [line] = re.findall(r"step 1 \| .*", done.out)
    assert {name.split(":")[0] for name in line.rpartition("| ")[2].split(", ")} == measured
    side = max(patch_size, 2 * patch_size >> (level - 1))
    with Image.open(utils.RESULTS / f"pynet_img_0_level_{level}_iter_1.jpg") as crop:
        assert crop.size == (3 * side, side)


@pytest.fixture(scope="module")
def patches_of_128(tmp_path_factory):
    """A data set of one training and one test photo, of 288 x 256 pixels."""
    from tools import make_scenes
    folder = tmp_path_factory.mktemp("data_128") / "ebb_dataset"
    make_scenes.write_dataset(folder, 1, 1, size=(288, 256))
    return folder


# Where a level starts ------------------------------------------------------------------------------------------------


@pytest.fixture
def wider_level_4(monkeypatch):
    """Level 4 with more feature maps in its last block than in the paper."""
    level_4 = model._level_4

    class Wider:
        def __init__(self, layers):
            self._layers = layers

        def __getattr__(self, name):
            return getattr(self._layers, name)

        def block(self, x, largest, maps, name, **options):
            return self._layers.block(x, largest, 96 if name == "level_4_h" else maps, name, **options)

    monkeypatch.setattr(model, "_level_4", lambda layers, *features: level_4(Wider(layers), *features))


def stored(level, iteration):
    reader = tf.train.load_checkpoint(str(checkpoints.checkpoint_prefix(level, iteration)))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


@pytest.fixture
def without_updates(monkeypatch, fake_update):
    """Trainings save what they started from."""
    fake_update(lambda iteration: 1.0)
    monkeypatch.setattr(train_model, "evaluate", lambda *_: ({"loss": 1.0}, []))


def test_a_level_that_was_widened_starts_from_the_levels_above_as_they_are(
        training, small_pynet, small_checkpoint, link_checkpoint, wider_level_4, without_updates):
    link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(5, 9))
    done = training("level=4", "num_train_iters=1")
    assert done.status == 0, done.err
    assert re.search(r"^Level 4 starts from level 5, iteration 9$", done.out, re.MULTILINE)
    found, above = stored(4, 1), model.variables_of_level(small_pynet, 5)
    for name, variable in above.items():
        np.testing.assert_array_equal(found[name], variable)
    of_level_4 = model.variables_of_level(small_pynet, 4).keys() - above.keys()
    assert any(found[name].shape != small_pynet.variables[name].shape for name in of_level_4)

    done = training("level=3", "num_train_iters=1")
    assert done.status == 0, done.err
    for name in model.variables_of_level(small_pynet, 4):
        np.testing.assert_array_equal(stored(3, 1)[name], found[name])


def test_a_checkpoint_of_another_network_is_refused_for_testing_and_resuming_by_what_differs(
        training, small_checkpoint, small_dataset, link_checkpoint, without_updates, request, call):
    assert training("level=7", "num_train_iters=1").status == 0
    link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(4, 9))
    request.getfixturevalue("wider_level_4")
    for done, checkpoint in ((call(test_model, "level=4", f"dataset_dir={small_dataset}"), "pynet_level_4_iteration_9"),
                             (training("level=7", "resume=true", "num_train_iters=2"), "pynet_level_7_resume")):
        assert done.status == 1 and re.fullmatch(
            rf"error: models/{checkpoint}\.ckpt: generator/Variable_\d+ is \[[\d, ]+\], this network's is "
            r"\[[\d, ]+\]; the checkpoint was written by another network\n", done.err)


@pytest.mark.parametrize("level", [7, 2])
def test_weights_starts_a_level_from_all_variables_of_any_checkpoint(
        level, workplace, small_pynet, small_checkpoint, small_dataset, call, without_updates):
    arguments = f"level={level}", *(set(QUICK) - {"width=0.125"}), f"dataset_dir={small_dataset}"
    done = call(train_model, *arguments, f"weights={small_checkpoint}", "num_train_iters=1")
    assert done.status == 0, done.err
    assert f"Level {level} starts from all weights of {small_checkpoint}\n" in done.out
    found = stored(level, 1)
    assert len(found) == 440
    for name, variable in small_pynet.variables.items():
        np.testing.assert_array_equal(found[name], variable)

    own = f"weights={checkpoints.checkpoint_prefix(level, 1)}"
    done = call(train_model, *arguments, own, "num_train_iters=1")
    assert done.status == 0 and stored(level, 1).keys() == found.keys(), done.err
    done = call(train_model, f"level={level}", own, "resume=true", "num_train_iters=2")
    assert done.status == 0 and f"Note: {own} is not used, since there is a state to resume" in done.out


def test_weights_that_are_missing_or_given_beside_restore_iter_are_one_line(training, small_checkpoint):
    done = training("level=6", f"weights={small_checkpoint}.index")
    assert done.status == 1 and re.fullmatch(r"error: weights=.*\.index: no such checkpoint; .*\n", done.err)
    done = training("level=6", f"weights={small_checkpoint}", "restore_iter=5")
    assert done.status == 2 and done.err.startswith("error: restore_iter: ")


def test_what_the_level_above_has_not_trained_keeps_its_random_start(small_checkpoint, small_pynet):
    pynet = model.build_pynet(64, 64, seed=5, width_multiplier=0.125)
    start = {name: variable.numpy() for name, variable in pynet.variables.items()}
    train_model.start_level(pynet, small_checkpoint, types.SimpleNamespace(level=2, weights=None, kernel_start="paper"))
    above = model.variables_of_level(pynet, 3)
    for name, variable in pynet.variables.items():
        np.testing.assert_array_equal(variable, small_pynet.variables[name] if name in above else start[name])


@pytest.mark.parametrize("level", [7, 4, 3, 2, 1])
def test_he_start_goes_on_from_the_restored_level_above(level, small_checkpoint, small_pynet, monkeypatch):
    pynet, begun = model.build_pynet(64, 64, seed=5, width_multiplier=0.125, kernel_start="he"), []
    above = model.variables_of_level(small_pynet, level + 1) if level < 7 else {}

    def begin_level(pynet, level):
        assert all(np.array_equal(pynet.variables[name], variable) for name, variable in above.items())
        begun.append(level)

    monkeypatch.setattr(starts, "begin_level", begin_level)
    for kernel_start in ("he", "paper"):
        settings = types.SimpleNamespace(level=level, weights=None, kernel_start=kernel_start)
        train_model.start_level(pynet, small_checkpoint if above else None, settings)
    assert begun == [level]


@pytest.mark.parametrize("level, begins_as_input, is_trained", [(7, True, False), (3, True, False), (3, False, True),
                                                               (2, True, True)])
def test_a_first_block_that_began_as_the_input_is_trained_from_level_2_on(level, begins_as_input, is_trained):
    pynet = model.build_pynet(64, 64, seed=5, width_multiplier=0.125, kernel_start="he")
    if begins_as_input:
        starts.begin_level(pynet, 7)
    network = model.network_for_level(pynet, level)
    trained = {id(variable) for variable in train_model.trained_variables(network, starts.frozen_layers(pynet, level))}
    found = {name for name, variable in pynet.variables.items() if id(variable) in trained}
    first_block = {"generator/Variable" + suffix for suffix in ("", "_1", "_2", "_3")}
    everything = {id(variable) for variable in train_model.trained_variables(network)}
    expected = {name for name, variable in pynet.variables.items() if id(variable) in everything}
    assert found == (expected if is_trained else expected - first_block) and first_block < expected


def test_levels_7_and_6_leave_the_first_block_as_the_input_also_when_they_are_resumed(training):
    first_block = ["generator/Variable" + suffix for suffix in ("", "_1", "_2", "_3")]
    expected = model.build_pynet(seed=0, width_multiplier=0.125, kernel_start="he")
    starts.begin_level(expected, 7)
    for arguments in (["level=7", "num_train_iters=1"], ["level=7", "resume=true", "num_train_iters=2"],
                      ["level=6", "kernel_start=paper", "num_train_iters=2"]):
        done = training(*arguments)
        assert done.status == 0, done.err
    found = stored(6, 2)
    for name in first_block:
        np.testing.assert_array_equal(found[name], expected.variables[name])
    assert not np.array_equal(found["generator/Variable_4"], expected.variables["generator/Variable_4"])
