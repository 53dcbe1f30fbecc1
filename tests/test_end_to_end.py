"""Two levels are trained and rendered with the scripts themselves: what they print, what they leave on the disk.

Level 7 makes three updates, level 6 one from level 7's last checkpoint, then starts again from an earlier one and is
stopped.
"""

import hashlib
import os
import re
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import load_dataset
import model
import test_model
import train_model
import utils
import vgg

BATCH_SIZE = 2  # of 3 test photos: the last batch is partial
LEVEL_7_RATE, LEVEL_6_RATE = 1e-3, 1e-6
NUMBER = r"(nan|-?\d+(?:\.\d+)?(?:e[-+]\d+)?)"


@pytest.fixture(scope="module")
def runs(module_workplace, dataset, vgg_file, call):
    """{name: `Call`} of the runs, in this order; the current folder holds what they left."""
    common = f"batch_size={BATCH_SIZE}", "eval_step=2", f"dataset_dir={dataset}"
    done = {}
    with pytest.MonkeyPatch.context() as patches:
        reads = count_calls(patches, vgg, "load_vgg19")
        done["level 7"] = call(train_model, "level=7", "num_train_iters=3", f"learning_rate={LEVEL_7_RATE}",
                               f"vgg_dir={vgg_file}", *common)
        done["reads of VGG-19"] = len(reads)
        done["level 6"] = call(train_model, "level=6", "num_train_iters=1", f"learning_rate={LEVEL_6_RATE}", *common)
        done["files of level 6"] = contents_of_checkpoints(6)
        done["log"] = utils.LOG.read_text()
        interrupt_first_batch(patches)
        done["interrupted"] = call(train_model, "level=6", "restore_iter=2", "num_train_iters=5", *common)
    return done


def count_calls(patches, module, name):
    """Makes a function note its calls in the list that this gives."""
    function, calls = getattr(module, name), []
    patches.setattr(module, name, lambda *args: calls.append(args) or function(*args))
    return calls


def interrupt_first_batch(patches):
    """As Ctrl-C would, while the first batch is under way."""
    batches = load_dataset.training_batches

    def interrupted(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    patches.setattr(load_dataset, "training_batches", interrupted)


def contents_of_checkpoints(level):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in utils.MODELS.glob(f"pynet_level_{level}_iteration_*")}


def stored(level, iteration):
    reader = tf.train.load_checkpoint(str(utils.checkpoint_prefix(level, iteration)))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def log_lines(log):
    """[(heading, [lines])] of the runs in models/logs.txt."""
    runs = re.split(r"^(?!step )(.*)\n", log, flags=re.MULTILINE)
    return [(heading, lines.splitlines()) for heading, lines in zip(runs[1::2], runs[2::2])]


# Training ------------------------------------------------------------------------------------------------------------


def test_both_levels_end_with_status_0_and_nothing_on_stderr(runs):
    assert (runs["level 7"].status, runs["level 7"].err) == (0, "")
    assert (runs["level 6"].status, runs["level 6"].err) == (0, "")


def test_checkpoints_are_at_every_eval_step_and_the_last_iteration_and_none_at_0(runs):
    assert utils.saved_iterations(7) == [2, 3]
    assert sorted(runs["files of level 6"]) == ["pynet_level_6_iteration_1.ckpt.data-00000-of-00001",
                                                "pynet_level_6_iteration_1.ckpt.index"]


def test_every_checkpoint_holds_the_originals_440_variables(runs, reference):
    names = {row["name"] for row in reference("variables.csv")}
    for level, iteration in ((7, 2), (7, 3), (6, 1)):
        assert stored(level, iteration).keys() == names


@pytest.mark.parametrize("iteration", [2, 3])
def test_iteration_i_has_i_updates(runs, pynet_and_start, iteration):
    """Adam moves a weight whose gradient keeps its direction by the learning rate each time, and none any further."""
    start, now = pynet_and_start[1], stored(7, iteration)
    furthest = max(np.abs(value - start[name]).max() for name, value in now.items())
    assert (iteration - 0.3) * LEVEL_7_RATE < furthest < (iteration + 0.02) * LEVEL_7_RATE


def test_level_6_says_which_checkpoint_it_starts_from(runs):
    assert re.search(r"Level 6 starts from level 7, iteration 3\b", runs["level 6"].out)
    assert re.search(r"Level 6 starts from level 7, iteration 2\b", runs["interrupted"].out)


def test_level_6_starts_from_exactly_these_weights(runs, pynet):
    """What it does not train is unchanged, the rest within one step of Adam: iteration 2 was 1000 times as far away."""
    start, earlier, now = stored(7, 3), stored(7, 2), stored(6, 1)
    names = {id(variable): name for name, variable in pynet.variables.items()}
    trained = {names[id(variable.value)] for variable in model.network_for_level(pynet, 6).trainable_variables}
    for name, value in now.items():
        if name in trained:
            np.testing.assert_allclose(value, start[name], rtol=1e-6, atol=1.001 * LEVEL_6_RATE)
        else:
            np.testing.assert_array_equal(value, start[name])
    assert np.abs(start["generator/Variable_63"] - earlier["generator/Variable_63"]).max() > 100 * LEVEL_6_RATE
    assert any(np.any(now[name] != start[name]) for name in trained)


def test_level_7_says_that_it_starts_from_random_weights(runs):
    assert "Level 7 starts from random weights" in runs["level 7"].out


def test_vgg_is_read_once_in_a_run(runs):
    assert runs["reads of VGG-19"] == 1


def test_missing_vgg_is_a_notice_for_a_level_that_needs_none(runs):
    assert re.search(r"^Note: .*imagenet-vgg-verydeep-19\.mat.*content", runs["level 6"].out, flags=re.MULTILINE)


# The log -------------------------------------------------------------------------------------------------------------


def test_log_has_a_line_for_iteration_0_every_eval_step_and_the_last_iteration(runs):
    (_, level_7), (_, level_6) = log_lines(runs["log"])
    assert [line.split()[1] for line in level_7] == ["0", "2", "3"]
    assert [line.split()[1] for line in level_6] == ["0", "1"]


def test_log_lines_have_the_fixed_form(runs):
    (_, level_7), (_, level_6) = log_lines(runs["log"])
    start = rf"step \d+ \| training: {NUMBER}, test: {NUMBER} \| "
    terms = rf"mse: {NUMBER}, psnr: {NUMBER}, l1: {NUMBER}"
    matches = [re.fullmatch(rf"{start}content: {NUMBER}, {terms}", line) for line in level_7]
    matches += [re.fullmatch(start + terms, line) for line in level_6]
    assert all(matches)
    assert all(f"{float(number):.4g}" == number for match in matches for number in match.groups())


def test_runs_are_appended_under_headings_that_say_the_settings(runs):
    (heading_7, _), (heading_6, _) = log_lines(runs["log"])
    assert all(f"level={level}" in heading and "batch_size=2" in heading and "eval_step=2" in heading
               for level, heading in ((7, heading_7), (6, heading_6)))
    assert utils.LOG.read_text().startswith(runs["log"])


def test_log_lines_are_printed_too(runs):
    (_, level_7), (_, level_6) = log_lines(runs["log"])
    assert all(line in runs["level 7"].out for line in level_7)
    assert all(line in runs["level 6"].out for line in level_6)


@pytest.fixture(scope="module")
def level_6_on_test_patches(runs, pynet_to_train, dataset):
    """[(inputs, outputs, targets)] for the batches of the test photos, with the weights that level 6 ended with."""
    for name, value in stored(6, 1).items():
        pynet_to_train.variables[name].assign(value)
    network = model.network_for_level(pynet_to_train, 6)
    pairs = load_dataset.find_training_pairs(dataset, "test")
    batches = [(batch.inputs, network(np.float32(batch.inputs) / 255).numpy(), np.float32(batch.targets) / 255)
               for batch in load_dataset.test_batches(pairs, 6, BATCH_SIZE)]
    assert [len(inputs) for inputs, _, _ in batches] == [2, 1]
    return batches


def test_test_metrics_are_means_over_all_test_patches(runs, level_6_on_test_patches):
    errors = [np.float64(outputs) - targets for _, outputs, targets in level_6_on_test_patches]
    l1 = np.mean(np.abs(np.concatenate(errors)))
    mse = np.mean(np.concatenate(errors) ** 2)
    psnr = np.average([-10 * np.log10(np.mean(error ** 2)) for error in errors], weights=[2, 1])
    last = log_lines(runs["log"])[1][1][-1]
    found = {name: float(value) for name, value in re.findall(rf"(\w+): {NUMBER}", last)}
    expected = {"test": 100 * l1, "mse": mse, "psnr": psnr, "l1": l1}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=6e-4)


def test_training_loss_is_the_mean_since_the_line_before(runs):
    (_, level_7), _ = log_lines(runs["log"])
    losses = [float(re.search(rf"training: {NUMBER}", line)[1]) for line in level_7]
    assert np.isnan(losses[0]) and 0 < losses[1] < 100 and 0 < losses[2] < 100 and losses[1] != losses[2]


# Visual crops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level, iterations", [(7, (0, 2, 3)), (6, (0, 1))])
def test_every_evaluation_leaves_a_crop_of_each_test_patch(runs, level, iterations):
    for iteration in iterations:
        for number in range(3):
            with Image.open(utils.RESULTS / f"pynet_img_{number}_level_{level}_iter_{iteration}.jpg") as crop:
                assert crop.size == (3 * 512, 512)
    names = [path.name for path in utils.RESULTS.glob(f"*_level_{level}_iter_*")]
    assert len([name for name in names if int(name.split("_")[-1][:-4]) in iterations]) == 3 * len(iterations)


def test_crops_show_the_same_patches_at_every_iteration(runs):
    def input_and_target(iteration):
        with Image.open(utils.RESULTS / f"pynet_img_1_level_7_iter_{iteration}.jpg") as crop:
            left, _, right = np.split(np.asarray(crop), 3, axis=1)
            return np.hstack([left, right])
    np.testing.assert_array_equal(input_and_target(0), input_and_target(3))


def test_crop_is_input_output_and_target(runs, level_6_on_test_patches):
    [(inputs, outputs, targets)] = level_6_on_test_patches[1:]
    with Image.open(utils.RESULTS / "pynet_img_2_level_6_iter_1.jpg") as crop:
        parts = np.split(np.asarray(crop, float), 3, axis=1)
    squares = [255 * image[0].repeat(16, axis=0).repeat(16, axis=1) for image in (outputs, targets)]
    expected = [inputs[0, ..., :3], *squares]
    assert all(np.abs(part - image).mean() < 3 for part, image in zip(parts, expected))


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(runs):
    done = runs["interrupted"]
    text = done.out + done.err
    assert done.status == 130 and "Traceback" not in text
    assert re.search(r"Stopped after iteration \d", text) and "python train_model.py level=6" in text


def test_ctrl_c_leaves_earlier_checkpoints_and_nothing_half(runs):
    assert contents_of_checkpoints(6) == runs["files of level 6"]
    assert [path.name for path in utils.MODELS.iterdir() if path.name.endswith((".writing", ".complete"))] == []


# Rendering -----------------------------------------------------------------------------------------------------------


def test_trained_level_is_rendered_from_its_last_checkpoint(runs, call, dataset):
    done = call(test_model, "level=6", f"dataset_dir={dataset}")
    assert (done.status, done.err) == (0, "")
    for number in range(3):
        with Image.open(utils.FULL_RESOLUTION / f"{number}_level_6_iteration_1.png") as image:
            assert image.size == (1088 // 32, 1024 // 32)
