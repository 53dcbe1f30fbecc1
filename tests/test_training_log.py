"""support/training_log.py: the log, curves on one axis that resumed runs continue, and the model card.

The card says where a model comes from. What the log of a whole training looks like is in test_end_to_end.py.
"""

import json
import math
import re
import shutil
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf
from conftest import QUICK, newest_result
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import model
import test_model
import train_model
import utils
from support import checkpoints, experiments, renderer, starts, training_log
from tools import plot_logs


def curves(folder):
    """{name: {step: value}} of the scalars, and {name: [steps]} of the pictures."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    scalars, pictures = {}, {}
    for name in events.Tags()["tensors"]:
        points = events.Tensors(name)
        if points[0].tensor_proto.dtype == tf.string.as_datatype_enum:
            pictures[name] = [point.step for point in points]
        else:
            scalars[name] = {point.step: float(tf.make_ndarray(point.tensor_proto)) for point in points}
    return scalars, pictures


def experiment(run, **settings):
    return experiments.Experiment(types.SimpleNamespace(**settings), experiments.Start(run, None, None), [], [], {})


def read_card(level):
    return json.loads((utils.MODELS / f"pynet_level_{level}.json").read_text())


@pytest.fixture
def training(monkeypatch, workplace, small_dataset, call, small_pynet, fake_update):
    """training(arguments) trains without any computing: the losses are the iteration's number. Gives a `Call`."""
    def make_evaluation_step(*_):
        def step(inputs, targets):
            target = tf.cast(targets, tf.float32) / 255
            return train_model.metrics(7, target / 2, target), target / 2
        return step

    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: small_pynet)
    monkeypatch.setattr(starts, "begin_level", lambda *_: None)  # small_pynet stays as it is
    monkeypatch.setattr(train_model, "make_evaluation_step", make_evaluation_step)
    fake_update(float)
    return lambda *arguments: call(train_model, *arguments, *QUICK, f"dataset_dir={small_dataset}")


# The log and the curves ----------------------------------------------------------------------------------------------


def test_two_levels_that_train_at_once_keep_their_lines_apart(workplace, monkeypatch):
    monkeypatch.setattr(training_log, "write_curves", lambda *_: None)
    logs = {level: training_log.TrainingLog(experiment(experiments.Run(), level=level, dataset_dir="a\n# level=1"))
            for level in (7, 6)}
    psnr = {(7, 0): 10, (7, 10): 11, (6, 0): 20, (7, 20): 12, (6, 10): 21, (6, 20): 22}
    for (level, iteration), value in psnr.items():
        logs[level].experiment.run.iteration = iteration
        logs[level].report({"loss": 1, "mse": 0.1, "psnr": value, "l1": 0.2}, [], 1e-4)
    found = plot_logs.read_log(training_log.LOG)
    assert {(level, iteration): values["psnr"] for level in found for iteration, values in found[level].items()} == psnr
    assert training_log.LOG.read_text().count("\n#") + 1 == 2 + 4, "a heading again only after the other level's line"


@pytest.mark.parametrize("losses, training_loss", [([], "-"), ([1.0, 2.0], "1.5"), ([1e-9], "1e-09")])
def test_line_of_an_evaluation(losses, training_loss):
    test = {"l1": 0.5, "loss": 2.0, "sharpness": 7.0, "ms-ssim": 0.9, "psnr": 23.45678, "mse": 1e-5, "content": 3.0}
    assert training_log.log_line(12, losses, test) == (
        f"step 12 | training: {training_loss}, test: 2 | "
        "content: 3, mse: 1e-05, psnr: 23.46, l1: 0.5, ms-ssim: 0.9, sharpness: 7")


def test_metrics_that_a_researcher_adds_are_logged_last_and_get_a_curve(training, monkeypatch):
    metrics = train_model.metrics
    monkeypatch.setattr(train_model, "metrics", lambda level, output, target, vgg19=None: (
        {"edge": tf.reduce_mean(output)} | metrics(level, output, target, vgg19)))
    done = training("level=7", "num_train_iters=1")
    lines = re.findall("^step .*", done.out, re.MULTILINE)
    assert [line.split()[1] for line in lines] == ["0", "1"]
    assert all(re.fullmatch(r".*, l1: [^,]+, edge: 0\.\d+", line) for line in lines)
    scalars, _ = curves(training_log.CURVES / "level_7/run_1")
    assert set(scalars["test/edge"]) == {0, 1}


def test_curves_of_two_levels_and_a_resumed_run_follow_each_other_on_one_axis(training, monkeypatch):
    monkeypatch.setattr(training_log, "LOSSES_IN_A_POINT", 5)
    assert training("level=7", "eval_step=6", "num_train_iters=12").status == 0
    assert training("level=7", "resume=true", "num_train_iters=15").status == 0
    assert training("level=6", "eval_step=2", "num_train_iters=4").status == 0

    scalars, pictures = curves(training_log.CURVES / "level_7/run_1")
    assert scalars["loss/training"] == {1: 1, 6: 4, 7: 7, 12: 10, 15: 14}
    assert set(scalars["loss/test"]) == set(scalars["test/psnr"]) == {0, 6, 12, 15}
    assert set(scalars["speed/iterations_per_second"]) == set(scalars["speed/seconds_waiting_for_data"]) == {6, 12, 15}
    assert list(scalars["learning_rate"].values()) == pytest.approx([5e-5] * 4)
    assert min(scalars["device_memory_bytes"].values()) > 1e8
    assert {tag: sorted(steps) for tag, steps in pictures.items()} == {"input, output, target": [0, 6, 12, 15]}
    scalars, _ = curves(training_log.CURVES / "level_6/run_1")
    assert set(scalars["loss/test"]) == {15, 17, 19} and scalars["loss/training"] == {17: 1.5, 19: 3.5}
    assert "content" not in " ".join(scalars)


def test_a_run_that_starts_anew_has_curves_of_its_own(training):
    for _ in range(2):
        assert training("level=7", "eval_step=1", "num_train_iters=1").status == 0
    assert sorted(path.name for path in (training_log.CURVES / "level_7").iterdir()) == ["run_1", "run_2"]


def test_a_log_and_curves_that_cannot_be_written_end_nothing(training):
    training_log.LOG.mkdir()
    training_log.CURVES.write_text("")
    done = training("level=7", "num_train_iters=1")
    assert done.status == 0 and checkpoints.saved_iterations(7) == [1]
    assert re.search(r"^warning: .*logs\.txt.*; the training goes on$", done.err, re.MULTILINE)
    assert re.search(r"^warning: .*tensorboard.*; the training goes on$", done.err, re.MULTILINE)


# The card ------------------------------------------------------------------------------------------------------------


def test_the_card_says_how_the_model_was_made_and_testing_prints_it(training, call, small_dataset):
    assert training("level=7", "eval_step=1", "num_train_iters=2", "seed=5").status == 0
    card = read_card(7)
    assert (card["level"], card["iteration"], card["start"]) == (7, 2, "from random weights")
    assert card["settings"] | {"seed": 5, "batch_size": 1, "patch_size": 64, "width": "0.125", "kernel_start": "he",
                               "num_train_iters": 2} == card["settings"]
    assert card["photos"] == {"training": 3, "test": 3}
    assert set(card["evaluations"]) == {"1", "2"}
    assert set(card["evaluations"]["2"]["metrics"]) == {"loss", "mse", "psnr", "l1"}
    assert card["loss_weights"] == "{'l1': 100.0}" and card["commit"] == training_log.commit()
    assert card["versions"]["tensorflow"] == tf.__version__

    done = call(test_model, "level=7", "restore_iter=1", f"dataset_dir={small_dataset}")
    [line] = [line for line in done.out.splitlines() if line.startswith("Trained ")]
    assert line == f"Trained from random weights, on 3 photos, commit {card['commit']}"
    page = newest_result("index.html").read_text()
    assert "seed=5" in page and "psnr" in page


def test_the_card_comes_with_the_first_checkpoint_of_a_run_and_keeps_its_evaluations_when_it_is_resumed(
        training, monkeypatch):
    saved = []
    write_card = training_log.write_card
    monkeypatch.setattr(training_log, "write_card", lambda *arguments: (
        saved.append(checkpoints.saved_iterations(7)), write_card(*arguments)))
    assert training("level=7", "eval_step=1", "num_train_iters=2").status == 0
    assert saved == [[1], [1, 2]]
    assert training("level=7", "eval_step=1", "num_train_iters=3", "resume=true", "learning_rate=1e-5").status == 0
    assert set(read_card(7)["evaluations"]) == {"1", "2", "3"}
    assert "learning_rate=5e-05" in training_log.card_rows(7, 2)["Settings"]
    assert "learning_rate=1e-05" in training_log.card_rows(7, 3)["Settings"]
    assert training_log.card_rows(7, 4) == {}

    assert training("level=7", "eval_step=1", "num_train_iters=1", "seed=6").status == 0
    assert read_card(7)["settings"]["seed"] == 6 and set(read_card(7)["evaluations"]) == {"1"}


def test_resuming_with_other_code_says_so(training, monkeypatch):
    assert training("level=7", "num_train_iters=1").status == 0
    monkeypatch.setattr(training_log, "commit", lambda: "0123456789ab")
    monkeypatch.setitem(train_model.LOSS_WEIGHTS, 7, {"l1": 50.0})
    done = training("level=7", "num_train_iters=2", "resume=true")
    assert "Note: loss_weights was {'l1': 100.0} until iteration 1, and is {'l1': 50.0} from now on" in done.out
    assert re.search("^Note: commit was .* until iteration 1, and is 0123456789ab from now on$", done.out, re.MULTILINE)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_commit_is_that_of_the_repository_with_a_plus_where_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(training_log, "__file__", str(tmp_path / "support" / "training_log.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert training_log.commit() == "unknown"
    (tmp_path / "file").write_text("first")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True)
    commit = training_log.commit()
    assert re.fullmatch("[0-9a-f]{12}", commit)
    (tmp_path / "file").write_text("second")
    assert training_log.commit() == commit + "+"
    monkeypatch.setenv("PATH", "")
    assert training_log.commit() == "unknown"


@pytest.mark.parametrize("content", ["{", "", '{"evaluations": {}}', '{"evaluations": {"1": {}}}'])
def test_a_damaged_card_is_as_good_as_none(workplace, content):
    training_log.card_path(3).write_text(content)
    assert training_log.card_rows(3, 1) == {}


# The means of test_model.py ------------------------------------------------------------------------------------------


def test_test_runs_add_their_means_to_the_curves_of_the_level_each_under_its_name(workplace):
    run = experiments.Run(iteration=10, start="from level 2, iteration 5", iterations_above=100, name="run_1")
    training_log.write_card(experiment(run, level=1), {"loss": 1.0})
    training_log.write_test_means(1, 10, "test_ebb_dataset_float32", {"PSNR": 23.5, "SSIM": 0.5, "MS-SSIM": math.nan})
    training_log.write_test_means(1, 10, "test_ebb_dataset_bfloat16", {"PSNR": 23.25})
    scalars, _ = curves(training_log.CURVES / "level_1/test_ebb_dataset_float32")
    assert scalars == {"full resolution/PSNR": {110: 23.5}, "full resolution/SSIM": {110: 0.5}}
    scalars, _ = curves(training_log.CURVES / "level_1/test_ebb_dataset_bfloat16")
    assert scalars == {"full resolution/PSNR": {110: 23.25}}


def test_test_runs_with_another_precision_or_data_set_get_a_curve_of_their_own(
        workplace, small_pynet, small_checkpoint, link_checkpoint, small_dataset, call, monkeypatch):
    link_checkpoint(small_checkpoint, checkpoints.checkpoint_prefix(1, 10))
    monkeypatch.setattr(model, "build_pynet", lambda *_, **__: small_pynet)
    monkeypatch.setattr(renderer, "make_renderer", lambda network, level: (
        lambda photo, size: np.ones((size[1], size[0], 3), np.float32)))
    shutil.copytree(small_dataset / "test", workplace / "other/test")
    for arguments in (["precision=float32"], ["precision=bfloat16"], ["precision=float32", "val_size=2"]):
        assert call(test_model, *arguments, f"dataset_dir={small_dataset}").status == 0
    assert call(test_model, "dataset_dir=other/").status == 0
    found = {path.name[:-len("-12345678")]: set(curves(path)[0])
             for path in (training_log.CURVES / "level_1").iterdir()}
    assert found == dict.fromkeys(["test_ebb_dataset_float32", "test_ebb_dataset_bfloat16",
                                   "test_ebb_dataset_val_2_float32", "test_other_float32"],
                                  {"full resolution/PSNR", "full resolution/SSIM"})


def test_curves_that_cannot_be_written_are_a_data_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(training_log, "CURVES", tmp_path / "file")
    run = experiments.Run(iteration=1, losses=[1.0])
    with pytest.raises(utils.DataError, match="could not be written"):
        training_log.write_curves(7, run, {"loss": 1.0}, [np.zeros((4, 4, 3), np.uint8)], {})
    with pytest.raises(utils.DataError, match="could not be written"):
        training_log.write_test_means(7, 1, "test", {"PSNR": 1.0})


# Visual crops --------------------------------------------------------------------------------------------------------


def test_visual_crop_shows_input_output_and_target_side_by_side():
    random = np.random.default_rng(0)
    patch, target = (random.integers(0, 256, (512, 512, channels), np.uint8) for channels in (4, 3))
    output = random.uniform(-0.08, 1.08, (512, 512, 3)).astype(np.float32)
    left, middle, right = np.split(training_log.visual_crop(patch, output, target), 3, axis=1)
    np.testing.assert_array_equal(left, patch[..., :3])
    np.testing.assert_array_equal(middle, np.round(255 * np.clip(output, 0, 1)))
    np.testing.assert_array_equal(right, target)


def test_visual_crop_of_a_small_level_shows_its_pixels_as_squares():
    target = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    crop = training_log.visual_crop(np.zeros((512, 512, 4), np.uint8), target / np.float32(255), target)
    squares = target.repeat(32, axis=0).repeat(32, axis=1)
    np.testing.assert_array_equal(crop, np.hstack([np.zeros((512, 512, 3)), squares, squares]))


def test_visual_crop_of_level_1_has_the_size_of_its_target():
    patch = np.random.default_rng(0).integers(0, 256, (128, 128, 4), np.uint8)
    target = np.zeros((256, 256, 3), np.uint8)
    crop = training_log.visual_crop(patch, np.float32(target), target)
    enlarged = Image.fromarray(patch[..., :3]).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(crop, np.hstack([np.asarray(enlarged), target, target]))
