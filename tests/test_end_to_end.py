"""Two levels are trained and rendered with the scripts themselves: what they print, what they leave on the disk.

Level 7 makes three updates, level 6 one from level 7's last checkpoint, then starts again from an earlier one and is
stopped. After that: which runs "last saved" means, and networks without depth maps. All of them are an eighth as wide
as the paper's, with patches of 64 pixels.
"""

import hashlib
import math
import os
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, assign, newest_result
from PIL import Image

import load_dataset
import model
import test_model
import train_model
import utils
import vgg
from support import checkpoints, dataset_files, starts, training_log, updates
from tools import export_model

PATCH_SIZE = 64
BATCH_SIZE = 2  # of 3 test photos: the last batch is partial
LEVEL_7_RATE, LEVEL_6_RATE = 1e-3, 1e-6
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)"


@pytest.fixture(scope="module")
def pynet_and_start():
    """A network that is narrower than the paper's, with the random weights of seed 0, and {name: value} of these."""
    pynet = model.build_pynet(seed=0, width_multiplier=0.125, kernel_start="he")
    starts.begin_level(pynet, 7)
    return pynet, {name: variable.numpy() for name, variable in pynet.variables.items()}


@pytest.fixture(scope="module")
def runs(module_workplace, small_dataset, vgg_file, call, pynet_and_start):
    """{name: `Call`} of the runs, in this order, and what they left; the current folder holds their files."""
    common = f"batch_size={BATCH_SIZE}", f"patch_size={PATCH_SIZE}", "eval_step=2", f"dataset_dir={small_dataset}"
    done = {}
    with pytest.MonkeyPatch.context() as patches:
        reads = count_calls(patches, vgg, "load_vgg19")
        patches.setattr(vgg, "SHA256", hashlib.sha256(vgg_file.read_bytes()).hexdigest())  # the stand-in is expected
        done["level 7"] = call(train_model, "level=7", "width=0.125", "num_train_iters=3", f"vgg_dir={vgg_file}",
                               f"learning_rate={LEVEL_7_RATE}", *common)
        done["reads of VGG-19"] = len(reads)
        done["level 6"] = call(train_model, "level=6", "num_train_iters=1", f"learning_rate={LEVEL_6_RATE}", *common)
        done["log"] = training_log.LOG.read_text()
        done["weights"] = {(level, iteration): stored(level, iteration)
                           for level in (7, 6) for iteration in checkpoints.saved_iterations(level)}
        make_quick(patches, *pynet_and_start)
        done["rendering"] = call(test_model, "level=6", f"dataset_dir={small_dataset}")
        done["files of level 6"] = files_of(utils.MODELS, "pynet_level_6_iteration_*")
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


def make_quick(patches, pynet, start):
    """Lets trainings use a network that is there already, with the given random start, and compute next to nothing.

    An update moves the first variable by the learning rate; the outputs are perfect.
    """
    def build_pynet(*_, **__):
        assign(pynet, start)
        return pynet

    def make_update(differentiate, optimizer, division, scale):
        def update(batch, iteration, learning_rate):
            optimizer.variables[0].assign_add(tf.fill(optimizer.variables[0].shape, learning_rate))
            return 1.0
        return update

    def make_evaluation_step(*_):
        return lambda inputs, targets: ({"loss": 0.0, "mse": 0.0, "l1": 0.0}, tf.cast(targets, tf.float32) / 255)

    patches.setattr(model, "build_pynet", build_pynet)
    patches.setattr(updates, "make_update", make_update)
    patches.setattr(train_model, "make_evaluation_step", make_evaluation_step)


def files_of(folder, pattern):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def stored(level, iteration):
    reader = tf.train.load_checkpoint(str(checkpoints.checkpoint_prefix(level, iteration)))
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
    assert list(runs["weights"]) == [(7, 2), (7, 3), (6, 1)]
    assert sorted(runs["files of level 6"]) == ["pynet_level_6_iteration_1.ckpt.data-00000-of-00001",
                                                "pynet_level_6_iteration_1.ckpt.index"]


@pytest.mark.paper
def test_every_checkpoint_holds_the_originals_440_variables(runs, reference):
    names = {row["name"] for row in reference("variables.csv")}
    assert all(weights.keys() == names for weights in runs["weights"].values())


@pytest.mark.parametrize("iteration", [2, 3])
def test_iteration_i_has_i_updates(runs, pynet_and_start, iteration):
    """Adam moves a weight whose gradient keeps its direction by the learning rate each time, and none any further."""
    start, now = pynet_and_start[1], runs["weights"][7, iteration]
    furthest = max(np.abs(value - start[name]).max() for name, value in now.items())
    assert (iteration - 0.3) * LEVEL_7_RATE < furthest < (iteration + 0.02) * LEVEL_7_RATE


def test_level_6_says_which_checkpoint_it_starts_from(runs):
    assert re.search(r"Level 6 starts from .*level 7.* iteration 3\b", runs["level 6"].out)
    assert re.search(r"Level 6 starts from .*level 7.* iteration 2\b", runs["interrupted"].out)


def test_level_6_starts_from_exactly_these_weights(runs, pynet_and_start):
    """What neither level trains has its random start, the rest is within one step of Adam of where level 7 ended.

    Level 7's iteration 2 was 1000 times as far away.
    """
    (pynet, random), weights = pynet_and_start, runs["weights"]
    of_7, of_6 = (model.variables_of_level(pynet, level) for level in (7, 6))
    for name, value in weights[6, 1].items():
        start = weights[7, 3] if name in of_7 else random
        np.testing.assert_allclose(value, start[name], rtol=1e-6, atol=1.001 * LEVEL_6_RATE if name in of_6 else 0)
    assert max(np.abs(weights[7, 3][name] - weights[7, 2][name]).max() for name in of_7) > 100 * LEVEL_6_RATE
    assert any(np.any(weights[6, 1][name] != weights[7, 3][name]) for name in of_7)


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
    terms = rf"mse: {NUMBER}, psnr: {NUMBER}, l1: {NUMBER}"
    for lines, metrics in ((level_7, rf"content: {NUMBER}, {terms}"), (level_6, terms)):
        for index, line in enumerate(lines):
            training = NUMBER if index else "-"  # before the first update there is no training loss
            match = re.fullmatch(rf"step \d+ \| training: {training}, test: {NUMBER} \| {metrics}", line)
            assert match, line
            assert all(f"{float(number):.4g}" == number for number in match.groups())


def test_runs_are_appended_under_headings_that_say_the_settings(runs):
    (heading_7, _), (heading_6, _) = log_lines(runs["log"])
    assert all(f"level={level}" in heading and "batch_size=2" in heading and "eval_step=2" in heading
               for level, heading in ((7, heading_7), (6, heading_6)))
    assert training_log.LOG.read_text().startswith(runs["log"])


def test_log_lines_are_printed_too(runs):
    (_, level_7), (_, level_6) = log_lines(runs["log"])
    assert all(line in runs["level 7"].out for line in level_7)
    assert all(line in runs["level 6"].out for line in level_6)


@pytest.fixture(scope="module")
def level_6_on_test_patches(runs, pynet_and_start, small_dataset):
    """[(inputs, outputs, targets)] for the batches of the test photos, with the weights that level 6 ended with."""
    assign(pynet_and_start[0], runs["weights"][6, 1])
    network = model.network_for_level(pynet_and_start[0], 6)
    _, pairs = dataset_files.find_training_set(small_dataset, patch_size=PATCH_SIZE)
    batches = [(batch.inputs, network(np.float32(batch.inputs) / 255).numpy(), np.float32(batch.targets) / 255)
               for batch in load_dataset.test_batches(pairs, 6, BATCH_SIZE, PATCH_SIZE)]
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
    losses = [float(re.search(rf"training: {NUMBER}", line)[1]) for line in level_7[1:]]
    assert 0 < losses[0] < 100 and 0 < losses[1] < 100 and losses[0] != losses[1]


# Visual crops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level, iterations", [(7, (0, 2, 3)), (6, (0, 1))])
def test_every_evaluation_leaves_a_crop_of_each_test_patch(runs, level, iterations):
    for iteration in iterations:
        for number in range(3):
            with Image.open(utils.RESULTS / f"pynet_img_{number}_level_{level}_iter_{iteration}.jpg") as crop:
                assert crop.size == (3 * PATCH_SIZE, PATCH_SIZE)
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
    squares = [255 * np.clip(image[0], 0, 1).repeat(16, axis=0).repeat(16, axis=1) for image in (outputs, targets)]
    expected = [inputs[0, ..., :3], *squares]
    assert all(np.abs(part - image).mean() < 4 for part, image in zip(parts, expected))


# Ctrl-C --------------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(runs):
    done = runs["interrupted"]
    text = done.out + done.err
    assert done.status == 130 and "Traceback" not in text
    assert re.search(r"Stopped after iteration \d", text) and "python train_model.py level=6" in text


def test_ctrl_c_leaves_earlier_checkpoints_and_nothing_half(runs):
    [older] = (utils.MODELS / "older").iterdir()
    assert re.search(rf"moved .*level 6.* to {older}/", runs["interrupted"].out)
    assert {path.name for path in older.iterdir()} == {
        f"pynet_level_6_resume.ckpt{suffix}" for suffix in (".index", ".data-00000-of-00001", ".json")}
    assert files_of(utils.MODELS, "pynet_level_6_iteration_*") == runs["files of level 6"]
    assert [path.name for path in utils.MODELS.iterdir() if path.name.endswith(".writing")] == []


# Rendering -----------------------------------------------------------------------------------------------------------


def test_trained_level_is_rendered_from_its_last_checkpoint(runs):
    assert (runs["rendering"].status, runs["rendering"].err) == (0, "")
    for number in range(3):
        with Image.open(newest_result(f"{number}_level_6_iteration_1.png")) as image:
            assert image.size == (192 // 32, 160 // 32)


# Runs that start anew ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_runs(workplace, pynet_and_start, monkeypatch):
    """An empty place for trainings that compute next to nothing."""
    make_quick(monkeypatch, *pynet_and_start)


def test_last_saved_is_of_the_latest_run_and_earlier_ones_are_in_models_older(quick_runs, small_dataset, call):
    common = *QUICK, f"dataset_dir={small_dataset}"
    first = call(train_model, "level=7", "num_train_iters=2", *common)
    assert first.status == 0 and "older" not in first.out
    weights_and_state, card = (files_of(utils.MODELS, f"pynet_level_7{end}") for end in ("_*", ".json"))
    assert len(weights_and_state) == 5 and len(card) == 1

    anew = call(train_model, "level=7", "num_train_iters=1", "learning_rate=1e-3", *common)
    assert (anew.status, anew.err) == (0, "")
    assert "this run of level 7 starts anew; resume=true would go on after iteration 2" in anew.out
    [folder] = (utils.MODELS / "older").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", folder.name)
    assert re.search(rf"moved .*level 7.* to {folder}/", anew.out)
    assert files_of(folder, "*") == weights_and_state | card
    assert checkpoints.saved_iterations(7) == [1]

    level_6 = call(train_model, "level=6", "num_train_iters=1", "learning_rate=1e-12", *common)
    assert level_6.status == 0 and re.search(r"Level 6 starts from .*level 7.* iteration 1\b", level_6.out)
    found, expected = (stored(level, 1)["generator/Variable_4"] for level in (6, 7))  # the first that level 6 trains
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_a_run_that_saves_nothing_leaves_the_earlier_one_where_it_is(quick_runs, small_dataset, call, monkeypatch):
    common = "level=7", *QUICK, f"dataset_dir={small_dataset}"
    assert call(train_model, *common, "num_train_iters=1").status == 0
    before = files_of(utils.MODELS, "pynet_level_7*")
    monkeypatch.setattr(updates, "make_update", lambda *_: lambda *_: math.nan)
    done = call(train_model, *common, "num_train_iters=2")
    assert done.status == 1 and "Nothing of it was saved" in done.err
    assert files_of(utils.MODELS, "pynet_level_7*") == before and not (utils.MODELS / "older").exists()


# Width and depth maps, which later levels take from level 7 ----------------------------------------------------------


@pytest.fixture
def photos(small_dataset, tmp_path):
    """The data set without its depth maps."""
    folder = tmp_path / "photos"
    shutil.copytree(small_dataset, folder, ignore=shutil.ignore_patterns("original_depth"))
    return folder


def test_levels_train_resume_and_render_without_depth_maps_and_without_saying_so_again(photos, workplace, call,
                                                                                       monkeypatch):
    common = *QUICK[1:], "eval_step=1", f"dataset_dir={photos}"
    runs = [call(train_model, "level=7", "width=0.125", "use_depth=false", "num_train_iters=1", *common)]
    make_quick(monkeypatch, model.build_pynet(seed=0, channels=3, width_multiplier=0.125), {})
    runs += [call(train_model, "level=7", "resume=true", "num_train_iters=2", *common),
             call(train_model, "level=6", "num_train_iters=1", *common)]
    assert [(done.status, done.err) for done in runs] == [(0, "")] * 3
    for prefix in map(checkpoints.checkpoint_prefix, (7, 7, 6), (1, 2, 1)):
        assert checkpoints.network_of(prefix) == {"channels": 3, "width_multiplier": 0.125}

    assert call(test_model, "level=6", f"dataset_dir={photos}").status == 0
    test_photo = next((photos / "test/original").iterdir())
    def check_size():
        result = newest_result(f"{test_photo.stem}_level_6_iteration_1.png")
        with Image.open(test_photo) as photo, Image.open(result) as image:
            assert image.size == (photo.width // 32, photo.height // 32)
        return result

    in_data_set = check_size()
    assert call(test_model, "level=6", f"images_dir={photos / 'test/original'}").status == 0
    assert check_size() != in_data_set

    mixed = call(train_model, "level=6", "use_depth=true", "num_train_iters=1", *common)
    assert mixed.status == 1 and "of a network with use_depth=false; leave use_depth= out" in mixed.err
    resumed = call(train_model, "level=7", "use_depth=true", "resume=true", "num_train_iters=3", *common)
    assert resumed.status == 1 and "of a network with use_depth=false" in resumed.err


@pytest.mark.parametrize("argument, network", [("use_depth=false", "use_depth=true"), ("width=0.5", "width=0.125")])
def test_a_network_is_not_continued_as_another(argument, network, workplace, small_checkpoint, link_checkpoint, photos,
                                               call):
    link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(7, 1))
    done = call(train_model, "level=6", argument, f"dataset_dir={photos}")
    name = argument.partition("=")[0]
    assert done.status == 1 and f"is of a network with {network}; leave {name}= out, or start at level 7" in done.err


def test_a_network_with_depth_maps_needs_them(workplace, small_checkpoint, link_checkpoint, photos, call):
    link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(7, 1))
    training = call(train_model, "level=6", f"dataset_dir={photos}")
    assert training.status == 1 and "original_depth: no such folder" in training.err
    own = call(test_model, "level=7", f"images_dir={photos / 'test/original'}")
    assert own.status == 1 and "depth_anything_v2_small.onnx: could not be fetched" in own.err


@pytest.mark.parametrize("width", [0.5, 0.125])
def test_narrow_networks_train_stop_resume_render_and_are_exported(width, workplace, small_dataset, call):
    common = *QUICK[1:], "eval_step=9", f"dataset_dir={small_dataset}"
    with pytest.MonkeyPatch.context() as patches:
        interrupt_first_batch(patches)
        stopped = call(train_model, "level=7", f"width={width}", "num_train_iters=2", *common)
    assert stopped.status == 130 and "Stopped after iteration 1 of level 7" in stopped.out
    assert call(train_model, "level=7", "resume=true", "num_train_iters=2", *common).status == 0
    assert checkpoints.network_of(checkpoints.checkpoint_prefix(7, 2))["width_multiplier"] == width
    assert call(test_model, "level=7", f"dataset_dir={small_dataset}").status == 0
    exported = call(export_model, "level=7", "out=pynet")
    assert exported.status == 0 and "largest difference from the network" in exported.out
